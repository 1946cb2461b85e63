package repository

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"varve/internal/objects"
	"varve/internal/objects/faulty"
)

func createHere(t *testing.T, st objects.Store) *Repo {
	t.Helper()
	repo, err := Create(t.Context(), st, CreateOptions{ChunkBytes: 64 << 10})
	if err != nil {
		t.Fatal(err)
	}
	return repo
}

func names(st *faulty.Store, prefix string) (n int) {
	for _, name := range st.Names() {
		if strings.HasPrefix(name, prefix) {
			n++
		}
	}
	return n
}

// fullLedger has twenty checks of ten packs: the first is lost in the end, the second was lost and is good again.
func fullLedger(t *testing.T, repo *Repo) {
	t.Helper()
	for i := range 20 {
		var verdicts []Verdict
		for n := range 10 {
			v := Verdict{Object: fmt.Sprintf("packs/%02x/%032x", n, n), Condition: Good}
			switch {
			case n == 0 && i >= 5:
				v.Condition, v.Frames = Lost, []uint32{7}
			case n == 1 && i == 3:
				v.Condition = Lost
			}
			verdicts = append(verdicts, v)
		}
		if err := repo.PutLedger(t.Context(), time.Unix(int64(1000+i), 0), verdicts); err != nil {
			t.Fatal(err)
		}
	}
}

// newest is what the ledger tells of each object.
func newest(t *testing.T, repo *Repo) map[string]datedVerdict {
	t.Helper()
	last := map[string]datedVerdict{}
	err := repo.Ledger(t.Context(), func(_ string, at time.Time, verdicts []Verdict) error {
		for _, v := range verdicts {
			if known, ok := last[v.Object]; !ok || at.After(known.at) {
				last[v.Object] = datedVerdict{at, v}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return last
}

func TestLedgerIsMadeShort(t *testing.T) {
	st := faulty.New()
	repo := createHere(t, st)
	fullLedger(t, repo)
	before, pages := newest(t, repo), names(st, "ledger/")
	fewer, err := repo.CompactLedger(t.Context(), 10, func(v Verdict) bool { return !strings.HasSuffix(v.Object, "9") })
	if err != nil {
		t.Fatal(err)
	}
	if left := names(st, "ledger/"); left != pages-fewer || left != 2 {
		t.Fatalf("%d pages of %d, %d fewer", left, pages, fewer)
	}
	after := newest(t, repo)
	if len(after) != len(before)-1 {
		t.Fatalf("%d objects of %d", len(after), len(before))
	}
	for name, v := range after {
		was := before[name]
		if !v.at.Equal(was.at) || v.Condition != was.Condition || len(v.Frames) != len(was.Frames) {
			t.Errorf("%s: %+v, was %+v", name, v, was)
		}
	}
	if err := repo.RefreshLost(t.Context()); err != nil {
		t.Fatal(err)
	}
	if any, _ := repo.Lost(); !any || len(repo.lost.packs) != 0 || len(repo.lost.frames) != 1 {
		t.Errorf("%+v", repo.lost)
	}
	if fewer, err = repo.CompactLedger(t.Context(), 10, func(Verdict) bool { return true }); err != nil || fewer != 0 {
		t.Errorf("%d, %v", fewer, err)
	}
}

// Somebody makes the ledger short, or is cut off while he does, while somebody else reads it.
func TestLedgerTellsAllWhileItIsMadeShort(t *testing.T) {
	for cut := range 60 {
		st := faulty.New()
		repo := createHere(t, st)
		fullLedger(t, repo)
		want := newest(t, repo)
		reader := st.Client()
		done := false
		reader.SetHook(func(ctx context.Context, c faulty.Call) error {
			if done || !c.After || c.Op != faulty.List || !strings.HasPrefix(c.Name, "ledger/") {
				return nil
			}
			done = true
			other := st.Client()
			made := 0
			other.SetHook(func(context.Context, faulty.Call) error {
				if made++; made > 2*cut {
					return objects.ErrUnavailable
				}
				return nil
			})
			r, err := Open(ctx, other, OpenOptions{})
			if err == nil {
				_, err = r.CompactLedger(ctx, 10, func(Verdict) bool { return true })
			}
			if err != nil && !errors.Is(err, objects.ErrUnavailable) {
				t.Error(err)
			}
			return nil
		})
		r, err := Open(t.Context(), reader, OpenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, got := range []map[string]datedVerdict{newest(t, r), newest(t, r)} {
			for name, v := range want {
				if !got[name].at.Equal(v.at) || got[name].Condition != v.Condition {
					t.Fatalf("cut off at %d: %s: %+v, not %+v", cut, name, got[name], v)
				}
			}
		}
	}
}

// A pin is renewed while it is listed, and while what was listed is read.
func TestPinIsSeenWhileItIsRenewed(t *testing.T) {
	st := faulty.New()
	repo := createHere(t, st)
	pin := &Pin{repo: repo, id: newObjectID(), backup: NewID()}
	for range 12 {
		if err := pin.put(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := names(st, "pins/"); n != 2 {
		t.Fatalf("%d pins", n)
	}
	for _, renewals := range []int{1, 2, 3} {
		pruner := st.Client()
		done := false
		pruner.SetHook(func(ctx context.Context, c faulty.Call) error {
			if c.After && c.Op == faulty.List && !done {
				done = true
				for range renewals {
					if err := pin.put(ctx); err != nil {
						return err
					}
				}
			}
			return nil
		})
		r := &Repo{store: objects.Counted(pruner), keys: repo.keys}
		held, expired, err := r.Pinned(t.Context(), st.Now())
		if err != nil || !held[pin.backup] || len(expired) != 0 {
			t.Fatal(held, expired, err)
		}
	}
	st.Advance(pinFor + 1)
	if held, expired, err := repo.Pinned(t.Context(), st.Now()); err != nil || len(held) != 0 || len(expired) != 2 {
		t.Fatal(held, expired, err)
	}
	pin.end = func() {}
	if pin.Release(); names(st, "pins/") != 0 {
		t.Fatal("a released pin is left")
	}
}

// Somebody suspended between the probe and the look at it finds it pruned.
func TestClockIsReadThoughTheProbeIsPruned(t *testing.T) {
	st := faulty.New()
	repo := createHere(t, st)
	deleted := 0
	st.SetHook(func(_ context.Context, c faulty.Call) error {
		if c.Op == faulty.Stat && !c.After && deleted < 2 {
			deleted++
			st.Lose(c.Name)
			st.Advance(time.Hour)
		}
		return nil
	})
	if now, err := repo.Now(t.Context()); err != nil || !now.Equal(st.Now()) || deleted != 2 {
		t.Fatal(now, st.Now(), err)
	}
}

// Where all that is put is under a retention the probe stays, and tells the time all the same.
func TestTheTimeIsToldWhereNothingCanBeDeleted(t *testing.T) {
	st := faulty.New()
	repo := createHere(t, st)
	st.Inject(faulty.Fault{Op: faulty.Delete, Err: objects.ErrLocked})
	if now, err := repo.Now(t.Context()); err != nil || !now.Equal(st.Now()) {
		t.Fatal(now, st.Now(), err)
	}
}
