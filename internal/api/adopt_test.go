package api_test

import (
	"bytes"
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

// TestInplaceObjectsHaveTheirFields pins the names that scripts use where a volume lies in a file of its own.
func TestInplaceObjectsHaveTheirFields(t *testing.T) {
	s := serve(t)
	file := filepath.Join(s.dir, "disk.img")
	if err := os.WriteFile(file, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if status, answer := s.ask(t, "POST", "/v1/adoptions", `{"name":"web","path":"`+file+`"}`); status != http.StatusCreated {
		t.Fatalf("%d %v", status, answer)
	}
	s.ask(t, "POST", "/v1/snapshots", `{"volumes":["web"],"name":"one","technique":"cow","on_full":"drop-snapshot"}`)
	for path, want := range map[string]string{
		"/v1/volumes": "bookmarks clients created_at depends_on exclusive_bytes id labels layout mapped_bytes name origin parent path read_only shared_bytes size snapshots",
		"/v1/snapshots": "automatic class clones consistency content created_at depends_on durable_ms exclusive_bytes expires_at group_id head id labels " +
			"mapped_bytes name on_full parent pause_ms protected shared_bytes size steps technique volume volume_id",
	} {
		status, answer := s.ask(t, "GET", path, "")
		list, ok := answer.([]any)
		if status != http.StatusOK || !ok || len(list) != 1 {
			t.Fatalf("%s: %d %v", path, status, answer)
		}
		if got := strings.Join(slices.Sorted(maps.Keys(list[0].(map[string]any))), " "); got != want {
			t.Errorf("%s:\n got %s\nwant %s", path, got, want)
		}
	}
}

// TestAdoptedFileOutlivesItsVolume: from adoption over a rollback to deletion, as a client of the API does it.
func TestAdoptedFileOutlivesItsVolume(t *testing.T) {
	s := serve(t)
	ctx := t.Context()
	file := filepath.Join(s.dir, "disk.img")
	content := bytes.Repeat([]byte("varve"), 4096)
	content = content[:len(content)/512*512]
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	v, err := s.client.AdoptVolume(ctx, contract.AdoptVolume{Name: "web", Path: file})
	if err != nil || v.Layout != contract.LayoutInplace || v.Path != file || v.Size != int64(len(content)) {
		t.Fatalf("%+v, %v", v, err)
	}
	if _, err := s.client.CreateSnapshots(ctx, contract.CreateSnapshot{Volumes: []string{"web"}, Name: "one"}); err != nil {
		t.Fatal(err)
	}
	r, err := s.client.Rollback(ctx, "web@one", false)
	if err != nil || r.CopyBack == nil || r.CopyBack.Kind != contract.JobCopyBack {
		t.Fatalf("%+v, %v", r, err)
	}
	job, err := s.client.Job(ctx, r.CopyBack.ID, time.Minute)
	if err != nil || job.State != contract.JobDone {
		t.Fatalf("%+v, %v", job, err)
	}
	rest := int64(len(content)) - 8192
	job, err = s.client.RollbackRanges(ctx, "web@one", contract.RollBackRanges{Ranges: []contract.Extent{{Offset: 8192, Length: rest}, {Offset: 4096, Length: 4096}}})
	if err != nil || job.Kind != contract.JobRollback || job.Object != "web@one" {
		t.Fatalf("%+v, %v", job, err)
	}
	if job, err = s.client.Job(ctx, job.ID, time.Minute); err != nil || job.State != contract.JobDone {
		t.Fatalf("%+v, %v", job, err)
	}
	again := job.Result.Rollback
	if len(again.Ranges) != 1 || again.Ranges[0] != (contract.Extent{Offset: 4096, Length: rest + 4096}) || !again.Kept.Automatic || again.CopyBack == nil {
		t.Fatalf("%+v", again)
	}
	if job, err = s.client.Job(ctx, again.CopyBack.ID, time.Minute); err != nil || job.State != contract.JobDone {
		t.Fatalf("%+v, %v", job, err)
	}
	if job, err = s.client.CopyBack(ctx, "web"); err != nil {
		t.Fatal(err)
	}
	if job, err = s.client.Job(ctx, job.ID, time.Minute); err != nil || job.State != contract.JobDone || job.Result.Volume.Name != "web" {
		t.Fatalf("where nothing is left: %+v, %v", job, err)
	}
	if err := s.client.DeleteSnapshots(ctx, []string{"web@one", r.Kept.Ref(), again.Kept.Ref()}); err != nil {
		t.Fatal(err)
	}
	if err := s.client.DeleteVolume(ctx, "web", false); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadFile(file); err != nil || !bytes.Equal(left, content) {
		t.Fatalf("the file is not what it was: %v", err)
	}
}
