package daemon

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"varve/internal/block"
	"varve/internal/contract"
)

// cutShort is a repository with a full and an incremental, of which the latter cannot be restored while its pack is hidden.
type cutShort struct {
	full, last contract.Backup
	then       []byte
	hidden     string
}

func newCutShort(t *testing.T, d *Daemon) *cutShort {
	t.Helper()
	d.mustCreate(t, "web")
	dir := d.mustInit(t, "home")
	c := &cutShort{}
	d.put(t, "web", 1, 0, 1, 100)
	c.full = d.mustBackUpOne(t, "web", "home", "")
	before := packsIn(t, dir)
	d.put(t, "web", 2, 255)
	c.last = d.mustBackUpOne(t, "web", "home", contract.BackupIncremental)
	c.then = d.content(t, "web")
	for _, p := range packsIn(t, dir) {
		if !slices.Contains(before, p) {
			c.hidden = p
		}
	}
	if c.hidden == "" {
		t.Fatal("the incremental has no pack of its own")
	}
	return c
}

// packsIn lists the packs of a repository.
func packsIn(t *testing.T, dir string) (packs []string) {
	t.Helper()
	packs, err := filepath.Glob(filepath.Join(dir, "packs", "*", "*"))
	if err != nil || len(packs) == 0 {
		t.Fatalf("no packs in %s: %v", dir, err)
	}
	return packs
}

func (c *cutShort) hide(t *testing.T) { c.move(t, c.hidden, c.hidden+".away") }
func (c *cutShort) show(t *testing.T) { c.move(t, c.hidden+".away", c.hidden) }

func (c *cutShort) move(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

// fails restores to a new volume, which does not come to its end.
func (c *cutShort) fails(t *testing.T, d *Daemon, name string) contract.Job {
	t.Helper()
	job, err := d.RestoreBackup(t.Context(), contract.RestoreBackup{Backup: c.last.ID, ToVolume: name})
	if err != nil {
		t.Fatal(err)
	}
	if job = d.ended(t, job.ID); job.State != contract.JobFailed {
		t.Fatalf("restore: %s: %s", job.State, job.Reason)
	}
	if _, err := d.Volume(t.Context(), name); err == nil {
		t.Fatal("a volume can be seen that is not whole")
	}
	return job
}

func begunWarning(d *Daemon) bool {
	return slices.ContainsFunc(d.Status().Warnings, func(w string) bool { return strings.Contains(w, "was cut short") })
}

// A restore to a volume that was cut short goes on, also with another daemon.
func TestRestoreToVolumeGoesOn(t *testing.T) {
	dir := scratch(t)
	d := start(t, dir)
	c := newCutShort(t, d)
	c.hide(t)
	c.fails(t, d, "back")
	c.fails(t, d, "back") // no further
	if !begunWarning(d) {
		t.Errorf("status warns of %v", d.Status().Warnings)
	}
	if _, err := d.CreateVolume(t.Context(), contract.CreateVolume{Name: "back", Size: 1 << 20}); err == nil {
		t.Error("its name is free")
	}
	if err := d.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.show(t)
	d = start(t, dir)
	if !begunWarning(d) {
		t.Errorf("status warns of %v", d.Status().Warnings)
	}
	got := d.mustRestore(t, contract.RestoreBackup{Backup: c.last.ID, ToVolume: "back"})
	if got.SameBytes < 3*block.Size || got.WrittenBytes > 2*block.Size || len(got.Volume.Labels) != 0 {
		t.Errorf("it has begun again: %+v", got)
	}
	same(t, "the volume", d.content(t, "back"), c.then)
	if begunWarning(d) {
		t.Errorf("status warns of %v", d.Status().Warnings)
	}
}

// What was begun is given up when it is deleted, when its name is wanted for another backup, and after a week.
func TestRestoreToVolumeIsGivenUp(t *testing.T) {
	dir := scratch(t)
	d := start(t, dir)
	c := newCutShort(t, d)
	c.hide(t)
	c.fails(t, d, "back")
	if err := d.DeleteVolume(t.Context(), "back", false); err != nil {
		t.Fatal(err)
	}
	wantCode(t, d.DeleteVolume(t.Context(), "back", false), contract.CodeNotFound)
	c.fails(t, d, "back")
	if got := d.mustRestore(t, contract.RestoreBackup{Backup: c.full.ID, ToVolume: "back"}); got.SameBytes > 0 {
		t.Errorf("it goes on with another backup's: %+v", got)
	}
	c.fails(t, d, "old")
	if n := len(d.pool.Incomplete()); n != 1 {
		t.Fatalf("%d volumes are begun", n)
	}
	d.dropBegun(time.Now().Add(begunFor - time.Hour))
	if len(d.pool.Incomplete()) != 1 {
		t.Error("it is gone too soon")
	}
	d.dropBegun(time.Now().Add(begunFor + time.Hour))
	if len(d.pool.Incomplete()) != 0 || begunWarning(d) {
		t.Error("it stays for longer than a week")
	}
	c.fails(t, d, "old")
	if err := d.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	later, err := Start(t.Context(), Config{DataDir: dir, Clock: func() time.Time { return time.Now().Add(2 * begunFor) }})
	if err != nil {
		t.Fatal(err)
	}
	if len(later.pool.Incomplete()) != 0 {
		t.Error("it is there when the daemon starts a week later")
	}
	if err := later.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// One that is cancelled leaves nothing.
func TestCancelledRestoreToVolume(t *testing.T) {
	d := start(t, scratch(t))
	c := newCutShort(t, d)
	job, err := d.RestoreBackup(t.Context(), contract.RestoreBackup{Backup: c.last.ID, ToVolume: "back", Limit: 1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.RestoreBackup(t.Context(), contract.RestoreBackup{Backup: c.last.ID, ToVolume: "back"}); err == nil {
		t.Error("two restore to one name")
	}
	if _, err := d.CancelJob(job.ID); err != nil {
		t.Fatal(err)
	}
	if job = d.ended(t, job.ID); job.State != contract.JobCancelled || len(d.pool.Incomplete()) != 0 {
		t.Errorf("%s: %s; %d volumes are left", job.State, job.Reason, len(d.pool.Incomplete()))
	}
}
