package image_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"varve/internal/block"
	"varve/internal/block/memdisk"
	"varve/internal/image"
	"varve/internal/image/imagetest"
)

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

func TestImportOfEveryFormatQemuMakes(t *testing.T) {
	defer goleak.VerifyNone(t)
	dir := t.TempDir()
	src := filepath.Join(dir, "src.raw")
	want := imagetest.RandomFile(t, src, 6<<20+512, 1)
	for _, c := range []struct{ format, options string }{
		{image.Raw, "preallocation=off"},
		{image.Qcow2, "compat=0.10"},
		{image.Qcow2, "compression_type=zstd,cluster_size=2M"},
	} {
		path := filepath.Join(dir, "image")
		imagetest.Run(t, "qemu-img", "convert", "-f", "raw", "-O", c.format, "-o", c.options, src, path)
		d, info, err := image.Open(path, "")
		if err != nil {
			t.Fatal(err)
		}
		if info.Format != c.format || len(info.Warnings) != 0 {
			t.Errorf("%s: %+v", c.options, info)
		}
		disk := newDisk(t, d.SizeBytes()+1<<20)
		if err := image.CopyToEmpty(context.Background(), disk, d, nil); err != nil {
			t.Fatal(err)
		}
		if got := imagetest.Content(t, disk, 1<<20); !bytes.Equal(got[:len(want)], want) {
			t.Errorf("%s: the import differs", c.options)
		}
		if disk.FlushCount() == 0 {
			t.Errorf("%s: the import was not flushed", c.options)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestOpenRefusesWhatItDoesNotRead(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	imagetest.Run(t, "qemu-img", "create", "-f", "vmdk", at("vmdk"), "1M")
	imagetest.Run(t, "qemu-img", "create", "-f", "raw", at("raw"), "1M")
	imagetest.Run(t, "qemu-img", "create", "-f", "qcow2", at("no size"), "0")
	if err := os.WriteFile(at("empty"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path, format string
		want         error
		text         string
	}{
		{at("vmdk"), "", image.ErrFormat, "qemu-img convert -f vmdk -O qcow2"},
		{at("raw"), "vhdx", image.ErrFormat, "vhdx"},
		{at("raw"), image.Qcow2, image.ErrCorrupt, "signature"},
		{at("empty"), "", image.ErrEmpty, "size is 0"},
		{at("no size"), "", image.ErrEmpty, "size is 0"},
		{at("missing"), "", fs.ErrNotExist, "missing"},
		{dir, "", image.ErrNotImage, "regular file"},
	} {
		d, _, err := image.Open(c.path, c.format)
		if d != nil || !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) || !strings.Contains(err.Error(), c.path) {
			t.Errorf("%s as %q: %v, want %v with %q", c.path, c.format, err, c.want, c.text)
		}
	}
	d, info, err := image.Open(at("vmdk"), image.Raw) // who insists gets the bytes
	if err != nil || info.Format != image.Raw {
		t.Fatalf("%+v, %v", info, err)
	}
	d.Close()
}

// Copy makes any destination equal to any source, CopyToEmpty an empty one, and
// neither touches what is beyond.
func TestCopyMakesEqual(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		size := rapid.Int64Range(1, 3<<20/512).Draw(rt, "sectors") * 512
		more := rapid.Int64Range(0, 10).Draw(rt, "sectors more") * 512
		src, old, empty := newDisk(t, size), newDisk(t, size+more), newDisk(t, size+more)
		write(t, old, 0, strings.Repeat("o", int(size+more)))
		for range rapid.IntRange(0, 10).Draw(rt, "writes") {
			off := rapid.Int64Range(0, size-1).Draw(rt, "offset")
			n := rapid.Int64Range(1, min(size-off, 100_000)).Draw(rt, "length")
			write(t, src, off, strings.Repeat(string(rapid.SampledFrom([]byte{0, 'a', 'b'}).Draw(rt, "fill")), int(n)))
		}
		want := imagetest.Content(t, src, 1<<20)
		if err := image.Copy(context.Background(), old, src, nil); err != nil {
			rt.Fatal(err)
		}
		if err := image.CopyToEmpty(context.Background(), empty, src, nil); err != nil {
			rt.Fatal(err)
		}
		if got := imagetest.Content(t, old, 1<<20); !bytes.Equal(got[:size], want) || strings.Trim(string(got[size:]), "o") != "" {
			rt.Fatal("Copy differs")
		}
		if got := imagetest.Content(t, empty, 1<<20); !bytes.Equal(got[:size], want) {
			rt.Fatal("CopyToEmpty differs")
		}
		for _, e := range imagetest.CheckExtents(t, empty, imagetest.Content(t, empty, 1<<20)) {
			for off := e.Offset; !e.Zero && off < e.Offset+e.Length; off += block.Size {
				if end := min(off+block.Size, size); strings.Trim(string(want[off:end]), "\x00") == "" {
					rt.Fatalf("the block of zeros at %d was written", off)
				}
			}
		}
	})
}

func TestCopyOfHugeDisksTakesNoTime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "huge.qcow2")
	imagetest.Run(t, "qemu-img", "create", "-f", "qcow2", path, "64T")
	imagetest.QemuIO(t, path, "qcow2", "write -P 7 30T 64k", "write -z 40T 1G", "write -P 8 70368744177152 512")
	src, _, err := image.Open(path, "")
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	disk := newDisk(t, block.MaxDeviceBytes)
	if err := image.CopyToEmpty(context.Background(), disk, src, nil); err != nil {
		t.Fatal(err)
	}
	again := filepath.Join(t.TempDir(), "again.qcow2")
	if err := image.Export(context.Background(), again, image.Qcow2, disk, image.ExportOptions{}); err != nil {
		t.Fatal(err)
	}
	imagetest.Run(t, "qemu-img", "check", again)
	imagetest.Run(t, "qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", path, again)
}

func TestCopyErrors(t *testing.T) {
	defer goleak.VerifyNone(t)
	src := newDisk(t, 8<<20)
	write(t, src, 0, strings.Repeat("x", 8<<20))
	if err := image.Copy(context.Background(), newDisk(t, 8<<20-512), src, nil); !errors.Is(err, block.ErrOutOfRange) {
		t.Errorf("to a smaller device: %v", err)
	}
	path := filepath.Join(t.TempDir(), "raw")
	imagetest.RandomFile(t, path, 8<<20, 1)
	readOnly, _, err := image.Open(path, image.Raw)
	if err != nil {
		t.Fatal(err)
	}
	defer readOnly.Close()
	if err := image.Copy(context.Background(), readOnly, src, nil); !errors.Is(err, block.ErrReadOnly) {
		t.Errorf("to a read-only device: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	err = image.Copy(ctx, newDisk(t, 8<<20), src, func(int64, int64) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestExport(t *testing.T) {
	dir := t.TempDir()
	disk := newDisk(t, 1<<20)
	write(t, disk, 1000, "hello")
	for _, format := range []string{image.Raw, image.Qcow2} {
		path := filepath.Join(dir, format)
		if err := image.Export(context.Background(), path, format, disk, image.ExportOptions{}); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(imagetest.Run(t, "qemu-img", "info", path), "file format: "+format) {
			t.Errorf("%s: not what it says", format)
		}
		if err := image.Export(context.Background(), path, format, disk, image.ExportOptions{}); !errors.Is(err, fs.ErrExist) {
			t.Errorf("%s again: %v", format, err)
		}
	}
	imagetest.Run(t, "qemu-img", "compare", filepath.Join(dir, image.Raw), filepath.Join(dir, image.Qcow2))
	if err := image.Export(context.Background(), filepath.Join(dir, "x"), "vmdk", disk, image.ExportOptions{}); !errors.Is(err, image.ErrFormat) {
		t.Errorf("vmdk: %v", err)
	}
}
