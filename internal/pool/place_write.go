package pool

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"varve/internal/block"
	"varve/internal/pool/blockmap"
	"varve/internal/pool/catalogue"
	"varve/internal/pool/seglog"
	"varve/internal/vfs"
)

const (
	// roundBytes is how much of a file is written between two looks at what has to be kept.
	roundBytes = 4 << 20
	roundBlks  = roundBytes / block.Size
)

// submit performs ops on an inplace volume, and sets their errors.
func (pl *place) submit(ctx context.Context, ops []*block.Op) {
	v := pl.volume
	if err := pl.admitted(ctx); err != nil {
		failAll(ops, fmt.Errorf("write volume %q: %w", v.name(), err))
		return
	}
	v.resize.RLock()
	defer v.resize.RUnlock()
	size := v.size.Load()
	var some []*block.Op // that are done together: all small, or none
	var length, most int64
	flush := func() {
		if len(some) > 0 {
			pl.round(ctx, some, most == loggedBytes)
			some, length = some[:0], 0
		}
	}
	for _, op := range ops {
		if op.Err = block.CheckRange(op.Offset, op.Length, size); op.Err != nil {
			op.Err = fmt.Errorf("write %d bytes at %d of volume %q, which has %d: %w", op.Length, op.Offset, v.name(), size, op.Err)
			continue
		}
		if op.Length == 0 {
			continue
		}
		if op.Kind == block.OpDiscard {
			flush()
			op.Err = pl.discard(ctx, op)
			continue
		}
		if op.Length > roundBytes {
			flush()
			pl.long(ctx, op)
			continue
		}
		limit := int64(roundBytes)
		if op.Length <= smallBytes && op.Kind != block.OpZeroAllocated {
			limit = loggedBytes
		}
		if length+op.Length > limit || limit != most {
			flush()
		}
		most = limit
		length += op.Length
		some = append(some, op)
	}
	flush()
}

// admitted waits as every writer does, and sees to it that the file can be written.
func (pl *place) admitted(ctx context.Context) error {
	if pl.readOnly {
		return fmt.Errorf("file %s: %w", pl.path, block.ErrReadOnly)
	}
	if _, err := pl.get(); err != nil {
		return err
	}
	if err := pl.pool.checkpointer.throttle(ctx, pl.pool); err != nil {
		return err
	}
	return pl.use()
}

// long performs an op piece by piece.
func (pl *place) long(ctx context.Context, op *block.Op) {
	for done := int64(0); done < op.Length && op.Err == nil; {
		// Pieces end where blocks do.
		n := min(roundBytes-(op.Offset+done)%block.Size, op.Length-done)
		if op.Kind == block.OpZero {
			hole, err := pl.zeroAlready(op.Offset+done, op.Length-done)
			if err != nil {
				op.Err = err
				return
			}
			if hole > 0 {
				done += hole
				continue
			}
		}
		part := block.Op{Kind: op.Kind, Offset: op.Offset + done, Length: n}
		if op.Kind == block.OpWrite {
			part.Data = op.Data[done : done+n]
		}
		pl.round(ctx, []*block.Op{&part}, false)
		op.Err = part.Err
		done += n
	}
}

// zeroAlready tells how many bytes from off on, in whole blocks, are a hole of the file, so that zeroing them is nothing. 0 while the
// file has not all: then it does not tell.
func (pl *place) zeroAlready(off, length int64) (int64, error) {
	file, err := pl.get()
	if err != nil || !pl.whole() {
		return 0, err
	}
	from, to, err := file.NextData(off)
	switch {
	case err != nil:
		return 0, pl.failed("describe", err)
	case from == to:
		return length, nil
	}
	return max(0, min(from-off, length)) / block.Size * block.Size, nil
}

// round performs ops of up to roundBytes. Small ones may be logged; else it has kept what they overwrite, and then writes them.
func (pl *place) round(ctx context.Context, ops []*block.Op, small bool) {
	spans := make([]span, len(ops))
	for i, op := range ops {
		spans[i] = span{uint64(op.Offset) / block.Size, blocksIn(op.Offset + op.Length)}
	}
	spans = united(spans)
	err := pl.together(ctx, ops, spans, small)
	if unreadable := errors.Is(err, block.ErrDamaged) || errors.Is(err, syscall.EIO); unreadable && len(ops) > 1 { // which is some op's, and not all
		for i := range ops {
			pl.round(ctx, ops[i:i+1], small)
		}
	} else if err != nil {
		failAll(ops, fmt.Errorf("write volume %q at %d: %w", pl.volume.name(), ops[0].Offset, err))
	}
}

// together performs ops on spans, or, with an error, none of them.
func (pl *place) together(ctx context.Context, ops []*block.Op, spans []span, small bool) error {
	release := pl.ranges.reserve(spans)
	defer release()
	err := errNoOverlay
	if small {
		err = pl.roundLogged(ctx, ops, spans)
	}
	if errors.Is(err, errNoOverlay) {
		err = pl.roundInPlace(ctx, ops, spans)
	}
	if errors.Is(err, block.ErrDamaged) { // what lies in the log is lost; in the log it can be replaced all the same
		if e := pl.roundLogged(ctx, ops, spans); !errors.Is(e, errNoOverlay) {
			err = e
		}
	}
	return err
}

// roundInPlace overwrites blocks, which are reserved, in the file.
func (pl *place) roundInPlace(ctx context.Context, ops []*block.Op, spans []span) error {
	open, err := pl.ready(ctx, spans)
	if err != nil {
		return err
	}
	defer open()
	file, err := pl.get()
	if err != nil {
		return err
	}
	for _, op := range ops {
		op.Err = pl.write(file, op)
	}
	return nil
}

// ready sees to it that spans, which are reserved, can be overwritten: the file has what the head has of them, whatever somebody else has is
// kept, and the head's map says that they change; durably. It returns with the gate taken, and what opens it.
func (pl *place) ready(ctx context.Context, spans []span) (open func(), err error) {
	for {
		s := survey{place: pl, pins: pl.pool.store.NewPins()}
		if err := s.look(spans); err != nil {
			return nil, damaged(err)
		}
		var err error
		switch {
		case len(s.behind) > 0: // a write that is cut short must leave what was there, not what was in place
			err = pl.bring(ctx, s.pins, s.behind)
		case len(s.touched) > 0:
			err = s.keep(ctx)
		}
		if errors.Is(err, errEpochPassed) || errors.Is(err, block.ErrNoSpace) && pl.dropSnapshots(ctx) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if len(s.behind) > 0 {
			continue
		}
		pl.gate.RLock()
		if _, epoch, err := pl.volume.present(); err == nil && epoch == s.epoch {
			return pl.gate.RUnlock, nil
		} else if err != nil {
			pl.gate.RUnlock()
			return nil, err
		}
		pl.gate.RUnlock() // a snapshot was made meanwhile: it may want what was nobody's
	}
}

// present returns the head's map and epoch.
func (v *volume) present() (blockmap.Root, uint64, error) {
	epoch, err := v.admit()
	if err != nil {
		return blockmap.Root{}, 0, err
	}
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.tree.View(), epoch, nil
}

// write performs one op on the file.
func (pl *place) write(file vfs.File, op *block.Op) error {
	var err error
	switch op.Kind {
	case block.OpWrite:
		err = file.WriteAt([][]byte{op.Data}, op.Offset)
		pl.pool.clientBytes.Add(op.Length)
	case block.OpZero:
		err = zeroFile(file, op.Offset, op.Length)
	default:
		err = writeZeros(file, op.Offset, op.Length)
	}
	pl.written.Add(1)
	if err != nil {
		return pl.failed("write", seglog.NoSpace(err))
	}
	return nil
}

// zeroFile makes a hole of the whole blocks of a range, and writes zeros to the rest.
func zeroFile(file vfs.File, off, length int64) error {
	end := off + length
	lo, hi := (off+block.Size-1)&^(block.Size-1), end&^(block.Size-1)
	if lo >= hi {
		return writeZeros(file, off, length)
	}
	err := writeZeros(file, off, lo-off)
	if err == nil {
		err = file.PunchHole(lo, hi-lo)
	}
	if err == nil {
		err = writeZeros(file, hi, end-hi)
	}
	return err
}

func writeZeros(file vfs.File, off, length int64) error {
	zeros := make([]byte, min(length, 1<<20))
	for length > 0 {
		n := min(length, int64(len(zeros)))
		if err := file.WriteAt([][]byte{zeros[:n]}, off); err != nil {
			return err
		}
		off += n
		length -= n
	}
	return nil
}

// discard makes holes of blocks that nobody but the head has. What would have to be kept is left alone, as a client that discards may expect nothing.
func (pl *place) discard(_ context.Context, op *block.Op) error {
	lo, hi := blocksIn(op.Offset), uint64(op.Offset+op.Length)/block.Size
	if op.Offset+op.Length == pl.volume.size.Load() {
		hi = blocksIn(op.Offset + op.Length)
	}
	for lo < hi {
		n := min(hi-lo, roundBlks)
		release := pl.ranges.reserve([]span{{lo, lo + n}})
		err := pl.discardOwn(lo, lo+n)
		release()
		if err != nil {
			return fmt.Errorf("discard of volume %q at %d: %w", pl.volume.name(), op.Offset, err)
		}
		if lo += n; lo < hi {
			hole, err := pl.zeroAlready(int64(lo)*block.Size, int64(hi-lo)*block.Size)
			if err != nil {
				return err
			}
			lo += uint64(hole) / block.Size
		}
	}
	return nil
}

func (pl *place) discardOwn(lo, hi uint64) error {
	pl.gate.RLock()
	defer pl.gate.RUnlock()
	file, err := pl.get()
	if err != nil {
		return err
	}
	_, epoch, err := pl.volume.present()
	if err != nil {
		return err
	}
	touches, _ := pl.watched()
	if !touches {
		if err := pl.pool.goneDurably(); err != nil {
			return err
		}
	}
	entries := make([]blockmap.Entry, hi-lo)
	if touches || !pl.whole() {
		pins := pl.pool.store.NewPins()
		err := pl.volume.lookup(pins, lo, entries)
		if err == nil && !pl.whole() {
			err = waitFor(pins, func() error { return pl.resolve(pins, entries) })
		}
		if err != nil {
			return damaged(err)
		}
	}
	// own is what is in place and nobody else has.
	own := func(e blockmap.Entry) bool {
		return (!touches || e.Epoch == epoch) && (e == blockmap.Entry{} || inFile(e))
	}
	for i := uint64(0); i < hi-lo; {
		n := uint64(1)
		is := own(entries[i])
		for i+n < hi-lo && own(entries[i+n]) == is {
			n++
		}
		if is {
			err := file.PunchHole(int64(lo+i)*block.Size, int64(n)*block.Size)
			pl.written.Add(1)
			if err != nil {
				return pl.failed("make a hole in", err)
			}
		}
		i += n
	}
	return nil
}

// watched tells whether what changes must be recorded, because the head has a parent of any kind, and returns the state that
// has data of which the head's blocks may be, or nil.
func (pl *place) watched() (touches bool, parent *catalogue.State) {
	p := pl.pool
	p.mu.RLock()
	defer p.mu.RUnlock()
	v := p.cat.Volume(pl.volume.number)
	if v == nil {
		return false, nil
	}
	head := p.cat.Head(v)
	return head.Parent != 0, p.cat.DataParent(head)
}

// bases returns the maps of the states that may have what is in place while a rollback is not copied back.
func (pl *place) bases() []blockmap.Root {
	p := pl.pool
	p.mu.RLock()
	defer p.mu.RUnlock()
	var out []blockmap.Root
	if v := p.cat.Volume(pl.volume.number); v != nil {
		for _, id := range v.Place.Bases {
			out = append(out, p.cat.State(id).Root)
		}
	}
	return out
}

// dropSnapshots deletes the volume's snapshots that were made to be given up where there is no room; false if there are none, or
// they are in use.
func (pl *place) dropSnapshots(ctx context.Context) bool {
	p := pl.pool
	p.mu.RLock()
	var names []SnapshotRef
	var states []uint64
	if v := p.cat.Volume(pl.volume.number); v != nil {
		for _, s := range p.cat.Snapshots(v) {
			if s.DropWhenFull && !s.Protected && !s.Pending {
				names, states = append(names, SnapshotRef{v.Name, s.Name}), append(states, s.ID)
			}
		}
	}
	p.mu.RUnlock()
	dropped := false
	for i, ref := range names {
		p.stopCopy(ctx, states[i])
		if err := p.DeleteSnapshots(ctx, []SnapshotRef{ref}); err == nil {
			dropped = true
			p.event(EventSnapshotDropped, ref.String(), "the pool is full, and it was made with --on-full drop-snapshot: its volume goes on without it")
		}
	}
	return dropped
}
