package target_test

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"varve/internal/image/target"
)

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

func TestFileAppearsWithCommit(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "disk")
	f, err := target.Create(path, false)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Abort()
	if err := f.WriteAt([]byte("content"), 3); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("before the commit: %v", err)
	}
	if err := f.Commit(); err != nil {
		t.Fatal(err)
	}
	f.Abort() // has no effect any more
	if b, err := os.ReadFile(path); err != nil || string(b) != "\x00\x00\x00content" {
		t.Errorf("%q, %v", b, err)
	}
	if n := names(t, dir); len(n) != 1 {
		t.Errorf("left %q", n)
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
}

func TestNameTakenMeanwhileIsNotReplaced(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "disk")
	f, err := target.Create(path, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("other"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := f.Commit(); !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "varve-part") {
		t.Errorf("commit: %v", err)
	}
	f.Abort()
	if b, _ := os.ReadFile(path); string(b) != "other" {
		t.Errorf("the file became %q", b)
	}
	if n := names(t, dir); len(n) != 1 {
		t.Errorf("left %q", n)
	}
}

func TestLinkStaysAndItsTargetIsReplaced(t *testing.T) {
	dir, elsewhere := t.TempDir(), filepath.Join(t.TempDir(), "real")
	if err := os.WriteFile(elsewhere, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(elsewhere, link); err != nil {
		t.Fatal(err)
	}
	f, err := target.Create(link, true)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Abort()
	if err := f.WriteAt([]byte("new"), 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Commit(); err != nil {
		t.Fatal(err)
	}
	if got, err := os.Readlink(link); err != nil || got != elsewhere {
		t.Errorf("the link is %q, %v", got, err)
	}
	if b, _ := os.ReadFile(elsewhere); string(b) != "new" {
		t.Errorf("the file holds %q", b)
	}
}

func TestWhatCannotBeCreatedIsRefused(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		path string
		want error
	}{
		{dir, target.ErrNotFile},
		{"/dev/null", target.ErrNotFile},
		{filepath.Join(dir, "missing", "disk"), fs.ErrNotExist},
	} {
		if _, err := target.Create(c.path, true); !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.path) {
			t.Errorf("%s: %v, want %v", c.path, err, c.want)
		}
	}
}

func TestFileLargerThanTheFileSystemAllows(t *testing.T) {
	f, err := target.Create(filepath.Join(t.TempDir(), "disk"), false)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Abort()
	// No file system has files of 2^63-1 bytes with room for another cluster; those that
	// say so at once say EFBIG.
	if err := f.Truncate(1<<63 - 1); err != nil && (!errors.Is(err, unix.EFBIG) || !strings.Contains(err.Error(), "qcow2")) {
		t.Errorf("truncate: %v", err)
	}
}

// A process that is killed in the middle leaves a temporary file; the next
// export to the same name removes it, but not those that are in work.
func TestLeftoversOfTheDeadAreRemoved(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "disk")
	dead := exec.Command(os.Args[0], "-test.run=TestDieWhileWriting")
	dead.Env = append(os.Environ(), "DIE_WHILE_WRITING="+path)
	if err := dead.Run(); err == nil {
		t.Fatal("the other process did not die")
	}
	left := names(t, dir)
	if len(left) != 1 {
		t.Fatalf("the dead left %q, want one temporary file", left)
	}
	alive, err := target.Create(path, false)
	if err != nil {
		t.Fatal(err)
	}
	defer alive.Abort()
	second, err := target.Create(path, false)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Abort()
	now := names(t, dir)
	if len(now) != 2 || now[0] == left[0] || now[1] == left[0] {
		t.Errorf("after %q there are %q, want the two in work", left, now)
	}
	if err := alive.Commit(); err != nil {
		t.Error(err)
	}
	if err := second.Commit(); !errors.Is(err, fs.ErrExist) {
		t.Errorf("the second export: %v", err)
	}
}

// TestDieWhileWriting is the process that dies in TestLeftoversOfTheDeadAreRemoved.
func TestDieWhileWriting(t *testing.T) {
	path := os.Getenv("DIE_WHILE_WRITING")
	if path == "" {
		return // nobody asked
	}
	f, err := target.Create(path, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.WriteAt([]byte("half"), 0); err != nil {
		t.Fatal(err)
	}
	_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	select {}
}
