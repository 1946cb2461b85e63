package crashfs_test

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"varve/internal/vfs"
	"varve/internal/vfs/crashfs"
)

// steps makes each kind of change once, on files that exist.
func steps(fsys *crashfs.FS) error {
	var f vfs.File
	for _, step := range []func() error{
		func() (err error) { f, err = fsys.Create("/new"); return err },
		func() error { return f.WriteAt([][]byte{[]byte("text")}, 0) },
		func() error { return f.Allocate(0, 8192) },
		func() error { return f.PunchHole(0, 4096) },
		func() error { return f.Truncate(5000) },
		func() error { return f.Sync() },
		func() error { return fsys.Mkdir("/dir") },
		func() error { return fsys.Rename("/new", "/newer") },
		func() error { return fsys.SyncDir("/") },
		func() error { return fsys.Remove("/newer") },
		func() error { return f.Close() },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

const numberedSteps = 10 // of steps; Close is none

func TestOpsAreNumbered(t *testing.T) {
	fsys := crashfs.New()
	var seen []string
	fsys.OnOp(func(n int, op crashfs.Op, err error) {
		seen = append(seen, fmt.Sprintf("%d %v %v", n, op, err))
	})
	must(t, steps(fsys))
	if _, err := fsys.Create("/dir"); err == nil {
		t.Fatal("created over a directory")
	}
	_, err := fsys.List("/")
	must(t, err)
	want := []string{
		"1 create /new <nil>",
		"2 write /new [0,+4) <nil>",
		"3 allocate /new [0,+8192) <nil>",
		"4 punch hole /new [0,+4096) <nil>",
		"5 truncate /new at 5000 <nil>",
		"6 sync /new <nil>",
		"7 mkdir /dir <nil>",
		"8 rename /new to /newer <nil>",
		"9 sync directory / <nil>",
		"10 remove /newer <nil>",
		"11 create /dir create /dir: file exists",
	}
	if !slices.Equal(seen, want) {
		t.Fatalf("saw\n%s\nwant\n%s", strings.Join(seen, "\n"), strings.Join(want, "\n"))
	}
	if fsys.Ops() != len(want) {
		t.Fatalf("counted %d", fsys.Ops())
	}
}

// A crash at the nth operation leaves what the hook sees after the one before.
func TestCrashAtEveryOp(t *testing.T) {
	states := []string{describe(t, crashfs.New())}
	live := crashfs.New()
	live.OnOp(func(int, crashfs.Op, error) {
		states = append(states, describe(t, live.CrashImage(crashfs.ProcessCrash)))
	})
	must(t, steps(live))
	for n := 1; ; n++ {
		fsys := crashfs.New()
		fsys.CrashAt(n)
		err := steps(fsys)
		if err == nil {
			if n != numberedSteps+1 || fsys.Crashed() {
				t.Fatalf("no crash at operation %d", n)
			}
			return
		}
		if !errors.Is(err, crashfs.ErrCrashed) || !fsys.Crashed() {
			t.Fatalf("operation %d: %v", n, err)
		}
		if got := describe(t, fsys.CrashImage(crashfs.ProcessCrash)); got != states[n-1] {
			t.Fatalf("crash at %d leaves %s, want %s", n, got, states[n-1])
		}
	}
}

// describe is the content of the root directory and what is pending.
func describe(t *testing.T, fsys *crashfs.FS) string {
	names, err := fsys.List("/")
	must(t, err)
	var all strings.Builder
	for _, name := range names {
		info, err := fsys.Stat(name)
		must(t, err)
		fmt.Fprintf(&all, "%s %v %d; ", name, info.IsDir(), info.Size())
	}
	return fmt.Sprint(all.String(), fsys.Pending())
}

func TestEverythingFailsAfterACrash(t *testing.T) {
	fsys := crashfs.New()
	f := durable(t, fsys, "f", "text")
	fsys.CrashAt(5)
	fsys.CrashAt(0)
	write(t, f, "TEXT", 0)
	fsys.Crash()
	ops := fsys.Ops()
	p := make([]byte, 4)
	_, readErr := f.ReadAt(p, 0)
	tryErr := f.ReadVector([][]byte{p}, 0, false)
	_, sizeErr := f.Size()
	_, createErr := fsys.Create("g")
	_, openErr := fsys.Open("f")
	_, openReadOnlyErr := fsys.OpenReadOnly("f")
	_, listErr := fsys.List("/")
	_, statErr := fsys.Stat("f")
	_, lockErr := fsys.Lock("lock", "me")
	for op, err := range map[string]error{
		"read": readErr, "try read": tryErr, "size": sizeErr, "create": createErr, "open": openErr,
		"open read-only": openReadOnlyErr, "list": listErr, "stat": statErr, "lock": lockErr,
		"write": f.WriteAt([][]byte{p}, 0), "truncate": f.Truncate(0), "allocate": f.Allocate(0, 1),
		"punch": f.PunchHole(0, 1), "sync": f.Sync(), "drop": f.DropCache(), "mkdir": fsys.Mkdir("d"),
		"remove": fsys.Remove("f"), "rename": fsys.Rename("f", "g"), "sync directory": fsys.SyncDir("/"),
	} {
		if !errors.Is(err, crashfs.ErrCrashed) {
			t.Errorf("%s: %v", op, err)
		}
	}
	must(t, f.Close())
	if fsys.Ops() != ops {
		t.Errorf("operations after the crash are counted")
	}
	wantImage(t, fsys, crashfs.DropAll, "f", "text")
	wantImage(t, fsys, crashfs.KeepAll, "f", "TEXT")
}

func TestFaultsHitWhatTheyMatch(t *testing.T) {
	fsys := crashfs.New()
	f, g := durable(t, fsys, "f", "text"), durable(t, fsys, "g", "text")
	remove := fsys.Inject(crashfs.Fault{
		Match: func(op crashfs.Op) bool { return op.Kind == crashfs.Read && op.Path == "/f" && op.Offset == 1 },
		Err:   syscall.EIO,
		Skip:  1,
		Times: 2,
	})
	p := make([]byte, 2)
	for i, wantErr := range []error{nil, syscall.EIO, syscall.EIO, nil} {
		_, err := f.ReadAt(p, 1)
		if !errors.Is(err, wantErr) || (err == nil) != (wantErr == nil) {
			t.Fatalf("read %d: %v, want %v", i, err, wantErr)
		}
		_, err = f.ReadAt(p, 0)
		must(t, err)
		_, err = g.ReadAt(p, 1)
		must(t, err)
	}
	remove()

	remove = fsys.Inject(crashfs.Fault{Match: func(crashfs.Op) bool { return true }, Err: syscall.EIO})
	for range 3 {
		if err := fsys.Mkdir("d"); !errors.Is(err, syscall.EIO) || !strings.Contains(err.Error(), "/d") {
			t.Fatalf("mkdir: %v", err)
		}
	}
	remove()
	must(t, fsys.Mkdir("d"))
}

func TestFailedWriteStoresItsPrefix(t *testing.T) {
	for _, c := range []struct {
		prefix int64
		want   string
	}{{0, "old"}, {2, "ned"}, {100, "newer"}} {
		fsys := crashfs.New()
		f := durable(t, fsys, "f", "old")
		fsys.Inject(crashfs.Fault{
			Match:  func(op crashfs.Op) bool { return op.Kind == crashfs.Write },
			Err:    syscall.ENOSPC,
			Prefix: c.prefix,
		})
		if err := f.WriteAt([][]byte{[]byte("n"), []byte("ewer")}, 0); !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("write: %v", err)
		}
		if got := fileContent(t, f); got != c.want {
			t.Errorf("with a prefix of %d bytes: %q, want %q", c.prefix, got, c.want)
		}
		wantImage(t, fsys, crashfs.DropAll, "f", "old")
		for _, op := range fsys.Pending() {
			if want := min(c.prefix, 5); op.Length != want {
				t.Errorf("%v is pending, want %d bytes of it", op, want)
			}
		}
	}
}

func TestCapacity(t *testing.T) {
	const page = 4096
	fsys := crashfs.New()
	fsys.SetCapacity(4*page + 100) // four pages
	f := create(t, fsys, "f", "")
	data := strings.Repeat("x", 6*page)
	used := func(pages int64) {
		t.Helper()
		if got := fsys.UsedBytes(); got != pages*page {
			t.Fatalf("%d bytes in use, want %d pages", got, pages)
		}
	}

	// The write stops where the space does, in the fourth page it touches.
	if err := f.WriteAt([][]byte{[]byte(data)}, 10); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("write: %v", err)
	}
	used(4)
	if size, err := f.Size(); size != 4*page || err != nil {
		t.Fatalf("size %d, %v", size, err)
	}
	write(t, f, data[:4*page], 0) // overwriting needs nothing

	must(t, f.PunchHole(page, 2*page-1)) // one page and a part
	used(3)
	must(t, f.Truncate(3*page)) // a page less
	used(2)
	must(t, f.Truncate(10*page)) // a hole costs nothing
	used(2)
	if err := f.Allocate(0, 5*page); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("allocate: %v", err)
	}
	used(2)
	must(t, f.Allocate(0, 4*page))
	used(4)
	write(t, f, data[:4*page], 0) // promised by Allocate

	g := create(t, fsys, "g", "")
	if err := g.WriteAt([][]byte{[]byte("x")}, 0); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("write to another file: %v", err)
	}
	must(t, fsys.Remove("f"))
	used(4) // still open
	must(t, f.Close())
	used(0)
	write(t, g, data[:4*page], 0)
	must(t, g.Close())
	create(t, fsys, "h", "")
	must(t, fsys.Rename("h", "g"))
	used(0) // replaced
	g, err := fsys.Open("g")
	must(t, err)
	write(t, g, data[:4*page], 0)

	image := fsys.CrashImage(crashfs.KeepAll)
	if got := image.UsedBytes(); got != 4*page {
		t.Fatalf("image uses %d bytes", got)
	}
	if _, err := image.Create("h"); err != nil {
		t.Fatal(err)
	}
	h, err := image.Open("h")
	must(t, err)
	if err := h.WriteAt([][]byte{[]byte("x")}, 0); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the image has more space: %v", err)
	}
}

func TestColdReadsWouldBlock(t *testing.T) {
	fsys := crashfs.New()
	f := durable(t, fsys, "f", "text")
	p := make([]byte, 4)
	if err := f.ReadVector([][]byte{p}, 0, false); err != nil {
		t.Fatalf("in memory: %v", err)
	}
	fsys.SetCold(true)
	if err := f.ReadVector([][]byte{p}, 0, false); !errors.Is(err, vfs.ErrWouldBlock) {
		t.Fatalf("cold: %v", err)
	}
	if n, err := f.ReadAt(p, 0); n != 4 || err != nil {
		t.Fatalf("ReadAt: %d, %v", n, err)
	}
}

// Hooks run one at a time, each right after its operation, whoever else is busy.
func TestHookSeesTheStateOfItsOp(t *testing.T) {
	fsys := crashfs.New()
	last := 0
	fsys.OnOp(func(n int, op crashfs.Op, _ error) {
		if n != last+1 || fsys.Ops() != n {
			t.Errorf("hook of %d after %d, at %d", n, last, fsys.Ops())
		}
		last = n
		runtime.Gosched()
		if op.Kind == crashfs.Write {
			pending := fsys.CrashImage(crashfs.ProcessCrash).Pending()
			if newest := pending[len(pending)-1]; newest != op {
				t.Errorf("hook of %v sees %v", op, newest)
			}
		}
	})
	var all sync.WaitGroup
	for w := range 4 {
		all.Go(func() {
			f, err := fsys.Create(fmt.Sprint("f", w))
			if err != nil {
				t.Error(err)
				return
			}
			for i := range 200 {
				if err := f.WriteAt([][]byte{[]byte("text")}, int64(i)); err != nil {
					t.Error(err)
				}
				if _, err := f.ReadAt(make([]byte, 1), 0); err != nil && !errors.Is(err, io.EOF) {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if last != 4*201 {
		t.Fatalf("%d operations", last)
	}
}
