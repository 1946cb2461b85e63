package pool

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"varve/internal/block"
	"varve/internal/pool/catalogue"
	"varve/internal/vfs"
)

const (
	// advanceRegions is how many regions are copied before it is recorded that they are.
	advanceRegions = 256
	// holeRegions is how many regions are made a hole at a time.
	holeRegions = 4096
	// mostSkipped is how many regions may be unreadable before the copying ends.
	mostSkipped = 1000
)

// SyncMirror copies to a volume's leg what differs, and returns when nothing does; clients go on. It may be cut short and begun
// again. progress may be nil. ErrNotFound, also when the mirror is detached meanwhile; ErrInUse; block.ErrDamaged, which names
// what of the volume cannot be read: the rest is copied then.
func (p *Pool) SyncMirror(ctx context.Context, name string, progress func(float64)) error {
	m, err := p.mirrorOf(name)
	if err == nil {
		err = m.copyAll(ctx, progress)
	}
	if err != nil {
		return fmt.Errorf("copy volume %q to its mirror: %w", name, err)
	}
	return nil
}

// mirrorOf finds a volume's mirror.
func (p *Pool) mirrorOf(name string) (*mirror, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	v, err := findVolume(p.cat, name)
	if err != nil {
		return nil, err
	}
	m := p.volumes[v.Number].mirror.Load()
	if m == nil {
		return nil, fmt.Errorf("mirror of volume %q: %w: it is not mirrored", name, ErrNotFound)
	}
	return m, nil
}

// legCopy is the copying under way.
type legCopy struct {
	*mirror
	buf     []byte
	resets  int // of the regions, when copied was looked at
	advance uint64
	skip    map[uint64]error // regions that cannot be read
	clients int64
	owed    time.Duration
}

func (m *mirror) copyAll(ctx context.Context, progress func(float64)) error {
	if !m.copying.TryLock() {
		return fmt.Errorf("%w: that is being done already", ErrInUse)
	}
	defer m.copying.Unlock()
	k := legCopy{mirror: m, buf: make([]byte, catalogue.RegionBytes), skip: map[uint64]error{}}
	for {
		start, clients := time.Now(), m.pool.clientBytes.Load()
		more, err := k.step(ctx)
		if err != nil {
			return err
		}
		if !more {
			break
		}
		if progress != nil {
			progress(m.progress())
		}
		if err := k.rest(ctx, time.Since(start), clients); err != nil {
			return err
		}
	}
	return k.unreadable()
}

// rest gives way to clients as a relayout does.
func (k *legCopy) rest(ctx context.Context, took time.Duration, clients int64) error {
	if k.pool.clientBytes.Load() != clients || clients != k.clients {
		took *= busyShare
	}
	k.clients = clients
	if k.owed += took; k.owed < shortestPause || k.pool.opts.Manual { // who decides the order of everything has nobody to give way to
		return ctx.Err()
	}
	owed := k.owed
	k.owed = 0
	return sleep(ctx, owed)
}

// step copies the next regions, or, where none is left, records that; more tells whether there may be others.
func (k *legCopy) step(ctx context.Context) (more bool, err error) {
	if !k.pool.begin() {
		return false, fmt.Errorf("pool: %w", block.ErrClosed)
	}
	defer k.pool.end()
	if err := k.broken(); err != nil {
		return false, err
	}
	if err := k.use(); err != nil {
		return false, err
	}
	n, resets, found := k.regions.nextToCopy(k.skip)
	if resets != k.resets {
		k.resets, k.advance = resets, 0
		clear(k.skip)
		// What made everything differ is durable before anything is copied for it: a crash that loses it would find nothing of that recorded.
		if err := k.pool.log.Flush(k.pool.log.LastSeq()); err != nil {
			return false, err
		}
	}
	if !found || k.advance >= advanceRegions {
		k.advance = 0
		if err := k.record(); err != nil {
			return false, err
		}
		if !found {
			err := k.clearRegions(ctx)
			_, _, found = k.regions.nextToCopy(k.skip)
			return found, err
		}
	}
	done, err := k.regionsFrom(ctx, n)
	k.advance += done
	return true, err
}

// nextToCopy finds a region that has to be copied and is not among some.
func (r *regions) nextToCopy(skip map[uint64]error) (n uint64, resets int, found bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n, found = r.differs.from(0)
	for found && skip[n] != nil {
		n, found = r.differs.from(n + 1)
	}
	if found && n < r.copied {
		return n, r.resets, true
	}
	return r.copied, r.resets, r.copied < r.count
}

// regionsFrom copies region n, and, if they are holes, those behind it; done is how many.
func (k *legCopy) regionsFrom(ctx context.Context, n uint64) (done uint64, err error) {
	count := uint64(1)
	if n >= k.regions.copiedNow() {
		count = k.holes(ctx, n)
	}
	var lost error
	attached := k.volume.through(k.mirror, func() {
		if err = k.broken(); err != nil {
			return
		}
		release := k.ranges.reserve([]span{{n * regionBlocks, (n + count) * regionBlocks}})
		defer release()
		if count > 1 && k.holes(ctx, n) < count {
			count = 1 // somebody writes there; beyond n the reservation is too much, and does no harm
		}
		if err = k.copy(ctx, n, count); errors.Is(err, block.ErrDamaged) {
			lost, err = err, nil
		}
		if err == nil {
			k.regions.isCopied(n, count, k.resets, lost != nil)
		}
	})
	switch {
	case !attached:
		return 0, errDetached
	case errors.Is(err, errLeg):
		return 0, errors.Join(err, k.drop(err))
	case lost != nil:
		if k.skip[n] = lost; len(k.skip) > mostSkipped {
			return 0, k.unreadable()
		}
	}
	return count, err
}

// unreadable tells what of the volume could not be copied; nil if all could.
func (k *legCopy) unreadable() error {
	if len(k.skip) == 0 {
		return nil
	}
	first := slices.Min(slices.Collect(maps.Keys(k.skip)))
	return fmt.Errorf("%w: %d MiB of the volume cannot be read, and what the mirror has there is older; the first is at %d: %w",
		block.ErrDamaged, len(k.skip), first*catalogue.RegionBytes, k.skip[first])
}

func (r *regions) copiedNow() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.copied
}

// isCopied notes that regions were copied, unless everything has to be copied anew since. One that could not be stays recorded.
func (r *regions) isCopied(n, count uint64, resets int, lost bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if resets != r.resets {
		return
	}
	for ; count > 0; n, count = n+1, count-1 {
		if n == r.copied {
			r.copied++
			if lost || r.busy[n] > 0 { // who came before this is not recorded yet
				r.record(n)
			}
		}
		if lost {
			r.differ(n)
		} else {
			r.copy(n)
		}
	}
}

// holes tells how many regions from n on are holes of the volume; at least 1.
func (k *legCopy) holes(ctx context.Context, n uint64) uint64 {
	off := int64(n) * catalogue.RegionBytes
	length := min(k.volume.size.Load()-off, holeRegions*catalogue.RegionBytes)
	found, err := k.volume.device().extents(ctx, off, length, 1)
	switch {
	case err != nil || len(found) == 0 || !found[0].Zero:
		return 1
	case found[0].Length == length:
		return uint64((length + catalogue.RegionBytes - 1) / catalogue.RegionBytes)
	}
	return max(1, uint64(found[0].Length/catalogue.RegionBytes))
}

// errLeg marks what is wrong with the leg, not with the volume.
var errLeg = errors.New("the leg cannot be written")

// copy makes regions of the leg what they are of the volume; they are reserved.
func (k *legCopy) copy(ctx context.Context, n, count uint64) error {
	l := k.hold()
	if l == nil {
		return fmt.Errorf("%w: file %s: %w", errLeg, k.path, block.ErrClosed)
	}
	defer l.letGo()
	d := k.volume.device()
	end := min(int64(n+count)*catalogue.RegionBytes, k.volume.size.Load())
	for off := int64(n) * catalogue.RegionBytes; off < end; {
		found, err := d.extents(ctx, off, end-off, diffRuns)
		if err != nil {
			return err
		}
		for _, e := range found {
			if err := k.copyExtent(ctx, d, l, e); err != nil {
				return err
			}
			off = e.Offset + e.Length
		}
	}
	return nil
}

func (k *legCopy) copyExtent(ctx context.Context, d *Device, file vfs.File, e block.Extent) error {
	for e.Length > 0 {
		n := e.Length
		var err error
		if e.Zero {
			err = zeroFile(file, e.Offset, n)
		} else {
			n = min(n, int64(len(k.buf)))
			if err := d.read(ctx, k.buf[:n], e.Offset); err != nil {
				return err
			}
			err = file.WriteAt([][]byte{k.buf[:n]}, e.Offset)
		}
		if err != nil {
			return fmt.Errorf("%w: write file %s: %w", errLeg, k.path, err)
		}
		e.Offset += n
		e.Length -= n
	}
	return nil
}

// record makes both sides durable, and then records how far the leg is copied.
func (k *legCopy) record() error {
	r := k.regions
	r.mu.Lock()
	to, resets := r.copied, r.resets
	r.mu.Unlock()
	if err := r.settle(); err != nil {
		return err
	}
	if err := k.syncBoth(); err != nil {
		return err
	}
	return k.set(func(now *catalogue.Mirroring, next *catalogue.SetMirror) bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		if resets != r.resets || to <= now.Synced {
			return false
		}
		r.synced, next.Synced = to, to
		r.claimed = max(r.claimed, to)
		return true
	})
}

// progress is how much of the volume is the same on both sides, from 0 to 1.
func (m *mirror) progress() float64 {
	return 1 - float64(m.regions.different())/float64(m.regions.count)
}
