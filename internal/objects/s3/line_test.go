package s3_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"varve/internal/objects"
	"varve/internal/objects/s3"
	"varve/internal/objects/s3/s3test"
)

// patience is how long a test waits for what must happen.
const patience = time.Minute

// quick notices a stalled line soon, and tries soon again.
func quick(server *s3test.Server) s3.Options {
	o := server.Options()
	o.Stall, o.Pause = 700*time.Millisecond, 10*time.Millisecond
	return o
}

// lineTo opens a store in a new bucket through a proxy.
func lineTo(t *testing.T, server *s3test.Server, delay time.Duration, o s3.Options) (*s3test.Proxy, *s3.Store) {
	t.Helper()
	url := server.Bucket("bucket", s3test.Plain)
	p := s3test.NewProxy(t, server.Address, delay)
	return p, open(t, strings.Replace(url, server.Address, p.Address, 1)+"/repo", o)
}

func random(n int) []byte {
	p := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(p)
	return p
}

// await returns when condition holds.
func await(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.After(patience)
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	for !condition() {
		select {
		case <-again.C:
		case <-deadline:
			t.Fatalf("still not so: %s", what)
		}
	}
}

// slowly puts an object at some 8 MiB a second, and returns when a good part of it is under way.
func slowly(t *testing.T, p *s3test.Proxy, st objects.Store, name string, content []byte) (result chan error) {
	t.Helper()
	result = make(chan error, 1)
	before := p.Moved(s3test.Up)
	go func() {
		result <- objects.Limited(st, 8<<20, 0).Put(background, name, [][]byte{content}, objects.PutOptions{})
	}()
	await(t, "the put is under way", func() bool { return p.Moved(s3test.Up) > before+1<<20 })
	return result
}

func TestAPutOutlivesTheServersDeath(t *testing.T) {
	server := s3test.Start(t, s3test.Options{})
	p, st := lineTo(t, server, 0, server.Options())
	content := random(8 << 20)
	result := slowly(t, p, st, "packs/1", content)
	server.Kill()
	server.Restart()
	must(t, <-result)
	wantContent(t, st, "packs/1", content)
}

func TestAPutThatTheServersDeathEndedLeavesNothing(t *testing.T) {
	server := s3test.Start(t, s3test.Options{})
	o := quick(server)
	o.Attempts = 2
	p, st := lineTo(t, server, 0, o)
	result := slowly(t, p, st, "packs/1", random(8<<20))
	server.Kill()
	want(t, <-result, objects.ErrUnavailable, "packs/1", "2 times")
	server.Restart()
	if got := names(t, st); len(got) != 0 {
		t.Fatalf("there are %q", got)
	}
	_, err := st.Get(t.Context(), "packs/1")
	want(t, err, objects.ErrNotFound)
	put(t, st, "packs/1", []byte("x"))
}

func TestAStalledPutIsCutAndTriedAgain(t *testing.T) {
	server := s3test.Start(t, s3test.Options{})
	p, st := lineTo(t, server, 0, quick(server))
	content := random(4 << 20)
	result := slowly(t, p, st, "packs/1", content)
	p.Stall(true)
	before := p.Connections()
	await(t, "another connection is tried", func() bool { return p.Connections() > before })
	p.Stall(false)
	must(t, <-result)
	wantContent(t, st, "packs/1", content)
}

func TestAStalledLineIsGivenUpInTheEnd(t *testing.T) {
	server := s3test.Start(t, s3test.Options{})
	o := quick(server)
	o.Attempts = 2
	p, st := lineTo(t, server, 0, o)
	put(t, st, "packs/1", random(1<<20))
	p.Stall(true)
	var all sync.WaitGroup
	for op, do := range map[string]func() error{
		"get":    func() error { _, err := st.Get(t.Context(), "packs/1"); return err },
		"stat":   func() error { _, err := st.Stat(t.Context(), "packs/1"); return err },
		"read":   func() error { return st.Read(t.Context(), "packs/1", make([]byte, 10), 0) },
		"put":    func() error { return st.Put(t.Context(), "packs/2", [][]byte{random(1 << 20)}, objects.PutOptions{}) },
		"list":   func() error { return st.List(t.Context(), "", func(objects.Info) error { return nil }) },
		"delete": func() error { return st.Delete(t.Context(), "packs/1") },
		"open":   func() error { _, err := s3.Open(t.Context(), st.URL(), o); return err },
	} {
		all.Go(func() {
			if err := do(); !errors.Is(err, objects.ErrUnavailable) || !strings.Contains(err.Error(), "2 times") {
				t.Errorf("%s: got %v", op, err)
			}
		})
	}
	all.Wait()
}

// Who limits his bandwidth waits longer between two pieces than a line may be silent, and is not cut.
func TestALowLimitIsNoStall(t *testing.T) {
	server := s3test.Start(t, s3test.Options{})
	o := quick(server)
	o.Attempts = 1
	_, st := lineTo(t, server, 0, o)
	limited := objects.Limited(st, objects.MinRate, 96<<10)
	short := random(3 * objects.MinRate) // a piece is a second
	must(t, limited.Put(t.Context(), "short", [][]byte{short}, objects.PutOptions{}))
	wantContent(t, st, "short", short)
	// More than the buffers on the way hold.
	long := random(256 << 10)
	put(t, st, "long", long)
	wantContent(t, limited, "long", long)
}

func TestACancelledRequestEndsOnAStalledLine(t *testing.T) {
	server := s3test.Start(t, s3test.Options{})
	p, st := lineTo(t, server, 0, server.Options())
	put(t, st, "packs/1", random(1<<20))
	p.Stall(true)
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error)
	go func() {
		_, err := st.Get(ctx, "packs/1")
		result <- err
	}()
	before := p.Moved(s3test.Up)
	cancel()
	want(t, <-result, context.Canceled)
	if p.Moved(s3test.Up) != before {
		t.Fatal("the line was not stalled")
	}
}

// However often the line breaks, what was read is what was put, and is not read twice.
func TestABrokenReadGoesOnWhereItWas(t *testing.T) {
	server := s3test.Start(t, s3test.Options{})
	p, st := lineTo(t, server, 0, server.Options())
	content := random(6 << 20)
	put(t, st, "packs/1", content)
	before := p.Moved(s3test.Down)
	p.CutAfter(s3test.Down, 4<<20)
	wantContent(t, st, "packs/1", content)
	if moved := p.Moved(s3test.Down) - before; moved > 8<<20 {
		t.Errorf("%d bytes were moved to read %d", moved, len(content))
	}
	p.CutAfter(s3test.Down, 1<<20)
	part := make([]byte, 3<<20)
	must(t, st.Read(t.Context(), "packs/1", part, 1000))
	if !bytes.Equal(part, content[1000:1000+len(part)]) {
		t.Fatal("a read that was cut returns other bytes")
	}
}

func TestABrokenPutIsTriedAgain(t *testing.T) {
	server := s3test.Start(t, s3test.Options{})
	p, st := lineTo(t, server, 0, server.Options())
	content := random(4 << 20)
	p.CutAfter(s3test.Up, 2<<20)
	put(t, st, "packs/1", content)
	wantContent(t, st, "packs/1", content)
}

// The server has the object and the answer is lost: it is ours. Somebody else's is not.
func TestALostAnswerToAPutIsNoFailure(t *testing.T) {
	server := s3test.Start(t, s3test.Options{})
	p, st := lineTo(t, server, 0, server.Options())
	content := random(1 << 20)
	for round := range 5 {
		name := fmt.Sprintf("packs/%d", round)
		p.CutAfter(s3test.Down, 0)
		put(t, st, name, content)
		wantContent(t, st, name, content)
		for _, other := range [][]byte{random(1<<20 + 1)[1:], []byte("short")} {
			p.CutAfter(s3test.Down, 0)
			want(t, st.Put(t.Context(), name, [][]byte{other}, objects.PutOptions{}), objects.ErrExists, name)
		}
		wantContent(t, st, name, content)
	}
	p.CutAfter(s3test.Down, 0)
	must(t, st.Delete(t.Context(), "packs/0"))
	if got := names(t, st); len(got) != 4 {
		t.Fatalf("there are %q", got)
	}
}

// A list that breaks in the middle tells every object once.
func TestABrokenListGoesOn(t *testing.T) {
	server := s3test.Start(t, s3test.Options{})
	p, st := lineTo(t, server, 0, server.Options())
	var group errgroup.Group
	group.SetLimit(16)
	for i := range 2100 {
		group.Go(func() error {
			return st.Put(t.Context(), fmt.Sprintf("index/%04d", i), nil, objects.PutOptions{})
		})
	}
	must(t, group.Wait())
	seen := 0
	must(t, st.List(t.Context(), "index/", func(info objects.Info) error {
		if info.Name != fmt.Sprintf("index/%04d", seen) {
			t.Fatalf("object %d of the list is %s", seen, info.Name)
		}
		if seen++; seen%1000 == 500 {
			p.CutAfter(s3test.Down, 10_000)
		}
		return nil
	}))
	if seen != 2100 {
		t.Fatalf("%d objects were told", seen)
	}
}

// A line of 20 ms each way costs throughput only where requests are few.
func TestDelayCostsALatencyForEachRequest(t *testing.T) {
	server := s3test.Start(t, s3test.Options{})
	const delay = 20 * time.Millisecond
	_, st := lineTo(t, server, delay, server.Options())
	content := random(64 << 10)
	put(t, st, "packs/first", content) // the connection is there
	begun := time.Now()
	wantContent(t, st, "packs/first", content)
	one := time.Since(begun)
	if one < 2*delay {
		t.Fatalf("a get took %v on a line of %v", one, delay)
	}
	begun = time.Now()
	var group errgroup.Group
	for i := range 64 {
		group.Go(func() error {
			return st.Put(t.Context(), fmt.Sprintf("packs/%d", i), [][]byte{content}, objects.PutOptions{})
		})
	}
	must(t, group.Wait())
	if all := time.Since(begun); all > 64*2*delay {
		t.Fatalf("64 puts at once took %v, as if one after the other", all)
	}
}
