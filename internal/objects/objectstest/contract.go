// Package objectstest is the contract of objects.Store as tests, run by each store. What a power cut or a broken line leaves
// is not part of it: see the tests of the stores.
package objectstest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"varve/internal/objects"
)

// Place makes clients of one empty place, as many as are asked for, that live until the test ends.
type Place func() objects.Store

// Contract tests the places that open returns.
func Contract(t *testing.T, open func(t *testing.T) Place) {
	run(t, open, map[string]func(*testing.T, Place){
		"put and get":           testPutGet,
		"names":                 testNames,
		"taken name":            testTaken,
		"race for a name":       testRace,
		"ranges":                testRanges,
		"absent":                testAbsent,
		"ages":                  testAges,
		"order of a list":       testOrder,
		"list stops":            testListStops,
		"list of many":          testMany,
		"delete":                testDelete,
		"two clients":           testTwoClients,
		"data stays the caller": testDataStays,
		"too large":             testTooLarge,
		"cancelled":             testCancelled,
		"bandwidth":             testBandwidth,
		"concurrency":           testConcurrency,
	})
}

// WithoutLocks tests places that have no object locks.
func WithoutLocks(t *testing.T, open func(t *testing.T) Place) {
	run(t, open, map[string]func(*testing.T, Place){"no locks": testNoLocks})
}

// WithLocks tests places that have object locks.
func WithLocks(t *testing.T, open func(t *testing.T) Place) {
	run(t, open, map[string]func(*testing.T, Place){"locked": testLocked, "retained": testRetained})
}

func run(t *testing.T, open func(t *testing.T) Place, tests map[string]func(*testing.T, Place)) {
	for name, test := range tests {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// want fails unless err is target and names the object.
func want(t *testing.T, err, target error, name string) {
	t.Helper()
	if !errors.Is(err, target) || !strings.Contains(err.Error(), name) {
		t.Fatalf("got error %v, want %q naming %s", err, target, name)
	}
}

func put(t *testing.T, st objects.Store, name, content string) {
	t.Helper()
	must(t, st.Put(t.Context(), name, [][]byte{[]byte(content)}, objects.PutOptions{}))
}

func wantContent(t *testing.T, st objects.Store, name string, content []byte) {
	t.Helper()
	got, err := st.Get(t.Context(), name)
	must(t, err)
	if !bytes.Equal(got, content) {
		t.Fatalf("%s has %d bytes %.40q, want %d bytes %.40q", name, len(got), got, len(content), content)
	}
}

func list(t *testing.T, st objects.Store, prefix string) (names []string) {
	t.Helper()
	must(t, st.List(t.Context(), prefix, func(info objects.Info) error {
		names = append(names, info.Name)
		return nil
	}))
	return names
}

func wantList(t *testing.T, st objects.Store, prefix string, names ...string) {
	t.Helper()
	if got := list(t, st, prefix); !slices.Equal(got, names) {
		t.Fatalf("list %q: got %q, want %q", prefix, got, names)
	}
}

func random(n int) []byte {
	p := make([]byte, n)
	var seed [32]byte
	seed[0] = byte(n)
	_, _ = rand.NewChaCha8(seed).Read(p)
	return p
}

func testPutGet(t *testing.T, place Place) {
	st := place()
	for _, size := range []int{0, 1, 4096, 1 << 20, 5<<20 + 17} {
		name := fmt.Sprintf("packs/ab/of-%d.bytes", size)
		content := random(size)
		third := size / 3
		pieces := [][]byte{nil, content[:third], {}, content[third:], nil}
		must(t, st.Put(t.Context(), name, pieces, objects.PutOptions{}))
		wantContent(t, st, name, content)
		info, err := st.Stat(t.Context(), name)
		must(t, err)
		if info.Name != name || info.Size != int64(size) {
			t.Fatalf("%s of %d bytes is %+v", name, size, info)
		}
	}
}

func testNames(t *testing.T, place Place) {
	st := place()
	part := strings.Repeat("p", objects.MaxPartBytes)
	for _, name := range []string{
		"a", "...", "-", "_x", "config.0", "m/b/c/d/e/f/g/h", part, "x/" + part + "/.y",
	} {
		put(t, st, name, name)
		wantContent(t, st, name, []byte(name))
	}
	before := list(t, st, "")
	for _, name := range []string{
		"", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/.", "A", "a b", "ä", "a\x00", "a\nb", "a~", "put~a", "a?b", "%41",
		part + "p", "m/b/c/d/e/f/g/h/i",
	} {
		_, getErr := st.Get(t.Context(), name)
		_, statErr := st.Stat(t.Context(), name)
		for op, err := range map[string]error{
			"put":  st.Put(t.Context(), name, [][]byte{[]byte("x")}, objects.PutOptions{}),
			"read": st.Read(t.Context(), name, make([]byte, 1), 0),
			"get":  getErr, "stat": statErr,
			"delete": st.Delete(t.Context(), name),
		} {
			if !errors.Is(err, objects.ErrName) {
				t.Errorf("%s %q: got %v, want %v", op, name, err, objects.ErrName)
			}
		}
	}
	nothing := func(objects.Info) error { return nil }
	for _, prefix := range []string{"/", "../", "a//", "A", "*"} {
		if err := st.List(t.Context(), prefix, nothing); !errors.Is(err, objects.ErrName) {
			t.Errorf("list %q: got %v, want %v", prefix, err, objects.ErrName)
		}
	}
	wantList(t, st, "", before...)
}

func testTaken(t *testing.T, place Place) {
	st := place()
	put(t, st, "backups/1", "first")
	err := st.Put(t.Context(), "backups/1", [][]byte{[]byte("second")}, objects.PutOptions{})
	if !st.Exclusive() {
		must(t, err)
		return
	}
	want(t, err, objects.ErrExists, "backups/1")
	wantContent(t, st, "backups/1", []byte("first"))
	// As long as the first, and large: what is refused may have been sent.
	put(t, st, "backups/2", strings.Repeat("a", 3<<20))
	err = st.Put(t.Context(), "backups/2", [][]byte{bytes.Repeat([]byte("b"), 3<<20)}, objects.PutOptions{})
	want(t, err, objects.ErrExists, "backups/2")
	wantContent(t, st, "backups/2", bytes.Repeat([]byte("a"), 3<<20))
}

func testRace(t *testing.T, place Place) {
	st := place()
	if !st.Exclusive() {
		return
	}
	for round := range 10 {
		name := fmt.Sprintf("keys/ring-%d.0", round)
		var won [8]bool
		var group errgroup.Group
		for i := range won {
			client := place()
			group.Go(func() error {
				err := client.Put(t.Context(), name, [][]byte{{byte(i)}}, objects.PutOptions{})
				won[i] = err == nil
				if errors.Is(err, objects.ErrExists) {
					return nil
				}
				return err
			})
		}
		must(t, group.Wait())
		winner := slices.Index(won[:], true)
		if winner < 0 || slices.Contains(won[winner+1:], true) {
			t.Fatalf("who put %s: %v, want one", name, won)
		}
		wantContent(t, st, name, []byte{byte(winner)})
	}
}

func testRanges(t *testing.T, place Place) {
	st := place()
	content := random(300_000)
	must(t, st.Put(t.Context(), "packs/x", [][]byte{content}, objects.PutOptions{}))
	must(t, st.Put(t.Context(), "packs/empty", nil, objects.PutOptions{}))
	for _, r := range [][2]int{{0, 1}, {0, 300_000}, {299_999, 1}, {1, 299_999}, {4096, 65536}, {0, 0}, {300_000, 0}} {
		p := make([]byte, r[1])
		must(t, st.Read(t.Context(), "packs/x", p, int64(r[0])))
		if !bytes.Equal(p, content[r[0]:r[0]+r[1]]) {
			t.Fatalf("%d bytes at %d are not those that were put", r[1], r[0])
		}
	}
	for _, r := range [][2]int{{0, 300_001}, {299_999, 2}, {300_000, 1}, {300_001, 0}, {1 << 40, 1}, {-1, 1}} {
		want(t, st.Read(t.Context(), "packs/x", make([]byte, r[1]), int64(r[0])), objects.ErrShort, "packs/x")
	}
	must(t, st.Read(t.Context(), "packs/empty", nil, 0))
	want(t, st.Read(t.Context(), "packs/empty", make([]byte, 1), 0), objects.ErrShort, "packs/empty")
}

func testAbsent(t *testing.T, place Place) {
	st := place()
	put(t, st, "packs/ab/1", "x")
	for _, name := range []string{"packs/ab/2", "packs/cd/1", "packs/ab", "packs", "pack", "packs/ab/1/2"} {
		want(t, st.Read(t.Context(), name, make([]byte, 1), 0), objects.ErrNotFound, name)
		want(t, st.Read(t.Context(), name, nil, 0), objects.ErrNotFound, name)
		_, err := st.Get(t.Context(), name)
		want(t, err, objects.ErrNotFound, name)
		_, err = st.Stat(t.Context(), name)
		want(t, err, objects.ErrNotFound, name)
		must(t, st.Delete(t.Context(), name))
	}
	wantList(t, st, "packs/cd/")
	wantList(t, st, "packs/ab/1/")
	wantList(t, st, "", "packs/ab/1")
}

func testAges(t *testing.T, place Place) {
	st := place()
	put(t, st, "a", "1")
	put(t, st, "b", "2")
	a, err := st.Stat(t.Context(), "a")
	must(t, err)
	b, err := st.Stat(t.Context(), "b")
	must(t, err)
	// A store may tell whole seconds.
	if a.Modified.IsZero() || b.Modified.Before(a.Modified) || b.Modified.Sub(a.Modified) > time.Hour {
		t.Fatalf("put one after the other: %v, %v", a.Modified, b.Modified)
	}
	must(t, st.List(t.Context(), "", func(info objects.Info) error {
		told := a
		if info.Name == "b" {
			told = b
		}
		if d := info.Modified.Sub(told.Modified); d.Abs() >= time.Second || info.Size != told.Size {
			t.Errorf("a list tells %+v, a stat %+v", info, told)
		}
		return nil
	}))
}

func testOrder(t *testing.T, place Place) {
	st := place()
	names := []string{"a-b", "a.b", "a/b", "a/b-c", "a/c/d", "a/c0", "a0", "a_b", "b", "packs/ab/1", "packs/ab/2", "packs/b0/1"}
	for _, i := range rand.Perm(len(names)) {
		put(t, st, names[i], "x")
	}
	wantList(t, st, "", names...)
	for _, prefix := range []string{"a", "a/", "a/b", "a/b-", "a/c", "a/c/", "packs/a", "packs/ab/", "packs/ab/2", "q", "a/b/", "packs/ab/20"} {
		var matching []string
		for _, name := range names {
			if strings.HasPrefix(name, prefix) {
				matching = append(matching, name)
			}
		}
		wantList(t, st, prefix, matching...)
	}
}

func testListStops(t *testing.T, place Place) {
	st := place()
	for _, name := range []string{"a/1", "a/2", "b/1"} {
		put(t, st, name, name)
	}
	enough := errors.New("enough")
	var seen []string
	err := st.List(t.Context(), "", func(info objects.Info) error {
		if _, err := st.Get(t.Context(), info.Name); err != nil { // the store may be used meanwhile
			return err
		}
		if seen = append(seen, info.Name); len(seen) == 2 {
			return enough
		}
		return nil
	})
	if err != enough || len(seen) != 2 { //nolint:errorlint // as it is
		t.Fatalf("got %v after %q", err, seen)
	}
	must(t, st.List(t.Context(), "", func(info objects.Info) error { return st.Delete(t.Context(), info.Name) }))
	wantList(t, st, "")
}

// More than one page of any store.
func testMany(t *testing.T, place Place) {
	st := place()
	var names []string
	var group errgroup.Group
	group.SetLimit(32)
	for i := range 1203 {
		name := fmt.Sprintf("index/%04d", i)
		names = append(names, name)
		group.Go(func() error {
			return st.Put(t.Context(), name, [][]byte{[]byte(name)}, objects.PutOptions{})
		})
	}
	must(t, group.Wait())
	put(t, st, "a", "")
	put(t, st, "z", "")
	wantList(t, st, "index/", names...)
	wantList(t, st, "index/1", names[1000:]...)
	wantList(t, st, "", slices.Concat([]string{"a"}, names, []string{"z"})...)
}

func testDelete(t *testing.T, place Place) {
	st := place()
	put(t, st, "a/1", "one")
	put(t, st, "a/2", "two")
	must(t, st.Delete(t.Context(), "a/1"))
	must(t, st.Delete(t.Context(), "a/1"))
	_, err := st.Get(t.Context(), "a/1")
	want(t, err, objects.ErrNotFound, "a/1")
	wantList(t, st, "", "a/2")
	put(t, st, "a/1", "again")
	wantContent(t, st, "a/1", []byte("again"))
}

func testTwoClients(t *testing.T, place Place) {
	a, b := place(), place()
	wantList(t, b, "")
	for i := range 20 {
		name := fmt.Sprintf("c/%d", i)
		put(t, a, name, name)
		wantContent(t, b, name, []byte(name))
		if names := list(t, b, "c/"); len(names) != i+1 {
			t.Fatalf("the other client sees %q", names)
		}
	}
	must(t, b.Delete(t.Context(), "c/0"))
	_, err := a.Get(t.Context(), "c/0")
	want(t, err, objects.ErrNotFound, "c/0")
}

func testDataStays(t *testing.T, place Place) {
	st := place()
	whole := random(100_000)
	pieces := [][]byte{slices.Clone(whole[:1000]), slices.Clone(whole[1000:])}
	must(t, st.Put(t.Context(), "a", pieces, objects.PutOptions{}))
	if len(pieces) != 2 || !bytes.Equal(bytes.Join(pieces, nil), whole) {
		t.Fatal("put changed what it was given")
	}
	clear(pieces[0])
	clear(pieces[1])
	wantContent(t, st, "a", whole)
	p, err := st.Get(t.Context(), "a")
	must(t, err)
	clear(p)
	wantContent(t, st, "a", whole)
}

func testTooLarge(t *testing.T, place Place) {
	st := place()
	mebibyte := make([]byte, 1<<20)
	data := slices.Repeat([][]byte{mebibyte}, objects.MaxObjectBytes>>20)
	want(t, st.Put(t.Context(), "a", append(data, mebibyte[:1]), objects.PutOptions{}), objects.ErrTooLarge, "a")
	wantList(t, st, "")
}

func testCancelled(t *testing.T, place Place) {
	st := place()
	put(t, st, "a", "x")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, getErr := st.Get(ctx, "a")
	_, statErr := st.Stat(ctx, "a")
	for op, err := range map[string]error{
		"put":  st.Put(ctx, "b", [][]byte{[]byte("x")}, objects.PutOptions{}),
		"read": st.Read(ctx, "a", make([]byte, 1), 0),
		"get":  getErr, "stat": statErr,
		"list":   st.List(ctx, "", func(objects.Info) error { return nil }),
		"delete": st.Delete(ctx, "a"),
	} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: got %v", op, err)
		}
	}
	wantList(t, st, "", "a")
}

func testBandwidth(t *testing.T, place Place) {
	st := place()
	content := random(160 << 10)
	limited := objects.Limited(st, 128<<10, 128<<10)
	takes := func(what string, do func() error) {
		t.Helper()
		begun := time.Now()
		must(t, do())
		// The first quarter of a second is free.
		if took := time.Since(begun); took < 900*time.Millisecond {
			t.Errorf("%s: 160 KiB at 128 KiB/s took %v", what, took)
		}
	}
	takes("put", func() error {
		return limited.Put(t.Context(), "a", [][]byte{content[:7], content[7:]}, objects.PutOptions{})
	})
	takes("get", func() error {
		p, err := limited.Get(t.Context(), "a")
		if err == nil && !bytes.Equal(p, content) {
			err = errors.New("other content")
		}
		return err
	})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	err := limited.Put(ctx, "b", [][]byte{content}, objects.PutOptions{})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %v, want the context's error", err)
	}
	wantList(t, st, "", "a")
}

func testConcurrency(t *testing.T, place Place) {
	st := place()
	ctx := t.Context()
	var group errgroup.Group
	for i := range 8 {
		group.Go(func() error {
			for j := range 10 {
				name := fmt.Sprintf("packs/%02d/%d-%d", j, i, j)
				content := []byte(strings.Repeat(name, 50))
				if err := st.Put(ctx, name, [][]byte{content}, objects.PutOptions{}); err != nil {
					return err
				}
				p := make([]byte, len(name))
				if err := st.Read(ctx, name, p, int64(len(name))); err != nil || string(p) != name {
					return fmt.Errorf("read %q: %w", p, err)
				}
				found := false
				err := st.List(ctx, "packs/", func(info objects.Info) error {
					found = found || info.Name == name && info.Size == int64(len(content))
					return nil
				})
				if err != nil || !found {
					return fmt.Errorf("a list has not %s: %w", name, err)
				}
				if j%2 == 0 {
					if err := st.Delete(ctx, name); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	must(t, group.Wait())
	if names := list(t, st, ""); len(names) != 40 {
		t.Fatalf("%d objects are left, want 40: %q", len(names), names)
	}
}

func testNoLocks(t *testing.T, place Place) {
	st := place()
	until := time.Now().Add(time.Hour)
	err := st.Put(t.Context(), "a", [][]byte{[]byte("x")}, objects.PutOptions{LockUntil: until})
	want(t, err, errors.ErrUnsupported, "a")
	wantList(t, st, "")
	put(t, st, "b", "x")
	want(t, st.Retain(t.Context(), "b", until), errors.ErrUnsupported, "b")
	must(t, st.Delete(t.Context(), "b"))
}

// lockTime is long enough for a test to see the lock, and short enough to wait for its end.
const lockTime = 3 * time.Second

func testLocked(t *testing.T, place Place) {
	st := place()
	info := clock(t, st)
	until := info.Add(lockTime)
	must(t, st.Put(t.Context(), "packs/1", [][]byte{[]byte("x")}, objects.PutOptions{LockUntil: until}))
	want(t, st.Delete(t.Context(), "packs/1"), objects.ErrLocked, "packs/1")
	wantContent(t, st, "packs/1", []byte("x"))
	wantList(t, st, "packs/", "packs/1")
	deleteOnceUnlocked(t, st, "packs/1")
}

func testRetained(t *testing.T, place Place) {
	st := place()
	put(t, st, "packs/1", "x")
	want(t, st.Retain(t.Context(), "packs/2", clock(t, st).Add(time.Hour)), objects.ErrNotFound, "packs/2")
	now := clock(t, st)
	must(t, st.Retain(t.Context(), "packs/1", now.Add(lockTime)))
	must(t, st.Retain(t.Context(), "packs/1", now)) // does not shorten it
	want(t, st.Delete(t.Context(), "packs/1"), objects.ErrLocked, "packs/1")
	deleteOnceUnlocked(t, st, "packs/1")
}

// clock is what the store's clock says.
func clock(t *testing.T, st objects.Store) time.Time {
	t.Helper()
	put(t, st, "clock", "")
	info, err := st.Stat(t.Context(), "clock")
	must(t, err)
	must(t, st.Delete(t.Context(), "clock"))
	return info.Modified
}

// Advancer is a store whose clock moves when it is told to.
type Advancer interface{ Advance(time.Duration) }

func deleteOnceUnlocked(t *testing.T, st objects.Store, name string) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		err := st.Delete(t.Context(), name)
		if err == nil {
			break
		}
		want(t, err, objects.ErrLocked, name)
		if time.Now().After(deadline) {
			t.Fatalf("still locked: %v", err)
		}
		if a, ok := st.(Advancer); ok {
			a.Advance(time.Second)
		}
		<-again.C
	}
	var once sync.Once
	must(t, st.List(t.Context(), "", func(info objects.Info) error {
		once.Do(func() { t.Errorf("%s is still there", info.Name) })
		return nil
	}))
}
