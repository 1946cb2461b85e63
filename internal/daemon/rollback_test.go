package daemon

import (
	"bytes"
	"context"
	"path/filepath"
	"testing"

	"varve/internal/contract"
	"varve/internal/pool"
)

const half = 1 << 19 // of the volumes here

// rolledRedirect is rolled of a volume in the pool.
func rolledRedirect(t *testing.T, d *Daemon, _ string) {
	t.Helper()
	if _, err := d.CreateVolume(t.Context(), contract.CreateVolume{Name: "web", Size: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	for fill := range byte(2) {
		c := dial(t, d, "web")
		if err := write(t, c, bytes.Repeat([]byte{fill + 1}, 1<<20)); err != nil {
			t.Fatal(err)
		}
		c.Close()
		if fill == 0 {
			d.mustSnapshot(t, contract.CreateSnapshot{Volumes: []string{"web"}, Name: "one"})
		}
	}
}

// bothLayouts runs a test with a volume "web" of each layout, whose snapshot "one" is all ones and whose present is all twos.
func bothLayouts(t *testing.T, f func(t *testing.T, d *Daemon, data string)) {
	for layout, make := range map[string]func(*testing.T, *Daemon, string){contract.LayoutInplace: rolled, contract.LayoutRedirect: rolledRedirect} {
		t.Run(layout, func(t *testing.T) {
			dir := scratch(t)
			data := filepath.Join(dir, "data")
			d, err := Start(t.Context(), Config{DataDir: data})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = d.Stop(context.Background()) })
			make(t, d, filepath.Join(dir, "disk.img"))
			f(t, d, data)
		})
	}
}

var firstHalf = contract.RollBackRanges{Ranges: []contract.Extent{{Offset: 0, Length: half / 2}, {Offset: half / 4, Length: half * 3 / 4}}}

// engaged takes all that jobs which somebody waits for run in, until the function is called that it returns, or the jobs are stopped.
func (d *Daemon) engaged(t *testing.T) (release func()) {
	t.Helper()
	held := make(chan struct{})
	for range jobsAtOnce {
		d.mustStart(t, false, func(ctx context.Context, _ *job) (*contract.Result, error) {
			select {
			case <-held:
			case <-ctx.Done():
			}
			return nil, nil
		})
	}
	return func() { close(held) }
}

func (d *Daemon) mustStartRollback(t *testing.T, r contract.RollBackRanges) contract.Job {
	t.Helper()
	j, err := d.StartRollbackRanges(t.Context(), "web@one", r)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

// wantHalves fails unless the two halves of the volume are filled so, and so many snapshots are there.
func (d *Daemon) wantHalves(t *testing.T, first, second byte, snapshots int) {
	t.Helper()
	got := make([]byte, 1<<20)
	if err := dial(t, d, "web").ReadAt(t.Context(), got, 0); err != nil {
		t.Fatal(err)
	}
	if want := append(bytes.Repeat([]byte{first}, half), bytes.Repeat([]byte{second}, half)...); !bytes.Equal(got, want) {
		t.Errorf("the halves begin with %d and %d, want %d and %d", got[0], got[half], first, second)
	}
	list, err := d.Snapshots(t.Context(), "")
	if err != nil || len(list) != snapshots {
		t.Errorf("%d snapshots, want %d: %+v, %v", len(list), snapshots, list, err)
	}
}

// TestRangesAreRolledBackByAJob, and from what that keeps the present comes back.
func TestRangesAreRolledBackByAJob(t *testing.T) {
	bothLayouts(t, func(t *testing.T, d *Daemon, _ string) {
		release := d.engaged(t)
		j := d.mustStartRollback(t, firstHalf)
		if j.Kind != contract.JobRollback || j.Object != "web@one" || j.State != contract.JobQueued {
			t.Fatalf("%+v", j)
		}
		_, err := d.StartRollbackRanges(t.Context(), "web@one", firstHalf)
		wantCode(t, err, contract.CodeRefused)
		if _, err := d.ChangeVolume(t.Context(), "web", contract.ChangeVolume{Name: "www"}); err != nil {
			t.Fatal(err)
		}
		release()
		if j = d.ended(t, j.ID); j.State != contract.JobDone {
			t.Fatalf("%+v", j)
		}
		if _, err := d.ChangeVolume(t.Context(), "www", contract.ChangeVolume{Name: "web"}); err != nil {
			t.Fatal(err)
		}
		d.wantHalves(t, 1, 2, 2)
		r := j.Result.Rollback
		if len(r.Ranges) != 1 || r.Ranges[0] != (contract.Extent{Offset: 0, Length: half}) || r.PutBackBytes != half || !r.Kept.Automatic || r.Volume != "www" {
			t.Errorf("%+v", r)
		}
		v, err := d.Volume(t.Context(), "web")
		if err != nil || (r.CopyBack != nil) != (v.Layout == contract.LayoutInplace) {
			t.Fatalf("%+v, %v: %+v", v, err, r.CopyBack)
		}
		if r.CopyBack != nil {
			if j := d.ended(t, r.CopyBack.ID); j.State != contract.JobDone {
				t.Errorf("%+v", j)
			}
		}
		d.wantHalves(t, 1, 2, 2)
		d.mustRollBack(t, "web@"+r.Kept.Name)
		d.wantHalves(t, 2, 2, 3)
	})
}

// TestRollbackOfRangesIsRefused to whoever has written, unless forced, and where it cannot be.
func TestRollbackOfRangesIsRefused(t *testing.T) {
	bothLayouts(t, func(t *testing.T, d *Daemon, _ string) {
		for _, ranges := range [][]contract.Extent{nil, {{Offset: 1, Length: 4096}}, {{Offset: 0, Length: 1<<20 + 4096}}} {
			_, err := d.StartRollbackRanges(t.Context(), "web@one", contract.RollBackRanges{Ranges: ranges})
			wantCode(t, err, contract.CodeUsage)
		}
		_, err := d.StartRollbackRanges(t.Context(), "web@two", firstHalf)
		wantCode(t, err, contract.CodeNotFound)
		c := dial(t, d, "web")
		if err := write(t, c, bytes.Repeat([]byte{2}, 4096)); err != nil {
			t.Fatal(err)
		}
		_, err = d.StartRollbackRanges(t.Context(), "web@one", firstHalf)
		wantCode(t, err, contract.CodeRefused)
		if n := len(d.Jobs()); n != 0 {
			t.Errorf("%d jobs", n)
		}
		d.wantHalves(t, 2, 2, 1)
		forced := firstHalf
		forced.Force = true
		if j := d.ended(t, d.mustStartRollback(t, forced).ID); j.State != contract.JobDone {
			t.Fatalf("%+v", j)
		}
		if err := write(t, c, []byte{9}); err == nil {
			t.Error("who has written is still connected")
		}
		d.wantHalves(t, 1, 2, 2)
	})
}

// TestRollbackOfRangesIsCancelled, or cut short by the daemon's end, and nothing is left of it.
func TestRollbackOfRangesIsCancelled(t *testing.T) {
	bothLayouts(t, func(t *testing.T, d *Daemon, data string) {
		release := d.engaged(t)
		j := d.mustStartRollback(t, firstHalf)
		if _, err := d.CancelJob(j.ID); err != nil {
			t.Fatal(err)
		}
		if j = d.ended(t, j.ID); j.State != contract.JobCancelled {
			t.Fatalf("%+v", j)
		}
		release()
		d.wantHalves(t, 2, 2, 1)

		paused, kept := d.pausedRollback(t)
		d.wantHalves(t, 2, 2, 1+kept)
		c := dial(t, d, "web")
		wantCode(t, d.DeleteVolume(t.Context(), "web", true), contract.CodeRefused)
		if err := c.ReadAt(t.Context(), make([]byte, 512), 0); err != nil {
			t.Errorf("what was refused cut a client off: %v", err)
		}
		if _, err := d.CancelJob(paused); err != nil {
			t.Fatal(err)
		}
		if j = d.ended(t, paused); j.State != contract.JobCancelled {
			t.Fatalf("%+v", j)
		}
		d.wantHalves(t, 2, 2, 1+kept)

		d.pausedRollback(t)
		before, err := d.Snapshots(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Stop(context.Background()); err != nil {
			t.Fatal(err)
		}
		d = start(t, data)
		d.wantHalves(t, 2, 2, len(before))
	})
}

// pausedRollback starts a rollback and holds it, and tells how many snapshots earlier ones have left that were over before they could be held.
func (d *Daemon) pausedRollback(t *testing.T) (id string, kept int) {
	t.Helper()
	for {
		list, err := d.Snapshots(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		j := d.mustStartRollback(t, firstHalf)
		for !j.State.Final() {
			if j, err := d.PauseJob(j.ID); err == nil {
				return j.ID, len(list) - 1
			}
			if j, err = d.Job(j.ID); err != nil {
				t.Fatal(err)
			}
		}
		if j.State != contract.JobDone {
			t.Fatalf("%+v", j)
		}
		d.mustRollBack(t, j.Result.Rollback.Kept.Ref())
	}
}

// TestRenamedWhileRolledBack: what is told of a rollback, and copied back after it, is of the volume as it is called then.
func TestRenamedWhileRolledBack(t *testing.T) {
	bothLayouts(t, func(t *testing.T, d *Daemon, _ string) {
		ref := pool.SnapshotRef{Volume: "web", Name: "one"}
		if err := d.sessions.unlessInUse(t.Context(), func() error { return d.pool.CheckUnwritten("web") }, "web"); err != nil {
			t.Fatal(err)
		}
		renamed := false
		done, took, err := d.pool.RollbackRanges(t.Context(), ref, []pool.Range{{Length: half}}, func(float64) error {
			if renamed {
				return nil
			}
			renamed = true
			return d.pool.RenameVolume(t.Context(), "web", "www")
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.CreateVolume(t.Context(), contract.CreateVolume{Name: "web", Size: 4096}); err != nil {
			t.Fatal(err)
		}
		r, err := d.rolledBack(t.Context(), ref, done.Kept, took)
		if err != nil || r.Volume != "www" || r.Snapshot != "www@one" || r.Kept.Volume != "www" {
			t.Errorf("%+v, %v", r, err)
		}
		if v, err := d.Volume(t.Context(), "www"); err != nil || (r.CopyBack != nil) != (v.Layout == contract.LayoutInplace) {
			t.Errorf("%+v is copied back by %+v, %v", v, r.CopyBack, err)
		}
	})
}
