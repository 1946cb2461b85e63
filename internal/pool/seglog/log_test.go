package seglog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"varve/internal/block"
	"varve/internal/vfs/crashfs"
)

type tb interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
}

var testPool = uuid.MustParse("6b8cbe6f-1f5e-4b53-9b0a-2a7a3a6f3c11")

const testSalt = 0x1234_5678_9abc_def0

func config(fs *crashfs.FS) Config {
	return Config{FS: fs, Dir: "/log", Pool: testPool, Salt: testSalt, SegmentBytes: 64 << 10, OpenFiles: 2}
}

// newLog returns a file system with an empty log in it, open.
func newLog(t tb) (*crashfs.FS, *Log) {
	t.Helper()
	fs := crashfs.New()
	if err := errors.Join(fs.Mkdir("/log"), fs.SyncDir("/")); err != nil {
		t.Fatal(err)
	}
	l, _, _ := recovered(t, fs)
	return fs, l
}

// recovered opens the log in fs and returns what was replayed from its beginning.
func recovered(t tb, fs *crashfs.FS) (*Log, Recovery, []uint64) {
	t.Helper()
	l := New(config(fs))
	var numbers []uint64
	rec, err := l.Recover(Position{}, 0, func(seq uint64, entries []Entry) error {
		numbers = append(numbers, numberOf(entries))
		for i := range entries {
			checkPayload(t, l, &entries[i])
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return l, rec, numbers
}

// numbered returns a batch that carries a number: in its Clear entry, in inline content, and
// in every payload block.
func numbered(number uint64, blocks int) []Entry {
	inline := binary.LittleEndian.AppendUint64([]byte("number "), number)
	entries := []Entry{
		{Kind: KindClear, Volume: 1, LBA: number, Count: 1 << 40},
		{Kind: KindCatalogue, Inline: inline},
	}
	for _, kind := range []Kind{KindData, KindBlob, KindMove} {
		if blocks == 0 {
			break
		}
		if kind == KindMove {
			blocks = 1
		}
		e := Entry{Kind: kind, Count: uint64(blocks)}
		if kind != KindBlob {
			e.Volume, e.LBA = number, 1000+number
		}
		p := bytes.Repeat(binary.LittleEndian.AppendUint64(nil, number), blocks*block.Size/8)
		e.Payload = [][]byte{p[:block.Size], p[block.Size:]} // cut in any way
		for range blocks {
			e.CRCs = append(e.CRCs, Checksum(p[:block.Size]))
		}
		entries = append(entries, e)
	}
	return entries
}

// numberOf returns the number of a batch, 0 for the log's own.
func numberOf(entries []Entry) uint64 {
	if entries[0].Kind == KindClear {
		return entries[0].LBA
	}
	return 0
}

// checkPayload reads a payload back and compares checksums.
func checkPayload(t tb, l *Log, e *Entry) {
	t.Helper()
	for i, want := range e.CRCs {
		b := make([]byte, block.Size)
		if err := l.ReadAt(e.Addr.Plus(int64(i)*block.Size), b); err != nil {
			t.Fatal(err)
		}
		if Checksum(b) != want {
			t.Fatalf("payload block %d at %s is not what was appended", i, e.Addr)
		}
	}
}

func appendNumber(t tb, l *Log, number uint64, blocks int) uint64 {
	t.Helper()
	entries := numbered(number, blocks)
	seq, err := l.Append(entries)
	if err != nil {
		t.Fatal(err)
	}
	for i := range entries {
		checkPayload(t, l, &entries[i])
	}
	return seq
}

// A batch never crosses two segments; one that is longer than a segment has one to itself. The
// position before each batch is a place to replay from.
func TestSegmentsRollOver(t *testing.T) {
	fs, l := newLog(t)
	var from []Position
	lengths := []int{1, 3, 0, 7, 7, 1, 20, 0, 1, 7, 30, 2}
	for i, n := range lengths {
		from = append(from, l.Position())
		appendNumber(t, l, uint64(i+1), n)
	}
	if err := l.Flush(l.LastSeq()); err != nil {
		t.Fatal(err)
	}
	ids, err := l.Segments()
	if err != nil || len(ids) < 5 {
		t.Fatalf("segments %v, %v", ids, err)
	}
	l.Close()
	for i, p := range from {
		l := New(config(fs.CrashImage(crashfs.DropAll)))
		next := uint64(i + 1)
		rec, err := l.Recover(p, 0, func(_ uint64, entries []Entry) error {
			if got := numberOf(entries); got != next {
				return fmt.Errorf("batch %d where %d should be", got, next)
			}
			next++
			return nil
		})
		if err != nil || rec.Batches != len(lengths)-i || rec.TornBytes != 0 {
			t.Fatalf("from %+v: %+v, %v", p, rec, err)
		}
		l.Close()
	}
}

// What is too large for one batch is refused and leaves no trace.
func TestOversizeBatchesAreRefused(t *testing.T) {
	_, l := newLog(t)
	before := l.Position()
	for name, entries := range map[string][]Entry{
		"payload": {{Kind: KindBlob, Count: MaxPayloadBlocks + 1, CRCs: make([]uint32, MaxPayloadBlocks+1)}},
		"header":  slices.Repeat([]Entry{{Kind: KindCatalogue, Inline: make([]byte, MaxInlineBytes)}}, 3),
	} {
		if _, err := l.Append(entries); err == nil {
			t.Errorf("a batch with too much %s is taken", name)
		}
	}
	if l.Position() != before {
		t.Error("a refused batch moved the end of the log")
	}
	appendNumber(t, l, 1, MaxPayloadBlocks/3)
	l.Close()
}

// Segments that nobody uses are closed, and opened again when they are read.
func TestIdleFilesAreClosed(t *testing.T) {
	_, l := newLog(t)
	var all []Entry
	for i := range uint64(20) {
		entries := numbered(i+1, 7)
		if _, err := l.Append(entries); err != nil {
			t.Fatal(err)
		}
		all = append(all, entries...)
	}
	if err := l.Flush(l.LastSeq()); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range all {
				checkPayload(t, l, &all[i])
			}
		})
	}
	wg.Wait()
	if n := len(l.segments.open); n > 1+l.segments.limit { // and the one being written
		t.Errorf("%d files are open", n)
	}
	l.Close()
	if n := len(l.segments.open); n > 0 {
		t.Errorf("%d files are open after closing", n)
	}
}

// Flushes share syncs, and one that is covered already makes none.
func TestFlushesShareSyncs(t *testing.T) {
	fs, l := newLog(t)
	syncs := 0
	fs.OnOp(func(_ int, op crashfs.Op, _ error) {
		if op.Kind == crashfs.Sync {
			syncs++
		}
	})
	seq := appendNumber(t, l, 1, 1)
	const flushers = 20
	var wg sync.WaitGroup
	for range flushers {
		wg.Go(func() {
			if err := l.Flush(seq); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if syncs != 1 || l.DurableSeq() < seq {
		t.Errorf("%d syncs, durable up to %d of %d", syncs, l.DurableSeq(), seq)
	}
	fs.OnOp(nil)
	l.Close()
}

// Batches of numbers are appended, flushed, torn by failing writes and cut off by crashes, for
// several lives of the log. What is replayed is what was appended, in order, up to
// some batch not before the last flush; what one life has found, the next ones find, too.
func TestLogAgainstAList(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		fs, l := newLog(t)
		var list []uint64 // what must be in the log, the log's own batches left out
		flushed := 0      // so many of list are durable
		number := uint64(0)
		for range rapid.IntRange(1, 4).Draw(t, "lives") {
			for range rapid.IntRange(0, 12).Draw(t, "steps") {
				switch rapid.IntRange(0, 9).Draw(t, "step") {
				case 0, 1:
					if err := l.Flush(l.LastSeq()); err != nil {
						t.Fatal(err)
					}
					flushed = len(list)
				case 2:
					number++
					remove := fs.Inject(crashfs.Fault{
						Err: errors.New("no"), Times: 1, Prefix: rapid.Int64Range(0, 30000).Draw(t, "prefix"),
						Match: func(op crashfs.Op) bool { return op.Kind == crashfs.Write || op.Kind == crashfs.Create },
					})
					if _, err := l.Append(numbered(number, 3)); err == nil {
						t.Fatal("a write that failed was acknowledged")
					}
					remove()
				default:
					number++
					list = append(list, number)
					appendNumber(t, l, number, rapid.SampledFrom([]int{0, 1, 1, 4, 9}).Draw(t, "blocks"))
				}
			}
			policy := rapid.SampledFrom([]crashfs.Policy{
				crashfs.KeepAll, crashfs.DropAll, crashfs.Torn, crashfs.ProcessCrash,
				crashfs.Random(rapid.Uint64().Draw(t, "seed")), crashfs.KeepOnly(rapid.IntRange(0, 9).Draw(t, "kept")),
				crashfs.DropOnly(rapid.IntRange(0, 9).Draw(t, "dropped")),
			}).Draw(t, "policy")
			l.Close()
			fs = fs.CrashImage(policy)
			var found []uint64
			l, _, found = recovered(t, fs)
			found = slices.DeleteFunc(found, func(n uint64) bool { return n == 0 })
			// A batch whose write failed may have been kept by the crash, as the last one.
			kept := found
			if n := len(kept); n > 0 && !slices.Contains(list, kept[n-1]) {
				kept = kept[:n-1]
			}
			if len(kept) < flushed || len(kept) > len(list) || !slices.Equal(kept, list[:len(kept)]) {
				t.Fatalf("after %v the log holds %v, appended were %v, and %d flushed", policy, found, list, flushed)
			}
			list, flushed = found, len(found)
		}
		l.Close()
		_, _, again := recovered(t, fs.CrashImage(crashfs.DropAll))
		if again = slices.DeleteFunc(again, func(n uint64) bool { return n == 0 }); !slices.Equal(again, list) {
			t.Fatalf("the log holds %v, and held %v", again, list)
		}
	})
}

// A position that no log reaches, from a forged superblock, is refused: going on
// from it would make segments that no address can name.
func TestImpossiblePositionsAreRefused(t *testing.T) {
	for _, p := range []Position{{Segment: maxSegments}, {Segment: 1, Offset: MaxSegmentBytes + 1}, {Seq: 1 << 63}} {
		fs, l := newLog(t)
		l.Close()
		l = New(config(fs))
		before, err := l.Segments()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.Recover(p, 0, func(uint64, []Entry) error { return nil }); !errors.Is(err, ErrDamaged) {
			t.Errorf("from %+v: %v", p, err)
		}
		if after, err := l.Segments(); err != nil || !slices.Equal(before, after) {
			t.Errorf("segments %v became %v, %v", before, after, err)
		}
		l.Close()
	}
}
