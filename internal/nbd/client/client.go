// Package client reads and writes the disks of NBD servers.
//
// A Client is one connection to one export, and a block.Device. Any number of
// goroutines use it at once: their requests travel together, up to maxInFlight of
// them, and the replies are given out in whatever order they come. A request whose
// context ends is abandoned at once; its reply is read and dropped. What the server
// lacks is made up for, so that the contract of block.Device holds: zeros are
// written where it cannot zero, long requests are cut, blocks smaller than it
// takes are read, changed and written under a lock.
//
// When the connection fails, everything under way and everything later fails with
// ErrDisconnected; a Client does not connect again.
//
// Left out: oldstyle negotiation, several connections to one export.
package client

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"varve/internal/block"
	"varve/internal/nbd"
)

// Errors of a Client, wrapped with the URI or the request.
var (
	// ErrDisconnected: the connection is gone, for the reason the text gives.
	ErrDisconnected = errors.New("disconnected")
	// ErrProtocol: the server sent what the protocol does not allow.
	ErrProtocol = errors.New("protocol violation by the server")
	// ErrURI: what should be an NBD URI is none.
	ErrURI = errors.New("bad NBD URI")
	// ErrUnknownContext: the meta context was not asked for or the server has none of that name.
	ErrUnknownContext = errors.New("unknown meta context")
)

// Options say how to connect. The zero value asks for all that the server offers.
type Options struct {
	// TLS is used for nbds URIs, and insists on TLS for the others. Its ServerName
	// defaults to the URI's host.
	TLS *tls.Config
	// Contexts are meta contexts to ask for beside base:allocation.
	Contexts []string
	// NoExtendedHeaders and NoStructuredReplies leave these unasked for; the latter
	// implies the former and means that there are no meta contexts.
	NoExtendedHeaders, NoStructuredReplies bool
}

// Info describes the export as the server did.
type Info struct {
	SizeBytes   int64
	Flags       nbd.TransmissionFlags
	Description string
	// MinBlock, PreferredBlock and MaxPayload are the size constraints, in bytes.
	MinBlock, PreferredBlock, MaxPayload int64
	// Structured and Extended tell what form messages have.
	Structured, Extended bool
	// Contexts are the meta contexts that were selected.
	Contexts []string
}

// Client is a connection to an export. Make it with Dial.
type Client struct {
	uri      string
	conn     net.Conn
	info     Info
	contexts map[uint32]string // by id

	slots   chan struct{} // holds one token for each request under way
	sending chan struct{} // holds one token while somebody writes to w
	w       *bufio.Writer
	r       *bufio.Reader

	// edges is held for writing while parts of minimum blocks are read, changed and
	// written back, and for reading while whole ones are written.
	edges sync.RWMutex

	mu       sync.Mutex // guards what follows
	calls    map[uint64]*call
	cookie   uint64
	err      error         // why the connection is gone
	received chan struct{} // closed when the receiving goroutine has ended
}

var _ block.Device = (*Client)(nil)

const (
	// maxInFlight is how many requests of a Client are under way at most.
	maxInFlight = 64
	bufferBytes = 128 << 10
	// farewell is how long Close tries to tell the server.
	farewell = time.Second
)

// Dial connects to the export that uri names: nbd://HOST[:PORT]/NAME,
// nbds://HOST[:PORT]/NAME with TLS, nbd+unix:///NAME?socket=PATH,
// nbds+unix:///NAME?socket=PATH.
func Dial(ctx context.Context, uri string, o Options) (*Client, error) {
	t, err := parseURI(uri)
	if err != nil {
		return nil, err
	}
	conn, err := new(net.Dialer).DialContext(ctx, t.network, t.address)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", uri, err)
	}
	return enter(ctx, conn, t, uri, o)
}

// New uses a connection that somebody else made, and takes it over: it is closed
// with the Client, or when New fails. TLS is used if o says so.
func New(ctx context.Context, conn net.Conn, export string, o Options) (*Client, error) {
	return enter(ctx, conn, target{export: export}, fmt.Sprintf("export %q", export), o)
}

func enter(ctx context.Context, conn net.Conn, t target, uri string, o Options) (*Client, error) {
	h, err := begin(ctx, conn, t, o)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", uri, err)
	}
	if err := h.within(ctx, func() error { return h.enter(t.export, o) }); err != nil {
		_ = h.conn.Close()
		return nil, fmt.Errorf("%s: %w", uri, err)
	}
	c := &Client{
		uri:      uri,
		conn:     h.conn,
		info:     h.info,
		contexts: h.contexts,
		slots:    make(chan struct{}, maxInFlight),
		sending:  make(chan struct{}, 1),
		w:        bufio.NewWriterSize(h.conn, bufferBytes),
		r:        h.r,
		calls:    make(map[uint64]*call),
		received: make(chan struct{}),
	}
	go c.receive()
	return c, nil
}

// Info describes the export.
func (c *Client) Info() Info { return c.info }

// SizeBytes implements block.Device; it is the size at the time of Dial.
func (c *Client) SizeBytes() int64 { return c.info.SizeBytes }

// ReadAt implements block.Device.
func (c *Client) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := block.CheckRange(off, int64(len(p)), c.info.SizeBytes); err != nil {
		return &RequestError{Cmd: nbd.CmdRead, Offset: off, Length: int64(len(p)), Cause: err}
	}
	head, tail := c.misaligned(off, int64(len(p)))
	if head == 0 && tail == 0 {
		return c.read(ctx, p, off)
	}
	whole := make([]byte, head+int64(len(p))+tail)
	if err := c.read(ctx, whole, off-head); err != nil {
		return err
	}
	copy(p, whole[head:])
	return nil
}

// misaligned is how far a range must be extended at its ends to consist of
// minimum blocks.
func (c *Client) misaligned(off, length int64) (head, tail int64) {
	m := c.info.MinBlock
	head = off % m
	tail = min((m-(off+length)%m)%m, c.info.SizeBytes-off-length)
	return head, tail
}

// read fills p by as many requests as it takes, all under way at once.
func (c *Client) read(ctx context.Context, p []byte, off int64) error {
	var calls []*call
	var failed error
	for len(p) > 0 && failed == nil {
		n := min(int64(len(p)), c.info.MaxPayload)
		k := &call{req: nbd.Request{Cmd: nbd.CmdRead, Offset: uint64(off), Length: uint64(n)}, data: p[:n]}
		if failed = c.start(ctx, k, nil, n < int64(len(p))); failed == nil {
			calls = append(calls, k)
		}
		p, off = p[n:], off+n
	}
	return c.waitAll(ctx, calls, failed)
}

// Flush implements block.Device. For a server that knows no FLUSH it is nothing.
func (c *Client) Flush(ctx context.Context) error {
	if c.info.Flags&nbd.FlagSendFlush == 0 {
		return nil
	}
	return c.do(ctx, &call{req: nbd.Request{Cmd: nbd.CmdFlush}})
}

// Trim hints that a range is not needed any more. Other than OpDiscard it promises
// nothing about the content; for a server that knows no TRIM it is nothing.
func (c *Client) Trim(ctx context.Context, off, length int64) error {
	return c.hint(ctx, nbd.CmdTrim, nbd.FlagSendTrim, off, length)
}

// Cache hints that a range will be read soon.
func (c *Client) Cache(ctx context.Context, off, length int64) error {
	return c.hint(ctx, nbd.CmdCache, nbd.FlagSendCache, off, length)
}

func (c *Client) hint(ctx context.Context, cmd nbd.Command, needs nbd.TransmissionFlags, off, length int64) error {
	if err := block.CheckRange(off, length, c.info.SizeBytes); err != nil {
		return &RequestError{Cmd: cmd, Offset: off, Length: length, Cause: err}
	}
	if c.info.Flags&needs == 0 {
		return nil
	}
	for length > 0 {
		n := min(length, c.maxEffect())
		if err := c.do(ctx, &call{req: nbd.Request{Cmd: cmd, Offset: uint64(off), Length: uint64(n)}}); err != nil {
			return err
		}
		off, length = off+n, length-n
	}
	return nil
}

// maxEffect is the longest range of a request without payload, in bytes.
func (c *Client) maxEffect() int64 {
	if c.info.Extended {
		return block.MaxDeviceBytes
	}
	return 1 << 30
}

// Close tells the server and closes the connection; what is under way fails with
// ErrDisconnected. It does not flush.
func (c *Client) Close() error {
	// Whoever is stuck in sending is freed by the deadline.
	_ = c.conn.SetWriteDeadline(time.Now().Add(farewell))
	c.sending <- struct{}{}
	c.mu.Lock()
	gone := c.err != nil
	c.mu.Unlock()
	if !gone {
		k := &call{req: nbd.Request{Cmd: nbd.CmdDisc}}
		if c.put(k, nil) == nil {
			_ = c.w.Flush()
		}
	}
	<-c.sending
	c.fail(block.ErrClosed)
	<-c.received
	return nil
}
