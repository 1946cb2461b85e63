package format_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"varve/internal/image/format"
	"varve/internal/image/imagetest"
)

// qemu-img makes the images whose formats it can.
func TestDetectsWhatQemuMakes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	for _, name := range []string{"raw", "qcow2", "qcow", "qed", "vmdk", "vdi", "vhdx", "vpc", "parallels"} {
		imagetest.Run(t, "qemu-img", "create", "-f", name, path, "1M")
		image, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		got := format.Detect(image[:min(len(image), format.HeadBytes)])
		if string(got) != name {
			t.Errorf("%s is taken for %s", name, got)
		}
		readable := name == "raw" || name == "qcow2"
		if got.Readable() != readable || (got.Hint() == "") != readable || !readable && !strings.Contains(got.Hint(), "qemu-img convert -f "+name+" ") {
			t.Errorf("%s: readable %v, hint %q", name, got.Readable(), got.Hint())
		}
	}
}

func TestDetectsPackedFilesAndTakesTheRestForRaw(t *testing.T) {
	tar := make([]byte, 512)
	copy(tar[257:], "ustar")
	luks := append([]byte("LUKS\xba\xbe\x00\x02"), make([]byte, 500)...)
	for _, c := range []struct {
		head []byte
		want format.Format
	}{
		{nil, format.Raw},
		{[]byte("QFI"), format.Raw},
		{[]byte("QFI\xfb\x00\x00\x00"), format.Raw},
		{[]byte("QFI\xfb\x00\x00\x00\x09"), format.Qcow2}, // whose reader says what is wrong with version 9
		{luks, format.Raw},
		{[]byte("\x1f\x8b\x08\x00"), "gzip"},
		{[]byte("\xfd7zXZ\x00"), "xz"},
		{[]byte("\x28\xb5\x2f\xfd"), "zstd"},
		{tar, "tar"},
	} {
		got := format.Detect(c.head)
		if got != c.want {
			t.Errorf("%q is taken for %s, want %s", c.head, got, c.want)
		}
		if !got.Readable() && got.Hint() != "unpack it first" {
			t.Errorf("%s: hint %q", got, got.Hint())
		}
	}
}
