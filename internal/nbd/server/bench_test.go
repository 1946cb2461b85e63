package server_test

import (
	"io"
	"testing"

	"varve/internal/nbd"
)

// exchange is a number of requests that are sent together, and the length of all replies.
type exchange struct {
	c        *transmission
	requests []byte
	replies  []byte
}

func newExchange(t testing.TB, cmd nbd.Command, size, depth int) *exchange {
	t.Helper()
	s, _ := serveDisk(t)
	c := enter(t, s, simple)
	fill := c.encode(nbd.Request{Cmd: nbd.CmdWrite, Length: 16 << 20}, pattern(16<<20, 1))
	c.write(fill)
	c.receive(0)
	x := &exchange{c: c}
	reply := nbd.SimpleReplySize
	var payload []byte
	switch cmd {
	case nbd.CmdWrite:
		payload = pattern(size, 2)
	case nbd.CmdRead:
		reply += size
	}
	for i := range depth {
		off := uint64(i*7919%4000) * 4096 % (16<<20 - uint64(size))
		x.requests = append(x.requests, c.encode(nbd.Request{Cmd: cmd, Cookie: uint64(i), Offset: off, Length: uint64(size)}, payload)...)
	}
	x.replies = make([]byte, depth*reply)
	return x
}

func (x *exchange) run() {
	x.c.write(x.requests)
	if _, err := io.ReadFull(x.c, x.replies); err != nil {
		x.c.t.Fatal(err)
	}
}

func benchmark(b *testing.B, cmd nbd.Command, size, depth int) {
	x := newExchange(b, cmd, size, depth)
	b.SetBytes(int64(size * depth))
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		x.run()
		n += depth
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "requests/s")
}

func BenchmarkWrite4KDepth1(b *testing.B)  { benchmark(b, nbd.CmdWrite, 4096, 1) }
func BenchmarkWrite4KDepth32(b *testing.B) { benchmark(b, nbd.CmdWrite, 4096, 32) }
func BenchmarkRead4KDepth1(b *testing.B)   { benchmark(b, nbd.CmdRead, 4096, 1) }
func BenchmarkRead4KDepth32(b *testing.B)  { benchmark(b, nbd.CmdRead, 4096, 32) }
func BenchmarkRead1M(b *testing.B)         { benchmark(b, nbd.CmdRead, 1<<20, 1) }
func BenchmarkWrite1M(b *testing.B)        { benchmark(b, nbd.CmdWrite, 1<<20, 1) }

// The path of small requests makes no garbage.
func TestNoGarbagePerRequest(t *testing.T) {
	for name, cmd := range map[string]nbd.Command{"write": nbd.CmdWrite, "read": nbd.CmdRead} {
		x := newExchange(t, cmd, 4096, 32)
		x.run()
		// The collector may empty the pools once in a while.
		if perRequest := testing.AllocsPerRun(200, x.run) / 32; perRequest > 0.1 {
			t.Errorf("%s: %.2f allocations a request", name, perRequest)
		}
	}
}
