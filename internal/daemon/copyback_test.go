package daemon

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"varve/internal/contract"
	"varve/internal/pool"
)

// rolled has an inplace volume "web" whose snapshot "one" is all ones and whose present is all twos.
func rolled(t *testing.T, d *Daemon, file string) {
	t.Helper()
	if err := os.WriteFile(file, bytes.Repeat([]byte{1}, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.AdoptVolume(t.Context(), contract.AdoptVolume{Name: "web", Path: file}); err != nil {
		t.Fatal(err)
	}
	d.mustSnapshot(t, contract.CreateSnapshot{Volumes: []string{"web"}, Name: "one"})
	c := dial(t, d, "web")
	if err := write(t, c, bytes.Repeat([]byte{2}, 1<<20)); err != nil {
		t.Fatal(err)
	}
	c.Close()
}

// busy takes all that jobs run in until the function is called that it returns, or the jobs are stopped.
func (d *Daemon) busy(t *testing.T) (release func()) {
	t.Helper()
	held := make(chan struct{})
	for range behindAtOnce {
		if _, err := d.jobs.startBehind("test", "nothing", false, func(ctx context.Context, _ *job) (*contract.Result, error) {
			select {
			case <-held:
			case <-ctx.Done():
			}
			return nil, nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	return func() { close(held) }
}

func (d *Daemon) mustRollBack(t *testing.T, ref string) contract.Rollback {
	t.Helper()
	r, err := d.Rollback(t.Context(), ref, true)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func wantFile(t *testing.T, file string, fill byte) {
	t.Helper()
	got, err := os.ReadFile(file)
	if err != nil || !bytes.Equal(got, bytes.Repeat([]byte{fill}, 1<<20)) {
		t.Fatalf("the file begins with %d, want all %d; %v", got[0], fill, err)
	}
}

// TestFileThatCannotTakeWhatLiesInThePool stands in the way of deleting its volume.
func TestFileThatCannotTakeWhatLiesInThePool(t *testing.T) {
	d := start(t, filepath.Join(scratch(t), "data"))
	info := pool.VolumeInfo{Name: "web", Path: "/disk.img", SizeBytes: 1 << 20, Broken: "it is away"}
	if err := d.detachable(info); err != nil {
		t.Errorf("a volume of which the pool has nothing: %v", err)
	}
	info.Behind = true
	wantCode(t, d.detachable(info), contract.CodeRefused)
}

// TestRollbackIsSeenBeforeItIsCopiedBack, and what stands in the way of deletion meanwhile is said.
func TestRollbackIsSeenBeforeItIsCopiedBack(t *testing.T) {
	dir := scratch(t)
	file := filepath.Join(dir, "disk.img")
	d := start(t, filepath.Join(dir, "data"))
	rolled(t, d, file)
	release := d.busy(t)
	r := d.mustRollBack(t, "web@one")
	if r.CopyBack == nil || r.CopyBack.State != contract.JobQueued || r.CopyBack.Object != "web" {
		t.Fatalf("%+v", r.CopyBack)
	}
	v, err := d.Volume(t.Context(), "web")
	if err != nil || !v.CopyingBack || len(v.DependsOn) != 2 || v.DependsOn[0] != "pool" {
		t.Fatalf("%+v, %v", v, err)
	}
	got := make([]byte, 4096)
	if err := dial(t, d, "web").ReadAt(t.Context(), got, 0); err != nil || got[0] != 1 {
		t.Fatalf("read %d, %v", got[0], err)
	}
	wantFile(t, file, 2)
	_, err = d.StartCopyBack("web")
	wantCode(t, err, contract.CodeRefused)
	if err := d.DeleteSnapshots(t.Context(), []string{"web@one", r.Kept.Ref()}); err != nil {
		t.Fatal(err)
	}
	wantCode(t, d.DeleteVolume(t.Context(), "web", true), contract.CodeRefused)
	if err := dial(t, d, "web").ReadAt(t.Context(), got, 0); err != nil {
		t.Fatalf("what was refused cut a client off: %v", err)
	}
	release()
	if j := d.ended(t, r.CopyBack.ID); j.State != contract.JobDone || j.Result.Volume.CopyingBack {
		t.Fatalf("%+v", j)
	}
	wantFile(t, file, 1)
	if err := d.DeleteVolume(t.Context(), "web", true); err != nil {
		t.Fatal(err)
	}
	wantFile(t, file, 1)
}

// TestRollbacksShareAJob: one that comes while an earlier one is being copied back is that job's work, also under another name.
func TestRollbacksShareAJob(t *testing.T) {
	dir := scratch(t)
	file := filepath.Join(dir, "disk.img")
	d := start(t, filepath.Join(dir, "data"))
	rolled(t, d, file)
	release := d.busy(t)
	first := d.mustRollBack(t, "web@one")
	if _, err := d.ChangeVolume(t.Context(), "web", contract.ChangeVolume{Name: "www"}); err != nil {
		t.Fatal(err)
	}
	second := d.mustRollBack(t, "www@"+first.Kept.Name)
	if second.CopyBack == nil || second.CopyBack.ID != first.CopyBack.ID {
		t.Fatalf("%+v, then %+v", first.CopyBack, second.CopyBack)
	}
	release()
	if j := d.ended(t, first.CopyBack.ID); j.State != contract.JobDone {
		t.Fatalf("%+v", j)
	}
	wantFile(t, file, 2)
}

// TestCopyBackGoesOnAfterARestart, and after it was cancelled, when it is told to.
func TestCopyBackGoesOnAfterARestart(t *testing.T) {
	dir := scratch(t)
	file, data := filepath.Join(dir, "disk.img"), filepath.Join(dir, "data")
	d, err := Start(t.Context(), Config{DataDir: data})
	if err != nil {
		t.Fatal(err)
	}
	rolled(t, d, file)
	d.busy(t)
	r := d.mustRollBack(t, "web@one")
	if err := d.Stop(context.Background()); err != nil {
		t.Fatal(err)
	}
	wantFile(t, file, 2)

	d = start(t, data)
	jobs := d.Jobs()
	if len(jobs) != 1 || jobs[0].Kind != contract.JobCopyBack || jobs[0].Object != "web" {
		t.Fatalf("%+v", jobs)
	}
	if j := d.ended(t, jobs[0].ID); j.State != contract.JobDone {
		t.Fatalf("%+v", j)
	}
	wantFile(t, file, 1)

	release := d.busy(t)
	r = d.mustRollBack(t, r.Kept.Ref())
	if _, err := d.CancelJob(r.CopyBack.ID); err != nil {
		t.Fatal(err)
	}
	if j := d.ended(t, r.CopyBack.ID); j.State != contract.JobCancelled {
		t.Fatalf("%+v", j)
	}
	wantFile(t, file, 1)
	release()
	if w := d.Status().Warnings; len(w) != 1 || !strings.Contains(w[0], "varve volume copy-back web") {
		t.Fatalf("nobody is told: %q", w)
	}
	j, err := d.StartCopyBack("web")
	if err != nil {
		t.Fatal(err)
	}
	if w := d.Status().Warnings; len(w) != 0 {
		t.Fatalf("while a job does it: %q", w)
	}
	if j = d.ended(t, j.ID); j.State != contract.JobDone {
		t.Fatalf("%+v", j)
	}
	wantFile(t, file, 2)
}

// TestCopyBackPauses: a paused one is held until it is resumed, and clients go on.
func TestCopyBackPauses(t *testing.T) {
	dir := scratch(t)
	file := filepath.Join(dir, "disk.img")
	d := start(t, filepath.Join(dir, "data"))
	rolled(t, d, file)
	to, back := "web@one", ""
	fill, other := byte(1), byte(2)
	paused := ""
	for paused == "" { // it may be over before it is paused
		r := d.mustRollBack(t, to)
		if back == "" {
			back = r.Kept.Ref()
		}
		for {
			if j, err := d.PauseJob(r.CopyBack.ID); err == nil {
				paused = j.ID
				break
			}
			if j, err := d.Job(r.CopyBack.ID); err != nil {
				t.Fatal(err)
			} else if j.State.Final() {
				to, back, fill, other = back, to, other, fill
				break
			}
		}
	}
	if err := write(t, dial(t, d, "web"), bytes.Repeat([]byte{3}, 4096)); err != nil {
		t.Fatal(err)
	}
	if j, err := d.ResumeJob(paused); err != nil || j.State != contract.JobRunning {
		t.Fatalf("%+v, %v", j, err)
	}
	if j := d.ended(t, paused); j.State != contract.JobDone {
		t.Fatalf("%+v", j)
	}
	want := append(bytes.Repeat([]byte{3}, 4096), bytes.Repeat([]byte{fill}, 1<<20-4096)...)
	got := make([]byte, len(want))
	if err := dial(t, d, "web").ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("the volume begins with %d %d, %v", got[0], got[4096], err)
	}
	for late := time.After(deadline); ; { // small writes come into the file in time
		got, err := os.ReadFile(file)
		if err == nil && bytes.Equal(got, want) {
			return
		}
		select {
		case <-late:
			t.Fatalf("the file begins with %d %d, %v", got[0], got[4096], err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}
