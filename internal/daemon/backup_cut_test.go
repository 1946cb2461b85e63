package daemon

import (
	"context"
	"crypto/rand"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"varve/internal/block"
	"varve/internal/contract"
	"varve/internal/nbd/client"
)

// slowly is a limit at which 1 MiB takes half a minute.
const slowly = 32 << 10

// noise fills an export with what does not shrink.
func (d *Daemon) noise(t *testing.T, export string) []byte {
	t.Helper()
	c, err := client.Dial(t.Context(), d.uri(export), client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	data := make([]byte, c.SizeBytes())
	rand.Read(data)
	if err := write(t, c, data); err != nil {
		t.Fatal(err)
	}
	return data
}

// underWay starts a backup of "web", which is noise, so that it takes long, and returns when its snapshot is made.
func (d *Daemon) underWay(t *testing.T, r contract.CreateBackup) string {
	t.Helper()
	r.Volumes, r.Repo, r.Limit = []string{"web"}, "home", slowly
	job, err := d.CreateBackup(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	for d.pool.Info().Snapshots == 0 {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			t.Fatal("no snapshot is made")
		}
	}
	return job.ID
}

// TestCancelledBackupLeavesNothing, whatever its size, and another one of the volume waits for nobody.
func TestCancelledBackupLeavesNothing(t *testing.T) {
	d, err := Start(t.Context(), Config{DataDir: scratch(t), keptAbove: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Stop(context.Background())
	d.mustInit(t, "home")
	d.mustInit(t, "other")
	d.mustCreate(t, "web")
	content := d.noise(t, "web")
	id := d.underWay(t, contract.CreateBackup{})
	_, err = d.CreateBackup(t.Context(), contract.CreateBackup{Volumes: []string{"web"}, Repo: "home"})
	wantCode(t, err, contract.CodeRefused)
	if !strings.Contains(err.Error(), "back up web to repository \"home\": job "+id) {
		t.Errorf("it is refused with: %v", err)
	}
	d.mustBackUpOne(t, "web", "other", "")
	if _, err := d.CancelJob(id); err != nil {
		t.Fatal(err)
	}
	if job := d.ended(t, id); job.State != contract.JobCancelled {
		t.Fatalf("%+v", job)
	}
	d.wantNoSnapshots(t)
	d.wantBookmarks(t, "web", "home")
	if found, err := d.Backups(t.Context(), "home", ""); err != nil || len(found) > 0 {
		t.Fatal(found, err)
	}
	b := d.mustBackUpOne(t, "web", "home", "")
	same(t, "the backup", d.backedUp(t, b.ID), content)
}

// TestLargeFullGoesOn: the snapshot of a full that was cut short stays for a day, and the next one is of that instant.
func TestLargeFullGoesOn(t *testing.T) {
	now := time.Now()
	var clock sync.Mutex
	dir := scratch(t)
	begin := func() *Daemon {
		d, err := Start(t.Context(), Config{DataDir: dir, keptAbove: 1, Clock: func() time.Time {
			clock.Lock()
			defer clock.Unlock()
			return now
		}})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	later := func(by time.Duration) {
		clock.Lock()
		defer clock.Unlock()
		now = now.Add(by)
	}
	stop := func(d *Daemon) {
		t.Helper()
		if err := d.Stop(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	d := begin()
	d.mustInit(t, "home")
	d.mustInit(t, "other")
	d.mustCreate(t, "web")
	d.mustCreate(t, "db")
	then := d.noise(t, "web")
	d.underWay(t, contract.CreateBackup{})
	stop(d)

	later(23 * time.Hour)
	d = begin()
	d.put(t, "web", 1, 3)
	if other := d.mustBackUpOne(t, "web", "other", ""); strings.Contains(other.Reason, "cut short") {
		t.Errorf("a backup to another repository takes it: %s", other.Reason)
	}
	both := d.mustBackUp(t, contract.CreateBackup{Volumes: []string{"web", "db"}, Repo: "home", Type: contract.BackupFull})
	if strings.Contains(both[0].Reason, "cut short") {
		t.Errorf("a backup of more takes it: %s", both[0].Reason)
	}
	if n := d.pool.Info().Snapshots; n != 1 {
		t.Fatalf("%d snapshots are there", n)
	}
	b := d.mustBackUpOne(t, "web", "home", contract.BackupFull)
	wantType(t, b, contract.BackupFull, "", "whose backup was cut short")
	same(t, "the backup", d.backedUp(t, b.ID), then)
	d.wantNoSnapshots(t)
	next := d.mustBackUpOne(t, "web", "home", "")
	if next.Type != contract.BackupIncremental || next.Mismatched > 0 {
		t.Fatalf("the next one: %+v", next)
	}
	same(t, "the next backup", d.backedUp(t, next.ID), d.content(t, "web"))
	d.noise(t, "web")
	d.underWay(t, contract.CreateBackup{Type: contract.BackupFull})
	stop(d)

	later(keptFor)
	d = begin()
	d.wantNoSnapshots(t)
	d.noise(t, "web")
	d.underWay(t, contract.CreateBackup{}) // an incremental
	stop(d)
	d = begin()
	d.wantNoSnapshots(t)
	stop(d)
}

// TestLargeFullOfAClockThatWasWrong: what a clock made that was a year ahead does not stay for a year.
func TestLargeFullOfAClockThatWasWrong(t *testing.T) {
	var ahead atomic.Int64
	ahead.Store(int64(365 * 24 * time.Hour))
	d, err := Start(t.Context(), Config{DataDir: scratch(t), keptAbove: 1, Clock: func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Stop(context.Background())
	where := d.mustInit(t, "home")
	d.mustCreate(t, "web")
	d.noise(t, "web")
	id := d.underWay(t, contract.CreateBackup{})
	if err := os.Rename(where, where+".pulled"); err != nil {
		t.Fatal(err)
	}
	if job := d.ended(t, id); job.State != contract.JobFailed {
		t.Fatalf("a backup to a disk that was pulled: %+v", job)
	}
	if n := d.pool.Info().Snapshots; n != 1 {
		t.Fatalf("%d snapshots are there", n)
	}
	ahead.Store(0)
	d.dropKept(d.now())
	d.wantNoSnapshots(t)
}

// TestStatusCountsSnapshotsWithoutABackup: one that is in a repository is no archive in the pool alone.
func TestStatusCountsSnapshotsWithoutABackup(t *testing.T) {
	now := time.Now()
	var clock sync.Mutex
	d, err := Start(t.Context(), Config{DataDir: scratch(t), Clock: func() time.Time {
		clock.Lock()
		defer clock.Unlock()
		return now
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Stop(context.Background())
	d.mustInit(t, "home")
	d.mustCreate(t, "web")
	for _, name := range []string{"a", "b"} {
		d.mustSnapshot(t, contract.CreateSnapshot{Volumes: []string{"web"}, Name: name})
	}
	clock.Lock()
	now = now.Add(oldSnapshot + time.Minute)
	clock.Unlock()
	for _, want := range []string{"2 snapshots older than a week with no backup", "1 snapshot older than a week with no backup", ""} {
		warnings := strings.Join(d.Status().Warnings, "\n")
		if want == "" && strings.Contains(warnings, "older") || !strings.Contains(warnings, want) {
			t.Fatalf("warnings: %q, want %q", warnings, want)
		}
		if of := map[string]string{"2": "web@a", "1": "web@b"}[strings.SplitN(want, " ", 2)[0]]; of != "" {
			d.mustBackUpOne(t, of, "home", "")
		}
	}
}

// victimIn names the data directory of a daemon that this test binary becomes, and that is killed.
const victimIn = "VARVE_TEST_VICTIM"

// inTurn are the volumes of that daemon.
var inTurn = orderly{[]string{"web", "db"}, 256}

// beKilled writes to volumes and backs them up, until it is killed.
func beKilled(dir string) {
	fail := func(err error) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	ctx := context.Background()
	d, err := Start(ctx, Config{DataDir: dir, keptAbove: 1})
	if err != nil {
		fail(err)
	}
	var first uint64
	if _, err := fmt.Sscan(os.Getenv(victimIn+"_STAMP"), &first); err != nil {
		fail(err)
	}
	go func() {
		_, err := inTurn.run(ctx, d, first)
		fail(err)
	}()
	for n := 0; ; n++ {
		kind := []string{"", "", contract.BackupFull, contract.BackupDifferential}[n%4]
		job, err := d.CreateBackup(ctx, contract.CreateBackup{Volumes: inTurn.volumes, Repo: "home", Type: kind})
		if err != nil {
			fail(err)
		}
		for !job.State.Final() {
			if job, err = d.WaitJob(ctx, job.ID); err != nil {
				fail(err)
			}
		}
		if job.State != contract.JobDone {
			fail(job.Error)
		}
		fmt.Println("made")
	}
}

// TestKilledDaemons: whenever a daemon is killed that backs a group up, what is in the repository is of one instant each, nothing is left but the
// snapshots of fulls, and the next backup is right.
func TestKilledDaemons(t *testing.T) {
	seed := mathrand.Uint64()
	t.Logf("seed %d", seed)
	random := mathrand.New(mathrand.NewPCG(seed, 0))
	dir := scratch(t)
	d, err := Start(t.Context(), Config{DataDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range inTurn.volumes {
		d.mustCreate(t, name)
	}
	d.mustInit(t, "home")
	checked := map[string]bool{}
	for round := range 8 {
		disks := [][]byte{d.content(t, "web"), d.content(t, "db")}
		last := inTurn.instant(t, disks)
		if err := d.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		victim := exec.Command(os.Args[0])
		victim.Env = append(os.Environ(), victimIn+"="+dir, fmt.Sprintf("%s_STAMP=%d", victimIn, last+1))
		victim.Stderr = os.Stderr
		out, err := victim.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := victim.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fscanln(out, new(string)); err != nil { // one is made at least
			t.Fatal(err)
		}
		time.AfterFunc(time.Duration(random.Int64N(int64(600*time.Millisecond))), func() { _ = victim.Process.Kill() })
		for {
			if _, err := fmt.Fscanln(out, new(string)); err != nil {
				break
			}
		}
		if err := victim.Wait(); err == nil || victim.ProcessState.ExitCode() != -1 {
			t.Fatalf("round %d: it was not killed: %v", round, err)
		}

		if d, err = Start(t.Context(), Config{DataDir: dir}); err != nil {
			t.Fatal(err)
		}
		groups, err := d.keptSnapshots()
		if err != nil {
			t.Fatal(err)
		}
		if all := d.pool.Info().Snapshots; len(groups) > 1 || all != 2*len(groups) {
			t.Fatalf("round %d: %d snapshots are left, %d groups of fulls", round, all, len(groups))
		}
		d.wantGroups(t, checked)
		made := d.mustBackUp(t, contract.CreateBackup{Volumes: inTurn.volumes, Repo: "home"})
		if made[0].Mismatched+made[1].Mismatched > 0 {
			t.Fatalf("round %d: something was not tracked", round)
		}
		d.wantGroups(t, checked)
		for _, name := range inTurn.volumes {
			if marks := d.bookmarked(t, name); len(marks) > 2 {
				t.Fatalf("round %d: bookmarks of %s: %v", round, name, marks)
			}
		}
	}
	if err := d.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// wantGroups fails unless the backups that have not been checked yet are groups of one instant each.
func (d *Daemon) wantGroups(t *testing.T, checked map[string]bool) {
	t.Helper()
	all, err := d.Backups(t.Context(), "home", "")
	if err != nil {
		t.Fatal(err)
	}
	groups := map[string][]contract.Backup{}
	for _, b := range all {
		groups[b.GroupID] = append(groups[b.GroupID], b)
	}
	for id, members := range groups {
		if checked[id] {
			continue
		}
		checked[id] = true
		slices.SortFunc(members, func(a, b contract.Backup) int { return strings.Compare(b.Volume, a.Volume) })
		if len(members) != 2 || members[0].Volume != "web" {
			t.Fatalf("group %s has %d members", id, len(members))
		}
		inTurn.instant(t, [][]byte{d.backedUp(t, members[0].ID), d.backedUp(t, members[1].ID)})
	}
}

// TestTrackingThatMissed: what changed behind the tracking's back is found by the sample, told, and in the backup.
func TestTrackingThatMissed(t *testing.T) {
	d := start(t, scratch(t))
	d.mustInit(t, "home")
	file := filepath.Join(scratch(t), "web.raw")
	if _, err := d.CreateVolume(t.Context(), contract.CreateVolume{Name: "web", Size: 64 * block.Size, Inplace: file}); err != nil {
		t.Fatal(err)
	}
	d.noise(t, "web")
	d.mustBackUpOne(t, "web", "home", "")
	// Nobody else may write to the file, and who does is found out when it is opened; until then, by this alone.
	disk, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	changed := make([]byte, 64*block.Size)
	rand.Read(changed)
	if _, err := disk.WriteAt(changed, 0); err != nil {
		t.Fatal(err)
	}
	b := d.mustBackUpOne(t, "web", "home", "")
	if b.Type != contract.BackupIncremental || b.Mismatched == 0 {
		t.Fatalf("it was not noticed: %+v", b)
	}
	same(t, "the backup", d.backedUp(t, b.ID), changed)
	if !slices.ContainsFunc(d.Events(), func(e contract.Event) bool { return e.Kind == mismatchEvent && e.Object == "web" }) {
		t.Errorf("events: %+v", d.Events())
	}
}

// TestBaseDeletedMeanwhile: a backup whose base is deleted before it is done is made from another one, or from nothing.
func TestBaseDeletedMeanwhile(t *testing.T) {
	d := start(t, scratch(t))
	d.mustInit(t, "home")
	d.mustCreate(t, "web")
	d.put(t, "web", 1, 0)
	full := d.mustBackUpOne(t, "web", "home", "")
	content := d.noise(t, "web")
	job, err := d.CreateBackup(t.Context(), contract.CreateBackup{Volumes: []string{"web"}, Repo: "home", Limit: 256 << 10})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	for d.pool.Info().Snapshots == 0 { // what it is made from has been chosen
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			t.Fatal("no snapshot is made")
		}
	}
	if err := d.DeleteBackups(t.Context(), contract.DeleteBackups{Backups: []string{full.ID}}); err != nil {
		t.Fatal(err)
	}
	job = d.ended(t, job.ID)
	if job.State != contract.JobDone {
		t.Fatalf("%+v", job)
	}
	b := job.Result.Backups[0]
	wantType(t, b, contract.BackupFull, "", "no earlier backup")
	same(t, "the backup", d.backedUp(t, b.ID), content)
	d.wantBookmarks(t, "web", "home", b.ID)
	d.wantNoSnapshots(t)
}

// TestRestoreInPlaceThatIsCutShort: the daemon ends while a volume is restored, which then is what it was.
func TestRestoreInPlaceThatIsCutShort(t *testing.T) {
	for _, layout := range []string{contract.LayoutRedirect, contract.LayoutInplace} {
		dir := scratch(t)
		d, err := Start(t.Context(), Config{DataDir: dir})
		if err != nil {
			t.Fatal(err)
		}
		d.mustInit(t, "home")
		r := contract.CreateVolume{Name: "web", Size: 1 << 20}
		if layout == contract.LayoutInplace {
			r.Inplace = filepath.Join(scratch(t), "web.raw")
		}
		if _, err := d.CreateVolume(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		d.noise(t, "web")
		b := d.mustBackUpOne(t, "web", "home", "")
		now := d.noise(t, "web")
		job, err := d.RestoreBackup(t.Context(), contract.RestoreBackup{Backup: b.ID, InPlace: "web", Limit: slowly})
		if err != nil {
			t.Fatal(err)
		}
		_, err = d.StartRollbackRanges(t.Context(), "web@none", contract.RollBackRanges{})
		wantCode(t, err, contract.CodeNotFound)
		_, err = d.RestoreBackup(t.Context(), contract.RestoreBackup{Backup: b.ID, InPlace: "web"})
		wantCode(t, err, contract.CodeRefused)
		wantCode(t, d.DeleteVolume(t.Context(), "web", true), contract.CodeRefused)
		ctx, cancel := context.WithTimeout(t.Context(), deadline)
		defer cancel()
		for {
			job, err = d.Job(job.ID)
			if err != nil || job.State.Final() {
				t.Fatalf("%+v, %v", job, err)
			}
			if job.State == contract.JobRunning && d.pool.Info().LastSeq > 0 && d.content(t, "web")[0] == now[0] {
				break
			}
			select {
			case <-time.After(time.Millisecond):
			case <-ctx.Done():
				t.Fatal("it does not begin")
			}
		}
		if err := d.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		d = start(t, dir)
		same(t, layout+" volume", d.content(t, "web"), now)
		d.wantNoSnapshots(t)
	}
}
