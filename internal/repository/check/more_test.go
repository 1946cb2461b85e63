package check_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"varve/internal/objects"
	"varve/internal/objects/dir"
	"varve/internal/objects/faulty"
	"varve/internal/repository"
	"varve/internal/repository/check"
	"varve/internal/repository/chunk"
	"varve/internal/repository/envelope"
	"varve/internal/repository/pack"
	"varve/internal/vfs"
)

func flip(st *faulty.Store, name string) {
	st.Change(name, func(p []byte) []byte { p[len(p)/2] ^= 1; return p })
}

func clearAll(st *faulty.Store, name string) {
	st.Change(name, func(p []byte) []byte { clear(p); return p })
}

// packOf is the name of the pack that holds a region's first chunk.
func (w *world) packOf(st objects.Store, b repository.Backup, region uint64) string {
	w.t.Helper()
	repo := w.open(st)
	r, err := repo.Tree(b.Root).Region(w.t.Context(), region)
	if err != nil {
		w.t.Fatal(err)
	}
	return pack.Name(envelope.Pack, r.Chunks[0].Place.Pack)
}

// What is lost is stored again by the next backup of a source that has it, and then older backups are whole again.
func TestTheNextBackupHeals(t *testing.T) {
	for _, how := range []string{"zeros", "delete"} {
		t.Run(how, func(t *testing.T) {
			w, st := newWorld(t, true, repository.CreateOptions{Parity: -1})
			v := newVolume("v", 10*chunkBytes)
			v.fill(1, 0, 1, 5, 9)
			full := w.backUp(st, v, nil)
			v.fill(2, 9)
			second := w.backUp(st, v, &full)
			name := w.packOf(st, full, 0)
			if how == "delete" {
				st.Lose(name)
			} else {
				clearAll(st, name)
			}
			r := w.check(st, check.Options{})
			old := check.Range{Offset: 9 * chunkBytes, Length: chunkBytes}
			shared := []check.Range{{Offset: 0, Length: 2 * chunkBytes}, {Offset: 5 * chunkBytes, Length: chunkBytes}}
			want := map[string][]check.Range{full.ID: append(slices.Clone(shared), old), second.ID: shared}
			d, _ := find(r, name)
			if !same(harmed(r), want) || len(r.Damage) != 1 || !slices.Equal(d.Backups, []string{full.ID, second.ID}) {
				t.Fatalf("%+v", r)
			}
			if r.Harmed[0].Bytes != 4*chunkBytes || r.Harmed[0].Volume != "v" || r.Harmed[1].Bytes != 3*chunkBytes {
				t.Fatalf("%+v", r.Harmed)
			}
			st.Advance(time.Minute)
			third := w.backUp(st, v, &second)
			if third.ReadBytes == 0 {
				t.Fatal("nothing was read again")
			}
			truth, err := w.truth(st)
			if err != nil || !same(truth, map[string][]check.Range{full.ID: {old}}) {
				t.Fatalf("%v %v", truth, err)
			}
			st.Advance(time.Minute)
			if r = w.check(st, check.Options{}); !same(harmed(r), truth) {
				t.Fatalf("%+v", r)
			}
		})
	}
}

// A pack that was lost, and is there again, is not lost any more.
func TestWhatIsThereAgainIsNotLost(t *testing.T) {
	w, st := newWorld(t, false, repository.CreateOptions{})
	v := newVolume("v", 2*chunkBytes)
	v.fill(1, 0, 1)
	b := w.backUp(st, v, nil)
	name := w.packOf(st, b, 0)
	content := slices.Clone(st.Bytes(name))
	st.Lose(name)
	if r := w.check(st, check.Options{}); !r.Lost() || len(r.Harmed) != 1 {
		t.Fatalf("%+v", r)
	}
	repo := w.open(st)
	lost := func() bool {
		if err := repo.RefreshLost(t.Context()); err != nil {
			t.Fatal(err)
		}
		any, _ := repo.Lost()
		return any
	}
	if !lost() {
		t.Fatal("the ledger does not know it")
	}
	st.Plant(name, content)
	// The clock stands still, or was set back: what is found now counts all the same.
	st.SetTime(faulty.Epoch.Add(-time.Hour))
	if r := w.check(st, check.Options{SamplePercent: 1}); r.Lost() || len(r.Damage) > 0 {
		t.Fatalf("%+v", r)
	}
	if lost() {
		t.Fatal("the ledger has it lost still")
	}
}

// Without a key: what parity covers is mended, what is lost is told, config and keys are completed.
func TestSealed(t *testing.T) {
	w, st := newWorld(t, true, repository.CreateOptions{})
	w.populate(st)
	packs := under(st, "packs/")
	for _, n := range []string{packs[0], under(st, "backups/")[0], "config.1", under(st, "pins/")[0]} {
		flip(st, n)
	}
	st.Lose("config.0")
	st.Lose(under(st, "keys/ring-")[1])
	clearAll(st, packs[1])
	r, err := check.Sealed(t.Context(), st, check.Options{Dir: w.dir})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range r.Damage {
		if (d.State == check.Lost) != (d.Object == packs[1]) || len(d.Backups) > 0 {
			t.Errorf("%+v", d)
		}
	}
	if len(r.Damage) != 7 || len(r.Harmed) > 0 || !r.Lost() {
		t.Fatalf("%+v", r)
	}
	again, err := check.Sealed(t.Context(), st, check.Options{Dir: w.dir})
	if err != nil || len(again.Damage) != 1 {
		t.Fatalf("%+v %v", again, err)
	}
	if r, err := check.Sealed(t.Context(), st, check.Options{Dir: w.dir, SamplePercent: 30}); err != nil || r.Left == 0 || len(r.Notes) == 0 {
		t.Fatalf("%+v %v", r, err)
	}
	if _, err := check.Sealed(t.Context(), faulty.New(), check.Options{Dir: w.dir}); !errors.Is(err, repository.ErrNoRepository) {
		t.Fatal(err)
	}
}

// A budget that is over before anything was looked at says so.
func TestABudgetThatIsOver(t *testing.T) {
	w, st := newWorld(t, false, repository.CreateOptions{})
	w.populate(st)
	lost := under(st, "packs/")[2]
	clearAll(st, lost)
	r := w.check(st, check.Options{Budget: 1})
	if r.Left == 0 || r.Lost() || !slices.ContainsFunc(r.Notes, func(n string) bool { return strings.Contains(n, "not walked") }) {
		t.Fatalf("%+v", r)
	}
	// One that suffices finds what a check of everything does.
	if r = w.check(st, check.Options{Budget: time.Hour}); r.Left > 0 || !r.Lost() {
		t.Fatalf("%+v", r)
	}
	// And what is known to be lost is looked at, whatever the budget, and whom it harms is told.
	st.Advance(time.Minute)
	again := w.check(st, check.Options{Budget: 1})
	if again.Left == 0 || !same(harmed(again), harmed(r)) {
		t.Fatalf("%+v, after %+v", again, r)
	}
}

// A check that finds damage although it looks at a part says what it left out, and whom the damage harms.
func TestASampleThatFindsDamageSaysWhatIsLeft(t *testing.T) {
	w, st := newWorld(t, false, repository.CreateOptions{})
	v := newVolume("v", 2*chunkBytes)
	var made []repository.Backup
	for i := range 8 {
		v.fill(uint64(i), 0)
		made = append(made, w.backUp(st, v, nil))
	}
	for _, b := range made {
		clearAll(st, w.packOf(st, b, 0))
	}
	r := w.check(st, check.Options{SamplePercent: 50})
	if r.Left == 0 || len(r.Harmed) == 0 || len(r.Harmed) == len(made) || !slices.ContainsFunc(r.Notes, func(n string) bool { return strings.Contains(n, "not looked at") }) {
		t.Fatalf("%+v", r)
	}
	// What is known to be lost is looked at whatever the sample.
	st.Advance(time.Minute)
	before := len(r.Harmed)
	if r = w.check(st, check.Options{SamplePercent: 1}); len(r.Harmed) < before {
		t.Fatalf("%d are harmed, then %d", before, len(r.Harmed))
	}
}

// Content that was moved is found by the index alone. If the run that names it is lost it is looked for in the packs.
func TestMovedContentIsFoundWithoutTheIndex(t *testing.T) {
	w, st := newWorld(t, false, repository.CreateOptions{})
	v := newVolume("v", 70*chunkBytes)
	v.fill(1, 0, 69)
	full := w.backUp(st, v, nil)
	move := func(kind envelope.Kind) {
		repo := w.open(st)
		for _, n := range under(st, pack.Prefix(kind)) {
			_, id, _ := pack.ParseName(n)
			d, err := repo.Packs().Directory(t.Context(), kind, id)
			if err != nil {
				t.Fatal(err)
			}
			b := pack.NewBuilder(repo.Keys(), kind, d.Set(), 3)
			for i, e := range d.Entries() {
				plain, err := repo.Packs().Frame(t.Context(), kind, chunk.Place{Pack: id, Frame: uint32(i)}, e.ID, nil)
				if err != nil {
					t.Fatal(err)
				}
				encoded, enc := pack.Encode(nil, plain)
				b.Append(e.ID, encoded, enc, len(plain), e.Hashes)
			}
			p, err := b.Finish()
			if err != nil {
				t.Fatal(err)
			}
			if err := st.Put(t.Context(), p.Name, p.Object, objects.PutOptions{}); err != nil {
				t.Fatal(err)
			}
			st.Lose(n)
		}
	}
	move(envelope.Nodes)
	move(envelope.Pack)
	if truth, err := w.truth(st); err != nil || len(truth) != 1 {
		t.Fatalf("it is not lost without the index: %v %v", truth, err)
	}
	r := w.check(st, check.Options{})
	if len(r.Harmed) > 0 || r.Lost() || len(r.Damage) == 0 {
		t.Fatalf("%+v", r)
	}
	if truth, err := w.truth(st); err != nil || len(truth) > 0 {
		t.Fatalf("backup %s: %v %v", full.ID, truth, err)
	}
}

// A run of the index that was deleted or lost is made again, as far as backups need it.
func TestTheIndexIsMadeAgain(t *testing.T) {
	for _, how := range []string{"zeros", "delete"} {
		w, st := newWorld(t, false, repository.CreateOptions{})
		v := newVolume("v", 70*chunkBytes)
		v.fill(1, 0, 1, 69)
		b := w.backUp(st, v, nil)
		name := under(st, "index/")[0]
		if how == "delete" {
			st.Lose(name)
		} else {
			clearAll(st, name)
		}
		r := w.check(st, check.Options{})
		if len(r.Damage) != 1 || r.Damage[0].State != check.Mended || !strings.HasPrefix(r.Damage[0].Object, "index/") {
			t.Fatalf("%s: %+v", how, r)
		}
		repo := w.open(st)
		if err := repo.Index().Refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		entries := 0
		for _, run := range repo.Index().Runs() {
			for e, err := range repo.Index().Merge(t.Context(), []chunk.PackID{run.ID}) {
				if err != nil {
					t.Fatal(err)
				}
				if e.Place.Pack == b.Root.Place.Pack || e.Kind == envelope.Pack {
					entries++
				}
			}
		}
		if entries != 3+3 || len(under(st, "index/")) != 1 { // three chunks, two leaves and a root
			t.Fatalf("%s: %d entries in %v", how, entries, under(st, "index/"))
		}
	}
}

// A damaged object that is locked stays; its mended copy is what is read, and another check is content with it.
func TestALockedObjectStays(t *testing.T) {
	w, st := newWorld(t, false, repository.CreateOptions{})
	st.SetLockable(true)
	v := newVolume("v", 2*chunkBytes)
	v.fill(1, 0, 1)
	b := w.backUp(st, v, nil)
	name := w.packOf(st, b, 0)
	if err := st.Retain(t.Context(), name, st.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	flip(st, name)
	for range 2 {
		r := w.check(st, check.Options{})
		if d, ok := find(r, name); !ok || d.State != check.Mended || !strings.Contains(d.Message, "locked") {
			t.Fatalf("%+v", r)
		}
		if got := under(st, name); !slices.Equal(got, []string{name, name + "-1"}) {
			t.Fatalf("there are %v", got)
		}
	}
	st.Advance(2 * time.Hour)
	w.check(st, check.Options{})
	if got := under(st, name); !slices.Equal(got, []string{name + "-1"}) {
		t.Fatalf("there are %v", got)
	}
	flip(st, name+"-1")
	w.check(st, check.Options{})
	if got := under(st, name); !slices.Equal(got, []string{name + "-2"}) {
		t.Fatalf("there are %v", got)
	}
	if r := w.check(st, check.Options{}); len(r.Damage) > 0 {
		t.Fatalf("%+v", r)
	}
}

// A store that may only be read, or has no room, is checked all the same; what is found is told.
func TestAStoreThatTakesNothing(t *testing.T) {
	for _, refusal := range []error{objects.ErrDenied, objects.ErrFull} {
		w, st := newWorld(t, false, repository.CreateOptions{})
		w.populate(st)
		name := under(st, "packs/")[0]
		lost := under(st, "packs/")[1]
		flip(st, name)
		clearAll(st, lost)
		names := st.Names()
		client := st.Client()
		client.Inject(faulty.Fault{Op: faulty.Put, Err: refusal})
		if errors.Is(refusal, objects.ErrDenied) {
			client.Inject(faulty.Fault{Op: faulty.Delete, Err: refusal})
		}
		r := w.check(client, check.Options{})
		if d, _ := find(r, name); d.State != check.Harmed {
			t.Fatalf("%+v", r)
		}
		if d, _ := find(r, lost); d.State != check.Lost {
			t.Fatalf("%+v", r)
		}
		if !slices.Equal(names, st.Names()) || len(r.Notes) == 0 {
			t.Fatalf("%v, not %v: %+v", st.Names(), names, r)
		}
	}
}

// Where a medium fails to read a part, the parity gives it back.
func TestAMediumThatFailsInParts(t *testing.T) {
	w, st := newWorld(t, false, repository.CreateOptions{Parity: 20})
	w.populate(st)
	name := under(st, "packs/")[0]
	client := st.Client()
	client.Inject(faulty.Fault{Op: faulty.Get, Pattern: name, Err: syscall.EIO})
	// The whole, its first MiB, the first 64 KiB, the first 4096 bytes; and again when it is read for the second time.
	client.Inject(faulty.Fault{Op: faulty.Read, Pattern: name, Times: 8, Err: syscall.EIO})
	r := w.check(client, check.Options{})
	if d, _ := find(r, name); d.State != check.Mended || r.Lost() {
		t.Fatalf("%+v", r)
	}
	if truth, err := w.truth(st); err != nil || len(truth) > 0 {
		t.Fatal(truth, err)
	}
}

// Objects of other programs and of later versions are told, and left alone.
func TestWhatIsUnknownIsLeftAlone(t *testing.T) {
	w, sound := newWorld(t, true, repository.CreateOptions{})
	w.populate(sound)
	for _, newer := range sound.Names() {
		st := sound.Clone()
		st.Change(newer, later)
		st.Plant("readme", []byte("hello"))
		st.Plant("packs/00/notes", []byte("hello"))
		repo, err := w.tryOpen(st)
		if err != nil {
			if !errors.Is(err, envelope.ErrNewer) {
				t.Errorf("%s: %v", newer, err)
			}
			continue
		}
		before := st.Clone()
		r, err := check.Run(t.Context(), repo, check.Options{Dir: w.dir})
		if err != nil || r.Lost() {
			t.Errorf("%s: %+v, %v", newer, r, err)
		}
		for _, n := range []string{newer, "readme", "packs/00/notes"} {
			if !slices.ContainsFunc(r.Notes, func(note string) bool { return strings.Contains(note, n) }) {
				t.Errorf("%s is not told: %q", n, r.Notes)
			}
			if string(st.Bytes(n)) != string(before.Bytes(n)) {
				t.Errorf("%s was changed", n)
			}
		}
	}
}

// On a directory, with files that are really damaged.
func TestADirectory(t *testing.T) {
	w, mem := newWorld(t, true, repository.CreateOptions{})
	w.populate(mem)
	flip(mem, under(mem, "packs/")[0])
	flip(mem, under(mem, "index/")[0])
	st, err := dir.Create(vfs.OS(), t.TempDir()+"/repo")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range mem.Names() {
		if err := st.Put(t.Context(), n, [][]byte{mem.Bytes(n)}, objects.PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if r := w.check(st, check.Options{}); len(r.Damage) != 2 || r.Lost() {
		t.Fatalf("%+v", r)
	}
	if truth, err := w.truth(st); err != nil || len(truth) > 0 {
		t.Fatal(truth, err)
	}
	if r := w.check(st, check.Options{}); len(r.Damage) > 0 {
		t.Fatalf("%+v", r)
	}
}

// A check that is cancelled ends soon, though the store does not take what it had found by then.
func TestCancelledOverAStoreThatStalls(t *testing.T) {
	w, st := newWorld(t, false, repository.CreateOptions{})
	v := newVolume("web", 4*chunkBytes)
	v.fill(1, 0, 1, 2, 3)
	if _, err := w.tryBackUp(t.Context(), st, v, nil); err != nil {
		t.Fatal(err)
	}
	client := st.Client()
	repo := w.open(client)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var asked atomic.Bool
	client.SetHook(func(ctx context.Context, c faulty.Call) error {
		if c.Op != faulty.Put || !strings.HasPrefix(c.Name, "ledger/") || c.After {
			return nil
		}
		cancel()
		asked.Store(true)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Minute):
			return objects.ErrUnavailable
		}
	})
	began := time.Now()
	_, err := check.Run(ctx, repo, check.Options{Dir: w.dir})
	if took := time.Since(began); took > 30*time.Second || !asked.Load() || err == nil {
		t.Errorf("after %s, the ledger was to be written: %v: %v", took, asked.Load(), err)
	}
}
