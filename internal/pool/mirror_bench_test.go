package pool_test

import (
	"math/rand/v2"
	"testing"

	"varve/internal/block"
	"varve/internal/pool"
)

// BenchmarkMirror writes to a volume with and without a leg: 32 blocks at random at a time, and 1 MiB after the other. Compare in alternating rounds:
// for i in 1 2 3; do go test -run '^$' -bench Mirror -benchtime 2s ./internal/pool; done
func BenchmarkMirror(b *testing.B) {
	const size, depth = 512 << 20, 32
	for _, layout := range mirrorLayouts {
		for _, leg := range []string{"plain", "mirrored"} {
			p, file := openMirroredOS(b, layout, size)
			d, err := p.OpenVolume("v")
			if err != nil {
				b.Fatal(err)
			}
			buf := stamp(1 << 20)
			for off := int64(0); off < size; off += 1 << 20 {
				submitOne(b, d, &block.Op{Offset: off, Length: 1 << 20, Data: buf})
			}
			if leg == "mirrored" {
				if _, err := p.AttachMirror(ctx, "v", pool.LegSpec{Path: file}); err != nil {
					b.Fatal(err)
				}
				if err := p.SyncMirror(ctx, "v", nil); err != nil {
					b.Fatal(err)
				}
			}
			if err := d.Flush(ctx); err != nil { // both begin with nothing to be written out
				b.Fatal(err)
			}
			b.Run(layout+"/random/"+leg, func(b *testing.B) {
				ops := make([]*block.Op, depth)
				b.SetBytes(depth * block.Size)
				for b.Loop() {
					for i := range ops {
						ops[i] = &block.Op{Offset: rand.Int64N(size/block.Size) * block.Size, Length: block.Size, Data: buf[:block.Size]}
					}
					submitOne(b, d, ops...)
				}
			})
			b.Run(layout+"/sequential/"+leg, func(b *testing.B) {
				b.SetBytes(1 << 20)
				off := int64(0)
				for b.Loop() {
					submitOne(b, d, &block.Op{Offset: off, Length: 1 << 20, Data: buf})
					off = (off + 1<<20) % size
				}
			})
			_ = d.Close()
			if err := p.Close(ctx); err != nil {
				b.Fatal(err)
			}
		}
	}
}
