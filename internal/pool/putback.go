package pool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"

	"varve/internal/block"
	"varve/internal/pool/blockmap"
	"varve/internal/pool/catalogue"
)

// Range is a run of bytes.
type Range struct{ Offset, Length int64 }

// PutBack tells what a rollback that copied has done.
type PutBack struct {
	Kept   SnapshotInfo // the present as it was
	Ranges []Range      // that are as they were then: in ascending order, with something between any two
	Bytes  int64        // of them, what differed and was put back, in whole blocks but for the end of the volume
}

// RollbackRanges makes ranges of a volume what they are in a snapshot, leaves the rest as it is, and keeps the present as an
// automatic snapshot, as Rollback does. What does not differ from the present is not written. Ranges may overlap; they are of whole
// blocks, but where the volume or the snapshot ends. progress may be nil; it is told how much is done, from 0 to 1, may take its
// time, and its error ends the work.
//
// It takes as long as copying takes, is for others one instant at its end, and leaves nothing behind if it fails or the pool is closed
// or crashes before. ErrInvalid (of ranges as well); ErrInUse: a device that has written is open, at the beginning or the end, or the
// volume was changed meanwhile; block.ErrNoSpace; those of Rollback.
func (p *Pool) RollbackRanges(ctx context.Context, ref SnapshotRef, ranges []Range, progress func(done float64) error) (PutBack, Timing, error) {
	if ranges == nil {
		ranges = []Range{} // which is refused
	}
	return p.rollbackTo(ctx, ref, ranges, progress)
}

// RollbackCopy makes all of a volume what a copy of it holds, and is else as RollbackRanges. A redirect volume gets the copy's size.
func (p *Pool) RollbackCopy(ctx context.Context, ref SnapshotRef, progress func(done float64) error) (PutBack, Timing, error) {
	return p.rollbackTo(ctx, ref, nil, progress)
}

// rollbackTo is RollbackRanges, or RollbackCopy if ranges is nil.
func (p *Pool) rollbackTo(ctx context.Context, ref SnapshotRef, ranges []Range, progress func(float64) error) (done PutBack, t Timing, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("roll back to %q: %w", ref, err)
		}
	}()
	dev, err := p.OpenSnapshot(ref) // so that nobody deletes it
	if err != nil {
		return PutBack{}, Timing{}, err
	}
	defer func() { _ = dev.Close() }() // nothing was written to it
	p.mu.RLock()
	s := p.cat.State(dev.state)
	rec := p.cat.Volume(s.Volume)
	v := p.volumes[rec.Number]
	from := former{state: s.ID, content: dev, sizeBytes: s.SizeBytes}
	ranges, err = p.checkRollback(rec, s, ranges)
	if ranges != nil {
		from.sizeBytes = 0
	}
	if err == nil && p.comparable(s, p.cat.Head(rec)) != nil {
		from.state = 0
	}
	p.mu.RUnlock()
	if err != nil {
		return PutBack{}, Timing{}, err
	}
	return p.rollbackByCopy(ctx, v, from, ranges, progress)
}

// CheckRollback tells why RollbackRanges, or RollbackCopy if ranges is nil, would refuse, but for whoever has the volume open.
func (p *Pool) CheckRollback(ref SnapshotRef, ranges []Range) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	v, s, err := findSnapshot(p.cat, ref)
	if err == nil {
		_, err = p.checkRollback(v, s, ranges)
	}
	if err != nil {
		return fmt.Errorf("roll back to %q: %w", ref, err)
	}
	return nil
}

// checkRollback returns what checkRanges makes of ranges that are to be rolled back to a snapshot, or nil; mu is held.
func (p *Pool) checkRollback(v *catalogue.Volume, s *catalogue.State, ranges []Range) ([]Range, error) {
	if _, err := findLive(p.cat, v.Name); err != nil {
		return nil, err
	}
	if err := p.rollable(p.cat, v, s); err != nil || ranges == nil {
		return nil, err
	}
	return checkRanges(ranges, p.cat.Head(v).SizeBytes, s.SizeBytes)
}

// CheckUnwritten is ErrInUse while a device of a volume is open that has written to it.
func (p *Pool) CheckUnwritten(name string) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	v, err := findVolume(p.cat, name)
	if err == nil && p.volumes[v.Number].writers() > 0 {
		err = writtenTo(name)
	}
	return err
}

// checkRanges returns ranges of a volume and a snapshot of these sizes in order and united.
func checkRanges(ranges []Range, volume, snapshot int64) ([]Range, error) {
	if len(ranges) == 0 {
		return nil, fmt.Errorf("%w: no range named", ErrInvalid)
	}
	end, what := volume, "volume"
	if snapshot < volume {
		end, what = snapshot, "snapshot"
	}
	var spans []span
	for _, r := range ranges {
		last := r.Offset + r.Length
		fail := func(format string, args ...any) error {
			return fmt.Errorf("%w range %d+%d: %s", ErrInvalid, r.Offset, r.Length, fmt.Sprintf(format, args...))
		}
		switch {
		case r.Offset < 0 || r.Length < 0:
			return nil, fail("it is negative")
		case r.Length == 0:
			return nil, fail("it is empty")
		case r.Offset%block.Size != 0:
			return nil, fail("its offset is no multiple of %d", block.Size)
		case last < 0 || last > end:
			return nil, fail("it ends beyond the %s, which has %d bytes", what, end)
		case last%block.Size != 0 && last != end:
			return nil, fail("its length is no multiple of %d, and it does not end where the %s does", block.Size, what)
		}
		spans = append(spans, span{uint64(r.Offset), uint64(last)})
	}
	out := make([]Range, 0, len(spans))
	for _, s := range united(spans) {
		out = append(out, Range{int64(s.lo), int64(s.hi - s.lo)})
	}
	return out, nil
}

// former is content that a volume had once and is to have again.
type former struct {
	// state has the map of that instant, in the lineage of the volume: what differs from the present is told by that. It need
	// not hold data, as a bookmark does not. 0: nobody knows what differs, and all is read and compared.
	state   uint64
	content block.Device // what is read; who opened it sees to it that it stays
	// sizeBytes is what the volume is to have then: that of content, or 0 where only ranges are put back: what it has.
	sizeBytes int64
	// write, if not nil, is who knows the content instead, and writes it: see Rewrite.
	write func(ctx context.Context, target block.Device) error
	// keptAs is what the name begins with of the snapshot that keeps the present; empty: as after a rollback.
	keptAs string
}

// rollbackByCopy makes ranges of a volume what they are in from, or all of it if ranges is nil, as RollbackRanges says. Ranges are as
// checkRanges returns them.
//
// The present is kept as a pending snapshot, which nobody sees. What differs is written to an incomplete volume that is cloned from
// it. One record then has the volume go on as that one, and lists the snapshot. Before that record everything is undone by
// deleting the two, which opening the pool does too. See docs/design/pool.md; of inplace volumes, inplace.md.
func (p *Pool) rollbackByCopy(ctx context.Context, v *volume, from former, ranges []Range, progress func(float64) error) (PutBack, Timing, error) {
	if !v.puttingBack.CompareAndSwap(false, true) {
		return PutBack{}, Timing{}, fmt.Errorf("volume %q: %w: it is being rolled back already", v.name(), ErrInUse)
	}
	defer v.puttingBack.Store(false)
	if progress == nil {
		progress = func(float64) error { return nil }
	}
	if ranges == nil {
		ranges = []Range{{0, from.sizeBytes}}
	}
	if err := progress(0); err != nil {
		return PutBack{}, Timing{}, err
	}
	b := putter{pool: p, volume: v, from: from, name: fmt.Sprintf("(rollback of %d)", v.number), done: PutBack{Ranges: ranges}}
	t, err := b.run(ctx, progress)
	if err != nil {
		return PutBack{}, t, errors.Join(err, b.undo())
	}
	b.done.Kept = p.describe([]uint64{b.kept})[0]
	return b.done, t, nil
}

// putter is a rollback that copies, under way.
type putter struct {
	pool   *Pool
	volume *volume
	from   former
	name   string  // of the volume that is filled, which no user can give
	kept   uint64  // the snapshot that keeps the present; 0: not made yet
	device *Device // of what is filled
	done   PutBack
	buf    []byte
}

func (b *putter) run(ctx context.Context, progress func(float64) error) (Timing, error) {
	if err := b.keepPresent(); err != nil {
		return Timing{}, err
	}
	if err := b.begin(ctx); err != nil {
		return Timing{}, err
	}
	var err error
	if b.from.write != nil {
		err = b.from.write(ctx, &rewriting{putter: b})
	} else {
		err = b.fill(ctx, progress)
	}
	if e := b.device.Close(); err == nil {
		err = e
	}
	if err != nil {
		return Timing{}, err
	}
	return b.finish()
}

// keepPresent makes the snapshot that keeps the present, pending.
func (b *putter) keepPresent() error {
	p := b.pool
	var gates []*place
	if pl := b.volume.place; pl != nil {
		gates = append(gates, pl)
	}
	open := sync.OnceValue(shut(gates))
	defer open()
	var id uint64
	_, err := p.change(func(c *catalogue.Catalogue) (proposal, error) {
		v := c.Volume(b.volume.number)
		if v == nil {
			return proposal{}, ErrNotFound
		}
		if err := p.unwritten(v); err != nil {
			return proposal{}, err
		}
		if b.from.sizeBytes == 0 {
			b.from.sizeBytes = c.Head(v).SizeBytes
		}
		if err := p.fits(c, v, b.from.sizeBytes); err != nil {
			return proposal{}, err
		}
		if last := b.done.Ranges[len(b.done.Ranges)-1]; last.Offset+last.Length > b.from.sizeBytes {
			return proposal{}, fmt.Errorf("%w range %d+%d: the volume was shrunk to %d bytes meanwhile", ErrInvalid, last.Offset, last.Length, b.from.sizeBytes)
		}
		now := p.opts.Clock().UTC()
		id = c.LastState + 1
		op := &catalogue.CreateSnapshots{
			Name: freeName(c, v, keptName(cmp.Or(b.from.keptAs, keptByRollback), now)), CreatedAt: now.UnixNano(), Group: uuid.New(),
			Of: []catalogue.NewSnapshot{{Volume: v.Number, ID: id, UUID: uuid.New(), Pending: true}},
		}
		return proposal{op: &catalogue.Op{CreateSnapshots: op}, after: func() { open() }}, nil
	})
	if err == nil {
		b.kept = id
	}
	return err
}

// begin makes the volume that is filled, a clone of the present, and opens it.
func (b *putter) begin(ctx context.Context) error {
	p := b.pool
	_, err := p.change(func(c *catalogue.Catalogue) (proposal, error) {
		v, kept := c.Volume(b.volume.number), c.State(b.kept)
		if v == nil {
			return proposal{}, ErrNotFound
		}
		return proposal{op: &catalogue.Op{CreateVolume: &catalogue.CreateVolume{
			Number: c.LastVolume + 1, UUID: uuid.New(), Name: b.name, SizeBytes: kept.SizeBytes, CreatedAt: p.opts.Clock().UnixNano(),
			HeadID: c.LastState + 1, From: b.kept, Base: v.Base, Incomplete: true,
		}}}, nil
	})
	if err != nil {
		return err
	}
	if b.device, err = p.OpenIncomplete(b.name); err != nil {
		return err
	}
	label := b.volume.name()
	b.device.volume.label.Store(&label) // what goes wrong with it is told of the volume
	b.device.volume.internal = true
	if err := b.resize(ctx); err != nil {
		return errors.Join(err, b.device.Close())
	}
	return nil
}

// resize gives what is filled the size that the volume is to have.
func (b *putter) resize(ctx context.Context) error {
	p, v := b.pool, b.device.volume
	old, size := v.size.Load(), b.from.sizeBytes
	if old == size {
		return nil
	}
	if err := v.bringEnd(ctx, size); err != nil {
		return err
	}
	_, err := p.changeContent(v, func(*catalogue.Catalogue) (pr proposal, err error) {
		pr.op = &catalogue.Op{ResizeVolume: &catalogue.ResizeVolume{Number: v.number, SizeBytes: size}}
		if size < old {
			err = p.cutOff(&pr, v, size, old)
		}
		return pr, err
	})
	return err
}

// finish has the volume go on as what was filled, if it still is what was kept.
func (b *putter) finish() (Timing, error) {
	p, v := b.pool, b.volume
	return p.changeContent(v, func(c *catalogue.Catalogue) (proposal, error) {
		rec, filled := c.Volume(v.number), c.VolumeByName(b.name)
		if rec == nil || filled == nil {
			return proposal{}, fmt.Errorf("volume %q: %w: it was deleted meanwhile", v.name(), ErrNotFound)
		}
		if err := p.fits(c, rec, b.from.sizeBytes); err != nil { // it may be mirrored by now
			return proposal{}, err
		}
		if err := p.unwritten(rec); err != nil {
			return proposal{}, err
		}
		if same, err := b.unchanged(c, rec); err != nil {
			return proposal{}, err
		} else if !same {
			return proposal{}, fmt.Errorf("volume %q: %w: it was changed meanwhile", v.name(), ErrInUse)
		}
		op := &catalogue.PutBack{Volume: v.number, Filled: filled.Number, Kept: b.kept}
		if v.place != nil {
			op.Was = c.LastState + 1
		}
		return proposal{op: &catalogue.Op{PutBack: op}, urgent: true, deletes: []uint64{filled.Head}}, nil
	})
}

// unchanged tells whether the volume is what was kept of it.
func (b *putter) unchanged(c *catalogue.Catalogue, v *catalogue.Volume) (bool, error) {
	p, head, kept := b.pool, c.Head(v), c.State(b.kept)
	if !c.Descends(head, kept) || head.SizeBytes != kept.SizeBytes { // snapshots that were made meanwhile change nothing
		return false, nil
	}
	pins := p.store.NewPins()
	blocks := blocksIn(head.SizeBytes)
	for lba := uint64(0); lba < blocks; {
		var n uint64
		var differs bool
		err := waitFor(pins, func() (err error) {
			n, differs, err = b.volume.differs(pins, kept.Root, lba, blocks-lba)
			return err
		})
		if err != nil || differs {
			return false, damaged(err)
		}
		lba += n
	}
	return true, nil
}

// undo deletes what was made.
func (b *putter) undo() error {
	p := b.pool
	if b.kept == 0 || !p.begin() { // or it is done when the pool is opened again
		return nil
	}
	defer p.end()
	p.mu.RLock()
	kept, filled := p.cat.State(b.kept), p.cat.VolumeByName(b.name)
	p.mu.RUnlock()
	if kept == nil || !kept.Pending { // it was never made, or the rollback is done after all
		return nil
	}
	if filled != nil {
		if err := p.deleteVolume(context.Background(), b.name, true); err != nil {
			return fmt.Errorf("undo it: %w", err)
		}
	}
	if err := p.deleteStates([]uint64{b.kept}); err != nil {
		return fmt.Errorf("undo it: %w", err)
	}
	return nil
}

// takeOver gives a volume the map of what was filled for it; mu is held.
func (p *Pool) takeOver(o *catalogue.PutBack) {
	v, filled := p.volumes[o.Volume], p.volumes[o.Filled]
	head := p.cat.Head(p.cat.Volume(o.Volume))
	filled.mu.Lock()
	root := filled.tree.Freeze(filled.tree.Epoch(), p.nextGen())
	filled.mu.Unlock()
	p.forgetVolume(filled)
	v.mu.Lock()
	if v.place != nil {
		p.cat.SetRoot(o.Was, v.tree.Freeze(v.tree.Epoch(), p.nextGen()))
	}
	v.tree = blockmap.NewTree(root, head.Epoch, 0, p.nextGen())
	v.size.Store(head.SizeBytes)
	v.version++
	v.mu.Unlock()
	if v.place != nil {
		v.place.rolledBack()
	}
	p.unsync(o.Volume)
	p.refreshKeep()
	p.statesWent()
}

// unwritten demands that nobody who has written to a volume has it open.
func (p *Pool) unwritten(v *catalogue.Volume) error {
	if p.writers(v.Number) > 0 {
		return writtenTo(v.Name)
	}
	return nil
}

func writtenTo(name string) error {
	return fmt.Errorf("volume %q: %w: a client that has written to it is connected; disconnect it first", name, ErrInUse)
}

// keptByRollback is what the names begin with of snapshots that keep what was there before a rollback.
const keptByRollback = "auto-before-rollback"

// keptName is what the snapshot is called that keeps the present of that time.
func keptName(why string, now time.Time) string {
	return why + "-" + now.Format("20060102t150405.000")
}
