package qcow2_test

import (
	"bytes"
	"compress/flate"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"varve/internal/image/imagetest"
	"varve/internal/image/qcow2"
	"varve/internal/image/raw"
)

// forgery is an image file as bytes, to be bent.
type forgery []byte

func (f forgery) put32(off int, v uint32) { binary.BigEndian.PutUint32(f[off:], v) }
func (f forgery) put64(off int, v uint64) { binary.BigEndian.PutUint64(f[off:], v) }
func (f forgery) get64(off int) uint64    { return binary.BigEndian.Uint64(f[off:]) }

// l1 and l2 are where the first entry of the L1 table, and of the first L2 table, lie.
func (f forgery) l1() int { return int(f.get64(40)) }
func (f forgery) l2() int { return int(f.get64(f.l1()) & 0x00fffffffffffe00) }

// extension finds the data of a header extension.
func (f forgery) extension(t *testing.T, kind uint32) int {
	t.Helper()
	for off := 0; off < len(f)-8; off += 8 {
		if binary.BigEndian.Uint32(f[off:]) == kind {
			return off
		}
	}
	t.Fatalf("no header extension 0x%x", kind)
	return 0
}

// realImages keeps what realImage made, by options.
var realImages = map[string]forgery{}

// realImage is a real image whose first cluster holds data.
func realImage(t testing.TB, options string) forgery {
	t.Helper()
	if f, ok := realImages[options]; ok {
		return slices.Clone(f)
	}
	path := filepath.Join(t.TempDir(), "real.qcow2")
	imagetest.Run(t, "qemu-img", "create", "-f", "qcow2", "-o", options, path, "1M")
	imagetest.QemuIO(t, path, "qcow2", "write -P 0xaa 0 64k")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	realImages[options] = slices.Clone(b)
	return b
}

func (f forgery) save(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "forged.qcow2")
	if err := os.WriteFile(path, f, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// readAll opens an image, asks for all extents and reads all of it up to 8 MiB.
func readAll(path string) error {
	im, err := qcow2.Open(path)
	if err != nil {
		return err
	}
	defer im.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for off := int64(0); off < im.SizeBytes(); {
		extents, err := im.Extents(ctx, off, im.SizeBytes()-off, 100)
		if err != nil {
			return err
		}
		last := extents[len(extents)-1]
		off = last.Offset + last.Length
	}
	buf := make([]byte, 64<<10)
	for off := int64(0); off < min(im.SizeBytes(), 8<<20); off += int64(len(buf)) {
		if err := im.ReadAt(ctx, buf[:min(int64(len(buf)), im.SizeBytes()-off)], off); err != nil {
			return err
		}
	}
	return nil
}

// cheaply fails the test if f takes more than little memory or time.
func cheaply(t *testing.T, f func()) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start := time.Now()
	f()
	took := time.Since(start)
	runtime.ReadMemStats(&after)
	if allocated := after.TotalAlloc - before.TotalAlloc; allocated > 48<<20 {
		t.Errorf("%d MiB allocated", allocated>>20)
	}
	if took > 20*time.Second { // a busy machine is slow too, a blow-up is without end
		t.Errorf("took %v", took)
	}
}

func TestForgedImagesAreRefused(t *testing.T) {
	const v2, v3, ext = "compat=0.10", "compat=1.1", "compat=1.1,extended_l2=on"
	const copied = uint64(1) << 63
	for _, c := range []struct {
		name    string
		options string
		forge   func(f forgery)
		want    error
		text    string
	}{
		{"signature", v3, func(f forgery) { f[0] = 'X' }, qcow2.ErrCorrupt, "signature"},
		{"version 4", v3, func(f forgery) { f.put32(4, 4) }, qcow2.ErrUnsupported, "version 4"},
		{"cluster bits 8", v3, func(f forgery) { f.put32(20, 8) }, qcow2.ErrCorrupt, "2^8"},
		{"cluster bits 22", v3, func(f forgery) { f.put32(20, 22) }, qcow2.ErrCorrupt, "2^22"},
		{"cluster bits huge", v3, func(f forgery) { f.put32(20, 1<<32-1) }, qcow2.ErrCorrupt, "clusters of"},
		{"size above the limit", v3, func(f forgery) { f.put64(24, 64<<40+512) }, raw.ErrTooLarge, "64 TiB"},
		{"size negative", v3, func(f forgery) { f.put64(24, 1<<64-512) }, raw.ErrTooLarge, "64 TiB"},
		{"size odd", v3, func(f forgery) { f.put64(24, 1000) }, qcow2.ErrUnsupported, "qemu-img resize"},
		{"AES", v3, func(f forgery) { f.put32(32, 1) }, qcow2.ErrUnsupported, "decrypt it first"},
		{"LUKS", v3, func(f forgery) { f.put32(32, 2) }, qcow2.ErrUnsupported, "decrypt it first"},
		{"unknown encryption", v3, func(f forgery) { f.put32(32, 9) }, qcow2.ErrUnsupported, "method 9"},
		{"L1 size above the limit", v3, func(f forgery) { f.put32(36, 4<<20+1) }, qcow2.ErrCorrupt, "4194304 are possible"},
		{"L1 too small", v3, func(f forgery) { f.put64(24, 1<<40) }, qcow2.ErrCorrupt, "the size takes 2048"},
		{"L1 beyond the file", v3, func(f forgery) { f.put64(40, 1<<40) }, qcow2.ErrCorrupt, "beyond the end of the file"},
		{"L1 across the end", v3, func(f forgery) { f.put32(36, 2048); f.put64(24, 1<<40); f.put64(40, uint64(len(f)-65536)&^65535) }, qcow2.ErrCorrupt, ""},
		{"L1 misaligned", v3, func(f forgery) { f.put64(40, f.get64(40)+8) }, qcow2.ErrCorrupt, "not at a cluster"},
		{"L1 at the end of the world", v3, func(f forgery) { f.put64(40, 1<<64-65536) }, qcow2.ErrCorrupt, "not at a cluster"},
		{"dirty", v3, func(f forgery) { f.put64(72, 1) }, qcow2.ErrNeedsCheck, "qemu-img check -r all"},
		{"marked corrupt", v3, func(f forgery) { f.put64(72, 2) }, qcow2.ErrNeedsCheck, "qemu-img check -r all"},
		{"external data", v3, func(f forgery) { f.put64(72, 4) }, qcow2.ErrUnsupported, "qemu-img convert"},
		{"unknown feature", v3, func(f forgery) { f.put64(72, 1<<40) }, qcow2.ErrUnsupported, "bit 40"},
		{"compression without its bit", v3, func(f forgery) { f[104] = 1 }, qcow2.ErrCorrupt, "compression type 1"},
		{"bit without compression", v3, func(f forgery) { f.put64(72, 8) }, qcow2.ErrCorrupt, "compression type 0"},
		{"unknown compression", v3, func(f forgery) { f.put64(72, 8); f[104] = 7 }, qcow2.ErrUnsupported, "compression type 7"},
		{"extended entries in small clusters", "compat=1.1,cluster_size=4k", func(f forgery) { f.put64(72, 16) }, qcow2.ErrCorrupt, "extended L2"},
		{"refcount order", v3, func(f forgery) { f.put32(96, 7) }, qcow2.ErrCorrupt, "2^7"},
		{"short header", v3, func(f forgery) { f.put32(100, 96) }, qcow2.ErrCorrupt, "header of 96"},
		{"uneven header", v3, func(f forgery) { f.put32(100, 109) }, qcow2.ErrCorrupt, "header of 109"},
		{"header longer than a cluster", v3, func(f forgery) { f.put32(100, 1<<17) }, qcow2.ErrCorrupt, "header of 131072"},
		{"backing name beyond the cluster", v3, func(f forgery) { f.put64(8, 65530); f.put32(16, 100) }, qcow2.ErrCorrupt, "outside of the first cluster"},
		{"backing name at the end of the world", v3, func(f forgery) { f.put64(8, 1<<64-1); f.put32(16, 100) }, qcow2.ErrCorrupt, "outside of the first cluster"},
		{"backing name in the header", v3, func(f forgery) { f.put64(8, 4); f.put32(16, 4) }, qcow2.ErrCorrupt, "outside of the first cluster"},
		{"backing name too long", v3, func(f forgery) { f.put64(8, 2000); f.put32(16, 1024) }, qcow2.ErrCorrupt, "1024 bytes"},
		{"backing name empty in the file", v3, func(f forgery) { f.put64(8, 2000); f.put32(16, 5) }, qcow2.ErrBacking, "is not one"},
		{"extension too long", v3, func(f forgery) { f.put32(112, 0x1234); f.put32(116, 1<<32-1) }, qcow2.ErrCorrupt, "0x00001234"},
		{"L1 entry misaligned", v3, func(f forgery) { f.put64(f.l1(), copied|uint64(f.l2()+512)) }, qcow2.ErrCorrupt, "not at a cluster"},
		{"L1 entry reserved", v3, func(f forgery) { f.put64(f.l1(), f.get64(f.l1())|1) }, qcow2.ErrCorrupt, "reserved bits 0x1"},
		{"L2 table beyond the file", v3, func(f forgery) { f.put64(f.l1(), copied|1<<40) }, qcow2.ErrCorrupt, "beyond the end of the file"},
		{"L2 table across the end", v3, func(f forgery) { f.put64(f.l1(), copied|uint64(len(f))&^65535) }, qcow2.ErrCorrupt, "beyond the end of the file"},
		{"data misaligned", v3, func(f forgery) { f.put64(f.l2(), copied|512) }, qcow2.ErrCorrupt, "not at a cluster"},
		{"data reserved", v3, func(f forgery) { f.put64(f.l2(), f.get64(f.l2())|1<<60) }, qcow2.ErrCorrupt, "reserved bits"},
		{"data beyond the file", v3, func(f forgery) { f.put64(f.l2(), copied|1<<40) }, qcow2.ErrCorrupt, "cut short"},
		{"zero cluster in version 2", v2, func(f forgery) { f.put64(f.l2(), f.get64(f.l2())|1) }, qcow2.ErrCorrupt, "version 2"},
		{"subcluster both", ext, func(f forgery) { f.put64(f.l2()+8, 1|1<<32) }, qcow2.ErrCorrupt, "both"},
		{"subcluster nowhere", ext, func(f forgery) { f.put64(f.l2(), 0) }, qcow2.ErrCorrupt, "nowhere"},
		{"zero bit with subclusters", ext, func(f forgery) { f.put64(f.l2(), f.get64(f.l2())|1) }, qcow2.ErrCorrupt, "zero bit"},
		{"compressed beyond the file", v3, func(f forgery) { f.put64(f.l2(), 1<<62|1<<50) }, qcow2.ErrCorrupt, "beyond the end of the file"},
		{"compressed offset too high", "compat=1.1,cluster_size=512", func(f forgery) { f.put64(f.l2(), 1<<62|1<<58) }, qcow2.ErrCorrupt, "beyond the end of the file"},
		{"compressed garbage", v3, func(f forgery) { f.put64(f.l2(), f.get64(f.l2())&^copied|1<<62) }, qcow2.ErrCorrupt, "does not decompress"},
		{"zstd garbage", "compat=1.1,compression_type=zstd", func(f forgery) { f.put64(f.l2(), f.get64(f.l2())&^copied|1<<62) }, qcow2.ErrCorrupt, "does not decompress"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := realImage(t, c.options)
			c.forge(f)
			cheaply(t, func() {
				err := readAll(f.save(t))
				if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) || !strings.Contains(err.Error(), "forged.qcow2") {
					t.Errorf("error %v, want %v with %q", err, c.want, c.text)
				}
			})
		})
	}
}

func TestUnknownFeatureIsNamedByTheImage(t *testing.T) {
	f := realImage(t, "compat=1.1")
	entry := f.extension(t, 0x6803f857) + 8
	copy(f[entry:entry+48], append([]byte{0, 40}, "time travel\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"...))
	f.put64(72, 1<<40)
	if err := readAll(f.save(t)); err == nil || !strings.Contains(err.Error(), `bit 40 ("time travel")`) {
		t.Errorf("error %v", err)
	}
}

func TestShortFilesAreRefused(t *testing.T) {
	f := realImage(t, "compat=1.1")
	for _, n := range []int{0, 1, 71, 103} {
		if err := readAll(f[:n].save(t)); !errors.Is(err, qcow2.ErrCorrupt) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

// Wherever a file is cut, reading ends in an error, or has lost no more than
// what the format allows to be left out: the end of the last cluster.
func TestFilesCutAnywhere(t *testing.T) {
	for _, options := range []string{"compat=0.10,cluster_size=512", "compat=1.1,cluster_size=1k"} {
		f := realImage(t, options)
		want := imagetest.ConvertToRaw(t, f.save(t), "qcow2")
		for n := 0; n < len(f); n += 300 {
			path := f[:n].save(t)
			err := readAll(path)
			if err == nil {
				im := open(t, path)
				got, lost := imagetest.Content(t, im, 1<<20), 0
				for i := range got {
					if got[i] != want[i] {
						lost++
					}
				}
				if lost > 1<<10 {
					t.Errorf("cut at %d: %d bytes read wrong", n, lost)
				}
			} else if !errors.Is(err, qcow2.ErrCorrupt) {
				t.Errorf("cut at %d: %v", n, err)
			}
		}
	}
}

func TestManyEntriesForOneTableAreRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "real.qcow2")
	imagetest.Run(t, "qemu-img", "create", "-f", "qcow2", path, "64T")
	imagetest.QemuIO(t, path, "qcow2", "write -z 0 64k")
	f, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	entry := forgery(f).get64(forgery(f).l1())
	for i := range 131072 {
		forgery(f).put64(forgery(f).l1()+8*i, entry)
	}
	cheaply(t, func() {
		if err := readAll(forgery(f).save(t)); !errors.Is(err, qcow2.ErrCorrupt) || !strings.Contains(err.Error(), "131072 L2 tables") {
			t.Errorf("error %v", err)
		}
	})
}

func TestLargestL1TableIsCheap(t *testing.T) {
	const size, entries = 128 << 30, 4 << 20 // QEMU's limit, with clusters of 512 bytes
	f := realImage(t, "compat=1.1,cluster_size=512")
	table := (int64(len(f)) + 511) &^ 511
	f.put64(24, size)
	f.put32(36, entries)
	f.put64(40, uint64(table))
	path := f.save(t)
	if err := os.Truncate(path, table+entries*8); err != nil {
		t.Fatal(err)
	}
	cheaply(t, func() {
		im := open(t, path)
		extents, err := im.Extents(context.Background(), 0, im.SizeBytes(), 10)
		if err != nil || len(extents) != 1 || !extents[0].Hole || extents[0].Length != size {
			t.Errorf("extents %v, %v", extents, err)
		}
	})
}

func TestDecompressionIsBounded(t *testing.T) {
	var bomb bytes.Buffer
	w, err := flate.NewWriter(&bomb, flate.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, 4<<20)); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if bomb.Len() > 60_000 {
		t.Fatalf("the bomb has %d bytes", bomb.Len())
	}
	// Magic, a frame header without single segment, a window of some 3.75 TiB.
	zstdBomb := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xff, 0x01, 0x00, 0x00}
	for _, c := range []struct {
		options string
		data    []byte
		want    error
	}{
		{"compat=1.1", bomb.Bytes(), nil}, // what a cluster takes of it is right
		{"compat=1.1,compression_type=zstd", zstdBomb, qcow2.ErrCorrupt},
	} {
		f := realImage(t, c.options)
		host := f.get64(f.l2()) & 0x00fffffffffffe00
		copy(f[host:], c.data)
		f.put64(f.l2(), 1<<62|host|127<<54)
		cheaply(t, func() {
			if err := readAll(f.save(t)); !errors.Is(err, c.want) {
				t.Errorf("%s: %v", c.options, err)
			}
		})
	}
}

// overlay makes an image over backing; its format is not recorded if that is empty.
func overlay(t *testing.T, path, backing, backingFormat string) {
	t.Helper()
	recorded := backingFormat
	if recorded == "" {
		recorded = "raw"
	}
	imagetest.Run(t, "qemu-img", "create", "-u", "-f", "qcow2", "-F", recorded, "-b", backing, path, "1M")
	if backingFormat != "" {
		return
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	f := forgery(b)
	f.put32(f.extension(t, 0xe2792aca), 0x11111111) // an extension that nobody knows
	if err := os.WriteFile(path, f, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestBackingFilesAreRefused(t *testing.T) {
	for _, c := range []struct{ name, format, want string }{
		{`json:{"driver":"raw","file":{"driver":"file","filename":"/etc/passwd"}}`, "raw", "not a file name"},
		{"nbd://localhost/x", "raw", "not a file name"},
		{"nbd+unix:///x?socket=/tmp/s", "raw", "not a file name"},
		{"a:b", "raw", "not a file name"},
		{"base.vmdk", "vmdk", `format "vmdk"`},
		{"base.vmdk", "", `format "vmdk"`},
		{"top.qcow2", "qcow2", "loop"},
		{"./top.qcow2", "raw", "loop"},
		{"middle.qcow2", "qcow2", "loop"},
		{"overlay.qcow2", "", "not recorded"},
	} {
		dir := t.TempDir()
		at := func(name string) string { return filepath.Join(dir, name) }
		if err := os.WriteFile(at("base.vmdk"), append([]byte("KDMV"), make([]byte, 1020)...), 0o600); err != nil {
			t.Fatal(err)
		}
		overlay(t, at("middle.qcow2"), "top.qcow2", "qcow2")
		overlay(t, at("overlay.qcow2"), "base.vmdk", "raw")
		overlay(t, at("top.qcow2"), c.name, c.format)
		cheaply(t, func() {
			if err := readAll(at("top.qcow2")); !errors.Is(err, qcow2.ErrBacking) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%q: error %v, want %q", c.name, err, c.want)
			}
		})
	}
	path := filepath.Join(t.TempDir(), "top.qcow2")
	overlay(t, path, "missing.raw", "raw")
	if err := readAll(path); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "missing.raw") {
		t.Errorf("missing: %v", err)
	}
	overlay(t, path, ".", "raw")
	if err := readAll(path); !errors.Is(err, raw.ErrNotImage) {
		t.Errorf("a directory: %v", err)
	}
}

func TestBackingFormatThatIsNotRecordedIsDetected(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	imagetest.RandomFile(t, at("base.raw"), 1<<20, 4)
	imagetest.Run(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", at("base.raw"), at("base.qcow2"))
	want := imagetest.ConvertToRaw(t, at("base.raw"), "raw")
	for _, base := range []string{"base.raw", "base.qcow2"} {
		overlay(t, at("top.qcow2"), base, "")
		imagetest.CheckContent(t, open(t, at("top.qcow2")), want)
	}
}

func TestChainsHaveALimit(t *testing.T) {
	dir := t.TempDir()
	at := func(i int) string { return filepath.Join(dir, fmt.Sprintf("%03d.qcow2", i)) }
	imagetest.Run(t, "qemu-img", "create", "-f", "qcow2", at(0), "1M")
	imagetest.QemuIO(t, at(0), "qcow2", "write -P 0x99 0 1M")
	overlay(t, at(1), "000.qcow2", "qcow2")
	b, err := os.ReadFile(at(1))
	if err != nil {
		t.Fatal(err)
	}
	name := forgery(b).get64(8)
	for i := 2; i <= 200; i++ {
		copy(b[name:], fmt.Sprintf("%03d", i-1))
		if err := os.WriteFile(at(i), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	im := open(t, at(199))
	imagetest.CheckContent(t, im, bytes.Repeat([]byte{0x99}, 1<<20))
	imagetest.CheckExtents(t, im, bytes.Repeat([]byte{0x99}, 1<<20))
	cheaply(t, func() {
		if err := readAll(at(200)); !errors.Is(err, qcow2.ErrBacking) || !strings.Contains(err.Error(), "more than 200") {
			t.Errorf("error %v", err)
		}
	})
}
