package pool

import (
	"context"
	"fmt"
	"sync/atomic"

	"varve/internal/block"
	"varve/internal/pool/catalogue"
)

// Device is an open volume or snapshot. A volume's Device follows the volume
// through rename, resize and rollback.
type Device struct {
	pool   *Pool
	volume *volume // nil for a snapshot
	state  uint64  // a snapshot's
	root   frozen  // a snapshot's
	// Of a copy: root is the map of its content in the pool, or there is a file; what has changed is told by instant.
	instant frozen
	file    *copyFile
	size    int64
	label   string
	origin  *origin // of blocks of which its map has versions; nil: it has none
	// suspect, if not 0: what it has in the file may have been changed by somebody else. See based.
	suspect uint64
	wrote   atomic.Bool // has a change ever been asked of it
	closed  atomic.Bool
	since   map[uint64]bool // states that it is compared with; guarded by Pool.mu
}

var (
	_ block.Device         = (*Device)(nil)
	_ block.ResidentReader = (*Device)(nil)
)

// OpenVolume opens a volume's head for reading and writing.
func (p *Pool) OpenVolume(name string) (*Device, error) { return p.openVolume(name, false) }

// OpenIncomplete opens a volume that was created Incomplete, to fill it.
func (p *Pool) OpenIncomplete(name string) (*Device, error) { return p.openVolume(name, true) }

func (p *Pool) openVolume(name string, incomplete bool) (*Device, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, fmt.Errorf("open volume %q: pool: %w", name, block.ErrClosed)
	}
	v := p.cat.VolumeByName(name)
	if v == nil || v.Incomplete != incomplete || v.Internal() || p.deleting[v.Head] {
		return nil, fmt.Errorf("volume %q: %w", name, ErrNotFound)
	}
	if _, err := findLive(p.cat, name); err != nil && !incomplete {
		return nil, err
	}
	d := &Device{pool: p, volume: p.volumes[v.Number], origin: p.volumes[v.Number].origin}
	if d.origin != nil && d.volume.place == nil {
		d.suspect = p.suspected(p.cat.Head(v))
	}
	d.volume.devices[d] = struct{}{}
	return d, nil
}

// OpenSnapshot opens a snapshot for reading.
func (p *Pool) OpenSnapshot(ref SnapshotRef) (*Device, error) {
	return p.openState(ref.String(), func(c *catalogue.Catalogue) (*catalogue.State, error) {
		_, s, err := findSnapshot(c, ref)
		return s, err
	})
}

// openState opens the snapshot that find returns, or one that is not listed yet.
func (p *Pool) openState(label string, find func(*catalogue.Catalogue) (*catalogue.State, error)) (*Device, error) {
	d, file, err := p.holdState(label, find)
	if err != nil || file == nil {
		return d, err
	}
	if d.file, err = p.openCopyFile(file); err != nil { // with nothing of the pool held: it may take its time
		_ = d.Close() // nothing was written
		return nil, fmt.Errorf("snapshot %q: %w", label, err)
	}
	return d, nil
}

// holdState is openState, but for the file of a copy that lies in one, which it returns.
func (p *Pool) holdState(label string, find func(*catalogue.Catalogue) (*catalogue.State, error)) (d *Device, file *catalogue.Content, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, nil, fmt.Errorf("open snapshot %q: pool: %w", label, block.ErrClosed)
	}
	s, err := find(p.cat)
	if err != nil {
		return nil, nil, err
	}
	if s == nil || p.deleting[s.ID] {
		return nil, nil, fmt.Errorf("snapshot %q: %w: it is being deleted", label, ErrNotFound)
	}
	d = &Device{pool: p, state: s.ID, size: s.SizeBytes, label: label}
	pins := &p.reclaimer.pins
	if s.Kind == catalogue.Copy {
		if content := contentOf(p.cat, s); content != nil {
			d.root = frozen{pins.keep(content.Root)}
		} else {
			file = s.Copy
		}
		d.instant = frozen{pins.keep(s.Root)}
	} else {
		d.root, d.origin, d.suspect = frozen{pins.keep(s.Root)}, p.basedOn(p.cat, s), p.suspected(s)
	}
	p.snapOpen[s.ID]++
	return d, file, nil
}

// Close implements block.Device.
func (d *Device) Close() error {
	if d.closed.Swap(true) {
		return nil
	}
	d.pool.mu.Lock()
	defer d.pool.mu.Unlock()
	if d.volume != nil {
		delete(d.volume.devices, d)
	} else {
		d.pool.letGo(d.state)
		for _, r := range []frozen{d.root, d.instant} {
			if r.root != nil {
				d.pool.reclaimer.pins.drop(r.root)
			}
		}
	}
	if d.file != nil {
		_ = d.file.file.Close() // nothing was written
	}
	for id := range d.since {
		d.pool.letGo(id)
	}
	return nil
}

// letGo notes that one less has a state open; mu is held.
func (p *Pool) letGo(state uint64) {
	if p.snapOpen[state]--; p.snapOpen[state] == 0 {
		delete(p.snapOpen, state)
	}
}

// SizeBytes implements block.Device.
func (d *Device) SizeBytes() int64 {
	if d.volume != nil {
		return d.volume.size.Load()
	}
	return d.size
}

func (d *Device) name() string {
	if d.volume != nil {
		return fmt.Sprintf("volume %q", d.volume.name())
	}
	return fmt.Sprintf("snapshot %q", d.label)
}

func (d *Device) view() view {
	v := view(d.root)
	if d.volume != nil {
		v = d.volume
	}
	if d.origin != nil {
		return based{v, d.origin, d.suspect}
	}
	return v
}

// lineage is what tells what has changed.
func (d *Device) lineage() view {
	if d.instant.root != nil {
		return d.instant
	}
	return d.view()
}

// begin admits a request, which must call d.pool.end when it is done.
func (d *Device) begin() error {
	if d.closed.Load() || !d.pool.begin() {
		return fmt.Errorf("%s: %w", d.name(), block.ErrClosed)
	}
	return nil
}

// ReadAt implements block.Device.
func (d *Device) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := d.begin(); err != nil {
		return err
	}
	defer d.pool.end()
	err := ctx.Err()
	if err == nil {
		err = block.CheckRange(off, int64(len(p)), d.SizeBytes())
	}
	if err == nil {
		err = d.read(ctx, p, off)
		d.damageMet("reading", int64(len(p)), off, err)
	}
	if err != nil {
		return fmt.Errorf("read %d bytes at %d of %s: %w", len(p), off, d.name(), err)
	}
	return nil
}

func (d *Device) read(ctx context.Context, p []byte, off int64) error {
	if d.volume != nil {
		if done, err := d.readHead(p, off, true); done {
			return err
		}
	}
	if d.file != nil {
		return d.file.read(p, off, true)
	}
	return d.pool.read(ctx, d.view(), p, off, true)
}

// TryReadAt implements block.ResidentReader.
func (d *Device) TryReadAt(p []byte, off int64) (bool, error) {
	if err := d.begin(); err != nil {
		return true, err
	}
	defer d.pool.end()
	err := block.CheckRange(off, int64(len(p)), d.SizeBytes())
	if err != nil {
		return true, fmt.Errorf("read %d bytes at %d of %s: %w", len(p), off, d.name(), err)
	}
	if d.volume != nil {
		if done, err := d.readHead(p, off, false); done {
			return err == nil, nil
		}
	}
	if d.file != nil {
		return d.file.read(p, off, false) == nil, nil
	}
	// Whatever goes wrong is found and told by ReadAt, which waits and looks again.
	return d.pool.read(context.Background(), d.view(), p, off, false) == nil, nil
}

// Submit implements block.Device.
func (d *Device) Submit(ctx context.Context, ops []*block.Op) {
	if d.volume == nil {
		failAll(ops, fmt.Errorf("write to %s: %w", d.name(), block.ErrReadOnly))
		return
	}
	if err := d.begin(); err != nil {
		failAll(ops, err)
		return
	}
	defer d.pool.end()
	d.wrote.Store(true)
	d.volume.write(ctx, ops)
	for _, op := range ops {
		d.damageMet("writing", op.Length, op.Offset, op.Err)
	}
}

// Flush implements block.Device. It covers the whole pool.
func (d *Device) Flush(context.Context) error {
	if err := d.begin(); err != nil {
		return err
	}
	defer d.pool.end()
	var err error
	if d.volume == nil {
		err = d.pool.log.Flush(d.pool.log.LastSeq())
	} else {
		err = d.volume.flush()
	}
	if err != nil {
		return fmt.Errorf("flush %s: %w", d.name(), err)
	}
	return nil
}

// Extents implements block.Device.
func (d *Device) Extents(ctx context.Context, off, length int64, limit int) ([]block.Extent, error) {
	if err := d.begin(); err != nil {
		return nil, err
	}
	defer d.pool.end()
	err := block.CheckRange(off, length, d.SizeBytes())
	var out []block.Extent
	if err == nil && length > 0 {
		out, err = d.extents(ctx, off, length, limit)
		d.damageMet("finding the extents of", length, off, err)
	}
	if err != nil {
		return nil, fmt.Errorf("extents of %d bytes at %d of %s: %w", length, off, d.name(), err)
	}
	return out, nil
}

func (d *Device) extents(ctx context.Context, off, length int64, limit int) ([]block.Extent, error) {
	if d.volume != nil && d.volume.place != nil && d.volume.place.whole() {
		return d.volume.place.extentsInFile(off, length, limit)
	}
	if d.file != nil {
		return d.file.extents(off, length, limit)
	}
	return d.pool.extents(ctx, d.view(), off, length, limit)
}
