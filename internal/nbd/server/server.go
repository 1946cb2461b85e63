// Package server serves block devices over NBD.
//
// A Server takes connections from any number of listeners. A connection is one
// goroutine that first haggles over options (the handshake) and then becomes a
// transmission: it parses all requests that one read of its socket brought,
// performs the writes among them as one batch, answers reads of what is in
// memory at once, and sends all these replies with one write. Only what may
// wait (cold reads, flushes, long zeroing, block status) goes to a few worker
// goroutines of that connection. docs/design/nbd.md says why.
//
// Invariants:
//   - Whatever a client does or fails to do holds up its own connection only.
//   - A connection's memory is bounded: inputBytes and opsBytes of fixed buffers
//     and at most budgetBytes of payloads and replies, however many requests are
//     sent. When the budget is spent, the connection reads no more requests.
//   - A device is closed once its connection has ended and no request of it is
//     under way any more.
//   - A FLUSH is answered after a Device.Flush that began after the FLUSH was
//     received; a request with FUA after one that began when it was performed.
//
// Left out: oldstyle negotiation, per-export TLS identity and resizing of a
// connected export (a client sees a new size when it connects again).
package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// ErrServerClosed is returned by Serve after Shutdown or Close.
var ErrServerClosed = errors.New("nbd server closed")

// TLSMode says what a server does about TLS (section "TLS support").
type TLSMode int

// TLS modes.
const (
	// TLSOff refuses STARTTLS (NOTLS in the specification).
	TLSOff TLSMode = iota
	// TLSAllow leaves it to the client, and to Exports by ErrTLSRequired (SELECTIVETLS).
	TLSAllow
	// TLSRequire answers nothing but STARTTLS and ABORT before TLS (FORCEDTLS).
	TLSRequire
	// TLSRequireRemote is TLSRequire for connections over a network and TLSAllow for
	// those over unix sockets, which never leave the machine.
	TLSRequireRemote
)

// Config is what a server needs to know. Only Exports must be set.
type Config struct {
	Exports Exports
	// TLS is the server's identity; needed by the modes other than TLSOff.
	TLS     *tls.Config
	TLSMode TLSMode
	// Logger gets a line for what an operator should know: refused connections,
	// dropped clients, failed devices. Nil: nothing is logged.
	Logger *slog.Logger
	// HandshakeTimeout is how long a client may take from connecting to the
	// transmission phase. 0: 10 s.
	HandshakeTimeout time.Duration
	// WriteTimeout is how long a client may read nothing while replies are waiting for
	// it before it is dropped; it is noticed after at most twice that. 0: 30 s.
	WriteTimeout time.Duration
	// MaxConnections is how many connections are served at a time; more are closed
	// at once. 0: 1024.
	MaxConnections int
}

// Server serves NBD. Make it with New.
type Server struct {
	cfg    Config
	nextID atomic.Uint64

	mu        sync.Mutex // guards what follows
	draining  bool
	listeners map[net.Listener]struct{}
	conns     map[*connection]struct{}
	idle      chan struct{} // closed when draining and the last connection is gone
}

// New checks cfg and makes a server.
func New(cfg Config) (*Server, error) {
	if cfg.Exports == nil {
		return nil, errors.New("nbd server: no exports given")
	}
	if cfg.TLSMode != TLSOff && cfg.TLS == nil {
		return nil, errors.New("nbd server: TLS needs a certificate, and none is configured")
	}
	if cfg.TLS != nil && cfg.TLS.MinVersion < tls.VersionTLS12 {
		cfg.TLS = cfg.TLS.Clone()
		cfg.TLS.MinVersion = tls.VersionTLS12
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.HandshakeTimeout == 0 {
		cfg.HandshakeTimeout = 10 * time.Second
	}
	if cfg.WriteTimeout == 0 {
		cfg.WriteTimeout = 30 * time.Second
	}
	if cfg.MaxConnections == 0 {
		cfg.MaxConnections = 1024
	}
	return &Server{
		cfg:       cfg,
		listeners: make(map[net.Listener]struct{}),
		conns:     make(map[*connection]struct{}),
		idle:      make(chan struct{}),
	}, nil
}

// Serve accepts connections from l until Shutdown or Close, which close l, and
// then returns ErrServerClosed. Any other error is the listener's.
func (s *Server) Serve(l net.Listener) error {
	s.mu.Lock()
	if s.draining {
		s.mu.Unlock()
		_ = l.Close()
		return ErrServerClosed
	}
	s.listeners[l] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.listeners, l)
		s.mu.Unlock()
		_ = l.Close()
	}()

	for delay := time.Duration(0); ; {
		conn, err := l.Accept()
		if err == nil {
			delay = 0
			s.start(conn)
			continue
		}
		if s.isDraining() {
			return ErrServerClosed
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("nbd server: accept: %w", err)
		}
		// Out of file descriptors or the like: serve whom we have and try again.
		delay = min(max(2*delay, 5*time.Millisecond), time.Second)
		s.cfg.Logger.Warn("nbd: cannot accept", "error", err)
		select {
		case <-time.After(delay):
		case <-s.idle:
		}
	}
}

// ServeConn serves one connection that somebody else accepted, until it ends.
func (s *Server) ServeConn(conn net.Conn) {
	if c := s.register(conn); c != nil {
		c.serve()
	}
}

func (s *Server) start(conn net.Conn) {
	if c := s.register(conn); c != nil {
		go c.serve()
	}
}

// register makes a connection known, or closes it and returns nil.
func (s *Server) register(conn net.Conn) *connection {
	if tcp, ok := conn.(*net.TCPConn); ok {
		// A peer that vanished is noticed after a minute.
		_ = tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 3})
		_ = tcp.SetNoDelay(true)
	}
	c := newConnection(s, conn)
	s.mu.Lock()
	full := len(s.conns) >= s.cfg.MaxConnections
	draining := s.draining
	if !full && !draining {
		s.conns[c] = struct{}{}
	}
	s.mu.Unlock()
	if full {
		s.cfg.Logger.Warn("nbd: connection refused, too many are open", "remote", c.session.Remote(), "limit", s.cfg.MaxConnections)
	}
	if full || draining {
		c.cancel()
		_ = conn.Close()
		return nil
	}
	return c
}

func (s *Server) unregister(c *connection) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	if s.draining && len(s.conns) == 0 {
		s.signalIdle()
	}
}

func (s *Server) signalIdle() {
	select {
	case <-s.idle:
	default:
		close(s.idle)
	}
}

func (s *Server) isDraining() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.draining
}

// Sessions returns the sessions of all connections whose client has picked an
// export, in the order they connected.
func (s *Server) Sessions() []*Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []*Session
	for c := range s.conns {
		if c.session.transmitting.Load() {
			list = append(list, c.session)
		}
	}
	sortSessions(list)
	return list
}

// Shutdown stops accepting, lets requests under way finish, answers those that
// still come with NBD_ESHUTDOWN, and closes every connection once its client has
// been quiet for a moment. When ctx ends first, the rest is cut off as by Close
// and the context's error returned. All goroutines have ended when it returns.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stop(false)
	select {
	case <-s.idle:
		return nil
	case <-ctx.Done():
		s.stop(true)
		<-s.idle
		return fmt.Errorf("nbd server: shutdown: %w", ctx.Err())
	}
}

// Close cuts all connections off, waits until their requests under way have
// ended, and returns.
func (s *Server) Close() error {
	s.stop(true)
	<-s.idle
	return nil
}

func (s *Server) stop(cut bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.draining = true
	for c := range s.conns {
		if cut {
			c.abort()
		} else {
			c.drain()
		}
	}
	for l := range s.listeners {
		_ = l.Close()
	}
	if len(s.conns) == 0 {
		s.signalIdle()
	}
}
