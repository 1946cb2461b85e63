package pack

import (
	"encoding/hex"
	"strings"
	"testing"

	"varve/internal/repository/chunk"
)

// The bytes of a directory are those of docs/format-repository.md.
func TestDirectoryIsAsSpecified(t *testing.T) {
	entries := []Entry{
		{ID: chunk.ID{0: 0xa1, 31: 0xa2}, SealedBytes: 0x0203, PlainBytes: 0x2000, Encoding: Zstd, Hashes: []uint64{0x1122334455667788, 5}},
		{ID: chunk.ID{0: 0xb1, 31: 0xb2}, Offset: 0x0203, SealedBytes: 20, PlainBytes: 4},
	}
	want := strings.Join([]string{
		"02000000",
		"a1", strings.Repeat("00", 30), "a2", "03020000", "00200000", "01", "00", "0200",
		"b1", strings.Repeat("00", 30), "b2", "14000000", "04000000", "00", "00", "0000",
		"8877665544332211", "0500000000000000",
	}, "")
	if got := hex.EncodeToString(encodeDirectory(entries, 2)); got != want {
		t.Errorf("%s\nis not\n%s", got, want)
	}
	for _, damage := range []struct {
		what string
		b    string
		size int64
	}{
		{"cut off", want[:len(want)-2], 0x0203 + 20},
		{"too long", want + "00", 0x0203 + 20},
		{"a hash too many", want + "0000000000000000", 0x0203 + 20},
		{"bytes after the last frame", want, 0x0203 + 21},
		{"a frame beyond the end", want, 0x0203 + 19},
		{"an unknown encoding", strings.Replace(want, "01000200", "02000200", 1), 0x0203 + 20},
		{"raw content of another length", strings.Replace(want, "14000000", "13000000", 1), 0x0203 + 19},
		{"more hashes than there are", strings.Replace(want, "01000200", "01000300", 1), 0x0203 + 20},
		{"more entries than there are", strings.Replace(want, "02000000", "ffffffff", 1), 0x0203 + 20},
		{"sealed longer than plain", strings.Replace(want, "00200000", "f2010000", 1), 0x0203 + 20},
		{"content that is too long", strings.Replace(want, "00200000", "01004000", 1), 0x0203 + 20},
	} {
		b, err := hex.DecodeString(damage.b)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeDirectory(b, damage.size); err == nil {
			t.Errorf("%s: decoded", damage.what)
		}
	}
}
