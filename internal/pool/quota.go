package pool

import (
	"context"
	"fmt"
	"path"
	"sync"
	"sync/atomic"
	"time"

	"varve/internal/block"
	"varve/internal/pool/catalogue"
)

// space decides what clients may still write: up to the pool's quota, less its reserve, and what the file system
// has left. What the next two checkpoints take counts as written, so that there is always room for them, and reclaim
// needs no more. Deletions, discards and what else gives space back are not asked: the reserve is there for them.
type space struct {
	quota, reserve atomic.Int64 // bytes; a quota of 0 is none
	admitted       atomic.Int64 // bytes of writes under way

	// What the file system had free, and how much had been written to the log then.
	total, free atomic.Int64
	lookedAt    atomic.Uint64

	pressed  atomic.Bool   // a writer waits: give back all there is
	cycles   atomic.Uint64 // that were made because of that
	cycledAt atomic.Uint64 // how much had been written then
	left     atomic.Int64  // garbage that the last of them began with and did not give back

	mu                sync.Mutex
	level             int // the highest of levels that was told
	told, toldWaiting time.Time
}

const (
	// lookAgain is how much is written before the file system is asked again what is free.
	lookAgain = 1 << 20
	// pressLeast is the garbage that a cycle for a waiting writer must be able to begin with.
	pressLeast = 4 << 20
	// spareEvery is how much of the reserve discards take before they wait for a cycle.
	spareEvery = 1 << 20
	// maxPressed is how many cycles a writer waits for.
	maxPressed = 4
	// full is the level at which writes are refused.
	full = 100
	// toldAgain is how long a level is not told again after it was.
	toldAgain = time.Minute
	// rearmed is how far below a level the pool must get for the level to be told again, in percent.
	rearmed = 5
)

// levels are the percentages that are told when they are reached.
var levels = []int{80, 90, 95}

// DefaultReserve is the reserve within a quota when none is named, in bytes.
func DefaultReserve(quota int64) int64 { return min(max(quota/64, 8<<20), quota/8) }

// SetQuota bounds the size of the pool's log, in bytes; 0 lifts the bound. Clients may write up to
// the quota less the reserve; a reserve of 0 means DefaultReserve. A quota that is
// smaller than what is there stops writes until enough was deleted. ErrInvalid.
func (p *Pool) SetQuota(_ context.Context, quota, reserve int64) error {
	least := 4 * p.super.Load().segmentBytes
	switch {
	case quota < 0 || reserve < 0 || (quota > 0 && quota < least):
		return fmt.Errorf("set quota: %w quota %d with reserve %d: at least %d bytes (four segments), or 0 for none", ErrInvalid, quota, reserve, least)
	case quota == 0 && reserve > 0:
		return fmt.Errorf("set quota: %w reserve %d: it is a part of a quota, and there is to be none", ErrInvalid, reserve)
	case reserve > quota/2:
		return fmt.Errorf("set quota: %w reserve %d: at most half of the quota of %d bytes", ErrInvalid, reserve, quota)
	}
	if reserve == 0 {
		reserve = DefaultReserve(quota)
	}
	_, err := p.change(func(c *catalogue.Catalogue) (proposal, error) {
		if c.QuotaBytes == quota && c.ReserveBytes == reserve {
			return proposal{}, nil
		}
		return proposal{op: &catalogue.Op{SetPool: &catalogue.SetPool{QuotaBytes: quota, ReserveBytes: reserve}}, urgent: true}, nil
	})
	if err != nil {
		return fmt.Errorf("set quota: %w", err)
	}
	p.space.observe(p, false)
	p.reclaimer.relieve() // who waits looks again
	return nil
}

// bound takes the bounds over that the catalogue has.
func (s *space) bound(c *catalogue.Catalogue) {
	s.quota.Store(c.QuotaBytes)
	s.reserve.Store(c.ReserveBytes)
}

// size is what the log takes.
func (p *Pool) size() int64 {
	return p.reclaimer.physical.Load() + int64(p.log.BytesWritten()) + p.log.SpareBytes()
}

// owed is what the next two checkpoints will add to it, at most.
func (p *Pool) owed() int64 {
	c := &p.checkpointer
	return c.dirty.Load() + c.inflight.Load() + 2*p.super.Load().catalogueLen
}

// look asks the file system what is free.
func (s *space) look(p *Pool) {
	written := p.log.BytesWritten()
	total, free, err := p.opts.FS.Space(p.opts.Dir)
	if err != nil { // then only writing tells
		total, free = 1<<62, 1<<62
	}
	// What the reserve gave back is not for clients.
	free -= max(reserveBytes-p.allocated(path.Join(p.opts.Dir, reserveName)), 0)
	s.total.Store(total)
	s.free.Store(free)
	s.lookedAt.Store(written)
}

// noticed looks now and then, as the log grows, and tells.
func (s *space) noticed(p *Pool) {
	every := int64(lookAgain)
	if quota := s.quota.Load(); quota > 0 {
		every = min(every, quota/256)
	}
	if int64(p.log.BytesWritten()-s.lookedAt.Load()) > every {
		s.look(p)
		s.observe(p, false)
	}
}

// room is how many bytes clients may still write, or less than 0.
func (s *space) room(p *Pool) int64 {
	room := s.free.Load() - int64(p.log.BytesWritten()-s.lookedAt.Load())
	if quota := s.quota.Load(); quota > 0 {
		room = min(room, quota-s.reserve.Load()-p.size())
	}
	return room - p.owed() - s.admitted.Load()
}

// take admits n bytes if there is room for them.
func (s *space) take(p *Pool, n int64) bool {
	for {
		before := s.admitted.Load()
		if s.room(p)+s.admitted.Load()-before < n {
			return false
		}
		if s.admitted.CompareAndSwap(before, before+n) {
			return true
		}
	}
}

// needs is how many bytes of log the ops take, 0 if they only clear.
func needs(ops []*block.Op) (n int64) {
	for _, op := range ops {
		switch op.Kind {
		case block.OpWrite, block.OpZeroAllocated:
			n += int64(blocksIn(op.Offset%block.Size+op.Length)) * block.Size
		case block.OpZero:
			if (op.Offset|op.Length)%block.Size != 0 {
				n += 2 * block.Size
			}
		}
	}
	if n > 0 {
		n += block.Size + n/512 // headers
	}
	return n
}

// admit lets a write begin; what it returns must be given back when the write is over. While there is
// no room, and reclaim may make some, the writer waits. block.ErrNoSpace.
func (s *space) admit(ctx context.Context, p *Pool, ops []*block.Op) (int64, error) {
	n := needs(ops)
	if n == 0 {
		return 0, s.spare(ctx, p)
	}
	return n, s.admitBytes(ctx, p, n)
}

// admitBytes is admit for so many bytes of log.
func (s *space) admitBytes(ctx context.Context, p *Pool, n int64) error {
	if s.take(p, n) {
		return nil
	}
	s.look(p)
	r := &p.reclaimer
	for first := s.cycles.Load(); !s.take(p, n); {
		if !r.running || s.cycles.Load()-first >= maxPressed || !s.hopeful(p) {
			s.observe(p, true)
			return fmt.Errorf("%w: %s", block.ErrNoSpace, s.describe(p))
		}
		s.throttled(p)
		if err := s.await(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

// await has a cycle made, and returns when something was given back.
func (s *space) await(ctx context.Context, p *Pool) error {
	r := &p.reclaimer
	r.mu.Lock()
	relief := r.relief
	r.mu.Unlock()
	s.pressed.Store(true)
	select {
	case r.kick <- struct{}{}:
	default:
	}
	select {
	case <-relief:
		s.look(p)
		return nil
	case <-r.quit.Done():
		return fmt.Errorf("%w: %s", block.ErrNoSpace, s.describe(p))
	case <-ctx.Done():
		return ctx.Err()
	}
}

// spare sees to it that discards, which go on out of the reserve where there is no room, do not use it up: now and
// then one waits until what was discarded has been given back.
func (s *space) spare(ctx context.Context, p *Pool) error {
	for first := s.cycles.Load(); p.reclaimer.running && s.cycles.Load() == first; {
		if s.room(p) >= 0 || int64(p.log.BytesWritten()-s.cycledAt.Load()) < spareEvery {
			return nil
		}
		if err := s.await(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

func (s *space) release(n int64) { s.admitted.Add(-n) }

// hopeful tells whether a cycle may give something back that the last one for a writer did not.
func (s *space) hopeful(p *Pool) bool {
	return p.reclaimer.deleted.Load() || s.pressed.Load() || p.log.SpareBytes() > 0 || p.reclaimer.garbage(p)-s.left.Load() >= pressLeast
}

// press runs a cycle if a writer waits for space.
func (s *space) press(p *Pool) bool {
	if !s.pressed.Load() {
		return false
	}
	r := &p.reclaimer
	garbage, freed := r.garbage(p), r.freed.Load()
	r.cycle(p, cleanAll)
	r.keepSpares(p, 0)
	s.left.Store(garbage - (r.freed.Load() - freed)) // what was added meanwhile is for the next one
	s.cycledAt.Store(p.log.BytesWritten())
	s.cycles.Add(1)
	s.pressed.Store(false)
	return true
}

// fill is how full the pool is in percent, and of what: of its quota or of the file system, whichever is nearer.
func (s *space) fill(p *Pool) (percent int, of string) {
	owed := p.owed()
	total := max(s.total.Load(), 1)
	free := s.free.Load() - int64(p.log.BytesWritten()-s.lookedAt.Load()) - owed
	percent, of = int(100-100*(float64(free)/float64(total))), "the file system"
	if quota := s.quota.Load(); quota > 0 {
		if q := int(100 * float64(p.size()+owed) / float64(quota-s.reserve.Load())); q >= percent {
			percent, of = q, "the quota"
		}
	}
	return min(percent, full), of
}

func (s *space) describe(p *Pool) string {
	percent, of := s.fill(p)
	if of == "the quota" {
		return fmt.Sprintf("%d%% of the quota of %d MiB is used (less a reserve of %d MiB), %d KiB are left for writes",
			percent, s.quota.Load()>>20, s.reserve.Load()>>20, max(s.room(p), 0)>>10)
	}
	return fmt.Sprintf("%d%% of the file system of %d MiB is used, %d KiB are left for writes", percent, s.total.Load()>>20, max(s.room(p), 0)>>10)
}

// observe tells when a level is reached: once, until the pool has been well below it. refused
// means that a write was.
func (s *space) observe(p *Pool, refused bool) {
	percent, _ := s.fill(p)
	reached := 0
	for _, l := range levels {
		if percent >= l {
			reached = l
		}
	}
	if refused {
		reached = full
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if reached > s.level {
		before := s.level
		s.level = reached
		switch now := p.opts.Clock(); {
		case reached < full:
			p.event(EventSpace, "pool", s.describe(p)+"; delete snapshots or volumes, or give it more")
		case now.Sub(s.told) >= toldAgain:
			s.told = now
			p.event(EventSpaceFull, "pool", "writes are refused: "+s.describe(p)+"; delete snapshots or volumes, or give it more")
		default:
			s.level = before // so that it is told when the time has come
		}
		return
	}
	for s.level > 0 && percent < s.level-rearmed {
		lower := 0
		for _, l := range levels {
			if l < s.level {
				lower = l
			}
		}
		s.level = lower
	}
}

// throttled tells that writers wait.
func (s *space) throttled(p *Pool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := p.opts.Clock(); now.Sub(s.toldWaiting) >= toldAgain {
		s.toldWaiting = now
		p.event(EventSpaceThrottled, "pool", "writers wait until space has been given back: "+s.describe(p))
	}
}
