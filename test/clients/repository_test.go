package clients

import (
	"bytes"
	"context"
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"varve/internal/contract"
)

// station is a machine without a daemon: a repository, and commands that work on it.
type station struct {
	t   *testing.T
	dir string
	url string
}

func newStation(t *testing.T, url string) *station {
	t.Helper()
	s := &station{t: t, dir: scratch(t), url: url}
	if url == "" {
		s.url = filepath.Join(s.dir, "repository")
	}
	s.varve("repo", "init", "--no-encryption", "--chunk-size", "64K")
	return s
}

// with adds what tells where the repository is.
func (s *station) with(args []string) []string {
	return append(slices.Clone(args), "--data", filepath.Join(s.dir, "data"), "--url", s.url)
}

func (s *station) try(args ...string) outcome { return execute(s.dir, program, s.with(args)...) }

func (s *station) varve(args ...string) string {
	s.t.Helper()
	o := s.try(args...)
	if o.status != 0 {
		s.t.Fatalf("varve %q: status %d, %v\n%s%s", args, o.status, o.err, o.stdout, o.stderr)
	}
	return strings.TrimSpace(o.stdout)
}

func (s *station) refused(status int, words string, args ...string) {
	s.t.Helper()
	wantRefusal(s.t, s.try(args...), status, words)
}

func (s *station) backups() (all []contract.Backup) {
	s.t.Helper()
	must(s.t, json.Unmarshal([]byte(s.varve("backup", "list", "-o", "json")), &all), "list backups")
	return all
}

// start runs a command until the caller ends it.
func (s *station) start(args ...string) (stop func(syscall.Signal) error) {
	s.t.Helper()
	cmd := command(context.Background(), program, s.with(args)...)
	cmd.Dir = s.dir
	must(s.t, cmd.Start(), "start varve %q", args)
	return func(signal syscall.Signal) error {
		must(s.t, cmd.Process.Signal(signal), "end varve %q", args)
		return cmd.Wait()
	}
}

// file makes a file of content that nothing else has.
func (s *station) file(name string, seed byte, bytes int) (path string, content []byte) {
	s.t.Helper()
	path, content = filepath.Join(s.dir, name), make([]byte, bytes)
	rand.NewChaCha8([32]byte{seed}).Read(content)
	must(s.t, os.WriteFile(path, content, 0o600), "make a disk")
	return path, content
}

// loop makes a file a block device for as long as the test runs.
func (s *station) loop(file string) (device string) {
	s.t.Helper()
	device, hold := loopDevice(s.t, file, false)
	s.t.Cleanup(func() { hold.Close() })
	return device
}

func wantContent(t *testing.T, file string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(file)
	must(t, err, "read what was restored")
	if !bytes.Equal(got, want) {
		t.Fatalf("%s does not hold what it should", file)
	}
}

// A disk with a file system is backed up while nobody uses it, and restored over another one, as on a bare machine.
func TestABlockDeviceIsBackedUpAndRestored(t *testing.T) {
	needDevices(t)
	t.Parallel()
	s := newStation(t, "")
	file, _ := s.file("disk", 1, 16<<20)
	device := s.loop(file)
	run(t, "mkfs.ext4", "-q", device)
	m := mount(t, device, "ext4", "")
	must(t, os.WriteFile(filepath.Join(m.dir, "precious"), []byte("content"), 0o600), "write a file")
	s.refused(4, "mounted for writing on "+m.dir, "backup", "create", device, "--as", "disk")
	m.umount()
	ro := mount(t, device, "ext4", "ro,noload")
	s.varve("backup", "create", device, "--as", "disk")
	ro.umount()
	writer, err := os.OpenFile(device, os.O_RDWR, 0)
	must(t, err, "open the disk")
	s.refused(4, "has it open for writing", "backup", "create", device, "--as", "disk")
	s.varve("backup", "create", device, "--as", "disk", "--allow-inconsistent")
	writer.Close()
	id := s.varve("backup", "create", device, "--as", "disk")
	all := s.backups()
	if len(all) != 3 || all[1].Consistency != "none" || all[2].Consistency != "crash" || all[2].Type != contract.BackupIncremental {
		t.Fatalf("%+v", all)
	}

	blank, old := s.file("blank", 2, 20<<20)
	target := s.loop(blank)
	s.refused(4, "all that it holds would be lost", "backup", "restore", id, "--to", target)
	s.refused(2, "a block device is raw", "backup", "restore", id, "--to", target, "--force", "--format", "qcow2")
	small, before := s.file("small", 3, 8<<20)
	s.refused(4, "smaller than the backup", "backup", "restore", id, "--to", s.loop(small), "--force")
	wantContent(t, small, before)

	// Killed in the middle, the same command goes on; what is right already is not written again.
	first, err := os.Open(target)
	must(t, err, "open the disk")
	defer first.Close()
	stop := s.start("backup", "restore", id, "--to", target, "--force", "--limit", "1M")
	await(t, "a part is restored", func() bool {
		p := make([]byte, 4096)
		_, err := first.ReadAt(p, 1024)
		return err == nil && !bytes.Equal(p, old[1024:1024+4096])
	})
	if err := stop(syscall.SIGKILL); err == nil {
		t.Log("it was faster than the signal")
	}
	s.varve("backup", "restore", id, "--to", target, "--force")
	var again contract.BackupRestore
	must(t, json.Unmarshal([]byte(s.varve("backup", "restore", id, "--to", target, "--force", "-o", "json")), &again), "restore")
	if again.WrittenBytes+again.ZeroedBytes != 0 || again.SameBytes == 0 {
		t.Fatalf("again: %+v", again)
	}
	run(t, "sync", target)
	wantTail(t, blank, 16<<20, old[16<<20:])
	restored := mount(t, target, "ext4", "")
	wantContent(t, filepath.Join(restored.dir, "precious"), []byte("content"))
	s.refused(4, "mounted for writing on "+restored.dir, "backup", "restore", id, "--to", target, "--force")
}

func wantTail(t *testing.T, file string, off int, want []byte) {
	t.Helper()
	got, err := os.ReadFile(file)
	must(t, err, "read what was restored")
	if !bytes.Equal(got[off:], want) {
		t.Fatalf("%s is not as it was from %d on", file, off)
	}
}

// A repository on a file system that is full: the backup fails and leaves nothing visible, and with room the next one is made. A restore to such
// a file system is refused before anything is written.
func TestAFullStore(t *testing.T) {
	needDevices(t)
	t.Parallel()
	dir := scratch(t)
	store := filepath.Join(dir, "store")
	must(t, os.WriteFile(store, nil, 0o600), "make a disk")
	must(t, os.Truncate(store, 150<<20), "make a disk")
	device, hold := loopDevice(t, store, false)
	t.Cleanup(func() { hold.Close() })
	run(t, "mkfs.ext4", "-q", "-m", "0", device)
	m := mount(t, device, "ext4", "")
	ballast := filepath.Join(m.dir, "lost+found", "ballast")
	run(t, "fallocate", "--length", "100M", ballast)
	s := newStation(t, filepath.Join(m.dir, "repository"))
	file, content := s.file("disk", 1, 60<<20)
	s.refused(1, "store is full", "backup", "create", file, "--as", "disk")
	if all := s.backups(); len(all) > 0 {
		t.Fatalf("visible: %+v", all)
	}
	must(t, os.Remove(ballast), "make room")
	id := s.varve("backup", "create", file, "--as", "disk")
	if all := s.backups(); len(all) != 1 {
		t.Fatalf("%+v", all)
	}
	s.refused(4, "its file system has", "backup", "restore", id, "--to", filepath.Join(m.dir, "out"), "--format", "qcow2") // which needs it twice
	run(t, "fallocate", "--length", "40M", ballast)
	s.refused(4, "its file system has", "backup", "restore", id, "--to", filepath.Join(m.dir, "out"))
	entries, err := os.ReadDir(m.dir)
	must(t, err, "list")
	if len(entries) != 2 {
		t.Fatalf("left over: %v", entries)
	}
	out := filepath.Join(s.dir, "out")
	s.varve("backup", "restore", id, "--to", out)
	wantContent(t, out, content)
}

// A backup that is killed in the middle leaves nothing visible, and the next one is made as if it had not been; one that is interrupted too.
func TestABackupThatIsKilled(t *testing.T) {
	t.Parallel()
	s := newStation(t, "")
	file, content := s.file("disk", 1, 90<<20)
	for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGINT} {
		seen := len(s.packs())
		stop := s.start("backup", "create", file, "--as", "disk", "--limit", "16M", "--quiet")
		await(t, "a pack is stored", func() bool { return len(s.packs()) > seen })
		if err := stop(signal); err == nil {
			t.Fatalf("it was faster than signal %s", signal)
		}
		if all := s.backups(); len(all) > 0 {
			t.Fatalf("after signal %s: %+v", signal, all)
		}
	}
	id := s.varve("backup", "create", file, "--as", "disk")
	if all := s.backups(); len(all) != 1 || all[0].Type != contract.BackupFull {
		t.Fatalf("%+v", all)
	}
	s.varve("backup", "verify", id)
	s.varve("repo", "check")
	out := filepath.Join(s.dir, "out")
	s.varve("backup", "restore", id, "--to", out)
	wantContent(t, out, content)
}

func (s *station) packs() []string {
	s.t.Helper()
	found, err := filepath.Glob(filepath.Join(s.url, "packs/*/*"))
	must(s.t, err, "list packs")
	return found
}
