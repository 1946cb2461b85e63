package faulty_test

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"varve/internal/objects"
	"varve/internal/objects/faulty"
	"varve/internal/objects/objectstest"
)

func place(s *faulty.Store) objectstest.Place {
	return func() objects.Store { return s.Client() }
}

func TestContract(t *testing.T) {
	open := func(*testing.T) objectstest.Place { return place(faulty.New()) }
	objectstest.Contract(t, open)
	objectstest.WithoutLocks(t, open)
}

func TestContractWithoutExclusion(t *testing.T) {
	objectstest.Contract(t, func(*testing.T) objectstest.Place {
		s := faulty.New()
		s.SetExclusive(false)
		return place(s)
	})
}

func TestContractWithLocks(t *testing.T) {
	open := func(*testing.T) objectstest.Place {
		s := faulty.New()
		s.SetLockable(true)
		return place(s)
	}
	objectstest.Contract(t, open)
	objectstest.WithLocks(t, open)
}

func put(st objects.Store, name, content string) error {
	return st.Put(context.Background(), name, [][]byte{[]byte(content)}, objects.PutOptions{})
}

func want(t *testing.T, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("got %v, want %v", err, target)
	}
}

func TestFaultsConcernTheirOperationsOnly(t *testing.T) {
	s := faulty.New()
	remove := s.Inject(faulty.Fault{Op: faulty.Put, Pattern: "packs/*", Skip: 1, Times: 2, Err: objects.ErrUnavailable})
	other := s.Client()
	want(t, put(s, "packs/0", "x"), nil)
	want(t, put(other, "packs/other", "x"), nil)
	want(t, put(s, "packs/1", "x"), objects.ErrUnavailable)
	want(t, put(s, "nodes/1", "x"), nil)
	want(t, put(s, "packs/2", "x"), objects.ErrUnavailable)
	want(t, put(s, "packs/3", "x"), nil)
	if names := s.Names(); !slices.Equal(names, []string{"nodes/1", "packs/0", "packs/3", "packs/other"}) {
		t.Fatalf("there are %q", names)
	}
	s.Inject(faulty.Fault{Op: faulty.Put, Err: objects.ErrDenied})
	remove()
	want(t, put(s, "packs/4", "x"), objects.ErrDenied)
}

func TestFaultAfterTheFactLosesTheAnswerAlone(t *testing.T) {
	s := faulty.New()
	s.Inject(faulty.Fault{Op: faulty.Put, Times: 1, Err: objects.ErrUnavailable, After: true})
	want(t, put(s, "a", "x"), objects.ErrUnavailable)
	want(t, put(s, "a", "x"), objects.ErrExists)
}

func TestDamageIsSeenByReaders(t *testing.T) {
	s := faulty.New()
	want(t, put(s, "a", "abc"), nil)
	s.Inject(faulty.Fault{Op: faulty.Read, Damage: func(p []byte) { p[0] ^= 1 }})
	p := make([]byte, 2)
	want(t, s.Read(t.Context(), "a", p, 1), nil)
	if whole, err := s.Get(t.Context(), "a"); err != nil || string(p) != "cc" || string(whole) != "abc" {
		t.Fatalf("read %q, got %q %v", p, whole, err)
	}
	s.Change("a", func(data []byte) []byte { return data[:1] })
	want(t, s.Read(t.Context(), "a", p, 1), objects.ErrShort)
	want(t, put(s, "b", "B"), nil)
	s.Swap("a", "b")
	if !bytes.Equal(s.Bytes("a"), []byte("B")) || s.UsedBytes() != 2 {
		t.Fatalf("a has %q, all %d bytes", s.Bytes("a"), s.UsedBytes())
	}
}

func TestAFullPlaceTakesNothing(t *testing.T) {
	s := faulty.New()
	s.SetCapacity(10)
	want(t, put(s, "a", "12345678"), nil)
	want(t, put(s, "b", "123"), objects.ErrFull)
	want(t, put(s, "c", "12"), nil)
	want(t, s.Delete(t.Context(), "a"), nil)
	want(t, put(s, "b", "123"), nil)
	s.Destroy(true)
	want(t, put(s, "d", ""), objects.ErrNoStore)
}

func TestAStoppedClientGoesOnWhenReleased(t *testing.T) {
	s := faulty.New()
	stop := s.StopAt(func(c faulty.Call) bool { return c.Op == faulty.Put && !c.After })
	done := make(chan error)
	go func() { done <- put(s, "a", "late") }()
	<-stop.Reached()
	want(t, put(s.Client(), "a", "first"), nil)
	stop.Release()
	want(t, <-done, objects.ErrExists)

	ctx, cancel := context.WithCancel(t.Context())
	stop = s.StopAt(func(c faulty.Call) bool { return c.Op == faulty.Delete && c.After })
	go func() { done <- s.Delete(ctx, "a") }()
	<-stop.Reached()
	cancel()
	want(t, <-done, context.Canceled)
	if len(s.Names()) != 0 {
		t.Fatal("the delete was done before the client was stopped")
	}
}

func TestAClonesTimeAndObjectsAreItsOwn(t *testing.T) {
	s := faulty.New()
	want(t, put(s, "a", "x"), nil)
	c := s.Clone()
	c.Advance(time.Hour)
	want(t, put(c, "b", "x"), nil)
	info, err := c.Stat(t.Context(), "b")
	want(t, err, nil)
	if !info.Modified.Equal(faulty.Epoch.Add(time.Hour)) || !s.Now().Equal(faulty.Epoch) || len(s.Names()) != 1 {
		t.Fatalf("b is of %v, the original at %v with %q", info.Modified, s.Now(), s.Names())
	}
}
