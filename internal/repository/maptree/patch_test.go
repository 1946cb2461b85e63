package maptree

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// plainRegion is a region as it really is: the content of each block (0: a hole), and what each chunk that was
// ever stored holds.
type plainRegion struct {
	content []int
	chunks  [][]int // by number, which is the frame of the place
	next    int     // content never used before
}

func newPlainRegion(g Geometry) *plainRegion {
	return &plainRegion{content: make([]int, g.BlocksPerRegion), next: 1}
}

// write gives the blocks of changed new content and makes those of zero holes.
func (p *plainRegion) write(changed, zero Bitmap) {
	for i := range zero.AndNot(changed).Each() {
		p.content[i] = 0
	}
	for i := range changed.Each() {
		p.content[i] = p.next
		p.next++
	}
}

// apply does what a backup does with a plan.
func (p *plainRegion) apply(plan Plan) Region {
	r := plan.Region
	if !plan.Store.Empty() {
		var dense []int
		for i := range plan.Store.Each() {
			dense = append(dense, p.content[i])
		}
		c := Chunk{ID: idOf(len(p.chunks)), Place: placeOf(1, len(p.chunks)), Held: plan.Store}
		p.chunks = append(p.chunks, dense)
		r.Chunks = append(slices.Clone(r.Chunks), c)
	}
	return r
}

// verify reads every block by the region's map.
func (p *plainRegion) verify(t *rapid.T, r Region) {
	for block, want := range p.content {
		got := 0
		if i, position, ok := r.Source(block); ok {
			got = p.chunks[r.Chunks[i].Place.Frame][position]
		}
		if got != want {
			t.Fatalf("block %d has content %d, want %d", block, got, want)
		}
	}
}

func drawGeometry(t *rapid.T) Geometry {
	return Geometry{BlocksPerRegion: rapid.SampledFrom([]int{16, 64, 256}).Draw(t, "blocks")}
}

// verifyPlan checks what holds of every plan.
func verifyPlan(t *rapid.T, before Region, plan Plan, after Region, changed Bitmap, limit int) {
	if len(after.Chunks) > limit {
		t.Fatalf("%d chunks, and %d is the limit", len(after.Chunks), limit)
	}
	if err := canonical(after); err != nil {
		t.Fatal(err)
	}
	if plan.Store.AndNot(plan.Merged) != changed || !plan.Merged.And(changed).Empty() {
		t.Fatalf("stores %v of which %v did not change; %v changed", plan.Store, plan.Merged, changed)
	}
	if !plan.Merged.AndNot(before.Mapped()).Empty() {
		t.Fatal("holes are merged")
	}
	if staying := len(before.Chunks); staying+min(changed.Count(), 1) <= limit && !plan.Merged.Empty() {
		t.Fatalf("%d chunks are merged though there is room", staying)
	}
	if limit > 1 && !plan.Merged.Empty() && plan.Store == after.Mapped() {
		largest := 0
		for _, s := range before.Supplied() {
			largest = max(largest, s.And(after.Mapped()).AndNot(changed).Count())
		}
		if mapped := after.Mapped().Count(); 2*(mapped-largest) <= mapped {
			t.Fatalf("stored whole though patches would supply %d of %d", mapped-largest, mapped)
		}
	}
}

// After any sequence of changes every block's source is right, there are never more chunks than may be,
// and each of them is needed.
func TestPatchedRegionsReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := drawGeometry(t)
		p := newPlainRegion(g)
		var r Region
		for range rapid.IntRange(1, 25).Draw(t, "changes") {
			changed := bitmapOf(t, g.BlocksPerRegion, "changed")
			zero := bitmapOf(t, g.BlocksPerRegion, "zero")
			if rapid.Bool().Draw(t, "no zeros") {
				zero = Bitmap{}
			}
			limit := rapid.SampledFrom([]int{4, 4, 4, 3, 2, 1}).Draw(t, "limit")
			before := r
			p.write(changed, zero)
			plan := Patch(r, g, changed, zero, limit)
			r = p.apply(plan)
			p.verify(t, r)
			verifyPlan(t, before, plan, r, changed, limit)
		}
	})
}

// A differential patches its full's region with all that changed since: it depends on the full's chunks and one
// more. That holds too where the full's region has several chunks of its own.
func TestDifferentialsAreTheFullAndOnePatch(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := drawGeometry(t)
		p := newPlainRegion(g)
		var full Region
		for range rapid.IntRange(1, 6).Draw(t, "backups before the full") {
			changed := bitmapOf(t, g.BlocksPerRegion, "before")
			p.write(changed, Bitmap{})
			full = p.apply(Patch(full, g, changed, Bitmap{}, MaxChunks))
		}
		limit := MaxChunks
		if len(full.Chunks) <= 1 {
			limit = 2
		}
		had := slices.Clone(p.content)
		for range rapid.IntRange(1, 6).Draw(t, "differentials") {
			p.write(bitmapOf(t, g.BlocksPerRegion, "changed"), bitmapOf(t, g.BlocksPerRegion, "zero"))
			var changed, zero Bitmap // since the full
			for i, now := range p.content {
				switch {
				case now == had[i]:
				case now == 0:
					zero.Set(i)
				default:
					changed.Set(i)
				}
			}
			plan := Patch(full, g, changed, zero, limit)
			r := p.apply(plan)
			p.verify(t, r)
			verifyPlan(t, full, plan, r, changed, limit)
			for _, c := range plan.Region.Chunks {
				if !slices.Contains(full.Chunks, c) {
					t.Fatalf("chunk %s is not of the full", c.ID)
				}
			}
			if len(full.Chunks) < MaxChunks && !plan.Merged.Empty() {
				t.Fatal("blocks of the full are stored again")
			}
		}
	})
}

func TestPatchMergesSmallOnesAndStoresWholeRarely(t *testing.T) {
	g := Geometry{BlocksPerRegion: 64}
	blocks := func(from, to int) Bitmap { return First(to).AndNot(First(from)) }
	region := func(held ...Bitmap) (r Region) {
		for i, h := range held {
			r.Chunks = append(r.Chunks, Chunk{ID: idOf(i), Held: h})
		}
		return r
	}
	for _, test := range []struct {
		name          string
		r             Region
		changed, zero Bitmap
		limit         int
		stay          []int // chunks, by their place in r
		merged        Bitmap
	}{
		{"room for a fourth", region(g.all(), blocks(0, 1), blocks(1, 2)), blocks(2, 3), Bitmap{}, 4, []int{0, 1, 2}, Bitmap{}},
		{"all as small", region(g.all(), blocks(0, 1), blocks(1, 2), blocks(2, 3)), blocks(3, 4), Bitmap{}, 4, []int{0}, blocks(0, 3)},
		{"the smallest", region(g.all(), blocks(0, 9), blocks(9, 15), blocks(15, 17)), blocks(17, 18), Bitmap{}, 4, []int{0, 1, 2}, blocks(15, 17)},
		{"and as far as they are gathered", region(g.all(), blocks(0, 9), blocks(9, 12), blocks(12, 14)), blocks(14, 15), Bitmap{}, 4, []int{0, 1}, blocks(9, 14)},
		{"a chunk dies", region(g.all(), blocks(0, 9), blocks(9, 12), blocks(12, 14)), blocks(9, 12), Bitmap{}, 4, []int{0, 1, 3}, Bitmap{}},
		{"a chunk dies of zeros", region(g.all(), blocks(0, 9), blocks(9, 12), blocks(12, 14)), Bitmap{}, blocks(5, 14), 4, []int{0, 1}, Bitmap{}},
		{"more than half", region(g.all(), blocks(0, 12), blocks(12, 22), blocks(22, 32)), blocks(32, 33), Bitmap{}, 4, nil, g.all().AndNot(blocks(32, 33))},
		{"exactly half", region(g.all(), blocks(0, 12), blocks(12, 22), blocks(22, 31)), blocks(31, 32), Bitmap{}, 4, []int{0}, blocks(0, 31)},
		{"more than half, and room", region(g.all(), blocks(0, 30)), blocks(30, 60), Bitmap{}, 4, []int{0, 1}, Bitmap{}},
		{"the largest is not the oldest", region(blocks(0, 4), blocks(4, 60), blocks(60, 62), blocks(62, 63)), blocks(63, 64), Bitmap{}, 4, []int{1}, blocks(0, 4).Or(blocks(60, 63))},
		{"one chunk", region(blocks(0, 60)), blocks(60, 61), Bitmap{}, 1, nil, blocks(0, 60)},
		{"two chunks of four", region(g.all(), blocks(0, 1), blocks(1, 2), blocks(2, 8)), blocks(8, 9), Bitmap{}, 2, []int{0}, blocks(0, 8)},
		{"a block of both", region(g.all()), blocks(0, 2), blocks(1, 3), 4, []int{0}, Bitmap{}},
	} {
		plan := Patch(test.r, g, test.changed, test.zero, test.limit)
		var stay []Chunk
		for _, i := range test.stay {
			stay = append(stay, test.r.Chunks[i])
		}
		if !slices.Equal(plan.Region.Chunks, stay) || plan.Merged != test.merged || plan.Store != test.merged.Or(test.changed) {
			t.Errorf("%s: %d chunks stay, stores %v, merges %v", test.name, len(plan.Region.Chunks),
				slices.Collect(plan.Store.Each()), slices.Collect(plan.Merged.Each()))
		}
		if want := test.zero.AndNot(test.changed); plan.Region.Zero != want {
			t.Errorf("%s: zero is %v", test.name, slices.Collect(plan.Region.Zero.Each()))
		}
	}
}
