package daemon

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"varve/internal/contract"
)

// TestRecordThatIsLost stands in the way of pruning until it is deleted, which can be done; a copy elsewhere is found.
func TestRecordThatIsLost(t *testing.T) {
	d := start(t, scratch(t))
	where := d.mustInit(t, "home")
	d.mustInit(t, "other")
	d.mustCreate(t, "web")
	then := d.noise(t, "web")
	lost := d.mustBackUpOne(t, "web", "home", "")
	job, err := d.CopyRepository(t.Context(), "home", contract.CopyRepository{To: "other"})
	if err != nil {
		t.Fatal(err)
	}
	if job = d.ended(t, job.ID); job.State != contract.JobDone {
		t.Fatalf("copied: %+v", job)
	}
	kept := d.mustBackUpOne(t, "web", "home", "")
	if err := os.WriteFile(filepath.Join(where, "backups", lost.ID), []byte("lost"), 0o600); err != nil {
		t.Fatal(err)
	}
	k, err := d.repositories.named("home")
	if err != nil {
		t.Fatal(err)
	}
	d.repositories.drop(k) // and with it what it has read
	pruned := func() contract.Job {
		t.Helper()
		job, err := d.PruneRepository(t.Context(), "home", contract.PruneRepository{})
		if err != nil {
			t.Fatal(err)
		}
		return d.ended(t, job.ID)
	}
	if job := pruned(); job.State != contract.JobFailed || !strings.Contains(job.Reason, "delete backup "+lost.ID) {
		t.Fatalf("pruned: %+v", job)
	}
	r := contract.RestoreBackup{Repo: "home", Backup: lost.ID, ToVolume: "back"}
	_, err = d.RestoreBackup(t.Context(), r)
	wantCode(t, err, contract.CodeDamaged)
	r.Repo = ""
	d.mustRestore(t, r)
	same(t, "what the copy has", d.content(t, "back"), then)
	wantCode(t, d.DeleteBackups(t.Context(), contract.DeleteBackups{Backups: []string{lost.ID}}), contract.CodeUsage)
	if err := d.DeleteBackups(t.Context(), contract.DeleteBackups{Repo: "home", Backups: []string{lost.ID}}); err != nil {
		t.Fatal(err)
	}
	if job := pruned(); job.State != contract.JobDone {
		t.Fatalf("pruned: %+v", job)
	}
	if all, err := d.Backups(t.Context(), "home", ""); err != nil || len(all) != 1 || all[0].ID != kept.ID {
		t.Fatal(all, err)
	}
}
