package vfs

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func newOSFile(t *testing.T) *osFile {
	t.Helper()
	f, err := OS().Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f.(*osFile)
}

// A write may end short at any byte; what is described next goes on exactly there.
func TestUnwrittenResumesAtAnyByte(t *testing.T) {
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 0))
	for range 200 {
		var bufs [][]byte
		for range rnd.IntN(40) {
			b := make([]byte, rnd.IntN(20))
			for i := range b {
				b[i] = byte(rnd.Uint32())
			}
			bufs = append(bufs, b)
		}
		want := bytes.Join(bufs, nil)
		var got []byte
		iov := make([]unix.Iovec, 7)
		for rest := (vector{bufs: bufs}); ; {
			most := 1 + rnd.IntN(30)
			n, length := rest.describe(iov, most)
			if n == 0 {
				break
			}
			if length > most {
				t.Fatalf("seed %d: %d bytes are described where at most %d were asked for", seed, length, most)
			}
			var offered []byte
			for _, v := range iov[:n] {
				offered = append(offered, unsafe.Slice(v.Base, int(v.Len))...)
			}
			if length != len(offered) {
				t.Fatalf("seed %d: %d bytes are described as %d", seed, len(offered), length)
			}
			written := 1 + rnd.IntN(len(offered))
			got = append(got, offered[:written]...)
			rest.advance(written)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("seed %d: wrote %d bytes %x, want %d bytes %x", seed, len(got), got, len(want), want)
		}
	}
}

// The kernel stops a write at the file size limit: it writes short first, and
// fails when asked for the rest.
func TestShortWriteGoesOnToTheCause(t *testing.T) {
	const limit = 10_000
	if name := os.Getenv("VFS_TEST_LIMITED_FILE"); name != "" {
		rlimit := unix.Rlimit{Cur: limit, Max: limit}
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &rlimit); err != nil {
			t.Fatal(err)
		}
		f, err := OS().Create(name)
		if err != nil {
			t.Fatal(err)
		}
		page := bytes.Repeat([]byte("x"), 4096)
		if err := f.WriteAt([][]byte{page, page, page, page}, 0); !errors.Is(err, syscall.EFBIG) {
			t.Fatalf("got %v, want EFBIG", err)
		}
		return
	}
	name := filepath.Join(t.TempDir(), "limited")
	child := exec.Command(os.Args[0], "-test.run=^TestShortWriteGoesOnToTheCause$")
	child.Env = append(os.Environ(), "VFS_TEST_LIMITED_FILE="+name)
	if out, err := child.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	got, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != limit || strings.Trim(string(got), "x") != "" {
		t.Fatalf("file holds %d bytes, want the %d before the limit", len(got), limit)
	}
}

func TestFullDiskIsENOSPC(t *testing.T) {
	f, err := OS().Open("/dev/full")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	err = f.WriteAt([][]byte{[]byte("x")}, 0)
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "/dev/full") {
		t.Fatalf("got %v, want ENOSPC naming the file", err)
	}
}

// procfs knows no RWF_NOWAIT, like some network file systems.
func TestTryReadRemembersThatItCannot(t *testing.T) {
	f, err := OS().OpenReadOnly("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for range 2 {
		if err := f.ReadVector([][]byte{make([]byte, 4)}, 0, false); !errors.Is(err, ErrWouldBlock) {
			t.Fatalf("got %v; want ErrWouldBlock", err)
		}
		if !f.(*osFile).noNowait.Load() {
			t.Fatal("asks the kernel again")
		}
	}
}

// Dirty pages are in memory for certain.
func TestTryReadFindsWhatWasJustWritten(t *testing.T) {
	f := newOSFile(t)
	data := bytes.Repeat([]byte("varve"), 1000)
	if err := f.WriteAt([][]byte{data}, 0); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(data))
	err := f.ReadVector([][]byte{got[:100], nil, got[100:]}, 0, false)
	if f.noNowait.Load() {
		if !errors.Is(err, ErrWouldBlock) {
			t.Fatalf("got %v, want ErrWouldBlock on a file system without RWF_NOWAIT", err)
		}
		return
	}
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("ReadVector: %v", err)
	}
}

func TestGrowNeverShrinks(t *testing.T) {
	f := newOSFile(t)
	for _, step := range []struct{ grow, want int64 }{{5000, 5000}, {10, 5000}, {5001, 5001}} {
		if err := f.grow(step.grow); err != nil {
			t.Fatal(err)
		}
		if size, err := f.Size(); size != step.want || err != nil {
			t.Fatalf("size %d, %v after grow(%d), want %d", size, err, step.grow, step.want)
		}
	}
}

func TestWriteZerosKeepsTheSize(t *testing.T) {
	f := newOSFile(t)
	want := bytes.Repeat([]byte("x"), 200_000)
	if err := f.WriteAt([][]byte{want}, 0); err != nil {
		t.Fatal(err)
	}
	for _, r := range []struct{ off, length int64 }{{10, 20}, {1000, 150_000}, {199_990, 1 << 40}, {1 << 30, 5}} {
		if err := f.writeZeros(r.off, r.length); err != nil {
			t.Fatal(err)
		}
	}
	clear(want[10:30])
	clear(want[1000:151_000])
	clear(want[199_990:])
	got := make([]byte, len(want)+1)
	if n, _ := f.ReadAt(got, 0); !bytes.Equal(got[:n], want) {
		t.Fatalf("%d bytes, not as expected", n)
	}
}

func TestHolderTextIsReplacedWhole(t *testing.T) {
	name := filepath.Join(t.TempDir(), "lock")
	// A holder that was killed between writing its line and cutting the rest off.
	if err := os.WriteFile(name, []byte("new\nthe rest of an old one\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if got := readHolder(f); got != "new" {
		t.Fatalf("holder read as %q", got)
	}
}

// What is written to a disk in one call lands as it is, wherever the pieces end in which the kernel gets it.
func TestDisksAreWrittenInPieces(t *testing.T) {
	name := filepath.Join(t.TempDir(), "disk")
	want := make([]byte, 4*diskPiece)
	if err := os.WriteFile(name, want, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := OS().OpenDisk(name, true)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 100 {
		var bufs [][]byte
		off := rnd.IntN(2 * diskPiece)
		for end, n := off, 1+rnd.IntN(4); n > 0; n-- {
			b := make([]byte, rnd.IntN(diskPiece/2))
			for i := range b {
				b[i] = byte(rnd.Uint32())
			}
			bufs = append(bufs, b)
			end += copy(want[end:], b)
		}
		if err := f.WriteAt(bufs, int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("the disk is not what was written to it: %v", err)
	}
}
