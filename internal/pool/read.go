package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"varve/internal/block"
	"varve/internal/pool/blockmap"
	"varve/internal/pool/seglog"
	"varve/internal/vfs"
)

// damaged marks errors of map nodes as what they are to a client.
func damaged(err error) error {
	if errors.Is(err, blockmap.ErrDamaged) {
		return fmt.Errorf("%w: %w", block.ErrDamaged, err)
	}
	return err
}

// readBlock fills p, one block, with what the entry refers to.
func (p *Pool) readBlock(e blockmap.Entry, b []byte) error {
	if !e.Mapped() {
		clear(b)
		return nil
	}
	if e.Lost() {
		return lostBlock(e)
	}
	if err := p.log.ReadAt(e.Addr, b); err != nil {
		return lost(e.Addr, err)
	}
	if seglog.Checksum(b) != e.CRC {
		return rotten(e.Addr)
	}
	return nil
}

// view is what a read looks blocks up in: a volume's head or a snapshot's map.
type view interface {
	// look fills out with the entries from lba on; a *blockmap.Miss if that must wait.
	look(pins *blockmap.Pins, lba uint64, out []blockmap.Entry) error
	// run is blockmap.Root.Run.
	run(ctx context.Context, pins *blockmap.Pins, lba, limit uint64) (blocks uint64, mapped bool, err error)
	// placed is blockmap.Root.PlacedRun.
	placed(pins *blockmap.Pins, lba, limit uint64) (uint64, error)
	// below is where blocks are that are in place, or why they cannot be read.
	below() (*origin, error)
	// differs is blockmap.Diff of since to what is seen.
	differs(pins *blockmap.Pins, since blockmap.Root, lba, limit uint64) (blocks uint64, differs bool, err error)
}

func (v *volume) look(pins *blockmap.Pins, lba uint64, out []blockmap.Entry) error {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.tree.View().Lookup(pins, lba, out)
}

func (v *volume) run(_ context.Context, pins *blockmap.Pins, lba, limit uint64) (uint64, bool, error) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.tree.View().Run(pins, lba, limit)
}

func (v *volume) differs(pins *blockmap.Pins, since blockmap.Root, lba, limit uint64) (uint64, bool, error) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return blockmap.Diff(pins, since, v.tree.View(), lba, limit)
}

// frozen is a state that never changes.
type frozen struct{ root *lasting }

// errNowhere is why a block cannot be read that is in place where there is none.
var errNowhere = fmt.Errorf("%w: its map says that it is in place, and there is none", block.ErrDamaged)

func (v *volume) below() (*origin, error) { return nil, errNowhere }

func (f frozen) below() (*origin, error) { return nil, errNowhere }

func (f frozen) look(pins *blockmap.Pins, lba uint64, out []blockmap.Entry) error {
	return f.root.now().Lookup(pins, lba, out)
}

func (f frozen) run(_ context.Context, pins *blockmap.Pins, lba, limit uint64) (uint64, bool, error) {
	return f.root.now().Run(pins, lba, limit)
}

func (f frozen) differs(pins *blockmap.Pins, since blockmap.Root, lba, limit uint64) (uint64, bool, error) {
	return blockmap.Diff(pins, since, f.root.now(), lba, limit)
}

// scratch is the memory of one read.
type scratch struct {
	found  []blockmap.Entry
	pieces []seglog.Piece
	edges  [2][block.Size]byte // of the first and last block, where only a part of it is asked for
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// read fills b with the content of v from off on. If wait is false it
// returns vfs.ErrWouldBlock rather than wait for the disk.
func (p *Pool) read(ctx context.Context, v view, b []byte, off int64, wait bool) error {
	if len(b) == 0 {
		return nil
	}
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	lba := uint64(off / block.Size)
	count := blocksIn(off+int64(len(b))) - lba
	if uint64(cap(s.found)) < count {
		s.found = make([]blockmap.Entry, count)
	}
	found := s.found[:count]
	pins := p.store.NewPins()
	look := func() error { return v.look(pins, lba, found) }
	var err error
	if wait {
		err = waitFor(pins, look)
	} else if err = look(); err != nil {
		if _, miss := err.(*blockmap.Miss); miss {
			return vfs.ErrWouldBlock
		}
	}
	if err != nil {
		return damaged(err)
	}
	r := reading{scratch: s, view: v, lba: lba, entries: found, to: b, skip: int(off % block.Size), wait: wait}
	err = p.fill(ctx, &r)
	for errors.Is(err, block.ErrDamaged) && wait || r.rest && (err == nil || wait) {
		// What was looked up may have been replaced, and its place given back, before it was read; or kept, and overwritten in the file, or
		// not needed from a base any more.
		before := slices.Clone(found)
		e := look()
		if wait {
			e = waitFor(pins, look)
		}
		switch {
		case e != nil && !wait:
			return vfs.ErrWouldBlock
		case e != nil:
			return damaged(e)
		case slices.Equal(before, found):
			return err
		}
		err = p.fill(ctx, &r)
	}
	return err
}

// reading is a read whose blocks have been looked up.
type reading struct {
	*scratch
	view    view
	lba     uint64
	entries []blockmap.Entry
	to      []byte
	skip    int // bytes of the first block
	wait    bool
	rest    bool // some of it is not in the log
}

// fill reads the blocks that entries refer to into b, leaving out the first skip
// bytes and what does not fit, and verifies them.
func (p *Pool) fill(ctx context.Context, r *reading) error {
	s, entries, b, skip, wait := r.scratch, r.entries, r.to, r.skip, r.wait
	r.rest = false
	// whole tells whether all of block i is asked for; to is where n blocks from i on go: b, or an edge.
	whole := func(i int) bool {
		at := i*block.Size - skip
		return at >= 0 && at+block.Size <= len(b)
	}
	to := func(i, n int) []byte {
		if !whole(i) {
			return s.edges[min(i, 1)][:]
		}
		at := i*block.Size - skip
		return b[at : at+n*block.Size]
	}
	s.pieces = s.pieces[:0]
	defer func() { clear(s.pieces) }()
	for i := 0; i < len(entries); {
		n := 1
		for whole(i) && i+n < len(entries) && whole(i+n) && continues(entries[i], entries[i+n], n) {
			n++
		}
		switch e := entries[i]; {
		case e.Lost():
			return asked(i, lostBlock(e))
		case inFile(e):
			r.rest = true
			from, err := r.view.below()
			if err == nil {
				err = from.rest.readRest(ctx, to(i, n), int64(r.lba+uint64(i))*block.Size, wait)
			}
			if err != nil {
				return asked(i, err)
			}
		case e.Mapped():
			s.pieces = append(s.pieces, seglog.Piece{Addr: e.Addr, To: to(i, n)})
		default:
			clear(to(i, n))
		}
		i += n
	}
	err := p.log.ReadPieces(s.pieces, wait)
	if err != nil && !wait {
		return err
	}
	for i, e := range entries {
		if err != nil && !inFile(e) { // one by one, to tell which it is
			if err := p.readBlock(e, to(i, 1)); err != nil {
				return asked(i, err)
			}
		} else if e.Stored() && seglog.Checksum(to(i, 1)) != e.CRC {
			return asked(i, rotten(e.Addr))
		}
	}
	for _, i := range []int{0, len(entries) - 1} {
		if at := i*block.Size - skip; !whole(i) {
			copy(b[max(at, 0):], s.edges[min(i, 1)][max(-at, 0):])
		}
	}
	return nil
}

// continues tells whether f lies n blocks behind e, or both are holes.
func continues(e, f blockmap.Entry, n int) bool {
	if !e.Mapped() || !f.Mapped() {
		return e.Mapped() == f.Mapped()
	}
	if inFile(e) || inFile(f) {
		return inFile(e) == inFile(f)
	}
	return f.Addr == e.Addr.Plus(int64(n)*block.Size) && f.Addr.Segment() == e.Addr.Segment()
}

// run is a stretch of bytes of which something is so, or is not.
type run struct {
	offset, length int64
	is             bool
}

// pinnedNodes is how many map nodes a walk keeps beside the cache.
const pinnedNodes = 64

// runs describes [off, off+length) in at most limit runs, in turn of either kind. step answers as blockmap.Root.Run.
func (p *Pool) runs(ctx context.Context, off, length int64, limit int, step func(pins *blockmap.Pins, lba, limit uint64) (uint64, bool, error)) ([]run, error) {
	var out []run
	pins := p.store.NewPins()
	for end := off + length; off < end; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		lba := uint64(off / block.Size)
		var n uint64
		var is bool
		if err := waitFor(pins, func() (err error) {
			n, is, err = step(pins, lba, blocksIn(end)-lba)
			return err
		}); err != nil {
			return nil, damaged(err)
		}
		next := min(int64(lba+n)*block.Size, end)
		if last := len(out) - 1; last >= 0 && out[last].is == is {
			out[last].length += next - off
		} else if len(out) == limit {
			return out, nil
		} else {
			out = append(out, run{off, next - off, is})
		}
		off = next
		pins.ForgetBeyond(pinnedNodes)
	}
	return out, nil
}

// extents describes [off, off+length) of v in at most limit runs.
func (p *Pool) extents(ctx context.Context, v view, off, length int64, limit int) ([]block.Extent, error) {
	found, err := p.runs(ctx, off, length, limit, func(pins *blockmap.Pins, lba, limit uint64) (uint64, bool, error) {
		return v.run(ctx, pins, lba, limit)
	})
	if err != nil {
		return nil, err
	}
	out := make([]block.Extent, len(found))
	for i, r := range found {
		out[i] = block.Extent{Offset: r.offset, Length: r.length, Hole: !r.is, Zero: !r.is}
	}
	return out, nil
}
