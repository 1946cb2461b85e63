package pool

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"varve/internal/block"
	"varve/internal/pool/blockmap"
	"varve/internal/pool/seglog"
)

// change is one entry for the log on its way there.
type change struct {
	volume *volume
	entry  seglog.Entry
	pins   *blockmap.Pins // holds the map nodes that applying the entry needs
	epoch  uint64         // of the volume, in which alone it may be made; 0: in any
	edges  [2]edge        // blocks that are set in part
	n      int            // of edges
	op     *block.Op
	err    error
}

// edge is a block of which a change sets only some bytes. The rest is read when
// the change is prepared; the committer's leader, who alone knows what comes before it,
// repeats that if the block has changed since.
type edge struct {
	lba      uint64
	from, to int    // bytes of the block that are set
	data     []byte // what they are set to; nil: zeros
	was      blockmap.Entry
	merged   []byte  // the whole block
	crc      *uint32 // where its checksum goes
}

func (e *edge) merge() {
	if e.data == nil {
		clear(e.merged[e.from:e.to])
	} else {
		copy(e.merged[e.from:e.to], e.data)
	}
	*e.crc = seglog.Checksum(e.merged)
}

// write is a request with the memory it is built from, for use again.
type write struct {
	request
	crcs   []uint32
	slices [][]byte
	found  []blockmap.Entry
}

var writes = sync.Pool{New: func() any { return new(write) }}

var blocks = sync.Pool{New: func() any { return make([]byte, block.Size) }}

func (w *write) release() {
	for i := range w.changes {
		for _, e := range w.changes[i].edges[:w.changes[i].n] {
			blocks.Put(e.merged) //nolint:staticcheck // a slice header is small beside the block
		}
	}
	clear(w.changes)
	clear(w.slices)
	wake := w.wake
	w.request = request{changes: w.changes[:0], wake: wake}
	w.crcs, w.slices = w.crcs[:0], w.slices[:0]
	writes.Put(w)
}

var zeroBlock = make([]byte, block.Size)

var zeroCRC = seglog.Checksum(zeroBlock)

// submit performs ops in order, as few batches as they fit into, and sets their errors.
func (v *volume) submit(ctx context.Context, ops []*block.Op) {
	failed := v.bringEdges(ctx, ops)
	err := v.pool.checkpointer.throttle(ctx, v.pool)
	var admitted int64
	if err == nil {
		granted := needs(ops)
		if err = v.pool.reclaimer.throttle(ctx, v.pool, granted); err == nil {
			defer v.pool.reclaimer.written(granted)
		}
	}
	if err == nil {
		admitted, err = v.pool.space.admit(ctx, v.pool, ops)
	}
	if err != nil {
		failAll(ops, err)
		return
	}
	defer v.pool.space.release(admitted)
	v.resize.RLock()
	defer v.resize.RUnlock()
	size := v.size.Load()
	b := builder{volume: v}
	b.begin()
	defer func() { b.write.release() }()
	for _, op := range ops {
		if op.Err = failed[op]; op.Err != nil {
			continue
		}
		if op.Err = block.CheckRange(op.Offset, op.Length, size); op.Err != nil {
			op.Err = fmt.Errorf("write %d bytes at %d of volume %q, which has %d: %w", op.Length, op.Offset, v.name(), size, op.Err)
			continue
		}
		for _, part := range pieces(op, size) {
			for part.blocks() > 0 && op.Err == nil {
				b.add(op, &part)
			}
		}
	}
	b.flush()
}

// builder cuts ops into requests of bounded size.
type builder struct {
	volume *volume
	write  *write
	pins   *blockmap.Pins
	room   uint64 // payload blocks that the request may still take
	edges  int    // that it has
}

const (
	maxRequestChanges = maxBatchChanges / 2
	maxRequestEdges   = 128 // the leader compares each with all changes before it
)

func (b *builder) begin() {
	b.write = writes.Get().(*write)
	b.pins = b.volume.pool.store.NewPins()
	b.room, b.edges = seglog.MaxPayloadBlocks, 0
}

// flush commits what has been added.
func (b *builder) flush() {
	if len(b.write.changes) > 0 {
		b.volume.commit(b.write)
		b.write.release()
		b.begin()
	}
}

// add takes as much of a piece as fits into a request, and commits the request before it
// where nothing fits any more. op.Err tells what went wrong with this op so far.
func (b *builder) add(op *block.Op, p *piece) {
	n := p.blocks()
	if p.data {
		n = min(n, seglog.MaxPayloadBlocks)
	}
	if len(b.write.changes) >= maxRequestChanges || b.edges >= maxRequestEdges || (p.data && n > b.room) {
		if b.flush(); op.Err != nil {
			return
		}
	}
	if p.data {
		b.room -= n
	}
	edges, err := b.volume.prepare(b.write, b.pins, op, p.cut(n))
	b.edges += edges
	if err != nil {
		op.Err = err
	}
}

func failAll(ops []*block.Op, err error) {
	for _, op := range ops {
		op.Err = err
	}
}

// commit puts a request into the log and maps and hands its errors to the ops.
func (v *volume) commit(w *write) {
	v.pool.committer.do(&w.request)
	bytes := int64(0)
	for i := range w.changes {
		ch := &w.changes[i]
		if w.err != nil && ch.err == nil {
			ch.err = w.err
		}
		if ch.err != nil && ch.op.Err == nil {
			ch.op.Err = fmt.Errorf("write volume %q at %d: %w", v.name(), ch.op.Offset, ch.err)
		}
		if ch.err == nil && ch.entry.Kind == seglog.KindData {
			bytes += int64(ch.entry.Count) * block.Size
		}
	}
	if !v.internal {
		v.pool.clientBytes.Add(bytes)
	}
	v.pool.checkpointer.noticed(v.pool)
	v.pool.reclaimer.noticed(v.pool)
	v.pool.space.noticed(v.pool)
}

// piece is a part of an op that becomes changes of one kind: bytes from lo up to hi.
type piece struct {
	lo, hi int64
	data   bool // payload goes into the log; otherwise the blocks are cleared
}

func (p *piece) blocks() uint64 {
	if p.hi <= p.lo {
		return 0
	}
	return uint64((p.hi-1)/block.Size-p.lo/block.Size) + 1
}

// cut takes the first n blocks off p.
func (p *piece) cut(n uint64) piece {
	end := min(p.hi, (p.lo/block.Size+int64(n))*block.Size)
	first := piece{p.lo, end, p.data}
	p.lo = end
	return first
}

// pieces cuts an op on a device of that size into what is written and what is cleared.
func pieces(op *block.Op, size int64) []piece {
	lo, hi := op.Offset, op.Offset+op.Length
	if op.Kind == block.OpWrite || op.Kind == block.OpZeroAllocated {
		return []piece{{lo, hi, true}}
	}
	// Whole blocks are cleared. The last block of a device counts as whole.
	first := (lo + block.Size - 1) &^ (block.Size - 1)
	last := hi &^ (block.Size - 1)
	if hi == size {
		last = (hi + block.Size - 1) &^ (block.Size - 1)
	}
	if last <= first { // within a block
		first, last = hi, hi
	}
	out := make([]piece, 0, 3)
	if op.Kind == block.OpZero && lo < first {
		out = append(out, piece{lo, min(first, hi), true})
	}
	if first < last {
		out = append(out, piece{first, last, false})
	}
	if op.Kind == block.OpZero && last < hi && first < hi {
		out = append(out, piece{last, hi, true})
	}
	return out
}

// prepare makes the change of one piece and sees to it that applying it will need
// nothing from the disk.
func (v *volume) prepare(w *write, pins *blockmap.Pins, op *block.Op, p piece) (edges int, err error) {
	count := p.blocks()
	lba := uint64(p.lo / block.Size)
	w.changes = append(w.changes, change{volume: v, pins: pins, op: op})
	ch := &w.changes[len(w.changes)-1]
	ch.entry = seglog.Entry{Kind: seglog.KindClear, Volume: v.number, LBA: lba, Count: count}
	err = func() error {
		if !p.data {
			var e [1]blockmap.Entry
			if err := v.lookup(pins, lba, e[:]); err != nil {
				return err
			}
			return v.lookup(pins, lba+count-1, e[:])
		}
		if uint64(cap(w.found)) < count {
			w.found = make([]blockmap.Entry, count)
		}
		found := w.found[:count]
		if err := v.lookup(pins, lba, found); err != nil {
			return err
		}
		return v.payload(w, ch, pins, op, p, found)
	}()
	if err != nil {
		w.changes = w.changes[:len(w.changes)-1]
		return 0, fmt.Errorf("write volume %q at %d: %w", v.name(), op.Offset, damaged(err))
	}
	return ch.n, nil
}

// payload gives a change its blocks and checksums.
func (v *volume) payload(w *write, ch *change, pins *blockmap.Pins, op *block.Op, p piece, found []blockmap.Entry) error {
	firstCRC, firstSlice := len(w.crcs), len(w.slices)
	for range found {
		w.crcs = append(w.crcs, 0)
	}
	crcs := w.crcs[firstCRC:]
	var data []byte
	if op.Kind == block.OpWrite {
		data = op.Data[p.lo-op.Offset : p.hi-op.Offset]
	}
	whole := 0 // start of whole blocks in data that are not yet in slices
	pos := 0
	flush := func() {
		if pos > whole {
			w.slices = append(w.slices, data[whole:pos])
		}
	}
	for i := range found {
		lba := uint64(p.lo/block.Size) + uint64(i)
		from := max(p.lo-int64(lba)*block.Size, 0)
		to := min(p.hi-int64(lba)*block.Size, block.Size)
		n := int(to - from)
		switch {
		case n == block.Size && data != nil:
			crcs[i] = seglog.Checksum(data[pos : pos+n])
		case n == block.Size:
			w.slices = append(w.slices, zeroBlock)
			crcs[i] = zeroCRC
		default:
			e := edge{lba: lba, from: int(from), to: int(to), was: found[i], merged: blocks.Get().([]byte), crc: &crcs[i]}
			if data != nil {
				flush()
				e.data = data[pos : pos+n]
				whole = pos + n
			}
			w.slices = append(w.slices, e.merged)
			ch.edges[ch.n] = e
			ch.n++
			if err := v.readCurrent(&e.was, pins, lba, e.merged); err != nil {
				return err
			}
			e.merge()
		}
		pos += n
	}
	if data != nil {
		flush()
	}
	ch.entry.Kind, ch.entry.CRCs, ch.entry.Payload = seglog.KindData, crcs, w.slices[firstSlice:]
	return nil
}

// readCurrent fills b with the block that the entry refers to. If that is lost, it looks
// whether the block has been replaced since, and its place given back.
func (v *volume) readCurrent(was *blockmap.Entry, pins *blockmap.Pins, lba uint64, b []byte) error {
	if inFile(*was) {
		return v.origin.readVersion(pins, lba, *was, b)
	}
	for {
		err := v.pool.readBlock(*was, b)
		if !errors.Is(err, block.ErrDamaged) {
			return err
		}
		var now [1]blockmap.Entry
		if e := v.lookup(pins, lba, now[:]); e != nil {
			return e
		}
		if now[0] == *was {
			return err
		}
		*was = now[0]
	}
}

// settleEdges makes sure that a change's edges hold what the block has now,
// which is what earlier changes of the same batch made it.
func (c *committer) settleEdges(v *volume, ch *change) error {
	for i := range ch.edges[:ch.n] {
		e := &ch.edges[i]
		if base, ok := c.queued(v.number, e.lba); ok {
			copy(e.merged, base)
			e.merge()
			continue
		}
		var now [1]blockmap.Entry
		if err := v.lookup(ch.pins, e.lba, now[:]); err != nil {
			return damaged(err)
		}
		if now[0] != e.was {
			if err := v.readCurrent(&now[0], ch.pins, e.lba, e.merged); err != nil {
				return damaged(err)
			}
			e.was = now[0]
			e.merge()
		}
	}
	return nil
}

// queued returns the content that the batch being built gives to a block.
func (c *committer) queued(volume, lba uint64) ([]byte, bool) {
	for i := len(c.batch) - 1; i >= 0; i-- {
		e := &c.batch[i]
		if e.Volume != volume || lba < e.LBA || lba-e.LBA >= e.Count {
			continue
		}
		if e.Kind == seglog.KindClear {
			return zeroBlock, true
		}
		at := int(lba-e.LBA) * block.Size
		for _, p := range e.Payload {
			if at < len(p) {
				return p[at : at+block.Size], true
			}
			at -= len(p)
		}
	}
	return nil, false
}
