package depot

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"varve/internal/contract"
	"varve/internal/repository"
	"varve/internal/vfs/crashfs"
)

// What could not be written the kernel goes on showing, and does not try again. A restore that goes on after that writes it.
func TestGoingOnAfterASyncThatFailed(t *testing.T) {
	f := newFixture(t, repository.CreateOptions{})
	b, err := f.repo.Backup(t.Context(), f.backUp(t, contract.BackupAuto).ID)
	if err != nil {
		t.Fatal(err)
	}
	medium := crashfs.New()
	made, err := medium.Create("/disk")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(made.Truncate(b.SizeBytes), made.Sync(), medium.SyncDir("/")); err != nil {
		t.Fatal(err)
	}
	restore := func() error {
		file, err := medium.Open("/disk")
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		_, err = f.restoreDisk(t.Context(), b, contract.RestoreBackup{}, &disk{f: file, name: "disk", size: b.SizeBytes}, false, nil)
		return err
	}
	remove := medium.Inject(crashfs.Fault{Match: func(op crashfs.Op) bool { return op.Kind == crashfs.Sync }, Err: syscall.EIO})
	if err := restore(); err == nil {
		t.Fatal("it was not told")
	}
	remove()
	if err := restore(); err != nil {
		t.Fatal(err)
	}
	after := medium.CrashImage(crashfs.DropAll)
	file, err := after.Open("/disk")
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, b.SizeBytes)
	if _, err := file.ReadAt(got, 0); err != nil || !bytes.Equal(got, f.content[:len(got)]) {
		t.Fatalf("what is on the medium is not the backup (%v)", err)
	}
}

// A link to nothing is in the way as a file is, and that is said before anything is fetched.
func TestALinkToNothingIsInTheWay(t *testing.T) {
	f := newFixture(t, repository.CreateOptions{})
	r := contract.RestoreBackup{Backup: f.backUp(t, contract.BackupAuto).ID, ToFile: filepath.Join(t.TempDir(), "out")}
	if err := os.Symlink("nothing", r.ToFile); err != nil {
		t.Fatal(err)
	}
	done, err := f.RestoreFile(t.Context(), r, nil)
	if err == nil || done.WrittenBytes > 0 {
		t.Fatalf("%+v, %v", done, err)
	}
	nothingLeft(t, filepath.Dir(r.ToFile), "out")
	r.Force = true
	if _, err := f.RestoreFile(t.Context(), r, nil); err != nil {
		t.Fatal(err)
	}
	hold(t, r.ToFile, f.content)
}

// A file system may not tell how much room it has, and have no holes.
func TestARestoreToAFileSystemThatTellsNothing(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "ramfs", 0, ""); errors.Is(err, unix.EPERM) {
		return // root's rights are needed
	} else if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	f := newFixture(t, repository.CreateOptions{})
	clear(f.content[64<<10 : 1<<20])
	b := f.backUp(t, contract.BackupAuto)
	r := contract.RestoreBackup{Backup: b.ID, ToFile: filepath.Join(dir, "out")}
	if _, err := f.RestoreFile(t.Context(), r, nil); err != nil {
		t.Fatal(err)
	}
	hold(t, r.ToFile, f.content)
	r.Force = true
	part := filepath.Join(dir, ".out."+b.ID+partSuffix)
	if err := os.WriteFile(part, noise(5, len(f.content)), 0o600); err != nil { // where zeros have to be written
		t.Fatal(err)
	}
	if _, err := f.RestoreFile(t.Context(), r, nil); err != nil {
		t.Fatal(err)
	}
	hold(t, r.ToFile, f.content)
	nothingLeft(t, dir, "out")
}
