package qcow2_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"varve/internal/block"
	"varve/internal/image/imagetest"
	"varve/internal/image/qcow2"
)

// FuzzQcow2Reader bends small real images. Besides mutating the bytes as they
// are, it applies patches, 11 bytes each: an offset (3 bytes, taken modulo the
// file, aligned to 4) and the 8 bytes to put there; so a single mutation of the
// input can forge a whole table entry or header field.
//
// Whatever comes of it: opening and reading end soon, in content or an error;
// all ways of reading the same bytes agree; extents tile the disk and tell the truth.
func FuzzQcow2Reader(f *testing.F) {
	for _, options := range []string{
		"compat=0.10,cluster_size=512",
		"compat=1.1,cluster_size=512",
		"compat=1.1,cluster_size=1k,compression_type=zstd",
		"compat=1.1,cluster_size=16k,extended_l2=on",
	} {
		dir := f.TempDir()
		plain, packed, base := filepath.Join(dir, "plain"), filepath.Join(dir, "packed"), filepath.Join(dir, "base")
		imagetest.RandomFile(f, base, 40<<10, 5)
		imagetest.Run(f, "qemu-img", "create", "-f", "qcow2", "-o", options, "-F", "raw", "-b", base, plain, "100k")
		imagetest.QemuIO(f, plain, "qcow2", "write -P 1 0 3k", "write -z 8k 4k", "write -P 2 20k 1k", "discard 0 1k", "write -P 3 90k 5k")
		imagetest.Run(f, "qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, base, packed)
		for _, path := range []string{plain, packed} {
			image, err := os.ReadFile(path)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(image, []byte{})
			f.Add(image, []byte{0, 0, 72, 0, 0, 0, 0, 0, 0, 0, 16})                                     // extended L2 entries
			f.Add(image, []byte{0, 6, 0, 0x40, 0, 0, 0, 0, 0, 6, 0})                                    // a compressed cluster
			f.Add(image, []byte{0, 0, 24, 0, 0, 0x40, 0, 0, 0, 0, 0, 0, 0, 36, 0, 0, 0, 1, 0, 0, 0, 0}) // 64 TiB
		}
	}
	f.Fuzz(func(t *testing.T, image, patches []byte) {
		if len(image) == 0 || len(image) > 1<<20 {
			return
		}
		image = bytes.Clone(image)
		for ; len(patches) >= 11; patches = patches[11:] {
			off := (int(patches[0])<<16 | int(patches[1])<<8 | int(patches[2])) % len(image) &^ 3
			copy(image[off:], patches[3:11])
		}
		path := filepath.Join(t.TempDir(), "image")
		if err := os.WriteFile(path, image, 0o600); err != nil {
			t.Fatal(err)
		}
		im, err := qcow2.Open(path)
		if err != nil {
			return
		}
		defer im.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		extents := someExtents(ctx, t, im)
		for _, e := range extents {
			checkExtent(ctx, t, im, e)
		}
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			t.Fatal("too slow")
		}
	})
}

// someExtents walks up to 2000 extents, some at a time.
func someExtents(ctx context.Context, t *testing.T, im *qcow2.Image) []block.Extent {
	var all []block.Extent
	for off := int64(0); off < im.SizeBytes() && len(all) < 2000; {
		const limit = 7
		part, err := im.Extents(ctx, off, im.SizeBytes()-off, limit)
		if err != nil {
			return all
		}
		if len(part) == 0 || len(part) > limit {
			t.Fatalf("%d extents at %d", len(part), off)
		}
		for _, e := range part {
			if e.Offset != off || e.Length <= 0 || e.Length > im.SizeBytes()-off {
				t.Fatalf("extent %+v at %d of %d", e, off, im.SizeBytes())
			}
			off += e.Length
		}
		all = append(all, part...)
	}
	return all
}

// checkExtent reads the beginning of an extent, whole and in pieces.
func checkExtent(ctx context.Context, t *testing.T, im *qcow2.Image, e block.Extent) {
	n := min(e.Length, 20_000)
	whole := make([]byte, n)
	err := im.ReadAt(ctx, whole, e.Offset)
	if e.Zero && (err != nil || !bytes.Equal(whole, make([]byte, n))) {
		t.Fatalf("extent %+v says zero, reading says otherwise: %v", e, err)
	}
	pieces := make([]byte, n)
	for off := int64(0); off < n; off += 3333 {
		pieceErr := im.ReadAt(ctx, pieces[off:min(n, off+3333)], e.Offset+off)
		if err == nil && pieceErr != nil {
			t.Fatalf("reading %+v in one is possible, in pieces not: %v", e, pieceErr)
		}
		if pieceErr != nil {
			return
		}
	}
	if err != nil {
		t.Fatalf("reading %+v in pieces is possible, in one not: %v", e, err)
	}
	if !bytes.Equal(whole, pieces) {
		t.Fatalf("reading %+v in one and in pieces differ", e)
	}
}
