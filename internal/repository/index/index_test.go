package index_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"pgregory.net/rapid"

	"varve/internal/objects"
	"varve/internal/objects/faulty"
	"varve/internal/repository/chunk"
	"varve/internal/repository/envelope"
	"varve/internal/repository/index"
	"varve/internal/repository/pack"
)

func ordered(all []index.Entry) []index.Entry {
	all = slices.Clone(all)
	slices.SortFunc(all, index.Entry.Compare)
	return slices.Compact(all)
}

func merged(t testing.TB, x *index.Index, runs []chunk.PackID) []index.Entry {
	t.Helper()
	var got []index.Entry
	for e, err := range x.Merge(ctx, runs) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, e)
	}
	return got
}

// All that was written into some runs is found, by id and in order, and nothing else.
func TestRunsAreFoundAndMerged(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 0))
		p := newPlace()
		var all []index.Entry
		var runs []chunk.PackID
		for range rapid.IntRange(1, 12).Draw(rt, "runs") {
			some := entries(r, rapid.IntRange(1, 2500).Draw(rt, "entries"))
			for i := range some {
				switch {
				case len(all) == 0 || r.IntN(10) > 0:
				case r.IntN(2) == 0:
					some[i] = all[r.IntN(len(all))]
				default: // another place
					some[i].ID = all[r.IntN(len(all))].ID
				}
			}
			runs = append(runs, p.write(t, uuid.Nil, some...)...)
			all = append(all, some...)
		}
		want := ordered(all)
		x := p.index(t)
		if got := merged(t, x, runs); !slices.Equal(want, got) {
			rt.Fatalf("%d entries merged of %d: %s", len(got), len(want), cmp.Diff(want, got))
		}
		for range 20 {
			id := all[r.IntN(len(all))].ID
			found, err := x.Find(ctx, id)
			if err != nil {
				rt.Fatal(err)
			}
			places := slices.DeleteFunc(slices.Clone(want), func(e index.Entry) bool { return e.ID != id })
			if diff := cmp.Diff(places, found); diff != "" {
				rt.Fatal(diff)
			}
		}
		if found, err := x.Find(ctx, randomID(r)); err != nil || len(found) > 0 {
			rt.Fatalf("found %v of no such id, %v", found, err)
		}
	})
}

// The places of an id may take several frames, and begin in the middle of one.
func TestIDWithThousandsOfPlaces(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for _, before := range []int{0, 1, 999, 1000, 1001, 1500} {
		p := newPlace()
		id := chunk.ID{0x80}
		var all []index.Entry
		for range before {
			e := entry(r, randomID(r))
			e.ID[0] &= 0x7f
			all = append(all, e)
		}
		for range 3000 {
			all = append(all, entry(r, id))
		}
		after := entry(r, chunk.ID{0x80, 31: 1}) // the same prefix
		all = append(all, after)
		p.write(t, uuid.Nil, all...)
		found, err := p.index(t).Find(ctx, id)
		if err != nil || len(found) != 3000 {
			t.Errorf("%d places after %d entries, %v", len(found), before, err)
		}
		if found, err := p.index(t).Find(ctx, after.ID); err != nil || len(found) != 1 || found[0] != after {
			t.Errorf("what follows is %v, %v", found, err)
		}
	}
}

func TestFindAsksNoRunTwice(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	p := newPlace()
	some := entries(r, 20_000)
	p.write(t, uuid.Nil, some...)
	x := p.index(t)
	reads := 0
	p.st.SetHook(func(_ context.Context, c faulty.Call) error {
		if !c.After {
			reads++
		}
		return nil
	})
	for i, most := range []int{2, 1, 1} { // fences, then frames alone
		reads = 0
		if found, err := x.Find(ctx, some[i].ID); err != nil || len(found) != 1 {
			t.Fatal(found, err)
		}
		if reads > most {
			t.Errorf("look-up %d takes %d requests", i, reads)
		}
	}
}

// A run that a pruner merged into another is not missed.
func TestFindLooksIntoWhatARunWasMergedInto(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	p := newPlace()
	some, others := entries(r, 100), entries(r, 100)
	one := p.write(t, uuid.Nil, some...)
	two := p.write(t, uuid.Nil, others...)
	x := p.index(t)

	both := merged(t, p.index(t), append(one, two...))
	p.write(t, uuid.Nil, both...)
	for _, run := range append(one, two...) {
		p.st.Lose(pack.Name(envelope.Index, run))
	}
	found, err := x.Find(ctx, others[5].ID)
	if err != nil || !slices.Equal(found, others[5:6]) {
		t.Errorf("found %v, %v", found, err)
	}
	if len(x.Runs()) != 1 {
		t.Errorf("%d runs are known", len(x.Runs()))
	}
	for _, err := range x.Merge(ctx, one) {
		if !errors.Is(err, pack.ErrElsewhere) {
			t.Errorf("merging what is gone: %v", err)
		}
	}
}

func TestLostRunHidesNoOther(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	p := newPlace()
	some := entries(r, 5000)
	one := p.write(t, uuid.Nil, some...)
	two := p.write(t, uuid.Nil, some...)
	p.st.Change(pack.Name(envelope.Index, one[0]), func(b []byte) []byte { clear(b[:len(b)/2]); return b })
	found, err := p.index(t).Find(ctx, some[7].ID)
	if !errors.Is(err, envelope.ErrLost) || !slices.Equal(found, some[7:8]) {
		t.Errorf("found %v, %v", found, err)
	}
	for _, err := range p.index(t).Merge(ctx, append(two, one...)) {
		if err != nil && !errors.Is(err, envelope.ErrLost) {
			t.Error(err)
		}
		if err != nil {
			return
		}
	}
	t.Error("merged a lost run")
}

func TestDamagedRunIsMended(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	p := newPlace()
	some := entries(r, 10_000)
	runs := p.write(t, uuid.Nil, some...)
	name := pack.Name(envelope.Index, runs[0])
	size := len(p.st.Bytes(name))
	for _, at := range []int{5, 200, 3000, size / 2, size - 10} {
		sound := p.st.Bytes(name)
		p.st.Change(name, func(b []byte) []byte { b[at] ^= 4; return b })
		if got := merged(t, p.index(t), runs); !slices.Equal(ordered(some), got) {
			t.Errorf("a bit at %d of %d: %d entries", at, size, len(got))
		}
		p.st.Plant(name, sound)
	}
}

func TestRunsAreMadeAgainFromDirectories(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	p := newPlace()
	var written, again []chunk.PackID
	put := func(runs *[]chunk.PackID) func(pack.Packed) error {
		return func(run pack.Packed) error {
			p.put(t, run)
			*runs = append(*runs, run.ID)
			return nil
		}
	}
	w := index.NewWriter(p.keys, uuid.Nil, 3, put(&written))
	var packs []pack.Packed
	for i := range 5 {
		var ids []chunk.ID
		for range 700 {
			ids = append(ids, randomID(r))
		}
		kind := []envelope.Kind{envelope.Pack, envelope.Nodes}[i%2]
		packed := p.pack(t, kind, uuid.Nil, ids...)
		packs = append(packs, packed)
		if err := w.Add(packed.Kind, packed.ID, packed.Directory()); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}

	reader := p.reader()
	w = index.NewWriter(p.keys, uuid.Nil, 3, put(&again))
	for _, packed := range packs {
		d, err := reader.Directory(ctx, packed.Kind, packed.ID)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Add(packed.Kind, packed.ID, d); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	x := p.index(t)
	before := merged(t, x, written)
	if got := merged(t, x, again); !slices.Equal(before, got) || len(before) != 5*700 {
		t.Errorf("%d entries, %d made again", len(before), len(got))
	}
	for _, e := range before {
		plain, err := reader.Frame(ctx, e.Kind, e.Place, e.ID, nil)
		if !errors.Is(err, envelope.ErrLost) || plain != nil {
			t.Fatalf("%v: %v", e, err) // its content is not what its id says
		}
	}
}

// What a writer gathers is bounded: many entries make several runs.
func TestWriterMakesSeveralRuns(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	p := newPlace()
	some := entries(r, 300_000)
	runs := p.write(t, uuid.Nil, some...)
	if len(runs) != 2 {
		t.Errorf("%d runs", len(runs))
	}
	x := p.index(t)
	want := ordered(some)
	if got := merged(t, x, runs); !slices.Equal(got, want) {
		t.Errorf("%d entries of %d", len(got), len(want))
	}
	// Merged runs have ids of their own each: a look-up reads one of them.
	sorted := p.write(t, uuid.Nil, want...)
	for _, run := range runs {
		p.st.Lose(pack.Name(envelope.Index, run))
	}
	x = p.index(t)
	if _, err := x.Find(ctx, want[0].ID); err != nil {
		t.Fatal(err)
	}
	var asked []string
	p.st.SetHook(func(_ context.Context, c faulty.Call) error {
		if !c.After {
			asked = append(asked, c.Name)
		}
		return nil
	})
	for i, run := range sorted {
		asked = nil
		id := want[i*290_000].ID
		if found, err := x.Find(ctx, id); err != nil || len(found) != 1 {
			t.Fatal(found, err)
		}
		if !slices.Equal(asked, []string{pack.Name(envelope.Index, run)}) {
			t.Errorf("an id of run %d is looked for in %v", i, asked)
		}
	}
}

func TestErrorOfPutEndsTheWriting(t *testing.T) {
	p := newPlace()
	full := objects.ErrFull
	w := index.NewWriter(p.keys, uuid.Nil, 3, func(pack.Packed) error { return full })
	if err := w.Flush(); err != nil {
		t.Errorf("nothing is flushed: %v", err)
	}
	if err := w.AddEntry(index.Entry{Kind: envelope.Pack}); err != nil {
		t.Error(err)
	}
	if err := w.Flush(); !errors.Is(err, full) {
		t.Error(err)
	}
}

func TestStoreThatFailsIsNoLostRun(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	p := newPlace()
	some := entries(r, 100)
	runs := p.write(t, uuid.Nil, some...)
	x := p.index(t)
	defer p.st.Inject(faulty.Fault{Err: objects.ErrUnavailable})()
	if _, err := x.Find(ctx, some[0].ID); !errors.Is(err, objects.ErrUnavailable) || errors.Is(err, envelope.ErrLost) {
		t.Error(err)
	}
	for _, err := range x.Merge(ctx, runs) {
		if !errors.Is(err, objects.ErrUnavailable) {
			t.Error(err)
		}
	}
	if err := x.Refresh(ctx); !errors.Is(err, objects.ErrUnavailable) {
		t.Error(err)
	}
}

func TestMergeIsBounded(t *testing.T) {
	x := newPlace().index(t)
	for _, err := range x.Merge(ctx, make([]chunk.PackID, index.MaxMerge+1)) {
		if err == nil {
			t.Error("merged more than there may be")
		}
	}
}
