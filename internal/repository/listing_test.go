package repository_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"varve/internal/backup"
	"varve/internal/block"
	"varve/internal/block/memdisk"
	"varve/internal/objects"
	"varve/internal/objects/faulty"
	"varve/internal/repository"
	"varve/internal/repository/envelope"
	"varve/internal/repository/keys"
	"varve/internal/repository/pack"
	"varve/internal/repository/seal"
)

func create(t *testing.T, st objects.Store) *repository.Repo {
	t.Helper()
	repo, err := repository.Create(t.Context(), st, repository.CreateOptions{ChunkBytes: 64 << 10})
	if err != nil {
		t.Fatal(err)
	}
	return repo
}

func open(t *testing.T, st objects.Store) *repository.Repo {
	t.Helper()
	repo, err := repository.Open(t.Context(), st, repository.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return repo
}

// backUp makes a backup of some regions, each filled with one number.
func backUp(t *testing.T, repo *repository.Repo, base *repository.Backup, o backup.Options, regions ...byte) *repository.Record {
	t.Helper()
	d, err := memdisk.New(int64(len(regions)) * 64 << 10)
	if err != nil {
		t.Fatal(err)
	}
	for i, b := range regions {
		op := &block.Op{Kind: block.OpWrite, Offset: int64(i) * 64 << 10, Data: bytes.Repeat([]byte{b}, 64<<10), Length: 64 << 10}
		if d.Submit(t.Context(), []*block.Op{op}); op.Err != nil {
			t.Fatal(op.Err)
		}
	}
	s := &backup.Source{Device: d, Volume: "v", VolumeID: uuid.UUID{1}, Name: "v", Type: repository.Full, Base: base}
	if base != nil {
		s.Type = repository.Incremental
	}
	rec, err := backup.Create(t.Context(), repo, []*backup.Source{s}, o)
	if err != nil {
		t.Fatal(err)
	}
	return rec
}

// repaired replaces all objects of a kind by the copies that a repair makes.
func repaired(st *faulty.Store, prefix string) (n int) {
	for _, name := range st.Names() {
		if strings.HasPrefix(name, prefix) {
			st.Plant(name+"-1", st.Bytes(name))
			st.Lose(name)
			n++
		}
	}
	return n
}

func TestCopiesThatRepairsMadeCountAsTheirOriginals(t *testing.T) {
	st := faulty.New()
	repo := create(t, st)
	kept := backUp(t, repo, nil, backup.Options{}, 1, 2).Backups[0]
	gone := backUp(t, repo, nil, backup.Options{}, 1, 3).Backups[0]
	if err := repo.Delete(t.Context(), gone.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := repo.Pin(t.Context(), kept.ID); err != nil {
		t.Fatal(err)
	}
	_, kind, err := packOf(st, "packs/")
	if err != nil {
		t.Fatal(err)
	}
	if err := repo.PutMark(t.Context(), []repository.MarkedPack{{ID: kind}}); err != nil {
		t.Fatal(err)
	}
	// A session that was killed leaves its candidate.
	other := st.Client()
	other.Inject(faulty.Fault{Op: faulty.Put, Pattern: "backups/*", Err: objects.ErrUnavailable})
	s := sessionOf(t, open(t, other))
	if err := s.Commit(t.Context(), &repository.Record{Backups: []repository.Backup{{ID: s.ID(), Full: s.ID(), Type: repository.Full}}}, nil); !errors.Is(err, objects.ErrUnavailable) {
		t.Fatal(err)
	}
	if there, err := repo.Fence(t.Context(), s.ID()); there || err != nil {
		t.Fatal(there, err)
	}
	for _, prefix := range []string{"backups/", "deleted/", "pins/", "condemned/", "candidates/", "fenced/"} {
		if repaired(st, prefix) == 0 {
			t.Fatalf("there is no %s", prefix)
		}
	}
	repo = open(t, st)
	all, _, err := repo.Backups(t.Context())
	if err != nil || len(all) != 1 || all[0].ID != kept.ID {
		t.Fatalf("%v, %v", all, err)
	}
	c, err := repo.Census(t.Context(), st.Now())
	if err != nil || len(c.Candidates) != 1 || !c.Pins[kept.ID] || len(c.Deleted) != 1 || !c.Fenced[s.ID()] || len(c.Records) != 2 {
		t.Fatalf("%+v, %v", c, err)
	}
	if condemned, err := repo.Condemned(t.Context()); err != nil || !condemned[kind] {
		t.Fatal(condemned, err)
	}
	if err := repo.Remove(t.Context(), c.Candidates[0].Stored); err != nil {
		t.Fatal(err)
	}
	for _, name := range st.Names() {
		if strings.HasPrefix(name, "candidates/") {
			t.Fatalf("%s is left", name)
		}
	}
	// The session goes on: it must see the fence.
	other.SetHook(nil)
	if there, err := repo.There(t.Context(), "fenced/"+s.ID()); err != nil || !there {
		t.Fatal(there, err)
	}
}

func sessionOf(t *testing.T, repo *repository.Repo) *repository.Session {
	t.Helper()
	s, err := repo.Begin(t.Context(), repository.SessionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func packOf(st *faulty.Store, prefix string) (name string, id [16]byte, err error) {
	for _, name := range st.Names() {
		if strings.HasPrefix(name, prefix) {
			_, id, _ := pack.ParseName(name)
			return name, id, nil
		}
	}
	return "", id, errors.New("no pack")
}

// A pruner deletes a record and then its tombstone while somebody lists backups.
func TestDeletedBackupNeverAppearsAgainWhileItIsPruned(t *testing.T) {
	for _, after := range []string{"backups/", "deleted/", "fenced/"} {
		st := faulty.New()
		repo := create(t, st)
		b := backUp(t, repo, nil, backup.Options{}, 1).Backups[0]
		if err := repo.Delete(t.Context(), b.ID); err != nil {
			t.Fatal(err)
		}
		reader := st.Client()
		reader.SetHook(func(_ context.Context, c faulty.Call) error {
			if c.After && c.Op == faulty.List && c.Name == after {
				st.Lose("backups/" + b.ID)
				st.Lose("deleted/" + b.ID)
			}
			return nil
		})
		all, unreadable, err := open(t, reader).Backups(t.Context())
		if err != nil || len(all)+len(unreadable) != 0 {
			t.Errorf("pruned after the listing of %s: %v, %v, %v", after, all, unreadable, err)
		}
	}
}

func TestRecordThatCannotBeReadCanBeDeleted(t *testing.T) {
	st := faulty.New()
	repo := create(t, st)
	lost := backUp(t, repo, nil, backup.Options{}, 1).Backups[0]
	kept := backUp(t, repo, nil, backup.Options{}, 2).Backups[0]
	st.Change("backups/"+lost.ID, func(b []byte) []byte { clear(b); return b })
	repo = open(t, st)
	if _, err := repo.Census(t.Context(), st.Now()); err == nil || !strings.Contains(err.Error(), lost.ID) {
		t.Fatalf("who cannot read a record knows what is needed: %v", err)
	}
	if err := repo.Delete(t.Context(), lost.ID); err != nil {
		t.Fatal(err)
	}
	c, err := repo.Census(t.Context(), st.Now())
	if err != nil || len(c.Records) != 1 || c.Records[0].ID != kept.ID {
		t.Fatal(c, err)
	}
	if all, unreadable, err := repo.Backups(t.Context()); err != nil || len(all) != 1 || len(unreadable) != 0 {
		t.Fatal(all, unreadable, err)
	}
}

func TestSessionsDoNotRelyOnWhatIsCondemnedOrGone(t *testing.T) {
	for _, gone := range []bool{false, true} {
		st := faulty.New()
		repo := create(t, st)
		backUp(t, repo, nil, backup.Options{}, 1, 2, 3)
		name, id, err := packOf(st, "packs/")
		if err != nil {
			t.Fatal(err)
		}
		if gone {
			st.Lose(name)
		} else if err := repo.PutMark(t.Context(), []repository.MarkedPack{{ID: id}}); err != nil {
			t.Fatal(err)
		}
		st.Advance(time.Second)
		other := st.Client()
		reads := 0
		other.SetHook(func(_ context.Context, c faulty.Call) error {
			if !c.After && strings.HasPrefix(c.Name, name) {
				reads++
			}
			return nil
		})
		rec := backUp(t, open(t, other), nil, backup.Options{}, 1, 2, 3)
		if rec.Stats.DuplicateBytes != 0 || rec.Stats.NewBytes != 3*64<<10 {
			t.Errorf("gone %v: %+v", gone, rec.Stats)
		}
		if !gone && reads > 0 {
			t.Errorf("%d requests for a condemned pack", reads)
		}
	}
}

func TestLockedBackupKeepsAllThatItNeedsUnderItsLock(t *testing.T) {
	st := faulty.New()
	st.SetLockable(true)
	passphrase := keys.Add{Passphrase: []byte("secret"), Cost: keys.Cost{Passes: 1, MemoryKiB: 64, Lanes: 1}}
	repo, err := repository.Create(t.Context(), st, repository.CreateOptions{ChunkBytes: 64 << 10, Keys: []keys.Add{passphrase}})
	if err != nil {
		t.Fatal(err)
	}
	first, second := st.Now().Add(time.Hour), st.Now().Add(30*24*time.Hour)
	b := backUp(t, repo, nil, backup.Options{LockUntil: first}, 1, 2, 3, 4).Backups[0]
	backUp(t, repo, nil, backup.Options{}, 5)
	again, err := repository.Open(t.Context(), st, repository.OpenOptions{Unlock: keys.Unlock{Passphrase: passphrase.Passphrase}})
	if err != nil {
		t.Fatal(err)
	}
	rec := backUp(t, again, &b, backup.Options{LockUntil: second}, 1, 2, 5, 4) // inherits one pack, finds 5 in another
	needed := map[string]bool{"backups/" + rec.ID: true}
	for _, name := range st.Names() {
		if kind, _, _ := strings.Cut(name, "/"); kind == "packs" || kind == "keys" || strings.HasPrefix(kind, "config.") {
			needed[name] = true
		}
	}
	for name := range needed {
		if until := st.LockedUntil(name); until.Before(second) {
			t.Errorf("%s is locked until %v", name, until)
		}
	}
	if err := st.Delete(t.Context(), "backups/"+rec.ID); !errors.Is(err, objects.ErrLocked) {
		t.Error(err)
	}
}

// A chunk is moved just after the index was listed, and again while it is looked for where it was moved to.
func TestChunkThatIsMovedWhileItIsReadIsFound(t *testing.T) {
	st := faulty.New()
	repo := create(t, st)
	b := backUp(t, repo, nil, backup.Options{}, 1, 2, 3).Backups[0]
	reader := st.Client()
	other := open(t, reader)
	sessionOf(t, other).Abort() // lists the index
	move := func() {
		name, id, err := packOf(st, "packs/")
		if err != nil {
			t.Fatal(err)
		}
		repo := open(t, st)
		if err := repo.PutMark(t.Context(), []repository.MarkedPack{{ID: id}}); err != nil {
			t.Fatal(err)
		}
		st.Advance(time.Second)
		backUp(t, repo, nil, backup.Options{}, 1, 2, 3)
		st.Lose(name)
		for _, mark := range st.Names() {
			if strings.HasPrefix(mark, "condemned/") {
				st.Lose(mark)
			}
		}
	}
	move()
	again := true
	reader.SetHook(func(_ context.Context, c faulty.Call) error {
		if c.After && c.Op == faulty.Get && strings.HasPrefix(c.Name, "index/") && again {
			again = false
			move()
		}
		return nil
	})
	region, err := other.Tree(b.Root).Region(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := other.ReadChunk(t.Context(), region.Chunks[0].ID, region.Chunks[0].Place)
	if err != nil || !bytes.Equal(plain, bytes.Repeat([]byte{2}, 64<<10)) {
		t.Fatalf("%d bytes, %v", len(plain), err)
	}
	if again {
		t.Error("it was not moved twice")
	}
}

// The beginning of an id that several records have, some of which cannot be read, deletes none of them.
func TestBeginningOfAnIDThatIsNotCertainDeletesNothing(t *testing.T) {
	for _, damaged := range [][]string{{"aaaa000000000001"}, {"aaaa000000000001", "aaaa000000000002"}} {
		st := faulty.New()
		repo := create(t, st)
		for _, id := range []string{"aaaa000000000001", "aaaa000000000002"} {
			backUp(t, repo, nil, backup.Options{Record: id}, 1)
		}
		for _, id := range damaged {
			st.Change("backups/"+id, func(b []byte) []byte { clear(b); return b })
		}
		repo = open(t, st)
		if err := repo.Delete(t.Context(), "aaaa"); !errors.Is(err, repository.ErrAmbiguous) {
			t.Errorf("%d damaged: %v", len(damaged), err)
		}
		if err := repo.Delete(t.Context(), "aaaa000000000001"); err != nil {
			t.Error(err)
		}
	}
}

// Who can put objects, but has no key, can make a record that nobody can open. It hides no other.
func TestAForgedRecordHidesNoOther(t *testing.T) {
	st := faulty.New()
	repo := create(t, st)
	b := backUp(t, repo, nil, backup.Options{}, 1).Backups[0]
	forger := seal.PlainKeys(repo.ID())
	forger.Generations = map[uint32][32]byte{forger.Newest: {1}}
	name := "backups/0123456789abcdef"
	object, err := forger.SealObject(forger.NewHeader(envelope.Record, name, uuid.Nil, 100), []byte("rubbish"))
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Put(t.Context(), name, object, objects.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	all, unreadable, err := open(t, st).Backups(t.Context())
	if err != nil || len(all) != 1 || all[0].ID != b.ID || len(unreadable) != 1 {
		t.Fatalf("%d backups, %d unreadable, %v", len(all), len(unreadable), err)
	}
}
