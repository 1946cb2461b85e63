package keys

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"filippo.io/age"

	"varve/internal/objects/faulty"
)

// others are what somebody else does while a change is under way.
var others = []struct {
	name string
	do   func(t *testing.T, st *faulty.Store)
	done func(r *Ring) bool
}{
	{"one change", func(t *testing.T, st *faulty.Store) {
		if _, err := open(t, st, with("boss")).AddMethod(t.Context(), st, passphrase("other")); err != nil {
			t.Fatal(err)
		}
	}, func(r *Ring) bool { return has(r, "other") }},
	{"three changes", func(t *testing.T, st *faulty.Store) {
		r := open(t, st, with("boss"))
		if err := r.Rotate(t.Context(), st); err != nil {
			t.Fatal(err)
		}
		for _, label := range []string{"other", "another"} {
			if _, err := r.AddMethod(t.Context(), st, passphrase(label)); err != nil {
				t.Fatal(err)
			}
		}
	}, func(r *Ring) bool { return has(r, "other") && has(r, "another") && r.Keys.Newest > 1 }},
}

// TestSuspendedChange stops a change before each of its operations while somebody else makes his, on a store that is exclusive:
// whoever is told that a change is made finds it made.
func TestSuspendedChange(t *testing.T) {
	for _, c := range changes {
		for _, other := range others {
			t.Run(c.name+","+other.name, func(t *testing.T) {
				conflicts := suspend(t, true, c, other.do, func(t *testing.T, final *Ring, err error) {
					if !other.done(final) {
						t.Fatal("the other one's changes are gone")
					}
					if c.name == "rotate" && other.name == "three changes" {
						return // that one rotates too; see below
					}
					switch {
					case err == nil && !c.done(final):
						t.Fatal("it said it was made, and is not")
					case errors.Is(err, ErrChanged) && !strings.Contains(err.Error(), "to see whether") && c.done(final):
						t.Fatal("it said it was not made, and is")
					}
				})
				if conflicts == 0 {
					t.Fatal("the two never met")
				}
			})
		}
	}
}

// TestBothRotate has two rotate at once: a generation that somebody was told of is never lost.
func TestBothRotate(t *testing.T) {
	c := changes[2]
	var told *Ring
	rotate := func(t *testing.T, st *faulty.Store) {
		r := open(t, st, with("boss"))
		if err := r.Rotate(t.Context(), st); err != nil {
			t.Fatal(err)
		}
		told = r
	}
	suspend(t, true, change{c.name, func(ctx context.Context, st *faulty.Store, r *Ring) error {
		err := c.do(ctx, st, r)
		if err == nil {
			for g, key := range told.Keys.Generations {
				if k, ok := r.Keys.Generations[g]; ok && k != key {
					return fmt.Errorf("two generations %d", g)
				}
			}
		}
		return err
	}, c.done}, rotate, func(t *testing.T, final *Ring, err error) {
		if err != nil && !errors.Is(err, ErrChanged) {
			t.Fatal(err)
		}
		for g, key := range told.Keys.Generations {
			if final.Keys.Generations[g] != key {
				t.Fatalf("generation %d is lost", g)
			}
		}
	})
}

// TestSuspendedChangeWhereNamesCanBeTakenTwice does the same on a store that cannot tell: one of the two is in effect, whoever is
// told last that his is finds it so, and all copies are of one ring.
func TestSuspendedChangeWhereNamesCanBeTakenTwice(t *testing.T) {
	for _, c := range changes {
		t.Run(c.name, func(t *testing.T) {
			conflicts := suspend(t, false, c, others[0].do, func(t *testing.T, final *Ring, err error) {
				switch {
				case err == nil && !c.done(final):
					t.Fatal("it said it was made, and is not")
				case err != nil && !others[0].done(final):
					t.Fatal("neither is made")
				}
			})
			if conflicts == 0 {
				t.Fatal("the two never met")
			}
		})
	}
}

// suspend runs c, and other in front of its nth operation, for each n, and counts how often c failed with ErrChanged.
func suspend(t *testing.T, exclusive bool, c change, other func(*testing.T, *faulty.Store), check func(*testing.T, *Ring, error)) (conflicts int) {
	for n := 0; ; n++ {
		st := faulty.New()
		st.SetExclusive(exclusive)
		r := create(t, st, "boss", "guest")
		client := st.Client()
		calls, met := 0, false
		client.SetHook(func(_ context.Context, call faulty.Call) error {
			if !call.After {
				if calls == n {
					met = true
					other(t, st)
				}
				calls++
			}
			return nil
		})
		err := c.do(t.Context(), client, r)
		if !met {
			return conflicts
		}
		t.Run(fmt.Sprintf("n=%d", n), func(t *testing.T) {
			if errors.Is(err, ErrChanged) {
				conflicts++
			} else if err != nil {
				t.Fatal(err)
			} else if !c.done(r) {
				t.Fatal("the ring in hand is the old one")
			}
			final := open(t, st, with("boss"))
			check(t, final, err)
			stem := ringStem(final.Revision)
			for i := 1; i < 3; i++ {
				if string(st.Bytes(stem+".0")) != string(st.Bytes(fmt.Sprintf("%s.%d", stem, i))) {
					t.Fatalf("copy %d is of another ring", i)
				}
			}
			for _, m := range final.Methods {
				open(t, st, with(m.Label))
			}
		})
	}
}

// TestOvertakenSlotGoes has a passphrase added while somebody else puts the next ring: the slot has nothing to open.
func TestOvertakenSlotGoes(t *testing.T) {
	st := faulty.New()
	r := create(t, st, "boss")
	client := st.Client()
	client.SetHook(func(_ context.Context, call faulty.Call) error {
		if call.Op == faulty.Put && call.Name == "keys/ring-00000002.0" && !call.After {
			others[0].do(t, st)
		}
		return nil
	})
	_, err := r.AddMethod(t.Context(), client, passphrase("new"))
	wantErr(t, err, ErrChanged)
	if n := len(st.Names()); n != 9 {
		t.Fatalf("not a ring and two slots: %v", st.Names())
	}
}

// TestOpenDuringChanges has somebody change the ring in front of each operation of an Open, which finds what was or what is.
func TestOpenDuringChanges(t *testing.T) {
	for _, other := range others {
		for n := 0; ; n++ {
			st := faulty.New()
			first := create(t, st, "boss")
			client := st.Client()
			calls, met := 0, false
			client.SetHook(func(_ context.Context, call faulty.Call) error {
				if !call.After {
					if calls == n {
						met = true
						other.do(t, st)
					}
					calls++
				}
				return nil
			})
			got := open(t, client, with("boss"))
			if got.Keys.Identity != first.Keys.Identity {
				t.Fatal("other keys")
			}
			if !met {
				break
			}
		}
	}
}

// TestManyChangeAtOnce has several add a recipient each, and try again when others were first.
func TestManyChangeAtOnce(t *testing.T) {
	st := faulty.New()
	create(t, st, "boss")
	const n = 6
	ids := make([]*age.X25519Identity, n)
	var wg sync.WaitGroup
	for i := range n {
		ids[i] = classic(t)
		wg.Go(func() {
			for {
				r, err := Open(t.Context(), st, repository, with("boss"))
				if err == nil {
					_, err = r.AddMethod(t.Context(), st, Add{Recipient: ids[i].Recipient().String()})
				}
				if err == nil || errors.Is(err, ErrExists) {
					return
				}
				if !errors.Is(err, ErrChanged) {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	for _, id := range ids {
		if r := open(t, st, Unlock{Identities: []age.Identity{id}}); len(r.Methods) != n+1 {
			t.Fatalf("%d methods of %d", len(r.Methods), n+1)
		}
	}
}
