package seglog

import (
	"errors"
	iofs "io/fs"
	"strings"
	"testing"

	"varve/internal/block"
	"varve/internal/vfs/crashfs"
)

// fillSegments appends durable batches until segment last is the one being written.
func fillSegments(t *testing.T, l *Log, next *uint64, last uint64) {
	t.Helper()
	for l.Position().Segment < last {
		appendNumber(t, l, *next, 6)
		*next++
	}
	if err := l.Flush(l.LastSeq()); err != nil {
		t.Fatal(err)
	}
	l.writeback.under.Wait() // a segment that is still being written out is in use, and is no spare
}

func compact(t *testing.T, l *Log, id uint64) {
	t.Helper()
	if _, err := l.NewCompactor().Compact(File{Segments: []uint64{id}}, nil); err != nil {
		t.Fatal(err)
	}
}

func countFiles(t *testing.T, fs *crashfs.FS, suffix string) int {
	t.Helper()
	names, err := fs.List("/log")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, name := range names {
		if strings.HasSuffix(name, suffix) {
			n++
		}
	}
	return n
}

// A removed segment's file becomes a new segment's, and only what is written then is in the log:
// not what the file held before, wherever the writing ends.
func TestSpareFilesHoldNothing(t *testing.T) {
	fs, l := newLog(t)
	next := uint64(1)
	fillSegments(t, l, &next, 4)
	from := l.Position()
	if err := l.KeepSpares(1 << 20); err != nil {
		t.Fatal(err)
	}
	compact(t, l, 2)
	compact(t, l, 3)
	if countFiles(t, fs, spareSuffix) != 2 || l.SpareBytes() == 0 {
		t.Fatalf("%d spare files of %d bytes", countFiles(t, fs, spareSuffix), l.SpareBytes())
	}
	first := next
	for l.Position().Segment < 6 {
		appendNumber(t, l, next, 6)
		next++
		for _, all := range []bool{true, false} {
			policy := crashfs.DropAll
			if all {
				policy = crashfs.KeepAll
			}
			image := fs.CrashImage(policy)
			again := New(config(image))
			var numbers []uint64
			rec, err := again.Recover(from, 0, func(_ uint64, entries []Entry) error {
				numbers = append(numbers, numberOf(entries))
				for i := range entries {
					checkPayload(t, again, &entries[i])
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			for i, n := range numbers {
				if n != first+uint64(i) {
					t.Fatalf("replayed %v, and batch %d began", numbers, first)
				}
			}
			if all && (len(numbers) != int(next-first) || rec.TornBytes != 0) {
				t.Fatalf("replayed %v up to %d, and %d bytes are torn", numbers, next, rec.TornBytes)
			}
			if n := countFiles(t, image, spareSuffix); n != 0 {
				t.Fatalf("%d spare files outlive the process", n)
			}
			again.Close()
		}
	}
	if countFiles(t, fs, spareSuffix) != 0 || l.SpareBytes() != 0 {
		t.Errorf("%d spare files of %d bytes are left", countFiles(t, fs, spareSuffix), l.SpareBytes())
	}
	if length, _, err := l.stat(l.segments.name(5)); err != nil || length > 64<<10 {
		t.Errorf("a segment that is full takes %d bytes: %v", length, err)
	}
}

// The log goes on in a spare file rather than in a new one of which little is used.
func TestLogTakesASpareFile(t *testing.T) {
	_, l := newLog(t)
	next := uint64(1)
	fillSegments(t, l, &next, 4)
	if err := l.KeepSpares(1 << 20); err != nil {
		t.Fatal(err)
	}
	if err := l.Roll(0); err != nil {
		t.Fatal(err)
	}
	before := l.Position().Segment
	l.TakeSpare()
	if l.rolling {
		t.Fatal("without a spare file the log is about to begin a new one")
	}
	compact(t, l, 2)
	l.TakeSpare()
	appendNumber(t, l, next, 1)
	if now := l.Position().Segment; now != before+1 || l.SpareBytes() != 0 {
		t.Errorf("the log is in segment %d, after %d, and %d bytes are spare", now, before, l.SpareBytes())
	}
	compact(t, l, 3)
	l.TakeSpare() // it is in one already
	appendNumber(t, l, next+1, 1)
	if now := l.Position().Segment; now != before+1 {
		t.Errorf("the log left a spare file for another, segment %d", now)
	}
}

// What somebody still reads is not written again under him.
func TestSpareFilesAreNobodysElse(t *testing.T) {
	fs, l := newLog(t)
	next := uint64(1)
	fillSegments(t, l, &next, 4)
	if err := l.KeepSpares(1 << 20); err != nil {
		t.Fatal(err)
	}
	s, err := l.segments.acquire(2)
	if err != nil {
		t.Fatal(err)
	}
	before, after := make([]byte, block.Size), make([]byte, block.Size)
	if _, err := s.file.ReadAt(before, 0); err != nil {
		t.Fatal(err)
	}
	compact(t, l, 2)
	if n := countFiles(t, fs, spareSuffix); n != 0 {
		t.Fatalf("%d spare files", n)
	}
	fillSegments(t, l, &next, 6)
	if _, err := s.file.ReadAt(after, 0); err != nil || string(before) != string(after) {
		t.Errorf("what was read changed: %v", err)
	}
	l.segments.release(s)
	if err := l.ReadAt(MakeAddr(2, 0), after); !errors.Is(err, iofs.ErrNotExist) {
		t.Errorf("reading the removed segment: %v", err)
	}
}

// Spares stay within their limit, and go when it falls.
func TestSpareFilesAreLimited(t *testing.T) {
	fs, l := newLog(t)
	next := uint64(1)
	fillSegments(t, l, &next, 6)
	if err := l.KeepSpares(100 << 10); err != nil {
		t.Fatal(err)
	}
	for id := uint64(2); id < 6; id++ {
		compact(t, l, id)
	}
	if n := countFiles(t, fs, spareSuffix); n != 1 || l.SpareBytes() > 100<<10 {
		t.Errorf("%d spare files of %d bytes", n, l.SpareBytes())
	}
	if err := l.KeepSpares(0); err != nil {
		t.Fatal(err)
	}
	if n := countFiles(t, fs, spareSuffix); n != 0 || l.SpareBytes() != 0 {
		t.Errorf("%d spare files of %d bytes are left", n, l.SpareBytes())
	}
}
