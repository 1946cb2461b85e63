package pool

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"varve/internal/block"
	"varve/internal/pool/catalogue"
)

// SplitMirror makes a copy of a volume as it is at one instant, in the file of its leg, which is detached. The mirror must be in sync.
// Pause of the timing is how long the volume's writers waited. ErrNotFound, ErrExists, ErrInUse (it is not in sync), ErrInvalid.
func (p *Pool) SplitMirror(_ context.Context, name string, spec SnapshotSpec) (SnapshotInfo, Timing, error) {
	if err := checkSnapshot(&spec); err != nil {
		return SnapshotInfo{}, Timing{}, err
	}
	if !p.begin() {
		return SnapshotInfo{}, Timing{}, fmt.Errorf("split snapshot %q off: pool: %w", SnapshotRef{name, spec.Name}, block.ErrClosed)
	}
	defer p.end()
	m, err := p.mirrorOf(name)
	var t Timing
	var copied uint64
	if err == nil {
		copied, t, err = m.split(&spec)
	}
	if err != nil {
		return SnapshotInfo{}, t, fmt.Errorf("split snapshot %q off: %w", SnapshotRef{name, spec.Name}, err)
	}
	return p.describe([]uint64{copied})[0], t, nil
}

func (m *mirror) split(spec *SnapshotSpec) (copied uint64, t Timing, err error) {
	start := time.Now()
	frozen, t, err := m.freeze(spec)
	if err != nil {
		return 0, t, err
	}
	if copied, err = m.separate(frozen); err == nil {
		m.close()
		t.Durable = time.Since(start)
		return copied, t, nil
	}
	// It stays what it was, and what was written meanwhile is copied.
	err = errors.Join(err, m.pool.deleteStates([]uint64{frozen}))
	return 0, t, errors.Join(err, m.volume.alone(func(func()) error {
		m.paused.Store(false)
		return nil
	}))
}

// inSync refuses what needs both sides to be the same.
func (m *mirror) inSync() error {
	if err := m.broken(); err != nil {
		return err
	}
	if n := m.differing(); n > 0 {
		return fmt.Errorf("%w: the mirror is not in sync: %d bytes are to be copied first", ErrInUse, n)
	}
	return nil
}

// freeze makes a snapshot that is the same as the leg, which is not written from then on.
func (m *mirror) freeze(spec *SnapshotSpec) (id uint64, t Timing, err error) {
	if err := m.inSync(); err != nil { // before anybody waits for it
		return 0, t, err
	}
	p, v := m.pool, m.volume
	entered := time.Now()
	err = v.alone(func(open func()) error {
		var places []*place
		if v.place != nil {
			places = append(places, v.place)
		}
		shutPlaces := shut(places)
		opened := false
		release := func() {
			if !opened {
				opened = true
				shutPlaces()
				open()
				t.Pause = time.Since(entered)
			}
		}
		defer release()
		_, err := p.change(func(c *catalogue.Catalogue) (proposal, error) {
			now := c.Volume(v.number)
			if now == nil || v.mirror.Load() != m {
				return proposal{after: release}, errDetached
			}
			if err := m.inSync(); err != nil {
				return proposal{after: release}, err
			}
			if c.Taken(now, spec.Name) {
				return proposal{after: release}, ErrExists
			}
			at := p.opts.Clock()
			op := &catalogue.CreateSnapshots{Name: spec.Name, CreatedAt: at.UnixNano(), Labels: spec.Labels, Group: uuid.New()}
			if spec.KeepFor > 0 {
				op.ExpiresAt = at.Add(spec.KeepFor).UnixNano()
			}
			id = c.LastState + 1
			op.Of = []catalogue.NewSnapshot{{
				Volume: v.number, ID: id, UUID: uuid.New(), Pending: true, Copying: &catalogue.NewCopying{Technique: catalogue.Mirror, Path: m.path},
			}}
			return proposal{op: &catalogue.Op{CreateSnapshots: op}, after: func() {
				if p.cat.State(id) != nil {
					m.paused.Store(true)
				}
				release()
			}}, nil
		})
		return err
	})
	return id, t, err
}

// separate makes the leg durable, and then the copy that has it.
func (m *mirror) separate(frozen uint64) (copied uint64, err error) {
	p := m.pool
	if err := m.volume.sync(); err != nil {
		return 0, err
	}
	l := m.hold()
	if l == nil {
		return 0, fmt.Errorf("file %s: %w", m.path, block.ErrClosed)
	}
	defer l.letGo()
	if err := l.Sync(); err != nil {
		err = fmt.Errorf("sync file %s: %w", m.path, err)
		return 0, errors.Join(err, m.drop(err))
	}
	seal, err := sealOf(p.opts.FS, m.path, l)
	if err != nil {
		return 0, err
	}
	_, err = p.change(func(c *catalogue.Catalogue) (proposal, error) {
		if s := c.State(frozen); s == nil || s.Copying == nil || m.volume.mirror.Load() != m {
			return proposal{}, errDetached
		}
		copied = c.LastState + 1
		op := &catalogue.SplitMirror{Volume: m.volume.number, Of: frozen, ID: copied, Seal: seal}
		return proposal{op: &catalogue.Op{SplitMirror: op}, urgent: true, deletes: []uint64{frozen}, after: func() {
			if p.cat.State(copied) != nil { // whoever finds the regions gone finds the mirror gone as well
				m.volume.mirror.Store(nil)
			}
		}}, nil
	})
	return copied, err
}

// ResyncMirror makes the file of a copy the leg of its volume again, and deletes the copy. What differs, which is what was written to the volume
// since, is for SyncMirror to copy; all of it, if somebody else has changed the file. ErrNotFound, ErrInvalid, ErrProtected, ErrInUse.
func (p *Pool) ResyncMirror(ctx context.Context, ref SnapshotRef) (MirrorInfo, error) {
	if !p.begin() {
		return MirrorInfo{}, fmt.Errorf("resync snapshot %q: pool: %w", ref, block.ErrClosed)
	}
	defer p.end()
	m, err := p.resync(ctx, ref)
	if err != nil {
		return MirrorInfo{}, fmt.Errorf("resync snapshot %q: %w", ref, err)
	}
	return m.info(), nil
}

func (p *Pool) resync(ctx context.Context, ref SnapshotRef) (*mirror, error) {
	p.adopting.Lock()
	defer p.adopting.Unlock()
	p.mu.RLock()
	_, s, err := findSnapshot(p.cat, ref)
	p.mu.RUnlock()
	if err != nil {
		return nil, err
	}
	v, old, err := p.mirrorable(ref.Volume)
	switch {
	case err != nil:
		return nil, err
	case s.Copy == nil || s.Copy.Path == "":
		return nil, fmt.Errorf("%w: it is no copy in a file", ErrInvalid)
	case s.Protected:
		return nil, fmt.Errorf("%w; unprotect it first", ErrProtected)
	case s.SizeBytes != v.size.Load():
		return nil, fmt.Errorf("%w: it has %d bytes, and the volume %d", ErrInvalid, s.SizeBytes, v.size.Load())
	case old != nil:
		return nil, fmt.Errorf("%w: the volume is mirrored to %s; detach that first", ErrInUse, old.path)
	}
	m, err := p.attachLeg(v, s.Copy.Path, true)
	if err != nil {
		return nil, err
	}
	known := false
	if l := m.hold(); l != nil {
		known = changedSince(p.opts.FS, m.path, l, &s.Copy.Seal) == nil
		l.letGo()
	}
	if known {
		if err = m.recordSince(ctx, ref); errors.Is(err, ErrInvalid) { // somebody else has changed the volume's file
			known, err = false, nil
		}
	}
	if err == nil {
		err = m.join(s.ID, known)
	}
	if err != nil {
		defer m.close()
		return nil, errors.Join(err, m.forget())
	}
	return m, nil
}

// recordSince records what was written to the volume since a copy. Others record what they write themselves.
func (m *mirror) recordSince(ctx context.Context, ref SnapshotRef) error {
	d, err := m.pool.OpenDiff(PointRef{Volume: ref.Volume, Name: ref.Name}, PointRef{Volume: ref.Volume})
	if err != nil {
		return err
	}
	defer d.Close()
	var found []span
	err = d.Each(ctx, func(offset, length int64) error {
		at := span{uint64(offset) / catalogue.RegionBytes, uint64(offset+length-1)/catalogue.RegionBytes + 1}
		if n := len(found); n > 0 && at.lo <= found[n-1].hi {
			found[n-1].hi = at.hi
		} else {
			found = append(found, at)
		}
		if len(found) < maxRequestChanges {
			return nil
		}
		err := m.regions.mark(found)
		found = found[:0]
		return err
	})
	if err != nil {
		return err
	}
	return m.regions.mark(found)
}

// join makes the file the leg; of it what is recorded differs, or, unless that is known, everything. It is not if everything has come to differ
// since the file was attached, by a rollback, say: what is written then is not recorded.
func (m *mirror) join(copied uint64, known bool) error {
	p, v := m.pool, m.volume
	err := v.alone(func(open func()) error {
		_, err := p.change(func(c *catalogue.Catalogue) (proposal, error) {
			s := c.State(copied)
			if now := c.Volume(v.number); now == nil || v.mirror.Load() != m || s == nil {
				return proposal{after: open}, errDetached
			}
			if s.Protected { // meanwhile
				return proposal{after: open}, fmt.Errorf("%w; unprotect it first", ErrProtected)
			}
			known := known && m.regions.neverReset()
			op := &catalogue.JoinMirror{Volume: v.number, Copy: copied}
			if known {
				op.Synced = m.regions.count
			}
			return proposal{op: &catalogue.Op{JoinMirror: op}, urgent: true, deletes: []uint64{copied}, after: func() {
				if now := p.cat.Volume(v.number); now != nil && now.Mirror != nil && !now.Mirror.Joining {
					m.regions.joined(known)
				}
				open()
			}}, nil
		})
		return err
	})
	if err != nil {
		return err
	}
	return v.alone(func(func()) error { // until that is durable the file may be the copy's again
		m.paused.Store(false)
		return nil
	})
}

// neverReset tells whether all that was written since the beginning is recorded.
func (r *regions) neverReset() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.resets == 0
}

// joined begins with what was recorded, or with everything.
func (r *regions) joined(known bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.synced, r.claimed = r.count, r.count
	if !known {
		r.copied, r.synced = 0, 0
		r.resets++
	}
}
