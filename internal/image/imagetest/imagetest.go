// Package imagetest holds what the tests of images share: running QEMU's tools,
// which are the referee, and checking a device against the content it must have.
package imagetest

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"varve/internal/block"
)

// packages tells which Debian package has a program.
var packages = map[string]string{
	"qemu-img": "qemu-utils", "qemu-io": "qemu-utils", "losetup": "mount", "addpart": "util-linux", "delpart": "util-linux",
}

// Program finds a program, or fails the test with the package to install.
func Program(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("this test needs %s: apt-get install %s", name, packages[name])
	}
	return path
}

// Run runs a program that must succeed and returns what it printed.
func Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(Program(t, name), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// QemuIO runs commands of qemu-io on an image.
func QemuIO(t testing.TB, path, format string, commands ...string) {
	t.Helper()
	args := []string{"-f", format}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	Run(t, "qemu-io", append(args, path)...)
}

// ConvertToRaw returns the content of an image as qemu-img reads it.
func ConvertToRaw(t testing.TB, path, format string) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "converted.raw")
	Run(t, "qemu-img", "convert", "-f", format, "-O", "raw", path, out)
	content, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// Content reads all of a device in pieces of the given length.
func Content(t testing.TB, d block.Device, piece int) []byte {
	t.Helper()
	content := make([]byte, d.SizeBytes())
	for off := 0; off < len(content); off += piece {
		if err := d.ReadAt(context.Background(), content[off:min(len(content), off+piece)], int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	return content
}

// CheckContent fails the test unless d reads as want, in pieces of several
// lengths, aligned and not.
func CheckContent(t testing.TB, d block.Device, want []byte) {
	t.Helper()
	for _, piece := range []int{3 << 20, 64 << 10, 20_011} {
		got := Content(t, d, piece)
		if len(got) != len(want) {
			t.Fatalf("size %d, want %d", len(got), len(want))
		}
		if !bytes.Equal(got, want) {
			for i := range got {
				if got[i] != want[i] {
					t.Fatalf("read in pieces of %d: byte %d is 0x%02x, want 0x%02x", piece, i, got[i], want[i])
				}
			}
		}
	}
}

// CheckExtents fails the test unless d describes itself as block.Device says,
// whatever the range and limit, and truthfully for the content. It returns the extents.
func CheckExtents(t testing.TB, d block.Device, content []byte) []block.Extent {
	t.Helper()
	all := extents(t, d, 0, d.SizeBytes(), 1<<30)
	for _, e := range all {
		if e.Zero {
			for i, b := range content[e.Offset : e.Offset+e.Length] {
				if b != 0 {
					t.Fatalf("%+v says zero, but byte %d is 0x%02x", e, e.Offset+int64(i), b)
				}
			}
		}
		if e.Hole && !e.Zero {
			t.Fatalf("%+v is a hole and not zero", e)
		}
	}
	for _, limit := range []int{1, 2, 5} {
		for off := int64(0); off < d.SizeBytes(); {
			part := extents(t, d, off, d.SizeBytes()-off, limit)
			off = part[len(part)-1].Offset + part[len(part)-1].Length
		}
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		off := rng.Int64N(d.SizeBytes())
		length := 1 + rng.Int64N(d.SizeBytes()-off)
		got := extents(t, d, off, length, 1<<30)
		if want := clip(all, off, length); !equal(got, want) {
			t.Fatalf("extents of %d+%d: %+v, want %+v", off, length, got, want)
		}
	}
	return all
}

// extents asks for extents and checks the form of the answer.
func extents(t testing.TB, d block.Device, off, length int64, limit int) []block.Extent {
	t.Helper()
	list, err := d.Extents(context.Background(), off, length, limit)
	if err != nil {
		t.Fatal(err)
	}
	if len(list) == 0 || len(list) > limit {
		t.Fatalf("%d extents of %d+%d, limit %d", len(list), off, length, limit)
	}
	at := off
	for i, e := range list {
		if e.Offset != at || e.Length <= 0 {
			t.Fatalf("extent %d of %d+%d is %+v, must begin at %d", i, off, length, e, at)
		}
		if i > 0 && e.Hole == list[i-1].Hole && e.Zero == list[i-1].Zero {
			t.Fatalf("extents %d and %d of %d+%d are not merged", i-1, i, off, length)
		}
		at += e.Length
	}
	if at > off+length || at < off+length && len(list) < limit {
		t.Fatalf("extents of %d+%d, limit %d, end at %d after %d", off, length, limit, at, len(list))
	}
	return list
}

func clip(all []block.Extent, off, length int64) []block.Extent {
	var list []block.Extent
	for _, e := range all {
		start, end := max(e.Offset, off), min(e.Offset+e.Length, off+length)
		if start < end {
			list = append(list, block.Extent{Offset: start, Length: end - start, Hole: e.Hole, Zero: e.Zero})
		}
	}
	return list
}

func equal(a, b []block.Extent) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// RandomFile writes a raw file of size bytes that has random data, compressible
// data and holes, in runs of odd lengths, and returns its content.
func RandomFile(t testing.TB, path string, size int, seed uint64) []byte {
	t.Helper()
	content := make([]byte, size)
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rng := rand.New(rand.NewPCG(seed, seed))
	for off := 0; off < size; {
		part := content[off:min(size, off+1+rng.IntN(200<<10))]
		switch rng.IntN(3) {
		case 0:
			random := rand.NewChaCha8([32]byte{byte(rng.Uint32()), byte(seed)})
			_, _ = random.Read(part) // never fails
		case 1:
			copy(part, bytes.Repeat([]byte("compressible "), len(part)/13+1))
		default:
			off += len(part)
			continue
		}
		if _, err := f.WriteAt(part, int64(off)); err != nil {
			t.Fatal(err)
		}
		off += len(part)
	}
	if err := f.Truncate(int64(size)); err != nil {
		t.Fatal(err)
	}
	return content
}
