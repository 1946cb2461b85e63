package qcow2_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"varve/internal/block"
	"varve/internal/block/memdisk"
	"varve/internal/image/imagetest"
	"varve/internal/image/qcow2"
	"varve/internal/image/raw"
	"varve/internal/image/target"
	"varve/internal/image/transfer"
)

func openRaw(t testing.TB, path string) *raw.Device {
	t.Helper()
	d, err := raw.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func newDisk(t testing.TB, size int64) *memdisk.Disk {
	t.Helper()
	d, err := memdisk.New(size)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func write(t testing.TB, d block.Device, off int64, data string) {
	t.Helper()
	op := &block.Op{Kind: block.OpWrite, Offset: off, Length: int64(len(data)), Data: []byte(data)}
	if d.Submit(context.Background(), []*block.Op{op}); op.Err != nil {
		t.Fatal(op.Err)
	}
}

// checkFile has qemu-img check an image for errors and leaks.
func checkFile(t testing.TB, path string) {
	t.Helper()
	if out := imagetest.Run(t, "qemu-img", "check", "-f", "qcow2", path); !strings.Contains(out, "No errors were found") {
		t.Fatalf("qemu-img check: %s", out)
	}
}

func TestExportIsIdenticalAndSparse(t *testing.T) {
	defer goleak.VerifyNone(t)
	for _, size := range []int{512, 64 << 10, 1<<20 + 512, 9<<20 + 4096 + 512} {
		dir := t.TempDir()
		src, path := filepath.Join(dir, "src.raw"), filepath.Join(dir, "out.qcow2")
		content := imagetest.RandomFile(t, src, size, uint64(size))
		var done, total int64
		opts := target.Options{Progress: func(d, all int64) {
			if d < done {
				t.Errorf("progress went from %d to %d", done, d)
			}
			done, total = d, all
		}}
		if err := qcow2.Write(context.Background(), path, openRaw(t, src), opts); err != nil {
			t.Fatal(err)
		}
		if done != int64(size) || total != int64(size) {
			t.Errorf("progress ended at %d of %d, want %d", done, total, size)
		}
		checkFile(t, path)
		imagetest.Run(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", src, path)
		im := open(t, path)
		imagetest.CheckContent(t, im, content)
		extents := imagetest.CheckExtents(t, im, content)
		if ours, qemus := imagetest.Data(extents), imagetest.QemuData(t, path, "qcow2"); !slices.Equal(ours, qemus) {
			t.Errorf("data at %v, for qemu-img map at %v", ours, qemus)
		}
		for _, e := range extents {
			if !e.Zero && allZeroClusters(content[e.Offset:e.Offset+e.Length]) {
				t.Errorf("clusters of zeros at %+v are allocated", e)
			}
		}
	}
}

// allZeroClusters tells whether some cluster of p has nothing but zeros.
func allZeroClusters(p []byte) bool {
	for len(p) > 0 {
		n := min(len(p), 64<<10)
		if strings.Trim(string(p[:n]), "\x00") == "" {
			return true
		}
		p = p[n:]
	}
	return false
}

func TestExportCrossesL2Tables(t *testing.T) {
	disk := newDisk(t, 2<<30)
	for _, off := range []int64{512<<20 - 100_000, 1<<30 - 65536, 1 << 30, 1536<<20 - 1} {
		write(t, disk, off, strings.Repeat("x", 200_000))
	}
	path, copied := filepath.Join(t.TempDir(), "out.qcow2"), filepath.Join(t.TempDir(), "out.raw")
	if err := qcow2.Write(context.Background(), path, disk, target.Options{}); err != nil {
		t.Fatal(err)
	}
	if err := raw.Write(context.Background(), copied, disk, target.Options{}); err != nil {
		t.Fatal(err)
	}
	checkFile(t, path)
	imagetest.Run(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", copied, path)
}

func TestHugeSparseDiskIsExportedInNoTime(t *testing.T) {
	disk := newDisk(t, block.MaxDeviceBytes)
	places := []int64{0, 511, 5 << 30, 1<<40 + 12345, block.MaxDeviceBytes - 3}
	for _, off := range places {
		write(t, disk, off, "abc")
	}
	path := filepath.Join(t.TempDir(), "huge.qcow2")
	if err := qcow2.Write(context.Background(), path, disk, target.Options{}); err != nil {
		t.Fatal(err)
	}
	checkFile(t, path)
	if info, err := os.Stat(path); err != nil || info.Size() > 4<<20 {
		t.Errorf("the file has %d bytes (%v), want little more than 1 MiB of L1 table", info.Size(), err)
	}
	im := open(t, path)
	if im.SizeBytes() != block.MaxDeviceBytes {
		t.Fatalf("size %d", im.SizeBytes())
	}
	buf := make([]byte, 3)
	for _, off := range places {
		if err := im.ReadAt(context.Background(), buf, off); err != nil || string(buf) != "abc" {
			t.Errorf("at %d: %q, %v", off, buf, err)
		}
	}
	// And back into a device.
	count := int64(0)
	err := transfer.Read(context.Background(), im, block.Size, nil, func(runs []transfer.Run) error {
		for _, r := range runs {
			count += int64(len(r.Data))
		}
		return nil
	})
	if err != nil || count != 4*block.Size {
		t.Errorf("%d bytes of data, %v; want 4 blocks", count, err)
	}
}

func TestFailedExportLeavesNothing(t *testing.T) {
	defer goleak.VerifyNone(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "out.qcow2")
	assertEmpty := func(what string) {
		t.Helper()
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
			t.Errorf("%s left %v (%v)", what, entries, err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	cancelled := target.Options{Progress: func(done, _ int64) {
		if done >= 10<<20 {
			cancel()
		}
	}}
	if err := qcow2.Write(ctx, path, numbered(1<<30), cancelled); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	assertEmpty("cancelling")
	if err := qcow2.Write(context.Background(), path, failing{numbered(64 << 20)}, target.Options{}); !errors.Is(err, block.ErrDamaged) {
		t.Errorf("damaged source: %v", err)
	}
	assertEmpty("a damaged source")
	if err := qcow2.Write(context.Background(), "/dev/null", numbered(1<<20), target.Options{Replace: true}); !errors.Is(err, target.ErrNotFile) {
		t.Errorf("to a device: %v", err)
	}
}

func TestExistingFileIsKeptUnlessReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out.qcow2")
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := qcow2.Write(context.Background(), path, numbered(1<<20), target.Options{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("without Replace: %v", err)
	}
	if b, _ := os.ReadFile(path); string(b) != "precious" {
		t.Errorf("the file was changed to %q", b)
	}
	if err := qcow2.Write(context.Background(), path, failing{numbered(64 << 20)}, target.Options{Replace: true}); err == nil {
		t.Error("a damaged source was exported")
	}
	if b, _ := os.ReadFile(path); string(b) != "precious" {
		t.Errorf("a failed export changed the file to %q", b)
	}
	if err := qcow2.Write(context.Background(), path, numbered(1<<20), target.Options{Replace: true}); err != nil {
		t.Fatal(err)
	}
	checkFile(t, path)
}

// numbered is a device of the given size all of whose 8-byte words hold their
// own offset plus one.
type numbered int64

func (n numbered) SizeBytes() int64 { return int64(n) }

func (n numbered) ReadAt(_ context.Context, p []byte, off int64) error {
	for i := range p {
		at := off + int64(i)
		p[i] = byte((at&^7 + 1) >> (8 * (at & 7)))
	}
	return nil
}

func (n numbered) Submit(context.Context, []*block.Op) { panic("not written") }
func (n numbered) Flush(context.Context) error         { return nil }
func (n numbered) Close() error                        { return nil }

func (n numbered) Extents(_ context.Context, off, length int64, _ int) ([]block.Extent, error) {
	return []block.Extent{{Offset: off, Length: length}}, nil
}

// failing is a device with a damaged block in the middle.
type failing struct{ numbered }

func (f failing) ReadAt(ctx context.Context, p []byte, off int64) error {
	if half := f.SizeBytes() / 2; off <= half && half < off+int64(len(p)) {
		return block.ErrDamaged
	}
	return f.numbered.ReadAt(ctx, p, off)
}

// Any sequence of writes, exported and read back, is the same disk, and
// exporting what was read back gives the same file.
func TestRoundTrip(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(rt *rapid.T) {
		size := rapid.Int64Range(1, 4<<20/512).Draw(rt, "sectors") * 512
		disk := newDisk(t, size)
		model := make([]byte, size)
		for range rapid.IntRange(0, 12).Draw(rt, "writes") {
			off := rapid.Int64Range(0, size-1).Draw(rt, "offset")
			length := rapid.Int64Range(1, min(size-off, 200<<10)).Draw(rt, "length")
			fill := rapid.Byte().Draw(rt, "fill") // zero too
			data := make([]byte, length)
			for i := range data {
				data[i] = fill
			}
			write(t, disk, off, string(data))
			copy(model[off:], data)
		}
		first, second := filepath.Join(dir, "1.qcow2"), filepath.Join(dir, "2.qcow2")
		if err := qcow2.Write(context.Background(), first, disk, target.Options{Replace: true}); err != nil {
			rt.Fatal(err)
		}
		im, err := qcow2.Open(first)
		if err != nil {
			rt.Fatal(err)
		}
		defer im.Close()
		if got := imagetest.Content(t, im, 100_000); string(got) != string(model) {
			rt.Fatal("content differs")
		}
		imagetest.CheckExtents(t, im, model)
		if err := qcow2.Write(context.Background(), second, im, target.Options{Replace: true}); err != nil {
			rt.Fatal(err)
		}
		a, _ := os.ReadFile(first)
		b, _ := os.ReadFile(second)
		if string(a) != string(b) {
			rt.Fatal("the export of the export differs")
		}
	})
}
