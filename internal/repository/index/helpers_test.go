package index_test

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/google/uuid"

	"varve/internal/objects"
	"varve/internal/objects/faulty"
	"varve/internal/repository/chunk"
	"varve/internal/repository/envelope"
	"varve/internal/repository/index"
	"varve/internal/repository/pack"
	"varve/internal/repository/seal"
)

var (
	ctx        = context.Background()
	repository = uuid.MustParse("0b9d4c1e-7f44-4c5a-9a55-1d6a2f7b8c90")
)

// place is a repository of packs and runs, without maps.
type place struct {
	st   *faulty.Store
	keys *seal.Keys
}

func newPlace() *place { return &place{st: faulty.New(), keys: seal.NewKeys(repository)} }

func (p *place) reader() *pack.Reader { return pack.NewReader(p.st, p.keys, 8<<20) }

// index returns the index as somebody finds it who knows nothing yet.
func (p *place) index(t testing.TB) *index.Index {
	t.Helper()
	x := index.New(p.reader())
	if err := x.Refresh(ctx); err != nil {
		t.Fatal(err)
	}
	return x
}

func (p *place) put(t testing.TB, packed pack.Packed) {
	t.Helper()
	if err := p.st.Put(ctx, packed.Name, packed.Object, objects.PutOptions{}); err != nil {
		t.Fatal(err)
	}
}

// pack stores a pack whose frames hold ids of anything.
func (p *place) pack(t testing.TB, kind envelope.Kind, set uuid.UUID, ids ...chunk.ID) pack.Packed {
	t.Helper()
	b := pack.NewBuilder(p.keys, kind, set, 0)
	for _, id := range ids {
		b.Append(id, id[:], pack.Raw, len(id), nil)
	}
	packed, err := b.Finish()
	if err != nil {
		t.Fatal(err)
	}
	p.put(t, packed)
	return packed
}

// write stores entries as runs, and returns these.
func (p *place) write(t testing.TB, set uuid.UUID, entries ...index.Entry) (runs []chunk.PackID) {
	t.Helper()
	w := index.NewWriter(p.keys, set, 3, func(run pack.Packed) error {
		p.put(t, run)
		run.Release()
		runs = append(runs, run.ID)
		return nil
	})
	for _, e := range entries {
		if err := w.AddEntry(e); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return runs
}

func randomID(r *rand.Rand) (id chunk.ID) {
	for i := 0; i < len(id); i += 8 {
		binary.LittleEndian.PutUint64(id[i:], r.Uint64())
	}
	return id
}

// entry is about any frame of one of a few packs.
func entry(r *rand.Rand, id chunk.ID) index.Entry {
	kind := envelope.Pack
	if r.IntN(4) == 0 {
		kind = envelope.Nodes
	}
	return index.Entry{
		ID:          id,
		Place:       chunk.Place{Pack: chunk.PackID{byte(r.IntN(50))}, Frame: r.Uint32()},
		SealedBytes: r.Uint32N(1 << 20),
		PlainBytes:  r.Uint32N(1 << 20),
		Kind:        kind,
	}
}

func entries(r *rand.Rand, n int) []index.Entry {
	all := make([]index.Entry, n)
	for i := range all {
		all[i] = entry(r, randomID(r))
	}
	return all
}
