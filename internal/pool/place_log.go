package pool

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"

	"varve/internal/block"
	"varve/internal/pool/seglog"
)

const (
	// smallBytes is how long a write may be that is logged. Longer ones are mostly of those who write in order, and for whom the
	// file is as fast: there the new data would be written twice for nothing.
	smallBytes = 64 << 10
	// loggedBytes is how much of small writes is logged at once.
	loggedBytes = 1 << 20
)

// errNoOverlay is why writes are not logged, but done in place.
var errNoOverlay = errors.New("there is no room in the log, or too much lies there already")

// loggedRound is a round of small writes. Of the blocks that need something kept, or are not in place, the new content goes into the log
// together with the old: who waits for no more than that needs no sync.
type loggedRound struct {
	survey
	ops    []*block.Op
	blocks []loggedBlock // that are logged, in order
	merged []byte        // memory of those that are no op's alone
	fresh  int           // how many of them get new versions
}

// loggedBlock is a block on its way into the log.
type loggedBlock struct {
	lba     uint64
	version uint64 // 0: it gets a new one
	data    []byte // what it becomes; nil: zeros
	parts   int    // ops that set something of it
	part    bool   // one of them does not set all
}

var loggedRounds = sync.Pool{New: func() any { return new(loggedRound) }}

func (r *loggedRound) release() {
	clear(r.blocks)
	r.place, r.pins, r.ops, r.fresh = nil, nil, nil, 0
	r.touched, r.keeps, r.behind, r.old = r.touched[:0], r.keeps[:0], r.behind[:0], r.old[:0]
	r.blocks, r.merged = r.blocks[:0], r.merged[:0]
	loggedRounds.Put(r)
}

// roundLogged performs small ops on spans, which are reserved. errNoOverlay: nothing was done, and they are to be done in place.
func (pl *place) roundLogged(ctx context.Context, ops []*block.Op, spans []span) error {
	for {
		if done, err := pl.tryLogged(ctx, ops, spans); done || err != nil {
			return err
		}
	}
}

// tryLogged is roundLogged unless a snapshot comes in between.
func (pl *place) tryLogged(ctx context.Context, ops []*block.Op, spans []span) (done bool, err error) {
	r := loggedRounds.Get().(*loggedRound)
	defer r.release()
	r.place, r.pins, r.ops = pl, pl.pool.store.NewPins(), ops
	if err := r.look(spans); err != nil {
		return false, damaged(err)
	}
	w := writes.Get().(*write)
	defer w.release()
	if r.choose(); len(r.blocks) > 0 {
		if !pl.overlay.room(r.fresh, pl.pool.space.room(pl.pool)) || len(r.keeps)+len(r.blocks) > seglog.MaxPayloadBlocks {
			pl.overlay.hurry()
			return false, errNoOverlay
		}
		bytes := int64(len(r.keeps)+len(r.blocks)+2) * block.Size
		if err := pl.pool.reclaimer.throttle(ctx, pl.pool, bytes); err != nil {
			return false, err
		}
		defer pl.pool.reclaimer.written(bytes)
		if !pl.pool.space.take(pl.pool, bytes) {
			return false, errNoOverlay
		}
		defer pl.pool.space.release(bytes)
		if err := r.build(w); err != nil {
			return false, err
		}
	}
	file, err := pl.get()
	if err != nil {
		return false, err
	}
	pl.gate.RLock()
	defer pl.gate.RUnlock()
	if _, epoch, err := pl.volume.present(); err != nil || epoch != r.epoch {
		return false, err // a snapshot was made meanwhile: it may want what was nobody's
	}
	if len(r.blocks) > 0 {
		if err := r.commit(w); err != nil {
			return false, err
		}
	}
	for _, op := range ops {
		op.Err = r.rest(op, func(part *block.Op) error { return pl.write(file, part) })
	}
	return true, nil
}

// choose finds which blocks are logged: those that get new versions, and of the others those that are not in place.
func (r *loggedRound) choose() {
	for _, t := range r.touched {
		for lba := t.lo; lba < t.hi; lba++ {
			r.blocks = append(r.blocks, loggedBlock{lba: lba})
		}
	}
	r.fresh = len(r.blocks)
	for _, b := range r.behind {
		if b.head.Epoch == r.epoch {
			v, _ := version(b.head)
			r.blocks = append(r.blocks, loggedBlock{lba: b.lba, version: v})
		}
	}
	if r.fresh < len(r.blocks) {
		slices.SortFunc(r.blocks, func(a, b loggedBlock) int { return cmp.Compare(a.lba, b.lba) })
	}
}

// at returns where the first logged block at or behind lba is among them.
func (r *loggedRound) at(lba uint64) int {
	i, _ := slices.BinarySearchFunc(r.blocks, lba, func(b loggedBlock, lba uint64) int { return cmp.Compare(b.lba, lba) })
	return i
}

// each calls f for each logged block that an op sets bytes of: those from lo up to hi of the block, which are what the op has from off on.
func (r *loggedRound) each(op *block.Op, f func(i int, lo, hi, off int64)) {
	end := op.Offset + op.Length
	for i := r.at(uint64(op.Offset) / block.Size); i < len(r.blocks); i++ {
		start := int64(r.blocks[i].lba) * block.Size
		if start >= end {
			return
		}
		lo, hi := max(op.Offset-start, 0), min(end-start, block.Size)
		f(i, lo, hi, start+lo-op.Offset)
	}
}

// rest performs what of an op lies in blocks that are not logged.
func (r *loggedRound) rest(op *block.Op, do func(part *block.Op) error) error {
	from, end := op.Offset, op.Offset+op.Length
	var err error
	upTo := func(to int64) {
		if to <= from || err != nil {
			return
		}
		part := block.Op{Kind: op.Kind, Offset: from, Length: to - from}
		if op.Kind == block.OpWrite {
			part.Data = op.Data[from-op.Offset : to-op.Offset]
		}
		err = do(&part)
	}
	r.each(op, func(_ int, lo, hi, off int64) {
		upTo(op.Offset + off)
		from = op.Offset + off + hi - lo
		if op.Kind == block.OpWrite {
			r.place.pool.clientBytes.Add(hi - lo)
		}
	})
	upTo(end)
	return err
}

// build makes the changes: the old content, the touches, the new content. The old lives on in the log, and the new is dead as soon as it is in the file. So
// every other round has the new content first: then what dies lies together in runs twice as long, which holes give back.
func (r *loggedRound) build(w *write) error {
	if err := r.fill(); err != nil {
		return err
	}
	steps := []func(*write) error{r.keepOld, r.keepNew}
	if r.place.overlay.rounds.Add(1)%2 == 0 {
		slices.Reverse(steps)
	}
	for _, step := range steps {
		if err := step(w); err != nil {
			return err
		}
	}
	return nil
}

// keepNew adds the touches and, behind them, the new content: no version may be kept that nobody has.
func (r *loggedRound) keepNew(w *write) error {
	next, err := r.place.versions(uint64(r.fresh))
	if err != nil {
		return err
	}
	first := next
	for _, t := range r.touched {
		w.changes = append(w.changes, r.touch(t, first))
		first += t.hi - t.lo
	}
	for i := range r.blocks {
		if b := &r.blocks[i]; b.version == 0 {
			b.version = next
			next++
		}
	}
	return r.place.addKept(w, r.pins, len(r.blocks), func(i int) (uint64, []byte) { return r.blocks[i].version, r.blocks[i].data })
}

// fill finds the new content of the blocks that are logged: a whole block of an op as it is, anything else merged.
func (r *loggedRound) fill() error {
	merged := 0
	for _, op := range r.ops {
		r.each(op, func(i int, lo, hi, off int64) {
			b := &r.blocks[i]
			b.parts++
			b.part = b.part || hi-lo < block.Size
			if op.Kind == block.OpWrite && hi-lo == block.Size {
				b.data = op.Data[off : off+block.Size]
			}
			if b.parts == 2 || b.parts == 1 && b.part {
				merged++
			}
		})
	}
	if merged == 0 {
		return nil
	}
	r.merged = slices.Grow(r.merged, merged*block.Size)
	for i := range r.blocks {
		b := &r.blocks[i]
		if b.parts == 1 && !b.part {
			continue
		}
		n := len(r.merged)
		r.merged = r.merged[:n+block.Size]
		b.data = r.merged[n:]
		if b.part {
			if err := r.present(b.lba, b.data); err != nil {
				return err
			}
		}
	}
	for _, op := range r.ops {
		r.each(op, func(i int, lo, hi, off int64) {
			b := &r.blocks[i]
			switch {
			case b.parts == 1 && !b.part:
			case op.Kind == block.OpWrite:
				copy(b.data[lo:hi], op.Data[off:])
			default:
				clear(b.data[lo:hi])
			}
		})
	}
	return nil
}

// present fills b with what the head has in a block.
func (r *loggedRound) present(lba uint64, b []byte) error {
	i, ok := slices.BinarySearchFunc(r.behind, lba, func(b behind, lba uint64) int { return cmp.Compare(b.lba, lba) })
	if !ok {
		return r.place.read(b, int64(lba)*block.Size, true)
	}
	return r.place.readVersion(r.pins, lba, r.behind[i].head, b)
}

// commit puts the changes into the log and the maps; the gate is held.
func (r *loggedRound) commit(w *write) error {
	o, p := r.place.overlay, r.place.pool
	more := 0 // that were not behind before
	lbas := make([]uint64, len(r.blocks))
	for i, b := range r.blocks {
		if lbas[i] = b.lba; !o.may(b.lba) {
			more++
		}
	}
	if !o.begin(more) {
		return errNoOverlay
	}
	err := p.commitChanges(w)
	if err != nil {
		lbas = nil
	}
	o.end(more, lbas, logged{r.epoch, p.log.LastSeq()})
	if errors.Is(err, block.ErrNoSpace) {
		return errNoOverlay
	}
	return err
}
