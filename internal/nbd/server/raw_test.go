package server_test

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"varve/internal/nbd"
	"varve/internal/nbd/nbdtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var be = binary.BigEndian

// raw is a client that says exactly what a test wants it to.
type raw struct {
	t testing.TB
	net.Conn
}

// dial connects and leaves all of the protocol to the test.
func dial(t testing.TB, s *nbdtest.Server) *raw {
	t.Helper()
	conn, err := net.Dial("unix", s.Socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return &raw{t, conn}
}

// greeted is dial and the exchange of flags.
func greeted(t testing.TB, s *nbdtest.Server) *raw {
	t.Helper()
	c := dial(t, s)
	c.read(18)
	c.write(be.AppendUint32(nil, 3))
	return c
}

func (c *raw) write(p []byte) {
	c.t.Helper()
	if _, err := c.Write(p); err != nil {
		c.t.Fatal(err)
	}
}

func (c *raw) read(n int) []byte {
	c.t.Helper()
	p := make([]byte, n)
	if _, err := io.ReadFull(c, p); err != nil {
		c.t.Fatalf("read of %d bytes: %v", n, err)
	}
	return p
}

// expectClosed reads to the end of the connection, which must come without data.
func (c *raw) expectClosed() {
	c.t.Helper()
	if n, err := c.Conn.Read(make([]byte, 1)); n > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		c.t.Fatalf("connection is still open: %d bytes, %v", n, err)
	}
}

func (c *raw) sendOption(opt nbd.Option, data []byte) {
	c.t.Helper()
	b := be.AppendUint64(nil, nbd.OptionMagic)
	b = be.AppendUint32(b, uint32(opt))
	b = be.AppendUint32(b, uint32(len(data)))
	c.write(append(b, data...))
}

type optionReply struct {
	rep  nbd.Rep
	data []byte
}

// option sends an option and returns its replies up to the final one.
func (c *raw) option(opt nbd.Option, data []byte) []optionReply {
	c.t.Helper()
	c.sendOption(opt, data)
	return c.optionReplies(opt)
}

func (c *raw) optionReplies(opt nbd.Option) []optionReply {
	c.t.Helper()
	var list []optionReply
	for {
		h := c.read(20)
		if be.Uint64(h) != nbd.OptionReplyMagic || nbd.Option(be.Uint32(h[8:])) != opt {
			c.t.Fatalf("not a reply to option %d: %x", opt, h)
		}
		r := optionReply{nbd.Rep(be.Uint32(h[12:])), c.read(int(be.Uint32(h[16:])))}
		list = append(list, r)
		if r.rep == nbd.RepAck || r.rep.IsError() {
			return list
		}
	}
}

// final is the type of the final reply to an option.
func (c *raw) final(opt nbd.Option, data []byte) nbd.Rep {
	c.t.Helper()
	list := c.option(opt, data)
	return list[len(list)-1].rep
}

func (c *raw) mustOption(opt nbd.Option, data []byte) {
	c.t.Helper()
	if rep := c.final(opt, data); rep != nbd.RepAck {
		c.t.Fatalf("option %d: %v", opt, rep)
	}
}

func infoData(name string, wanted ...nbd.Info) []byte {
	b := be.AppendUint32(nil, uint32(len(name)))
	b = append(b, name...)
	b = be.AppendUint16(b, uint16(len(wanted)))
	for _, w := range wanted {
		b = be.AppendUint16(b, uint16(w))
	}
	return b
}

func metaData(name string, queries ...string) []byte {
	b := be.AppendUint32(nil, uint32(len(name)))
	b = append(b, name...)
	b = be.AppendUint32(b, uint32(len(queries)))
	for _, q := range queries {
		b = be.AppendUint32(b, uint32(len(q)))
		b = append(b, q...)
	}
	return b
}

// form is one of the three forms of the transmission phase.
type form int

const (
	simple form = iota
	structured
	extended
)

var forms = map[string]form{"simple": simple, "structured": structured, "extended": extended}

// transmission is a connection in the transmission phase.
type transmission struct {
	*raw
	form form
}

// enter picks the default export, with base:allocation and any other contexts where the
// form has them.
func enter(t testing.TB, s *nbdtest.Server, f form, contexts ...string) *transmission {
	t.Helper()
	c := greeted(t, s)
	switch f {
	case structured:
		c.mustOption(nbd.OptStructuredReply, nil)
	case extended:
		c.mustOption(nbd.OptExtendedHeaders, nil)
	}
	if f != simple {
		c.mustOption(nbd.OptSetMetaContext, metaData("", append([]string{nbd.BaseAllocation}, contexts...)...))
	}
	c.mustOption(nbd.OptGo, infoData(""))
	return &transmission{c, f}
}

// encode is the bytes of a request.
func (c *transmission) encode(r nbd.Request, payload []byte) []byte {
	n := nbd.RequestSize
	if c.form == extended {
		n = nbd.ExtendedRequestSize
		if r.Cmd == nbd.CmdWrite {
			r.Flags |= nbd.CmdFlagPayloadLen
		}
	}
	b := make([]byte, n, n+len(payload))
	r.Put(b, c.form == extended)
	return append(b, payload...)
}

func (c *transmission) send(r nbd.Request, payload []byte) {
	c.t.Helper()
	c.write(c.encode(r, payload))
}

// message is a reply, simple or one chunk.
type message struct {
	simple bool
	errno  nbd.Errno
	nbd.Chunk
	payload []byte
}

// receive reads one message. want is the length of data in a simple reply without error.
func (c *transmission) receive(want int) message {
	c.t.Helper()
	magic := c.read(4)
	switch be.Uint32(magic) {
	case nbd.SimpleReplyMagic:
		h := c.read(nbd.SimpleReplySize - 4)
		m := message{simple: true, errno: nbd.Errno(be.Uint32(h))}
		m.Cookie, m.Flags = be.Uint64(h[4:]), nbd.ReplyFlagDone
		if m.errno == 0 {
			m.payload = c.read(want)
		}
		return m
	case nbd.StructuredReplyMagic, nbd.ExtendedReplyMagic:
		isExtended := be.Uint32(magic) == nbd.ExtendedReplyMagic
		if isExtended != (c.form == extended) || c.form == simple {
			c.t.Fatalf("chunk of the wrong form: %x", magic)
		}
		n := nbd.ChunkSize
		if isExtended {
			n = nbd.ExtendedChunkSize
		}
		var m message
		m.Parse(append(magic, c.read(n-4)...), isExtended)
		m.payload = c.read(int(m.Length))
		if m.Type.IsError() {
			m.errno = nbd.Errno(be.Uint32(m.payload))
		}
		return m
	}
	c.t.Fatalf("no reply: %x", magic)
	return message{}
}

// call sends a request and returns all messages of its reply, which must be the only
// one under way.
func (c *transmission) call(r nbd.Request, payload []byte) []message {
	c.t.Helper()
	r.Cookie = 0xfeedface00000000 | r.Offset&0xffff
	c.send(r, payload)
	var list []message
	for {
		want := 0
		if r.Cmd == nbd.CmdRead {
			want = int(r.Length)
		}
		m := c.receive(want)
		if m.Cookie != r.Cookie {
			c.t.Fatalf("cookie %x instead of %x", m.Cookie, r.Cookie)
		}
		if c.form == extended && m.Offset != r.Offset {
			c.t.Fatalf("reply's offset is %d instead of %d", m.Offset, r.Offset)
		}
		if m.simple && c.form != simple && (c.form == extended || r.Cmd == nbd.CmdRead || len(m.payload) > 0) {
			c.t.Fatal("simple reply in a place for chunks")
		}
		list = append(list, m)
		if m.Flags&nbd.ReplyFlagDone != 0 {
			return list
		}
	}
}

// errno performs a request and returns its error, 0 if none.
func (c *transmission) errno(r nbd.Request, payload []byte) nbd.Errno {
	c.t.Helper()
	for _, m := range c.call(r, payload) {
		if m.errno != 0 {
			return m.errno
		}
	}
	return 0
}

// readBack performs a READ and puts its chunks together.
func (c *transmission) readBack(off uint64, n int, flags nbd.CommandFlags) []byte {
	c.t.Helper()
	p := make([]byte, n)
	for _, m := range c.call(nbd.Request{Cmd: nbd.CmdRead, Flags: flags, Offset: off, Length: uint64(n)}, nil) {
		switch {
		case m.errno != 0:
			c.t.Fatal(m.errno)
		case m.simple:
			copy(p, m.payload)
		case m.Type == nbd.ReplyOffsetData:
			copy(p[be.Uint64(m.payload)-off:], m.payload[8:])
		}
	}
	return p
}
