package daemon

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"varve/internal/block"
	"varve/internal/contract"
	"varve/internal/nbd"
	"varve/internal/nbd/client"
)

// mustRestore brings a backup back, and tells what that came to.
func (d *Daemon) mustRestore(t *testing.T, r contract.RestoreBackup) *contract.BackupRestore {
	t.Helper()
	job, err := d.RestoreBackup(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	job = d.ended(t, job.ID)
	if job.State != contract.JobDone {
		t.Fatalf("restore: %s: %s", job.State, job.Reason)
	}
	return job.Result.Restore
}

// backupStory is a volume that was backed up, and overwritten since.
func (d *Daemon) backupStory(t *testing.T) (b contract.Backup, then []byte) {
	t.Helper()
	d.mustInit(t, "home")
	d.put(t, "web", 1, 0, 1, 2, 100, 255)
	b = d.mustBackUpOne(t, "web", "home", "")
	then = d.content(t, "web")
	d.put(t, "web", 2, 1, 50, 255)
	return b, then
}

func TestRestoreToVolumeAndFile(t *testing.T) {
	bothPlaces(t, func(t *testing.T, d *Daemon) {
		b, then := d.backupStory(t)
		now := d.content(t, "web")
		got := d.mustRestore(t, contract.RestoreBackup{Backup: b.ID[:6], ToVolume: "back"})
		if got.Backup.ID != b.ID || got.Volume == nil || got.Volume.Name != "back" || got.WrittenBytes != 5*block.Size || len(got.Lost) > 0 {
			t.Errorf("restored: %+v", got)
		}
		same(t, "the new volume", d.content(t, "back"), then)
		file := filepath.Join(scratch(t), "back.raw")
		d.mustRestore(t, contract.RestoreBackup{Repo: "home", Backup: b.ID, ToFile: file})
		written, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		same(t, "the file", written, then)
		same(t, "the volume", d.content(t, "web"), now)

		refused := func(code contract.Code, r contract.RestoreBackup) {
			t.Helper()
			_, err := d.RestoreBackup(t.Context(), r)
			wantCode(t, err, code)
		}
		refused(contract.CodeRefused, contract.RestoreBackup{Backup: b.ID, ToFile: file})
		refused(contract.CodeRefused, contract.RestoreBackup{Backup: b.ID, ToVolume: "web"})
		refused(contract.CodeUsage, contract.RestoreBackup{Backup: b.ID, ToFile: filepath.Join(d.dir, "x")})
		refused(contract.CodeUsage, contract.RestoreBackup{Backup: b.ID})
		refused(contract.CodeUsage, contract.RestoreBackup{Backup: b.ID, ToFile: file, InPlace: "web"})
		refused(contract.CodeUsage, contract.RestoreBackup{Backup: b.ID, ToFile: file, Instant: true})
		refused(contract.CodeNotFound, contract.RestoreBackup{Backup: "0123456789abcdef", ToVolume: "x"})
		refused(contract.CodeNotFound, contract.RestoreBackup{Backup: b.ID, InPlace: "none"})
		if info, err := d.Volume(t.Context(), "web"); err == nil && info.Path != "" {
			refused(contract.CodeRefused, contract.RestoreBackup{Backup: b.ID, ToFile: info.Path, Force: true})
		}
	})
}

// TestRestoreInPlace: only what differs is written, and the present can be had back.
func TestRestoreInPlace(t *testing.T) {
	bothPlaces(t, func(t *testing.T, d *Daemon) {
		b, then := d.backupStory(t)
		now := d.content(t, "web")
		got := d.mustRestore(t, contract.RestoreBackup{Backup: b.ID, InPlace: "web"})
		if got.WrittenBytes != 2*block.Size || got.ZeroedBytes != block.Size || got.SameBytes < 2*block.Size {
			t.Errorf("written %d, zeroed %d, same %d", got.WrittenBytes, got.ZeroedBytes, got.SameBytes)
		}
		if got.Kept == nil || !strings.HasPrefix(got.Kept.Name, "auto-before-restore-") || got.Volume == nil || got.Target != "web" {
			t.Fatalf("restored: %+v", got)
		}
		same(t, "the volume", d.content(t, "web"), then)
		same(t, "what was kept", d.content(t, "web@"+got.Kept.Name), now)
		if got.CopyBack != nil {
			d.ended(t, got.CopyBack.ID)
			file, err := os.ReadFile(got.Volume.Path)
			if err != nil {
				t.Fatal(err)
			}
			same(t, "the file", file, then)
		}
		last := d.mustBackUpOne(t, "web", "home", "")
		wantType(t, last, contract.BackupIncremental, b.ID, "")
		same(t, "the next backup", d.backedUp(t, last.ID), then)
		if _, err := d.Rollback(t.Context(), "web@"+got.Kept.Name, true); err != nil {
			t.Fatal(err)
		}
		same(t, "the volume again", d.content(t, "web"), now)
	})
}

// TestRestoreInPlaceOfAnotherSize gives a redirect volume the backup's size, and is refused for a file.
func TestRestoreInPlaceOfAnotherSize(t *testing.T) {
	bothPlaces(t, func(t *testing.T, d *Daemon) {
		d.mustInit(t, "home")
		d.put(t, "web", 1, 0, 255)
		b := d.mustBackUpOne(t, "web", "home", "")
		then := d.content(t, "web")
		d.mustCreate(t, "other")
		size := int64(2 << 20)
		if _, err := d.ChangeVolume(t.Context(), "other", contract.ChangeVolume{Size: &size}); err != nil {
			t.Fatal(err)
		}
		d.put(t, "other", 2, 0, 300)
		_, err := d.RestoreBackup(t.Context(), contract.RestoreBackup{Backup: b.ID, InPlace: "other"})
		wantCode(t, err, contract.CodeRefused)
		d.mustRestore(t, contract.RestoreBackup{Backup: b.ID, InPlace: "other", Force: true})
		same(t, "the other volume", d.content(t, "other"), then)
		if info, _ := d.Volume(t.Context(), "web"); info.Path == "" {
			return
		}
		d.mustCreate(t, "small")
		size = 512 << 10
		if _, err := d.ChangeVolume(t.Context(), "small", contract.ChangeVolume{Size: &size, Force: true}); err != nil {
			t.Fatal(err)
		}
		small := d.mustBackUpOne(t, "small", "home", "")
		_, err = d.RestoreBackup(t.Context(), contract.RestoreBackup{Backup: small.ID, InPlace: "web"})
		wantCode(t, err, contract.CodeUsage)
		same(t, "the file's volume", d.content(t, "web"), then)
	})
}

// TestRestoreInPlaceWithClients: one that has written stands in the way, and is cut off with force; one that only reads sees the change.
func TestRestoreInPlaceWithClients(t *testing.T) {
	bothPlaces(t, func(t *testing.T, d *Daemon) {
		b, then := d.backupStory(t)
		reader, writer := dial(t, d, "web"), dial(t, d, "web")
		if err := write(t, writer, bytes.Repeat([]byte{9}, block.Size)); err != nil {
			t.Fatal(err)
		}
		now := d.content(t, "web")
		_, err := d.RestoreBackup(t.Context(), contract.RestoreBackup{Backup: b.ID, InPlace: "web"})
		wantCode(t, err, contract.CodeRefused)
		same(t, "the volume that was not restored", d.content(t, "web"), now)
		got := d.mustRestore(t, contract.RestoreBackup{Backup: b.ID, InPlace: "web", Force: true})
		if err := write(t, writer, []byte("x")); !errors.Is(err, client.ErrDisconnected) {
			t.Fatalf("write after the restore: %v", err)
		}
		seen := make([]byte, len(then))
		if err := reader.ReadAt(t.Context(), seen, 0); err != nil {
			t.Fatal(err)
		}
		same(t, "what a reader sees", seen, then)
		same(t, "what was kept", d.content(t, "web@"+got.Kept.Name), now)
	})
}

// TestRestoreThatFailsLeavesNothing, neither of a new volume nor in an old one.
func TestRestoreThatFailsLeavesNothing(t *testing.T) {
	bothPlaces(t, func(t *testing.T, d *Daemon) {
		b, _ := d.backupStory(t)
		now := d.content(t, "web")
		k, err := d.repositories.named("home")
		if err != nil {
			t.Fatal(err)
		}
		packs, err := filepath.Glob(filepath.Join(d.repositories.now(k).Access.URL, "packs", "*", "*"))
		if err != nil || len(packs) == 0 {
			t.Fatal(packs, err)
		}
		for _, name := range packs {
			if err := os.Remove(name); err != nil {
				t.Fatal(err)
			}
		}
		d.repositories.drop(k) // and with it what it has read
		for _, r := range []contract.RestoreBackup{{ToVolume: "back"}, {InPlace: "web"}} {
			r.Backup = b.ID
			job, err := d.RestoreBackup(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			if job = d.ended(t, job.ID); job.State != contract.JobFailed || job.Error.Code != contract.CodeDamaged {
				t.Fatalf("restore of what is lost: %+v", job)
			}
		}
		same(t, "the volume", d.content(t, "web"), now)
		d.wantNoSnapshots(t)
		if all, err := d.Volumes(t.Context()); err != nil || len(all) != 1 {
			t.Fatal(all, err)
		}
		r := contract.RestoreBackup{Backup: b.ID, InPlace: "web", SkipDamaged: true}
		job, err := d.RestoreBackup(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		job = d.ended(t, job.ID)
		if job.Error == nil || job.Error.Code != contract.CodeDamaged || job.Result == nil || len(job.Result.Restore.Lost) == 0 || job.Result.Restore.Kept == nil {
			t.Fatalf("restore around it: %+v", job)
		}
		same(t, "what was kept", d.content(t, "web@"+job.Result.Restore.Kept.Name), now)
		verify, err := d.VerifyBackups(t.Context(), contract.VerifyBackups{Backups: []string{b.ID}})
		if err != nil {
			t.Fatal(err)
		}
		if verify = d.ended(t, verify.ID); verify.State != contract.JobFailed || verify.Error.Code != contract.CodeDamaged || len(verify.Result.Verified[0].Lost) == 0 {
			t.Fatalf("verified: %+v", verify)
		}
	})
}

// filled waits until nothing is filled any more.
func (d *Daemon) filled(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	for len(d.filling()) > 0 {
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("it is not filled: %+v", d.filling())
		}
	}
}

// TestInstantRestore: the volume is what the backup holds at once, takes writes and snapshots, and needs the backup no more when it is filled.
func TestInstantRestore(t *testing.T) {
	d := start(t, scratch(t))
	d.mustCreate(t, "web")
	b, then := d.backupStory(t)
	release := d.engagedBehind(t)
	got := d.mustRestore(t, contract.RestoreBackup{Backup: b.ID, ToVolume: "back", Instant: true})
	if got.Fill == nil || got.Fill.Kind != contract.JobFill || got.Volume == nil || got.Volume.FilledFrom != b.ID {
		t.Fatalf("restored: %+v", got)
	}
	if needs := got.Volume.DependsOn; len(needs) != 2 || needs[1] != "backup:"+b.ID {
		t.Errorf("it depends on %v", needs)
	}
	same(t, "the volume", d.content(t, "back"), then)
	d.put(t, "back", 7, 2, 3)
	d.mustSnapshot(t, contract.CreateSnapshot{Volumes: []string{"back"}, Name: "s"})
	d.put(t, "back", 8, 2, 4)
	now, snap := d.content(t, "back"), d.content(t, "back@s")
	wantCode(t, d.DeleteBackups(t.Context(), contract.DeleteBackups{Backups: []string{b.ID}}), contract.CodeRefused)
	wantCode(t, d.RemoveRepository(t.Context(), "home"), contract.CodeRefused)
	release()
	if job := d.ended(t, got.Fill.ID); job.State != contract.JobDone {
		t.Fatalf("fill: %+v", job)
	}
	d.filled(t)
	if err := d.DeleteBackups(t.Context(), contract.DeleteBackups{Backups: []string{b.ID}}); err != nil {
		t.Fatal(err)
	}
	if err := d.RemoveRepository(t.Context(), "home"); err != nil {
		t.Fatal(err)
	}
	v, err := d.Volume(t.Context(), "back")
	if err != nil || v.FilledFrom != "" || len(v.DependsOn) != 1 {
		t.Fatalf("filled: %+v, %v", v, err)
	}
	same(t, "the volume that is filled", d.content(t, "back"), now)
	same(t, "its snapshot", d.content(t, "back@s"), snap)
	if then[2*block.Size] == now[2*block.Size] {
		t.Fatal("nothing was written")
	}
}

// engagedBehind keeps the jobs that nobody waits for from beginning, until it is released.
func (d *Daemon) engagedBehind(t *testing.T) (release func()) {
	t.Helper()
	for range behindAtOnce {
		d.jobs.behind <- struct{}{}
	}
	free := func() {
		for range behindAtOnce {
			<-d.jobs.behind
		}
	}
	once := false
	release = func() {
		if !once {
			once = true
			free()
		}
	}
	t.Cleanup(release)
	return release
}

// TestInstantRestoreGoesOn: after a restart what is not filled is read from the backup and filled, also when the repository comes later.
func TestInstantRestoreGoesOn(t *testing.T) {
	dir := scratch(t)
	d, err := Start(t.Context(), Config{DataDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	d.mustCreate(t, "web")
	b, then := d.backupStory(t)
	d.engagedBehind(t) // nothing is filled
	d.mustRestore(t, contract.RestoreBackup{Backup: b.ID, ToVolume: "back", Instant: true})
	d.put(t, "back", 7, 3)
	want := d.content(t, "back")
	k, err := d.repositories.named("home")
	if err != nil {
		t.Fatal(err)
	}
	where := d.repositories.now(k).Access.URL
	if err := d.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(then, want) {
		t.Fatal("nothing was written")
	}
	if err := os.Rename(where, where+".pulled"); err != nil {
		t.Fatal(err)
	}
	d = start(t, dir)
	if len(d.filling()) == 0 {
		t.Fatal("it was filled before the daemon stopped")
	}
	c := dial(t, d, "back")
	if err := c.ReadAt(t.Context(), make([]byte, block.Size), 0); err == nil {
		t.Fatal("what is not there is read")
	}
	if problems := strings.Join(d.Status().Problems, "\n"); !strings.Contains(problems, "back: what is not filled yet cannot be read") {
		t.Errorf("problems: %s", problems)
	}
	if err := os.Rename(where+".pulled", where); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	for c.ReadAt(t.Context(), make([]byte, block.Size), 0) != nil { // it is tried again at most once a second
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			t.Fatal("it is not read again")
		}
	}
	same(t, "the volume", d.content(t, "back"), want)
	if _, err := d.StartFill("back"); err != nil {
		t.Fatal(err)
	}
	d.filled(t)
	same(t, "the volume that is filled", d.content(t, "back"), want)
}

// TestBackupExports: qemu-img reads a backup, by the beginning of its id too; nobody writes to it.
func TestBackupExports(t *testing.T) {
	d := start(t, scratch(t))
	d.mustCreate(t, "web")
	b, then := d.backupStory(t)
	c := dial(t, d, "backup/"+b.ID[:8])
	if err := write(t, c, []byte("x")); err == nil {
		t.Error("a backup was written to")
	}
	if _, err := client.Dial(t.Context(), d.uri("backup/0123456789abcdef"), client.Options{}); !errors.Is(err, nbd.RepErrUnknown) {
		t.Errorf("a backup that is not there: %v", err)
	}
	file := filepath.Join(scratch(t), "back.raw")
	out, err := exec.Command("qemu-img", "convert", "-f", "raw", "-O", "raw", d.uri("backup/"+b.ID), file).CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-img: %v: %s", err, out)
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "what qemu-img read", got, then)
	for began := time.Now(); len(d.Status().Clients) > 1 && time.Since(began) < deadline; { // qemu-img has hung up
		time.Sleep(time.Millisecond)
	}
	if clients := d.Status().Clients; len(clients) != 1 || clients[0].Export != "backup/"+b.ID {
		t.Errorf("clients: %+v", clients)
	}
	if err := d.DeleteBackups(t.Context(), contract.DeleteBackups{Backups: []string{b.ID}}); err != nil {
		t.Fatal(err)
	}
	seen := make([]byte, len(then))
	if err := c.ReadAt(t.Context(), seen, 0); err != nil { // it is pinned
		t.Fatal(err)
	}
	same(t, "what a reader of a deleted backup sees", seen, then)
}

// TestBackupDiff tells what differs in two backups.
func TestBackupDiff(t *testing.T) {
	d := start(t, scratch(t))
	d.mustCreate(t, "web")
	a, _ := d.backupStory(t)
	b := d.mustBackUpOne(t, "web", "home", "")
	diff, err := d.OpenBackupDiff(t.Context(), "", a.ID, b.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer diff.Close()
	var got []int64
	err = diff.Each(t.Context(), func(off, length int64) error {
		got = append(got, off/block.Size, length/block.Size)
		return nil
	})
	if err != nil || len(got) != 6 || got[0] != 1 || got[2] != 50 || got[4] != 255 {
		t.Fatalf("differs: %v, %v", got, err)
	}
}

// TestForeignBackup: a file that is no volume is backed up by the same repository.
func TestForeignBackup(t *testing.T) {
	d := start(t, scratch(t))
	d.mustInit(t, "home")
	file := filepath.Join(scratch(t), "disk.raw")
	content := bytes.Repeat([]byte{5}, 200<<10)
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	r := contract.CreateBackup{Repo: "home", Foreign: &contract.ForeignSource{Source: file, As: "disk"}}
	b := d.mustBackUp(t, r)[0]
	same(t, "the backup", d.backedUp(t, b.ID), content)
	if b.Repo != "home" || b.Volume != "disk" || b.PointID != "" {
		t.Errorf("%+v", b)
	}
	wantType(t, d.mustBackUp(t, r)[0], contract.BackupIncremental, b.ID, "")
	if _, err := d.AdoptVolume(t.Context(), contract.AdoptVolume{Name: "disk", Path: file}); err != nil {
		t.Fatal(err)
	}
	_, err := d.CreateBackup(t.Context(), r)
	wantCode(t, err, contract.CodeRefused)
	wantType(t, d.mustBackUpOne(t, "disk", "home", ""), contract.BackupFull, "", "no earlier backup")
}

// TestRestoreInPlaceOfARenamedVolume: clients of another one that is called so by now are not cut off.
func TestRestoreInPlaceOfARenamedVolume(t *testing.T) {
	d := start(t, scratch(t))
	d.mustInit(t, "home")
	d.mustCreate(t, "web")
	then := d.noise(t, "web")
	b := d.mustBackUpOne(t, "web", "home", "")
	d.noise(t, "web")
	before := d.pool.Info().LogBytes
	job, err := d.RestoreBackup(t.Context(), contract.RestoreBackup{Backup: b.ID, InPlace: "web", Force: true, Limit: 512 << 10})
	if err != nil {
		t.Fatal(err)
	}
	for d.pool.Info().LogBytes == before { // until the clone is there that is written to
		if seen, err := d.Job(job.ID); err != nil || seen.State.Final() {
			t.Fatal(seen, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	if _, err := d.ChangeVolume(t.Context(), "web", contract.ChangeVolume{Name: "old"}); err != nil {
		t.Fatal(err)
	}
	d.mustCreate(t, "web")
	reader := dial(t, d, "old")
	wantCode(t, d.DeleteVolume(t.Context(), "old", true), contract.CodeRefused)
	if err := reader.ReadAt(t.Context(), make([]byte, block.Size), 0); err != nil {
		t.Errorf("a client of what is not deleted: %v", err)
	}
	if err := d.DeleteVolume(t.Context(), "web", false); err != nil {
		t.Errorf("another volume of that name: %v", err)
	}
	d.mustCreate(t, "web")
	c, err := client.Dial(t.Context(), d.uri("web"), client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := write(t, c, make([]byte, block.Size)); err != nil {
		t.Fatal(err)
	}
	if job = d.ended(t, job.ID); job.State != contract.JobDone {
		t.Fatalf("restore: %s: %s", job.State, job.Reason)
	}
	if err := write(t, c, make([]byte, block.Size)); err != nil {
		t.Errorf("a client of the new volume: %v", err)
	}
	same(t, "the volume", d.content(t, "old"), then)
}
