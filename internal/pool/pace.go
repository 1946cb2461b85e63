package pool

import (
	"context"
	"time"
)

// Space is given back in cycles as garbage grows, and writers are slowed down as the log comes near to its
// bound, so that they write as fast as cycles clean: see docs/design/reclaim.md.
const (
	reclaimLeast = 32 << 20 // garbage that is not worth a cycle
	// The log may take 1.3 times what is live and 256 MiB. Some of that is for the reserve, and for a file that is being
	// rewritten when the bound is reached.
	spaceSlack = 184 << 20
	spaceTenth = 3
	// paceRate is how fast all writers together go when half of the room is left in which they are slowed down, in bytes a second.
	// With less room left they go slower in proportion to what is left of it and what is not, down to paceLeast.
	paceRate  = 256 << 20
	paceLeast = 8 << 20
	// spareMost of spare files are enough for a second or two of writing, until the first cycle gives some back. Unless somebody
	// asks for all that can be given back, spareIdle of them are kept however little is live.
	spareMost = 256 << 20
	// spareLimit bounds the spare files of busy writers too: each is a file that stays open.
	spareLimit = 4 << 30
	spareIdle  = 32 << 20
	// paceGrain is the least that a writer waits, as short sleeps last longer than they should.
	paceGrain = time.Millisecond
)

// goal tells how much garbage a cycle may leave, where so much is live, and the emptiest file that is left is live to share. The less
// garbage is left, the more live blocks are copied for each that is freed.
type goal func(live int64, share float64) int64

// Goals: everything; while nobody writes; and while somebody does, which leaves what would cost more than it gives.
func cleanAll(int64, float64) int64         { return 0 }
func cleanWell(live int64, _ float64) int64 { return live/20 + 16<<20 }
func cleanBusy(live int64, share float64) int64 {
	if share < 0.5 {
		return live/10 + 48<<20
	}
	return live/5 + 48<<20
}

// leastGarbage is what is worth a cycle, worthBusy all that there is when one begins while somebody writes.
func leastGarbage(live int64) int64 { return max(reclaimLeast, live/20) }
func worthBusy(live int64) int64    { return cleanBusy(live, 1) + leastGarbage(live) }

// liveBytes is what is live now, as far as known.
func (r *reclaimer) liveBytes() int64 { return max(r.marked.Load()+r.live.Load(), 0) }

// garbage estimates what could be given back.
func (r *reclaimer) garbage(p *Pool) int64 {
	return r.physical.Load() + int64(p.log.BytesWritten()) - r.liveBytes()
}

// worth tells whether a cycle should run: because a state went, or as much of one was discarded, or garbage has
// grown, or writers wait.
func (r *reclaimer) worth(p *Pool) bool {
	live, garbage, left := r.liveBytes(), r.garbage(p), r.left.Load()
	least := leastGarbage(live)
	return r.deleted.Load() && time.Now().UnixNano() > r.earliest.Load() || r.over(p) ||
		r.liveThen.Load()-live+r.unsure.Load() > least || garbage > max(left+least, worthBusy(live)) ||
		r.room(p) < r.slow() && garbage-left > least/4
}

// room is how much the log may still grow by. Spare files do not count: a segment that is made of
// one takes nothing more, and none is made without as long as there are any.
func (r *reclaimer) room(p *Pool) int64 {
	return r.liveBytes()/10*spaceTenth + spaceSlack - r.garbage(p) + r.pins.bytes.Load()
}

// over tells whether writers must wait, beside those who write that much already. Where cycles give nothing back they need not: they go on for
// as long as is not worth a cycle, until the next one has shown the same.
func (r *reclaimer) over(p *Pool) bool { return r.overBy(p, r.granted.Load()) }

func (r *reclaimer) overBy(p *Pool, granted int64) bool {
	return r.room(p) < granted && !(r.stuck.Load() && r.garbage(p)-r.left.Load() < reclaimLeast)
}

// slow is the room that is left where slowing down begins.
func (r *reclaimer) slow() int64 { return r.liveBytes()/20 + 32<<20 }

// spareRoom is how much removed files may take while somebody writes: never more than the bound leaves room for, beside the
// one that is being written and counts only as far as it is.
func (r *reclaimer) spareRoom(p *Pool) int64 {
	return max(0, min(r.room(p)-p.super.Load().segmentBytes, p.space.room(p), spareLimit))
}

// spareFew is how much they may take while nobody does, for those who will: a twentieth of what is live, and so much more.
func (r *reclaimer) spareFew(p *Pool, more int64) int64 {
	return min(r.spareRoom(p), r.liveBytes()/20+more, spareMost)
}

// noticed wakes the reclaimer if there is something to do.
func (r *reclaimer) noticed(p *Pool) {
	if r.running && r.worth(p) {
		select {
		case r.kick <- struct{}{}:
		default:
		}
	}
}

func (r *reclaimer) relieve() {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.relief)
	r.relief = make(chan struct{})
	r.next = time.Time{} // who waits finds his place anew
}

// grant lets somebody write so many bytes, unless others use up what room there is.
func (r *reclaimer) grant(p *Pool, bytes int64) bool {
	for {
		before := r.granted.Load()
		if r.overBy(p, before) {
			return false
		}
		if r.granted.CompareAndSwap(before, before+bytes) {
			return true
		}
	}
}

// written takes back what throttle has granted, as it is in the log now, or will not be.
func (r *reclaimer) written(bytes int64) {
	if r.running {
		r.granted.Add(-bytes)
	}
}

// throttle holds somebody back who is about to write so many bytes: for a while where little room is left, and where none
// is, until there is. Without an error, written must follow.
func (r *reclaimer) throttle(ctx context.Context, p *Pool, bytes int64) error {
	if !r.running || bytes == 0 {
		return nil
	}
	for !r.grant(p, bytes) {
		relief := r.reliefSoon()
		if r.grant(p, bytes) {
			break
		}
		r.noticed(p)
		if err := r.wait(ctx, relief, time.Hour); err != nil {
			return err
		}
		if r.quit.Err() != nil { // the pool is being closed, and does not wait for cycles
			r.granted.Add(bytes)
			return nil
		}
	}
	for start := time.Now(); r.quit.Err() == nil; {
		relief := r.reliefSoon()
		d := r.delay(r.room(p)-r.granted.Load()+bytes, bytes) - time.Since(start)
		if d < paceGrain {
			break
		}
		timer := time.Now().Add(d)
		if err := r.wait(ctx, relief, d); err != nil {
			r.written(bytes)
			return err
		}
		if !time.Now().Before(timer) {
			break
		}
	}
	return nil
}

// reliefSoon returns what is closed when something has been given back.
func (r *reclaimer) reliefSoon() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.relief
}

// delay returns how long somebody waits who writes so many bytes, behind all who wait already.
func (r *reclaimer) delay(room, bytes int64) time.Duration {
	slow := r.slow()
	if room >= slow || r.stuck.Load() {
		return 0
	}
	rate := max(paceRate*float64(room)/float64(max(slow-room, 1)), paceLeast)
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.next.Before(now) {
		r.next = now
	}
	r.next = r.next.Add(time.Duration(float64(bytes) / rate * float64(time.Second)))
	if d := r.next.Sub(now); d >= paceGrain {
		return d
	}
	return 0
}

func (r *reclaimer) wait(ctx context.Context, relief <-chan struct{}, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-relief:
	case <-t.C:
	case <-r.quit.Done():
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}
