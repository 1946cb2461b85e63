package repository

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"varve/internal/objects"
	"varve/internal/objects/faulty"
	"varve/internal/repository/maptree"
)

// hole is an entry of a backup of which all is hole.
func hole(id string) Backup {
	return Backup{ID: id, Full: id, Type: Full, Volume: "v", VolumeID: uuid.UUID{1}, Root: maptree.Root{Empty: true}}
}

func commitOf(t *testing.T, repo *Repo, rec *Record) error {
	t.Helper()
	s, err := repo.Begin(t.Context(), SessionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return s.Commit(t.Context(), rec, nil)
}

// A record or candidate that cannot be read keeps every pruner from deleting anything: none is put.
func TestNoRecordIsPutThatCannotBeRead(t *testing.T) {
	st := faulty.New()
	repo := createHere(t, st)
	many := &Record{}
	for range MaxMembers + 1 {
		many.Backups = append(many.Backups, hole(NewID()))
	}
	for name, rec := range map[string]*Record{
		"of nothing":   {},
		"of too many":  many,
		"without type": {Backups: []Backup{{ID: NewID(), Full: NewID()}}},
		"of no id":     {Backups: []Backup{hole("web")}},
	} {
		if err := commitOf(t, repo, rec); err == nil {
			t.Errorf("a record %s was put", name)
		}
	}
	if _, err := repo.Begin(t.Context(), SessionOptions{ID: "web"}); err == nil {
		t.Error("a session of no id")
	}
	if n := names(st, "backups/") + names(st, "candidates/"); n > 0 {
		t.Errorf("%d objects were left", n)
	}
	good := &Record{Backups: []Backup{hole(NewID())}}
	if err := commitOf(t, repo, good); err != nil {
		t.Fatal(err)
	}
	if n := names(st, "backups/"); n != 1 {
		t.Errorf("%d records", n)
	}
}

// A session that was given up before it ended leaves nothing that is seen, and one that finds that out too late buries it.
func TestSessionThatWasGivenUpLeavesNothingVisible(t *testing.T) {
	for _, late := range []bool{false, true} {
		st := faulty.New()
		client := st.Client()
		repo, other := createHere(t, client), (*Repo)(nil)
		other, err := Open(t.Context(), st, OpenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		s, err := repo.Begin(t.Context(), SessionOptions{})
		if err != nil {
			t.Fatal(err)
		}
		client.SetHook(func(ctx context.Context, c faulty.Call) error {
			if c.Op == faulty.Put && !c.After && (c.Name == recordPrefix+s.ID()) == late && (late || c.Name == candidateName(s.ID(), 0)) {
				_, err := other.Fence(ctx, s.ID())
				return err
			}
			return nil
		})
		rec := &Record{Backups: []Backup{hole(s.ID())}}
		if err := s.Commit(t.Context(), rec, nil); !errors.Is(err, ErrFenced) {
			t.Fatalf("late %v: %v", late, err)
		}
		if all, _, err := other.Backups(t.Context()); err != nil || len(all) > 0 {
			t.Errorf("late %v: %+v, %v", late, all, err)
		}
	}
}

// What matters is whether the record is there, not whether somebody was told so.
func TestCommitWhoseAnswerIsLost(t *testing.T) {
	record := faulty.Fault{Op: faulty.Put, Pattern: recordPrefix + "*", Times: 1, Err: objects.ErrUnavailable}
	done := record
	done.After = true
	for name, c := range map[string]struct {
		faults []faulty.Fault
		there  bool
		told   string // in the error; empty: there is none
	}{
		"it is done":                  {[]faulty.Fault{done}, true, ""},
		"it is not done":              {[]faulty.Fault{record}, false, "unavailable"},
		"who looks for fences fails":  {[]faulty.Fault{{Op: faulty.Stat, Pattern: fencePrefix + "*", Skip: 1, Times: 1, Err: objects.ErrUnavailable}}, true, ""},
		"it is done, and nobody says": {[]faulty.Fault{done, {Op: faulty.Stat, Pattern: recordPrefix + "*", Err: objects.ErrUnavailable}}, true, "does not tell whether"},
	} {
		t.Run(name, func(t *testing.T) {
			st := faulty.New()
			client := st.Client()
			repo := createHere(t, client)
			for _, f := range c.faults {
				client.Inject(f)
			}
			err := commitOf(t, repo, &Record{Backups: []Backup{hole(NewID())}})
			if (err == nil) != (c.told == "") || err != nil && !strings.Contains(err.Error(), c.told) {
				t.Errorf("committed: %v", err)
			}
			if there := names(st, recordPrefix) > 0; there != c.there {
				t.Errorf("the record is there: %v", there)
			}
			if n := names(st, candidatePrefix); err == nil && n > 0 {
				t.Errorf("%d candidates are left", n)
			}
		})
	}
}

// Who gives up while the record is being put has a backup all the same, or none: he is told which.
func TestCommitThatIsGivenUpAtItsRecord(t *testing.T) {
	for _, after := range []bool{false, true} {
		st := faulty.New()
		client := st.Client()
		repo := createHere(t, client)
		ctx, cancel := context.WithCancel(t.Context())
		client.SetHook(func(_ context.Context, c faulty.Call) error {
			if c.Op == faulty.Put && strings.HasPrefix(c.Name, recordPrefix) && c.After == after {
				cancel()
				return context.Canceled
			}
			return nil
		})
		s, err := repo.Begin(t.Context(), SessionOptions{})
		if err != nil {
			t.Fatal(err)
		}
		err = s.Commit(ctx, &Record{Backups: []Backup{hole(s.ID())}}, nil)
		if there := names(st, recordPrefix) > 0; there != after || (err == nil) != after {
			t.Errorf("after %v: the record is there: %v; %v", after, there, err)
		}
	}
}

// A chunk whose Store was given up half way does not hold the session up.
func TestSessionEndsThoughAStoreWasGivenUp(t *testing.T) {
	st := faulty.New()
	repo := createHere(t, st)
	s, err := repo.Begin(t.Context(), SessionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for range 200 { // each may get as far as the sequencer, or not
		b := s.Buffer()
		clear(*b)
		if p, err := s.Store(ended, b, 4096); err == nil {
			if _, _, err := p.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	done := make(chan error, 1)
	go func() { done <- s.Commit(t.Context(), &Record{Backups: []Backup{hole(s.ID())}}, nil) }()
	select {
	case err := <-done:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the session does not end")
	}
}

// stored hands a session noise of its own, and returns when it has a place.
func stored(t *testing.T, s *Session, seed byte, bytes int) {
	t.Helper()
	r := rand.NewChaCha8([32]byte{seed})
	for ; bytes > 0; bytes -= s.repo.ChunkBytes() {
		b := s.Buffer()
		r.Read(*b)
		p, err := s.Store(t.Context(), b, len(*b))
		if err == nil {
			_, _, err = p.Wait(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// A session that finds all it has in the repository puts nothing, for as long as it likes: it is not given up.
func TestSessionThatFindsEverythingTellsThatItIsThere(t *testing.T) {
	st := faulty.New()
	s, err := createHere(t, st).Begin(t.Context(), SessionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Abort()
	stored(t, s, 1, 34<<20)
	for parts := range 3 {
		s.uploaded.Wait()
		if n := names(st, "candidates/"); n != parts {
			t.Fatalf("%d parts of the candidate, not %d", n, parts)
		}
		s.mu.Lock()
		s.lastPart = s.lastPart.Add(-s.repo.config.Grace / 3)
		s.mu.Unlock()
		stored(t, s, 1, 1<<20)
	}
}

// However large a volume is, there are few candidates and runs of the index.
func TestProgressIsToldMoreRarelyTheMoreThereIs(t *testing.T) {
	st := faulty.New()
	s, err := createHere(t, st).Begin(t.Context(), SessionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Abort()
	for range (1 << 40) / (32 << 20) {
		if err := s.progress(32 << 20); err != nil {
			t.Fatal(err)
		}
	}
	if n := names(st, "candidates/"); n > 200 || n < 100 {
		t.Errorf("%d parts of a candidate for a tebibyte", n)
	}
}

// What was stored is found by the next session also if the run of the index, or the candidate, could not be put when it should.
func TestWhatCouldNotBeToldIsToldAtTheEnd(t *testing.T) {
	for _, pattern := range []string{"index/*", "candidates/*"} {
		st := faulty.New()
		repo := createHere(t, st)
		s, err := repo.Begin(t.Context(), SessionOptions{})
		if err != nil {
			t.Fatal(err)
		}
		stored(t, s, 1, 1<<20)
		st.Inject(faulty.Fault{Op: faulty.Put, Pattern: pattern, Times: 1, Err: objects.ErrUnavailable})
		if err := s.Commit(t.Context(), &Record{Backups: []Backup{hole(s.ID())}}, nil); !errors.Is(err, objects.ErrUnavailable) {
			t.Fatal(err)
		}
		named := 0
		err = repo.Candidates(t.Context(), func(c CandidatePart) error { named += len(c.Packs); return nil })
		if err != nil || named != 1 || names(st, "index/") != 1 {
			t.Errorf("%s: %d packs are named, %d runs, %v", pattern, named, names(st, "index/"), err)
		}
	}
}

// What a commit asks of the store does not grow with the members of a group.
func TestCommitOfAGroupListsBackupsOnce(t *testing.T) {
	repo := createHere(t, faulty.New())
	requests := func(members int) int64 {
		bases := &Record{}
		for range members {
			bases.Backups = append(bases.Backups, hole(NewID()))
		}
		if err := commitOf(t, repo, bases); err != nil {
			t.Fatal(err)
		}
		next := &Record{}
		for _, base := range bases.Backups {
			b := hole(NewID())
			b.Type, b.Base, b.Full = Incremental, base.ID, base.ID
			next.Backups = append(next.Backups, b)
		}
		before := repo.Counts()
		if err := commitOf(t, repo, next); err != nil {
			t.Fatal(err)
		}
		return repo.Counts().Minus(before).Requests()
	}
	if few, many := requests(1), requests(20); many > few {
		t.Errorf("%d requests for a group of 20, %d for one volume", many, few)
	}
}
