package pool

import (
	"context"
	"fmt"

	"varve/internal/block"
	"varve/internal/pool/catalogue"
	"varve/internal/vfs"
)

// mirroredBytes is how much of requests to a mirrored volume is done between two looks at its leg, and clearedBytes where nothing is written.
const (
	mirroredBytes = 4 << 20
	clearedBytes  = 1 << 30
)

// write performs ops on a volume, and on its leg if it has one, and sets their errors.
func (v *volume) write(ctx context.Context, ops []*block.Op) {
	if v.mirror.Load() == nil {
		v.round(ctx, ops)
		return
	}
	var some []*block.Op
	var length int64
	flush := func() {
		if len(some) > 0 {
			v.round(ctx, some)
			some, length = some[:0], 0
		}
	}
	for _, op := range ops {
		if op.Err = nil; op.Length > mirroredBytes {
			flush()
			v.long(ctx, op)
			continue
		}
		if length+op.Length > mirroredBytes {
			flush()
		}
		length += op.Length
		some = append(some, op)
	}
	flush()
}

// long performs an op piece by piece.
func (v *volume) long(ctx context.Context, op *block.Op) {
	if op.Err = v.within(op); op.Err != nil {
		return
	}
	most := int64(mirroredBytes)
	if op.Kind == block.OpZero || op.Kind == block.OpDiscard {
		most = clearedBytes
	}
	for done := int64(0); done < op.Length && op.Err == nil; {
		at := op.Offset + done
		n := min(most-at%catalogue.RegionBytes, op.Length-done) // pieces end where regions do
		if most == clearedBytes {
			hole, err := v.hole(ctx, at, op.Length-done)
			if err != nil {
				op.Err = err
				return
			}
			if hole > 0 {
				done += hole
				continue
			}
		}
		part := block.Op{Kind: op.Kind, Offset: at, Length: n}
		if op.Kind == block.OpWrite {
			part.Data = op.Data[done : done+n]
		}
		v.round(ctx, []*block.Op{&part})
		op.Err = part.Err
		done += n
	}
}

// within refuses an op that reaches beyond the volume's end.
func (v *volume) within(op *block.Op) error {
	size := v.size.Load()
	if err := block.CheckRange(op.Offset, op.Length, size); err != nil {
		return fmt.Errorf("write %d bytes at %d of volume %q, which has %d: %w", op.Length, op.Offset, v.name(), size, err)
	}
	return nil
}

// hole tells how many bytes from off on are a hole of the volume already, in whole regions.
func (v *volume) hole(ctx context.Context, off, length int64) (int64, error) {
	found, err := v.device().extents(ctx, off, length, 1)
	if err != nil || len(found) == 0 || !found[0].Zero || off%catalogue.RegionBytes != 0 {
		return 0, err
	}
	if found[0].Length == length {
		return length, nil
	}
	return found[0].Length / catalogue.RegionBytes * catalogue.RegionBytes, nil
}

// device reads the volume's head as it is now; it is not among those that are open.
func (v *volume) device() *Device {
	d := &Device{pool: v.pool, volume: v, origin: v.origin}
	if d.origin != nil && v.place == nil {
		v.pool.mu.RLock()
		defer v.pool.mu.RUnlock()
		if now := v.pool.cat.Volume(v.number); now != nil { // and was not deleted meanwhile
			d.suspect = v.pool.suspected(v.pool.cat.Head(now))
		}
	}
	return d
}

// round performs ops. Who attaches or detaches a leg, or splits it off, does so between two rounds.
func (v *volume) round(ctx context.Context, ops []*block.Op) {
	for again := true; again; {
		m := v.mirror.Load()
		if m == nil {
			again = !v.through(nil, func() { v.perform(ctx, ops) })
			continue
		}
		blocks := make([]span, 0, len(ops))
		for _, op := range ops {
			if op.Length > 0 && v.within(op) == nil {
				blocks = append(blocks, span{uint64(op.Offset) / block.Size, blocksIn(op.Offset + op.Length)})
			}
		}
		in := regionsOf(blocks)
		err := m.enter(in)
		again = !v.through(m, func() {
			differ := false
			if err == nil {
				differ = m.write(ctx, ops, blocks)
			} else {
				failAll(ops, fmt.Errorf("write volume %q at %d: record that its mirror may differ: %w", v.name(), ops[0].Offset, err))
			}
			m.regions.leave(in, differ) // before anybody has the gate alone, who may split off what does not differ
		})
		if again {
			m.regions.leave(in, false)
		}
	}
}

// through runs do with the gate held, if the volume's mirror is m.
func (v *volume) through(m *mirror, do func()) bool {
	v.gate.RLock()
	defer v.gate.RUnlock()
	if v.mirror.Load() != m {
		return false
	}
	do()
	return true
}

// perform performs ops on the volume alone.
func (v *volume) perform(ctx context.Context, ops []*block.Op) {
	if v.place != nil {
		v.place.submit(ctx, ops)
	} else {
		v.submit(ctx, ops)
	}
}

// enter is regions.enter, for a leg that is in use. What can be recorded no more counts as differing.
func (m *mirror) enter(in []span) error {
	err := m.regions.enter(in)
	if damagedSet(err) {
		err = m.giveUp(fmt.Errorf("which regions differ cannot be recorded: %w", err))
	}
	if err == nil {
		err = m.use()
	}
	return err
}

// write performs ops on both sides, and tells whether they may differ in the regions now.
func (m *mirror) write(ctx context.Context, ops []*block.Op, blocks []span) (differ bool) {
	release := m.ranges.reserve(blocks)
	defer release()
	follows := !m.paused.Load() && m.dropped.Load() == nil
	together := follows && m.worthwhile(ops)
	beside := make(chan error, 1)
	if together { // should the volume not take what the leg has, it is copied back
		go func() {
			_, err := m.follow(ctx, ops, true)
			beside <- err
		}()
	}
	m.volume.perform(ctx, ops)
	for _, op := range ops {
		differ = differ || op.Err != nil // nobody knows how far it came
	}
	switch {
	case m.paused.Load():
		return true
	case follows:
		var unknown bool
		var err error
		if together {
			err = <-beside
		} else {
			unknown, err = m.follow(ctx, ops, false)
		}
		if err == nil {
			return differ || unknown
		}
		_ = m.drop(fmt.Errorf("write file %s: %w", m.path, err)) // waited for below, as by all others
	}
	if err := m.dropped.Load().waited(); err != nil {
		for _, op := range ops {
			if op.Err == nil {
				op.Err = fmt.Errorf("write volume %q at %d: record that its mirror has failed: %w", m.volume.name(), op.Offset, err)
			}
		}
	}
	return true
}

// worthwhile tells whether ops take long enough to be done to both sides at the same time, and can be: what a discard does is only known then.
func (m *mirror) worthwhile(ops []*block.Op) bool {
	const leastOps, leastBytes = 8, 128 << 10
	bytes := int64(0)
	for _, op := range ops {
		if op.Kind == block.OpDiscard || m.volume.within(op) != nil {
			return false
		}
		bytes += op.Length
	}
	return len(ops) >= leastOps || bytes >= leastBytes
}

// follow does to the leg what ops do to the volume, all or those that have not failed there. differ tells that what they did is not known.
func (m *mirror) follow(ctx context.Context, ops []*block.Op, all bool) (differ bool, err error) {
	l := m.hold()
	if l == nil {
		return false, block.ErrClosed
	}
	defer l.letGo()
	for i := 0; i < len(ops); {
		op := ops[i]
		if op.Length == 0 || !all && op.Err != nil {
			i++
			continue
		}
		n := 1
		switch op.Kind {
		case block.OpWrite:
			bufs, end := [][]byte{op.Data}, op.Offset+op.Length
			for ; i+n < len(ops) && ops[i+n].Kind == block.OpWrite && ops[i+n].Offset == end && (all || ops[i+n].Err == nil); n++ {
				bufs = append(bufs, ops[i+n].Data)
				end += ops[i+n].Length
			}
			err = l.WriteAt(bufs, op.Offset)
		case block.OpZero:
			err = zeroFile(l, op.Offset, op.Length)
		case block.OpZeroAllocated:
			err = writeZeros(l, op.Offset, op.Length)
		case block.OpDiscard:
			var unknown bool
			unknown, err = m.discard(ctx, l, op)
			differ = differ || unknown
		}
		if err != nil {
			return differ, err
		}
		i += n
	}
	return differ, nil
}

// discard makes holes of what is one of the volume in a range.
func (m *mirror) discard(ctx context.Context, file vfs.File, op *block.Op) (differ bool, err error) {
	d := m.volume.device()
	for off, end := op.Offset, op.Offset+op.Length; off < end; {
		found, err := d.extents(ctx, off, end-off, diffRuns)
		if err != nil {
			return true, nil // which is for the copying to find
		}
		for _, e := range found {
			if e.Zero {
				if err := zeroFile(file, e.Offset, e.Length); err != nil {
					return differ, err
				}
			}
			off = e.Offset + e.Length
		}
	}
	return false, nil
}
