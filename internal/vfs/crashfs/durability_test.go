package crashfs_test

import (
	"bytes"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"syscall"
	"testing"

	"pgregory.net/rapid"

	"varve/internal/vfs"
	"varve/internal/vfs/crashfs"
)

func must(t rapid.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t rapid.TB, f vfs.File, text string, off int64) {
	t.Helper()
	must(t, f.WriteAt([][]byte{[]byte(text)}, off))
}

func create(t rapid.TB, fsys vfs.FS, name, text string) vfs.File {
	t.Helper()
	f, err := fsys.Create(name)
	must(t, err)
	if text != "" {
		write(t, f, text, 0)
	}
	return f
}

// durable makes a file that is wholly on disk.
func durable(t rapid.TB, fsys vfs.FS, name, text string) vfs.File {
	t.Helper()
	f := create(t, fsys, name, text)
	must(t, f.Sync())
	must(t, fsys.SyncDir("/"))
	return f
}

// content is what a file holds, "absent" if there is none.
func content(t rapid.TB, fsys vfs.FS, name string) string {
	t.Helper()
	f, err := fsys.OpenReadOnly(name)
	if errors.Is(err, fs.ErrNotExist) {
		return "absent"
	}
	must(t, err)
	defer func() { must(t, f.Close()) }()
	return fileContent(t, f)
}

func fileContent(t rapid.TB, f vfs.File) string {
	t.Helper()
	size, err := f.Size()
	must(t, err)
	p := make([]byte, size)
	if size > 0 {
		_, err = f.ReadAt(p, 0)
		must(t, err)
	}
	return string(p)
}

// wantImage fails unless the file is found with text after a crash.
func wantImage(t rapid.TB, fsys *crashfs.FS, p crashfs.Policy, name, text string) {
	t.Helper()
	if got := content(t, fsys.CrashImage(p), name); got != text {
		t.Fatalf("after %v %s is %.60q, want %.60q (pending: %v)", p, name, got, text, fsys.Pending())
	}
}

// wantImages does so for the image of each policy.
func wantImages(t rapid.TB, fsys *crashfs.FS, text, name string, policies ...crashfs.Policy) {
	t.Helper()
	for _, p := range policies {
		wantImage(t, fsys, p, name, text)
	}
}

func allPolicies(fsys *crashfs.FS) []crashfs.Policy {
	all := append(crashfs.Policies(len(fsys.Pending())), crashfs.ProcessCrash)
	for seed := range uint64(20) {
		all = append(all, crashfs.Random(seed))
	}
	return all
}

func TestSyncedContentIsInEveryImage(t *testing.T) {
	fsys := crashfs.New()
	durable(t, fsys, "f", "synced")
	create(t, fsys, "other", "unsynced")
	wantImages(t, fsys, "synced", "f", allPolicies(fsys)...)
}

func TestUnsyncedContentMayBeLost(t *testing.T) {
	fsys := crashfs.New()
	f := durable(t, fsys, "f", "old")
	write(t, f, "new", 0)
	write(t, f, "longer", 3)
	wantImages(t, fsys, "newlonger", "f", crashfs.KeepAll, crashfs.ProcessCrash)
	wantImage(t, fsys, crashfs.DropAll, "f", "old")
	wantImages(t, fsys, "new", "f", crashfs.KeepOnly(0), crashfs.DropOnly(1))
	wantImages(t, fsys, "oldlonger", "f", crashfs.KeepOnly(1), crashfs.DropOnly(0))
	must(t, f.Sync())
	wantImages(t, fsys, "newlonger", "f", allPolicies(fsys)...)
}

func TestSyncCoversOnlyItsFile(t *testing.T) {
	fsys := crashfs.New()
	a, b := durable(t, fsys, "a", "a"), durable(t, fsys, "b", "b")
	write(t, a, "A", 0)
	write(t, b, "B", 0)
	must(t, a.Sync())
	wantImage(t, fsys, crashfs.DropAll, "a", "A")
	wantImage(t, fsys, crashfs.DropAll, "b", "b")
}

func TestSyncThroughAnotherHandle(t *testing.T) {
	fsys := crashfs.New()
	f := durable(t, fsys, "f", "old")
	write(t, f, "new", 0)
	must(t, f.Close())
	g, err := fsys.Open("f")
	must(t, err)
	must(t, g.Sync())
	wantImage(t, fsys, crashfs.DropAll, "f", "new")
}

func TestSyncedFileWithoutSyncedNameMayVanish(t *testing.T) {
	fsys := crashfs.New()
	f := create(t, fsys, "f", "text")
	must(t, f.Sync())
	wantImage(t, fsys, crashfs.DropAll, "f", "absent")
	wantImages(t, fsys, "text", "f", crashfs.KeepAll, crashfs.Torn, crashfs.KeepOnly(0))
	must(t, fsys.SyncDir("/"))
	wantImages(t, fsys, "text", "f", allPolicies(fsys)...)
}

func TestSyncedNameWithoutSyncedContentIsEmpty(t *testing.T) {
	fsys := crashfs.New()
	create(t, fsys, "f", "text")
	must(t, fsys.SyncDir("/"))
	wantImage(t, fsys, crashfs.DropAll, "f", "")
}

func TestNamesInAnUnsyncedDirectoryVanishWithIt(t *testing.T) {
	fsys := crashfs.New()
	must(t, fsys.Mkdir("/d"))
	must(t, create(t, fsys, "/d/f", "text").Sync())
	must(t, fsys.SyncDir("/d"))
	wantImage(t, fsys, crashfs.DropAll, "/d/f", "absent")
	must(t, fsys.SyncDir("/"))
	wantImage(t, fsys, crashfs.DropAll, "/d/f", "text")
}

func TestRemovalMayBeUndone(t *testing.T) {
	fsys := crashfs.New()
	f := durable(t, fsys, "f", "text")
	must(t, f.Close())
	must(t, fsys.Remove("f"))
	wantImage(t, fsys, crashfs.DropAll, "f", "text")
	wantImages(t, fsys, "absent", "f", crashfs.KeepAll, crashfs.ProcessCrash)
	must(t, fsys.SyncDir("/"))
	wantImages(t, fsys, "absent", "f", allPolicies(fsys)...)
}

// A file that took a removed one's name never costs both.
func TestNewFileUnderARemovedName(t *testing.T) {
	fsys := crashfs.New()
	durable(t, fsys, "f", "old")
	must(t, fsys.Remove("f"))
	must(t, create(t, fsys, "f", "new").Sync())
	wantImages(t, fsys, "old", "f", crashfs.DropAll, crashfs.KeepOnly(1))
	wantImages(t, fsys, "absent", "f", crashfs.KeepOnly(0))
	wantImage(t, fsys, crashfs.KeepAll, "f", "new")
}

func TestRenameIsWhollyThereOrNot(t *testing.T) {
	fsys := crashfs.New()
	durable(t, fsys, "f", "old")
	must(t, create(t, fsys, "f.new", "new").Sync())
	must(t, fsys.SyncDir("/"))
	must(t, fsys.Rename("f.new", "f"))
	for _, p := range allPolicies(fsys) {
		image := fsys.CrashImage(p)
		f, tmp := content(t, image, "f"), content(t, image, "f.new")
		if before, after := f == "old" && tmp == "new", f == "new" && tmp == "absent"; !before && !after {
			t.Fatalf("after %v f is %q and f.new is %q", p, f, tmp)
		}
	}
	wantImage(t, fsys, crashfs.DropAll, "f", "old")
	wantImage(t, fsys, crashfs.KeepAll, "f", "new")
	must(t, fsys.SyncDir("/"))
	wantImages(t, fsys, "new", "f", allPolicies(fsys)...)
	wantImages(t, fsys, "absent", "f.new", allPolicies(fsys)...)
}

// The classic mistake: the rename reaches the disk before the content.
func TestRenameOfAnUnsyncedFileMayShowItEmpty(t *testing.T) {
	fsys := crashfs.New()
	durable(t, fsys, "f", "old")
	create(t, fsys, "f.new", "new")
	must(t, fsys.Rename("f.new", "f"))
	must(t, fsys.SyncDir("/"))
	wantImage(t, fsys, crashfs.DropAll, "f", "")
}

// Whatever subset of renames survives, a file has one name or none.
func TestChainOfRenamesNeverMakesTwoNames(t *testing.T) {
	fsys := crashfs.New()
	durable(t, fsys, "a", "text")
	must(t, fsys.Rename("a", "b"))
	must(t, fsys.Rename("b", "c"))
	must(t, fsys.Rename("c", "d"))
	for _, p := range allPolicies(fsys) {
		names, err := fsys.CrashImage(p).List("/")
		must(t, err)
		if len(names) != 1 {
			t.Fatalf("after %v: %q", p, names)
		}
	}
	wantImage(t, fsys, crashfs.KeepOnly(0), "b", "text")
	wantImage(t, fsys, crashfs.KeepOnly(1), "a", "text")
	wantImage(t, fsys, crashfs.DropOnly(2), "c", "text")
}

func TestChangesOfARemovedFileAreMoot(t *testing.T) {
	fsys := crashfs.New()
	f := create(t, fsys, "f", "text")
	must(t, fsys.Remove("f"))
	must(t, fsys.SyncDir("/"))
	write(t, f, "more", 0)
	if ops := fsys.Pending(); len(ops) != 0 {
		t.Fatalf("pending: %v", ops)
	}
	for _, p := range allPolicies(fsys) {
		if used := fsys.CrashImage(p).UsedBytes(); used != 0 {
			t.Fatalf("%v keeps %d bytes of it", p, used)
		}
	}
}

func TestSizeChangesArePending(t *testing.T) {
	for _, c := range []struct {
		op     string
		change func(f vfs.File) error
		want   string
	}{
		{"truncate", func(f vfs.File) error { return f.Truncate(2) }, "ol"},
		{"grow", func(f vfs.File) error { return f.Truncate(5) }, "old\x00\x00"},
		{"allocate", func(f vfs.File) error { return f.Allocate(2, 3) }, "old\x00\x00"},
		{"punch hole", func(f vfs.File) error { return f.PunchHole(1, 1) }, "o\x00d"},
	} {
		t.Run(c.op, func(t *testing.T) {
			fsys := crashfs.New()
			f := durable(t, fsys, "f", "old")
			must(t, c.change(f))
			wantImages(t, fsys, "old", "f", crashfs.DropAll, crashfs.DropOnly(0), crashfs.KeepOnly(1))
			wantImages(t, fsys, c.want, "f", crashfs.KeepAll, crashfs.Torn, crashfs.KeepOnly(0), crashfs.DropOnly(1))
			must(t, f.Sync())
			wantImages(t, fsys, c.want, "f", allPolicies(fsys)...)
		})
	}
}

func TestTornKeepsTheFirstHalfOfTheLastWrite(t *testing.T) {
	fsys := crashfs.New()
	f := durable(t, fsys, "f", strings.Repeat(".", 4000))
	write(t, f, strings.Repeat("1", 1000), 0)
	write(t, f, strings.Repeat("2", 2500), 100) // half of it ends in the sector that ends at 1536
	must(t, f.Truncate(1))
	want := strings.Repeat("1", 100) + strings.Repeat("2", 1024-100) + strings.Repeat(".", 4000-1024)
	wantImage(t, fsys, crashfs.Torn, "f", want)
}

// Every sector of a randomly torn write is old or new, and all mixtures occur.
func TestRandomTearsAtSectors(t *testing.T) {
	const sectors = 8
	fsys := crashfs.New()
	f := durable(t, fsys, "f", strings.Repeat("o", 3*crashfs.SectorSize))
	write(t, f, strings.Repeat("n", sectors*crashfs.SectorSize), 0)
	seen := make(map[string]bool)
	for seed := range uint64(400) {
		image := fsys.CrashImage(crashfs.Random(seed))
		got := content(t, image, "f")
		var pattern strings.Builder
		for sector := range slices.Chunk([]byte(got), crashfs.SectorSize) {
			if !bytes.Equal(sector, bytes.Repeat(sector[:1], crashfs.SectorSize)) {
				t.Fatalf("seed %d: a sector is mixed", seed)
			}
			pattern.WriteByte(sector[0])
		}
		if rest := strings.TrimLeft(pattern.String()[3:], "n\x00"); rest != "" {
			t.Fatalf("seed %d: beyond the old end %q", seed, rest)
		}
		seen[pattern.String()] = true
		if again := content(t, fsys.CrashImage(crashfs.Random(seed)), "f"); again != got {
			t.Fatalf("seed %d is not repeatable", seed)
		}
	}
	if !seen["ooo"] || !seen["nnnnnnnn"] || len(seen) < 20 {
		t.Fatalf("%d kinds of images, old whole: %v, new whole: %v", len(seen), seen["ooo"], seen["nnnnnnnn"])
	}
}

// A process that dies loses nothing, and makes nothing durable.
func TestProcessCrashKeepsPendingPending(t *testing.T) {
	fsys := crashfs.New()
	f := durable(t, fsys, "f", "old")
	write(t, f, "new", 0)
	after := fsys.CrashImage(crashfs.ProcessCrash)
	if got := content(t, after, "f"); got != "new" {
		t.Fatalf("f is %q after the end of the process", got)
	}
	wantImage(t, after, crashfs.DropAll, "f", "old")
	g, err := after.Open("f")
	must(t, err)
	must(t, g.Sync())
	wantImage(t, after, crashfs.DropAll, "f", "new")
}

func TestImagesAreIndependent(t *testing.T) {
	fsys := crashfs.New()
	f := durable(t, fsys, "f", "one")
	for range 3 {
		write(t, f, "two", 0)
	}
	forks := []*crashfs.FS{fsys.CrashImage(crashfs.ProcessCrash), fsys.CrashImage(crashfs.ProcessCrash)}
	for i, text := range []string{"aaaa", "bbbb"} {
		g, err := forks[i].Open("f")
		must(t, err)
		write(t, g, text, 0)
	}
	write(t, f, "three", 0)
	create(t, fsys, "g", "")
	for i, want := range []string{"aaaa", "bbbb"} {
		if got := content(t, forks[i], "f"); got != want {
			t.Errorf("fork %d holds %q, want %q", i, got, want)
		}
		wantImage(t, forks[i], crashfs.DropOnly(3), "f", "two")
		wantImage(t, forks[i], crashfs.KeepOnly(3), "f", want)
		wantImage(t, forks[i], crashfs.KeepAll, "g", "absent")
	}
	if got := fileContent(t, f); got != "three" {
		t.Errorf("the original holds %q", got)
	}
	wantImage(t, fsys, crashfs.KeepOnly(3), "f", "three")
}

func TestImagesHaveNoLocks(t *testing.T) {
	fsys := crashfs.New()
	_, err := fsys.Lock("lock", "me")
	must(t, err)
	for _, p := range allPolicies(fsys) {
		image := fsys.CrashImage(p)
		l, err := image.Lock("lock", "the next")
		if err != nil {
			t.Fatalf("after %v: %v", p, err)
		}
		must(t, l.Close())
	}
	if _, err = fsys.Lock("lock", "another"); !errors.Is(err, vfs.ErrLocked) {
		t.Fatalf("the original lost its lock: %v", err)
	}
}

// The removal may be undone by a power cut, but the space is free until then.
func TestRemovedOpenFileTakesNoSpaceAfterTheProcess(t *testing.T) {
	fsys := crashfs.New()
	durable(t, fsys, "f", "text")
	must(t, fsys.Remove("f"))
	if fsys.UsedBytes() == 0 {
		t.Fatal("the space of an open file is free")
	}
	after := fsys.CrashImage(crashfs.ProcessCrash)
	if used := after.UsedBytes(); used != 0 {
		t.Fatalf("%d bytes in use after the end of the process", used)
	}
	wantImage(t, after, crashfs.DropAll, "f", "text")
	if after.CrashImage(crashfs.DropAll).UsedBytes() == 0 {
		t.Fatal("the file is back and takes no space")
	}
}

func failSync(fsys *crashfs.FS, kind crashfs.Kind) (remove func()) {
	return fsys.Inject(crashfs.Fault{
		Match: func(op crashfs.Op) bool { return op.Kind == kind },
		Err:   syscall.EIO,
		Times: 1,
	})
}

// After a failed sync the kernel shows what the disk does not have, and believes it has.
func TestFailedSyncLosesWrites(t *testing.T) {
	fsys := crashfs.New()
	f := durable(t, fsys, "f", "old old old")
	write(t, f, "NEW", 0)
	failSync(fsys, crashfs.Sync)
	if err := f.Sync(); !errors.Is(err, syscall.EIO) {
		t.Fatalf("sync: %v", err)
	}
	if got := fileContent(t, f); got != "NEW old old" {
		t.Fatalf("cache shows %q", got)
	}
	must(t, f.Sync()) // "succeeds"
	wantImages(t, fsys, "old old old", "f", crashfs.KeepAll, crashfs.DropAll)

	write(t, f, "NEW", 4)
	wantImage(t, fsys, crashfs.KeepAll, "f", "old NEW old")
	must(t, f.Sync())
	write(t, f, "NEW", 8)
	restarted := fsys.CrashImage(crashfs.ProcessCrash)
	if got := content(t, restarted, "f"); got != "NEW NEW NEW" {
		t.Fatalf("after a restart of the process the cache shows %q", got)
	}
	wantImage(t, restarted, crashfs.KeepAll, "f", "old NEW NEW")

	must(t, f.DropCache())
	if got := fileContent(t, f); got != "old NEW NEW" {
		t.Fatalf("disk and what is still to be written show %q", got)
	}
	wantImage(t, fsys, crashfs.DropAll, "f", "old NEW old")
	must(t, f.Sync())
	wantImage(t, fsys, crashfs.DropAll, "f", "old NEW NEW")
}

func TestFailedSyncDirLosesNames(t *testing.T) {
	fsys := crashfs.New()
	must(t, create(t, fsys, "f", "text").Sync())
	failSync(fsys, crashfs.SyncDir)
	if err := fsys.SyncDir("/"); !errors.Is(err, syscall.EIO) {
		t.Fatalf("sync directory: %v", err)
	}
	must(t, fsys.SyncDir("/"))
	if got := content(t, fsys, "f"); got != "text" {
		t.Fatalf("cache shows %q", got)
	}
	wantImage(t, fsys, crashfs.KeepAll, "f", "absent")
}
