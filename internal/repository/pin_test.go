package repository

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"varve/internal/objects"
	"varve/internal/objects/faulty"
)

// pinned is a repository with one backup, and another client's view of it.
func pinned(t *testing.T) (st *faulty.Store, client *faulty.Store, repo *Repo, id string) {
	t.Helper()
	st = faulty.New()
	rec := &Record{Backups: []Backup{hole(NewID())}}
	if err := commitOf(t, createHere(t, st), rec); err != nil {
		t.Fatal(err)
	}
	client = st.Client()
	repo, err := Open(t.Context(), client, OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return st, client, repo, rec.Backups[0].ID
}

// later lets time pass in both worlds, in steps in which pins are renewed.
func later(st *faulty.Store, d time.Duration) {
	for ; d > 0; d -= time.Minute {
		time.Sleep(time.Minute)
		st.Advance(time.Minute)
	}
	synctest.Wait()
}

func isHeld(t *testing.T, st *faulty.Store, repo *Repo, id string) bool {
	t.Helper()
	held, _, err := repo.Pinned(t.Context(), st.Now())
	if err != nil {
		t.Fatal(err)
	}
	return held[id]
}

func TestPinHoldsUntilItIsReleased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, _, repo, id := pinned(t)
		p, err := repo.Pin(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		later(st, 5*time.Hour)
		if !isHeld(t, st, repo, id) || p.Err() != nil || names(st, "pins/") > 2 {
			t.Fatal(p.Err(), names(st, "pins/"))
		}
		p.Release()
		if n := names(st, "pins/"); n > 0 || isHeld(t, st, repo, id) {
			t.Errorf("%d pins are left", n)
		}
	})
}

// A renewal whose answer is lost was made: the next one takes another name.
func TestPinIsRenewedAfterALostAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, client, repo, id := pinned(t)
		p, err := repo.Pin(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Release()
		remove := client.Inject(faulty.Fault{Op: faulty.Put, Pattern: "pins/*", Err: objects.ErrUnavailable, After: true})
		later(st, 15*time.Minute)
		remove()
		later(st, 3*time.Hour)
		if err := p.Err(); err != nil || !isHeld(t, st, repo, id) {
			t.Fatal(err)
		}
		p.Release()
		if n := names(st, "pins/"); n > 0 {
			t.Errorf("%d pins are left", n)
		}
	})
}

// A pin that could not be renewed in time has lapsed. When it can be again, it holds if the backup was not deleted meanwhile, and
// else never more: the pruner may have been there.
func TestPinLapses(t *testing.T) {
	for _, deleted := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			st, client, repo, id := pinned(t)
			p, err := repo.Pin(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Release()
			remove := client.Inject(faulty.Fault{Op: faulty.Put, Err: objects.ErrUnavailable})
			later(st, 29*time.Minute)
			if err := p.Err(); err != nil {
				t.Fatal(err)
			}
			later(st, 2*time.Minute)
			if err := p.Err(); !errors.Is(err, ErrLapsed) {
				t.Fatal(err)
			}
			if deleted {
				other, err := Open(t.Context(), st, OpenOptions{})
				if err == nil {
					err = other.Delete(t.Context(), id)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			remove()
			later(st, time.Hour)
			if err := p.Err(); errors.Is(err, ErrLapsed) != deleted {
				t.Fatalf("deleted %v: %v", deleted, err)
			}
		})
	}
}

// A machine that has slept, or whose clock was set, goes on reading at once.
func TestPinIsRenewedByItsReader(t *testing.T) {
	for _, deleted := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			st, client, repo, id := pinned(t)
			d, err := repo.OpenDevice(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			remove := client.Inject(faulty.Fault{Op: faulty.Put, Err: objects.ErrUnavailable})
			later(st, 31*time.Minute)
			remove()
			if deleted {
				deletedByAnother(t, st, id)
			}
			if err := d.ReadAt(t.Context(), nil, 0); errors.Is(err, ErrLapsed) != deleted {
				t.Fatalf("deleted %v: %v", deleted, err)
			}
		})
	}
}

// Who may only read has no pin. He looks whether the backup is there: until it was deleted for as long as the grace he can read it.
func TestReaderWithoutPinsLooksWhetherTheBackupIsThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, client, repo, id := pinned(t)
		client.Inject(faulty.Fault{Op: faulty.Put, Err: objects.ErrDenied})
		p, err := repo.Pin(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Release()
		later(st, 72*time.Hour)
		if err := p.Err(); err != nil {
			t.Fatal(err)
		}
		other, err := Open(t.Context(), st, OpenOptions{})
		if err == nil {
			err = other.Delete(t.Context(), id)
		}
		if err != nil {
			t.Fatal(err)
		}
		later(st, time.Hour)
		if err := p.Err(); err != nil {
			t.Fatal(err)
		}
		later(st, 23*time.Hour)
		if err := p.Err(); !errors.Is(err, ErrLapsed) {
			t.Fatal(err)
		}
	})
}

func TestWhatWasDeletedIsNotPinned(t *testing.T) {
	st, _, repo, id := pinned(t)
	if err := repo.Delete(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if _, err := repo.Pin(t.Context(), id); !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}
	if n := names(st, "pins/"); n > 0 {
		t.Errorf("%d pins are left", n)
	}
}
