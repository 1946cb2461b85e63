package maptree

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"varve/internal/repository/chunk"
)

// nodeStore keeps nodes by id, and counts.
type nodeStore struct {
	mu            sync.Mutex
	nodes         map[chunk.ID][]byte
	fresh         map[chunk.ID]bool // written since seal; a Builder does not read them
	reads, writes int
}

func newNodeStore() *nodeStore {
	return &nodeStore{nodes: map[chunk.ID][]byte{}, fresh: map[chunk.ID]bool{}}
}

// seal forgets what was counted and written.
func (s *nodeStore) seal() {
	clear(s.fresh)
	s.reads, s.writes = 0, 0
}

func (s *nodeStore) ReadNode(_ context.Context, id chunk.ID, p chunk.Place) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads++
	plain, ok := s.nodes[id]
	switch {
	case !ok:
		return nil, fmt.Errorf("no node %s", id)
	case s.fresh[id]:
		return nil, fmt.Errorf("node %s is not yet stored", id)
	case p != nodePlace(id):
		return nil, fmt.Errorf("node %s is not at %v", id, p)
	}
	return plain, nil
}

func (s *nodeStore) WriteNode(_ context.Context, plain []byte) (chunk.ID, chunk.Place, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writes++
	id := chunk.ID(sha256.Sum256(plain))
	if _, ok := s.nodes[id]; !ok {
		s.nodes[id] = slices.Clone(plain)
		s.fresh[id] = true
	}
	return id, nodePlace(id), nil
}

// nodePlace is where a node is; the same for the same node, so that the same content makes the same tree.
func nodePlace(id chunk.ID) chunk.Place {
	return chunk.Place{Pack: chunk.PackID(id[:16]), Frame: uint32(id[16])}
}

// modelMap is what a tree says: the regions that are not all hole, of a device of a size.
type modelMap struct {
	regions map[uint64]Region
	size    uint64
}

func (m modelMap) clone() modelMap { return modelMap{maps.Clone(m.regions), m.size} }

// drawIndex draws a region of a device: often near another, near an edge of a node, or at the end.
func drawIndex(t *rapid.T, size uint64) uint64 {
	edge := span(rapid.IntRange(0, 4).Draw(t, "level"))
	base := rapid.SampledFrom([]uint64{0, 0, edge, 2 * edge, 7 * edge, size}).Draw(t, "base")
	return min(base+rapid.Uint64Range(0, 140).Draw(t, "beyond")-min(base, 70), size-1)
}

func drawSize(t *rapid.T) uint64 {
	edge := span(rapid.IntRange(0, 4).Draw(t, "size level"))
	return max(1, rapid.SampledFrom([]uint64{1, 40, edge - 1, edge, edge + 1, 3 * edge, 64*edge - 1, edge + 70}).Draw(t, "size"))
}

// step makes of the tree of before another one, by a Builder and in the model.
func step(t *rapid.T, s *nodeStore, g Geometry, base Root, before modelMap) (Root, modelMap) {
	m := before.clone()
	if rapid.Bool().Draw(t, "resize") {
		m.size = drawSize(t)
		if rapid.Bool().Draw(t, "a little") {
			m.size = max(1, before.size+rapid.Uint64Range(0, 130).Draw(t, "by")-min(before.size, 100))
		}
	}
	maps.DeleteFunc(m.regions, func(index uint64, _ Region) bool { return index >= m.size })
	changed := map[uint64]bool{}
	for range rapid.IntRange(0, 12).Draw(t, "changes") {
		changed[drawIndex(t, m.size)] = true
	}
	b := NewBuilder(s, s, g, base)
	ctx := context.Background()
	next := uint64(0)
	for _, index := range slices.Sorted(maps.Keys(changed)) {
		if index < next {
			continue
		}
		if rapid.IntRange(0, 5).Draw(t, "clear") == 0 {
			next = min(m.size, index+rapid.SampledFrom([]uint64{1, 64, 100, 5000, MaxRegions}).Draw(t, "length"))
			if err := b.Clear(ctx, index, next); err != nil {
				t.Fatal(err)
			}
			maps.DeleteFunc(m.regions, func(i uint64, _ Region) bool { return i >= index && i < next })
			continue
		}
		r := drawRegion(t, g)
		if was, ok := m.regions[index]; ok && rapid.IntRange(0, 3).Draw(t, "as it was") == 0 {
			r = was
		}
		if err := b.Set(ctx, index, r); err != nil {
			t.Fatal(err)
		}
		if len(r.Chunks) > 0 {
			m.regions[index] = r
		} else {
			delete(m.regions, index)
		}
	}
	root, err := b.Finish(ctx, m.size)
	if err != nil {
		t.Fatal(err)
	}
	return root, m
}

// Whatever was set, cleared, cut off and grown: the tree says what the model says, is the same as one built
// from nothing, and differs from any other in what the models differ in.
func TestTreesSayWhatTheModelSays(t *testing.T) {
	ctx := context.Background()
	rapid.Check(t, func(t *rapid.T) {
		g := drawGeometry(t)
		s := newNodeStore()
		root, m := Root{Empty: true}, modelMap{map[uint64]Region{}, drawSize(t)}
		type version struct {
			root Root
			m    modelMap
		}
		versions := []version{{root, m}}
		for range rapid.IntRange(1, 6).Draw(t, "steps") {
			base := rapid.SampledFrom(versions).Draw(t, "base")
			if rapid.Bool().Draw(t, "size not known") {
				base.root.Regions = 0
			}
			root, m := step(t, s, g, base.root, base.m)
			s.seal()
			verifyTree(t, s, g, root, m)
			versions = append(versions, version{root, m})
		}
		for range 3 {
			a, b := rapid.SampledFrom(versions).Draw(t, "a"), rapid.SampledFrom(versions).Draw(t, "b")
			var want []uint64
			for index, r := range a.m.regions {
				if other, ok := b.m.regions[index]; !ok || !r.Equal(other) {
					want = append(want, index)
				}
			}
			for index := range b.m.regions {
				if _, ok := a.m.regions[index]; !ok {
					want = append(want, index)
				}
			}
			slices.Sort(want)
			var got []uint64
			err := Diff(ctx, NewTree(s, g, a.root, 1<<20), NewTree(s, g, b.root, 0), func(index uint64, ra, rb Region) error {
				if !ra.Equal(a.m.regions[index]) || !rb.Equal(b.m.regions[index]) {
					t.Fatalf("region %d is visited with other maps", index)
				}
				got = append(got, index)
				return nil
			})
			if err != nil || !slices.Equal(got, want) {
				t.Fatalf("differ in %v (%v), want %v", got, err, want)
			}
		}
	})
}

func verifyTree(t *rapid.T, s *nodeStore, g Geometry, root Root, m modelMap) {
	ctx := context.Background()
	if root.Empty != (len(m.regions) == 0) || root.Regions != m.size || !root.Empty && root.Level != height(m.size) {
		t.Fatalf("root %+v of %d regions of a device of %d", root, len(m.regions), m.size)
	}
	indexes := slices.Sorted(maps.Keys(m.regions))
	again := NewBuilder(s, s, g, Root{Empty: true})
	for _, index := range indexes {
		if err := again.Set(ctx, index, m.regions[index]); err != nil {
			t.Fatal(err)
		}
	}
	if same, err := again.Finish(ctx, m.size); err != nil || same != root {
		t.Fatalf("built from nothing it is %+v (%v), was %+v", same, err, root)
	}
	if len(s.fresh) > 0 {
		t.Fatal("built from nothing it has other nodes")
	}

	tree := NewTree(s, g, root, rapid.SampledFrom([]int64{0, 20_000, 1 << 20}).Draw(t, "cache"))
	from, to := drawIndex(t, m.size), drawIndex(t, m.size)+1
	if rapid.Bool().Draw(t, "walk all") {
		from, to = 0, MaxRegions
	}
	var want, got []uint64
	for _, index := range indexes {
		if index >= from && index < to {
			want = append(want, index)
		}
	}
	index, r, ok, err := tree.Random(ctx, func(n int) int { return rapid.IntRange(0, n-1).Draw(t, "of the slots") })
	if want, there := m.regions[index]; err != nil || ok != (len(m.regions) > 0) || ok && (!there || !r.Equal(want)) {
		t.Fatalf("a region at random: %d, %v, %v", index, ok, err)
	}
	err = tree.Walk(ctx, from, to, func(index uint64, r Region) error {
		if diff := cmp.Diff(m.regions[index], r); diff != "" {
			t.Fatalf("region %d: %s", index, diff)
		}
		got = append(got, index)
		return nil
	})
	if err != nil || !slices.Equal(got, want) {
		t.Fatalf("walks %v (%v), want %v", got, err, want)
	}
	for _, index := range append(indexes, 0, drawIndex(t, m.size), m.size, MaxRegions, ^uint64(0)) {
		r, err := tree.Region(ctx, index)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(m.regions[index], r); diff != "" {
			t.Fatalf("region %d: %s", index, diff)
		}
	}
	if tree.cached > tree.cacheBytes && tree.cache.Len() > 1 {
		t.Fatalf("%d bytes are cached, %d may be", tree.cached, tree.cacheBytes)
	}
}

func wholeRegion(g Geometry, n int) Region {
	return Region{Chunks: []Chunk{{ID: idOf(n), Place: placeOf(n/128, n%128), Held: g.all()}}}
}

// build makes a tree of the given regions, each with a chunk of its own.
func build(t testing.TB, s *nodeStore, g Geometry, base Root, size uint64, indexes ...uint64) Root {
	t.Helper()
	b := NewBuilder(s, s, g, base)
	for i, index := range indexes {
		if err := b.Set(context.Background(), index, wholeRegion(g, int(index)+i)); err != nil {
			t.Fatal(err)
		}
	}
	root, err := b.Finish(context.Background(), size)
	if err != nil {
		t.Fatal(err)
	}
	s.seal()
	return root
}

func upTo(n uint64) (indexes []uint64) {
	for i := range n {
		indexes = append(indexes, i)
	}
	return indexes
}

// Two trees are compared by reading what they do not share.
func TestDiffReadsOnlyWhatDiffers(t *testing.T) {
	g := Geometry{BlocksPerRegion: 64}
	s := newNodeStore()
	a := build(t, s, g, Root{Empty: true}, 16384, upTo(16384)...)
	b := build(t, s, g, a, 16384, 5000, 5001)
	higher := build(t, s, g, a, 1<<30)
	for _, test := range []struct {
		name         string
		a, b         Root
		reads, found int
	}{
		{"the same", a, a, 0, 0},
		{"two regions of a leaf", a, b, 6, 2},
		{"grown", a, higher, 2, 0},
		{"changed and grown", b, higher, 8, 2},
	} {
		s.seal()
		found := 0
		if err := Diff(context.Background(), NewTree(s, g, test.a, 0), NewTree(s, g, test.b, 0), func(uint64, Region, Region) error {
			found++
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if s.reads != test.reads || found != test.found {
			t.Errorf("%s: %d nodes read, %d regions found; want %d, %d", test.name, s.reads, found, test.reads, test.found)
		}
	}
}

// lyingReader answers every request with the same node.
type lyingReader []byte

func (l lyingReader) ReadNode(context.Context, chunk.ID, chunk.Place) ([]byte, error) { return l, nil }

// A node that refers to itself cannot be walked in circles: its child would have to be of another level.
func TestNodesThatReferToThemselvesAreDamage(t *testing.T) {
	ctx := context.Background()
	g := Geometry{BlocksPerRegion: 16}
	self := Node{Level: 3}
	for slot := range slots {
		self.Children = append(self.Children, Child{Slot: slot, ID: idOf(1)})
	}
	r := lyingReader(self.encode(g))
	root := Root{ID: idOf(1), Level: 3}
	visit := func(uint64, Region) error { return nil }
	_, errRegion := NewTree(r, g, root, 1<<20).Region(ctx, 0)
	for name, err := range map[string]error{
		"region":  errRegion,
		"walk":    NewTree(r, g, root, 1<<20).Walk(ctx, 0, MaxRegions, visit),
		"diff":    Diff(ctx, NewTree(r, g, root, 1<<20), NewTree(r, g, Root{Empty: true}, 0), func(uint64, Region, Region) error { return nil }),
		"builder": NewBuilder(r, newNodeStore(), g, root).Set(ctx, 0, Region{}),
	} {
		var damaged *NodeError
		if !errors.Is(err, ErrDamaged) || !errors.As(err, &damaged) {
			t.Errorf("%s: %v", name, err)
		} else if damaged.Level != 2 || damaged.First != 0 || damaged.Regions() != span(2) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, level := range []int{-1, maxLevel + 1} {
		if err := NewTree(r, g, Root{Level: level}, 0).Walk(ctx, 0, 1, visit); !errors.Is(err, ErrInvalid) {
			t.Errorf("a root at level %d: %v", level, err)
		}
	}
}

// A subtree that occurs twice is one node; when it is lost, the error names the regions that were asked for.
func TestLostNodesNameTheRegionsAskedFor(t *testing.T) {
	g := Geometry{BlocksPerRegion: 64}
	s := newNodeStore()
	b := NewBuilder(s, s, g, Root{Empty: true})
	for _, index := range []uint64{0, 64, 128} {
		if err := b.Set(context.Background(), index, wholeRegion(g, 1)); err != nil {
			t.Fatal(err)
		}
	}
	root, err := b.Finish(context.Background(), 192)
	if err != nil {
		t.Fatal(err)
	}
	s.seal()
	tree := NewTree(s, g, root, 1<<20)
	if _, err := tree.Region(context.Background(), 5000); err != nil { // the root is in the cache
		t.Fatal(err)
	}
	maps.DeleteFunc(s.nodes, func(id chunk.ID, _ []byte) bool { return id != root.ID })
	for _, index := range []uint64{130, 3, 70} {
		var lost *NodeError
		if _, err := tree.Region(context.Background(), index); !errors.As(err, &lost) || lost.First != index&^63 {
			t.Errorf("region %d: %v", index, err)
		}
	}
}

// Walks begin and end where they are told, also in the middle of nodes.
func TestWalksKeepToTheirRange(t *testing.T) {
	g := Geometry{BlocksPerRegion: 64}
	s := newNodeStore()
	tree := NewTree(s, g, build(t, s, g, Root{Empty: true}, 5000, upTo(5000)...), 1<<20)
	edges := []uint64{0, 1, 63, 64, 65, 4095, 4096, 4097, 4999, 5000, 9000}
	for _, from := range edges {
		for _, to := range edges {
			next := from
			if err := tree.Walk(context.Background(), from, to, func(index uint64, r Region) error {
				if index != next || !r.Equal(wholeRegion(g, 2*int(index))) {
					t.Fatalf("from %d to %d: region %d is visited, want %d", from, to, index, next)
				}
				next++
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			if want := max(from, min(to, 5000)); next != want {
				t.Fatalf("from %d to %d: ends before %d, want %d", from, to, next, want)
			}
		}
	}
	stop := errors.New("enough")
	if err := tree.Walk(context.Background(), 0, 5000, func(uint64, Region) error { return stop }); !errors.Is(err, stop) {
		t.Fatalf("stopped with %v", err)
	}
}

// aheadReader reads several nodes at once, but for every third of them.
type aheadReader struct {
	*nodeStore
	asked []int // how many nodes, by call
}

func (r *aheadReader) ReadNodes(ctx context.Context, nodes []Child, found func(i int, plain []byte)) {
	r.asked = append(r.asked, len(nodes))
	for i, c := range nodes {
		if plain, err := r.ReadNode(ctx, c.ID, c.Place); err == nil && i%3 != 2 {
			found(i, plain)
		}
	}
	r.reads -= len(nodes)
}

// A walk asks for more and more leaves at once, none of them twice but those that it was not given, and finds what it finds without. One that
// ends soon has asked for little.
func TestWalkReadsLeavesAhead(t *testing.T) {
	g := Geometry{BlocksPerRegion: 64}
	s := newNodeStore()
	root := build(t, s, g, Root{Empty: true}, 16384, upTo(16384)...)
	s.seal()
	r := &aheadReader{nodeStore: s}
	found := 0
	err := NewTree(r, g, root, 1<<30).Walk(t.Context(), 100, 16000, func(index uint64, got Region) error {
		if index != uint64(100+found) || !got.Equal(wholeRegion(g, 2*int(index))) {
			return fmt.Errorf("region %d: %v", index, got)
		}
		found++
		return nil
	})
	if err != nil || found != 15900 {
		t.Fatal(found, err)
	}
	left, first := 0, 0 // leaves 1 to 249, which were asked for together or, the first of all, not
	for _, n := range r.asked {
		left += n / 3
		first += n
	}
	if want := []int{2, 4, 8, 16, 32, 64, 64, 58}; !slices.Equal(r.asked, want) || s.reads != 1+4+249-first+left {
		t.Errorf("asked for %v, and %d one by one", r.asked, s.reads)
	}

	r.asked, s.reads = nil, 0
	enough := errors.New("enough")
	err = NewTree(r, g, root, 1<<30).Walk(t.Context(), 0, 16384, func(uint64, Region) error { return enough })
	if !errors.Is(err, enough) || len(r.asked) > 0 || s.reads != 3 {
		t.Errorf("%v, asked for %v, and %d one by one", err, r.asked, s.reads)
	}
}

// gatedReader holds each read until the gate opens or whoever asks gives up.
type gatedReader struct {
	*nodeStore
	gate chan struct{}
}

func (r *gatedReader) ReadNode(ctx context.Context, id chunk.ID, p chunk.Place) ([]byte, error) {
	select {
	case <-r.gate:
		return r.nodeStore.ReadNode(ctx, id, p)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Many who look up at once read each node once; the one who reads for all and gives up takes nobody with him.
func TestConcurrentLookUpsReadEachNodeOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := Geometry{BlocksPerRegion: 64}
		s := newNodeStore()
		root := build(t, s, g, Root{Empty: true}, 16384, upTo(16384)...)
		r := &gatedReader{nodeStore: s, gate: make(chan struct{})}
		tree := NewTree(r, g, root, 1<<30)

		impatient, giveUp := context.WithCancel(context.Background())
		var all sync.WaitGroup
		all.Go(func() {
			if _, err := tree.Region(impatient, 77); !errors.Is(err, context.Canceled) {
				t.Errorf("who gave up got %v", err)
			}
		})
		synctest.Wait() // he reads the root
		for range 8 {
			all.Go(func() {
				for index := uint64(0); index < 16384; index += 32 {
					got, err := tree.Region(context.Background(), index)
					if err != nil || !got.Equal(wholeRegion(g, 2*int(index))) {
						t.Errorf("region %d: %v, %v", index, got, err)
						return
					}
				}
			})
		}
		synctest.Wait() // they wait for him
		giveUp()
		synctest.Wait()
		close(r.gate)
		all.Wait()
		if s.reads != 1+4+256 {
			t.Errorf("%d nodes were read, of %d", s.reads, 1+4+256)
		}
	})
}
