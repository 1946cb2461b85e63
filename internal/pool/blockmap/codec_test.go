package blockmap

import (
	"errors"
	"slices"
	"testing"

	"varve/internal/pool/seglog"
)

// written puts a tree's present state into the log and returns its root there.
func written(t testing.TB, s *Store, l *memoryLog, tree *Tree) Root {
	t.Helper()
	r := tree.Freeze(tree.owner, tree.gen+1)
	if err := s.NewWriter(l.append).Write([]Root{r}); err != nil {
		t.Fatal(err)
	}
	slot, ok := r.Slot()
	if !ok {
		t.Fatal("the root is not in the log")
	}
	return RootAt(slot)
}

// fill maps count blocks from lba on.
func fill(t testing.TB, s *Store, tree *Tree, lba, count uint64) {
	t.Helper()
	entries := make([]Entry, count)
	for i := range entries {
		entries[i] = Entry{Addr: seglog.MakeAddr(9, int64(i)*8192), Epoch: tree.owner, CRC: uint32(lba) + uint32(i)}
	}
	if err := tree.Set(s.NewPins(), lba, entries); err != nil {
		t.Fatal(err)
	}
}

// pathTo returns the pointers from the root down to the leaf of a block.
func pathTo(t testing.TB, s *Store, r Root, lba uint64) (path [rootLevel + 1]child) {
	t.Helper()
	c := r.c
	for level := rootLevel; ; level-- {
		path[level] = c
		if level == 0 {
			return path
		}
		n, err := s.load(c.ptr, level, lba&^(span(level)-1))
		if err != nil {
			t.Fatal(err)
		}
		c = n.child(slotOf(lba, level))
	}
}

func settleAll(tree *Tree) {
	for lba, done := uint64(0), false; !done; {
		lba, done = tree.Settle(lba, leafSlots)
	}
}

// A small change of a full leaf is written as a difference from a whole piece, and so is
// the next one: differences never form a chain.
func TestDifferences(t *testing.T) {
	l := &memoryLog{}
	s := NewStore(0, l.read)
	tree := NewTree(Root{}, 1, 0, 1)
	fill(t, s, tree, 0, leafSlots)
	whole := pathTo(t, s, written(t, s, l, tree), 0)[0]
	settleAll(tree)
	for i := range uint64(30) {
		fill(t, s, tree, i*2, 1)
		p := pathTo(t, s, written(t, s, l, tree), 0)[0].ptr
		n, err := s.load(p, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		if base := n.written.Load().base; base != whole.ptr {
			t.Fatalf("piece %d is based on %v, want %v", i, base, whole.ptr)
		}
		if p.Length >= whole.ptr.Length {
			t.Fatalf("the difference takes %d bytes, the whole %d", p.Length, whole.ptr.Length)
		}
		settleAll(tree)
	}
	fill(t, s, tree, 0, 100) // too much for a difference
	p := pathTo(t, s, written(t, s, l, tree), 0)[0].ptr
	if n, err := s.load(p, 0, 0); err != nil || n.written.Load().base != (Ptr{}) {
		t.Fatalf("a leaf that changed much is based on %v, %v", n.written.Load().base, err)
	}
	// Another state must not depend on a piece of this one, since either may be deleted alone.
	settleAll(tree)
	tree.Freeze(2, 1000)
	fill(t, s, tree, 3, 1)
	p = pathTo(t, s, written(t, s, l, tree), 0)[0].ptr
	if n, err := s.load(p, 0, 0); err != nil || n.written.Load().base != (Ptr{}) {
		t.Fatalf("a leaf of another epoch is based on %v, %v", n.written.Load().base, err)
	}
}

// forge replaces the pointer at level on the way to block lba and makes everything above it
// consistent, as only software could.
func forge(t testing.TB, s *Store, l *memoryLog, r Root, lba uint64, level int, p Ptr) Root {
	t.Helper()
	path := pathTo(t, s, r, lba)
	c := path[level]
	c.ptr = p
	for up := level + 1; up <= rootLevel; up++ {
		n, err := s.load(path[up].ptr, up, lba&^(span(up)-1))
		if err != nil {
			t.Fatal(err)
		}
		n = n.copyFor(n.owner, 99)
		n.setChild(slotOf(lba, up), c)
		b := n.encode(nil, false)
		padded := make([]byte, (len(b)+4095)&^4095)
		copy(padded, b)
		at, err := l.append(padded)
		if err != nil {
			t.Fatal(err)
		}
		c = path[up]
		c.ptr = Ptr{Addr: at, Length: uint32(len(b)), CRC: seglog.Checksum(b)}
	}
	return Root{c}
}

// A child pointer that leads to another volume's node, or to one of another level or range, is
// damage, also if that node is in the cache.
func TestForgedChildPointersAreDamage(t *testing.T) {
	l := &memoryLog{}
	s := NewStore(1<<20, l.read)
	const lba, far = 5, 1 << 20
	mine := NewTree(Root{}, 1, 0, 1)
	fill(t, s, mine, lba, 3)
	root := written(t, s, l, mine)
	theirs := NewTree(Root{}, 2, 0, 100)
	fill(t, s, theirs, lba, 9)
	fill(t, s, theirs, far, 9)
	other := written(t, s, l, theirs)
	near, away := pathTo(t, s, other, lba), pathTo(t, s, other, far)
	for name, forged := range map[string]struct {
		level int
		ptr   Ptr
	}{
		"another volume's leaf by its place":    {0, Ptr{near[0].ptr.Addr, near[0].ptr.Length, pathTo(t, s, root, lba)[0].ptr.CRC}},
		"another volume's node by its place":    {2, Ptr{near[2].ptr.Addr, near[2].ptr.Length, pathTo(t, s, root, lba)[2].ptr.CRC}},
		"a leaf of another range, checksum too": {0, away[0].ptr},
		"a node of another range, checksum too": {1, away[1].ptr},
		"a node of a level above":               {0, near[1].ptr},
		"a node of a level below":               {3, near[2].ptr},
		"nothing":                               {0, Ptr{seglog.MakeAddr(1, 1<<24), 100, 1}},
		"too long a node":                       {0, Ptr{near[0].ptr.Addr, 1 << 30, near[0].ptr.CRC}},
	} {
		t.Run(name, func(t *testing.T) {
			r := forge(t, s, l, root, lba, forged.level, forged.ptr)
			for _, store := range []*Store{s, NewStore(1<<20, l.read)} { // with their nodes in the cache, and without
				pins := store.NewPins()
				var e [1]Entry
				err := r.Lookup(pins, lba, e[:])
				for miss := (*Miss)(nil); errors.As(err, &miss); err = r.Lookup(pins, lba, e[:]) {
					if err = pins.Load(miss); err != nil {
						break
					}
				}
				if !errors.Is(err, ErrDamaged) {
					t.Errorf("looking a block up ends with %v and %+v", err, e)
				}
				found := 0
				if err := store.Check(r, Own{}, func(Ptr) {}, func(uint64, []Entry) error { return nil }, func(e *NodeError) {
					first, blocks, err := e.First, e.Blocks(), e.Err
					if found++; !errors.Is(err, ErrDamaged) || lba < first || lba >= first+blocks {
						t.Errorf("damage at %d,+%d: %v", first, blocks, err)
					}
				}); err != nil || found != 1 {
					t.Errorf("a check ends with %v and %d findings", err, found)
				}
			}
		})
	}
}

// FuzzDecodeNode: no bytes make decode panic, and what it accepts means the same when it is written again.
func FuzzDecodeNode(f *testing.F) {
	l := &memoryLog{}
	s := NewStore(0, l.read)
	tree := NewTree(Root{}, 3, 0, 1)
	fill(f, s, tree, 0, leafSlots)
	fill(f, s, tree, 1<<20, 5)
	add := func(lba uint64) {
		for level, c := range pathTo(f, s, written(f, s, l, tree), lba) {
			b := make([]byte, c.ptr.Length)
			if err := l.read(c.ptr.Addr, b); err != nil {
				f.Fatal(err)
			}
			f.Add(b, uint8(level))
		}
	}
	add(0)
	add(1 << 20)
	settleAll(tree)
	fill(f, s, tree, 7, 3)
	if err := tree.Clear(s.NewPins(), 20, 4, true); err != nil {
		f.Fatal(err)
	}
	if err := tree.Clear(s.NewPins(), 1<<20, 2, false); err != nil {
		f.Fatal(err)
	}
	add(0) // differences
	add(1 << 20)
	base := newNode(0, 0, 3, 0)
	base.setEntry(4, Entry{Addr: seglog.MakeAddr(2, 0), Epoch: 3})
	inner := newNode(1, 0, 3, 0)
	inner.setChild(4, child{tomb: true, epoch: 3})
	base.written.Store(&piece{})
	inner.written.Store(&piece{})
	f.Fuzz(func(t *testing.T, p []byte, level uint8) {
		if level > rootLevel {
			return
		}
		read := func(p []byte) (*node, error) {
			ptr := Ptr{Addr: seglog.MakeAddr(1, 0), Length: uint32(len(p)), CRC: seglog.Checksum(p)}
			return decode(p, ptr, int(level), 0, func(Ptr) (*node, error) {
				if level == 0 {
					return base, nil
				}
				return inner, nil
			})
		}
		n, err := read(p)
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Fatal(err)
			}
			return
		}
		again, err := read(n.encode(nil, false))
		if err != nil {
			t.Fatalf("what was decoded cannot be encoded: %v", err)
		}
		if n.slots != again.slots || !slices.Equal(n.entries, again.entries) || !slices.Equal(n.children, again.children) {
			t.Fatalf("%+v became %+v", n, again)
		}
	})
}
