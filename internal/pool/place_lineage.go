package pool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"varve/internal/block"
	"varve/internal/pool/catalogue"
)

// gates are those of the inplace volumes among some, in the order in which gates are taken.
func (p *Pool) gates(volumes []string) []*place {
	p.mu.RLock()
	defer p.mu.RUnlock()
	var out []*place
	for _, name := range volumes {
		if v := p.cat.VolumeByName(name); v != nil && p.volumes[v.Number].place != nil {
			out = append(out, p.volumes[v.Number].place)
		}
	}
	slices.SortFunc(out, func(a, b *place) int { return cmp.Compare(a.volume.number, b.volume.number) })
	return slices.Compact(out)
}

// shut takes gates alone, so that no write is half done, and returns what opens them and tells when.
func shut(gates []*place) (open func() time.Time) {
	for _, pl := range gates {
		pl.gate.Lock()
	}
	return func() time.Time {
		for _, pl := range gates {
			pl.gate.Unlock()
		}
		return time.Now()
	}
}

// complete makes durable what new snapshots have in place, and then says that they are whole. If that fails they go.
func (p *Pool) complete(_ context.Context, gates []*place, ids []uint64) (took time.Duration, err error) {
	if len(gates) == 0 {
		return 0, nil
	}
	start := time.Now()
	for _, pl := range gates {
		err = errors.Join(err, pl.sync())
	}
	if err == nil {
		_, err = p.changeNow(func(*catalogue.Catalogue) (proposal, error) {
			return proposal{op: &catalogue.Op{Complete: &catalogue.Complete{IDs: ids}}, urgent: true}, nil
		})
	}
	if err != nil {
		err = errors.Join(err, p.deleteStates(ids))
	}
	return time.Since(start), err
}

// rolledBack notes that the head has gone on from another state.
func (pl *place) rolledBack() {
	pl.pending.Store(true)
	pl.turn.Add(1)
}

// rollable tells why a volume cannot be rolled back to a snapshot.
func (p *Pool) rollable(c *catalogue.Catalogue, v *catalogue.Volume, s *catalogue.State) error {
	if p.volumes[v.Number].place != nil && s.Kind != catalogue.Copy && p.suspected(s) != 0 {
		return fmt.Errorf("snapshot %q: %w: %w", SnapshotRef{v.Name, s.Name}, block.ErrDamaged, errSuspect)
	}
	return p.fits(c, v, s.SizeBytes)
}

// fits tells why a volume cannot be rolled back to content of that size.
func (p *Pool) fits(c *catalogue.Catalogue, v *catalogue.Volume, sizeBytes int64) error {
	if v.Mirror != nil && sizeBytes != c.Head(v).SizeBytes {
		return fmt.Errorf("%w: what it is to hold has %d bytes, the volume %d, and a mirror that has its size; detach that first", ErrInUse, sizeBytes, c.Head(v).SizeBytes)
	}
	pl := p.volumes[v.Number].place
	if pl == nil {
		return nil
	}
	_, broken := pl.get()
	switch {
	case broken != nil:
		return broken
	case pl.readOnly:
		return fmt.Errorf("file %s: %w", pl.path, block.ErrReadOnly)
	case sizeBytes != c.Head(v).SizeBytes:
		return fmt.Errorf("%w: what it is to hold has %d bytes and the volume %d; restore it into another volume", ErrInvalid, sizeBytes, c.Head(v).SizeBytes)
	}
	return nil
}

func (p *Pool) deleteStates(ids []uint64) error {
	_, err := p.changeNow(func(*catalogue.Catalogue) (proposal, error) {
		return proposal{op: &catalogue.Op{DeleteSnapshots: &catalogue.DeleteSnapshots{IDs: ids}}, urgent: true, deletes: ids}, nil
	})
	return err
}

// dropPending deletes snapshots of which a crash left open whether what they have in place is durable.
func (p *Pool) dropPending(context.Context) error {
	var ids []uint64
	for _, s := range p.cat.States() {
		if s.Kind == catalogue.Snapshot && s.Pending {
			ids = append(ids, s.ID)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	return p.deleteStates(ids)
}

// dependants names volumes whose blocks may lie in a volume's file.
func (p *Pool) dependants(c *catalogue.Catalogue, number uint64) []string {
	var names []string
	for _, v := range c.Volumes() {
		if v.Base == number && v.Number != number {
			names = append(names, v.Name)
		}
	}
	return names
}

// detachable tells why an inplace volume cannot be deleted now.
func (p *Pool) detachable(c *catalogue.Catalogue, v *catalogue.Volume) error {
	if names := p.dependants(c, v.Number); len(names) > 0 {
		return fmt.Errorf("%w: volume %q reads blocks from its file; delete it first", ErrInUse, names[0])
	}
	pl := p.volumes[v.Number].place
	_, broken := pl.get()
	switch {
	case broken == nil && pl.pending.Load():
		return fmt.Errorf("%w: a rollback is being copied back into its file; wait for that", ErrInUse)
	case broken == nil && !pl.whole():
		return fmt.Errorf("%w: it has just been written to, and not all of that is in its file yet; try again", ErrInUse)
	case broken != nil && !pl.overlay.empty.Load():
		return fmt.Errorf("%w: what was written to it last lies in the pool alone, and its file cannot take it: %w; open the pool again when it can, "+
			"or, should the file be gone for good, with another of the same size in its place", ErrInUse, broken)
	}
	return nil
}
