package server_test

import (
	"context"
	"errors"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"varve/internal/block"
	"varve/internal/nbd"
	"varve/internal/nbd/nbdtest"
	"varve/internal/nbd/server"
)

func TestNewChecksItsConfig(t *testing.T) {
	if _, err := server.New(server.Config{}); err == nil {
		t.Error("no exports accepted")
	}
	if _, err := server.New(server.Config{Exports: &nbdtest.Exports{}, TLSMode: server.TLSRequire}); err == nil {
		t.Error("TLS without certificate accepted")
	}
}

// A shutdown lets requests under way finish and refuses those that come meanwhile.
func TestShutdown(t *testing.T) {
	g := newGated(nbdtest.Disk(t, 1<<20))
	s := serveDevice(t, g, false)
	c := enter(t, s, structured)
	idle := enter(t, s, structured)
	negotiating := greeted(t, s)
	c.send(nbd.Request{Cmd: nbd.CmdRead, Cookie: 1, Length: 512}, nil)
	<-g.begun

	stopped := make(chan error, 1)
	go func() { stopped <- s.Shutdown(nbdtest.Context(t)) }()
	idle.expectClosed()
	negotiating.expectClosed()
	c.send(nbd.Request{Cmd: nbd.CmdRead, Cookie: 2, Length: 512}, nil)
	c.send(nbd.Request{Cmd: nbd.CmdWrite, Cookie: 3, Length: 512}, make([]byte, 512))
	close(g.gate)
	for want := map[uint64]nbd.Errno{1: 0, 2: nbd.ESHUTDOWN, 3: nbd.ESHUTDOWN}; len(want) > 0; {
		m := c.receive(0)
		if e, ok := want[m.Cookie]; !ok || m.errno != e {
			t.Fatalf("request %d: %v", m.Cookie, m.errno)
		}
		delete(want, m.Cookie)
	}
	c.expectClosed()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	_ = idle.Close()
	_ = negotiating.Close()
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
	if conn, err := net.Dial("unix", s.Socket); err == nil {
		_ = conn.Close()
		t.Fatal("still accepting")
	}
}

func TestShutdownInTheHandshake(t *testing.T) {
	s := serveTwo(t)
	c := greeted(t, s)
	c.mustOption(nbd.OptStructuredReply, nil)
	c.write([]byte("IHAVEOPT")) // an option under way
	stopped := make(chan error, 1)
	go func() { stopped <- s.Shutdown(nbdtest.Context(t)) }()
	for {
		conn, err := net.Dial("unix", s.Socket)
		if err != nil {
			break // not accepting any more
		}
		_ = conn.Close()
	}
	c.write([]byte("\x00\x00\x00\x03\x00\x00\x00\x00"))
	if list := c.optionReplies(nbd.OptList); list[0].rep != nbd.RepErrShutdown {
		t.Fatal(list[0].rep)
	}
	_ = c.Close()
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
}

// A shutdown that takes too long cancels what is under way.
func TestShutdownCutsOff(t *testing.T) {
	g := newGated(nbdtest.Disk(t, 1<<20))
	s := serveDevice(t, g, false)
	c := enter(t, s, simple)
	c.send(nbd.Request{Cmd: nbd.CmdRead, Length: 512}, nil)
	<-g.begun
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

func TestSessions(t *testing.T) {
	s := serveTwo(t)
	if n := len(s.Sessions()); n != 0 {
		t.Fatalf("%d sessions", n)
	}
	greeted(t, s).mustOption(nbd.OptInfo, infoData("big"))
	c := greeted(t, s)
	c.mustOption(nbd.OptGo, infoData("big"))
	x := transmission{c, simple}
	x.readBack(0, 1000, 0)
	list := s.Sessions()
	if len(list) != 1 || list[0].Export() != "BIG" || list[0].Remote() != "unix" || list[0].Wrote() {
		t.Fatalf("%+v", list)
	}
	for i, e := range []nbd.Errno{
		x.errno(nbd.Request{Cmd: nbd.CmdWrite, Length: 100}, make([]byte, 100)),
		x.errno(nbd.Request{Cmd: nbd.CmdTrim, Length: 100}, nil),
		x.errno(nbd.Request{Cmd: nbd.CmdFlush}, nil),
		x.errno(nbd.Request{Cmd: nbd.CmdFlush, Length: 1}, nil),
	} {
		if (e != 0) != (i == 3) {
			t.Errorf("request %d: %v", i, e)
		}
	}
	want := server.Stats{ReadRequests: 1, WriteRequests: 2, OtherRequests: 1, FailedRequests: 1, ReadBytes: 1000, WrittenBytes: 100}
	if got := list[0].Stats(); got != want || !list[0].Wrote() {
		t.Fatalf("%+v, wrote %v", got, list[0].Wrote())
	}
	x.send(nbd.Request{Cmd: nbd.CmdDisc}, nil)
	<-list[0].Done()
	if n := len(s.Sessions()); n != 0 {
		t.Fatalf("%d sessions", n)
	}
}

// Disconnect ends a session with requests under way, and waits for them.
func TestDisconnect(t *testing.T) {
	g := newGated(nbdtest.Disk(t, 1<<20))
	s := serveDevice(t, g, false)
	c, other := enter(t, s, simple), enter(t, s, simple)
	for i := range 5 {
		c.send(nbd.Request{Cmd: nbd.CmdRead, Cookie: uint64(i), Length: 512}, nil)
		<-g.begun
	}
	session := s.Sessions()[0]
	session.Disconnect("test")
	select {
	case <-session.Done():
	default:
		t.Fatal("not done")
	}
	c.expectClosed()
	if got := other.errno(nbd.Request{Cmd: nbd.CmdTrim, Length: 1}, nil); got != 0 {
		t.Fatal("the other session:", got)
	}
	session.Disconnect("again")
}

// A client that asks for much and reads nothing is dropped, without memory beyond its
// bound, and another client does not notice.
func TestDeadReader(t *testing.T) {
	d := nbdtest.Disk(t, diskSize)
	d.Submit(context.Background(), []*block.Op{{Offset: 0, Length: nbd.MaxPayload, Data: pattern(nbd.MaxPayload, 1)}})
	s := nbdtest.Serve(t, server.Config{Exports: nbdtest.Single(d), WriteTimeout: 500 * time.Millisecond})
	dead := enter(t, s, structured)
	other := enter(t, s, structured)
	session := s.Sessions()[0]
	go func() { // blocks as soon as the server takes no more
		for {
			if _, err := dead.Write(dead.encode(nbd.Request{Cmd: nbd.CmdRead, Length: nbd.MaxPayload}, nil)); err != nil {
				return
			}
		}
	}()
	for served := 0; ; served++ {
		other.readBack(uint64(served%1000)*4096, 4096, 0)
		select {
		case <-session.Done():
			if served < 10 {
				t.Errorf("the other client was served %d times only", served)
			}
			// Two of the longest reads fill the budget, the third waits for room.
			if n := session.Stats().ReadRequests; n > 3 {
				t.Errorf("%d reads were taken", n)
			}
			return
		default:
		}
	}
}

// A client that stops in the middle of a long payload holds up nobody else.
func TestStalledWriter(t *testing.T) {
	s, _ := serveDisk(t)
	stalled := enter(t, s, simple)
	stalled.write(stalled.encode(nbd.Request{Cmd: nbd.CmdWrite, Length: nbd.MaxPayload}, make([]byte, 100_000)))
	c := enter(t, s, simple)
	for range 100 {
		if got := c.errno(nbd.Request{Cmd: nbd.CmdFlush}, nil); got != 0 {
			t.Fatal(got)
		}
	}
}

// A disk that hangs for one client does not hang for others.
func TestHangingDevice(t *testing.T) {
	g := newGated(nbdtest.Disk(t, 1<<20))
	defer close(g.gate)
	s := serveDevice(t, g, false)
	hanging := enter(t, s, simple)
	go func() {
		for i := range 1000 { // many more than there are workers
			if _, err := hanging.Write(hanging.encode(nbd.Request{Cmd: nbd.CmdRead, Cookie: uint64(i), Length: 512}, nil)); err != nil {
				return
			}
		}
	}()
	for range 64 {
		<-g.begun
	}
	c := enter(t, s, simple)
	if got := c.errno(nbd.Request{Cmd: nbd.CmdWrite, Length: 1}, []byte{1}); got != 0 {
		t.Fatal(got)
	}
	select {
	case <-g.begun:
		t.Fatal("more reads under way than workers")
	default:
	}
}

// A thousand clients that say nothing cost little, do not stop others, and go away.
func TestHalfOpenConnections(t *testing.T) {
	s := nbdtest.Serve(t, server.Config{Exports: nbdtest.Single(nbdtest.Disk(t, 1<<20)), HandshakeTimeout: 2 * time.Second, MaxConnections: 1001})
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var silent []*raw
	for range 1000 {
		c := dial(t, s)
		c.read(18)
		silent = append(silent, c)
	}
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapInuse) - int64(before.HeapInuse); grown > 40<<20 {
		t.Errorf("%d MiB for 1000 connections", grown>>20)
	}
	c := enter(t, s, structured)
	surplus := dial(t, s)
	surplus.expectClosed()
	if got := c.errno(nbd.Request{Cmd: nbd.CmdWrite, Length: 1}, []byte{1}); got != 0 {
		t.Fatal(got)
	}
	for _, c := range silent {
		c.expectClosed()
	}
}

// An error of the listener ends Serve.
func TestServeReportsItsListener(t *testing.T) {
	s, err := server.New(server.Config{Exports: &nbdtest.Exports{}})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	if err := s.Serve(l); err == nil || !strings.Contains(err.Error(), "accept") {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(l); !errors.Is(err, server.ErrServerClosed) {
		t.Fatal(err)
	}
}
