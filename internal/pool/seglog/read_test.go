package seglog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"syscall"
	"testing"

	"varve/internal/block"
	"varve/internal/vfs"
	"varve/internal/vfs/crashfs"
)

// Pieces in any order, near each other and far, of segments as they were written and rewritten ones, are
// what was appended; also where a read of several fails, and not where the places were given back.
func TestPiecesAreWhatWasAppended(t *testing.T) {
	fs, l := newLog(t)
	content := func(n uint64) []byte {
		return bytes.Repeat(binary.LittleEndian.AppendUint64(nil, n+1), block.Size/8)
	}
	var at []Addr
	for i := range uint64(120) { // some behind each other in a batch, some with a header between
		batch := []Entry{}
		for k := range 1 + i%3 {
			p := content(uint64(len(at)) + k)
			batch = append(batch, Entry{Kind: KindBlob, Count: 1, Payload: [][]byte{p}, CRCs: []uint32{Checksum(p)}})
		}
		if _, err := l.Append(batch); err != nil {
			t.Fatal(err)
		}
		for _, e := range batch {
			at = append(at, e.Addr)
		}
	}
	gone := map[Addr]bool{}
	files, err := l.Files()
	if err != nil {
		t.Fatal(err)
	}
	compactor := l.NewCompactor()
	var done Compacted
	for n, f := range files {
		id := f.Segments[0]
		if n%4 == 0 || id == l.Position().Segment {
			continue
		}
		live := NewBlockSet(l.SegmentBlocks())
		few := n%4 == 1 // left, so that it goes into a pack
		for i, a := range at {
			if a.Segment() != id {
				continue
			}
			if gone[a] = i%3 == 0 || few && live.Count() > 0; !gone[a] {
				live.Add(int(a.Offset() / block.Size))
			}
		}
		did, err := compactor.Compact(f, map[uint64]BlockSet{id: live})
		if err != nil {
			t.Fatal(err)
		}
		done.add(did)
	}
	did, err := compactor.Flush()
	if done.add(did); err != nil || done.Rewritten == 0 || done.Packed == 0 {
		t.Fatalf("compacted %+v, %v", done, err)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	reads := 0
	for n := range 400 {
		var pieces []Piece
		want := map[*byte]uint64{}
		for i, a := range at {
			if !gone[a] && rnd.IntN(1+n%5) == 0 {
				to := make([]byte, block.Size)
				pieces = append(pieces, Piece{a, to})
				want[&to[0]] = uint64(i)
			}
		}
		rnd.Shuffle(len(pieces), func(i, k int) { pieces[i], pieces[k] = pieces[k], pieces[i] })
		wait := n%2 == 0
		remove := func() {}
		if n%4 == 0 { // a sector that is only read along, or is bad for a moment
			remove = fs.Inject(crashfs.Fault{Err: syscall.EIO, Skip: rnd.IntN(5), Times: 1, Match: func(op crashfs.Op) bool {
				return op.Kind == crashfs.Read && op.Length > block.Size
			}})
		}
		count := fs.Inject(crashfs.Fault{Err: syscall.EIO, Match: func(op crashfs.Op) bool {
			if op.Kind == crashfs.Read {
				reads++
			}
			return false
		}})
		err := l.ReadPieces(pieces, wait)
		count()
		remove()
		if err != nil {
			t.Fatalf("round %d: %v", n, err)
		}
		for _, p := range pieces {
			if !bytes.Equal(p.To, content(want[&p.To[0]])) {
				t.Fatalf("round %d: the piece at %s is not block %d", n, p.Addr, want[&p.To[0]])
			}
		}
	}
	if reads == 0 || reads > 400*len(at)/4 {
		t.Errorf("%d reads", reads)
	}
	for i, a := range at {
		p := []Piece{{at[len(at)-1], make([]byte, block.Size)}, {a, make([]byte, block.Size)}}
		err := l.ReadPieces(p, true)
		if gone[a] && err == nil || err != nil && !(gone[a] && errors.Is(err, errGivenBack)) {
			t.Fatalf("block %d: gone is %t, %v", i, gone[a], err)
		}
	}
	fs.SetCold(true)
	if err := l.ReadPieces([]Piece{{at[1], make([]byte, block.Size)}}, false); !errors.Is(err, vfs.ErrWouldBlock) {
		t.Errorf("cold: %v", err)
	}
	l.Close()
}
