package maptree

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// drawRegion draws a region in normal form, a hole now and then.
func drawRegion(t *rapid.T, g Geometry) Region {
	var r Region
	for range rapid.IntRange(0, MaxChunks).Draw(t, "chunks") {
		c := Chunk{
			ID:    idOf(rapid.IntRange(0, 1000).Draw(t, "id")),
			Place: placeOf(rapid.IntRange(0, 5).Draw(t, "pack"), rapid.IntRange(0, 3).Draw(t, "frame")),
			Held:  g.all(),
		}
		if rapid.Bool().Draw(t, "partial") {
			c.Held = bitmapOf(t, g.BlocksPerRegion, "held")
		}
		r.Chunks = append(r.Chunks, c)
	}
	if rapid.Bool().Draw(t, "zeros") {
		r.Zero = bitmapOf(t, g.BlocksPerRegion, "zero")
	}
	r, err := r.normal(g)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func drawNode(t *rapid.T, g Geometry) Node {
	n := Node{Level: rapid.SampledFrom([]int{0, 0, 0, 1, maxLevel}).Draw(t, "level")}
	for slot := range slots {
		if rapid.IntRange(0, 9).Draw(t, "used") > 0 && (slot > 0 || rapid.Bool().Draw(t, "first")) {
			continue
		}
		if n.Level > 0 {
			n.Children = append(n.Children, Child{Slot: slot, ID: idOf(slot), Place: placeOf(rapid.IntRange(0, 3).Draw(t, "pack"), slot)})
		} else if r := drawRegion(t, g); len(r.Chunks) > 0 {
			n.Regions = append(n.Regions, RegionAt{Slot: slot, Region: r})
		}
	}
	return n
}

func TestNodesReadBackAsTheyWere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := drawGeometry(t)
		n := drawNode(t, g)
		plain := n.encode(g)
		got, err := Decode(plain, g)
		if n.empty() {
			if !errors.Is(err, ErrDamaged) {
				t.Fatalf("a node without anything: %v", err)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(n, got); diff != "" {
			t.Fatal(diff)
		}
	})
}

// The bytes of two small nodes, worked out by hand from docs/format-repository.md.
func TestNodesAreAsSpecified(t *testing.T) {
	g := Geometry{BlocksPerRegion: 16}
	leaf := Node{Regions: []RegionAt{
		{Slot: 0, Region: Region{Chunks: []Chunk{{ID: idOf(1), Place: placeOf(7, 258), Held: First(16)}}}},
		{Slot: 9, Region: Region{
			Chunks: []Chunk{{ID: idOf(2), Place: placeOf(8, 0), Held: First(16)}, {ID: idOf(3), Place: placeOf(7, 3), Held: First(10).AndNot(First(7))}},
			Zero:   First(2),
		}},
	}}
	inner := Node{Level: 3, Children: []Child{{Slot: 63, ID: idOf(4), Place: placeOf(7, 1<<31)}}}

	pack := func(n int) string { p := placeOf(n, 0).Pack; return hex.EncodeToString(p[:]) }
	id := func(n int) string { i := idOf(n); return hex.EncodeToString(i[:]) }
	for name, test := range map[string]struct {
		node Node
		want []string
	}{
		"leaf": {leaf, []string{
			"01", "00", "1000", "0200", "0102000000000000", pack(7), pack(8),
			"11", "00", "02010000", id(1),
			"1a", "01", "00000000", id(2), "00", "03000000", id(3), "8003", "0300",
		}},
		"inner": {inner, []string{
			"01", "03", "1000", "0100", "0000000000000080", pack(7),
			"00", "00000080", id(4),
		}},
	} {
		if got, want := hex.EncodeToString(test.node.encode(g)), strings.Join(test.want, ""); got != want {
			t.Errorf("%s:\n got %s\nwant %s", name, got, want)
		}
	}
}

// A region that one chunk holds whole is by far the most frequent.
func TestFullRegionsTakeFewBytes(t *testing.T) {
	for _, blocks := range []int{16, 64, 256} {
		g := Geometry{BlocksPerRegion: blocks}
		var n Node
		for slot := range slots {
			n.Regions = append(n.Regions, RegionAt{Slot: slot, Region: Region{
				Chunks: []Chunk{{ID: idOf(slot), Place: placeOf(slot/32, slot), Held: g.all()}},
			}})
		}
		if got := len(n.encode(g)); got > 40*slots {
			t.Errorf("%d regions of %d blocks take %d bytes", slots, blocks, got)
		}
	}
}

// Each rule of the format, broken alone.
func TestHostileNodesAreRefused(t *testing.T) {
	g := Geometry{BlocksPerRegion: 16}
	le := binary.LittleEndian
	two := Node{Regions: []RegionAt{
		{Slot: 0, Region: Region{Chunks: []Chunk{{ID: idOf(1), Place: placeOf(7, 1), Held: First(16)}}}},
		{Slot: 9, Region: Region{
			Chunks: []Chunk{{ID: idOf(2), Place: placeOf(8, 0), Held: First(16)}, {ID: idOf(3), Place: placeOf(7, 3), Held: First(8)}},
			Zero:   First(10).AndNot(First(9)),
		}},
	}}
	inner := Node{Level: 1, Children: []Child{{Slot: 1, ID: idOf(1), Place: placeOf(7, 1)}, {Slot: 2, ID: idOf(2), Place: placeOf(8, 1)}}}
	leaf := two.encode(g)
	const (
		first  = headerBytes + 2*packBytes     // the first region
		second = first + 1 + referenceBytes    // the second
		held   = second + 1 + 2*referenceBytes // its second chunk's bitmap
		zero   = held + 2
	)
	edit := func(plain []byte, change func(p []byte)) []byte {
		p := bytes.Clone(plain)
		change(p)
		return p
	}
	for name, plain := range map[string][]byte{
		"nothing":                      nil,
		"a byte less":                  leaf[:len(leaf)-1],
		"a byte more":                  append(bytes.Clone(leaf), 0),
		"format 0":                     edit(leaf, func(p []byte) { p[0] = 0 }),
		"level 10":                     edit(inner.encode(g), func(p []byte) { p[1] = 10 }),
		"leaf said to be inner":        edit(leaf, func(p []byte) { p[1] = 1 }),
		"inner said to be a leaf":      edit(inner.encode(g), func(p []byte) { p[1] = 0 }),
		"another geometry":             edit(leaf, func(p []byte) { p[2] = 64 }),
		"no slots":                     edit(leaf, func(p []byte) { le.PutUint64(p[6:], 0) }),
		"a slot more":                  edit(leaf, func(p []byte) { le.PutUint64(p[6:], 0x603) }),
		"a slot less":                  edit(leaf, func(p []byte) { le.PutUint64(p[6:], 1) }),
		"packs beyond the end":         edit(leaf, func(p []byte) { le.PutUint16(p[4:], 0xffff) }),
		"a pack less":                  edit(leaf, func(p []byte) { le.PutUint16(p[4:], 1) }),
		"a pack more":                  edit(leaf, func(p []byte) { le.PutUint16(p[4:], 3) }),
		"the same pack twice":          edit(leaf, func(p []byte) { copy(p[headerBytes+packBytes:first], p[headerBytes:]) }),
		"packs out of order":           edit(leaf, func(p []byte) { p[first+1] = 1 }),
		"packs named in another order": edit(leaf, func(p []byte) { p[first+1], p[second+1], p[second+1+referenceBytes] = 1, 0, 1 }),
		"a pack that is not there":     edit(leaf, func(p []byte) { p[second+1] = 2 }),
		"a pack that nobody names":     edit(leaf, func(p []byte) { p[second+1] = 0 }),
		"no chunks":                    edit(leaf, func(p []byte) { p[second] &^= 7 }),
		"five chunks":                  edit(leaf, func(p []byte) { p[second] |= 7 }),
		"a third chunk that is whole":  edit(leaf, func(p []byte) { p[second] |= shapeWhole << 2 }),
		"a chunk that supplies none":   edit(leaf, func(p []byte) { le.PutUint16(p[held:], 0x0200) }),
		"a chunk that holds none":      edit(leaf, func(p []byte) { le.PutUint16(p[held:], 0) }),
		"a chunk that is all zero":     edit(leaf, func(p []byte) { le.PutUint16(p[zero:], 0x00ff) }),
		"an empty zero bitmap":         edit(leaf, func(p []byte) { le.PutUint16(p[zero:], 0) }),
	} {
		if n, err := Decode(plain, g); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v, %v", name, n, err)
		}
	}
	partial := Node{Regions: []RegionAt{{Region: Region{Chunks: []Chunk{{Held: First(3)}}, Zero: First(2)}}}}
	alone := Node{Regions: []RegionAt{{Region: Region{Chunks: []Chunk{{Held: First(3)}}}}}}
	if _, err := Decode(edit(alone.encode(g), func(p []byte) { le.PutUint16(p[len(p)-2:], 0xffff) }), g); !errors.Is(err, ErrDamaged) {
		t.Errorf("the bitmap of a chunk that holds all: %v", err)
	}
	if _, err := Decode(edit(partial.encode(g), func(p []byte) { p[len(p)-1] = 0x80 }), g); !errors.Is(err, ErrDamaged) {
		t.Errorf("zeros where no chunk holds a block: %v", err)
	}
	if _, err := Decode(edit(leaf, func(p []byte) { p[0] = 2 }), g); !errors.Is(err, ErrNewer) {
		t.Errorf("format 2: %v", err)
	}
	for _, blocks := range []int{0, 8, 48, 512} {
		if _, err := Decode(leaf, Geometry{blocks}); !errors.Is(err, ErrInvalid) {
			t.Errorf("regions of %d blocks: %v", blocks, err)
		}
	}
}

// What decodes is what a node says and nothing else: encoded again it is the same bytes.
func FuzzDecode(f *testing.F) {
	for _, blocks := range []int{16, 64, 256} {
		g := Geometry{BlocksPerRegion: blocks}
		var full Node
		for slot := range 3 {
			full.Regions = append(full.Regions, RegionAt{Slot: 9 * slot, Region: Region{
				Chunks: []Chunk{{ID: idOf(slot), Place: placeOf(slot, slot), Held: g.all()}, {ID: idOf(9), Held: First(slot + 1)}},
				Zero:   First(blocks).AndNot(First(blocks - slot)),
			}})
		}
		inner := Node{Level: 2, Children: []Child{{Slot: 3, ID: idOf(3), Place: placeOf(3, 3)}, {Slot: 63, ID: idOf(4), Place: placeOf(3, 4)}}}
		f.Add(full.encode(g), uint16(blocks))
		f.Add(inner.encode(g), uint16(blocks))
	}
	f.Fuzz(func(t *testing.T, plain []byte, blocks uint16) {
		g := Geometry{BlocksPerRegion: int(blocks)}
		n, err := Decode(bytes.Clone(plain), g)
		if err != nil {
			return
		}
		if again := n.encode(g); !bytes.Equal(again, plain) {
			t.Fatalf("decodes %x\nencodes %x", plain, again)
		}
		if n.memory() > int64(1000+10*len(plain)) {
			t.Fatalf("%d bytes take %d in memory", len(plain), n.memory())
		}
		if !slices.IsSortedFunc(n.Children, func(a, b Child) int { return a.Slot - b.Slot }) {
			t.Fatal("children are out of order")
		}
	})
}
