package api_test

import (
	"errors"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"varve/internal/contract"
)

// finished waits for a job and demands that it is done.
func (s served) finished(t *testing.T, job contract.Job, err error) *contract.Result {
	t.Helper()
	for err == nil && !job.State.Final() {
		job, err = s.client.Job(t.Context(), job.ID, 10*time.Second)
	}
	if err != nil || job.State != contract.JobDone {
		t.Fatalf("%+v, %v", job, err)
	}
	return job.Result
}

// TestBackupObjectsHaveTheirFields pins the names that scripts use.
func TestBackupObjectsHaveTheirFields(t *testing.T) {
	s := serve(t)
	where, other := filepath.Join(t.TempDir(), "home"), filepath.Join(t.TempDir(), "other")
	for name, url := range map[string]string{"home": where, "other": other} {
		if status, answer := s.ask(t, "POST", "/v1/repositories", `{"name":"`+name+`","access":{"url":"`+url+`"},"no_encryption":true}`); status != http.StatusCreated {
			t.Fatalf("%d %v", status, answer)
		}
	}
	s.ask(t, "POST", "/v1/volumes", `{"name":"web","size":1048576}`)
	job, err := s.client.CreateBackup(t.Context(), contract.CreateBackup{Volumes: []string{"web"}, Repo: "home"})
	made := s.finished(t, job, err).Backups
	if len(made) != 1 {
		t.Fatalf("made: %+v", made)
	}
	for path, want := range map[string]string{
		"/v1/backups": "base_id changed_bytes compressed_bytes consistency created_at depends_on duplicate_bytes finished_at freeze freeze_ms full_id group group_id host id " +
			"labels map_bytes mapped_bytes mismatched_blocks new_bytes objects parity_bytes point_id program read_bytes reason repo requests sampled_blocks seconds size source " +
			"stages started_at state stored_at stored_bytes type volume volume_id",
		"/v1/repositories": "access backups chunk_size created_at damaged dedup encryption format_version grace_seconds id last_backup_at name parity state url volumes warnings",
	} {
		status, answer := s.ask(t, "GET", path, "")
		list, ok := answer.([]any)
		if status != http.StatusOK || !ok || len(list) == 0 {
			t.Fatalf("%s: %d %v", path, status, answer)
		}
		if got := strings.Join(slices.Sorted(maps.Keys(list[0].(map[string]any))), " "); got != want {
			t.Errorf("%s:\n got %s\nwant %s", path, got, want)
		}
	}
	for path, want := range map[string]int{
		"/v1/backups/" + made[0].ID: http.StatusOK, "/v1/backups/" + made[0].ID + "?repo=other": http.StatusNotFound, "/v1/backups/0123456789abcdef": http.StatusNotFound,
		"/v1/backups?repo=none": http.StatusNotFound, "/v1/repositories/none": http.StatusNotFound, "/v1/repositories/none/keys": http.StatusNotFound,
		"/v1/backup-diff?from=" + made[0].ID + "&to=" + made[0].ID: http.StatusOK,
	} {
		if status, answer := s.ask(t, "GET", path, ""); status != want {
			t.Errorf("%s: %d %v, want %d", path, status, answer, want)
		}
	}
}

// TestRepositoriesByTheClient: each operation, as the client calls it.
func TestRepositoriesByTheClient(t *testing.T) {
	s := serve(t)
	ctx, c := t.Context(), s.client
	dir := t.TempDir()
	secret, spare := filepath.Join(dir, "secret"), filepath.Join(dir, "spare")
	for _, name := range []string{secret, spare} {
		if err := os.WriteFile(name, []byte(name+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	_, err := c.InitRepository(ctx, contract.InitRepository{Name: "home", Access: contract.RepositoryAccess{URL: filepath.Join(dir, "home"), PasswordFile: secret}})
	must(err)
	_, err = c.InitRepository(ctx, contract.InitRepository{Name: "other", Access: contract.RepositoryAccess{URL: filepath.Join(dir, "other")}, NoEncryption: true})
	must(err)
	_, err = c.CreateVolume(ctx, contract.CreateVolume{Name: "web", Size: 1 << 20})
	must(err)
	job, err := c.CreateBackup(ctx, contract.CreateBackup{Volumes: []string{"web"}, Repo: "home"})
	b := s.finished(t, job, err).Backups[0]

	key, err := c.AddRepositoryKey(ctx, "home", contract.AddKey{PasswordFile: spare, Label: "spare"})
	must(err)
	keys, err := c.RepositoryKeys(ctx, "home")
	if must(err); len(keys) != 2 || !slices.Contains(keys, key) && keys[1].ID != key.ID {
		t.Errorf("keys: %+v", keys)
	}
	must(c.RotateRepositoryKeys(ctx, "home"))
	must(c.RemoveRepositoryKey(ctx, "home", key.ID))
	export, err := c.ExportRepositoryKeys(ctx, "home")
	if must(err); export.Text == "" {
		t.Error("no keys are exported")
	}
	job, err = c.CopyRepository(ctx, "home", contract.CopyRepository{To: "other"})
	if copied := s.finished(t, job, err).RepoCopy; len(copied.Copied) != 1 {
		t.Errorf("copied: %+v", copied)
	}
	job, err = c.CheckRepository(ctx, "home", contract.CheckRepository{})
	s.finished(t, job, err)
	job, err = c.PruneRepository(ctx, "home", contract.PruneRepository{})
	s.finished(t, job, err)
	job, err = c.VerifyBackups(ctx, contract.VerifyBackups{Backups: []string{b.ID}})
	if verified := s.finished(t, job, err).Verified; len(verified) != 1 || !verified[0].OK() {
		t.Errorf("verified: %+v", verified)
	}
	job, err = c.RestoreBackup(ctx, contract.RestoreBackup{Backup: b.ID, ToVolume: "back"})
	if restored := s.finished(t, job, err).Restore; restored.Volume == nil || restored.Volume.Name != "back" {
		t.Errorf("restored: %+v", restored)
	}
	if _, err := c.Fill(ctx, "back"); err == nil {
		t.Error("a volume is filled that is")
	}
	must(c.DiffBackups(ctx, "home", b.ID, b.ID, func(contract.Extent) error { return errors.New("something differs") }))
	all, err := c.Backups(ctx, "", "web")
	if must(err); len(all) != 2 {
		t.Errorf("backups: %+v", all)
	}
	must(c.DeleteBackups(ctx, contract.DeleteBackups{Repo: "home", Backups: []string{b.ID}}))
	if there, err := c.Backup(ctx, "", b.ID); err != nil || there.Repo != "other" {
		t.Errorf("the copy: %+v, %v", there, err)
	}
	renamed, err := c.ChangeRepository(ctx, "home", contract.ChangeRepository{Name: "cellar"})
	if must(err); renamed.Name != "cellar" {
		t.Errorf("renamed: %+v", renamed)
	}
	must(c.RemoveRepository(ctx, "cellar"))
	_, err = c.AddRepository(ctx, contract.AddRepository{Name: "home", Access: contract.RepositoryAccess{URL: filepath.Join(dir, "home"), PasswordFile: secret}})
	must(err)
	known, err := c.Repositories(ctx)
	if must(err); len(known) != 2 || known[0].Name != "home" {
		t.Errorf("known: %+v", known)
	}
	one, err := c.Repository(ctx, "home")
	if must(err); one.Usage == nil || len(one.Keys) != 1 {
		t.Errorf("shown: %+v", one)
	}
}
