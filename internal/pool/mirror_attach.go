package pool

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/google/uuid"

	"varve/internal/block"
	"varve/internal/pool/catalogue"
)

// LegSpec says what file a volume is mirrored to.
type LegSpec struct {
	Path  string // absolute
	Force bool   // what an existing file holds may be overwritten
}

// The states of a mirror.
const (
	MirrorSyncing = "syncing" // something has to be copied
	MirrorInSync  = "in_sync"
	MirrorSplit   = "split" // it is being split off
	MirrorFailed  = "failed"
)

// MirrorInfo describes a volume's mirror at one instant.
type MirrorInfo struct {
	VolumeID     uuid.UUID
	Volume, Path string
	State        string
	Progress     float64 // how much is the same on both sides, 0 to 1
	Differing    int64   // bytes that have to be copied
	Reason       string  // why it has failed
}

// Mirror describes a volume's mirror. ErrNotFound if it has none.
func (p *Pool) Mirror(name string) (MirrorInfo, error) {
	m, err := p.mirrorOf(name)
	if err != nil {
		return MirrorInfo{}, err
	}
	return m.info(), nil
}

// Mirrors describes the mirrors of all volumes, by name.
func (p *Pool) Mirrors() []MirrorInfo {
	var out []MirrorInfo
	for _, m := range p.mirrors() {
		out = append(out, m.info())
	}
	slices.SortFunc(out, func(a, b MirrorInfo) int { return strings.Compare(a.Volume, b.Volume) })
	return out
}

func (m *mirror) info() MirrorInfo {
	info := MirrorInfo{VolumeID: m.id, Volume: m.volume.name(), Path: m.path, State: MirrorSyncing, Progress: m.progress(), Differing: m.differing()}
	switch d := m.dropped.Load(); {
	case d != nil:
		info.State, info.Reason = MirrorFailed, d.cause.Error()
	case m.paused.Load():
		info.State = MirrorSplit
	case info.Differing == 0:
		info.State = MirrorInSync
	}
	return info
}

// AttachMirror has a volume written to a file as well, which SyncMirror has to make what the volume is first. A file that does not exist
// is made. One that does must be large enough and nobody's, and its content is lost, for which spec says Force; unless it is the leg
// that has failed, and is recognised: then it is attached again, and only what was written meanwhile is copied. ErrInvalid, ErrExists, ErrInUse,
// ErrNotFound.
func (p *Pool) AttachMirror(_ context.Context, name string, spec LegSpec) (MirrorInfo, error) {
	if !p.begin() {
		return MirrorInfo{}, fmt.Errorf("mirror volume %q: pool: %w", name, block.ErrClosed)
	}
	defer p.end()
	m, err := p.attachMirror(name, spec)
	if err != nil {
		return MirrorInfo{}, fmt.Errorf("mirror volume %q to %s: %w", name, spec.Path, err)
	}
	return m.info(), nil
}

func (p *Pool) attachMirror(name string, spec LegSpec) (*mirror, error) {
	if !path.IsAbs(spec.Path) {
		return nil, fmt.Errorf("%w path: it is not absolute", ErrInvalid)
	}
	if inside(p.opts.Dir, spec.Path) {
		return nil, fmt.Errorf("%w path: it lies in the pool's own directory", ErrInvalid)
	}
	p.adopting.Lock() // a file that two become something of would not be seen by either
	defer p.adopting.Unlock()
	v, old, err := p.mirrorable(name)
	if err != nil {
		return nil, err
	}
	size := v.size.Load()
	if old != nil {
		if old.dropped.Load() == nil || !p.sameFile(old.path, spec.Path) {
			return nil, fmt.Errorf("%w: the volume is mirrored to %s already; detach that first", ErrInUse, old.path)
		}
		return old, old.again(size, spec.Force)
	}
	made, err := p.legFile(spec, size)
	if err != nil {
		return nil, err
	}
	m, err := p.attachLeg(v, spec.Path, false)
	if err != nil && made {
		err = errors.Join(err, p.opts.FS.Remove(spec.Path))
	}
	return m, err
}

// mirrorable finds a volume and the mirror that it has already, or nil.
func (p *Pool) mirrorable(name string) (*volume, *mirror, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	found, err := findLive(p.cat, name)
	if err != nil {
		return nil, nil, err
	}
	v := p.volumes[found.Number]
	return v, v.mirror.Load(), nil
}

// legFile sees to it that there is a file that may become a leg; made tells that it is new.
func (p *Pool) legFile(spec LegSpec, sizeBytes int64) (made bool, err error) {
	info, err := p.opts.FS.Stat(spec.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return true, makeFile(p.opts.FS, spec.Path, sizeBytes)
	case err != nil:
		return false, err
	case info.IsDir():
		return false, fmt.Errorf("%w: it is a directory, and a raw file or block device is wanted", ErrInvalid)
	}
	if user := p.UsedBy(spec.Path); user != "" {
		return false, fmt.Errorf("%w: %s has it", ErrInUse, user)
	}
	if !spec.Force {
		return false, fmt.Errorf("%w: the file exists, and what it holds would be lost", ErrExists)
	}
	return false, nil
}

// attachLeg makes a file the leg of a volume, all of which has to be copied; or, if it is joining, has all recorded that is written
// from now on.
func (p *Pool) attachLeg(v *volume, name string, joining bool) (*mirror, error) {
	size := v.size.Load()
	l, err := openLeg(p.opts.FS, name, size)
	if err != nil {
		return nil, err
	}
	m := &mirror{pool: p, volume: v, path: name, leg: l}
	err = v.alone(func(open func()) error {
		_, err := p.change(func(c *catalogue.Catalogue) (proposal, error) {
			now := c.Volume(v.number)
			switch { // the file took its time
			case now == nil || now.Deleted:
				return proposal{}, fmt.Errorf("%w: it was deleted meanwhile", ErrNotFound)
			case now.Mirror != nil:
				return proposal{}, fmt.Errorf("%w: it was mirrored meanwhile", ErrInUse)
			case c.Head(now).SizeBytes != size:
				return proposal{}, fmt.Errorf("%w: it was resized meanwhile; try again", ErrInUse)
			}
			m.id = now.UUID
			op := &catalogue.AttachMirror{
				Volume: v.number, Path: name, Regions: c.LastVolume + 1, RegionsHead: c.LastState + 1, CreatedAt: p.opts.Clock().UnixNano(),
				Joining: joining, Seal: l.inUse,
			}
			return proposal{op: &catalogue.Op{AttachMirror: op}, after: func() {
				if set := p.volumes[op.Regions]; set != nil {
					m.regions = newRegions(p, set, size)
					if joining {
						m.regions.copied = m.regions.count
					}
					m.paused.Store(joining)
					m.inUse.Store(true)
					v.mirror.Store(m)
				}
				open()
			}}, nil
		})
		return err
	})
	if err != nil {
		m.close()
		return nil, err
	}
	return m, nil
}

// alone runs do while no write is under way; do may let writers go on before it returns.
func (v *volume) alone(do func(open func()) error) error {
	v.gate.Lock()
	open := sync.OnceFunc(v.gate.Unlock)
	defer open()
	return do(open)
}

// again attaches the leg that has failed. With force it may be another one.
func (m *mirror) again(sizeBytes int64, force bool) error {
	l, err := openLeg(m.pool.opts.FS, m.path, sizeBytes)
	if err != nil {
		return err
	}
	seal, err := m.sealed()
	if err != nil {
		l.unlock()
		return err
	}
	strange := m.recognise(l, &seal) // before anybody waits for it
	if strange != nil && !force {
		l.unlock()
		return fmt.Errorf("%w: %w", ErrExists, strange)
	}
	err = m.volume.alone(func(open func()) error {
		err := m.set(func(_ *catalogue.Mirroring, to *catalogue.SetMirror) bool {
			if strange != nil {
				m.regions.reset()
				to.Synced = 0
			}
			to.Failed, to.Seal = "", l.inUse
			return true
		})
		if err != nil {
			return err
		}
		m.mu.Lock()
		m.leg = l
		m.mu.Unlock()
		m.inUse.Store(true)
		m.dropped.Store(nil)
		return nil
	})
	if err != nil {
		l.unlock()
	}
	return err
}

// DetachMirror ends a volume's mirror. The file stays, with what the volume held last if it was in sync. ErrNotFound.
func (p *Pool) DetachMirror(_ context.Context, name string) error {
	if !p.begin() {
		return fmt.Errorf("detach the mirror of volume %q: pool: %w", name, block.ErrClosed)
	}
	defer p.end()
	m, err := p.mirrorOf(name)
	if err == nil {
		err = m.detach()
	}
	if err != nil {
		return fmt.Errorf("detach the mirror of volume %q: %w", name, err)
	}
	return nil
}

func (m *mirror) detach() error {
	if m.paused.Load() {
		return fmt.Errorf("%w: it is being split off", ErrInUse)
	}
	if err := m.forget(); err != nil {
		return err
	}
	defer m.close()
	l := m.hold()
	if l == nil {
		return nil
	}
	defer l.letGo()
	if m.dropped.Load() == nil {
		if err := l.Sync(); err != nil {
			return fmt.Errorf("it is detached, and what it holds is not durable: sync file %s: %w", m.path, err)
		}
	}
	return nil
}

// forget records that there is no mirror any more. Writers go on when that is durable: of a file in place what they write may be so before the
// record, and would be recorded nowhere.
func (m *mirror) forget() error {
	paused := m.paused.Load()
	return m.volume.alone(func(func()) error {
		_, err := m.pool.change(func(c *catalogue.Catalogue) (proposal, error) {
			v := c.Volume(m.volume.number)
			if v == nil || v.Mirror == nil || m.volume.mirror.Load() != m || m.paused.Load() != paused {
				return proposal{}, errDetached
			}
			pr, err := detaching(v.Number)(c)
			pr.after = func() {
				if now := m.pool.cat.Volume(v.Number); now == nil || now.Mirror == nil {
					m.volume.mirror.Store(nil)
				}
			}
			return pr, err
		})
		return err
	})
}

func detaching(number uint64) func(*catalogue.Catalogue) (proposal, error) {
	return func(*catalogue.Catalogue) (proposal, error) {
		return proposal{op: &catalogue.Op{DetachMirror: &catalogue.DetachMirror{Volume: number}}, urgent: true}, nil
	}
}
