package prune_test

import (
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"slices"
	"strings"
	"testing"
	"time"

	"varve/internal/backup"
	"varve/internal/objects/faulty"
	"varve/internal/repository"
	"varve/internal/repository/config"
	"varve/internal/repository/envelope"
	"varve/internal/repository/prune"
)

// run prunes and returns what was deleted of what was there before.
func (w *world) run(o prune.Options) (r prune.Report, deleted []string, err error) {
	before := w.st.Names()
	o.Dir = w.dir
	r, err = prune.Run(context.Background(), w.open(w.st.Client()), o)
	after := w.st.Names()
	for _, n := range before {
		if !slices.Contains(after, n) {
			deleted = append(deleted, n)
		}
	}
	return r, deleted, err
}

func TestWhoCannotReadWhatIsNeededDeletesNothing(t *testing.T) {
	lost := func(b []byte) []byte { clear(b); return b }
	newer := func(b []byte) []byte {
		for _, h := range [][]byte{b[:128], b[len(b)-128:]} {
			binary.LittleEndian.PutUint16(h[8:], 9)
			binary.LittleEndian.PutUint32(h[124:], crc32.Checksum(h[:124], crc32.MakeTable(crc32.Castagnoli)))
		}
		return b
	}
	w, _ := messy(t)
	repo := w.open(w.st.Client())
	all, _, err := repo.Backups(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	pin, err := repo.Pin(t.Context(), all[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	defer pin.Release()
	for _, prefix := range []string{"backups/", "candidates/", "pins/", "condemned/"} {
		for what, change := range map[string]func([]byte) []byte{"lost": lost, "of a newer version": newer} {
			w := w.clone(t)
			name := w.names(prefix)[len(w.names(prefix))-1]
			w.st.Change(name, change)
			_, deleted, err := w.run(prune.Options{})
			if err == nil || !strings.Contains(err.Error(), strings.TrimPrefix(name, "backups/")) || len(deleted) > 0 {
				t.Errorf("%s is %s: %v deleted, %v", name, what, deleted, err)
			}
			if want := map[string]error{"lost": envelope.ErrLost, "of a newer version": envelope.ErrNewer}[what]; !errors.Is(err, want) {
				t.Errorf("%s is %s: %v", name, what, err)
			}
		}
	}
}

func TestWhereAMapIsLostNothingIsDeleted(t *testing.T) {
	w := newWorld(t, repository.CreateOptions{})
	v := newVolume(4)
	v.fill(1, 0, 1, 2, 3)
	lost := w.mustBackUp(v, nil)
	nodes := w.names("nodes/")[0]
	v.fill(2, 0)
	kept := w.mustBackUp(v, nil)
	v.fill(3, 0, 1, 2, 3)
	gone := w.mustBackUp(v, nil)
	w.delete(gone)
	w.st.Lose(nodes)
	w.st.Advance(2 * grace)
	_, deleted, err := w.run(prune.Options{})
	if !errors.Is(err, prune.ErrMapLost) || !strings.Contains(err.Error(), lost.ID) || len(deleted) > 0 {
		t.Fatalf("%v deleted, %v", deleted, err)
	}
	other := w.clone(t)
	if r, _, err := other.run(prune.Options{IgnoreLost: true}); err != nil || r.Condemned.Count == 0 || !slices.Equal(r.LostMaps, []string{lost.ID}) {
		t.Fatal(r, err)
	}
	w.delete(lost)
	w.pruneFor(3)
	w.check(kept)
	if n := len(w.names("packs/")); n != 2 {
		t.Errorf("%d packs are left", n)
	}
}

func TestDryRunChangesNothing(t *testing.T) {
	w, _ := messy(t)
	before := w.st.Names()
	r, deleted, err := w.run(prune.Options{DryRun: true})
	if err != nil || len(deleted) > 0 || r.Deleted.Count == 0 || r.Condemned.Count == 0 && r.Waiting.Count == 0 {
		t.Fatalf("%+v, %v, %v", r, deleted, err)
	}
	if after := w.st.Names(); !slices.Equal(before, after) {
		t.Fatalf("%d objects before, %d after", len(before), len(after))
	}
}

// An index that is lost, wholly or a run of it, makes nobody take what is needed for waste, and is made again.
func TestIndexThatIsLostCostsNothing(t *testing.T) {
	for _, keep := range []func(i int) bool{
		func(int) bool { return false }, func(i int) bool { return i%2 == 0 }, func(i int) bool { return i%2 == 1 },
	} {
		for _, damaged := range []bool{false, true} {
			all := !keep(0) && !keep(1)
			w, last := messy(t)
			w.prune() // some chunks are where only the index tells
			for i, name := range w.names("index/") {
				switch {
				case keep(i):
				case damaged:
					w.st.Change(name, func(b []byte) []byte { clear(b); return b })
				default:
					w.st.Lose(name)
				}
			}
			if r := w.prune(); all && r.RunsMade == 0 || r.LostChunks != 0 {
				t.Errorf("%+v", r)
			}
			w.check(last)
			w.pruneFor(4)
			w.check(last)
		}
	}
}

func TestFewRunsAreLeftOfMany(t *testing.T) {
	w := newWorld(t, repository.CreateOptions{})
	v := newVolume(4)
	var all []repository.Backup
	for i := range 20 {
		v.fill(uint64(i), i%4)
		all = append(all, w.mustBackUp(v, nil))
	}
	if r := w.prune(); r.RunsMerged != 20 || r.RunsMade != 1 || len(w.names("index/")) != 1 {
		t.Errorf("%+v, %d runs", r, len(w.names("index/")))
	}
	w.check(all...)
	if r := w.prune(); r.RunsMerged+r.RunsMade != 0 {
		t.Errorf("it merges what is one: %+v", r)
	}
}

func TestLockedObjectsWaitForTheirTime(t *testing.T) {
	w := newWorld(t, repository.CreateOptions{})
	w.st.SetLockable(true)
	v := newVolume(4)
	v.fill(1, 0, 1, 2, 3)
	until := w.st.Now().Add(100 * grace)
	b, err := w.backUp(t.Context(), w.open(w.st.Client()), v, nil, backup.Options{LockUntil: until})
	if err != nil {
		t.Fatal(err)
	}
	w.delete(b)
	w.pruneFor(1)
	w.st.Advance(grace + 1)
	r := w.prune()
	if r.Locked.Count < 3 || r.Deleted.Count != 0 { // packs of chunks and nodes, the record
		t.Fatalf("%+v", r)
	}
	if len(w.names("deleted/")) == 0 {
		t.Fatal("the tombstone goes before the record")
	}
	w.check()
	w.st.Advance(100 * grace)
	w.pruneFor(3)
	if left := append(w.names("packs/"), w.names("backups/")...); len(left) > 0 {
		t.Fatalf("left: %v", left)
	}
}

// Copies that repairs made go with their originals, and content of a pack of which only a copy is left is rescued.
func TestCopiesOfRepairsGoWithTheirOriginals(t *testing.T) {
	w, last := messy(t)
	for i, name := range w.st.Names() {
		if strings.HasPrefix(name, "config") || strings.HasPrefix(name, "pins/") {
			continue
		}
		w.st.Plant(name+"-1", w.st.Bytes(name))
		if i%2 == 0 {
			w.st.Lose(name)
		}
	}
	w.check(last)
	for range 4 {
		w.st.Advance(3 * grace)
		w.prune()
		w.check(last)
	}
	for _, prefix := range []string{"candidates/", "condemned/", "deleted/"} {
		if left := w.names(prefix); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
	want, _ := messy(t)
	for range 4 {
		want.st.Advance(3 * grace)
		want.prune()
	}
	if got, most := len(w.names("packs/")), 2*len(want.names("packs/")); got > most {
		t.Errorf("%d packs and copies, %d packs without copies", got, most/2)
	}
}

func TestPinnedBackupIsReadThoughItIsDeletedAndPruned(t *testing.T) {
	w := newWorld(t, repository.CreateOptions{Grace: time.Minute})
	v := newVolume(8)
	v.fill(1, 0, 1, 2, 3, 4, 5, 6, 7)
	b := w.mustBackUp(v, nil)
	d, err := w.open(w.st.Client()).OpenDevice(t.Context(), b.ID)
	if err != nil {
		t.Fatal(err)
	}
	w.delete(b)
	for range 5 {
		w.st.Advance(2 * time.Minute)
		if r := w.prune(); r.Condemned.Count+r.Deleted.Count != 0 {
			t.Fatalf("%+v", r)
		}
	}
	got := make([]byte, len(v.content))
	if err := d.ReadAt(t.Context(), got, 0); err != nil || string(got) != string(v.content) {
		t.Fatal(err)
	}
	d.Close()
	for range 3 {
		w.st.Advance(2 * time.Minute)
		w.prune()
	}
	if left := append(w.names("packs/"), w.names("backups/")...); len(left) > 0 {
		t.Fatalf("left: %v", left)
	}
}

// A session that was given up puts its record all the same, and is killed then.
func TestDoubtfulRecordsAreDecided(t *testing.T) {
	for _, rounds := range []int{1, 2, 4} {
		w := newWorld(t, repository.CreateOptions{})
		v := newVolume(4)
		v.fill(1, 0, 1, 2, 3)
		base := w.mustBackUp(v, nil)
		v.fill(2, 0, 1)
		s := newStage()
		a := w.writer(s, v, &base)
		if !s.until(a, func(c faulty.Call) bool { return isPut(c, "backups/") }) {
			t.Fatal(a.ended())
		}
		w.st.Advance(2*grace + time.Minute)
		if r := w.prune(); len(r.GivenUp) != 1 {
			t.Fatalf("%+v", r)
		}
		w.pruneFor(rounds - 1)
		s.stepFirst(a) // puts the record
		s.kill(a)
		repo := w.open(w.st.Client())
		all, _, err := repo.Backups(t.Context())
		if err != nil || len(all) != 2 || !all[1].Doubtful {
			t.Fatal(all, err)
		}
		w.check(base)
		r := w.prune()
		w.check(base)
		all, _, err = repo.Backups(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case rounds == 1 && (len(r.Whole) != 1 || len(all) != 2 || all[1].Doubtful):
			t.Errorf("after %d rounds: %+v, %v", rounds, r, all)
		case rounds > 1 && (len(r.Buried) != 1 || len(all) != 1):
			t.Errorf("after %d rounds: %+v, %v", rounds, r, all)
		}
		w.pruneFor(4)
		w.check(base)
	}
}

// In scope set no pack has chunks of two, also after chunks were moved.
func TestSetsAreNeverMixed(t *testing.T) {
	w := newWorld(t, repository.CreateOptions{Scope: config.ScopeSet})
	v := newVolume(8)
	v.fill(1, 0, 1, 2, 3, 4, 5, 6, 7)
	var olds, news []repository.Backup
	for range 3 {
		olds = append(olds, w.mustBackUp(v, nil)) // three sets of the same content
	}
	v.fill(2, 0, 1, 2, 3)
	for i := range olds {
		news = append(news, w.mustBackUp(v, &olds[i]))
		w.delete(olds[i])
	}
	rescued := int64(0)
	for range 3 {
		w.st.Advance(grace + time.Minute)
		rescued += w.prune().Rescued.Count
	}
	if rescued < 2*4 { // of two sets: then little enough is waste
		t.Errorf("%d chunks were moved", rescued)
	}
	w.check(news...)
	w.delete(news[0])
	w.delete(news[1])
	w.pruneFor(4)
	w.check(news[2])
	repo := w.open(w.st.Client())
	for _, name := range w.names("packs/") {
		h, err := envelope.DecodeHeader(w.st.Bytes(name))
		if err != nil || h.Set != news[2].Set {
			t.Errorf("%s is of set %v, %v", name, h.Set, err)
		}
	}
	if repo.Config().Scope != config.ScopeSet {
		t.Fatal("not in sets")
	}
}

func TestFullStoreGetsItsSpaceBack(t *testing.T) {
	w := newWorld(t, repository.CreateOptions{})
	v := newVolume(4)
	v.fill(1, 0, 1, 2, 3)
	gone := w.mustBackUp(v, nil)
	v.fill(2, 0, 1, 2, 3)
	kept := w.mustBackUp(v, nil)
	w.delete(gone)
	w.pruneFor(1)
	w.st.Advance(grace + time.Minute)
	last, err := w.open(w.st.Client()).Pin(t.Context(), kept.ID) // the store tells a time by its newest object
	if err != nil {
		t.Fatal(err)
	}
	defer last.Release()
	w.st.SetCapacity(w.st.UsedBytes())
	before := w.bytes("packs/")
	if _, deleted, err := w.run(prune.Options{}); len(deleted) == 0 {
		t.Fatal(err)
	}
	if after := w.bytes("packs/"); after > before*2/3 {
		t.Fatalf("%d bytes before, %d after", before, after)
	}
	w.check(kept)
}
