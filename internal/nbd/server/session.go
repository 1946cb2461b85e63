package server

import (
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Session is what others may know about a connection, and do to it.
type Session struct {
	id          uint64
	remote      string
	connectedAt time.Time
	done        chan struct{}
	abort       func()

	transmitting atomic.Bool
	wrote        atomic.Bool
	deviceErrors atomic.Int64
	counters     counters

	mu     sync.Mutex // guards what follows
	export string
	reason string
}

type counters struct {
	readRequests, writeRequests, otherRequests, failedRequests, readBytes, writtenBytes atomic.Int64
}

// Stats counts what a session's client has done.
type Stats struct {
	ReadRequests   int64 // READ
	WriteRequests  int64 // WRITE, WRITE_ZEROES and TRIM
	OtherRequests  int64
	FailedRequests int64 // answered with an error, by the device (these count above, too) or without asking it
	ReadBytes      int64
	WrittenBytes   int64 // payload of WRITE
}

// ID is unique among the sessions of a server.
func (s *Session) ID() uint64 { return s.id }

// Remote describes the client: its address, or "unix" for a local one.
func (s *Session) Remote() string { return s.remote }

// ConnectedAt is when the connection was accepted.
func (s *Session) ConnectedAt() time.Time { return s.connectedAt }

// Export is the canonical name of the export; empty during the handshake.
func (s *Session) Export() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.export
}

// Transmitting tells whether the client has picked its export.
func (s *Session) Transmitting() bool { return s.transmitting.Load() }

// Wrote tells whether the client has asked for anything that writes. It is set
// before the first such request reaches the device.
func (s *Session) Wrote() bool { return s.wrote.Load() }

// Stats returns the counters as they are now.
func (s *Session) Stats() Stats {
	c := &s.counters
	return Stats{
		ReadRequests:   c.readRequests.Load(),
		WriteRequests:  c.writeRequests.Load(),
		OtherRequests:  c.otherRequests.Load(),
		FailedRequests: c.failedRequests.Load(),
		ReadBytes:      c.readBytes.Load(),
		WrittenBytes:   c.writtenBytes.Load(),
	}
}

// Done is closed when the connection has ended, all its requests with it, and
// its device is closed.
func (s *Session) Done() <-chan struct{} { return s.done }

// Disconnect cuts the client off, cancels its requests under way and waits until
// all of them have ended and the device is closed. The first reason is kept for the log.
func (s *Session) Disconnect(reason string) {
	s.mu.Lock()
	if s.reason == "" {
		s.reason = reason
	}
	s.mu.Unlock()
	s.abort()
	<-s.done
}

func (s *Session) disconnectReason() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reason
}

func (s *Session) enterTransmission(export string) {
	s.mu.Lock()
	s.export = export
	s.mu.Unlock()
	s.transmitting.Store(true)
}

func describeRemote(conn net.Conn) string {
	addr := conn.RemoteAddr()
	if addr == nil || addr.Network() == "unix" {
		return "unix"
	}
	return addr.String()
}

func sortSessions(list []*Session) {
	slices.SortFunc(list, func(a, b *Session) int {
		if a.id < b.id {
			return -1
		}
		return 1
	})
}
