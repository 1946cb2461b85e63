package maptree

import (
	"context"
	"encoding/binary"
	"testing"

	"varve/internal/repository/chunk"
)

// countingStore numbers nodes instead of hashing them, so that a benchmark shows what the tree costs.
type countingStore struct {
	nodes map[chunk.ID][]byte // nil: they are not kept
	count uint64
	bytes int64
}

func (s *countingStore) ReadNode(_ context.Context, id chunk.ID, _ chunk.Place) ([]byte, error) {
	return s.nodes[id], nil
}

func (s *countingStore) WriteNode(_ context.Context, plain []byte) (id chunk.ID, p chunk.Place, err error) {
	s.count++
	s.bytes += int64(len(plain))
	binary.BigEndian.PutUint64(id[:], s.count)
	p.Frame = uint32(s.count)
	if s.nodes != nil {
		s.nodes[id] = plain
	}
	return id, p, nil
}

// fill sets every nth region, as a full backup does.
func fill(b *testing.B, s *countingStore, g Geometry, base Root, regions, nth uint64) Root {
	builder := NewBuilder(s, s, g, base)
	r := wholeRegion(g, 1)
	for index := uint64(0); index < regions; index += nth {
		r.Chunks[0].ID[0], r.Chunks[0].Place = byte(index), placeOf(int(index/nth/128), int(index/nth%128))
		if err := builder.Set(context.Background(), index, r); err != nil {
			b.Fatal(err)
		}
	}
	root, err := builder.Finish(context.Background(), regions)
	if err != nil {
		b.Fatal(err)
	}
	return root
}

// devices of benchmarks, in regions of 256 KiB.
var devices = []struct {
	name         string
	regions, nth uint64
}{
	{"4GiB", 4 << 30 >> 18, 1},
	{"sparse64TiB", 64 << 40 >> 18, 1009}, // a region in each quarter of a gigabyte, in a leaf of its own
}

func BenchmarkBuild(b *testing.B) {
	g := Geometry{BlocksPerRegion: 64}
	for _, d := range devices {
		b.Run(d.name, func(b *testing.B) {
			b.ReportAllocs()
			s := &countingStore{}
			for range b.N {
				fill(b, s, g, Root{Empty: true}, d.regions, d.nth)
			}
			regions := float64((d.regions + d.nth - 1) / d.nth)
			b.ReportMetric(float64(s.bytes)/float64(b.N)/regions, "bytes/region")
			b.ReportMetric(float64(s.count)/float64(b.N), "nodes")
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/regions, "ns/region")
		})
	}
}

// One region in a hundred gets another map, on top of a base that is read.
func BenchmarkIncrement(b *testing.B) {
	g := Geometry{BlocksPerRegion: 64}
	for _, d := range devices {
		b.Run(d.name, func(b *testing.B) {
			s := &countingStore{nodes: map[chunk.ID][]byte{}}
			base := fill(b, s, g, Root{Empty: true}, d.regions, d.nth)
			changes := &countingStore{}
			b.ReportAllocs()
			for b.Loop() {
				builder := NewBuilder(s, changes, g, base)
				r := wholeRegion(g, 5)
				for index := uint64(0); index < d.regions; index += 100 * d.nth {
					if err := builder.Set(context.Background(), index, r); err != nil {
						b.Fatal(err)
					}
				}
				if _, err := builder.Finish(context.Background(), d.regions); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(changes.count)/float64(b.N), "nodes")
		})
	}
}

func BenchmarkRegion(b *testing.B) {
	g := Geometry{BlocksPerRegion: 64}
	s := &countingStore{nodes: map[chunk.ID][]byte{}}
	d := devices[0]
	root := fill(b, s, g, Root{Empty: true}, d.regions, d.nth)
	for name, cache := range map[string]int64{"cached": 1 << 30, "uncached": 0} {
		b.Run(name, func(b *testing.B) {
			tree := NewTree(s, g, root, cache)
			index := uint64(0)
			for b.Loop() {
				index = (index + 7919) % d.regions
				if _, err := tree.Region(context.Background(), index); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkWalk(b *testing.B) {
	g := Geometry{BlocksPerRegion: 64}
	s := &countingStore{nodes: map[chunk.ID][]byte{}}
	d := devices[0]
	root := fill(b, s, g, Root{Empty: true}, d.regions, d.nth)
	for b.Loop() {
		if err := NewTree(s, g, root, 0).Walk(context.Background(), 0, d.regions, func(uint64, Region) error { return nil }); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPatch(b *testing.B) {
	g := Geometry{BlocksPerRegion: 64}
	r := wholeRegion(g, 1)
	for i := range 3 {
		r.Chunks = append(r.Chunks, Chunk{ID: idOf(i), Held: First(3 * (i + 1)).AndNot(First(3 * i))})
	}
	changed := First(20).AndNot(First(19))
	for b.Loop() {
		Patch(r, g, changed, Bitmap{}, MaxChunks)
	}
}
