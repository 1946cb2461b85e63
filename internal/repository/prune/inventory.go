package prune

import (
	"bytes"
	"context"
	"slices"
	"time"

	"github.com/google/uuid"

	"varve/internal/objects"
	"varve/internal/repository"
	"varve/internal/repository/chunk"
	"varve/internal/repository/envelope"
	"varve/internal/repository/pack"
)

// packKey names a pack of chunks or nodes.
type packKey struct {
	id    chunk.PackID
	nodes bool
}

func keyOf(kind envelope.Kind, id chunk.PackID) packKey { return packKey{id, kind == envelope.Nodes} }

func (k packKey) kind() envelope.Kind {
	if k.nodes {
		return envelope.Nodes
	}
	return envelope.Pack
}

func (k packKey) name() string { return pack.Name(k.kind(), k.id) }

// packInfo is what is known of a pack. There is one for each, so it is small.
type packInfo struct {
	packKey
	set       uint32 // index into the table's sets
	bytes     uint32 // of the object
	put       int64  // when, nanoseconds since 1970 by the store's clock
	frames    uint32 // that the index names
	hashes    uint32 // of blocks in these
	sealed    uint32 // bytes of these
	live      uint32 // bytes of those that count
	condemned bool
	ripe      bool // condemned for longer than the grace
	copied    bool // only copies that repairs made are there: see stays
	named     bool // by a candidate
	lost      bool // what is in it cannot be read
	hurt      bool // some of it cannot be read
	holds     bool // something in it has to be copied before it is deleted
	keep      bool // it is needed, and cannot be copied
	deleted   bool
	unindexed bool // runs do not name all of it
}

// none is the number of a pack that is not there.
const none = ^uint32(0)

// table is all packs that are there, by numbers in the order of their keys.
type table struct {
	packs   []packInfo
	firstOf [2]int              // chunks, nodes
	copies  map[uint32][]string // that repairs made
	sets    []uuid.UUID
	byUUID  map[uuid.UUID]uint32
}

func (t *table) set(id uuid.UUID) uint32 {
	n, ok := t.byUUID[id]
	if !ok {
		n = uint32(len(t.sets))
		t.sets = append(t.sets, id)
		t.byUUID[id] = n
	}
	return n
}

// find returns a pack's number, or none.
func (t *table) find(k packKey) uint32 {
	from, to := 0, t.firstOf[1]
	if k.nodes {
		from, to = to, len(t.packs)
	}
	i, ok := slices.BinarySearchFunc(t.packs[from:to], k.id, func(p packInfo, id chunk.PackID) int { return bytes.Compare(p.id[:], id[:]) })
	if !ok {
		return none
	}
	return uint32(from + i)
}

// name notes that a candidate names a pack.
func (t *table) name(k packKey) {
	if n := t.find(k); n != none {
		t.packs[n].named = true
	}
}

// inventory is what the store held when it was listed.
type inventory struct {
	runs  []repository.Stored // of the index
	marks []repository.Mark
	table *table
}

// inventory lists runs of the index and marks before packs. A pack that a run names was put before it: if the list of packs
// does not have it, it is gone. And of two pruners each of which deletes what the other takes to stay, one sees the
// other's mark, or that the pack is gone.
func (p *pruner) inventory(ctx context.Context) (*inventory, error) {
	inv := &inventory{}
	var err error
	if inv.runs, err = p.repo.Stored(ctx, pack.Prefix(envelope.Index)); err != nil {
		return nil, err
	}
	err = p.repo.Marks(ctx, func(m repository.Mark) error {
		inv.marks = append(inv.marks, m)
		return nil
	})
	if err != nil {
		return nil, err
	}
	if inv.table, err = p.listPacks(ctx); err != nil {
		return nil, err
	}
	t := inv.table
	for _, m := range inv.marks {
		for _, marked := range m.Packs {
			if n := t.find(packKey{marked.ID, marked.Nodes}); n != none {
				t.packs[n].condemned = true
				t.packs[n].ripe = t.packs[n].ripe || p.old(m.Modified, p.grace)
			}
		}
	}
	return inv, nil
}

func (p *pruner) listPacks(ctx context.Context) (*table, error) {
	t := &table{copies: map[uint32][]string{}, byUUID: map[uuid.UUID]uint32{}}
	for i, kind := range []envelope.Kind{envelope.Pack, envelope.Nodes} {
		t.firstOf[i] = len(t.packs)
		err := p.st.List(ctx, pack.Prefix(kind), func(o objects.Info) error {
			_, id, ok := pack.ParseName(o.Name)
			if !ok {
				return nil
			}
			k := keyOf(kind, id)
			// Copies follow their original, if it is there.
			if n := len(t.packs); n == t.firstOf[i] || t.packs[n-1].id != id {
				t.packs = append(t.packs, packInfo{packKey: k, bytes: uint32(o.Size), put: o.Modified.UnixNano(), copied: o.Name != k.name()})
			}
			if n := uint32(len(t.packs) - 1); o.Name != k.name() {
				t.copies[n] = append(t.copies[n], o.Name)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	t.set(uuid.Nil)
	return t, nil
}

// putAt is when the pack was put.
func (p *packInfo) putAt() time.Time { return time.Unix(0, p.put) }

// part is how much of the pack's frames counts.
func (p *packInfo) part() float64 {
	switch {
	case p.live == 0 && !p.named && !p.keep:
		return 0
	case p.named || p.keep || p.sealed <= p.live:
		return 1
	}
	return float64(p.live) / float64(p.sealed)
}

// complete tells whether the index names all of the pack: what it names would make an object of just that size. See
// docs/format-repository.md, "Packs".
func (p *packInfo) complete(parityPercent int) bool {
	if p.frames == 0 {
		return false
	}
	const count, entry, hash, tag = 4, 44, 8, 16
	payload := count + entry*int64(p.frames) + hash*int64(p.hashes) + tag + int64(p.sealed)
	h := envelope.Header{PayloadBytes: payload, ParityPercent: parityPercent}
	return h.ObjectBytes() == int64(p.bytes)
}
