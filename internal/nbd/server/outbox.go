package server

import (
	"net"
	"sync"
	"time"
)

// sliceBytes is how much is written to a socket at a time: what a client must
// read within the write timeout.
const sliceBytes = 1 << 20

// outbox takes replies to the client. Any goroutine of the connection may send; who
// finds nobody writing writes for all, so that replies that come together leave
// together and nobody waits for another's write.
type outbox struct {
	conn    net.Conn
	timeout time.Duration
	budget  *budget
	failed  func(error) // called once, when writing has failed

	mu      sync.Mutex // guards what follows
	waiting []*buffer
	writing bool
	broken  bool

	// Of the goroutine that writes.
	batch    []*buffer
	vectors  net.Buffers
	deadline time.Time
}

// send takes b and writes it, unless another goroutine is writing and will.
func (o *outbox) send(b *buffer) {
	o.mu.Lock()
	o.waiting = append(o.waiting, b)
	if o.writing {
		o.mu.Unlock()
		return
	}
	o.writing = true
	for len(o.waiting) > 0 {
		o.batch, o.waiting = o.waiting, o.batch[:0]
		broken := o.broken
		o.mu.Unlock()
		var err error
		if !broken {
			err = o.write(o.batch)
		}
		for i, b := range o.batch {
			o.budget.release(cap(b.data))
			b.recycle()
			o.batch[i] = nil
		}
		if err != nil {
			o.failed(err)
		}
		o.mu.Lock()
		o.broken = o.broken || err != nil
	}
	o.writing = false
	o.mu.Unlock()
}

// write writes all of batch, in slices that the client has the timeout for.
func (o *outbox) write(batch []*buffer) error {
	for len(batch) > 0 {
		n, total := 0, 0
		for n < len(batch) && (n == 0 || total+len(batch[n].data) <= sliceBytes) {
			total += len(batch[n].data)
			n++
		}
		var err error
		if n == 1 {
			err = o.writeOne(batch[0].data)
		} else {
			err = o.writeMany(batch[:n])
		}
		if err != nil {
			return err
		}
		batch = batch[n:]
	}
	return nil
}

func (o *outbox) writeOne(p []byte) error {
	for len(p) > 0 {
		n := min(len(p), sliceBytes)
		if err := o.renewDeadline(); err != nil {
			return err
		}
		if _, err := o.conn.Write(p[:n]); err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

func (o *outbox) writeMany(batch []*buffer) error {
	if err := o.renewDeadline(); err != nil {
		return err
	}
	all := o.vectors[:0]
	for _, b := range batch {
		all = append(all, b.data)
	}
	o.vectors = all
	_, err := o.vectors.WriteTo(o.conn)
	clear(all) // the pool owns what it points to
	o.vectors = all[:0]
	return err
}

// renewDeadline gives the client at least the timeout. Setting a timer costs,
// so each is set for twice that and used for half of its time.
func (o *outbox) renewDeadline() error {
	now := time.Now()
	if o.deadline.Sub(now) > o.timeout {
		return nil
	}
	o.deadline = now.Add(2 * o.timeout)
	return o.conn.SetWriteDeadline(o.deadline)
}
