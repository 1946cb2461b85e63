package s3test

import (
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Proxy is a line to a server. It forwards every connection until it is told otherwise.
type Proxy struct {
	// Address is where it listens, host:port.
	Address string

	target   string
	listener net.Listener
	delay    time.Duration
	threads  sync.WaitGroup
	accepted atomic.Int64
	moved    [2]atomic.Int64 // bytes, by direction

	mu      sync.Mutex // guards all below
	closed  bool
	conns   map[net.Conn]struct{}
	goOn    chan struct{} // nil, or closed when a stall ends
	stalls  [2]*stall     // that are to come, by direction
	cuts    [2]int64      // bytes until a connection is cut, by direction
	cutting [2]bool
}

// Direction is that of bytes.
type Direction int

// Up is to the server, Down from it.
const (
	Up Direction = iota
	Down
)

// NewProxy is a line to the server at an address, which delays all bytes by so much each way, however many there are. It
// ends with the test.
func NewProxy(t testing.TB, target string, delay time.Duration) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{Address: l.Addr().String(), target: target, listener: l, delay: delay, conns: make(map[net.Conn]struct{})}
	p.threads.Go(p.accept)
	t.Cleanup(func() {
		p.mu.Lock()
		p.closed = true
		p.mu.Unlock()
		l.Close()
		p.Stall(false)
		p.Cut()
		p.threads.Wait()
	})
	return p
}

// Stall stops all bytes, on connections that are there and come, or lets them go on; then no stall is to come any more.
func (p *Proxy) Stall(stalled bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !stalled {
		p.stalls = [2]*stall{}
		p.resume()
	} else if p.goOn == nil {
		p.goOn = make(chan struct{})
	}
}

// stall is one that is to come.
type stall struct {
	bytes int64 // until then
	begun chan struct{}
}

// StallAfter stalls the line, as Stall does, when so many bytes have gone in a direction from now on, over all connections; what it
// returns is closed then. Until then it goes on.
func (p *Proxy) StallAfter(d Direction, bytes int64) (begun <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stalls[d] = &stall{bytes, make(chan struct{})}
	p.resume()
	return p.stalls[d].begun
}

func (p *Proxy) resume() {
	if p.goOn != nil {
		close(p.goOn)
		p.goOn = nil
	}
}

// Cut breaks all connections.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for conn := range p.conns {
		conn.Close()
	}
}

// CutAfter breaks the connection on which, so many bytes in a direction from now on over all of them, the next one is due; once.
func (p *Proxy) CutAfter(d Direction, bytes int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cuts[d], p.cutting[d] = bytes, true
}

// Moved is how many bytes went in a direction.
func (p *Proxy) Moved(d Direction) int64 { return p.moved[d].Load() }

// Connections is how many there have been.
func (p *Proxy) Connections() int64 { return p.accepted.Load() }

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.accepted.Add(1)
		p.threads.Go(func() { p.connect(client) })
	}
}

func (p *Proxy) connect(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("tcp", p.target)
	if err != nil {
		return // nobody is there; that is what the client sees, too
	}
	defer server.Close()
	if !p.know(client, server) {
		return
	}
	defer p.forget(client, server)
	var both sync.WaitGroup
	both.Go(func() { p.forward(Up, server, client) })
	both.Go(func() { p.forward(Down, client, server) })
	both.Wait()
}

func (p *Proxy) know(conns ...net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range conns {
		p.conns[c] = struct{}{}
	}
	return !p.closed
}

func (p *Proxy) forget(conns ...net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range conns {
		delete(p.conns, c)
	}
}

// chunk is bytes on their way.
type chunk struct {
	bytes []byte
	due   time.Time
}

// forward moves bytes from one to the other until either ends, and then ends both.
func (p *Proxy) forward(d Direction, to, from net.Conn) {
	line := make(chan chunk, 256)
	var writer sync.WaitGroup
	writer.Go(func() {
		defer to.Close()
		defer from.Close()
		broken := false
		for c := range line {
			if broken {
				continue
			}
			time.Sleep(time.Until(c.due)) // the line's length
			bytes, cut := p.pass(d, c.bytes)
			_, err := to.Write(bytes)
			p.moved[d].Add(int64(len(bytes)))
			if broken = cut || err != nil; broken {
				to.Close()
				from.Close()
			}
		}
	})
	for {
		buffer := make([]byte, 64<<10)
		n, err := from.Read(buffer)
		if n > 0 {
			line <- chunk{buffer[:n], time.Now().Add(p.delay)}
		}
		if err != nil {
			break
		}
	}
	close(line)
	writer.Wait()
}

// pass waits while the line is stalled, and tells which of these bytes go through, and whether the line breaks behind them.
func (p *Proxy) pass(d Direction, bytes []byte) (through []byte, cut bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.stalled(d, int64(len(bytes))) {
		resumed := p.goOn
		p.mu.Unlock()
		<-resumed
		p.mu.Lock()
	}
	if !p.cutting[d] {
		return bytes, false
	}
	if p.cuts[d] >= int64(len(bytes)) {
		p.cuts[d] -= int64(len(bytes))
		return bytes, false
	}
	p.cutting[d] = false
	return bytes[:p.cuts[d]], true
}

// stalled tells whether so many bytes have to wait, and counts them if not.
func (p *Proxy) stalled(d Direction, bytes int64) bool {
	s := p.stalls[d]
	switch {
	case p.goOn != nil:
		return true
	case s == nil || p.closed:
		return false
	case s.bytes >= bytes:
		s.bytes -= bytes
		return false
	}
	p.stalls[d], p.goOn = nil, make(chan struct{})
	close(s.begun)
	return true
}
