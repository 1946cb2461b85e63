package maptree

import (
	"context"
	"errors"
	"testing"
)

// A change costs the nodes on its path, and no change costs nothing, not even a look.
func TestBuilderReadsAndWritesOnlyChangedPaths(t *testing.T) {
	ctx := context.Background()
	g := Geometry{BlocksPerRegion: 64}
	const size = 16384 // 4 GiB: 256 leaves, 4 inner nodes, a root
	for _, test := range []struct {
		name          string
		change        func(b *Builder) error
		known, size   uint64 // regions that the base says it has, and that the device has
		reads, writes int
	}{
		{"nothing", func(*Builder) error { return nil }, size, size, 0, 0},
		{"one region", func(b *Builder) error { return b.Set(ctx, 5000, wholeRegion(g, 1)) }, size, size, 3, 3},
		{"one region, as it was", func(b *Builder) error { return b.Set(ctx, 5000, wholeRegion(g, 2*5000)) }, size, size, 3, 0},
		{"a leaf's worth", func(b *Builder) error { return b.Clear(ctx, 5056, 5120) }, size, size, 2, 2},
		{"all", func(b *Builder) error { return b.Clear(ctx, 0, size) }, size, size, 1, 0},
		{"two far apart", func(b *Builder) error {
			if err := b.Set(ctx, 5, wholeRegion(g, 1)); err != nil {
				return err
			}
			return b.Set(ctx, size-1, wholeRegion(g, 1))
		}, size, size, 5, 5},
		{"a hole where there is one", func(b *Builder) error { return b.Set(ctx, size+5000, Region{}) }, size, 2 * size, 1, 0},
		{"it shrinks within a leaf", func(*Builder) error { return nil }, size, size - 1, 3, 3},
		{"it shrinks by a leaf", func(*Builder) error { return nil }, size, size - 64, 2, 2},
		{"it shrinks to a lower tree", func(*Builder) error { return nil }, size, 4096, 1, 0},
		{"it shrinks to less", func(*Builder) error { return nil }, size, 100, 3, 2},
		{"its size is not known", func(*Builder) error { return nil }, 0, size, 1, 0},
		{"nor that it shrinks", func(*Builder) error { return nil }, 0, size - 1, 3, 3},
		{"it grows", func(*Builder) error { return nil }, size, 2 * size, 0, 0},
		{"it grows higher", func(*Builder) error { return nil }, size, 1 << 30, 0, 2},
		{"it grows higher and is written there", func(b *Builder) error { return b.Set(ctx, 1<<30-1, wholeRegion(g, 1)) }, size, 1 << 30, 0, 6},
	} {
		s := newNodeStore()
		base := build(t, s, g, Root{Empty: true}, size, upTo(size)...)
		base.Regions = test.known
		b := NewBuilder(s, s, g, base)
		if err := test.change(b); err != nil {
			t.Fatalf("%s: %v", test.name, err)
		}
		if _, err := b.Finish(ctx, test.size); err != nil {
			t.Fatalf("%s: %v", test.name, err)
		}
		if s.reads != test.reads || s.writes != test.writes {
			t.Errorf("%s: %d nodes read, %d written; want %d, %d", test.name, s.reads, s.writes, test.reads, test.writes)
		}
	}
}

// 64 TiB in regions of 64 KiB fit, and are five nodes high.
func TestTheLargestDeviceFits(t *testing.T) {
	g := Geometry{BlocksPerRegion: 16}
	s := newNodeStore()
	const size = 1 << 30
	root := build(t, s, g, Root{Empty: true}, size, 0, size/2, size-1)
	if root.Level != 4 {
		t.Fatalf("the root is at level %d", root.Level)
	}
	tree := NewTree(s, g, root, 1<<20)
	r, err := tree.Region(context.Background(), size-1)
	if err != nil || !r.Equal(wholeRegion(g, size-1+2)) {
		t.Fatal(r, err)
	}
	if s.reads != 5 {
		t.Fatalf("a look-up reads %d nodes", s.reads)
	}
}

func TestBuilderRefusesWhatNoMapHas(t *testing.T) {
	ctx := context.Background()
	g := Geometry{BlocksPerRegion: 16}
	s := newNodeStore()
	for name, use := range map[string]func(b *Builder) error{
		"descending": func(b *Builder) error {
			return errors.Join(b.Set(ctx, 5, wholeRegion(g, 1)), b.Set(ctx, 4, wholeRegion(g, 1)))
		},
		"twice": func(b *Builder) error {
			return errors.Join(b.Set(ctx, 5, wholeRegion(g, 1)), b.Set(ctx, 5, wholeRegion(g, 1)))
		},
		"in what was cleared": func(b *Builder) error {
			return errors.Join(b.Clear(ctx, 5, 10), b.Set(ctx, 9, wholeRegion(g, 1)))
		},
		"beyond any device":         func(b *Builder) error { return b.Set(ctx, MaxRegions, Region{}) },
		"the last number":           func(b *Builder) error { return b.Set(ctx, ^uint64(0), Region{}) },
		"cleared beyond any device": func(b *Builder) error { return b.Clear(ctx, 0, MaxRegions+1) },
		"cleared beyond the device": func(b *Builder) error {
			if err := b.Clear(ctx, 5, 11); err != nil {
				t.Error(err)
			}
			_, err := b.Finish(ctx, 10)
			return err
		},
		"beyond the device": func(b *Builder) error {
			if err := b.Set(ctx, 10, wholeRegion(g, 1)); err != nil {
				t.Error(err)
			}
			_, err := b.Finish(ctx, 10)
			return err
		},
		"too large a device": func(b *Builder) error { _, err := b.Finish(ctx, MaxRegions+1); return err },
		"too many blocks":    func(b *Builder) error { return b.Set(ctx, 0, wholeRegion(Geometry{64}, 1)) },
		"finished": func(b *Builder) error {
			if _, err := b.Finish(ctx, 10); err != nil {
				t.Error(err)
			}
			return b.Set(ctx, 1, wholeRegion(g, 1))
		},
	} {
		b := NewBuilder(s, s, g, Root{Empty: true})
		if err := use(b); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := b.Finish(ctx, 1000); !errors.Is(err, ErrInvalid) && name != "too large a device" {
			t.Errorf("%s: finished after that: %v", name, err)
		}
	}
	if _, err := NewBuilder(s, s, Geometry{17}, Root{Empty: true}).Finish(ctx, 1); !errors.Is(err, ErrInvalid) {
		t.Errorf("regions of 17 blocks: %v", err)
	}
}

// A device that shrinks so far that its tree gets lower: what is left is what a tree of that size has.
func TestShrinkingToALowerTree(t *testing.T) {
	ctx := context.Background()
	g := Geometry{BlocksPerRegion: 64}
	for name, test := range map[string]struct {
		base, set, left []uint64
	}{
		"all is cut off":            {base: []uint64{5000}},
		"what is left was changed":  {base: []uint64{5, 5000}, set: []uint64{7}, left: []uint64{5, 7}},
		"what is left is all new":   {base: []uint64{5000}, set: []uint64{7}, left: []uint64{7}},
		"what is left is unchanged": {base: []uint64{5, 99, 100, 5000}, left: []uint64{5, 99}},
		"a leaf is left":            {base: []uint64{70, 99, 5000, 300_000}, left: []uint64{70, 99}},
	} {
		regions := func(b *Builder, indexes []uint64) *Builder {
			for _, index := range indexes {
				if err := b.Set(ctx, index, wholeRegion(g, int(index))); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
			}
			return b
		}
		finish := func(b *Builder, size uint64) Root {
			root, err := b.Finish(ctx, size)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			return root
		}
		s := newNodeStore()
		base := finish(regions(NewBuilder(s, s, g, Root{Empty: true}), test.base), 400_000)
		want := finish(regions(NewBuilder(s, s, g, Root{Empty: true}), test.left), 100)
		s.seal()
		if got := finish(regions(NewBuilder(s, s, g, base), test.set), 100); got != want {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
}
