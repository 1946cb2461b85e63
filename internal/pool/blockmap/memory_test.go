package blockmap

import (
	"runtime"
	"testing"
)

func heapBytes() int64 {
	runtime.GC()
	runtime.GC() // the first may leave what was freed while it ran
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// The store's account of its memory, and a tree's of its dirty nodes, are what bounds them: they must not be
// less than the heap knows, nor much more.
func TestMemoryIsAccountedFor(t *testing.T) {
	for _, shape := range []struct {
		name   string
		leaves int
		blocks uint64
		apart  uint64 // blocks from one leaf to the next
	}{
		{"sparse leaves", 30_000, 1, 1 << 15},
		{"full leaves", 3_000, leafSlots, leafSlots},
	} {
		t.Run(shape.name, func(t *testing.T) {
			l := &memoryLog{}
			s := NewStore(1<<40, l.read)
			tree := NewTree(Root{}, 1, 0, 1)
			start := heapBytes()
			for i := range shape.leaves {
				fill(t, s, tree, uint64(i)*shape.apart, shape.blocks)
			}
			close := func(what string, told, start int64) {
				t.Helper()
				if real := heapBytes() - start; told < real*9/10 || told > real*13/10 {
					t.Errorf("%s take %d bytes, told are %d", what, real, told)
				}
			}
			close("dirty nodes", tree.TakeDirty(), start)

			root := written(t, s, l, tree)
			slot, _ := root.Slot()
			start, s = heapBytes(), NewStore(1<<40, l.read)
			pins := s.NewPins()
			for i := range shape.leaves {
				var e [1]Entry
				waiting(t, pins, func() error { return RootAt(slot).Lookup(pins, uint64(i)*shape.apart, e[:]) })
				pins.Forget()
			}
			close("clean nodes", s.CachedBytes(), start)
			runtime.KeepAlive(tree)
			runtime.KeepAlive(root)
			runtime.KeepAlive(s)
		})
	}
}

// Dirty nodes and the cache share one bound, but for a quarter that clean ones always have.
func TestDirtyNodesLeaveLessToCleanOnes(t *testing.T) {
	l := &memoryLog{}
	s := NewStore(1<<40, l.read)
	tree := NewTree(Root{}, 1, 0, 1)
	const leaves = 2000
	for i := range uint64(leaves) {
		fill(t, s, tree, i*leafSlots, 16)
	}
	slot, _ := written(t, s, l, tree).Slot()
	const most = 1 << 20
	s = NewStore(most, l.read)
	pins := s.NewPins()
	cached := func() int64 {
		for i := range uint64(leaves) {
			var e [1]Entry
			waiting(t, pins, func() error { return RootAt(slot).Lookup(pins, i*leafSlots, e[:]) })
			pins.Forget()
		}
		return s.CachedBytes()
	}
	for _, dirty := range []int64{0, most / 2, most, 10 * most, 0} {
		s.Reserve(dirty)
		want := max(most-dirty, most/4)
		if got := cached(); got > want || got < want/2 {
			t.Errorf("with %d bytes of dirty nodes, %d of %d are cached", dirty, got, want)
		}
	}
}
