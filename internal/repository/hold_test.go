package repository

import (
	"errors"
	"testing"
	"time"

	"varve/internal/objects"
	"varve/internal/objects/faulty"
)

// deletedByAnother has another client of the store delete a backup.
func deletedByAnother(t *testing.T, st *faulty.Store, id string) {
	t.Helper()
	other, err := Open(t.Context(), st, OpenOptions{})
	if err == nil {
		err = other.Delete(t.Context(), id)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// A hold is there for a month after its owner was last, whoever deletes the backup, and renewed for as long as he likes; a backup that is
// held is opened by who knows of the hold, and by nobody else.
func TestHoldOutlastsItsOwner(t *testing.T) {
	st, client, repo, id := pinned(t)
	hold := NewHold()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(repo.Hold(t.Context(), hold, id))
	deletedByAnother(t, st, id)
	for range 5 {
		st.Advance(HoldFor - time.Hour)
		repo, err := Open(t.Context(), client, OpenOptions{}) // a process of today
		must(err)
		if !isHeld(t, st, repo, id) {
			t.Fatal("it is not held")
		}
		d, err := repo.OpenHeld(t.Context(), id, hold)
		must(err)
		must(d.Close())
		must(repo.Hold(t.Context(), hold, id))
		if n := names(st, "pins/"); n != holdParts {
			t.Fatalf("%d pins", n)
		}
		if _, err := repo.OpenDevice(t.Context(), id); !errors.Is(err, ErrNotFound) {
			t.Fatal(err)
		}
		if _, err := repo.OpenHeld(t.Context(), id, NewHold()); !errors.Is(err, ErrNotFound) {
			t.Fatal(err)
		}
	}
	must(repo.Unhold(t.Context(), hold))
	must(repo.Unhold(t.Context(), hold))
	if n := names(st, "pins/"); n > 0 || isHeld(t, st, repo, id) {
		t.Errorf("%d pins are left", n)
	}
	if err := repo.Hold(t.Context(), hold, id); !errors.Is(err, ErrNotFound) || names(st, "pins/") > 0 {
		t.Errorf("held again after it was given back: %v, %d pins", err, names(st, "pins/"))
	}
}

// A hold that was not renewed in time is nothing once the backup is deleted: a pruner may have been there. If it is not, it can be renewed.
func TestHoldLapses(t *testing.T) {
	for _, deleted := range []bool{false, true} {
		st, _, repo, id := pinned(t)
		hold := NewHold()
		if err := repo.Hold(t.Context(), hold, id); err != nil {
			t.Fatal(err)
		}
		if deleted {
			deletedByAnother(t, st, id)
		}
		st.Advance(HoldFor + time.Second)
		if isHeld(t, st, repo, id) {
			t.Fatal("it is held")
		}
		_, opened := repo.OpenHeld(t.Context(), id, hold)
		renewed := repo.Hold(t.Context(), hold, id)
		if errors.Is(opened, ErrNotFound) != deleted || errors.Is(renewed, ErrNotFound) != deleted || isHeld(t, st, repo, id) == deleted {
			t.Errorf("deleted %v: %v, %v", deleted, opened, renewed)
		}
	}
}

// A part that is put just after the one before has lapsed counts for nothing, and goes again.
func TestHoldThatLapsesWhileItIsRenewed(t *testing.T) {
	st, client, repo, id := pinned(t)
	hold := NewHold()
	if err := repo.Hold(t.Context(), hold, id); err != nil {
		t.Fatal(err)
	}
	deletedByAnother(t, st, id)
	st.Advance(HoldFor)
	part := pinName(hold, holdParts)
	stop := client.StopAt(func(c faulty.Call) bool { return c.Op == faulty.Put && c.Name == part && !c.After })
	done := make(chan error, 1)
	go func() { done <- repo.Hold(t.Context(), hold, id) }()
	<-stop.Reached()
	st.Advance(time.Second)
	stop.Release()
	if err := <-done; !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}
	if n := names(st, part); n > 0 || isHeld(t, st, repo, id) {
		t.Errorf("%d parts of it are left", n)
	}
}

// One part of a hold may be damaged.
func TestHoldWithAPartThatIsLost(t *testing.T) {
	st, client, repo, id := pinned(t)
	hold := NewHold()
	if err := repo.Hold(t.Context(), hold, id); err != nil {
		t.Fatal(err)
	}
	deletedByAnother(t, st, id)
	for part := range holdParts {
		remove := client.Inject(faulty.Fault{Pattern: pinName(hold, part), Damage: func(p []byte) { clear(p) }})
		d, err := repo.OpenHeld(t.Context(), id, hold)
		if err != nil {
			t.Fatal(part, err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		remove()
	}
}

// A renewal whose answer is lost was made: the next one takes another name.
func TestHoldIsRenewedAfterALostAnswer(t *testing.T) {
	st, client, repo, id := pinned(t)
	hold := NewHold()
	client.Inject(faulty.Fault{Op: faulty.Put, Pattern: "pins/" + hold + ".*", Times: 1, Err: objects.ErrUnavailable, After: true})
	for i := range 3 {
		if err := repo.Hold(t.Context(), hold, id); (err == nil) != (i > 0) {
			t.Fatal(i, err)
		}
	}
	if err := repo.Unhold(t.Context(), hold); err != nil || names(st, "pins/") > 0 {
		t.Errorf("%v, %d pins are left", err, names(st, "pins/"))
	}
}
