package maptree

import (
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"varve/internal/repository/chunk"
)

// bitmapOf draws a set of blocks below n, from nearly none to nearly all.
func bitmapOf(t *rapid.T, n int, label string) Bitmap {
	var b Bitmap
	switch rapid.IntRange(0, 3).Draw(t, label+" kind") {
	case 0: // a few
		for range rapid.IntRange(0, 3).Draw(t, label+" count") {
			b.Set(rapid.IntRange(0, n-1).Draw(t, label))
		}
	case 1: // a run
		from := rapid.IntRange(0, n-1).Draw(t, label+" from")
		b = First(rapid.IntRange(from, n).Draw(t, label+" to")).AndNot(First(from))
	default:
		for i := range b {
			b[i] = rapid.Uint64().Draw(t, label)
		}
		b = b.And(First(n))
	}
	return b
}

func idOf(n int) (id chunk.ID) {
	binary.BigEndian.PutUint64(id[:], uint64(n)*0x9e3779b97f4a7c15)
	return id
}

func placeOf(pack, frame int) chunk.Place {
	p := chunk.Place{Frame: uint32(frame)}
	binary.BigEndian.PutUint64(p.Pack[:], uint64(pack)*0xbf58476d1ce4e5b9)
	return p
}

func TestBitmapIsASet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := bitmapOf(t, MaxBlocks, "a"), bitmapOf(t, MaxBlocks, "b")
		count := 0
		var listed []int
		for i := range MaxBlocks {
			if a.Rank(i) != count {
				t.Fatalf("rank of %d is %d, want %d", i, a.Rank(i), count)
			}
			if a.Has(i) {
				count++
				listed = append(listed, i)
			}
			if a.And(b).Has(i) != (a.Has(i) && b.Has(i)) || a.Or(b).Has(i) != (a.Has(i) || b.Has(i)) || a.AndNot(b).Has(i) != (a.Has(i) && !b.Has(i)) {
				t.Fatalf("wrong at %d", i)
			}
			c := a
			c.Set(i)
			if !c.Has(i) || c.AndNot(a).Count() > 1 {
				t.Fatalf("set %d", i)
			}
			c.Clear(i)
			if c.Has(i) || a.AndNot(c).Count() > 1 {
				t.Fatalf("clear %d", i)
			}
		}
		if a.Count() != count || a.Empty() != (count == 0) {
			t.Fatalf("count %d, want %d", a.Count(), count)
		}
		if each := slices.Collect(a.Each()); !slices.Equal(each, listed) {
			t.Fatalf("lists %v, want %v", each, listed)
		}
		for n := range MaxBlocks + 1 {
			if First(n).Count() != n || n > 0 && !First(n).Has(n-1) {
				t.Fatalf("first %d", n)
			}
		}
	})
}

// Whatever chunks overlap and whatever is zero: the youngest that holds a block has it, where its rank says.
func TestSourceIsTheYoungestThatHoldsTheBlock(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := Geometry{BlocksPerRegion: rapid.SampledFrom([]int{16, 32, 64, 128, 256}).Draw(t, "blocks")}
		r := Region{Zero: bitmapOf(t, g.BlocksPerRegion, "zero")}
		for i := range rapid.IntRange(0, MaxChunks).Draw(t, "chunks") {
			r.Chunks = append(r.Chunks, Chunk{ID: idOf(i), Held: bitmapOf(t, g.BlocksPerRegion, "held")})
		}
		n, err := r.normal(g)
		if err != nil {
			t.Fatal(err)
		}
		for block := range g.BlocksPerRegion {
			chunkIndex, position, ok := r.Source(block)
			youngest := -1
			for i, c := range r.Chunks {
				if c.Held.Has(block) {
					youngest = i
				}
			}
			if want := youngest >= 0 && !r.Zero.Has(block); ok != want || r.Mapped().Has(block) != want {
				t.Fatalf("block %d: ok %v, mapped %v, want %v", block, ok, r.Mapped().Has(block), want)
			}
			if ok && (chunkIndex != youngest || position != len(slices.Collect(r.Chunks[youngest].Held.And(First(block)).Each()))) {
				t.Fatalf("block %d is in chunk %d at %d", block, chunkIndex, position)
			}
			for i, supplied := range r.Supplied() {
				if supplied.Has(block) != (ok && i == chunkIndex) {
					t.Fatalf("block %d is supplied by chunk %d: %v", block, i, supplied.Has(block))
				}
			}
			// The normal form says the same.
			normalIndex, normalPosition, normalOK := n.Source(block)
			if ok != normalOK || ok && (n.Chunks[normalIndex].ID != r.Chunks[chunkIndex].ID || position != normalPosition) {
				t.Fatalf("block %d has another source in normal form", block)
			}
		}
		if err := canonical(n); err != nil {
			t.Fatalf("normal form: %v", err)
		}
	})
}

func TestNormalRefusesWhatNoRegionHas(t *testing.T) {
	g := Geometry{BlocksPerRegion: 16}
	for name, r := range map[string]Region{
		"five chunks": {Chunks: slices.Repeat([]Chunk{{Held: First(1)}}, 5)},
		"block 16":    {Chunks: []Chunk{{Held: First(17)}}},
	} {
		if _, err := r.normal(g); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
