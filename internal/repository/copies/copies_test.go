package copies_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"varve/internal/objects"
	"varve/internal/objects/faulty"
	"varve/internal/repository/copies"
	"varve/internal/repository/envelope"
)

var repository = uuid.MustParse("6f2d3c1e-8a4b-4c5d-9e7f-102030405060")

const stem = "config"

func put(t *testing.T, st objects.Store, payload string) error {
	t.Helper()
	return copies.Put(t.Context(), st, stem, envelope.Config, repository, []byte(payload))
}

// load returns the payloads that it is offered, refusing them all.
func load(t *testing.T, st objects.Store) (offered []string, err error) {
	t.Helper()
	err = copies.Load(t.Context(), st, stem, envelope.Config, repository, func(_ envelope.Header, payload []byte) error {
		offered = append(offered, string(payload))
		return errRefused
	})
	return offered, err
}

var errRefused = errors.New("refused")

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got error %v, want %v", err, want)
	}
}

func TestCopiesAreOneObject(t *testing.T) {
	st := faulty.New()
	if err := put(t, st, "x"); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"config.0", "config.1", "config.2"}, st.Names()); d != "" {
		t.Fatal(d)
	}
	for n := 1; n < copies.Count; n++ {
		if string(st.Bytes("config.0")) != string(st.Bytes(copies.Name(stem, n))) {
			t.Fatalf("copy %d differs", n)
		}
	}
}

func TestNothingIsPutOverWhatIsThere(t *testing.T) {
	for _, exclusive := range []bool{true, false} {
		for n := range copies.Count {
			st := faulty.New()
			st.SetExclusive(exclusive)
			if err := put(t, st, "first"); err != nil {
				t.Fatal(err)
			}
			for other := range copies.Count {
				if other != n {
					st.Lose(copies.Name(stem, other))
				}
			}
			wantErr(t, put(t, st, "second"), copies.ErrTaken)
			offered, _ := load(t, st)
			if d := cmp.Diff([]string{"first"}, offered); d != "" {
				t.Fatal(d)
			}
		}
	}
}

// TestLostAnswers has each put succeed and its answer get lost: whoever tries the same object again finds his own.
func TestLostAnswers(t *testing.T) {
	st := faulty.New()
	client := st.Client()
	client.SetHook(func(_ context.Context, c faulty.Call) error {
		if c.Op == faulty.Put && c.After {
			return objects.ErrExists // what a store says to a request that is sent again
		}
		return nil
	})
	if err := put(t, client, "x"); err != nil {
		t.Fatal(err)
	}
}

func TestEachDifferentCopyIsOffered(t *testing.T) {
	st := faulty.New()
	_, err := load(t, st)
	wantErr(t, err, objects.ErrNotFound)
	if err := put(t, st, "a"); err != nil {
		t.Fatal(err)
	}
	other := faulty.New()
	if err := put(t, other, "b"); err != nil {
		t.Fatal(err)
	}
	st.Plant("config.1", other.Bytes("config.1"))
	offered, err := load(t, st)
	wantErr(t, err, errRefused)
	if d := cmp.Diff([]string{"a", "b", "a"}, offered); d != "" {
		t.Fatal(d)
	}
	st.Plant("config.0", []byte("x"))
	st.Plant("config.1", nil)
	offered, _ = load(t, st)
	if d := cmp.Diff([]string{"a"}, offered); d != "" {
		t.Fatal(d)
	}
	st.Lose("config.2")
	_, err = load(t, st)
	wantErr(t, err, envelope.ErrLost)
	err = copies.Load(t.Context(), other, stem, envelope.Config, uuid.New(), func(envelope.Header, []byte) error { return nil })
	wantErr(t, err, envelope.ErrForeign)
}

func TestCompleteFromAnyCopy(t *testing.T) {
	for survivor := range copies.Count {
		for _, damaged := range []bool{false, true} {
			st := faulty.New()
			if err := put(t, st, "x"); err != nil {
				t.Fatal(err)
			}
			whole := st.Bytes("config.0")
			want := []string{}
			for n := range copies.Count {
				switch name := copies.Name(stem, n); {
				case n == survivor:
				case damaged:
					st.Plant(name, whole[:40])
					st.Plant(name+"-1", nil) // a repair that rotted too
					want = append(want, name+"-2")
				default:
					st.Lose(name)
					want = append(want, name)
				}
			}
			written, err := copies.Complete(t.Context(), st, stem, envelope.Config, repository)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(want, written); d != "" {
				t.Fatal(d)
			}
			for _, name := range written {
				if string(st.Bytes(name)) != string(whole) {
					t.Fatalf("%s is another object", name)
				}
			}
			st.Lose(copies.Name(stem, survivor))
			if offered, _ := load(t, st); len(offered) != 1 {
				t.Fatalf("without the survivor: %v", offered)
			}
			written, err = copies.Complete(t.Context(), st, stem, envelope.Config, repository)
			if err != nil || len(written) != 1 {
				t.Fatalf("completed once more: %v, %v", written, err)
			}
		}
	}
}

// TestTwoAtOnce has a second one put in front of each operation of the first: not both are told that theirs counts
// where the store can tell, and everywhere the copies end up as one object that somebody was told of.
func TestTwoAtOnce(t *testing.T) {
	for _, exclusive := range []bool{true, false} {
		for n := 0; ; n++ {
			st := faulty.New()
			st.SetExclusive(exclusive)
			client := st.Client()
			calls, met := 0, false
			var second error
			client.SetHook(func(_ context.Context, c faulty.Call) error {
				if !c.After {
					if calls == n {
						met = true
						second = put(t, st, "second")
					}
					calls++
				}
				return nil
			})
			first := put(t, client, "first")
			if !met {
				break
			}
			t.Run(fmt.Sprintf("exclusive=%v,n=%d", exclusive, n), func(t *testing.T) {
				for _, err := range []error{first, second} {
					if err != nil && !errors.Is(err, copies.ErrTaken) {
						t.Fatal(err)
					}
				}
				offered, _ := load(t, st)
				if len(offered) != 1 {
					t.Fatalf("copies of %v", offered)
				}
				if (offered[0] == "first") != (first == nil) {
					t.Fatalf("%s counts, the first was told %v", offered[0], first)
				}
				if exclusive && (offered[0] == "second") != (second == nil) {
					t.Fatalf("%s counts, the second was told %v", offered[0], second)
				}
			})
		}
	}
}

// TestTwoInterleaved stops the first before each of its operations, and then the second before each of its own, lets the first finish and
// then the second: all copies end up as one object, and who finishes last is told whether it is his; where the store can tell both are.
func TestTwoInterleaved(t *testing.T) {
	for _, exclusive := range []bool{true, false} {
		for i := 0; ; i++ {
			met := false
			for j := 0; ; j++ {
				st := faulty.New()
				st.SetExclusive(exclusive)
				a, b := st.Client(), st.Client()
				stopA, stopB := a.StopAt(nth(i)), b.StopAt(nth(j))
				doneA, doneB := make(chan error, 1), make(chan error, 1)
				go func() { doneA <- put(t, a, "first") }()
				metA := reached(stopA, doneA)
				go func() { doneB <- put(t, b, "second") }()
				metB := reached(stopB, doneB)
				stopA.Release()
				first := <-doneA
				stopB.Release()
				second := <-doneB
				met = met || metA
				for _, err := range []error{first, second} {
					if err != nil && !errors.Is(err, copies.ErrTaken) {
						t.Fatal(err)
					}
				}
				offered, _ := load(t, st)
				if len(offered) != 1 {
					t.Fatalf("exclusive=%v, %d, %d: copies of %v", exclusive, i, j, offered)
				}
				last, told := "second", second
				if !metB {
					last, told = "first", first
				}
				if (offered[0] == last) != (told == nil) || exclusive && (first == nil) == (second == nil) || first != nil && second != nil {
					t.Fatalf("exclusive=%v, %d, %d: %s counts; told %v, %v", exclusive, i, j, offered[0], first, second)
				}
				if !metB {
					break
				}
			}
			if !met {
				break
			}
		}
	}
}

// nth selects the operation of that number, from 0.
func nth(n int) func(faulty.Call) bool {
	calls := 0
	return func(c faulty.Call) bool {
		if c.After {
			return false
		}
		calls++
		return calls == n+1
	}
}

// reached waits for a client to be held, or to be done: then it puts back what it was told.
func reached(s *faulty.Stop, done chan error) bool {
	select {
	case <-s.Reached():
		return true
	case err := <-done:
		done <- err
		return false
	}
}

// TestForgedCopyBesideOurs has an intruder take the name of the second copy once the first is put.
func TestForgedCopyBesideOurs(t *testing.T) {
	st := faulty.New()
	client := st.Client()
	client.SetHook(func(_ context.Context, c faulty.Call) error {
		if c.Op == faulty.Put && c.Name == "config.0" && c.After {
			st.Plant("config.1", []byte("forged"))
		}
		return nil
	})
	if err := put(t, client, "x"); err != nil {
		t.Fatal(err)
	}
	if offered, _ := load(t, st); len(offered) != 1 || offered[0] != "x" {
		t.Fatal(offered)
	}
}
