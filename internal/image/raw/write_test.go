package raw

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"varve/internal/block"
	"varve/internal/block/memdisk"
	"varve/internal/image/imagetest"
	"varve/internal/image/target"
)

func allocated(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

func source(t *testing.T, size int) (block.Device, []byte) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "source")
	content := imagetest.RandomFile(t, path, size, uint64(size))
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d, content
}

func TestExportIsIdentical(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	for _, size := range []int{512, 4096 + 512, 7<<20 + 1536} {
		src, want := source(t, size)
		path := filepath.Join(t.TempDir(), "out")
		if err := Write(context.Background(), path, src, target.Options{}); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
			t.Errorf("the export of %d bytes differs (%v)", size, err)
		}
	}
}

func TestExportIsSparse(t *testing.T) {
	const size = 8 << 40
	disk, err := memdisk.New(size)
	if err != nil {
		t.Fatal(err)
	}
	for _, op := range []*block.Op{
		{Kind: block.OpWrite, Offset: 3 << 40, Length: 3, Data: []byte("abc")},
		{Kind: block.OpWrite, Offset: 1 << 30, Length: 64 << 20, Data: make([]byte, 64<<20)}, // zeros, but allocated
		{Kind: block.OpWrite, Offset: size - 1, Length: 1, Data: []byte("z")},
	} {
		if disk.Submit(context.Background(), []*block.Op{op}); op.Err != nil {
			t.Fatal(op.Err)
		}
	}
	path := filepath.Join(t.TempDir(), "out")
	if err := Write(context.Background(), path, disk, target.Options{}); err != nil {
		t.Fatal(err)
	}
	if n := allocated(t, path); n > 1<<20 {
		t.Errorf("%d bytes are allocated, want some blocks", n)
	}
	d, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	buf := make([]byte, 3)
	if err := d.ReadAt(context.Background(), buf, 3<<40); err != nil || string(buf) != "abc" || d.SizeBytes() != size {
		t.Errorf("%q of %d bytes, %v", buf, d.SizeBytes(), err)
	}
}

func TestCancelledExportLeavesNothing(t *testing.T) {
	src, _ := source(t, 4<<20)
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	opts := target.Options{Progress: func(int64, int64) { cancel() }}
	if err := Write(ctx, filepath.Join(dir, "out"), src, opts); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("left %v (%v)", entries, err)
	}
}

// Writing in place replaces whatever was there and nothing behind it. A loop
// device is a block device that everybody can have, root's rights provided; the
// file shows the same where there is none.
func TestWriteInPlace(t *testing.T) {
	const size, behind = 4<<20 + 1536, 1 << 20
	src, want := source(t, size)
	garbage := bytes.Repeat([]byte{0xee}, (size+behind+4095)&^4095)
	check := func(t *testing.T, file string, overwrite func() error) {
		if err := os.WriteFile(file, garbage, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := overwrite(); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got[:size], want) {
			t.Error("the content differs")
		}
		if !bytes.Equal(got[size:], garbage[size:]) {
			t.Error("what is behind was changed")
		}
	}
	file := filepath.Join(t.TempDir(), "file")
	check(t, file, func() error {
		f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return err
		}
		defer f.Close()
		return overwrite(context.Background(), f, src, nil)
	})
	if unix.Access("/dev/loop-control", unix.W_OK) != nil {
		return
	}
	loop := strings.TrimSpace(imagetest.Run(t, "losetup", "--show", "-f", file))
	defer imagetest.Run(t, "losetup", "-d", loop)
	check(t, file, func() error { return Write(context.Background(), loop, src, target.Options{}) })

	d, err := Open(loop)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	content := append(bytes.Clone(want), garbage[size:]...)
	imagetest.CheckContent(t, d, content)
	imagetest.CheckExtents(t, d, content)
	large, _ := source(t, len(garbage)+512)
	if err := Write(context.Background(), loop, large, target.Options{}); !errors.Is(err, ErrTooSmall) {
		t.Errorf("a larger disk: %v", err)
	}
}

func TestZerosAreWrittenWhereNothingCheaperWorks(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(bytes.Repeat([]byte{1}, 10_000)); err != nil {
		t.Fatal(err)
	}
	if err := writeZeroBytes(f, 100, 5000); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	for i, b := range got {
		if inside := i >= 100 && i < 5100; (b == 0) != inside {
			t.Fatalf("byte %d is %d", i, b)
		}
	}
}
