package dir_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"varve/internal/objects"
	"varve/internal/objects/dir"
	"varve/internal/objects/objectstest"
	"varve/internal/vfs"
	"varve/internal/vfs/crashfs"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func want(t *testing.T, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("got %v, want %v", err, target)
	}
}

func put(st objects.Store, name, content string) error {
	return st.Put(noContext, name, [][]byte{[]byte(content)}, objects.PutOptions{})
}

func list(t *testing.T, st objects.Store) (names []string) {
	t.Helper()
	must(t, st.List(t.Context(), "", func(info objects.Info) error {
		names = append(names, info.Name)
		return nil
	}))
	return names
}

func TestContract(t *testing.T) {
	open := func(t *testing.T) objectstest.Place {
		root := filepath.Join(t.TempDir(), "root")
		_, err := dir.Create(vfs.OS(), root)
		must(t, err)
		return func() objects.Store {
			st, err := dir.Open(vfs.OS(), root)
			must(t, err)
			return st
		}
	}
	objectstest.Contract(t, open)
	objectstest.WithoutLocks(t, open)
}

func TestNoDirectoryIsNoStore(t *testing.T) {
	root := filepath.Join(t.TempDir(), "absent")
	_, err := dir.Open(vfs.OS(), root)
	want(t, err, objects.ErrNoStore)
	if !strings.Contains(err.Error(), root) {
		t.Fatalf("%v does not name the directory", err)
	}
	_, err = dir.Create(vfs.OS(), filepath.Join(root, "below"))
	want(t, err, objects.ErrNoStore)
	must(t, os.WriteFile(root, nil, 0o600))
	_, err = dir.Create(vfs.OS(), root)
	want(t, err, objects.ErrNoStore)
}

func TestCreateTakesADirectoryThatIsThere(t *testing.T) {
	root := t.TempDir()
	for range 2 {
		st, err := dir.Create(vfs.OS(), root)
		must(t, err)
		if st.URL() != root {
			t.Fatalf("its URL is %s", st.URL())
		}
	}
}

// As when a medium is taken away, and the mount point of the same path shows.
func TestAnotherDirectoryAtThePathIsNoStore(t *testing.T) {
	beside := t.TempDir()
	root := filepath.Join(beside, "root")
	st, err := dir.Create(vfs.OS(), root)
	must(t, err)
	must(t, put(st, "packs/ab/1", "x"))
	for _, instead := range []func() error{
		func() error { return nil },
		func() error { return os.Mkdir(root, 0o700) },
	} {
		must(t, os.Rename(root, root+"-away"))
		must(t, instead())
		want(t, put(st, "packs/ab/2", "x"), objects.ErrNoStore)
		want(t, put(st, "new/1", "x"), objects.ErrNoStore)
		_, err = st.Get(t.Context(), "packs/ab/1")
		want(t, err, objects.ErrNoStore)
		_, err = st.Stat(t.Context(), "packs/ab/1")
		want(t, err, objects.ErrNoStore)
		want(t, st.Read(t.Context(), "packs/ab/1", make([]byte, 1), 0), objects.ErrNoStore)
		want(t, st.Delete(t.Context(), "packs/ab/1"), objects.ErrNoStore)
		want(t, st.List(t.Context(), "", func(objects.Info) error { return nil }), objects.ErrNoStore)
		if err := os.Remove(root); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("something was made in another's directory: %v", err)
		}
		must(t, os.Rename(root+"-away", root))
		if names := list(t, st); !slices.Equal(names, []string{"packs/ab/1"}) {
			t.Fatalf("back again it has %q", names)
		}
	}
}

func TestForeignFilesAreNotSeen(t *testing.T) {
	root := t.TempDir()
	st, err := dir.Open(vfs.OS(), root)
	must(t, err)
	must(t, put(st, "packs/1", "x"))
	must(t, os.WriteFile(filepath.Join(root, "README"), []byte("of somebody"), 0o600))
	must(t, os.WriteFile(filepath.Join(root, "packs", "note.txt~"), []byte("of somebody"), 0o600))
	must(t, os.Mkdir(filepath.Join(root, "lost+found"), 0o700))
	must(t, os.WriteFile(filepath.Join(root, "lost+found", "a"), nil, 0o600))
	must(t, syscall.Mkfifo(filepath.Join(root, "packs", "pipe"), 0o600))
	must(t, os.Symlink("nowhere", filepath.Join(root, "packs", "link")))
	must(t, os.Symlink("..", filepath.Join(root, "README-dir")))
	if names := list(t, st); !slices.Equal(names, []string{"packs/1"}) {
		t.Fatalf("it has %q", names)
	}
	_, err = st.Get(t.Context(), "packs/pipe") // and does not wait for a writer
	want(t, err, objects.ErrNotFound)
	must(t, st.Delete(t.Context(), "packs/pipe"))
	if _, err := os.Lstat(filepath.Join(root, "packs", "pipe")); err != nil {
		t.Fatalf("what is not ours was deleted: %v", err)
	}
}

func TestWhatACrashLeftIsRemovedADayLater(t *testing.T) {
	root := t.TempDir()
	st, err := dir.Open(vfs.OS(), root)
	must(t, err)
	must(t, put(st, "packs/1", "x"))
	now := time.Now()
	leave := func(name string, age time.Duration) string {
		file := filepath.Join(root, name)
		must(t, os.WriteFile(file, []byte("half of an ob"), 0o600))
		must(t, os.Chtimes(file, now.Add(-age), now.Add(-age)))
		return file
	}
	old := []string{leave("put~1", 25*time.Hour), leave("packs/put~2", 100*time.Hour)}
	young := leave("packs/put~3", 23*time.Hour)
	if names := list(t, st); !slices.Equal(names, []string{"packs/1"}) {
		t.Fatalf("it has %q", names)
	}
	for _, file := range old {
		if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there: %v", file, err)
		}
	}
	if _, err := os.Stat(young); err != nil {
		t.Errorf("what may still be written was removed: %v", err)
	}
}

// Two hosts, of which one takes what the other is writing for a leftover, or empties the directory.
func TestAPutWhoseFileWasTakenAwayBeginsAgain(t *testing.T) {
	fsys := crashfs.New()
	st, err := dir.Create(fsys, "/root")
	must(t, err)
	other, err := dir.Open(fsys, "/root")
	must(t, err)
	must(t, put(st, "packs/1", "x"))
	draft := ""
	removed := false
	remove := fsys.Inject(crashfs.Fault{Err: fs.ErrNotExist, Times: 1, Match: func(op crashfs.Op) bool {
		if op.Kind == crashfs.Rename {
			draft = op.Path
		}
		return op.Kind == crashfs.Rename && !removed
	}})
	must(t, put(st, "packs/2", "whole"))
	remove()
	p, err := other.Get(t.Context(), "packs/2")
	if err != nil || string(p) != "whole" || draft == "" {
		t.Fatalf("%q %v", p, err)
	}
}

func TestAReadOnlyDirectoryIsReadAndDeniesTheRest(t *testing.T) {
	root := t.TempDir()
	st, err := dir.Open(vfs.OS(), root)
	must(t, err)
	must(t, put(st, "packs/1", "x"))
	must(t, os.WriteFile(filepath.Join(root, "put~1"), nil, 0o600))
	past := time.Now().Add(-time.Hour * 48)
	must(t, os.Chtimes(filepath.Join(root, "put~1"), past, past))
	st, err = dir.Open(vfs.ReadOnly(vfs.OS()), root)
	must(t, err)
	if names := list(t, st); !slices.Equal(names, []string{"packs/1"}) {
		t.Fatalf("it has %q", names)
	}
	if p, err := st.Get(t.Context(), "packs/1"); err != nil || string(p) != "x" {
		t.Fatalf("%q %v", p, err)
	}
	want(t, put(st, "packs/2", "x"), objects.ErrDenied)
	want(t, put(st, "new/2", "x"), objects.ErrDenied)
	want(t, st.Delete(t.Context(), "packs/1"), objects.ErrDenied)
}

func TestAFullDiskTakesNothing(t *testing.T) {
	fsys := crashfs.New()
	st, err := dir.Create(fsys, "/root")
	must(t, err)
	must(t, put(st, "a", "x"))
	fsys.SetCapacity(64 << 10)
	used := fsys.UsedBytes()
	want(t, put(st, "packs/1", strings.Repeat("x", 100<<10)), objects.ErrFull)
	if now := fsys.UsedBytes(); now != used {
		t.Fatalf("%d bytes are in use, before it were %d", now, used)
	}
	must(t, put(st, "packs/1", strings.Repeat("x", 30<<10)))
	if names := list(t, st); !slices.Equal(names, []string{"a", "packs/1"}) {
		t.Fatalf("it has %q", names)
	}
}
