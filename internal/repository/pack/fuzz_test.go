package pack

import (
	"bytes"
	"testing"

	"varve/internal/repository/chunk"
	"varve/internal/repository/seal"
)

func FuzzDirectory(f *testing.F) {
	f.Add([]byte{}, int64(0))
	f.Add([]byte{0, 0, 0, 0}, int64(0))
	entries := []Entry{
		{ID: chunk.ID{1}, SealedBytes: 100, PlainBytes: 4096, Encoding: Zstd, Hashes: []uint64{7}},
		{ID: chunk.ID{2}, SealedBytes: 8192 + seal.Overhead, PlainBytes: 8192, Hashes: []uint64{8, 9}},
		{ID: chunk.ID{3}, SealedBytes: 10 + seal.Overhead, PlainBytes: 10},
	}
	f.Add(encodeDirectory(entries, 3), int64(100+8208+26))
	f.Fuzz(func(t *testing.T, b []byte, framesBytes int64) {
		d, err := decodeDirectory(b, framesBytes)
		if err != nil {
			return
		}
		end := int64(0)
		for i := range d.Len() {
			e := d.Entry(uint32(i))
			if int64(e.Offset) != end {
				t.Fatalf("frame %d begins at %d, not %d", i, e.Offset, end)
			}
			if end += int64(e.SealedBytes); end > framesBytes {
				t.Fatalf("frame %d ends at %d of %d", i, end, framesBytes)
			}
			if frame, ok := d.Find(e.ID); !ok || d.Entry(frame).ID != e.ID {
				t.Fatalf("frame %d is not found", i)
			}
		}
		again := encodeDirectory(d.Entries(), d.hashes)
		for i := range d.Len() { // reserved bytes
			at := countBytes + i*entryBytes + 41
			again[at] = b[at]
		}
		if !bytes.Equal(again, b) {
			t.Fatal("encodes to something else")
		}
	})
}

func FuzzContent(f *testing.F) {
	plain := bytes.Repeat([]byte("content "), 1000)
	encoded, _ := Encode(nil, plain)
	f.Add(encoded, byte(Zstd), uint32(len(plain)))
	f.Add([]byte("raw"), byte(Raw), uint32(3))
	f.Add(append(bytes.Clone(encoded), encoded...), byte(Zstd), uint32(2*len(plain)))
	f.Fuzz(func(t *testing.T, encoded []byte, enc byte, plainBytes uint32) {
		n := int(plainBytes % (1 << 20))
		decoded, err := Decode(make([]byte, 3, 8), encoded, Encoding(enc), n)
		if err == nil && len(decoded) != 3+n || cap(decoded) > 4*(n+1024) {
			t.Fatalf("%d bytes, of %d, in %d: %v", len(decoded), n, cap(decoded), err)
		}
	})
}
