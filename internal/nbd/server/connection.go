package server

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"time"
)

// drainQuiet is how long a client must have been silent before a server that
// shuts down closes its connection, and lingerTime how long it waits for the
// client to close its side then.
const (
	drainQuiet = 100 * time.Millisecond
	lingerTime = time.Second
)

// connection is the server's side of a connection, from accept to close.
type connection struct {
	server  *Server
	session *Session
	socket  net.Conn // as accepted; safe to close from anywhere
	stream  net.Conn // socket, or TLS over it; used by the connection's own goroutines
	ctx     context.Context
	cancel  context.CancelFunc

	draining atomic.Bool
	aborted  atomic.Bool
	settle   func() // waits for requests under way
}

func newConnection(s *Server, socket net.Conn) *connection {
	c := &connection{server: s, socket: socket, stream: socket, settle: func() {}}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.session = &Session{
		id:          s.nextID.Add(1),
		remote:      describeRemote(socket),
		connectedAt: time.Now(),
		done:        make(chan struct{}),
		abort:       c.abort,
	}
	return c
}

// abort ends the connection without further ado: requests under way are
// cancelled, replies not sent. It does not wait.
func (c *connection) abort() {
	c.aborted.Store(true)
	_ = c.socket.Close() // first: a request that fails by the cancellation is not answered
	c.cancel()
}

// drain makes the connection end soon, its requests under way answered.
func (c *connection) drain() {
	c.draining.Store(true)
	// Wakes the connection if it waits for a request.
	_ = c.socket.SetReadDeadline(time.Unix(1, 0))
}

// serve runs the connection to its end.
func (c *connection) serve() {
	log := c.server.cfg.Logger.With("remote", c.session.Remote(), "session", c.session.ID())
	defer func() {
		_ = c.stream.Close() // tells a TLS peer that this is the end
		c.abort()
		close(c.session.done)
		c.server.unregister(c)
	}()

	h := &handshake{connection: c}
	defer h.release()
	err := h.run()
	if err == nil && h.chosen {
		log = log.With("export", c.session.Export())
		log.Debug("nbd: client connected")
		err = newTransmission(h).run()
	}
	reason := c.session.disconnectReason()
	switch {
	case reason != "":
		log.Info("nbd: client disconnected", "reason", reason)
	case err == nil || errors.Is(err, io.EOF):
		log.Debug("nbd: client left")
	default:
		log.Info("nbd: connection ended", "error", err)
	}
}

// read is stream.Read, but that the interruption by drain is not an error: once
// what is under way is done, the read goes on for at most drainQuiet.
func (c *connection) read(p []byte) (int, error) {
	for woken := false; ; woken = true {
		n, err := c.stream.Read(p)
		if n > 0 || woken || !errors.Is(err, os.ErrDeadlineExceeded) || !c.draining.Load() {
			return n, err
		}
		c.settle()
		_ = c.socket.SetReadDeadline(time.Now().Add(drainQuiet))
	}
}

// linger closes the sending side and waits a moment for the client to close its
// own: closing a TCP socket that holds unread requests would destroy replies
// that the client has not read yet.
func (c *connection) linger() {
	w, ok := c.stream.(interface{ CloseWrite() error })
	if !ok || w.CloseWrite() != nil {
		return
	}
	_ = c.socket.SetReadDeadline(time.Now().Add(lingerTime))
	_, _ = io.Copy(io.Discard, c.stream)
}
