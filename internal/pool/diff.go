package pool

import (
	"context"
	"fmt"
	"sync"

	"varve/internal/block"
	"varve/internal/pool/blockmap"
	"varve/internal/pool/catalogue"
)

// PointRef names what a volume held at a point in time, or what it holds now.
type PointRef struct {
	Volume   string
	Name     string // of a snapshot or bookmark; empty: now
	Bookmark bool
}

func (r PointRef) String() string {
	switch {
	case r.Name == "":
		return r.Volume
	case r.Bookmark:
		return BookmarkRef{r.Volume, r.Name}.String()
	}
	return SnapshotRef{r.Volume, r.Name}.String()
}

func findPoint(c *catalogue.Catalogue, ref PointRef) (s *catalogue.State, err error) {
	switch {
	case ref.Name == "":
		var v *catalogue.Volume
		if v, err = findLive(c, ref.Volume); err == nil {
			s = c.Head(v)
		}
	case ref.Bookmark:
		_, s, err = findBookmark(c, BookmarkRef{ref.Volume, ref.Name})
	default:
		_, s, err = findSnapshot(c, SnapshotRef{ref.Volume, ref.Name})
	}
	return s, err
}

// Diff is what changed between two states, as they were when it was opened. It keeps what it
// reads from being given back until it is closed.
type Diff struct {
	pool     *Pool
	name     string
	from, to *lasting
	size     int64
	release  func()
	closed   sync.Once
}

// OpenDiff compares from, a snapshot or bookmark, with to, a snapshot or a volume as it is now.
// They may be of different volumes if one descends from the other, or both from the same snapshot;
// else ErrInvalid. ErrNotFound.
func (p *Pool) OpenDiff(from, to PointRef) (*Diff, error) {
	fail := func(err error) (*Diff, error) {
		return nil, fmt.Errorf("diff of %q to %q: %w", from, to, err)
	}
	if from.Name == "" {
		return fail(fmt.Errorf("%w: %q is no snapshot or bookmark", ErrInvalid, from))
	}
	if to.Bookmark {
		return fail(fmt.Errorf("%w: %q is a bookmark, which has no data; compare with a snapshot or the volume", ErrInvalid, to))
	}
	d, err := p.openDiff(func(c *catalogue.Catalogue) (a, b *catalogue.State, err error) {
		if a, err = findPoint(c, from); err == nil {
			b, err = findPoint(c, to)
		}
		return a, b, err
	})
	if err != nil {
		return fail(err)
	}
	d.name = fmt.Sprintf("%q to %q", from, to)
	return d, nil
}

// openDiff compares the states that find returns, of which the first is no head.
func (p *Pool) openDiff(find func(*catalogue.Catalogue) (a, b *catalogue.State, err error)) (*Diff, error) {
	d := &Diff{pool: p}
	release, err := p.pin(func() ([]ownedRoot, error) {
		if p.closed {
			return nil, fmt.Errorf("pool: %w", block.ErrClosed)
		}
		a, b, err := find(p.cat)
		if err != nil {
			return nil, err
		}
		if err := p.comparable(a, b); err != nil {
			return nil, err
		}
		if !p.cat.Related(a, b) {
			return nil, fmt.Errorf("%w: they are not related: neither was cloned from the other, nor both from one volume", ErrInvalid)
		}
		k := &p.reclaimer.pins
		d.from, d.to, d.size = k.keep(p.frozenRoot(a)), k.keep(p.frozenRoot(b)), b.SizeBytes
		walked := blockmap.Own{Data: blockmap.NoData} // all nodes, and no data
		return []ownedRoot{{state: a.ID, root: d.from.now(), own: walked}, {state: b.ID, root: d.to.now(), own: walked}}, nil
	})
	if err != nil {
		return nil, err
	}
	d.release = release
	return d, nil
}

// comparable tells why nobody knows what changed between two states: between them somebody else has changed the file that they
// lie in. mu is held.
func (p *Pool) comparable(a, b *catalogue.State) error {
	for _, v := range []*catalogue.Volume{p.cat.Volume(a.Volume), p.cat.Volume(b.Volume)} {
		if v == nil || p.cat.Volume(v.Base) == nil || p.cat.Volume(v.Base).Place == nil {
			continue
		}
		suspect := p.cat.Volume(v.Base).Place.Suspect
		old := func(s *catalogue.State) bool { return s.Kind != catalogue.Head && s.ID <= suspect }
		if old(a) != old(b) {
			return fmt.Errorf("%w: the file was changed by somebody else between them, and what that changed is not known", ErrInvalid)
		}
	}
	return nil
}

// SizeBytes is the size of what is compared with: what changed lies below it.
func (d *Diff) SizeBytes() int64 { return d.size }

// Close lets go of what the diff keeps.
func (d *Diff) Close() {
	d.closed.Do(func() {
		d.pool.reclaimer.pins.drop(d.from)
		d.pool.reclaimer.pins.drop(d.to)
		d.release()
	})
}

// diffRuns is how many runs are found at a time, between calls of visit.
const diffRuns = 1024

// Each calls visit for each extent, in bytes, that is not what it was: in ascending order, with something unchanged
// between any two. Extents are whole blocks, but where the end of the device is not. A block counts as changed if it was
// written, or held data and was discarded: a write of the same bytes is a change, one that is undone by a rollback is none.
// What lies beyond the end of the older state is compared with zeros. Nothing of the pool is held while visit runs, which may
// take its time. Its error ends the walk.
func (d *Diff) Each(ctx context.Context, visit func(offset, length int64) error) error {
	return d.within(ctx, 0, d.size, visit)
}

// within is Each for the part from off up to end, which begins with a block.
func (d *Diff) within(ctx context.Context, off, end int64, visit func(offset, length int64) error) error {
	for off < end {
		found, err := d.next(ctx, off, end)
		if err != nil {
			return fmt.Errorf("diff of %s: %w", d.name, err)
		}
		for _, r := range found {
			if r.is {
				if err := visit(r.offset, r.length); err != nil {
					return err
				}
			}
			off = r.offset + r.length
		}
	}
	return nil
}

func (d *Diff) next(ctx context.Context, off, end int64) ([]run, error) {
	if !d.pool.begin() {
		return nil, fmt.Errorf("pool: %w", block.ErrClosed)
	}
	defer d.pool.end()
	return d.pool.runs(ctx, off, end-off, diffRuns, func(pins *blockmap.Pins, lba, limit uint64) (uint64, bool, error) {
		return blockmap.Diff(pins, d.from.now(), d.to.now(), lba, limit)
	})
}

// Changes tells where an open volume or snapshot differs from an older state of the same volume, which
// cannot be deleted meanwhile. It is good for as long as its device is open. A volume's follow what is written to it.
type Changes struct {
	device *Device
	since  uint64 // a state
}

// OlderNames lists the snapshots and bookmarks of the device's volume that are older than what it shows, which
// ChangesSince accepts: the newest first, at most limit.
func (d *Device) OlderNames(limit int) []string {
	d.pool.mu.RLock()
	defer d.pool.mu.RUnlock()
	v, before := d.point()
	if v == nil {
		return nil
	}
	var names []string
	for _, s := range d.pool.cat.NewestPoints(v, before, limit) {
		names = append(names, s.Name)
	}
	return names
}

// point is the device's volume and an epoch that is newer than all older states; mu is held.
func (d *Device) point() (*catalogue.Volume, uint64) {
	c := d.pool.cat
	if d.volume != nil {
		return c.Volume(d.volume.number), c.LastEpoch + 1
	}
	if s := c.State(d.state); s != nil {
		return c.Volume(s.Volume), s.Epoch
	}
	return nil, 0
}

// older finds a state by name, or returns ErrNotFound; mu is held.
func (d *Device) older(name string) (*catalogue.State, error) {
	v, before := d.point()
	if v != nil {
		for _, s := range []*catalogue.State{d.pool.cat.SnapshotByName(v, name), d.pool.cat.BookmarkByName(v, name)} {
			if s != nil && s.Epoch < before && !d.pool.deleting[s.ID] && (s.Kind == catalogue.Bookmark || d.pool.cat.Listed(s)) {
				return s, nil
			}
		}
	}
	return nil, fmt.Errorf("%s: %w: it has no older snapshot or bookmark %q", d.name(), ErrNotFound, name)
}

// HasOlder tells whether ChangesSince accepts the name.
func (d *Device) HasOlder(name string) bool {
	d.pool.mu.RLock()
	defer d.pool.mu.RUnlock()
	_, err := d.older(name)
	return err == nil
}

// ChangesSince compares with an older snapshot or bookmark. ErrNotFound, block.ErrClosed.
func (d *Device) ChangesSince(name string) (*Changes, error) {
	d.pool.mu.Lock()
	defer d.pool.mu.Unlock()
	if d.closed.Load() || d.pool.closed {
		return nil, fmt.Errorf("%s: %w", d.name(), block.ErrClosed)
	}
	s, err := d.older(name)
	if err != nil {
		return nil, err
	}
	if d.volume != nil {
		if err := d.pool.comparable(s, d.pool.cat.Head(d.pool.cat.Volume(d.volume.number))); err != nil {
			return nil, fmt.Errorf("%s: %w", d.name(), err)
		}
	} else if err := d.pool.comparable(s, d.pool.cat.State(d.state)); err != nil {
		return nil, fmt.Errorf("%s: %w", d.name(), err)
	}
	if !d.since[s.ID] {
		if d.since == nil {
			d.since = map[uint64]bool{}
		}
		d.since[s.ID] = true
		d.pool.snapOpen[s.ID]++
	}
	return &Changes{d, s.ID}, nil
}

// Run is a stretch of bytes that has changed, or has not.
type Run struct {
	Length  int64
	Changed bool
}

// Runs describes [off, off+length) in at most limit runs, in turn changed and not, and may end early.
func (c *Changes) Runs(ctx context.Context, off, length int64, limit int) ([]Run, error) {
	d := c.device
	if err := d.begin(); err != nil {
		return nil, err
	}
	defer d.pool.end()
	err := block.CheckRange(off, length, d.SizeBytes())
	var found []run
	if err == nil && length > 0 {
		d.pool.mu.RLock()
		since := d.pool.cat.State(c.since).Root
		d.pool.mu.RUnlock()
		found, err = d.pool.runs(ctx, off, length, limit, func(pins *blockmap.Pins, lba, limit uint64) (uint64, bool, error) {
			return d.lineage().differs(pins, since, lba, limit)
		})
	}
	if err != nil {
		return nil, fmt.Errorf("changes of %d bytes at %d of %s: %w", length, off, d.name(), err)
	}
	out := make([]Run, len(found))
	for i, r := range found {
		out[i] = Run{r.length, r.is}
	}
	return out, nil
}
