// Package vfstest is the contract of vfs.FS as tests, run by each file system.
// What a power cut leaves is not part of it: no test can cut the power of the
// real one.
package vfstest

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"varve/internal/vfs"
)

// Contract tests the file system that open returns, below the empty directory dir.
func Contract(t *testing.T, open func(t *testing.T) (fsys vfs.FS, dir string)) {
	for name, test := range map[string]func(*testing.T, vfs.FS, string){
		"names":          testNames,
		"rename":         testRename,
		"rename to new":  testRenameNew,
		"write and read": testWriteRead,
		"many buffers":   testManyBuffers,
		"truncate":       testTruncate,
		"allocate":       testAllocate,
		"punch hole":     testPunchHole,
		"sync and drop":  testSyncDrop,
		"read only":      testReadOnly,
		"bad arguments":  testBadArguments,
		"removed file":   testRemovedFile,
		"closed file":    testClosedFile,
		"concurrency":    testConcurrency,
		"lock":           testLock,
		"identity":       testIdentity,
	} {
		t.Run(name, func(t *testing.T) {
			fsys, dir := open(t)
			test(t, fsys, dir)
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// want fails unless err is target and, as every error must, names the object.
func want(t *testing.T, err, target error, object string) {
	t.Helper()
	if !errors.Is(err, target) || !strings.Contains(err.Error(), object) {
		t.Fatalf("got error %q, want %q naming %s", err, target, object)
	}
}

// bare tells whether err is target itself, not wrapped: readers of an io.ReaderAt
// compare io.EOF so, and a would-block must cost nothing.
func bare(err, target error) bool {
	return err == target //nolint:errorlint // the point
}

func create(t *testing.T, fsys vfs.FS, name string) vfs.File {
	t.Helper()
	f, err := fsys.Create(name)
	must(t, err)
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func write(t *testing.T, f vfs.File, text string, off int64) {
	t.Helper()
	must(t, f.WriteAt([][]byte{[]byte(text)}, off))
}

// holds fails unless the file's whole content is text, by every way to read it.
func holds(t *testing.T, f vfs.File, text string) {
	t.Helper()
	size, err := f.Size()
	must(t, err)
	if size != int64(len(text)) {
		t.Fatalf("size is %d, want %d", size, len(text))
	}
	got := make([]byte, size+7)
	n, err := f.ReadAt(got, 0)
	if n != len(text) || !bare(err, io.EOF) || string(got[:n]) != text {
		t.Fatalf("read %d bytes %q, %v; want %d bytes %q and io.EOF", n, got[:n], err, len(text), text)
	}
	for _, wait := range []bool{false, true} {
		clear(got)
		bufs := [][]byte{nil, got[:size/3], nil, got[size/3 : size]} // cut in any way
		err = f.ReadVector(bufs, 0, wait)
		if err == nil && string(got[:size]) != text {
			t.Fatalf("ReadVector gave %q, want %q", got[:size], text)
		}
		if err != nil && (wait || !bare(err, vfs.ErrWouldBlock)) {
			t.Fatal(err)
		}
	}
	if err := f.ReadVector([][]byte{got[:3], got[3:]}, 0, false); !bare(err, vfs.ErrWouldBlock) {
		t.Fatalf("ReadVector beyond the end gave %v; want ErrWouldBlock", err)
	}
	if err := f.ReadVector([][]byte{got[:3], got[3:]}, 0, true); !bare(err, io.EOF) {
		t.Fatalf("ReadVector beyond the end gave %v; want io.EOF", err)
	}
}

// A file keeps its identity under another name, and one that takes its name has another.
func testIdentity(t *testing.T, fsys vfs.FS, dir string) {
	a, b := path.Join(dir, "a"), path.Join(dir, "b")
	_, err := fsys.Identity(a)
	want(t, err, fs.ErrNotExist, a)
	create(t, fsys, a)
	first, err := fsys.Identity(a)
	must(t, err)
	must(t, fsys.Rename(a, b))
	create(t, fsys, a)
	second, err := fsys.Identity(a)
	must(t, err)
	moved, err := fsys.Identity(b)
	must(t, err)
	if first == "" || moved != first || second == first {
		t.Errorf("a file is %q, moved it is %q, and the one that took its name %q", first, moved, second)
	}
}

func testNames(t *testing.T, fsys vfs.FS, dir string) {
	file, sub := path.Join(dir, "file"), path.Join(dir, "sub")
	create(t, fsys, file)
	must(t, fsys.Mkdir(sub))
	create(t, fsys, path.Join(sub, "inner"))
	must(t, fsys.SyncDir(dir))

	names, err := fsys.List(dir)
	must(t, err)
	if !slices.Equal(names, []string{"file", "sub"}) {
		t.Fatalf("listed %q", names)
	}
	info, err := fsys.Stat(file)
	must(t, err)
	if info.Name() != "file" || info.IsDir() || info.Size() != 0 || info.Mode() != 0o600 {
		t.Fatalf("file is %v %v %d", info.Name(), info.Mode(), info.Size())
	}
	info, err = fsys.Stat(sub)
	must(t, err)
	if info.Name() != "sub" || !info.IsDir() || info.Mode() != fs.ModeDir|0o700 {
		t.Fatalf("directory is %v %v", info.Name(), info.Mode())
	}

	_, err = fsys.Create(file)
	want(t, err, fs.ErrExist, file)
	_, err = fsys.Create(sub)
	want(t, err, fs.ErrExist, sub)
	want(t, fsys.Mkdir(sub), fs.ErrExist, sub)
	want(t, fsys.Mkdir(file), fs.ErrExist, file)
	want(t, fsys.Remove(sub), syscall.ENOTEMPTY, sub)
	_, err = fsys.Open(sub)
	want(t, err, syscall.EISDIR, sub)
	_, err = fsys.OpenReadOnly(sub)
	want(t, err, syscall.EISDIR, sub)
	_, err = fsys.List(file)
	want(t, err, syscall.ENOTDIR, file)
	want(t, fsys.SyncDir(file), syscall.ENOTDIR, file)

	missing := path.Join(dir, "missing", "x")
	_, err = fsys.Create(missing)
	want(t, err, fs.ErrNotExist, missing)
	_, err = fsys.Open(missing)
	want(t, err, fs.ErrNotExist, missing)
	_, err = fsys.OpenReadOnly(missing)
	want(t, err, fs.ErrNotExist, missing)
	_, err = fsys.List(missing)
	want(t, err, fs.ErrNotExist, missing)
	_, err = fsys.Stat(missing)
	want(t, err, fs.ErrNotExist, missing)
	_, err = fsys.Lock(missing, "me")
	want(t, err, fs.ErrNotExist, missing)
	want(t, fsys.Mkdir(missing), fs.ErrNotExist, missing)
	want(t, fsys.Remove(missing), fs.ErrNotExist, missing)
	want(t, fsys.SyncDir(missing), fs.ErrNotExist, missing)
	below := path.Join(file, "x")
	_, err = fsys.Create(below)
	want(t, err, syscall.ENOTDIR, below)

	must(t, fsys.Remove(path.Join(sub, "inner")))
	must(t, fsys.Remove(sub))
	must(t, fsys.Remove(file))
	names, err = fsys.List(dir)
	must(t, err)
	if len(names) != 0 {
		t.Fatalf("listed %q in an empty directory", names)
	}
}

func testRename(t *testing.T, fsys vfs.FS, dir string) {
	a, b, sub := path.Join(dir, "a"), path.Join(dir, "b"), path.Join(dir, "sub")
	fa := create(t, fsys, a)
	write(t, fa, "from a", 0)
	write(t, create(t, fsys, b), "from b", 0)
	must(t, fsys.Rename(a, b))
	_, err := fsys.Stat(a)
	want(t, err, fs.ErrNotExist, a)
	f, err := fsys.Open(b)
	must(t, err)
	holds(t, f, "from a")
	holds(t, fa, "from a")
	must(t, f.Close())

	must(t, fsys.Rename(b, b))
	want(t, fsys.Rename(a, b), fs.ErrNotExist, a)
	must(t, fsys.Mkdir(sub))
	want(t, fsys.Rename(b, sub), fs.ErrExist, b)
	want(t, fsys.Rename(b, path.Join(sub, "b")), syscall.EXDEV, b)
	want(t, fsys.Rename(sub, b), syscall.ENOTDIR, sub)

	create(t, fsys, path.Join(sub, "inner"))
	moved := path.Join(dir, "moved")
	must(t, fsys.Rename(sub, moved))
	_, err = fsys.Stat(path.Join(moved, "inner"))
	must(t, err)
}

func testRenameNew(t *testing.T, fsys vfs.FS, dir string) {
	a, b, c, sub := path.Join(dir, "a"), path.Join(dir, "b"), path.Join(dir, "c"), path.Join(dir, "sub")
	write(t, create(t, fsys, a), "from a", 0)
	write(t, create(t, fsys, b), "from b", 0)
	must(t, fsys.Mkdir(sub))
	want(t, fsys.RenameNew(a, b), fs.ErrExist, a)
	want(t, fsys.RenameNew(a, sub), fs.ErrExist, a)
	want(t, fsys.RenameNew(a, path.Join(sub, "a")), syscall.EXDEV, a)
	want(t, fsys.RenameNew(path.Join(dir, "none"), c), fs.ErrNotExist, "none")
	for name, text := range map[string]string{a: "from a", b: "from b"} {
		f, err := fsys.Open(name)
		must(t, err)
		holds(t, f, text)
		must(t, f.Close())
	}
	must(t, fsys.RenameNew(a, c))
	_, err := fsys.Stat(a)
	want(t, err, fs.ErrNotExist, a)
	f, err := fsys.Open(c)
	must(t, err)
	holds(t, f, "from a")
	must(t, f.Close())
}

func testWriteRead(t *testing.T, fsys vfs.FS, dir string) {
	f := create(t, fsys, path.Join(dir, "f"))
	holds(t, f, "")
	must(t, f.WriteAt(nil, 10))
	must(t, f.WriteAt([][]byte{nil, {}}, 10))
	holds(t, f, "")

	buf := []byte("lo")
	must(t, f.WriteAt([][]byte{[]byte("hel"), nil, buf}, 4))
	copy(buf, "XX") // the file has its own copy
	holds(t, f, "\x00\x00\x00\x00hello")
	write(t, f, "HEL", 4)
	holds(t, f, "\x00\x00\x00\x00HELlo")

	p := make([]byte, 3)
	if n, err := f.ReadAt(p, 5); n != 3 || err != nil || string(p) != "ELl" {
		t.Fatalf("read %d %q %v", n, p, err)
	}
	if n, err := f.ReadAt(p, 7); n != 2 || !bare(err, io.EOF) {
		t.Fatalf("read across the end: %d %v", n, err)
	}
	if n, err := f.ReadAt(p, 1<<40); n != 0 || !bare(err, io.EOF) {
		t.Fatalf("read far beyond the end: %d %v", n, err)
	}
	if n, err := f.ReadAt(nil, 1<<40); n != 0 || err != nil {
		t.Fatalf("read nothing: %d %v", n, err)
	}

	// A second handle sees the same file.
	g, err := fsys.OpenReadOnly(path.Join(dir, "f"))
	must(t, err)
	write(t, f, "!", 9)
	holds(t, g, "\x00\x00\x00\x00HELlo!")
	must(t, g.Close())
}

func testManyBuffers(t *testing.T, fsys vfs.FS, dir string) {
	f := create(t, fsys, path.Join(dir, "f"))
	var bufs [][]byte
	for i := range 5000 {
		bufs = append(bufs, bytes.Repeat([]byte{byte(i)}, i*i%97)) // some are empty
	}
	must(t, f.WriteAt(bufs, 3))
	holds(t, f, "\x00\x00\x00"+string(bytes.Join(bufs, nil)))
}

func testTruncate(t *testing.T, fsys vfs.FS, dir string) {
	f := create(t, fsys, path.Join(dir, "f"))
	write(t, f, "abcdef", 0)
	must(t, f.Truncate(3))
	holds(t, f, "abc")
	must(t, f.Truncate(6))
	holds(t, f, "abc\x00\x00\x00")
	must(t, f.Truncate(1<<40))
	p := []byte("xxxx")
	_, err := f.ReadAt(p, 1<<39)
	must(t, err)
	if string(p) != "\x00\x00\x00\x00" {
		t.Fatalf("hole reads as %q", p)
	}
	must(t, f.Truncate(0))
	holds(t, f, "")
}

// blocks is what a file has allocated, in units of 512 bytes.
func blocks(t *testing.T, fsys vfs.FS, name string) int64 {
	t.Helper()
	info, err := fsys.Stat(name)
	must(t, err)
	return info.Sys().(*syscall.Stat_t).Blocks
}

func testAllocate(t *testing.T, fsys vfs.FS, dir string) {
	name := path.Join(dir, "f")
	f := create(t, fsys, name)
	must(t, f.Allocate(5, 0))
	holds(t, f, "")
	write(t, f, "abc", 0)
	must(t, f.Allocate(1, 9))
	holds(t, f, "abc"+strings.Repeat("\x00", 7))
	must(t, f.Allocate(0, 2))
	holds(t, f, "abc"+strings.Repeat("\x00", 7))
	must(t, f.Allocate(0, 1<<20))
	if n := blocks(t, fsys, name); n < 1<<20/512 {
		t.Fatalf("%d blocks after allocating 1 MiB", n)
	}
}

func testPunchHole(t *testing.T, fsys vfs.FS, dir string) {
	name := path.Join(dir, "f")
	f := create(t, fsys, name)
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	must(t, f.WriteAt([][]byte{data}, 0))
	must(t, f.Sync())
	full := blocks(t, fsys, name)

	must(t, f.PunchHole(100, 0))
	must(t, f.PunchHole(4000, 500_000))
	clear(data[4000:504_000])
	must(t, f.PunchHole(int64(len(data))-10, 1<<20)) // keeps the size
	clear(data[len(data)-10:])
	must(t, f.PunchHole(1<<30, 1<<20))
	holds(t, f, string(data))
	if n := blocks(t, fsys, name); full-n < 400_000/512 {
		t.Fatalf("%d blocks before punching 500,000 bytes, %d after", full, n)
	}
}

func testSyncDrop(t *testing.T, fsys vfs.FS, dir string) {
	f := create(t, fsys, path.Join(dir, "f"))
	write(t, f, "synced", 0)
	must(t, f.Sync())
	must(t, f.DropCache())
	holds(t, f, "synced")
	write(t, f, "dirty!", 0)
	f.StartWriteback(0, 6)
	must(t, f.DropCache()) // drops nothing that is not on disk
	holds(t, f, "dirty!")
	must(t, fsys.SyncDir(dir))
}

func testReadOnly(t *testing.T, fsys vfs.FS, dir string) {
	name := path.Join(dir, "f")
	write(t, create(t, fsys, name), "text", 0)
	f, err := fsys.OpenReadOnly(name)
	must(t, err)
	t.Cleanup(func() { _ = f.Close() })
	for op, err := range map[string]error{
		"WriteAt":   f.WriteAt([][]byte{[]byte("x")}, 0),
		"Truncate":  f.Truncate(0),
		"Allocate":  f.Allocate(0, 100),
		"PunchHole": f.PunchHole(0, 4),
	} {
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s of a file opened for reading: %v", op, err)
		}
	}
	holds(t, f, "text")
}

func testBadArguments(t *testing.T, fsys vfs.FS, dir string) {
	f := create(t, fsys, path.Join(dir, "f"))
	write(t, f, "text", 0)
	p := make([]byte, 2)
	_, readErr := f.ReadAt(p, -1)
	for op, err := range map[string]error{
		"ReadAt":             readErr,
		"ReadVector":         f.ReadVector([][]byte{p}, -1, true),
		"ReadVector at once": f.ReadVector([][]byte{p}, -1, false),
		"WriteAt":            f.WriteAt([][]byte{p}, -1),
		"Truncate":           f.Truncate(-1),
		"Allocate offset":    f.Allocate(-1, 4),
		"Allocate length":    f.Allocate(0, -4),
		"Allocate nothing":   f.Allocate(-1, 0),
		"Allocate overflow":  f.Allocate(1<<62, 1<<62),
		"PunchHole offset":   f.PunchHole(-1, 4),
		"PunchHole length":   f.PunchHole(0, -4),
		"PunchHole overflow": f.PunchHole(1<<62, 1<<62),
	} {
		if err == nil {
			t.Errorf("%s: no error", op)
		}
	}
	holds(t, f, "text")
}

func testRemovedFile(t *testing.T, fsys vfs.FS, dir string) {
	name := path.Join(dir, "f")
	f := create(t, fsys, name)
	write(t, f, "old", 0)
	must(t, fsys.Remove(name))
	write(t, create(t, fsys, name), "newer", 0)
	must(t, fsys.SyncDir(dir))
	write(t, f, "OLD", 0)
	must(t, f.Sync())
	holds(t, f, "OLD")
}

func testClosedFile(t *testing.T, fsys vfs.FS, dir string) {
	f := create(t, fsys, path.Join(dir, "f"))
	write(t, f, "text", 0)
	must(t, f.Close())
	p := make([]byte, 2)
	_, readErr := f.ReadAt(p, 0)
	_, sizeErr := f.Size()
	for op, err := range map[string]error{
		"ReadAt":    readErr,
		"WriteAt":   f.WriteAt([][]byte{p}, 0),
		"Truncate":  f.Truncate(1),
		"Allocate":  f.Allocate(0, 100),
		"PunchHole": f.PunchHole(0, 2),
		"Sync":      f.Sync(),
		"DropCache": f.DropCache(),
		"Size":      sizeErr,
		"Close":     f.Close(),
	} {
		if err == nil {
			t.Errorf("%s of a closed file: no error", op)
		}
	}
}

func testConcurrency(t *testing.T, fsys vfs.FS, dir string) {
	const writers, size = 4, 8192
	f := create(t, fsys, path.Join(dir, "f"))
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			data := bytes.Repeat([]byte{'a' + byte(w)}, size)
			got := make([]byte, size)
			for range 20 {
				off := int64(w * size)
				if err := f.WriteAt([][]byte{data[:1000], data[1000:]}, off); err != nil {
					t.Error(err)
				}
				if err := f.Allocate(0, size); err != nil {
					t.Error(err)
				}
				if _, err := f.ReadAt(got, off); err != nil || !bytes.Equal(got, data) {
					t.Errorf("writer %d reads other data back, %v", w, err)
				}
			}
			if err := f.Sync(); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	holds(t, f, strings.Repeat("a", size)+strings.Repeat("b", size)+strings.Repeat("c", size)+strings.Repeat("d", size))
}

func testLock(t *testing.T, fsys vfs.FS, dir string) {
	name := path.Join(dir, "lock")
	first, err := fsys.Lock(name, "the first holder, pid 12345")
	must(t, err)
	_, err = fsys.Lock(name, "me")
	want(t, err, vfs.ErrLocked, name)
	want(t, err, vfs.ErrLocked, "the first holder, pid 12345")
	must(t, first.Close())

	// A shorter name leaves nothing of the longer one.
	second, err := fsys.Lock(name, "second")
	must(t, err)
	_, err = fsys.Lock(name, "me")
	want(t, err, vfs.ErrLocked, "by second")
	if strings.Contains(err.Error(), "first") || strings.Contains(err.Error(), "\n") {
		t.Fatalf("error text %q", err)
	}
	f, err := fsys.OpenReadOnly(name)
	must(t, err)
	holds(t, f, "second\n")
	must(t, f.Close())
	must(t, second.Close())

	// One who must change nothing takes the same lock.
	third, err := fsys.LockUnchanged(name)
	must(t, err)
	_, err = fsys.Lock(name, "me")
	want(t, err, vfs.ErrLocked, name)
	_, err = fsys.LockUnchanged(name)
	want(t, err, vfs.ErrLocked, name)
	must(t, third.Close())
	f, err = fsys.OpenReadOnly(name)
	must(t, err)
	holds(t, f, "second\n")
	must(t, f.Close())
	_, err = fsys.LockUnchanged(path.Join(dir, "no lock"))
	want(t, err, fs.ErrNotExist, "no lock")
}
