package daemon

import (
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"varve/internal/contract"
	"varve/internal/pool"
	"varve/internal/repository"
)

// age has a repository's objects be older than they are: so time passes there.
func age(t *testing.T, where string, by time.Duration) {
	t.Helper()
	err := filepath.WalkDir(where, func(name string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		then := info.ModTime().Add(-by)
		return os.Chtimes(name, then, then)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// objectsOf names the objects of a repository in a directory.
func objectsOf(t *testing.T, where, pattern string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(where, pattern))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// noPins waits until nothing of a repository is pinned.
func noPins(t *testing.T, where string) {
	t.Helper()
	await(t, "nothing is pinned", func() bool { return len(objectsOf(t, where, "pins/*")) == 0 })
}

// pruneAll prunes a repository as often as it takes to have what nothing needs be gone, a day after the other.
func (d *Daemon) pruneAll(t *testing.T, where string) {
	t.Helper()
	for range 4 {
		age(t, where, 49*time.Hour)
		job, err := d.PruneRepository(t.Context(), "home", contract.PruneRepository{})
		if err != nil {
			t.Fatal(err)
		}
		if job = d.ended(t, job.ID); job.State != contract.JobDone {
			t.Fatalf("prune: %s: %s", job.State, job.Reason)
		}
	}
}

// TestInstantRestoreOutlastsItsBackup: while the daemon is away another one deletes the backup and prunes; the volume is filled all the same, and
// then nothing of the backup is left.
func TestInstantRestoreOutlastsItsBackup(t *testing.T) {
	dir := scratch(t)
	d, err := Start(t.Context(), Config{DataDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	where := d.mustInit(t, "home")
	d.mustCreate(t, "web")
	d.noise(t, "web")
	b := d.mustBackUpOne(t, "web", "home", "")
	d.engagedBehind(t) // nothing is filled
	d.mustRestore(t, contract.RestoreBackup{Backup: b.ID, ToVolume: "back", Instant: true})
	d.put(t, "back", 7, 3)
	want := d.content(t, "back")
	if err := d.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}

	other := start(t, scratch(t))
	if _, err := other.AddRepository(t.Context(), contract.AddRepository{Name: "home", Access: contract.RepositoryAccess{URL: where}}); err != nil {
		t.Fatal(err)
	}
	if err := other.DeleteBackups(t.Context(), contract.DeleteBackups{Backups: []string{b.ID}}); err != nil {
		t.Fatal(err)
	}
	other.pruneAll(t, where)

	d = start(t, dir)
	same(t, "the volume", d.content(t, "back"), want)
	d.filled(t)
	same(t, "the volume that is filled", d.content(t, "back"), want)
	noPins(t, where)
	other.pruneAll(t, where)
	if packs := objectsOf(t, where, "packs/*/*"); len(packs) > 0 {
		t.Errorf("packs are left: %v", packs)
	}
}

// TestHoldsAreGivenBack with what needs them, and where nothing comes to need them.
func TestHoldsAreGivenBack(t *testing.T) {
	d := start(t, scratch(t))
	where := d.mustInit(t, "home")
	d.mustCreate(t, "web")
	d.noise(t, "web")
	b := d.mustBackUpOne(t, "web", "home", "")
	release := d.engagedBehind(t)
	r := contract.RestoreBackup{Backup: b.ID, ToVolume: "back", Instant: true}
	d.mustRestore(t, r)
	if pins := objectsOf(t, where, "pins/*"); len(pins) == 0 {
		t.Fatal("nothing is pinned")
	}
	job, err := d.RestoreBackup(t.Context(), r) // the name is taken
	if err != nil {
		t.Fatal(err)
	}
	if job = d.ended(t, job.ID); job.State != contract.JobFailed {
		t.Fatalf("restored twice: %+v", job)
	}
	if err := d.DeleteVolume(t.Context(), "back", true); err != nil {
		t.Fatal(err)
	}
	noPins(t, where)
	release()
	d.mustRestore(t, r)
	d.filled(t)
	noPins(t, where)
}

// TestHoldsAreRenewed each day, and by a daemon that has just started.
func TestHoldsAreRenewed(t *testing.T) {
	var later atomic.Int64
	dir := scratch(t)
	begin := func() *Daemon {
		d, err := Start(t.Context(), Config{DataDir: dir, Clock: func() time.Time { return time.Now().Add(time.Duration(later.Load())) }})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	stop := func(d *Daemon) {
		t.Helper()
		if err := d.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	d := begin()
	where := d.mustInit(t, "home")
	d.mustCreate(t, "web")
	d.noise(t, "web")
	b := d.mustBackUpOne(t, "web", "home", "")
	d.engagedBehind(t)
	d.mustRestore(t, contract.RestoreBackup{Backup: b.ID, ToVolume: "back", Instant: true})
	hold := d.filling()[0].base.hold
	renewed := func(to string) {
		t.Helper()
		await(t, "the hold is renewed", func() bool { return len(objectsOf(t, where, "pins/"+hold+"."+to)) > 0 })
	}
	renewed("1")
	later.Store(int64(holdEvery))
	renewed("2")
	stop(d)
	if err := os.Rename(filepath.Join(where, "packs"), filepath.Join(where, "pulled")); err != nil { // so that nothing is filled
		t.Fatal(err)
	}
	d = begin()
	defer stop(d)
	renewed("3")
}

// TestForgetARepositoryThatIsJustNeeded: a restore that ends meanwhile makes a volume that is filled from it. It is not forgotten, and who came to use it meanwhile does.
func TestForgetARepositoryThatIsJustNeeded(t *testing.T) {
	d := start(t, scratch(t))
	d.mustInit(t, "home")
	d.mustCreate(t, "web")
	d.noise(t, "web")
	b := d.mustBackUpOne(t, "web", "home", "")
	d.engagedBehind(t)
	k, err := d.repositories.named("home")
	if err != nil {
		t.Fatal(err)
	}
	u, err := d.repositories.use(t.Context(), k)
	if err != nil {
		t.Fatal(err)
	}
	forgotten := make(chan error, 1)
	go func() { forgotten <- d.RemoveRepository(t.Context(), "home") }()
	await(t, "it is being forgotten", func() bool {
		d.repositories.mu.Lock()
		defer d.repositories.mu.Unlock()
		return k.leaving != nil
	})
	wantCode(t, d.RemoveRepository(t.Context(), "home"), contract.CodeRefused)
	meanwhile, err := d.CreateBackup(t.Context(), contract.CreateBackup{Volumes: []string{"web"}, Repo: "home"})
	if err != nil {
		t.Fatal(err)
	}
	base := &pool.Base{Ref: baseRef{u.id, b.ID, 0, repository.NewHold()}.bytes(), SizeBytes: b.Size}
	if _, err := d.pool.CreateVolume(t.Context(), pool.VolumeSpec{Name: "back", Base: base}); err != nil {
		t.Fatal(err)
	}
	u.done()
	wantCode(t, <-forgotten, contract.CodeRefused)
	if job := d.ended(t, meanwhile.ID); job.State != contract.JobDone {
		t.Errorf("a backup to what is not forgotten after all: %s: %s", job.State, job.Reason)
	}
	same(t, "the volume", d.content(t, "back"), d.content(t, "web"))
}
