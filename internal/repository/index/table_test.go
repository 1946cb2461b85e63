package index_test

import (
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"varve/internal/objects"
	"varve/internal/objects/faulty"
	"varve/internal/repository/chunk"
	"varve/internal/repository/envelope"
	"varve/internal/repository/index"
	"varve/internal/repository/pack"
)

func load(t testing.TB, table *index.Table, x *index.Index) (lost []chunk.PackID) {
	t.Helper()
	lost, err := table.Load(ctx, x)
	if err != nil {
		t.Fatal(err)
	}
	return lost
}

func TestTableKnowsWhatRunsSay(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	p := newPlace()
	some := entries(r, 50_000)
	for i := range 5 {
		p.write(t, uuid.Nil, some[i*10_000:(i+1)*10_000]...)
	}
	table := index.NewTable(8<<20, uuid.Nil)
	if lost := load(t, table, p.index(t)); len(lost) > 0 || table.Missed() || table.Len() != len(some) {
		t.Errorf("%d of %d, lost %v", table.Len(), len(some), lost)
	}
	for _, e := range some {
		other := envelope.Pack + envelope.Nodes - e.Kind
		if place, ok := table.Lookup(e.Kind, e.ID); !ok || place != e.Place {
			t.Fatalf("%v is at %v %v", e, place, ok)
		}
		if place, ok := table.Lookup(other, e.ID); ok {
			t.Fatalf("%v is at %v as %v", e, place, other)
		}
	}
	if place, ok := table.Lookup(envelope.Pack, randomID(r)); ok {
		t.Errorf("no such id is at %v", place)
	}
}

// At its limit the table misses, and what it finds is right.
func TestTableWithoutMemoryMisses(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for _, memory := range []int64{1, 4 << 10, 100_000, 1 << 20} {
		p := newPlace()
		some := entries(r, 60_000)
		p.write(t, uuid.Nil, some...)
		table := index.NewTable(memory, uuid.Nil)
		load(t, table, p.index(t))
		found := 0
		for _, e := range some {
			place, ok := table.Lookup(e.Kind, e.ID)
			if ok && place != e.Place {
				t.Fatalf("%v is at %v", e, place)
			}
			if ok {
				found++
			}
		}
		most := int(memory / 24)
		if !table.Missed() || found != table.Len() || found > most || found < most-256 { // a shard rounds down
			t.Errorf("%d bytes: found %d, at most %d, missed %v", memory, found, most, table.Missed())
		}
		if place, ok := table.Lookup(envelope.Pack, randomID(r)); ok {
			t.Errorf("%d bytes: no such id is at %v", memory, place)
		}
	}
}

// As many packs as a table has names for: entries of others are missed.
func TestTableWithTooManyPacksMisses(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	p := newPlace()
	some := entries(r, 2000)
	for i := range some {
		some[i].Kind, some[i].Place.Pack = envelope.Pack, chunk.PackID{byte(i), byte(i >> 8)}
	}
	p.write(t, uuid.Nil, some...)
	table := index.NewTable(512<<10, uuid.Nil)
	load(t, table, p.index(t))
	if !table.Missed() || table.Len() != 1024 {
		t.Errorf("%d of %d, missed %v", table.Len(), len(some), table.Missed())
	}
	for _, e := range some {
		if place, ok := table.Lookup(e.Kind, e.ID); ok && place != e.Place {
			t.Fatalf("%v is at %v", e, place)
		}
	}
}

// Two ids with the same first 8 bytes: the hint for one leads to the other, and does not count.
func TestCollidingPrefixesAreToldApart(t *testing.T) {
	p := newPlace()
	plain := []byte("content of an id that is true")
	there := p.keys.ChunkID(plain)
	crafted := there
	crafted[31] ^= 1
	b := pack.NewBuilder(p.keys, envelope.Pack, uuid.Nil, 0)
	place := b.Append(there, plain, pack.Raw, len(plain), nil)
	packed, err := b.Finish()
	if err != nil {
		t.Fatal(err)
	}
	p.put(t, packed)
	w := index.NewWriter(p.keys, uuid.Nil, 0, func(run pack.Packed) error { p.put(t, run); return nil })
	if err := w.Add(packed.Kind, packed.ID, packed.Directory()); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}

	table, x, reader := index.NewTable(1<<20, uuid.Nil), p.index(t), p.reader()
	load(t, table, x)
	hint, ok := table.Lookup(envelope.Pack, crafted)
	if !ok || hint != place {
		t.Fatalf("the crafted id does not collide: %v %v", hint, ok)
	}
	if at, ok, err := table.Locate(ctx, reader, envelope.Pack, crafted); ok || err != nil {
		t.Errorf("the crafted id is at %v, %v", at, err)
	}
	if plain, err := reader.Frame(ctx, envelope.Pack, hint, crafted, nil); !errors.Is(err, pack.ErrElsewhere) {
		t.Errorf("the crafted id has content %q, %v", plain, err)
	}
	if found, err := x.Find(ctx, crafted); err != nil || len(found) > 0 {
		t.Errorf("the crafted id is found at %v, %v", found, err)
	}
	if at, ok, err := table.Locate(ctx, reader, envelope.Pack, there); !ok || err != nil || at != place {
		t.Errorf("the true id is at %v %v, %v", at, ok, err)
	}

	// Stored as well, the crafted one takes the place of the true one, which is missed then, and both are found in the index.
	second := p.pack(t, envelope.Pack, uuid.Nil, crafted)
	table.Add(second)
	if at, ok, err := table.Locate(ctx, reader, envelope.Pack, crafted); !ok || err != nil || at.Pack != second.ID {
		t.Errorf("the crafted id is at %v %v, %v", at, ok, err)
	}
	if at, ok, err := table.Locate(ctx, reader, envelope.Pack, there); ok || err != nil {
		t.Errorf("the true id is at %v, %v", at, err)
	}
	if table.Len() != 1 {
		t.Errorf("%d entries", table.Len())
	}
}

// Of an id that many runs speak of, one of the newest counts: some are read side by side.
func TestNewPlacesGoBeforeOldOnes(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	p := newPlace()
	id := randomID(r)
	age := make(map[chunk.Place]int)
	const runs = 60
	var old index.Entry
	for i := range runs {
		e := entry(r, id)
		e.Kind = envelope.Pack
		age[e.Place] = runs - i
		some := []index.Entry{e}
		if i == 3 {
			old = entry(r, randomID(r))
			some = append(some, old)
		}
		p.write(t, uuid.Nil, some...)
		p.st.Advance(time.Hour)
	}
	table, x := index.NewTable(1<<20, uuid.Nil), p.index(t)
	for i := 1; i < len(x.Runs()); i++ {
		if x.Runs()[i].Modified.After(x.Runs()[i-1].Modified) {
			t.Fatal("runs are not in the order of their ages")
		}
	}
	load(t, table, x)
	if place, ok := table.Lookup(envelope.Pack, id); !ok || age[place] > 32 {
		t.Errorf("at %v %v, which is %d runs old", place, ok, age[place])
	}
	if place, ok := table.Lookup(old.Kind, old.ID); !ok || place != old.Place {
		t.Errorf("what only an old run says is at %v %v", place, ok)
	}
	// What the session itself stores goes before all that.
	packed := p.pack(t, envelope.Pack, uuid.Nil, id)
	table.Add(packed)
	if place, ok := table.Lookup(envelope.Pack, id); !ok || place != (chunk.Place{Pack: packed.ID}) {
		t.Errorf("what was just stored is at %v %v", place, ok)
	}
}

func TestTableOfASetKnowsNoOther(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	p := newPlace()
	mine, others := uuid.New(), uuid.New()
	one, two, three := entry(r, randomID(r)), entry(r, randomID(r)), entry(r, randomID(r))
	p.write(t, mine, one)
	p.write(t, others, two)
	p.write(t, uuid.Nil, three)
	for set, known := range map[uuid.UUID]index.Entry{mine: one, others: two, uuid.Nil: three} {
		table := index.NewTable(1<<20, set)
		load(t, table, p.index(t))
		for _, e := range []index.Entry{one, two, three} {
			if _, ok := table.Lookup(e.Kind, e.ID); ok != (e == known) {
				t.Errorf("table of %v: %v %v", set, e, ok)
			}
		}
	}
	// A run that says something of another set's pack is not believed either.
	packed := p.pack(t, envelope.Pack, others, two.ID)
	p.write(t, mine, index.Entry{ID: two.ID, Place: chunk.Place{Pack: packed.ID}, Kind: envelope.Pack})
	table := index.NewTable(1<<20, mine)
	table.Add(packed)
	if table.Len() != 0 {
		t.Error("took in another set's pack")
	}
	load(t, table, p.index(t))
	if _, ok := table.Lookup(envelope.Pack, two.ID); !ok {
		t.Fatal("no hint")
	}
	if place, ok, err := table.Locate(ctx, p.reader(), envelope.Pack, two.ID); ok || err != nil {
		t.Errorf("another set's chunk is at %v, %v", place, err)
	}
}

func TestHintsAreLookedAt(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	p := newPlace()
	ids := []chunk.ID{randomID(r), randomID(r), randomID(r), randomID(r)}
	sound := p.pack(t, envelope.Pack, uuid.Nil, ids[0], ids[1])
	gone := p.pack(t, envelope.Pack, uuid.Nil, ids[2])
	lost := p.pack(t, envelope.Pack, uuid.Nil, ids[3])
	table := index.NewTable(1<<20, uuid.Nil)
	for _, packed := range []pack.Packed{sound, gone, lost} {
		table.Add(packed)
	}
	p.st.Lose(gone.Name)
	p.st.Change(lost.Name, func(b []byte) []byte { clear(b); return b })
	reader := p.reader()
	for i, want := range []bool{true, true, false, false} {
		place, ok, err := table.Locate(ctx, reader, envelope.Pack, ids[i])
		if err != nil || ok != want || ok && place != (chunk.Place{Pack: sound.ID, Frame: uint32(i)}) {
			t.Errorf("id %d is at %v %v, %v", i, place, ok, err)
		}
	}
	defer p.st.Inject(faulty.Fault{Err: objects.ErrUnavailable})()
	if _, ok, err := table.Locate(ctx, p.reader(), envelope.Pack, ids[0]); ok || !errors.Is(err, objects.ErrUnavailable) {
		t.Error(ok, err)
	}
}

func TestLoadPassesOverRunsThatAreGoneOrLost(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	p := newPlace()
	some := entries(r, 3000)
	var runs []chunk.PackID
	for i := range 3 {
		runs = append(runs, p.write(t, uuid.Nil, some[i*1000:(i+1)*1000]...)...)
	}
	x := p.index(t)
	p.st.Lose(pack.Name(envelope.Index, runs[0]))
	p.st.Change(pack.Name(envelope.Index, runs[1]), func(b []byte) []byte { clear(b[10 : len(b)-10]); return b })
	table := index.NewTable(1<<20, uuid.Nil)
	if lost := load(t, table, x); len(lost) != 1 || lost[0] != runs[1] || table.Len() != 1000 {
		t.Errorf("%d entries, lost %v", table.Len(), lost)
	}
	defer p.st.Inject(faulty.Fault{Err: objects.ErrUnavailable})()
	if _, err := index.NewTable(1<<20, uuid.Nil).Load(ctx, index.New(p.reader())); err != nil {
		t.Errorf("no runs: %v", err)
	}
	fresh := p.st.Client()
	x = index.New(pack.NewReader(fresh, p.keys, 1<<20))
	if err := x.Refresh(ctx); err != nil {
		t.Fatal(err)
	}
	defer fresh.Inject(faulty.Fault{Err: objects.ErrUnavailable})()
	if _, err := index.NewTable(1<<20, uuid.Nil).Load(ctx, x); !errors.Is(err, objects.ErrUnavailable) {
		t.Error(err)
	}
}

func TestTableIsUsedConcurrently(t *testing.T) {
	p := newPlace()
	r := rand.New(rand.NewPCG(1, 1))
	some := entries(r, 20_000)
	for i := range 10 {
		p.write(t, uuid.Nil, some[i*2000:(i+1)*2000]...)
	}
	var packs []pack.Packed
	for range 10 {
		packs = append(packs, p.pack(t, envelope.Pack, uuid.Nil, randomID(r), randomID(r)))
	}
	table, x, reader := index.NewTable(256<<10, uuid.Nil), p.index(t), p.reader()
	var g sync.WaitGroup
	g.Go(func() { load(t, table, x) })
	g.Go(func() {
		for _, packed := range packs {
			table.Add(packed)
		}
	})
	for range 4 {
		g.Go(func() {
			for _, e := range some {
				if place, ok := table.Lookup(e.Kind, e.ID); ok && place != e.Place {
					t.Errorf("%v is at %v", e, place)
				}
			}
			for _, packed := range packs {
				for i, e := range packed.Entries {
					place, ok, err := table.Locate(ctx, reader, envelope.Pack, e.ID)
					if err != nil || ok && place != (chunk.Place{Pack: packed.ID, Frame: uint32(i)}) {
						t.Errorf("%v is at %v, %v", e.ID, place, err)
					}
				}
			}
		})
	}
	g.Wait()
}
