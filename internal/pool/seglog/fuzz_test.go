package seglog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"runtime"
	"testing"

	"varve/internal/block"
	"varve/internal/vfs/crashfs"
)

// reseal gives everything that looks like a header a checksum that fits, so
// that the fuzzer gets behind it.
func reseal(b []byte) {
	for off := 0; off+block.Size <= len(b); off += block.Size {
		if h, err := decodeFixed(b[off:]); err == nil && off+h.headerBlocks*block.Size <= len(b) {
			head := b[off : off+h.headerBlocks*block.Size]
			binary.LittleEndian.PutUint32(head[crcOffset:], headerChecksum(head, testSalt))
		}
	}
}

// patch changes single bytes of the segments as edits say, four bytes each: a segment and
// the block in it, where in the block, and the new value. Small inputs reach every
// field of every header so.
func patch(segments [][]byte, edits []byte) {
	for ; len(edits) >= 4; edits = edits[4:] {
		s := segments[int(edits[0]>>5)%len(segments)]
		if off := int(edits[0]&31)*block.Size + int(binary.LittleEndian.Uint16(edits[1:]))%block.Size; off < len(s) {
			s[off] = edits[3]
		}
	}
}

// FuzzRecover: recovery of any bytes ends, without a panic and in bounded memory. If it
// finds a log, that goes on, and the next recovery finds what this one did. The bytes are
// a real log of three segments with some changed, and one segment of any bytes.
func FuzzRecover(f *testing.F) {
	fs, l := newLog(f)
	for i := range uint64(6) {
		appendNumber(f, l, i+1, int(i%3)*3)
		if err := l.Flush(l.LastSeq()); err != nil {
			f.Fatal(err)
		}
	}
	l.Close()
	l, _, _ = recovered(f, fs)
	appendNumber(f, l, 7, 1)
	numbers, err := l.Segments()
	if err != nil || len(numbers) < 3 {
		f.Fatalf("segments %v, %v", numbers, err)
	}
	var template [3][]byte
	for i, id := range numbers[:3] {
		file, err := fs.Open(l.segments.name(id))
		if err != nil {
			f.Fatal(err)
		}
		size, err := file.Size()
		template[i] = make([]byte, size)
		_, readErr := file.ReadAt(template[i], 0)
		if err := errors.Join(err, readErr, file.Close()); err != nil {
			f.Fatal(err)
		}
	}
	l.Close()
	f.Add([]byte{}, []byte{}, false)
	f.Add([]byte{0, 64, 0, 2, 32, 68, 0, 1}, []byte{}, true)
	f.Add([]byte{64, 72, 0, 9, 0, 80, 0, 1}, template[2][:block.Size], true)
	f.Add([]byte{}, bytes.Repeat([]byte(headerMagic), block.Size/8), true)
	f.Fuzz(func(t *testing.T, edits, last []byte, resealed bool) {
		fs := crashfs.New()
		if err := fs.Mkdir("/log"); err != nil {
			t.Fatal(err)
		}
		segments := [][]byte{bytes.Clone(template[0]), bytes.Clone(template[1]), bytes.Clone(template[2]), bytes.Clone(last)}
		patch(segments, edits)
		total := 0
		for i, content := range segments {
			if resealed {
				reseal(content)
			}
			total += len(content)
			file, err := fs.Create(New(config(fs)).segments.name(uint64(i + 1)))
			if err == nil {
				err = errors.Join(file.WriteAt([][]byte{content}, 0), file.Close())
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		l := New(config(fs))
		batches := 0
		rec, err := l.Recover(Position{}, 0, func(uint64, []Entry) error { batches++; return nil })
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 8<<20+100*uint64(total) {
			t.Fatalf("recovery of %d bytes took %d bytes of memory", total, n)
		}
		if err != nil {
			if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewerFormat) {
				t.Fatal(err)
			}
			l.Close()
			return
		}
		if batches != rec.Batches {
			t.Fatalf("%d batches were replayed, told are %d", batches, rec.Batches)
		}
		appendNumber(t, l, 1, 2)
		l.Close()
		l = New(config(fs))
		again, err := l.Recover(Position{}, 0, func(uint64, []Entry) error { return nil })
		l.Close()
		if err != nil {
			t.Fatal(err)
		}
		if again.LastSeq != rec.LastSeq+2 || again.Batches != rec.Batches+2 || again.TornBytes != 0 {
			t.Fatalf("first %+v, then %+v", rec, again)
		}
	})
}
