package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"varve/internal/block"
	"varve/internal/pool/blockmap"
	"varve/internal/pool/catalogue"
	"varve/internal/vfs"
)

// MaxRefBytes is how long a reference to a base may be.
const MaxRefBytes = catalogue.MaxRefBytes

// Base is content outside of the pool that a volume begins with. See docs/design/base.md.
type Base struct {
	// Ref is what the base is called by Options.OpenBase, 1 to MaxRefBytes bytes, which the pool does not interpret. What it refers to
	// must never change, and be there for as long as anything is FilledFrom it.
	Ref       []byte
	SizeBytes int64 // a multiple of block.SectorSize
}

// FilledFrom describes the base that a volume or snapshot needs.
type FilledFrom struct {
	Base
	// FilledBytes: so much of the base is behind, in order; at its size it is needed no more.
	FilledBytes int64
	Problem     string // why it could not be read when that was tried last; empty if it could
}

const (
	// reopenBase is how soon a base is opened again.
	reopenBase = time.Second
	// tellBaseAgain is how soon there may be another event of a base that has worked in between.
	tellBaseAgain = time.Minute
	// leastReleased is how many versions heads lose before it is looked what was kept of them for nothing.
	leastReleased = 64 << 20 / block.Size
)

// check refuses what cannot be the base of a volume of that size.
func (b *Base) check(sizeBytes int64) error {
	if len(b.Ref) == 0 || len(b.Ref) > MaxRefBytes {
		return fmt.Errorf("%w base: a reference of %d bytes; 1 to %d are kept", ErrInvalid, len(b.Ref), MaxRefBytes)
	}
	if err := checkSize(b.SizeBytes); err != nil {
		return fmt.Errorf("base: %w", err)
	}
	if b.SizeBytes > sizeBytes {
		return fmt.Errorf("%w size %d: its base has %d bytes; make the volume as large, and shrink it", ErrInvalid, sizeBytes, b.SizeBytes)
	}
	return nil
}

// base is a base outside of the pool, and what is kept of it, while the pool is open.
type base struct {
	origin
	ref     []byte
	size    int64
	done    atomic.Int64 // below, what is not kept is zeros, or nobody's
	filling sync.Mutex   // one Fill at a time

	life context.Context // ends when the pool is closed, or the base let go of
	end  context.CancelFunc

	released atomic.Int64 // versions that heads have lost since it was looked what that leaves

	opening chan struct{} // has something in it while the base is opened
	mu      sync.Mutex
	open    *openBase
	failed  error     // why it could not be opened or read the last time
	refused time.Time // when it could not be opened
	toldAt  time.Time // when there was an event of that
}

// openBase is a device of the base. It is closed when it is not wanted any more and all have ended who read it.
type openBase struct {
	device block.Device
	since  time.Time
	users  int
	broken bool
}

// addBase makes what a new volume over a base has in memory; mu is held.
func (p *Pool) addBase(v *catalogue.Volume) {
	b := p.cat.Volume(v.Base)
	p.volumes[b.Number] = p.newVolume(b, p.cat.Head(b), blockmap.Root{})
	w, head := p.volumes[v.Number], p.cat.Head(v)
	w.tree = blockmap.NewTree(blockmap.PlacedRoot(blocksIn(b.Filling.SizeBytes), head.Epoch, p.nextGen()), head.Epoch, 0, p.nextGen())
	p.joinBase(b)
}

// joinBase ties the internal volume of a base to all that begin with it; mu is held.
func (p *Pool) joinBase(v *catalogue.Volume) {
	b := &base{origin: origin{pool: p, number: v.Number, kept: p.volumes[v.Number]}, ref: v.Filling.Ref, size: v.Filling.SizeBytes}
	b.rest = b
	b.done.Store(v.Filling.DoneBytes)
	b.opening = make(chan struct{}, 1)
	b.life, b.end = context.WithCancel(context.Background())
	p.volumes[v.Number].basis = b
	b.join()
}

// baseBelow returns the base that blocks of the volume may be of, or nil.
func (v *volume) baseBelow() *base {
	if v.origin == nil {
		return nil
	}
	b, _ := v.origin.rest.(*base)
	return b
}

// filledFrom describes the base that a state needs, or nil; mu is held.
func (p *Pool) filledFrom(v *catalogue.Volume) *FilledFrom {
	o := p.originOf(v.Number)
	if o == nil {
		return nil
	}
	b, ok := o.rest.(*base)
	if !ok || b.whole() {
		return nil
	}
	f := &FilledFrom{Base: Base{Ref: slices.Clone(b.ref), SizeBytes: b.size}, FilledBytes: b.done.Load()}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.failed != nil {
		f.Problem = b.failed.Error()
	}
	return f
}

// whole tells whether the base is needed no more.
func (b *base) whole() bool { return b.done.Load() == b.size }

// close lets go of the base, and returns what is to be broken off, or nil. Who reads it just now fails.
func (b *base) close() (open *openBase) {
	b.end()
	b.mu.Lock()
	defer b.mu.Unlock()
	open = b.open
	b.open, b.failed = nil, nil
	return open
}

// closeLater is close for somebody who holds a lock: it may take its time.
func (b *base) closeLater() {
	if open := b.close(); open != nil {
		b.pool.closingBases.Go(func() { b.breakOff(open) })
	}
}

// endBases ends the requests to bases; no others begin.
func (p *Pool) endBases() {
	p.mu.RLock()
	defer p.mu.RUnlock()
	for _, v := range p.volumes {
		if v.basis != nil {
			v.basis.end()
		}
	}
}

// lost notes that heads have lost so many versions, and has collected what is kept of them when that is much.
func (b *base) lost(versions int64) {
	if b.released.Add(versions) < leastReleased || !b.kept.mu.TryRLock() {
		return
	}
	kept := int64(b.kept.tree.View().Mapped())
	b.kept.mu.RUnlock()
	if b.released.Load() >= kept/8 {
		b.released.Store(0)
		b.pool.reclaimer.deleted.Store(true)
	}
}

// readRest implements rest: what is done reads as zeros, the other from the base.
func (b *base) readRest(ctx context.Context, p []byte, off int64, wait bool) error {
	for {
		done := b.done.Load()
		n := max(0, min(done-off, int64(len(p))))
		to := max(n, min(b.size-off, int64(len(p))))
		clear(p[:n])
		clear(p[to:])
		if n == to {
			return nil
		}
		if !wait {
			return vfs.ErrWouldBlock
		}
		err := b.readAt(ctx, p[n:to], off+n)
		if err == nil || b.done.Load() == done {
			return err
		}
	}
}

// nextData implements rest.
func (b *base) nextData(ctx context.Context, off, length int64) (from, to int64, err error) {
	end := min(off+length, b.size)
	from = max(off, min(b.done.Load(), end))
	if from >= end {
		return off, off, nil
	}
	if from > off {
		return from, end, nil
	}
	var found []block.Extent
	err = b.use(ctx, func(ctx context.Context, d block.Device) (err error) {
		found, err = d.Extents(ctx, off, end-off, 1)
		return err
	})
	switch {
	case ctx.Err() != nil:
		return 0, 0, ctx.Err()
	case err != nil || len(found) == 0 || found[0].Length <= 0:
		return off, off + length, nil
	case !found[0].Zero:
		return off, off + found[0].Length, nil
	case off+found[0].Length >= end:
		return off, off, nil
	}
	return off + found[0].Length, end, nil
}

// readAt fills p from off on, all of which lies in the base.
func (b *base) readAt(ctx context.Context, p []byte, off int64) error {
	err := b.use(ctx, func(ctx context.Context, d block.Device) error { return d.ReadAt(ctx, p, off) })
	if err != nil {
		return fmt.Errorf("%d bytes at %d of the base %s: %w", len(p), off, b, err)
	}
	return nil
}

// String names the base for messages.
func (b *base) String() string { return fmt.Sprintf("%.80q", b.ref) }

// use has do ask the base something. Should that fail, other than by damage, it is asked once more after it was opened anew. do gets a
// context that ends with the pool as well.
func (b *base) use(ctx context.Context, do func(context.Context, block.Device) error) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	defer context.AfterFunc(b.life, func() { stop(fmt.Errorf("base %s: %w", b, block.ErrClosed)) })()
	for again := true; ; again = false {
		open, err := b.acquire(ctx)
		if err != nil {
			return err
		}
		err = do(ctx, open.device)
		switch {
		case err == nil:
			b.worked()
		case ctx.Err() != nil:
			err = context.Cause(ctx)
			again = false
		case errors.Is(err, block.ErrDamaged):
			again = false
		default:
			// Some of it may be readable all the same, so that it is given up for another one, and not too often.
			if again = again && b.pool.opts.Clock().Sub(open.since) >= reopenBase; again {
				b.drop(open)
			} else {
				b.failure(err)
			}
		}
		b.letGo(open)
		if err == nil || !again {
			return err
		}
	}
}

// acquire returns a device of the base, which letGo releases.
func (b *base) acquire(ctx context.Context) (*openBase, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if open := b.opened(); open != nil {
		return open, nil
	}
	select {
	case b.opening <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	defer func() { <-b.opening }()
	if open := b.opened(); open != nil { // by who came first
		return open, nil
	}
	now := b.pool.opts.Clock()
	b.mu.Lock()
	failed, since := b.failed, now.Sub(b.refused)
	b.mu.Unlock()
	if failed != nil && since >= 0 && since < reopenBase {
		return nil, failed
	}
	device, err := b.openDevice(ctx)
	switch {
	case ctx.Err() != nil && err != nil:
		return nil, context.Cause(ctx)
	case err != nil:
		err = fmt.Errorf("open the base %s: %w", b, err)
		b.mu.Lock()
		b.refused = now
		b.mu.Unlock()
		b.failure(err)
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.open = &openBase{device: device, since: now, users: 1, broken: b.life.Err() != nil}
	if open := b.open; open.broken { // whoever reads it now finds its context ended
		b.open = nil
		return open, nil
	}
	return b.open, nil
}

func (b *base) openDevice(ctx context.Context) (block.Device, error) {
	if b.pool.opts.OpenBase == nil {
		return nil, fmt.Errorf("%w: nobody here can open bases", ErrInvalid)
	}
	device, err := b.pool.opts.OpenBase(ctx, slices.Clone(b.ref))
	if err == nil && device.SizeBytes() != b.size {
		err = fmt.Errorf("%w: it has %d bytes, and had %d when the volume was made", ErrInvalid, device.SizeBytes(), b.size)
		_ = device.Close() // nothing was written
	}
	return device, err
}

// opened returns the device that there is, for one more user, or nil.
func (b *base) opened() *openBase {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.open != nil {
		b.open.users++
	}
	return b.open
}

func (b *base) letGo(open *openBase) {
	b.mu.Lock()
	open.users--
	idle := open.users == 0 && open.broken
	b.mu.Unlock()
	if idle {
		_ = open.device.Close() // nothing was written
	}
}

// drop has another device opened by the next who needs one.
func (b *base) drop(open *openBase) {
	b.mu.Lock()
	if b.open == open {
		b.open = nil
	}
	b.mu.Unlock()
	b.breakOff(open)
}

// breakOff has a device closed as soon as nobody reads it.
func (b *base) breakOff(open *openBase) {
	if open == nil {
		return
	}
	b.mu.Lock()
	idle := open.users == 0 && !open.broken
	open.broken = true
	b.mu.Unlock()
	if idle {
		_ = open.device.Close() // nothing was written
	}
}

// failure notes that the base failed, and tells it.
func (b *base) failure(err error) {
	now := b.pool.opts.Clock()
	b.mu.Lock()
	tell := b.toldAt.IsZero() || b.failed == nil && now.Sub(b.toldAt) >= tellBaseAgain
	if b.failed = err; tell {
		b.toldAt = now
	}
	b.mu.Unlock()
	if tell {
		b.pool.event(EventBaseLost, b.user(), fmt.Sprintf("%v; what is not filled cannot be read until it can", err))
	}
}

// worked notes that the base answers.
func (b *base) worked() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failed = nil
}

// user names the first of the volumes over the base.
func (b *base) user() string {
	b.pool.mu.RLock()
	defer b.pool.mu.RUnlock()
	for _, v := range b.pool.cat.Volumes() {
		if v.Base == b.number && !v.Incomplete {
			return v.Name
		}
	}
	return b.kept.name()
}
