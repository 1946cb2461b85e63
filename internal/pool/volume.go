package pool

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"varve/internal/block"
	"varve/internal/pool/blockmap"
	"varve/internal/pool/catalogue"
	"varve/internal/pool/seglog"
)

// volume is a volume's live head: its map and those who use it.
type volume struct {
	pool   *Pool
	number uint64
	label  atomic.Pointer[string] // its name, for messages
	size   atomic.Int64           // bytes

	// resize is held shared by writes, from when they look at the size until they are in the
	// map, and alone by what changes the size.
	resize sync.RWMutex

	// mu guards the tree, which the committer's leader and checkpoints change.
	mu   sync.RWMutex
	tree *blockmap.Tree
	keep bool // the head has a parent with data: what is cleared leaves tombstones
	gone bool // deleted
	// version counts what changes the tree's content.
	version uint64

	relayout    atomic.Bool // under way
	puttingBack atomic.Bool // a rollback that copies is under way
	internal    bool        // nobody sees it: what is written to it is not a client's

	// gate is held shared by writes, and alone while the mirror comes, goes or is paused.
	gate   sync.RWMutex
	mirror atomic.Pointer[mirror] // nil: none

	place  *place  // of an inplace volume
	origin *origin // of blocks of which its map has versions: its own, or that of what it was cloned from; nil: it has none
	basis  *base   // of an internal volume that is filled from a base

	devices map[*Device]struct{} // open ones; guarded by Pool.mu
	scratch []blockmap.Entry     // of apply
}

func (p *Pool) newVolume(v *catalogue.Volume, head *catalogue.State, root blockmap.Root) *volume {
	w := &volume{
		pool: p, number: v.Number, internal: v.Internal(), keep: p.cat.DataParent(head) != nil, devices: map[*Device]struct{}{},
		tree: blockmap.NewTree(root, head.Epoch, p.cat.DataSince(head), p.nextGen()),
	}
	w.label.Store(&v.Name)
	w.size.Store(head.SizeBytes)
	w.origin = p.originOf(v.Number)
	return w
}

func (v *volume) name() string { return *v.label.Load() }

// apply folds a Data, Clear or Move entry into the map.
func (v *volume) apply(pins *blockmap.Pins, e *seglog.Entry) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.applyLocked(pins, e)
}

func (v *volume) applyLocked(pins *blockmap.Pins, e *seglog.Entry) error {
	v.version++
	defer func() {
		v.pool.checkpointer.dirty.Add(v.tree.TakeDirty())
		v.pool.reclaimer.live.Add(v.tree.TakeLive() * block.Size)
		v.pool.reclaimer.unsure.Add(v.tree.TakeUnsure() * block.Size)
		if b := v.baseBelow(); b != nil {
			b.lost(v.tree.TakeUnversioned())
		}
	}()
	if e.LBA >= blockmap.MaxBlocks || e.Count > blockmap.MaxBlocks-e.LBA {
		return fmt.Errorf("%w: %d blocks at %d of a volume", ErrDamagedLog, e.Count, e.LBA)
	}
	switch e.Kind {
	case seglog.KindClear:
		return v.tree.Clear(pins, e.LBA, e.Count, v.keep)
	case seglog.KindTouch, seglog.KindBack:
		return v.applyVersions(pins, e)
	}
	if e.Epoch != v.tree.Epoch() {
		return fmt.Errorf("%w: blocks of epoch %d where the volume is in epoch %d", ErrDamagedLog, e.Epoch, v.tree.Epoch())
	}
	v.scratch = v.scratch[:0]
	if e.Kind == seglog.KindZero {
		for range e.Count {
			v.scratch = append(v.scratch, blockmap.Entry{Epoch: e.Epoch})
		}
	}
	for i, crc := range e.CRCs {
		v.scratch = append(v.scratch, blockmap.Entry{Addr: e.Addr.Plus(int64(i) * block.Size), Epoch: e.Epoch, CRC: crc})
	}
	if e.Kind == seglog.KindMove {
		if err := v.keepEpochs(pins, e.LBA, v.scratch); err != nil {
			return err
		}
	}
	return v.tree.Set(pins, e.LBA, v.scratch)
}

// keepEpochs gives entries for blocks that were moved the epochs of those that they replace: the
// blocks are the same, so that whoever compares two states finds no change. A block that is not what was moved is damage.
func (v *volume) keepEpochs(pins *blockmap.Pins, lba uint64, moved []blockmap.Entry) error {
	now := make([]blockmap.Entry, len(moved))
	if err := v.lookupLocked(pins, lba, now); err != nil {
		return err
	}
	for i := range moved {
		// One that a repair had to give up, because its map was damaged, is there again.
		if !now[i].Mapped() || (now[i].CRC != moved[i].CRC && !now[i].Lost()) {
			return fmt.Errorf("%w: block %d was moved, and is not the one that is there", ErrDamagedLog, lba+uint64(i))
		}
		moved[i].Epoch = now[i].Epoch
	}
	return nil
}

// lookupLocked is lookup for somebody who holds mu, and reads what is not in memory all the same.
func (v *volume) lookupLocked(pins *blockmap.Pins, lba uint64, out []blockmap.Entry) error {
	for {
		err := v.tree.View().Lookup(pins, lba, out)
		miss, ok := err.(*blockmap.Miss)
		if !ok {
			return err
		}
		if err := pins.Load(miss); err != nil {
			return err
		}
	}
}

// lookup fills out with the entries from lba on, waiting for the log where it must.
func (v *volume) lookup(pins *blockmap.Pins, lba uint64, out []blockmap.Entry) error {
	return waitFor(pins, func() error {
		v.mu.RLock()
		defer v.mu.RUnlock()
		return v.tree.View().Lookup(pins, lba, out)
	})
}

// waitFor repeats a look-up until what it needs is in memory. No lock is held
// while the log is read; so a node may have been replaced and given back meanwhile, and is lost
// only if the next look-up wants it again.
func waitFor(pins *blockmap.Pins, lookup func() error) error {
	var lost blockmap.Miss
	for {
		err := lookup()
		miss, ok := err.(*blockmap.Miss)
		if !ok {
			return err
		}
		if err := pins.Load(miss); errors.Is(err, blockmap.ErrDamaged) && *miss != lost {
			lost = *miss
		} else if err != nil {
			return err
		}
	}
}

// blocksIn is the number of blocks that hold sizeBytes.
func blocksIn(sizeBytes int64) uint64 { return uint64(sizeBytes+block.Size-1) / block.Size }
