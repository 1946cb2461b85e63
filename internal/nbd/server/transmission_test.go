package server_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"varve/internal/block"
	"varve/internal/block/memdisk"
	"varve/internal/nbd"
	"varve/internal/nbd/nbdtest"
	"varve/internal/nbd/server"
)

const diskSize = 80 << 20

// serveDisk serves a fresh disk as the default export.
func serveDisk(t testing.TB) (*nbdtest.Server, *memdisk.Disk) {
	t.Helper()
	d := nbdtest.Disk(t, diskSize)
	return nbdtest.Serve(t, server.Config{Exports: nbdtest.Single(d)}), d
}

// serveDevice serves any device as the default export, which no connection closes.
func serveDevice(t testing.TB, d block.Device, readOnly bool) *nbdtest.Server {
	t.Helper()
	e := &nbdtest.Exports{ByName: map[string]func() *server.Export{
		"": func() *server.Export {
			return &server.Export{Device: lasting(d), ReadOnly: readOnly, Contexts: stripes{"x-test:even", "x-test:odd"}}
		},
	}}
	return nbdtest.Serve(t, server.Config{Exports: e})
}

type unclosed struct{ block.Device }

func (unclosed) Close() error { return nil }

type unclosedResident struct {
	unclosed
	block.ResidentReader
}

func lasting(d block.Device) block.Device {
	if r, ok := d.(block.ResidentReader); ok {
		return unclosedResident{unclosed{d}, r}
	}
	return unclosed{d}
}

func eachForm(t *testing.T, f func(t *testing.T, f form)) {
	for name, v := range forms {
		t.Run(name, func(t *testing.T) { f(t, v) })
	}
}

// pattern is data that no two places near each other share.
func pattern(n int, seed uint64) []byte {
	const period = 64<<10 + 1
	if n > period {
		return bytes.Repeat(pattern(period, seed), n/period+1)[:n]
	}
	p := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)}).Read(p)
	return p
}

// Every length around the bounds of the buffers is stored and read back.
func TestReadsWhatWasWritten(t *testing.T) {
	s, d := serveDisk(t)
	eachForm(t, func(t *testing.T, f form) {
		c := enter(t, s, f)
		for i, n := range []int{1, 511, 4096, 65535, 65536, 65537, 128 << 10, 128<<10 + 1, 256 << 10, 1<<20 + 3, nbd.MaxPayload} {
			if n == nbd.MaxPayload && f != structured {
				continue
			}
			off, p := uint64(i*1000+7), pattern(n, uint64(i))
			if e := c.errno(nbd.Request{Cmd: nbd.CmdWrite, Offset: off, Length: uint64(n)}, p); e != 0 {
				t.Fatalf("write of %d: %v", n, e)
			}
			for _, flags := range []nbd.CommandFlags{0, nbd.CmdFlagDF} {
				if f == simple && flags != 0 {
					continue
				}
				if !bytes.Equal(c.readBack(off, n, flags), p) {
					t.Fatalf("read of %d with flags %d differs", n, flags)
				}
			}
			direct := make([]byte, n)
			if err := d.ReadAt(context.Background(), direct, int64(off)); err != nil || !bytes.Equal(direct, p) {
				t.Fatal("the device holds something else", err)
			}
		}
	})
}

func TestRequestErrors(t *testing.T) {
	const size = diskSize
	payload := make([]byte, 4096)
	for _, test := range []struct {
		name     string
		req      nbd.Request
		payload  []byte
		want     nbd.Errno
		only     form // 0 (simple) means: all forms
		readOnly bool
	}{
		{name: "read beyond the end", req: nbd.Request{Cmd: nbd.CmdRead, Offset: size - 1, Length: 2}, want: nbd.EINVAL},
		{name: "read at a wrapping offset", req: nbd.Request{Cmd: nbd.CmdRead, Offset: 1<<64 - 1, Length: 2}, want: nbd.EINVAL},
		{name: "read longer than allowed", req: nbd.Request{Cmd: nbd.CmdRead, Length: nbd.MaxPayload + 1}, want: nbd.EOVERFLOW, only: structured},
		{name: "read with a flag of zeroing", req: nbd.Request{Cmd: nbd.CmdRead, Flags: nbd.CmdFlagNoHole, Length: 1}, want: nbd.EINVAL},
		{name: "read of nothing", req: nbd.Request{Cmd: nbd.CmdRead}},
		{name: "read at the end of nothing", req: nbd.Request{Cmd: nbd.CmdRead, Offset: size}},
		{name: "read with FUA", req: nbd.Request{Cmd: nbd.CmdRead, Flags: nbd.CmdFlagFUA, Length: 1}},
		{name: "write beyond the end", req: nbd.Request{Cmd: nbd.CmdWrite, Offset: size - 4095, Length: 4096}, payload: payload, want: nbd.ENOSPC},
		{name: "write with DF", req: nbd.Request{Cmd: nbd.CmdWrite, Flags: nbd.CmdFlagDF, Length: 4096}, payload: payload, want: nbd.EINVAL},
		{name: "write of nothing", req: nbd.Request{Cmd: nbd.CmdWrite}},
		{name: "write longer than allowed", req: nbd.Request{Cmd: nbd.CmdWrite, Length: nbd.MaxPayload + 1}, payload: make([]byte, nbd.MaxPayload+1), want: nbd.EINVAL},
		{name: "write to read-only", req: nbd.Request{Cmd: nbd.CmdWrite, Length: 4096}, payload: payload, want: nbd.EPERM, readOnly: true},
		{name: "long write to read-only", req: nbd.Request{Cmd: nbd.CmdWrite, Length: 1 << 20}, payload: make([]byte, 1<<20), want: nbd.EPERM, readOnly: true},
		{name: "trim beyond the end", req: nbd.Request{Cmd: nbd.CmdTrim, Offset: size, Length: 512}, want: nbd.EINVAL},
		{name: "trim of read-only", req: nbd.Request{Cmd: nbd.CmdTrim, Length: 4096}, want: nbd.EPERM, readOnly: true},
		{name: "trim with FUA", req: nbd.Request{Cmd: nbd.CmdTrim, Flags: nbd.CmdFlagFUA, Length: 4096}},
		{name: "zero beyond the end", req: nbd.Request{Cmd: nbd.CmdWriteZeroes, Offset: 1, Length: size}, want: nbd.ENOSPC},
		{name: "zero read-only", req: nbd.Request{Cmd: nbd.CmdWriteZeroes, Length: 4096}, want: nbd.EPERM, readOnly: true},
		{name: "zero all, fast", req: nbd.Request{Cmd: nbd.CmdWriteZeroes, Flags: nbd.CmdFlagFastZero, Length: size}},
		{name: "zero fast without hole", req: nbd.Request{Cmd: nbd.CmdWriteZeroes, Flags: nbd.CmdFlagFastZero | nbd.CmdFlagNoHole, Length: 4096}, want: nbd.ENOTSUP},
		{name: "zero without hole", req: nbd.Request{Cmd: nbd.CmdWriteZeroes, Flags: nbd.CmdFlagNoHole | nbd.CmdFlagFUA, Length: 2 << 20}},
		{name: "flush with a range", req: nbd.Request{Cmd: nbd.CmdFlush, Length: 512}, want: nbd.EINVAL},
		{name: "flush with FUA", req: nbd.Request{Cmd: nbd.CmdFlush, Flags: nbd.CmdFlagFUA}},
		{name: "cache", req: nbd.Request{Cmd: nbd.CmdCache, Length: 40 << 20}},
		{name: "cache beyond the end", req: nbd.Request{Cmd: nbd.CmdCache, Offset: size - 5, Length: 6}, want: nbd.EINVAL},
		{name: "cache with a flag", req: nbd.Request{Cmd: nbd.CmdCache, Flags: nbd.CmdFlagReqOne, Length: 6}, want: nbd.EINVAL},
		{name: "status of nothing", req: nbd.Request{Cmd: nbd.CmdBlockStatus}, want: nbd.EINVAL},
		{name: "status beyond the end", req: nbd.Request{Cmd: nbd.CmdBlockStatus, Offset: size - 512, Length: 1024}, want: nbd.EINVAL},
		{name: "resize", req: nbd.Request{Cmd: 8, Length: 512}, want: nbd.EINVAL},
		{name: "unknown command", req: nbd.Request{Cmd: 4711, Length: 512}, want: nbd.EINVAL},
		{name: "unknown flag", req: nbd.Request{Cmd: nbd.CmdFlush, Flags: 1 << 9}, want: nbd.EINVAL},
		{name: "payload nobody expects", req: nbd.Request{Cmd: nbd.CmdTrim, Flags: nbd.CmdFlagPayloadLen, Length: 4096}, payload: payload, want: nbd.EINVAL, only: extended},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := serveDevice(t, nbdtest.Disk(t, size), test.readOnly)
			eachForm(t, func(t *testing.T, f form) {
				if test.only != simple && f < test.only {
					return
				}
				c := enter(t, s, f)
				if got := c.errno(test.req, test.payload); got != test.want {
					t.Fatalf("got %v, want %v", got, test.want)
				}
				if f == simple {
					return
				}
				// What follows is understood, so nothing was left of the payload.
				if got := c.errno(nbd.Request{Cmd: nbd.CmdBlockStatus, Length: 512}, nil); got != 0 {
					t.Fatal(got)
				}
			})
		})
	}
}

func TestReadTooLongForSimpleReplies(t *testing.T) {
	s, _ := serveDisk(t)
	if got := enter(t, s, simple).errno(nbd.Request{Cmd: nbd.CmdRead, Length: nbd.MaxPayload + 1}, nil); got != nbd.EINVAL {
		t.Fatal(got)
	}
}

func TestStatusWithoutContexts(t *testing.T) {
	s, _ := serveDisk(t)
	if got := enter(t, s, simple).errno(nbd.Request{Cmd: nbd.CmdBlockStatus, Length: 512}, nil); got != nbd.EINVAL {
		t.Fatal(got)
	}
}

func TestExtendedWriteNeedsItsFlag(t *testing.T) {
	s, _ := serveDisk(t)
	c := enter(t, s, extended)
	req := nbd.Request{Cmd: nbd.CmdWrite, Length: 4096}
	b := make([]byte, nbd.ExtendedRequestSize)
	req.Put(b, true)
	c.write(b)
	if m := c.receive(0); m.errno != nbd.EINVAL {
		t.Fatal(m.errno)
	}
}

// What cannot be skipped within reason, or is no request, ends the connection.
func TestTransmissionViolationsCloseTheConnection(t *testing.T) {
	s, _ := serveDisk(t)
	t.Run("write of 4 GiB", func(t *testing.T) {
		c := enter(t, s, simple)
		c.send(nbd.Request{Cmd: nbd.CmdWrite, Length: 1<<32 - 1}, nil)
		c.expectClosed()
	})
	t.Run("no magic", func(t *testing.T) {
		c := enter(t, s, structured)
		c.write(make([]byte, nbd.RequestSize))
		c.expectClosed()
	})
	t.Run("compact request instead of an extended one", func(t *testing.T) {
		c := enter(t, s, extended)
		c.write((&transmission{c.raw, simple}).encode(nbd.Request{Cmd: nbd.CmdFlush}, make([]byte, 4)))
		c.expectClosed()
	})
}

func TestDeviceErrors(t *testing.T) {
	f := &failing{Device: nbdtest.Disk(t, 1<<20)}
	s := serveDevice(t, f, false)
	c := enter(t, s, structured)
	one := []byte{1}
	for _, test := range []struct {
		err  error
		want nbd.Errno
	}{
		{fmt.Errorf("volume x: %w", block.ErrNoSpace), nbd.ENOSPC},
		{block.ErrReadOnly, nbd.EPERM},
		{block.ErrDamaged, nbd.EIO},
		{block.ErrClosed, nbd.ESHUTDOWN},
		{errors.New("disk on fire in /secret/path"), nbd.EIO},
	} {
		f.fail(test.err)
		for _, req := range []nbd.Request{
			{Cmd: nbd.CmdRead, Length: 1}, {Cmd: nbd.CmdRead, Length: 200 << 10}, {Cmd: nbd.CmdWriteZeroes, Length: 1},
			{Cmd: nbd.CmdTrim, Length: 1 << 20}, {Cmd: nbd.CmdFlush}, {Cmd: nbd.CmdCache, Length: 1}, {Cmd: nbd.CmdBlockStatus, Length: 1},
		} {
			list := c.call(req, nil)
			m := list[len(list)-1]
			if m.errno != test.want || len(list) != 1 {
				t.Errorf("%v: command %d: %v, want %v", test.err, req.Cmd, m.errno, test.want)
			}
			if bytes.Contains(m.payload, []byte("secret")) {
				t.Error("the error's details went to the client")
			}
		}
		if got := c.errno(nbd.Request{Cmd: nbd.CmdWrite, Length: 1}, one); got != test.want {
			t.Errorf("%v: write: %v, want %v", test.err, got, test.want)
		}
	}
	f.fail(block.ErrOutOfRange) // the device shrank
	if got := c.errno(nbd.Request{Cmd: nbd.CmdWrite, Length: 1}, one); got != nbd.ENOSPC {
		t.Error("write:", got)
	}
	if got := c.errno(nbd.Request{Cmd: nbd.CmdRead, Length: 1}, nil); got != nbd.EINVAL {
		t.Error("read:", got)
	}
}

// Holes come without data, unless the client wants one piece.
func TestHoleChunks(t *testing.T) {
	s, d := serveDisk(t)
	op := &block.Op{Offset: 1 << 20, Length: 8192, Data: pattern(8192, 1)}
	d.Submit(context.Background(), []*block.Op{op})
	for name, f := range map[string]form{"structured": structured, "extended": extended} {
		t.Run(name, func(t *testing.T) {
			c := enter(t, s, f)
			kinds := func(off, n uint64, flags nbd.CommandFlags) string {
				var s string
				for _, m := range c.call(nbd.Request{Cmd: nbd.CmdRead, Flags: flags, Offset: off, Length: n}, nil) {
					switch m.Type {
					case nbd.ReplyOffsetHole:
						s += fmt.Sprintf("hole %d+%d ", be.Uint64(m.payload), be.Uint32(m.payload[8:]))
					case nbd.ReplyOffsetData:
						s += fmt.Sprintf("data %d+%d ", be.Uint64(m.payload), len(m.payload)-8)
					}
				}
				return s
			}
			for _, test := range []struct {
				off, n uint64
				flags  nbd.CommandFlags
				want   string
			}{
				{0, 4096, 0, "hole 0+4096 "},
				{0, 4096, nbd.CmdFlagDF, "data 0+4096 "},
				{1 << 20, 4096, 0, "data 1048576+4096 "},
				{512, 2 << 20, 0, "hole 512+1048064 data 1048576+8192 hole 1056768+1040896 "},
				{512, 2 << 20, nbd.CmdFlagDF, "data 512+2097152 "},
				{0, nbd.MaxPayload, 0, "hole 0+1048576 data 1048576+8192 hole 1056768+32497664 "},
			} {
				if got := kinds(test.off, test.n, test.flags); got != test.want {
					t.Errorf("%d+%d flags %d: %q, want %q", test.off, test.n, test.flags, got, test.want)
				}
			}
		})
	}
}

// A range of very many holes is answered in a bounded number of chunks.
func TestManyHoles(t *testing.T) {
	s, d := serveDisk(t)
	want := make([]byte, 4<<20)
	for off := int64(0); off < int64(len(want)); off += 2 * block.Size {
		p := pattern(block.Size, uint64(off))
		copy(want[off:], p)
		d.Submit(context.Background(), []*block.Op{{Offset: off, Length: block.Size, Data: p}})
	}
	for name, f := range map[string]form{"structured": structured, "extended": extended} {
		t.Run(name, func(t *testing.T) {
			if !bytes.Equal(enter(t, s, f).readBack(0, len(want), 0), want) {
				t.Fatal("content differs")
			}
		})
	}
}

func TestBlockStatus(t *testing.T) {
	d := nbdtest.Disk(t, diskSize)
	d.Submit(context.Background(), []*block.Op{{Offset: 4096, Length: 4096, Data: pattern(4096, 1)}})
	s := serveDevice(t, d, false)
	for name, f := range map[string]form{"structured": structured, "extended": extended} {
		t.Run(name, func(t *testing.T) {
			c := enter(t, s, f, "x-test:odd")
			status := func(off, n uint64, flags nbd.CommandFlags) string {
				var s string
				for _, m := range c.call(nbd.Request{Cmd: nbd.CmdBlockStatus, Flags: flags, Offset: off, Length: n}, nil) {
					s += fmt.Sprintf("[%d:", be.Uint32(m.payload))
					if f == extended {
						if int(be.Uint32(m.payload[4:])) != (len(m.payload)-8)/16 {
							t.Error("wrong count")
						}
						for p := m.payload[8:]; len(p) > 0; p = p[16:] {
							s += fmt.Sprintf(" %d=%d", be.Uint64(p), be.Uint64(p[8:]))
						}
					} else {
						for p := m.payload[4:]; len(p) > 0; p = p[8:] {
							s += fmt.Sprintf(" %d=%d", be.Uint32(p), be.Uint32(p[4:]))
						}
					}
					s += "]"
				}
				return s
			}
			for _, test := range []struct {
				off, n uint64
				flags  nbd.CommandFlags
				want   string
			}{
				{0, 1024, 0, "[1: 1024=3][2: 512=0 512=1]"},
				{7000, 2000, 0, "[1: 1192=0 808=3][2: 168=1 512=0 512=1 512=0 296=1]"},
				{7000, 2000, nbd.CmdFlagReqOne, "[1: 1192=0][2: 168=1]"},
				{7000, 10, nbd.CmdFlagReqOne, "[1: 10=0][2: 10=1]"},
			} {
				if got := status(test.off, test.n, test.flags); got != test.want {
					t.Errorf("%d+%d flags %d: %s, want %s", test.off, test.n, test.flags, got, test.want)
				}
			}
			// More runs than a reply holds: the answer ends early.
			list := c.call(nbd.Request{Cmd: nbd.CmdBlockStatus, Length: diskSize}, nil)
			if n := len(list[1].payload); n > 4096*16+8 {
				t.Errorf("%d bytes", n)
			}
		})
	}
}

// FLUSH and FUA are answered after a flush of the device, other writes without one.
func TestDurability(t *testing.T) {
	s, d := serveDisk(t)
	eachForm(t, func(t *testing.T, f form) {
		c := enter(t, s, f)
		for _, test := range []struct {
			req     nbd.Request
			payload int
			want    int64
		}{
			{nbd.Request{Cmd: nbd.CmdWrite, Length: 4096}, 4096, 0},
			{nbd.Request{Cmd: nbd.CmdFlush}, 0, 1},
			{nbd.Request{Cmd: nbd.CmdWrite, Flags: nbd.CmdFlagFUA, Length: 4096}, 4096, 1},
			{nbd.Request{Cmd: nbd.CmdWrite, Flags: nbd.CmdFlagFUA, Length: 1 << 20}, 1 << 20, 1},
			{nbd.Request{Cmd: nbd.CmdWriteZeroes, Flags: nbd.CmdFlagFUA, Length: 4096}, 0, 1},
			{nbd.Request{Cmd: nbd.CmdTrim, Flags: nbd.CmdFlagFUA, Length: 4 << 20}, 0, 1},
		} {
			before := d.FlushCount()
			if e := c.errno(test.req, make([]byte, test.payload)); e != 0 {
				t.Fatal(e)
			}
			if got := d.FlushCount() - before; got != test.want {
				t.Errorf("command %d, flags %d: %d flushes, want %d", test.req.Cmd, test.req.Flags, got, test.want)
			}
		}
	})
}

// While a flush waits for the disk, writes and resident reads go on.
func TestFlushHoldsUpNobody(t *testing.T) {
	g := newGated(nbdtest.Disk(t, 1<<20))
	defer close(g.gate)
	c := enter(t, serveDevice(t, g, false), simple)
	c.send(nbd.Request{Cmd: nbd.CmdFlush, Cookie: 1}, nil)
	<-g.begun
	c.send(nbd.Request{Cmd: nbd.CmdWrite, Cookie: 2, Length: 512}, make([]byte, 512))
	if m := c.receive(0); m.Cookie != 2 || m.errno != 0 {
		t.Fatalf("%+v", m)
	}
	c.send(nbd.Request{Cmd: nbd.CmdRead, Cookie: 3, Length: 512}, nil)
	if what := <-g.begun; what != "read" {
		t.Fatal(what)
	}
	c.send(nbd.Request{Cmd: nbd.CmdWriteZeroes, Cookie: 4, Length: 512}, nil)
	if m := c.receive(0); m.Cookie != 4 || m.errno != 0 {
		t.Fatalf("%+v", m)
	}
}

// A message may come in pieces of any size, and many messages in one piece.
func TestRequestsInAnyPieces(t *testing.T) {
	s, _ := serveDisk(t)
	eachForm(t, func(t *testing.T, f form) {
		for _, piece := range []int{1, 7, 29, 4096, 1 << 30} {
			c := enter(t, s, f)
			var stream []byte
			const n = 40
			for i := range n {
				p := pattern(i*13+1, uint64(i))
				stream = append(stream, c.encode(nbd.Request{Cmd: nbd.CmdWrite, Cookie: uint64(i), Offset: uint64(i * 1000), Length: uint64(len(p))}, p)...)
			}
			stream = append(stream, c.encode(nbd.Request{Cmd: nbd.CmdWrite, Cookie: n, Offset: 1 << 20, Length: 100_000}, pattern(100_000, n))...)
			for len(stream) > 0 {
				k := min(piece, len(stream))
				c.write(stream[:k])
				stream = stream[k:]
			}
			for range n + 1 {
				if m := c.receive(0); m.errno != 0 {
					t.Fatalf("pieces of %d: request %d: %v", piece, m.Cookie, m.errno)
				}
			}
			for i := range n {
				if !bytes.Equal(c.readBack(uint64(i*1000), i*13+1, 0), pattern(i*13+1, uint64(i))) {
					t.Fatalf("pieces of %d: content of request %d differs", piece, i)
				}
			}
			if !bytes.Equal(c.readBack(1<<20, 100_000, 0), pattern(100_000, n)) {
				t.Fatalf("pieces of %d: content of the long request differs", piece)
			}
		}
	})
}

// More writes than fit a batch are all performed.
func TestHugeBatch(t *testing.T) {
	s, d := serveDisk(t)
	c := enter(t, s, simple)
	const n = 3000
	var stream []byte
	for i := range n {
		stream = append(stream, c.encode(nbd.Request{Cmd: nbd.CmdWrite, Cookie: uint64(i), Offset: uint64(i), Length: 1}, []byte{byte(i) | 1})...)
	}
	go func() { _, _ = c.Write(stream) }()
	for range n {
		if m := c.receive(0); m.errno != 0 {
			t.Fatal(m.errno)
		}
	}
	p := make([]byte, n)
	if err := d.ReadAt(context.Background(), p, 0); err != nil {
		t.Fatal(err)
	}
	for i, b := range p {
		if b != byte(i)|1 {
			t.Fatalf("byte %d is %d", i, b)
		}
	}
}

// DISC lets the requests before it finish.
func TestDisconnectFinishesRequests(t *testing.T) {
	d := nbdtest.Disk(t, 1<<20)
	g := newGated(d)
	c := enter(t, serveDevice(t, g, false), simple)
	c.send(nbd.Request{Cmd: nbd.CmdRead, Cookie: 5, Length: 512}, nil)
	c.send(nbd.Request{Cmd: nbd.CmdWrite, Cookie: 6, Flags: nbd.CmdFlagFUA, Length: 1}, []byte{9})
	c.send(nbd.Request{Cmd: nbd.CmdDisc}, nil)
	<-g.begun
	<-g.begun
	close(g.gate)
	seen := make(map[uint64]bool)
	for range 2 {
		// The read's reply has 512 bytes, the write's none.
		h := c.read(nbd.SimpleReplySize)
		cookie := be.Uint64(h[8:])
		if be.Uint32(h[4:]) != 0 {
			t.Fatal("error")
		}
		if cookie == 5 {
			c.read(512)
		}
		seen[cookie] = true
	}
	if !seen[5] || !seen[6] {
		t.Fatal(seen)
	}
	c.expectClosed()
}
