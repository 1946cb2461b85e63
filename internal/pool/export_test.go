package pool

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"varve/internal/block"
	"varve/internal/pool/blockmap"
	"varve/internal/pool/catalogue"
	"varve/internal/pool/seglog"
)

// CheckOwners demands that every place that the newest checkpoint refers to is the own of exactly
// one state: else reclaim would miss it, or count it twice.
func (p *Pool) CheckOwners() error {
	p.checkpointMu.Lock()
	defer p.checkpointMu.Unlock()
	count := func(of map[seglog.Addr]int, r ownedRoot) error {
		return p.markState(context.Background(), r, func(n blockmap.Ptr) { of[n.Addr]++ }, func(entries []blockmap.Entry) {
			for _, e := range entries {
				if e.Stored() {
					of[e.Addr]++
				}
			}
		}, func(uint64, uint64) {})
	}
	owned, reached := map[seglog.Addr]int{}, map[seglog.Addr]int{}
	for _, r := range p.reclaimer.newer.roots {
		if err := count(owned, r); err != nil {
			return err
		}
		all := blockmap.Own{}
		if r.own.Data == blockmap.NoData {
			all.Data = blockmap.NoData
		}
		r.own = all
		if err := count(reached, r); err != nil {
			return err
		}
	}
	for a, n := range owned {
		if n != 1 {
			return fmt.Errorf("%s has %d owners", a, n)
		}
	}
	if len(owned) != len(reached) {
		return fmt.Errorf("%d places are reached and %d owned", len(reached), len(owned))
	}
	return nil
}

// Abandon lets go of a pool as a crash of the process does: nothing is saved.
func (p *Pool) Abandon() {
	p.reclaimer.stop()
	p.mirrorKeeper.stop()
	p.checkpointer.stop()
	p.abandon()
}

// Entries returns a volume's map entries, of all its blocks.
func (p *Pool) Entries(volume string) []blockmap.Entry {
	p.mu.RLock()
	v := p.volumes[p.cat.VolumeByName(volume).Number]
	p.mu.RUnlock()
	out := make([]blockmap.Entry, blocksIn(v.size.Load()))
	if err := v.lookup(p.store.NewPins(), 0, out); err != nil {
		panic(err)
	}
	return out
}

// SnapshotEntries is Entries of a snapshot.
func (p *Pool) SnapshotEntries(ref SnapshotRef) []blockmap.Entry {
	p.mu.RLock()
	_, s, err := findSnapshot(p.cat, ref)
	p.mu.RUnlock()
	if err != nil {
		panic(err)
	}
	out := make([]blockmap.Entry, blocksIn(s.SizeBytes))
	pins := p.store.NewPins()
	if err := waitFor(pins, func() error { return s.Root.Lookup(pins, 0, out) }); err != nil {
		panic(err)
	}
	return out
}

// LoseLeaf records the blocks of a volume's first leaf as lost.
func (p *Pool) LoseLeaf(volume string) error {
	v := p.volumes[p.cat.VolumeByName(volume).Number]
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.tree.Lose(p.store.NewPins(), 0, 0, blocksIn(v.size.Load()))
}

// Replay applies an entry as opening the pool does.
func (p *Pool) Replay(e seglog.Entry) error {
	r := p.newReplayer(nil)
	if err := r.add(0, []seglog.Entry{e}); err != nil {
		return err
	}
	return r.flush()
}

// Queued counts the requests that wait for the log.
func (p *Pool) Queued() int {
	p.committer.mu.Lock()
	defer p.committer.mu.Unlock()
	return len(p.committer.queue)
}

// CatalogueAt is where the newest checkpoint's catalogue lies.
func (p *Pool) CatalogueAt() (segment uint64, offset int64) {
	at := p.super.Load().chunks[0].Addr
	return at.Segment(), at.Offset()
}

// Cycle reclaims all that it can as a cycle in the background does, and so keeps spare files.
func (p *Pool) Cycle(ctx context.Context) error {
	_, err := p.reclaim(ctx, cleanAll)
	return err
}

// CatalogueBytes is the length of the newest checkpoint's catalogue image.
func (p *Pool) CatalogueBytes() int64 { return p.super.Load().catalogueLen }

// ReserveBytes is what the reserve's file takes.
const ReserveBytes = reserveBytes

// KeptBytes is how much is kept of an inplace volume.
func (p *Pool) KeptBytes(volume string) int64 {
	p.mu.RLock()
	kept := p.volumes[p.cat.VolumeByName(volume).Number].place.kept
	p.mu.RUnlock()
	kept.mu.RLock()
	defer kept.mu.RUnlock()
	return int64(kept.tree.View().Mapped()) * block.Size
}

// Room is how much the log may still grow by, less than nothing where more was written than should have been.
func (p *Pool) Room() int64 { return p.reclaimer.room(p) }

// KeptEntry is where an inplace volume's version is kept.
func (p *Pool) KeptEntry(volume string, version uint64) blockmap.Entry {
	p.mu.RLock()
	kept := p.volumes[p.cat.VolumeByName(volume).Number].place.kept
	p.mu.RUnlock()
	var e [1]blockmap.Entry
	if err := kept.lookup(p.store.NewPins(), version, e[:]); err != nil {
		panic(err)
	}
	return e[0]
}

// Counts tells how many states and volumes there are, hidden and internal ones too, beside the heads of volumes that can be seen.
func (p *Pool) Counts() (states, volumes int) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return len(p.cat.States()), len(p.cat.Volumes())
}

// RangesWaitedFor tells whether somebody waits for blocks of an inplace volume that are reserved.
func (p *Pool) RangesWaitedFor(volume string) bool {
	p.mu.RLock()
	r := &p.volumes[p.cat.VolumeByName(volume).Number].place.ranges
	p.mu.RUnlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.freed != nil
}

// RollbackWhole makes all of a volume what it is in a snapshot by copying, as if the snapshot's content lay elsewhere; if compare, also as
// if nobody knew what differs.
func (p *Pool) RollbackWhole(ctx context.Context, ref SnapshotRef, compare bool) (PutBack, error) {
	if !compare {
		done, _, err := p.RollbackCopy(ctx, ref, nil)
		return done, err
	}
	dev, err := p.OpenSnapshot(ref)
	if err != nil {
		return PutBack{}, err
	}
	defer func() { _ = dev.Close() }()
	p.mu.RLock()
	v := p.volumes[p.cat.State(dev.state).Volume]
	p.mu.RUnlock()
	if p.opts.Clock().Second()%2 == 0 { // the same, by who knows nothing of the pool
		done, _, err := p.Rewrite(ctx, v.name(), dev.size, keptByRollback, func(ctx context.Context, target block.Device) error {
			return rewriteFrom(ctx, dev, target)
		})
		return done, err
	}
	done, _, err := p.rollbackByCopy(ctx, v, former{content: dev, sizeBytes: dev.size}, nil, nil)
	return done, err
}

// rewriteFrom writes the blocks of a device that differ in the target, and zeroes those that are holes.
func rewriteFrom(ctx context.Context, from, target block.Device) error {
	want, have := make([]byte, block.Size), make([]byte, block.Size)
	for off := int64(0); off < from.SizeBytes(); off += block.Size {
		n := min(block.Size, from.SizeBytes()-off)
		if err := errors.Join(from.ReadAt(ctx, want[:n], off), target.ReadAt(ctx, have[:n], off)); err != nil {
			return err
		}
		if bytes.Equal(want[:n], have[:n]) {
			continue
		}
		op := &block.Op{Kind: block.OpWrite, Offset: off, Length: n, Data: want[:n]}
		e, err := from.Extents(ctx, off, n, 1)
		if err != nil {
			return err
		}
		if e[0].Hole {
			op = &block.Op{Kind: block.OpZero, Offset: off, Length: n}
		}
		if target.Submit(ctx, []*block.Op{op}); op.Err != nil {
			return op.Err
		}
	}
	return target.Flush(ctx)
}

// States lists all states.
func (p *Pool) States() []*catalogue.State {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.cat.States()
}

// Destage brings what lies in the log alone into an inplace volume's file.
func (p *Pool) Destage(ctx context.Context, volume string) error {
	return p.placeNamed(volume).destage(ctx)
}

// BeginDestage is the first half of Destage: what it returns is the rest.
func (p *Pool) BeginDestage(ctx context.Context, volume string) (finish func() error, err error) {
	pl := p.placeNamed(volume)
	turn := pl.turn.Load()
	written, err := pl.writeLogged(ctx)
	return func() error { return pl.settleWritten(written, turn) }, err
}

// Logged counts the blocks of an inplace volume that may lie in the log alone.
func (p *Pool) Logged(volume string) int {
	o := p.placeNamed(volume).overlay
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.blocks)
}

func (p *Pool) placeNamed(volume string) *place {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.volumes[p.cat.VolumeByName(volume).Number].place
}

// LockAndUnlock returns when nobody holds the pool's state.
func (p *Pool) LockAndUnlock() {
	p.mu.Lock()
	defer p.mu.Unlock()
}

// LeaveVersions has an inplace volume go on with the last n versions that writes may have.
func (p *Pool) LeaveVersions(volume string, n uint64) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	p.volumes[p.cat.VolumeByName(volume).Number].place.next.Store(uint64(catalogue.KeptBlocks) - catalogue.FirstVersion - n)
}

// baseNamed is the base that a volume is filled from, or was.
func (p *Pool) baseNamed(volume string) *base {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.volumes[p.cat.VolumeByName(volume).Number].baseBelow()
}

// FilledBlocks counts the blocks that are kept of a volume's base.
func (p *Pool) FilledBlocks(volume string) uint64 {
	kept := p.baseNamed(volume).kept
	kept.mu.RLock()
	defer kept.mu.RUnlock()
	return kept.tree.View().Mapped()
}

// BeginLook is the first half of Fill's look at what n blocks from lba on are wanted for: what it returns is the rest, which tells which are, and
// whether that holds.
func (p *Pool) BeginLook(volume string, lba uint64, n int) (finish func() (wanted []bool, holds bool)) {
	f, r := filler{base: p.baseNamed(volume)}, fillRegion{lba: lba, n: n}
	f.users()
	return func() ([]bool, bool) {
		holds := f.look(p.store.NewPins(), &r)
		return r.found[:n], holds
	}
}

// Collect gives back kept versions that no state has.
func (p *Pool) Collect(ctx context.Context) error { return p.collect(ctx) }

// Deleted tells whether the next cycle collects.
func (p *Pool) Deleted() bool { return p.reclaimer.deleted.Load() }
