package seglog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"path"
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

// FuzzRecover: recovery of any bytes ends, without a panic and in bounded memory. If it
// finds a log, that goes on, and the next recovery finds what this one did.
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
	if err != nil {
		f.Fatal(err)
	}
	var content [3][]byte
	for i, id := range numbers[:3] {
		file, err := fs.Open(l.SegmentPath(id))
		if err != nil {
			f.Fatal(err)
		}
		size, err := file.Size()
		content[i] = make([]byte, size)
		_, readErr := file.ReadAt(content[i], 0)
		if err := errors.Join(err, readErr, file.Close()); err != nil {
			f.Fatal(err)
		}
	}
	l.Close()
	f.Add(content[0], content[1], content[2], false)
	f.Add(content[0], content[1], content[2], true)
	f.Add(content[0], content[1][:9000], []byte{}, true)
	f.Add(content[1], content[0], bytes.Repeat([]byte(headerMagic), 1000), true)
	f.Fuzz(func(t *testing.T, a, b, c []byte, resealed bool) {
		fs := crashfs.New()
		if err := fs.Mkdir("/log"); err != nil {
			t.Fatal(err)
		}
		total := 0
		for i, content := range [][]byte{a, b, c} {
			content = bytes.Clone(content[:min(len(content), 1<<20)])
			if resealed {
				reseal(content)
			}
			total += len(content)
			file, err := fs.Create(path.Join("/log", New(config(fs)).SegmentPath(uint64(i + 1))[len("/log"):]))
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
		_, again, _ := recovered(t, fs)
		if again.LastSeq != rec.LastSeq+2 || again.Batches != rec.Batches+2 || again.TornBytes != 0 {
			t.Fatalf("first %+v, then %+v", rec, again)
		}
	})
}
