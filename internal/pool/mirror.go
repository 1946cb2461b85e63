package pool

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/google/uuid"

	"varve/internal/pool/catalogue"
)

// mirror is a volume's leg, a file that is written in step with the volume, and what is known of where the two differ: see
// docs/design/mirror.md.
//
// Lock order: volume.gate; a reservation of ranges; whatever writing to the volume takes. regions.recording is taken with none of these but the
// gate held, and the committer is led below it.
type mirror struct {
	pool    *Pool
	volume  *volume
	id      uuid.UUID // of the volume
	path    string
	regions *regions
	ranges  ranges // of blocks: writers of the same blocks, and the copying, change both sides in one order

	// paused: the leg is not written, because it is being split off or is not the leg yet. It changes with the volume's gate held alone.
	paused  atomic.Bool
	dropped atomic.Pointer[drop] // set once the leg has failed
	copying sync.Mutex           // one at a time

	mu    sync.Mutex
	leg   *leg        // nil: closed
	inUse atomic.Bool // the catalogue knows that the file may differ from its seal
	using sync.Mutex  // over that being recorded
}

// drop is the end of a leg, until it is attached again.
type drop struct {
	cause error
	done  chan struct{} // closed when it was tried to make it durable

	mu     sync.Mutex
	err    error        // why it is not durable; nil: it is
	record func() error // tries again
}

// waited returns when the drop is durable, or why it is not, where there was no room for its record, say.
func (d *drop) waited() error {
	<-d.done
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err != nil {
		d.err = d.record()
	}
	return d.err
}

var errDetached = fmt.Errorf("%w: it is not attached any more", ErrNotFound)

// joinMirror makes a mirror of what the catalogue says, with its leg not opened.
func (p *Pool) joinMirror(v *catalogue.Volume) *mirror {
	w := p.volumes[v.Number]
	m := &mirror{pool: p, volume: w, id: v.UUID, path: v.Mirror.Path}
	m.regions = newRegions(p, p.volumes[v.Mirror.Regions], w.size.Load())
	m.paused.Store(v.Mirror.Joining)
	return m
}

// openMirrors opens the legs of all mirrored volumes. One that cannot be opened, or is not the one it was, has failed.
// With back, volumes may have gone back to what they were: the legs, which have not, are to be copied wholly.
func (p *Pool) openMirrors(ctx context.Context, back bool) error {
	for _, v := range p.cat.Volumes() {
		if v.Mirror == nil {
			continue
		}
		if v.Mirror.Joining { // what was to become of it was cut short
			if _, err := p.changeNow(detaching(v.Number)); err != nil {
				return err
			}
			continue
		}
		m := p.joinMirror(v)
		m.volume.mirror.Store(m)
		err := m.regions.load(ctx, v.Mirror.Synced)
		if err != nil && !damagedSet(err) {
			return err
		}
		if back {
			if err := m.reset(); err != nil {
				return err
			}
		}
		switch {
		case err != nil:
			_ = m.giveUp(fmt.Errorf("which regions differ cannot be read: %w", err)) // or who writes records it
		case v.Mirror.Failed != "":
			m.dropped.Store(dropDone(errors.New(v.Mirror.Failed)))
		default:
			m.open()
		}
	}
	return nil
}

// dropDone is a drop that is durable.
func dropDone(cause error) *drop {
	d := &drop{cause: cause, done: make(chan struct{})}
	close(d.done)
	return d
}

// open opens the leg when the pool is opened.
func (m *mirror) open() {
	l, err := openLeg(m.pool.opts.FS, m.path, m.volume.size.Load())
	var seal catalogue.Seal
	if err == nil {
		if seal, err = m.sealed(); err == nil {
			err = m.recognise(l, &seal)
		}
		if err != nil {
			l.unlock()
		}
	}
	if err != nil {
		_ = m.drop(err) // or who writes records it
		return
	}
	m.leg = l
	m.inUse.Store(!seal.Closed)
}

// set records what is known about the leg, unless it was detached meanwhile.
func (m *mirror) set(decide func(now *catalogue.Mirroring, to *catalogue.SetMirror) bool) error {
	_, err := m.pool.changeNow(func(c *catalogue.Catalogue) (proposal, error) {
		v := c.Volume(m.volume.number)
		if v == nil || v.Mirror == nil || v.Mirror.Regions != m.regions.set.number {
			return proposal{}, errDetached
		}
		to := &catalogue.SetMirror{Volume: v.Number, Synced: v.Mirror.Synced, Failed: v.Mirror.Failed, Seal: v.Mirror.Seal}
		if !decide(v.Mirror, to) {
			return proposal{}, nil
		}
		return proposal{op: &catalogue.Op{SetMirror: to}, urgent: true}, nil
	})
	return err
}

// use records, before the first write, that the leg is in use, and so may differ from its seal.
func (m *mirror) use() error {
	if m.inUse.Load() || m.dropped.Load() != nil || m.paused.Load() {
		return nil
	}
	m.using.Lock()
	defer m.using.Unlock()
	if m.inUse.Load() {
		return nil
	}
	err := m.set(func(_ *catalogue.Mirroring, to *catalogue.SetMirror) bool {
		to.Seal = m.unsealed(to.Seal)
		return true
	})
	if err == nil {
		m.inUse.Store(true)
	}
	return err
}

// reset has everything copied.
func (m *mirror) reset() error {
	err := m.set(func(_ *catalogue.Mirroring, to *catalogue.SetMirror) bool {
		m.regions.reset()
		to.Synced, to.Seal = 0, m.unsealed(to.Seal)
		return true
	})
	if err == nil {
		m.inUse.Store(true)
	}
	return err
}

// unsealed is the seal of the leg while it is in use.
func (m *mirror) unsealed(was catalogue.Seal) catalogue.Seal {
	l := m.hold()
	if l == nil {
		return catalogue.Seal{SizeBytes: was.SizeBytes, Identity: was.Identity}
	}
	defer l.letGo()
	return l.inUse
}

// unsync has everything copied to a volume's mirror, if it has one: the volume is another one by an operation that says so durably. mu is held.
func (p *Pool) unsync(number uint64) {
	if m := p.volumes[number].mirror.Load(); m != nil {
		m.regions.reset()
	}
}

// drop ends the leg, durably: from now on it is not written, and all that is written to the volume counts as differing. The error
// tells why that could not be recorded.
func (m *mirror) drop(cause error) error {
	d := &drop{cause: cause, done: make(chan struct{})}
	if !m.dropped.CompareAndSwap(nil, d) {
		if before := m.dropped.Load(); before != nil {
			return before.waited()
		}
		return nil // it was attached again meanwhile
	}
	defer close(d.done)
	m.regions.all()
	d.record = func() error {
		err := m.set(func(_ *catalogue.Mirroring, to *catalogue.SetMirror) bool {
			to.Failed = reason(cause)
			return true
		})
		if errors.Is(err, errDetached) {
			return nil
		}
		return err
	}
	d.err = d.record()
	m.close()
	then := ": once it is mended, attach it again"
	if errors.Is(cause, errStrange) { // which says what to do
		then = ""
	}
	m.pool.event(EventMirrorFailed, m.volume.name(), fmt.Sprintf("%v; the volume goes on without it%s", cause, then))
	return d.err
}

// giveUp is drop where nobody knows any more what differs: everything may, also of a leg that has failed before.
func (m *mirror) giveUp(cause error) error {
	if err := m.drop(cause); err != nil {
		return err
	}
	err := m.set(func(now *catalogue.Mirroring, to *catalogue.SetMirror) bool {
		m.regions.reset()
		to.Synced = 0
		return now.Synced > 0
	})
	switch {
	case errors.Is(err, errDetached):
		return nil
	case err == nil:
		m.regions.unclaim()
	}
	return err
}

// reason is an error as the catalogue keeps it.
func reason(err error) string {
	const most = 1000
	text := strings.ToValidUTF8(err.Error(), "?")
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "..."
	}
	return text
}

// sync makes the leg durable. A leg that cannot be is dropped.
func (m *mirror) sync() error {
	if d := m.dropped.Load(); d != nil {
		return d.waited()
	}
	l := m.hold()
	if l == nil {
		return nil
	}
	defer l.letGo()
	if m.paused.Load() {
		return nil
	}
	if err := l.Sync(); err != nil && m.has(l) { // and was not closed, or attached again
		return m.drop(fmt.Errorf("sync file %s: %w", m.path, err))
	}
	return nil
}

// syncBoth makes volume and leg durable; an error if either is not, or the leg is not written.
func (m *mirror) syncBoth() error {
	if err := m.volume.sync(); err != nil {
		return err
	}
	if err := m.sync(); err != nil {
		return err
	}
	return m.broken()
}

// broken tells why the leg is not written; nil if it is.
func (m *mirror) broken() error {
	if d := m.dropped.Load(); d != nil {
		return fmt.Errorf("the leg has failed: %w", d.cause)
	}
	if m.paused.Load() {
		return fmt.Errorf("%w: the leg is being split off", ErrInUse)
	}
	if m.volume.mirror.Load() != m {
		return errDetached
	}
	return nil
}

// sync makes all that was written to the volume durable, and not its mirror.
func (v *volume) sync() error {
	if err := v.pool.log.Flush(v.pool.log.LastSeq()); err != nil {
		return err
	}
	if v.place != nil {
		return v.place.sync()
	}
	return nil
}

// flush makes all that was written to the volume durable, and its mirror at the same time.
func (v *volume) flush() error {
	m := v.mirror.Load()
	if m == nil {
		return v.sync()
	}
	leg := make(chan error, 1)
	go func() { leg <- m.sync() }()
	return errors.Join(v.sync(), <-leg)
}

// clearRegions forgets regions that are the same on both sides.
func (m *mirror) clearRegions(ctx context.Context) error {
	if m.broken() != nil {
		return nil
	}
	return m.regions.clear(ctx, m.syncBoth)
}

// closeMirrors seals the legs. What cannot be sealed counts as in use.
func (p *Pool) closeMirrors(ctx context.Context) error {
	var failed error
	for _, v := range p.volumes {
		m := v.mirror.Load()
		if m == nil || m.broken() != nil || !m.inUse.Load() {
			continue
		}
		if err := m.seal(ctx); err != nil {
			failed = errors.Join(failed, fmt.Errorf("mirror of volume %q: %w", v.name(), err))
		}
	}
	return failed
}

func (m *mirror) seal(ctx context.Context) error {
	if err := m.syncBoth(); err != nil {
		if m.dropped.Load() != nil { // which was told
			return nil
		}
		return err
	}
	if err := m.clearRegions(ctx); err != nil {
		return err
	}
	l := m.hold()
	if l == nil {
		return nil
	}
	defer l.letGo()
	seal, err := sealOf(m.pool.opts.FS, m.path, l)
	if err != nil { // it may be whole all the same
		m.pool.event(EventMirrorFailed, m.volume.name(), err.Error())
		return nil
	}
	seal.Identity = l.inUse.Identity
	if m.differing() > 0 { // of that a sync may have failed: a crash may bring back what was there before
		seal.Sample = 0
	}
	return m.set(func(_ *catalogue.Mirroring, to *catalogue.SetMirror) bool {
		to.Seal = seal
		return true
	})
}

// differing is how many bytes of the volume have to be copied.
func (m *mirror) differing() int64 {
	return min(int64(m.regions.different())*catalogue.RegionBytes, m.volume.size.Load())
}
