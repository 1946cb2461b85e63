package pool

import (
	"errors"
	"fmt"
	"sync"

	"varve/internal/block"
	"varve/internal/pool/seglog"
)

// committer orders everything that goes into the log. Whoever comes while nobody
// leads becomes the leader, commits its own request with all that have queued up
// meanwhile as one batch, and passes leadership on. So a lone writer hands
// nothing over, and concurrent writers share batches.
type committer struct {
	pool *Pool

	mu    sync.Mutex
	busy  bool
	queue []*request

	batch   []seglog.Entry // scratch of the leader
	sources []*seglog.Entry
}

// request is a set of changes, or, with run, something that needs the
// log and the catalogue to itself.
type request struct {
	changes []change
	run     func() error
	err     error

	wake chan bool // true: lead; false: done
}

func (r *request) payloadBlocks() int {
	n := 0
	for i := range r.changes {
		if e := &r.changes[i].entry; e.Kind == seglog.KindData {
			n += int(e.Count)
		}
	}
	return n
}

// maxBatchChanges bounds a batch's entries, so that its header stays within limits.
const maxBatchChanges = 2048

// do commits a request and returns when it is in the log and in the maps, or failed.
func (c *committer) do(r *request) {
	c.mu.Lock()
	c.queue = append(c.queue, r)
	if c.busy {
		if r.wake == nil {
			r.wake = make(chan bool, 1)
		}
		c.mu.Unlock()
		if lead := <-r.wake; !lead {
			return
		}
		c.mu.Lock()
	}
	c.busy = true
	group := c.take()
	c.mu.Unlock()

	if first := group[0]; first.run != nil {
		first.err = first.run()
	} else {
		c.commit(group)
	}

	c.mu.Lock()
	for _, q := range group {
		if q != r {
			q.wake <- false
		}
	}
	if len(c.queue) > 0 {
		c.queue[0].wake <- true
	} else {
		c.busy = false
	}
	c.mu.Unlock()
}

// take removes the next batch's requests from the queue: one that runs alone, or as
// many others as fit. The leader's own is the first.
func (c *committer) take() []*request {
	n, blocks, changes := 0, 0, 0
	for _, q := range c.queue {
		blocks += q.payloadBlocks()
		changes += len(q.changes)
		if n > 0 && (q.run != nil || blocks > seglog.MaxPayloadBlocks || changes > maxBatchChanges) {
			break
		}
		if n++; q.run != nil {
			break
		}
	}
	group := c.queue[:n:n]
	c.queue = c.queue[n:]
	if len(c.queue) == 0 {
		c.queue = nil
	}
	return group
}

// commit puts the changes of all requests into the log as one batch and then into the maps.
func (c *committer) commit(group []*request) {
	p := c.pool
	c.batch, c.sources = c.batch[:0], c.sources[:0]
	for _, r := range group {
		if !r.admit() {
			continue
		}
		for i := range r.changes {
			ch := &r.changes[i]
			if ch.err = c.settleEdges(ch.volume, ch); ch.err == nil {
				c.batch = append(c.batch, ch.entry)
				c.sources = append(c.sources, &ch.entry)
			}
		}
	}
	if len(c.batch) == 0 {
		return
	}
	_, err := p.log.Append(c.batch)
	for i := range c.batch {
		c.sources[i].Addr = c.batch[i].Addr
	}
	clear(c.batch)
	if errors.Is(err, block.ErrNoSpace) {
		c.clearOnly(group, err)
		return
	}
	for _, r := range group {
		if r.err == nil {
			r.err = err
		}
		if r.err == nil {
			r.apply()
		}
	}
}

// errEpochPassed refuses what holds for an epoch that is over: a snapshot was made meanwhile.
var errEpochPassed = errors.New("the volume has begun another epoch")

// admit gives a request's changes their epochs, or the request an error.
func (r *request) admit() bool {
	var epoch uint64
	var last *volume
	for i := range r.changes {
		ch := &r.changes[i]
		if ch.volume != last {
			if epoch, r.err = ch.volume.admit(); r.err != nil {
				return false
			}
			last = ch.volume
		}
		if ch.epoch != 0 && ch.epoch != epoch {
			r.err = errEpochPassed
			return false
		}
		ch.entry.Epoch = epoch
	}
	return true
}

// clearOnly commits the requests that write nothing, on a full disk: they give space back, and may use the reserve.
// The others fail.
func (c *committer) clearOnly(group []*request, full error) {
	var clears []*request
	batch := c.batch[:0]
	for _, r := range group {
		if r.err != nil {
			continue
		}
		if r.payloadBlocks() > 0 {
			r.err = full
			continue
		}
		clears = append(clears, r)
		for i := range r.changes {
			if r.changes[i].err == nil {
				batch = append(batch, r.changes[i].entry)
			}
		}
	}
	if len(batch) == 0 {
		return
	}
	p := c.pool
	_, err := p.log.Append(batch)
	if errors.Is(err, block.ErrNoSpace) && releaseReserve(&p.opts) {
		_, err = p.log.Append(batch) // the next checkpoint makes it again
	}
	clear(batch)
	for _, r := range clears {
		if r.err = err; err == nil {
			r.apply()
		}
	}
}

// apply puts the request's changes into the volume's map. The log has them already,
// so a map that cannot take them (a node of it became unreadable since the
// request was prepared) must not be written on.
func (r *request) apply() {
	var v *volume
	for i := range r.changes {
		ch := &r.changes[i]
		if ch.err != nil {
			continue
		}
		if ch.volume != v {
			if v != nil {
				v.mu.Unlock()
			}
			v = ch.volume
			v.mu.Lock()
		}
		if err := v.applyLocked(ch.pins, &ch.entry); err != nil {
			v.pool.log.Stop(fmt.Errorf("map of volume %q: %w", v.name(), err))
			r.err = v.pool.log.Failure()
			break
		}
	}
	if v != nil {
		v.mu.Unlock()
	}
}

// exclusively runs f while nothing else goes into the log.
func (p *Pool) exclusively(f func() error) error {
	r := &request{run: f}
	p.committer.do(r)
	return r.err
}

// admit returns the epoch that changes are marked with now, and refuses them if the
// volume is deleted.
func (v *volume) admit() (epoch uint64, err error) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	if v.gone {
		return 0, fmt.Errorf("volume %q: %w", v.name(), ErrNotFound)
	}
	return v.tree.Epoch(), nil
}
