package keys

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"varve/internal/objects"
	"varve/internal/objects/faulty"
	"varve/internal/repository/seal"
)

// change is one that a test interrupts. It is made by whoever opened the ring with passphrase "boss".
type change struct {
	name string
	do   func(ctx context.Context, st *faulty.Store, r *Ring) error
	// done tells from the ring whether the change is made.
	done func(r *Ring) bool
}

func has(r *Ring, label string) bool {
	return slices.ContainsFunc(r.Methods, func(m Method) bool { return m.Label == label })
}

func idOf(r *Ring, label string) string {
	i := slices.IndexFunc(r.Methods, func(m Method) bool { return m.Label == label })
	if i < 0 {
		return "none"
	}
	return r.Methods[i].ID
}

var changes = []change{
	{"add", func(ctx context.Context, st *faulty.Store, r *Ring) error {
		_, err := r.AddMethod(ctx, st, passphrase("new"))
		return err
	}, func(r *Ring) bool { return has(r, "new") }},
	{"remove", func(ctx context.Context, st *faulty.Store, r *Ring) error {
		return r.RemoveMethod(ctx, st, idOf(r, "guest"))
	}, func(r *Ring) bool { return !has(r, "guest") }},
	{"rotate", func(ctx context.Context, st *faulty.Store, r *Ring) error {
		return r.Rotate(ctx, st)
	}, func(r *Ring) bool { return r.Keys.Newest == 2 }},
}

var errBroken = fmt.Errorf("%w: as told", objects.ErrUnavailable)

// interruptions runs do, which makes one change, on copies of a place: failing from the nth operation on or only in it, before or after it takes
// effect, for each n until it has no nth. check gets the place as it is then.
func interruptions(t *testing.T, st *faulty.Store, do func(st *faulty.Store) error, check func(t *testing.T, st *faulty.Store, err error)) {
	for _, times := range []int{0, 1} {
		for _, after := range []bool{false, true} {
			for n := 0; ; n++ {
				place := st.Clone()
				client := place.Client()
				hit := false
				calls := 0
				client.SetHook(func(_ context.Context, c faulty.Call) error {
					if !c.After {
						calls++
					}
					if c.After == after && (calls == n+1 || times == 0 && calls > n) {
						hit = true
						return errBroken
					}
					return nil
				})
				err := do(client)
				t.Run(fmt.Sprintf("times=%d,after=%v,n=%d", times, after, n), func(t *testing.T) { check(t, place, err) })
				if !hit {
					if n == 0 {
						t.Fatal("nothing was interrupted")
					}
					if err != nil {
						t.Fatal(err)
					}
					break
				}
			}
		}
	}
}

func TestInterruptedChangeIsMadeOrNot(t *testing.T) {
	for _, exclusive := range []bool{true, false} {
		for _, c := range changes {
			t.Run(fmt.Sprintf("%s,exclusive=%v", c.name, exclusive), func(t *testing.T) {
				st := faulty.New()
				st.SetExclusive(exclusive)
				first := create(t, st, "boss", "guest")
				interruptions(t, st, func(st *faulty.Store) error {
					r, err := Open(t.Context(), st.Clone(), repository, with("boss"))
					if err != nil {
						return err
					}
					return c.do(t.Context(), st, r)
				}, func(t *testing.T, st *faulty.Store, err error) { checkInterrupted(t, st, c, first, err) })
			})
		}
	}
}

func checkInterrupted(t *testing.T, st *faulty.Store, c change, first *Ring, err error) {
	r := open(t, st, with("boss"))
	done := c.done(r)
	if (err == nil || errors.Is(err, ErrLeftover)) && !done {
		t.Fatalf("it said it was made (%v) and is not", err)
	}
	if errors.Is(err, ErrChanged) {
		t.Fatalf("nobody else changed anything: %v", err)
	}
	if !done {
		sameKeys(t, r.Keys, first.Keys)
	}
	if r.Keys.Generations[1] != first.Keys.Generations[1] || r.Keys.Identity != first.Keys.Identity || r.Keys.Hash != first.Keys.Hash {
		t.Fatal("keys that must stay have changed")
	}
	for _, label := range []string{"guest", "new"} {
		_, err := Open(t.Context(), st, repository, with(label))
		if has(r, label) != (err == nil) {
			t.Fatalf("passphrase %q: in the ring %v, opening it: %v", label, has(r, label), err)
		}
	}

	// Copies that are missing are put again, without a key.
	if _, err := Complete(t.Context(), st, repository); err != nil {
		t.Fatal(err)
	}
	for n := range 3 {
		alone := st.Clone()
		for other := range 3 {
			if other != n {
				loseCopies(alone, other)
			}
		}
		sameKeys(t, open(t, alone, with("boss")).Keys, r.Keys)
	}

	// And the next change can be made.
	if _, err := r.AddMethod(t.Context(), st, passphrase("later")); err != nil {
		t.Fatal(err)
	}
	later := open(t, st, with("later"))
	sameKeys(t, later.Keys, r.Keys)
	if c.done(later) != done {
		t.Fatal("the next change brought back or undid the one that was interrupted")
	}
	rings := 0
	for _, name := range st.Names() {
		if strings.HasPrefix(name, "keys/ring-") {
			rings++
		}
	}
	if rings != 3 {
		t.Fatalf("old rings are still there: %v", st.Names())
	}
}

// loseCopies loses copy n of everything.
func loseCopies(st *faulty.Store, n int) {
	for _, name := range st.Names() {
		if strings.HasSuffix(name, fmt.Sprintf(".%d", n)) {
			st.Lose(name)
		}
	}
}

func TestInterruptedCreateCanBeRepeated(t *testing.T) {
	keys := seal.NewKeys(repository)
	interruptions(t, faulty.New(), func(st *faulty.Store) error {
		_, err := Create(t.Context(), st, keys, []Add{passphrase("a"), passphrase("b")})
		return err
	}, func(t *testing.T, st *faulty.Store, err error) {
		again := seal.NewKeys(repository)
		again.Repository[0]++
		if _, err := Create(t.Context(), st, again, []Add{passphrase("c")}); err != nil {
			t.Fatal(err)
		}
		r, openErr := Open(t.Context(), st, again.Repository, with("c"))
		if openErr != nil {
			t.Fatal(openErr)
		}
		sameKeys(t, r.Keys, again)
		for _, p := range []string{"a", "b"} {
			r, openErr := Open(t.Context(), st, repository, with(p))
			if openErr == nil {
				sameKeys(t, r.Keys, keys)
			} else if err == nil {
				t.Fatal(openErr)
			}
		}
		// What the first left is no hindrance, and gone after the next change.
		r, openErr = Open(t.Context(), st, again.Repository, with("c"))
		if openErr != nil {
			t.Fatal(openErr)
		}
		st.Advance(2 * day)
		if err := r.Rotate(t.Context(), st); err != nil {
			t.Fatal(err)
		}
		if n := len(st.Names()); n != 6 {
			t.Fatalf("%d objects of a ring and a slot: %v", n, st.Names())
		}
	})
}

func TestDiscardLeavesNothing(t *testing.T) {
	st := faulty.New()
	other := seal.NewKeys(repository)
	other.Repository[0]++
	if _, err := Create(t.Context(), st, other, []Add{passphrase("other")}); err != nil {
		t.Fatal(err)
	}
	before := st.Names()
	r := create(t, st, "mine")
	if err := r.Discard(t.Context(), st); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(before, st.Names()) {
		t.Fatalf("left %v", st.Names())
	}
}

func TestWhatCannotBeDeletedIsToldAndDoneLater(t *testing.T) {
	for _, c := range changes {
		st := faulty.New()
		r := create(t, st, "boss", "guest")
		remove := st.Inject(faulty.Fault{Op: faulty.Delete, Err: objects.ErrDenied})
		err := c.do(t.Context(), st, r)
		wantErr(t, err, ErrLeftover)
		wantErr(t, err, objects.ErrDenied)
		if !c.done(r) || !c.done(open(t, st, with("boss"))) {
			t.Fatal("the change is not made")
		}
		remove()
		if err := r.Rotate(t.Context(), st); err != nil {
			t.Fatal(err)
		}
		for _, name := range st.Names() {
			if strings.HasPrefix(name, "keys/ring-") && !strings.HasPrefix(name, ringStem(r.Revision)) {
				t.Fatalf("%s is still there", name)
			}
		}
	}
}

func TestSlotsThatCameToNothingGoAfterADay(t *testing.T) {
	st := faulty.New()
	r := create(t, st, "boss")
	st.Inject(faulty.Fault{Op: faulty.Put, Pattern: "keys/ring-*", Err: errBroken})
	if _, err := r.AddMethod(t.Context(), st, passphrase("lost")); err == nil {
		t.Fatal("a ring was put all the same")
	}
	st = st.Client()
	count := func() int { return len(st.Names()) }
	for _, step := range []struct{ hours, objects int }{{23, 9}, {2, 6}} {
		st.Advance(time.Duration(step.hours) * time.Hour)
		if err := r.Rotate(t.Context(), st); err != nil {
			t.Fatal(err)
		}
		if count() != step.objects {
			t.Fatalf("after %d hours more: %v", step.hours, st.Names())
		}
	}
}
