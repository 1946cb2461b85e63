package qcow2_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"varve/internal/block"
	"varve/internal/image/imagetest"
	"varve/internal/image/qcow2"
)

func open(t testing.TB, path string) *qcow2.Image {
	t.Helper()
	im, err := qcow2.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { im.Close() })
	return im
}

// checkAgainstQemu compares content and extents with what qemu-img reads.
func checkAgainstQemu(t *testing.T, path string) *qcow2.Image {
	t.Helper()
	im := open(t, path)
	want := imagetest.ConvertToRaw(t, path, "qcow2")
	imagetest.CheckContent(t, im, want)
	// QEMU does not always look for holes in the file below, so it may see more data than there is.
	extents := imagetest.CheckExtents(t, im, want)
	imagetest.CheckWithin(t, imagetest.Data(extents), imagetest.QemuData(t, path, "qcow2"))
	return im
}

// activity is what a guest may do to a disk of 8 MiB and 1.5 KiB: whole and
// partial clusters, zeroes, discards, the very end.
var activity = []string{
	"write -P 0x11 0 64k",
	"write -P 0x22 100k 3k",
	"write -P 0x33 1m 1m",
	"write -z 1200k 100k",
	"write -P 0x44 3m 5k",
	"discard 1m 128k",
	"write -z -u 3m 4k",
	"write -P 0x55 3585k 512",
	"write -z 4m 2m",
	"write -P 0x66 4500k 1k",
	"write -P 0x77 8193k 512",
}

const activeSize = "8390144" // 8 MiB + 1.5 KiB

func TestReadsWhatQemuWrites(t *testing.T) {
	for _, options := range []string{
		"compat=0.10",
		"compat=0.10,cluster_size=512",
		"compat=1.1",
		"compat=1.1,cluster_size=512",
		"compat=1.1,cluster_size=4k,refcount_bits=1",
		"compat=1.1,cluster_size=2M,refcount_bits=64",
		"compat=1.1,lazy_refcounts=on",
		"compat=1.1,preallocation=metadata",
		"compat=1.1,preallocation=falloc",
		"compat=1.1,preallocation=full,cluster_size=8k",
		"compat=1.1,extended_l2=on,cluster_size=16k",
		"compat=1.1,extended_l2=on,cluster_size=128k",
		"compat=1.1,extended_l2=on,cluster_size=2M,preallocation=metadata",
	} {
		t.Run(options, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "disk.qcow2")
			imagetest.Run(t, "qemu-img", "create", "-f", "qcow2", "-o", options, path, activeSize)
			checkAgainstQemu(t, path) // empty
			imagetest.QemuIO(t, path, "qcow2", activity...)
			if w := checkAgainstQemu(t, path).Warnings(); len(w) != 0 {
				t.Errorf("warnings %q", w)
			}
		})
	}
}

func TestReadsCompressedClusters(t *testing.T) {
	for _, options := range []string{
		"compat=0.10",
		"compat=1.1,cluster_size=512",
		"compat=1.1,cluster_size=4k",
		"compat=1.1,cluster_size=2M",
		"compat=1.1,compression_type=zstd",
		"compat=1.1,compression_type=zstd,cluster_size=512",
		"compat=1.1,compression_type=zstd,cluster_size=2M",
		"compat=1.1,compression_type=zstd,extended_l2=on",
	} {
		t.Run(options, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			src, path := filepath.Join(dir, "src.raw"), filepath.Join(dir, "disk.qcow2")
			imagetest.RandomFile(t, src, 3<<20+1536, 1)
			imagetest.Run(t, "qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, src, path)
			checkAgainstQemu(t, path)
			// Writes turn some of them into plain clusters.
			imagetest.QemuIO(t, path, "qcow2", "write -P 0x31 300k 5k", "write -P 0x32 1m 512", "write -z 2m 64k")
			checkAgainstQemu(t, path)
		})
	}
}

func TestReadsBackingChains(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "base"), 0o700); err != nil {
		t.Fatal(err)
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	// The raw base is no multiple of anything and smaller than what is above it;
	// names are relative to the directory of the image that has them.
	imagetest.RandomFile(t, at("base/base.raw"), 3<<20+1000, 2)
	imagetest.Run(t, "qemu-img", "create", "-f", "qcow2", "-F", "raw", "-b", "base.raw", at("base/1.qcow2"), "6M")
	imagetest.QemuIO(t, at("base/1.qcow2"), "qcow2", "write -P 0x41 1m 70k", "write -P 0x42 5m 3k", "write -z 2m 100k")
	imagetest.Run(t, "qemu-img", "create", "-f", "qcow2", "-o", "cluster_size=4k", "-F", "qcow2", "-b", "base/1.qcow2", at("2.qcow2"), "4M")
	imagetest.QemuIO(t, at("2.qcow2"), "qcow2", "write -P 0x43 1030k 9k", "write -z 3m 64k", "discard 1m 4k")
	imagetest.Run(t, "qemu-img", "create", "-f", "qcow2", "-o", "extended_l2=on", "-F", "qcow2", "-b", at("2.qcow2"), at("top.qcow2"), activeSize)
	checkAgainstQemu(t, at("top.qcow2"))
	imagetest.QemuIO(t, at("top.qcow2"), "qcow2", activity...)
	checkAgainstQemu(t, at("base/1.qcow2"))
	checkAgainstQemu(t, at("2.qcow2"))
	top := checkAgainstQemu(t, at("top.qcow2"))
	if w := top.Warnings(); len(w) != 1 || !strings.Contains(w[0], "base.raw") {
		t.Errorf("warnings %q, want one about the odd size of base.raw", w)
	}
}

func TestSnapshotsAndBitmapsAreIgnoredWithWarnings(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	imagetest.Run(t, "qemu-img", "create", "-f", "qcow2", path, activeSize)
	imagetest.QemuIO(t, path, "qcow2", "write -P 0x50 0 3m")
	imagetest.Run(t, "qemu-img", "snapshot", "-c", "before", path)
	imagetest.Run(t, "qemu-img", "bitmap", "--add", path, "changes")
	imagetest.QemuIO(t, path, "qcow2", activity...)
	w := checkAgainstQemu(t, path).Warnings()
	if len(w) != 2 || !strings.Contains(w[0], "1 internal snapshots") || !strings.Contains(w[1], "1 bitmaps") {
		t.Errorf("warnings %q", w)
	}
}

func TestFileMayEndInsideTheLastCluster(t *testing.T) {
	for _, options := range []string{"compat=0.10", "compat=1.1", "compat=1.1,extended_l2=on"} {
		path := filepath.Join(t.TempDir(), "disk.qcow2")
		imagetest.Run(t, "qemu-img", "create", "-f", "qcow2", "-o", options, path, "1M")
		imagetest.QemuIO(t, path, "qcow2", "write -P 0x51 128k 3k")
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		// The data is in the last cluster; cut away what is zero behind it, and a bit more.
		cut := info.Size()&^0xffff + 2000
		if info.Size()%65536 == 0 {
			cut = info.Size() - 65536 + 2000
		}
		want := imagetest.ConvertToRaw(t, path, "qcow2")
		if err := os.Truncate(path, cut); err != nil {
			t.Fatal(err)
		}
		clear(want[128<<10+2000 : 128<<10+3<<10])
		// A file is read in sectors: 2000 bytes go on with zeros to 2048, and these to the cluster's end.
		im := open(t, path)
		imagetest.CheckContent(t, im, want)
		imagetest.CheckExtents(t, im, want)
	}
}

func TestExtentsOfPreallocatedImageAreHoles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	imagetest.Run(t, "qemu-img", "create", "-f", "qcow2", "-o", "preallocation=metadata", path, "1G")
	imagetest.QemuIO(t, path, "qcow2", "write -P 1 512m 64k")
	im := open(t, path)
	extents, err := im.Extents(context.Background(), 0, im.SizeBytes(), 100)
	if err != nil {
		t.Fatal(err)
	}
	data := int64(0)
	for _, e := range extents {
		if !e.Zero {
			data += e.Length
		}
	}
	if data > 1<<20 {
		t.Errorf("%d bytes of data, want little more than 64 KiB", data)
	}
}

func TestRequestsOutOfRangeAndWritesAreRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	imagetest.Run(t, "qemu-img", "create", "-f", "qcow2", path, "1M")
	im := open(t, path)
	ctx := context.Background()
	if err := im.ReadAt(ctx, make([]byte, 2), 1<<20-1); !errors.Is(err, block.ErrOutOfRange) {
		t.Errorf("read: %v", err)
	}
	if _, err := im.Extents(ctx, 1<<20, 1, 1); !errors.Is(err, block.ErrOutOfRange) {
		t.Errorf("extents: %v", err)
	}
	op := &block.Op{Kind: block.OpZero, Length: 512}
	im.Submit(ctx, []*block.Op{op})
	if !errors.Is(op.Err, block.ErrReadOnly) {
		t.Errorf("write: %v", op.Err)
	}
	if err := im.Flush(ctx); err != nil {
		t.Errorf("flush: %v", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	if err := im.ReadAt(ctx, make([]byte, 512), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("read after cancellation: %v", err)
	}
}

func TestReadersInParallel(t *testing.T) {
	dir := t.TempDir()
	src, path := filepath.Join(dir, "src.raw"), filepath.Join(dir, "disk.qcow2")
	want := imagetest.RandomFile(t, src, 2<<20, 3)
	imagetest.Run(t, "qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd", src, path)
	im := open(t, path)
	done := make(chan error)
	for g := range 8 {
		go func() {
			buf := make([]byte, 10_000)
			for off := g * 1000; off+len(buf) <= len(want); off += 31_000 {
				if err := im.ReadAt(context.Background(), buf, int64(off)); err != nil {
					done <- err
					return
				}
				if string(buf) != string(want[off:off+len(buf)]) {
					done <- fmt.Errorf("wrong content at %d", off)
					return
				}
			}
			done <- nil
		}()
	}
	for range 8 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
