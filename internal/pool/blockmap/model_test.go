package blockmap

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"varve/internal/pool/seglog"
)

// memoryLog is a log in memory.
type memoryLog struct {
	bytes []byte
	fail  int // appends until one fails; 0: none does
}

var errFull = errors.New("full")

func (l *memoryLog) append(p []byte) (seglog.Addr, error) {
	if l.fail > 0 {
		if l.fail--; l.fail == 0 {
			return 0, errFull
		}
	}
	at := seglog.MakeAddr(1, int64(len(l.bytes)))
	l.bytes = append(l.bytes, p...)
	return at, nil
}

func (l *memoryLog) read(a seglog.Addr, p []byte) error {
	if a.Segment() != 1 || a.Offset()+int64(len(p)) > int64(len(l.bytes)) {
		return fmt.Errorf("%w: nothing at %s", ErrDamaged, a)
	}
	copy(p, l.bytes[a.Offset():])
	return nil
}

// plain is a map of blocks as a Go map: the mapped ones.
type plain map[uint64]Entry

// version is a state in both forms.
type version struct {
	root  Root
	plain plain
	epoch uint64
}

// machine does the same to a Tree and to a plain map.
type machine struct {
	t     *rapid.T
	log   *memoryLog
	store *Store
	tree  *Tree
	head  plain
	kept  []version // frozen states

	epoch, gen, addr uint64
}

func newMachine(t *rapid.T) *machine {
	m := &machine{t: t, log: &memoryLog{}, head: plain{}, epoch: 1, gen: 1}
	m.store = NewStore(rapid.SampledFrom([]int64{0, 4 << 10, 1 << 20}).Draw(t, "cache"), m.log.read)
	m.tree = NewTree(Root{}, m.epoch, 0, m.gen)
	return m
}

func (m *machine) nextGen() uint64 { m.gen++; return m.gen }

// extent draws a range in one of few places, across leaves and nodes of all levels.
func (m *machine) extent() (lba, count uint64) {
	bases := []uint64{0, 100, 250, 1<<15 - 20, 1<<22 - 300, 1<<29 - 5, MaxBlocks - 600}
	lba = rapid.SampledFrom(bases).Draw(m.t, "base") + rapid.Uint64Range(0, 40).Draw(m.t, "offset")
	return lba, rapid.SampledFrom([]uint64{1, 1, 1, 2, 7, 40, 256, 530}).Draw(m.t, "count")
}

func (m *machine) set() {
	lba, count := m.extent()
	entries := make([]Entry, count)
	scattered := rapid.Bool().Draw(m.t, "scattered")
	for i := range entries {
		m.addr++
		if scattered {
			m.addr++
		}
		entries[i] = Entry{Addr: seglog.MakeAddr(7, int64(m.addr)*4096%(1<<29)) + seglog.Addr(m.addr>>17)<<24, Epoch: m.epoch, CRC: uint32(m.addr * 2654435761)}
		m.head[lba+uint64(i)] = entries[i]
	}
	if err := m.tree.Set(m.store.NewPins(), lba, entries); err != nil {
		m.t.Fatal(err)
	}
}

// move gives blocks other places and keeps their epochs.
func (m *machine) move() {
	lba, count := m.extent()
	for i := range count {
		e, mapped := m.head[lba+i]
		if !mapped {
			continue
		}
		m.addr++
		e.Addr = seglog.MakeAddr(7, int64(m.addr)*4096%(1<<29)) + seglog.Addr(m.addr>>17)<<24
		m.head[lba+i] = e
		if err := m.tree.Set(m.store.NewPins(), lba+i, []Entry{e}); err != nil {
			m.t.Fatal(err)
		}
	}
}

func (m *machine) clear() {
	lba, count := m.extent()
	if rapid.IntRange(0, 5).Draw(m.t, "much") == 0 {
		lba, count = 0, rapid.SampledFrom([]uint64{1 << 8, 1 << 22, MaxBlocks}).Draw(m.t, "size")
	}
	if err := m.tree.Clear(m.store.NewPins(), lba, count, len(m.kept) > 0); err != nil {
		m.t.Fatal(err)
	}
	maps.DeleteFunc(m.head, func(l uint64, _ Entry) bool { return l >= lba && l < lba+count })
}

// lose makes a part of the map around a mapped block unreadable, up to a block of it or the whole.
func (m *machine) lose() {
	if len(m.head) == 0 {
		return
	}
	keys := slices.Sorted(maps.Keys(m.head))
	lba := rapid.SampledFrom(keys).Draw(m.t, "lost")
	first := lba &^ (leafSlots - 1)
	limit := rapid.SampledFrom([]uint64{MaxBlocks, first + 100, lba + 1}).Draw(m.t, "limit")
	pins := m.store.NewPins()
	if err := m.tree.Lose(pins, 0, first, limit); err != nil {
		m.t.Fatal(err)
	}
	maps.DeleteFunc(m.head, func(l uint64, _ Entry) bool { return l >= first && l < first+leafSlots })
	var e [1]Entry
	for l := first; l < min(limit, first+leafSlots); l++ {
		waiting(m.t, pins, func() error { return m.tree.View().Lookup(pins, l, e[:]) })
		if !e[0].Lost() || e[0].Epoch == 0 || e[0].Epoch > m.epoch {
			m.t.Fatalf("block %d is %+v", l, e[0])
		}
		m.head[l] = e[0]
	}
	if shows, _, err := m.store.Shows(m.tree.View(), &NodeError{Level: 0, First: first}); err != nil || shows != (limit >= first+leafSlots) {
		m.t.Fatalf("the map shows that it lost a leaf: %t, %v", shows, err)
	}
}

func (m *machine) freeze() {
	m.epoch++
	m.kept = append(m.kept, version{m.tree.Freeze(m.epoch, m.nextGen()), maps.Clone(m.head), m.epoch - 1})
}

// checkpoint writes everything as it is now, while the tree goes on, and lets go of it.
// It may be cut short, or the program may be started again from it.
func (m *machine) checkpoint() {
	head := version{m.tree.Freeze(m.epoch, m.nextGen()), maps.Clone(m.head), m.epoch}
	roots := []Root{head.root}
	for _, v := range m.kept {
		roots = append(roots, v.root)
	}
	between := func(label string) {
		for range rapid.IntRange(0, 2).Draw(m.t, label) {
			m.set()
		}
	}
	between("sets before")
	w := m.store.NewWriter(m.log.append)
	w.ChunkBytes = rapid.SampledFrom([]int{4096, 256 << 10}).Draw(m.t, "chunk")
	m.log.fail = rapid.SampledFrom([]int{0, 0, 0, 1, 2}).Draw(m.t, "fail")
	err := w.Write(roots)
	if failed := m.log.fail == 0 && errors.Is(err, errFull); failed {
		return
	}
	m.log.fail = 0
	if err != nil {
		m.t.Fatal(err)
	}
	between("sets after")
	if rapid.IntRange(0, 3).Draw(m.t, "restart") == 0 {
		m.store = NewStore(4<<10, m.log.read)
		load := func(r Root) Root {
			s, ok := r.Slot()
			if !ok {
				m.t.Fatal("a root is not in the log")
			}
			return RootAt(s)
		}
		m.tree, m.head = NewTree(load(head.root), m.epoch, 0, m.nextGen()), head.plain
		for i := range m.kept {
			m.kept[i].root = load(m.kept[i].root)
		}
		return
	}
	limit := rapid.SampledFrom([]int{1, 2, 7, 1000}).Draw(m.t, "settled at a time")
	for lba, done := uint64(0), false; !done; {
		lba, done = m.tree.Settle(lba, limit)
		if rapid.IntRange(0, 9).Draw(m.t, "set while settling") == 0 {
			m.set()
		}
	}
	if n := heldBelow(&m.tree.root, m.tree.gen); n > 0 {
		m.t.Fatalf("the tree holds %d nodes that lie in the log", n)
	}
	for i := range m.kept {
		m.kept[i].root = m.kept[i].root.Settled()
	}
}

// heldBelow counts the nodes that are in the log and that others keep in memory all the same.
func heldBelow(c *child, gen uint64) (held int) {
	if c.node == nil {
		return 0
	}
	if c.node.written.Load() != nil {
		held++
	}
	if c.node.gen == gen && c.node.prev != nil && c.node.prev.written.Load() != nil {
		held++
	}
	for i := range c.node.children {
		held += heldBelow(&c.node.children[i], gen)
	}
	return held
}

func (m *machine) rollback() {
	if len(m.kept) == 0 {
		return
	}
	to := rapid.SampledFrom(m.kept).Draw(m.t, "to")
	m.freeze()
	m.tree, m.head = NewTree(to.root, m.epoch, 0, m.nextGen()), maps.Clone(to.plain)
}

// waiting repeats a look-up until it has what it needs.
func waiting(t tb, pins *Pins, look func() error) {
	t.Helper()
	for {
		err := look()
		miss, ok := err.(*Miss)
		if !ok {
			if err != nil {
				t.Fatal(err)
			}
			return
		}
		if err := pins.Load(miss); err != nil {
			t.Fatal(err)
		}
	}
}

type tb interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
}

// demand compares a root with a plain map by every way of reading.
func (m *machine) demand(r Root, want plain) {
	m.t.Helper()
	if r.Mapped() != uint64(len(want)) {
		m.t.Fatalf("%d blocks are mapped, want %d", r.Mapped(), len(want))
	}
	got := plain{}
	err := m.store.Check(r, Own{}, func(Ptr) {}, func(lba uint64, entries []Entry) error {
		for i, e := range entries {
			if e.Mapped() {
				got[lba+uint64(i)] = e
			}
		}
		return nil
	}, func(e *NodeError) {
		if !errors.Is(e, ErrLost) {
			m.t.Fatalf("damage at %d,+%d: %v", e.First, e.Blocks(), e)
		}
		for l, w := range want {
			if l >= e.First && l-e.First < e.Blocks() {
				got[l] = w
			}
		}
	})
	if err != nil || !maps.Equal(got, want) {
		m.t.Fatalf("walked: %d entries, want %d; %v", len(got), len(want), err)
	}
	for range 3 {
		lba, count := m.extent()
		pins := m.store.NewPins()
		out := make([]Entry, count)
		waiting(m.t, pins, func() error { return r.Lookup(pins, lba, out) })
		for i, e := range out {
			w := want[lba+uint64(i)]
			if e.Mapped() != w.Mapped() || (w.Mapped() && e != w) {
				m.t.Fatalf("block %d is %+v, want %+v", lba+uint64(i), e, w)
			}
		}
		var n uint64
		var mapped bool
		waiting(m.t, pins, func() (err error) {
			n, mapped, err = r.Run(pins, lba, count)
			return err
		})
		if n < 1 || n > count {
			m.t.Fatalf("a run of %d, limit %d", n, count)
		}
		for i := range n {
			if want[lba+i].Mapped() != mapped {
				m.t.Fatalf("block %d of a run from %d: mapped is not %t", lba+i, lba, mapped)
			}
		}
	}
}

// newer is what is newer than an epoch.
func (p plain) newer(since uint64) plain {
	q := maps.Clone(p)
	maps.DeleteFunc(q, func(_ uint64, e Entry) bool { return e.Epoch <= since })
	return q
}

// demandDiff compares Diff of two states with what differs between two plain maps: over everything, and
// in ranges that begin and end anywhere.
func (m *machine) demandDiff(v, from version) {
	m.t.Helper()
	want, lost := map[uint64]bool{}, uint64(0) // what both have lost may be called either
	for _, lba := range append(slices.Collect(maps.Keys(v.plain)), slices.Collect(maps.Keys(from.plain))...) {
		e, f := v.plain[lba], from.plain[lba]
		want[lba] = e.Epoch != f.Epoch || e.Lost() != f.Lost()
	}
	maps.DeleteFunc(want, func(_ uint64, differs bool) bool { return !differs })
	bothLost := func(lba uint64) bool { return v.plain[lba].Lost() && from.plain[lba].Lost() }
	maps.DeleteFunc(want, func(lba uint64, _ bool) bool { return bothLost(lba) })
	demand := func(lba, end uint64) {
		pins := m.store.NewPins()
		var got, steps uint64
		lost = 0
		for lba < end {
			var blocks uint64
			var differs bool
			waiting(m.t, pins, func() (err error) {
				blocks, differs, err = Diff(pins, from.root, v.root, lba, end-lba)
				return err
			})
			if blocks < 1 || blocks > end-lba {
				m.t.Fatalf("%d blocks at %d, limit %d", blocks, lba, end-lba)
			}
			if differs {
				for i := range blocks {
					if bothLost(lba + i) {
						lost++
					} else if !want[lba+i] {
						m.t.Fatalf("block %d does not differ: %+v and %+v", lba+i, from.plain[lba+i], v.plain[lba+i])
					}
				}
				got += blocks
			}
			lba += blocks
			steps++
		}
		if lba == MaxBlocks && got-lost != uint64(len(want)) {
			m.t.Fatalf("%d blocks differ, want %d", got, len(want))
		}
		if steps > 2000 { // the places of extent, with some leaves and inner nodes each
			m.t.Fatalf("%d steps", steps)
		}
	}
	demand(0, MaxBlocks)
	lba, count := m.extent()
	demand(lba, lba+count)
	for i := range count { // block by block, so that nothing is missed either
		pins := m.store.NewPins()
		var differs bool
		waiting(m.t, pins, func() (err error) {
			_, differs, err = Diff(pins, from.root, v.root, lba+i, 1)
			return err
		})
		if differs != want[lba+i] && !bothLost(lba+i) {
			m.t.Fatalf("block %d differs: %t", lba+i, differs)
		}
	}
}

// demandBeyond compares what MarkBeyond visits with what differs between two plain maps.
func (m *machine) demandBeyond(v, than version, since uint64) {
	m.t.Helper()
	if _, settled := than.root.Slot(); !settled {
		return
	}
	want, got := map[Entry]bool{}, map[Entry]bool{}
	for lba, e := range v.plain.newer(since) {
		if than.plain[lba].Addr != e.Addr && !e.Lost() {
			want[e] = true
		}
	}
	err := m.store.MarkBeyond(context.Background(), v.root, than.root.Settled(), Own{Data: since, Nodes: since}, func(p Ptr) {
		if p.Addr == 0 {
			m.t.Fatal("a node at 0")
		}
	}, func(entries []Entry) {
		for _, e := range entries {
			got[e] = true
		}
	})
	if err != nil || !maps.Equal(got, want) {
		m.t.Fatalf("beyond since epoch %d: %d entries, want %d; %v", since, len(got), len(want), err)
	}
}

func (m *machine) verify() {
	m.t.Helper()
	all := append(slices.Clone(m.kept), version{m.tree.Freeze(m.epoch, m.nextGen()), m.head, m.epoch})
	for _, v := range all {
		m.demand(v.root, v.plain)
	}
	v := rapid.SampledFrom(all).Draw(m.t, "state")
	since := rapid.Uint64Range(0, v.epoch).Draw(m.t, "since")
	got := plain{}
	lost := func(l uint64) {
		if e := v.plain[l]; e.Lost() && e.Epoch > since {
			got[l] = e
		}
	}
	err := m.store.Check(v.root, Own{Data: since, Nodes: since}, func(Ptr) {}, func(lba uint64, entries []Entry) error {
		for i, e := range entries {
			switch {
			case e.Lost():
				lost(lba + uint64(i))
			case e.Epoch <= since:
				m.t.Fatalf("block %d is of epoch %d", lba, e.Epoch)
			case e.Mapped():
				got[lba+uint64(i)] = e
			}
		}
		return nil
	}, func(e *NodeError) {
		if !errors.Is(e, ErrLost) {
			m.t.Fatal(e)
		}
		for l := range v.plain {
			if l >= e.First && l-e.First < e.Blocks() {
				lost(l)
			}
		}
	})
	if want := v.plain.newer(since); err != nil || !maps.Equal(got, want) {
		m.t.Fatalf("since epoch %d: %d entries, want %d; %v", since, len(got), len(want), err)
	}

	m.demandDiff(v, rapid.SampledFrom(all).Draw(m.t, "from"))
	m.demandBeyond(v, rapid.SampledFrom(all).Draw(m.t, "than"), since)
	want, passed := v.plain.newer(since), uint64(0)
	for at, more := uint64(0), true; more; {
		pins := m.store.NewPins()
		var leaf, skipped uint64
		waiting(m.t, pins, func() (err error) {
			leaf, skipped, more, err = v.root.NextNewer(pins, at, since)
			return err
		})
		for lba := range v.plain {
			if more && lba >= leaf && lba < leaf+leafSlots {
				delete(want, lba)
				passed++
			}
		}
		if more && leaf < at {
			m.t.Fatalf("the next leaf behind %d is at %d", at, leaf)
		}
		passed += skipped
		at = leaf + leafSlots
	}
	if len(want) > 0 || passed != uint64(len(v.plain)) {
		m.t.Fatalf("since epoch %d: leaves with %d newer blocks are missing; %d of %d blocks were passed", since, len(want), passed, len(v.plain))
	}

	var others []Root
	left := v.plain.newer(since)
	maps.DeleteFunc(left, func(_ uint64, e Entry) bool { return e.Lost() })
	for range rapid.IntRange(0, 3).Draw(m.t, "others") {
		o := rapid.SampledFrom(all).Draw(m.t, "other")
		others = append(others, o.root)
		maps.DeleteFunc(left, func(lba uint64, e Entry) bool { return o.plain[lba].Addr == e.Addr || o.plain[lba].Lost() })
	}
	n, err := m.store.Exclusive(context.Background(), v.root, since, others)
	if err != nil || n != uint64(len(left)) {
		m.t.Fatalf("%d exclusive blocks, want %d; %v", n, len(left), err)
	}
}

// TestTreesAgainstPlainMaps does random things to trees and to Go maps. Caches are tiny, so
// that nearly everything goes through its bytes, whole or as a difference.
func TestTreesAgainstPlainMaps(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newMachine(t)
		set := func(*rapid.T) { m.set() }
		t.Repeat(map[string]func(*rapid.T){
			"set": set, "set more": set, "set much": set,
			"clear":      func(*rapid.T) { m.clear() },
			"move":       func(*rapid.T) { m.move() },
			"lose":       func(*rapid.T) { m.lose() },
			"freeze":     func(*rapid.T) { m.freeze() },
			"checkpoint": func(*rapid.T) { m.checkpoint() },
			"rollback":   func(*rapid.T) { m.rollback() },
			"verify":     func(*rapid.T) { m.verify() },
		})
		m.verify()
	})
}
