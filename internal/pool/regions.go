package pool

import (
	"context"
	"errors"
	"slices"
	"sync"

	"varve/internal/block"
	"varve/internal/pool/blockmap"
	"varve/internal/pool/catalogue"
	"varve/internal/pool/seglog"
)

// regions tells where a mirrored volume and its leg may differ: see docs/design/mirror.md. What is recorded durably is in a map of an
// internal volume; in memory are two bits for each region, and what is being written.
type regions struct {
	pool  *Pool
	set   *volume // the internal one: a region is recorded if it is known there
	count uint64

	// recording is held while the set is changed, so that it is in the order in which recorded is.
	recording sync.Mutex

	mu       sync.Mutex
	recorded bitset // in the set, or in a batch on its way there
	differs  bitset // those of them that have to be copied
	clean    int    // how many are recorded and need not be copied
	// copied: regions from here on have to be copied as well, and need not be recorded from claimed on, which is the most that a crash may find in the
	// catalogue as synced: what set copied back may be lost in it.
	copied  uint64
	synced  uint64
	claimed uint64
	resets  int               // how often copied was set back
	busy    map[uint64]int    // how many writers are in a region
	next    *batch            // what is to be recorded next, or nil
	unsure  map[uint64]*batch // regions whose record is not durable yet
	fading  bitset            // those that are being cleared, unless somebody enters them
	entered uint64            // counts those who came
}

// batch is regions that are recorded together.
type batch struct {
	regions []uint64
	done    bool
	err     error
}

// manyRecorded is how many clean regions are recorded before they are cleared: after a crash as many MiB are copied.
const manyRecorded = 8192

func newRegions(p *Pool, set *volume, sizeBytes int64) *regions {
	count := uint64((sizeBytes + catalogue.RegionBytes - 1) / catalogue.RegionBytes)
	return &regions{
		pool: p, set: set, count: count, recorded: newBitset(count), differs: newBitset(count),
		busy: map[uint64]int{}, unsure: map[uint64]*batch{},
	}
}

// load takes over what is recorded, all of which has to be copied, as has what lies behind synced.
func (r *regions) load(ctx context.Context, synced uint64) error {
	r.set.mu.RLock()
	root := r.set.tree.View()
	r.set.mu.RUnlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.synced = min(synced, r.count)
	r.copied, r.claimed = r.synced, r.synced
	return r.pool.keptWithin(ctx, root, 0, r.count, func(lo, hi uint64) {
		for n := lo; n < hi; n++ {
			r.recorded.set(n)
			r.differs.set(n)
		}
	})
}

// regionsOf returns the regions that ranges of blocks lie in.
func regionsOf(blocks []span) []span {
	out := make([]span, len(blocks))
	for i, s := range blocks {
		out[i] = span{s.lo / regionBlocks, (s.hi + regionBlocks - 1) / regionBlocks}
	}
	return united(out)
}

// enter notes a writer in each region, and returns when it is durable that they may differ. Whoever has entered must leave, also
// after an error.
func (r *regions) enter(in []span) error {
	var wait []*batch
	r.mu.Lock()
	r.entered++
	for _, s := range in {
		for n := s.lo; n < s.hi; n++ {
			r.busy[n]++
			r.fading.clear(n)
			if n >= max(r.copied, r.claimed) {
				continue
			}
			if !r.recorded.has(n) {
				r.record(n)
				r.ahead(n)
			}
			if b := r.unsure[n]; b != nil && !slices.Contains(wait, b) {
				wait = append(wait, b)
			}
		}
	}
	r.mu.Unlock()
	for _, b := range wait {
		if err := r.commit(b); err != nil {
			return err
		}
	}
	return nil
}

// leave ends what enter began. With differ, the regions have to be copied.
func (r *regions) leave(in []span, differ bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range in {
		for n := s.lo; n < s.hi; n++ {
			if r.busy[n]--; r.busy[n] == 0 {
				delete(r.busy, n)
			}
			if differ {
				r.differ(n)
			}
		}
	}
}

// record puts a region into the next batch, unless it is recorded already; mu is held.
func (r *regions) record(n uint64) {
	if r.recorded.has(n) {
		return
	}
	r.recorded.set(n)
	r.clean++
	if r.next == nil {
		r.next = &batch{}
	}
	r.next.regions = append(r.next.regions, n)
	r.unsure[n] = r.next
}

// aheadRegions is how many regions are recorded at once where somebody seems to write one after the other.
const aheadRegions = 16

// ahead records what is likely to be written next after region n; mu is held.
func (r *regions) ahead(n uint64) {
	if n < 2 || !r.recorded.has(n-1) || !r.recorded.has(n-2) {
		return
	}
	for i := n + 1; i < min(n+aheadRegions, r.copied); i++ {
		r.record(i)
	}
}

// differ has a region copied, if it is recorded; else it lies behind copied. mu is held.
func (r *regions) differ(n uint64) {
	if r.recorded.has(n) && !r.differs.has(n) {
		r.differs.set(n)
		r.clean--
	}
}

// copy notes that a recorded region need not be copied; mu is held.
func (r *regions) copy(n uint64) {
	if r.differs.has(n) {
		r.differs.clear(n)
		r.clean++
	}
}

// mark records regions that have to be copied, durably.
func (r *regions) mark(in []span) error {
	err := r.enter(in)
	r.leave(in, err == nil)
	return err
}

// commit returns when a batch is durable. Who comes first does it for all that have come until then.
func (r *regions) commit(b *batch) error {
	r.recording.Lock()
	defer r.recording.Unlock()
	if b.done {
		return b.err
	}
	r.mu.Lock()
	r.next = nil // it is b: all before it are done
	r.mu.Unlock()
	b.err = r.write(b.regions)
	b.done = true
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range b.regions {
		delete(r.unsure, n)
		if b.err != nil { // nobody has written to it, or it was copied and is so again
			r.copy(n)
			r.recorded.clear(n)
			r.clean--
		}
	}
	if b.err != nil && r.copied > r.synced {
		r.copied = r.synced
		r.resets++
	}
	return b.err
}

// write puts regions into the set, durably.
func (r *regions) write(in []uint64) error {
	slices.Sort(in)
	p := r.pool
	for len(in) > 0 {
		w := writes.Get().(*write)
		pins := p.store.NewPins()
		for len(in) > 0 && len(w.changes) < maxRequestChanges {
			n := 1
			for n < len(in) && in[n] == in[0]+uint64(n) && blockmap.LeafOf(in[n]) == blockmap.LeafOf(in[0]) {
				n++
			}
			var e [1]blockmap.Entry // applying it must read nothing
			if err := r.set.lookup(pins, in[0], e[:]); err != nil {
				w.release()
				return damaged(err)
			}
			w.changes = append(w.changes, change{volume: r.set, pins: pins, entry: seglog.Entry{
				Kind: seglog.KindZero, Volume: r.set.number, LBA: in[0], Count: uint64(n),
			}})
			in = in[n:]
		}
		err := p.commitChanges(w)
		w.release()
		if err != nil {
			return err
		}
	}
	return p.log.Flush(p.log.LastSeq())
}

// settle commits what is to be recorded and nobody waits for.
func (r *regions) settle() error {
	r.mu.Lock()
	b := r.next
	r.mu.Unlock()
	if b == nil { // what is on its way there is waited for
		r.recording.Lock()
		defer r.recording.Unlock()
		return nil
	}
	return r.commit(b)
}

// clear takes those regions out of the set that nobody enters while sync makes both sides durable.
func (r *regions) clear(ctx context.Context, sync func() error) error {
	r.mu.Lock()
	if r.fading != nil || r.clean == 0 { // somebody does it already
		r.mu.Unlock()
		return nil
	}
	r.fading = r.recorded.without(r.differs)
	for n := range r.busy {
		r.fading.clear(n)
	}
	for n := range r.unsure {
		r.fading.clear(n)
	}
	r.mu.Unlock()
	err := sync()
	r.recording.Lock()
	defer r.recording.Unlock()
	r.mu.Lock()
	gone := r.fading
	r.fading = nil
	if err == nil {
		gone = gone.without(r.differs) // a leg may have failed
		r.recorded = r.recorded.without(gone)
		r.clean -= gone.count()
	}
	r.mu.Unlock()
	if err != nil {
		return err
	}
	return r.set.forget(ctx, gone)
}

// forget unmaps blocks of an internal volume. One that stays is copied once more after a crash, and does no harm else.
func (v *volume) forget(ctx context.Context, gone bitset) error {
	b := builder{volume: v}
	b.begin()
	defer func() { b.write.release() }()
	op := block.Op{Kind: block.OpDiscard}
	for lo, hi := gone.run(0); lo < hi && op.Err == nil; lo, hi = gone.run(hi) {
		for lo < hi && op.Err == nil {
			end := min(hi, blockmap.LeafOf(lo)+blockmap.LeafBlocks)
			p := piece{lo: int64(lo) * block.Size, hi: int64(end) * block.Size}
			b.add(&op, &p)
			lo = end
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	b.flush()
	return op.Err
}

// reset has everything copied.
func (r *regions) reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.copied, r.synced = 0, 0
	r.resets++
}

// unclaim notes that no crash finds any region that is the same, unless it is synced again.
func (r *regions) unclaim() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.claimed = r.synced
}

// all has everything copied that is recorded, or was copied and not synced since, or is being copied: a sync that failed may have forgotten it.
func (r *regions) all() {
	r.mu.Lock()
	defer r.mu.Unlock()
	copy(r.differs, r.recorded)
	r.clean = 0
	r.copied = r.synced
	r.resets++
}

// different tells how many regions have to be copied.
func (r *regions) different() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.count - r.copied + uint64(r.differs.countBelow(r.copied))
}

// damagedSet tells an error that means that the set cannot be relied on any more.
func damagedSet(err error) bool {
	return errors.Is(err, block.ErrDamaged) || errors.Is(err, blockmap.ErrDamaged)
}
