package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"varve/internal/block"
	"varve/internal/pool/blockmap"
	"varve/internal/pool/catalogue"
	"varve/internal/pool/seglog"
)

// proposal is a catalogue operation and the entries that go before it into the same batch.
type proposal struct {
	op      *catalogue.Op
	entries []seglog.Entry
	pins    *blockmap.Pins // for applying entries
	urgent  bool           // gives space back, or helps to: may use the reserve
	deletes []uint64       // states that go, unless the operation fails
	after   func()         // called when it is done or has failed, before anything else goes into the log
}

// change decides, logs and applies a catalogue operation. decide runs with the
// log to itself and sees the catalogue as the operation will find it. change returns when the
// operation is durable; the timing tells how long writers waited and how long the whole took.
func (p *Pool) change(decide func(*catalogue.Catalogue) (proposal, error)) (Timing, error) {
	if !p.begin() {
		return Timing{}, fmt.Errorf("pool: %w", block.ErrClosed)
	}
	defer p.end()
	return p.changeNow(decide)
}

// changeNow is change for somebody who has begun a request already, or while the pool is opened or closed.
func (p *Pool) changeNow(decide func(*catalogue.Catalogue) (proposal, error)) (Timing, error) {
	start := time.Now()
	var t Timing
	var seq uint64
	err := p.exclusively(func() error {
		entered := time.Now()
		defer func() { t.Pause = time.Since(entered) }()
		pr, err := decide(p.cat)
		if pr.after != nil {
			defer pr.after()
		}
		if err != nil {
			return err
		}
		if pr.op == nil { // it is so already, by a record that may not be durable yet
			seq = p.log.LastSeq()
			return nil
		}
		inline, err := pr.op.Encode()
		if err != nil {
			return err
		}
		batch := append(pr.entries, seglog.Entry{Kind: seglog.KindCatalogue, Inline: inline})
		if len(inline) > seglog.MaxInlineBytes {
			return fmt.Errorf("%w: too much at once (%d bytes of record); name fewer", ErrInvalid, len(inline))
		}
		if _, err := catalogue.DecodeOp(inline); err != nil { // what could not be replayed must never be logged
			return fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		if !pr.urgent {
			const least = 2 * block.Size // as for the smallest write
			if !p.space.take(p, least) {
				return fmt.Errorf("%w: %s", block.ErrNoSpace, p.space.describe(p))
			}
			defer p.space.release(least)
		}
		if err := p.startDeleting(pr.deletes); err != nil {
			return err
		}
		defer p.endDeleting(pr.deletes)
		seq, err = p.log.Append(batch)
		if errors.Is(err, block.ErrNoSpace) && pr.urgent && releaseReserve(&p.opts) {
			seq, err = p.log.Append(batch)
			keepReserve(&p.opts) // what is left of it, before clients take it
		}
		if err != nil {
			return err
		}
		for i := range pr.entries {
			if err := p.volumes[batch[i].Volume].apply(pr.pins, &batch[i]); err != nil {
				p.log.Stop(err)
				return p.log.Failure()
			}
		}
		if err := p.applyOp(pr.op); err != nil { // decide has let through what it must not
			p.log.Stop(err)
			return p.log.Failure()
		}
		return nil
	})
	if err == nil {
		err = p.log.Flush(seq)
	}
	t.Durable = time.Since(start)
	return t, err
}

// changeSize is change for what may give the volume another size. Writes are admitted
// and prepared by the size, so none may be under way.
func (p *Pool) changeSize(name string, decide func(*catalogue.Catalogue) (proposal, error)) (Timing, error) {
	p.mu.RLock()
	var v *volume
	if found := p.cat.VolumeByName(name); found != nil {
		v = p.volumes[found.Number]
	}
	p.mu.RUnlock()
	if v == nil {
		return Timing{}, fmt.Errorf("volume %q: %w", name, ErrNotFound)
	}
	return p.changeContent(v, func(c *catalogue.Catalogue) (proposal, error) {
		if now := c.VolumeByName(name); now == nil || now.Number != v.number {
			return proposal{}, fmt.Errorf("volume %q: %w: it was renamed or deleted meanwhile", name, ErrNotFound)
		}
		return decide(c)
	})
}

// changeContent is changeSize for what gives a volume that was found another size or other content, which no write may be under way for.
func (p *Pool) changeContent(v *volume, decide func(*catalogue.Catalogue) (proposal, error)) (Timing, error) {
	v.resize.Lock()
	defer v.resize.Unlock()
	if v.place != nil { // what the present has in place is durable before the present is kept
		if err := v.place.use(); err != nil {
			return Timing{}, err
		}
		if err := v.place.sync(); err != nil {
			return Timing{}, err
		}
		// What is being copied back is of the content that there was when it began.
		defer v.place.ranges.reserve([]span{{0, blocksIn(v.size.Load())}})()
	}
	return p.change(decide)
}

// startDeleting sees to it that nobody has the states open, or opens them from now on.
func (p *Pool) startDeleting(states []uint64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, id := range states {
		s := p.cat.State(id)
		open := p.snapOpen[id]
		if s.Kind == catalogue.Head {
			open = len(p.volumes[s.Volume].devices)
		}
		if open > 0 {
			return fmt.Errorf("%s: %w: clients read it or compare with it", p.stateName(s), ErrInUse)
		}
	}
	for _, id := range states {
		p.deleting[id] = true
	}
	return nil
}

func (p *Pool) endDeleting(states []uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, id := range states {
		delete(p.deleting, id)
	}
}

// applyOp folds a catalogue operation into the catalogue and the volumes, the same
// way live and on replay. It is called by whoever has the log to itself.
func (p *Pool) applyOp(op *catalogue.Op) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.cat.Apply(op); err != nil {
		return err
	}
	p.changes++
	switch {
	case op.CreateVolume != nil:
		v := p.cat.Volume(op.CreateVolume.Number)
		head := p.cat.Head(v)
		var root blockmap.Root
		if from := p.cat.State(op.CreateVolume.From); from != nil {
			root = from.Root
		}
		p.volumes[v.Number] = p.newVolume(v, head, root)
		switch {
		case v.Place != nil:
			p.addPlace(v)
		case op.CreateVolume.Filling != nil:
			p.addBase(v)
		}
	case op.AttachMirror != nil:
		set := p.cat.Volume(op.AttachMirror.Regions)
		p.volumes[set.Number] = p.newVolume(set, p.cat.Head(set), blockmap.Root{})
	case op.DetachMirror != nil, op.SplitMirror != nil, op.JoinMirror != nil:
		p.statesGone()
	case op.SetVolume != nil:
		v := p.cat.Volume(op.SetVolume.Number)
		p.volumes[v.Number].label.Store(&v.Name)
	case op.ResizeVolume != nil:
		p.volumes[op.ResizeVolume.Number].size.Store(op.ResizeVolume.SizeBytes)
	case op.DeleteVolume != nil:
		p.forgetVolume(p.volumes[op.DeleteVolume.Number])
		if v := p.cat.Volume(op.DeleteVolume.Number); v != nil { // it has copies
			p.volumes[v.Number] = p.newVolume(v, p.cat.Head(v), blockmap.Root{})
		}
		p.statesGone()
	case op.SetPool != nil:
		p.space.bound(p.cat)
	case op.CreateSnapshots != nil:
		for _, n := range op.CreateSnapshots.Of {
			p.freeze(n.Volume, n.ID, nil)
		}
		p.applyCopies(op)
	case op.FinishCopy != nil, op.CancelCopy != nil:
		p.applyCopies(op)
	case op.DeleteSnapshots != nil:
		p.statesGone()
	case op.FillProgress != nil:
		p.volumes[op.FillProgress.Number].basis.done.Store(op.FillProgress.DoneBytes)
	case op.DeleteBookmark != nil:
		p.statesWent()
	case op.Rollback != nil:
		o := op.Rollback
		p.freeze(o.Volume, o.KeptID, p.cat.State(o.To))
		if pl := p.volumes[o.Volume].place; pl != nil {
			pl.rolledBack()
		}
		p.unsync(o.Volume)
	case op.PutBack != nil:
		p.takeOver(op.PutBack)
	case op.SetPlace != nil && op.SetPlace.Changed:
		kept := p.volumes[op.SetPlace.Number].place.kept
		kept.mu.Lock()
		kept.tree.Freeze(p.cat.Head(p.cat.Volume(kept.number)).Epoch, p.nextGen())
		kept.mu.Unlock()
	case op.Settled != nil:
		pl := p.volumes[op.Settled.Number].place
		pl.pending.Store(false)
		signal(pl.overlay.kick)
		p.refreshKeep()
		p.statesWent()
	}
	return nil
}

// freeze gives the new state id the volume's map and lets the head go on, from
// the same content or, in a rollback, from another state's.
func (p *Pool) freeze(number, id uint64, to *catalogue.State) {
	v := p.volumes[number]
	head := p.cat.Head(p.cat.Volume(number))
	v.mu.Lock()
	defer v.mu.Unlock()
	p.cat.SetRoot(id, v.tree.Freeze(head.Epoch, p.nextGen()))
	if to != nil {
		v.tree = blockmap.NewTree(to.Root, head.Epoch, 0, p.nextGen())
		v.size.Store(to.SizeBytes)
		v.version++
	}
	v.keep = true
	v.tree.SetSince(p.cat.DataSince(head))
}

// refreshKeep finds out anew which heads have a parent, after states went.
func (p *Pool) refreshKeep() {
	for _, v := range p.volumes {
		head := p.cat.Head(p.cat.Volume(v.number))
		v.mu.Lock()
		v.keep = p.cat.DataParent(head) != nil
		v.tree.SetSince(p.cat.DataSince(head))
		v.mu.Unlock()
	}
}

// findSnapshot returns a visible snapshot and its volume.
func findSnapshot(c *catalogue.Catalogue, ref SnapshotRef) (*catalogue.Volume, *catalogue.State, error) {
	v, err := findVolume(c, ref.Volume)
	if err != nil {
		return nil, nil, err
	}
	s := c.SnapshotByName(v, ref.Name)
	if s == nil || !c.Listed(s) {
		return nil, nil, fmt.Errorf("snapshot %q: %w", ref, ErrNotFound)
	}
	return v, s, nil
}

func findVolume(c *catalogue.Catalogue, name string) (*catalogue.Volume, error) {
	v := c.VolumeByName(name)
	if v == nil || v.Incomplete || v.Internal() {
		return nil, fmt.Errorf("volume %q: %w", name, ErrNotFound)
	}
	return v, nil
}

// findLive is findVolume for what needs its head.
func findLive(c *catalogue.Catalogue, name string) (*catalogue.Volume, error) {
	v, err := findVolume(c, name)
	if err == nil && v.Deleted {
		return nil, fmt.Errorf("volume %q: %w: it was deleted, and its copies alone are left", name, ErrNotFound)
	}
	return v, err
}

// maxKeepFor is the longest time to live; times end in the year 2262.
const maxKeepFor = 100 * 365 * 24 * time.Hour

// checkSnapshot refuses what no snapshot can have.
func checkSnapshot(spec *SnapshotSpec) error {
	if err := checkName("snapshot", spec.Name); err != nil {
		return err
	}
	if err := checkLabels(spec.Labels); err != nil {
		return err
	}
	if spec.KeepFor < 0 || spec.KeepFor > maxKeepFor {
		return fmt.Errorf("create snapshot: %w: it cannot be kept for %s, but for up to 100 years, or for ever", ErrInvalid, spec.KeepFor)
	}
	return nil
}

// CreateSnapshot freezes all volumes at one instant, each as a snapshot of that
// name; all or none.
func (p *Pool) CreateSnapshot(ctx context.Context, volumes []string, spec SnapshotSpec) ([]SnapshotInfo, Timing, error) {
	if len(volumes) == 0 {
		return nil, Timing{}, fmt.Errorf("create snapshot: %w: no volume named", ErrInvalid)
	}
	if err := checkSnapshot(&spec); err != nil {
		return nil, Timing{}, err
	}
	if spec.Copy != nil && spec.Copy.Path != "" {
		p.adopting.Lock() // a file that two become something of would not be seen by either
		defer p.adopting.Unlock()
	}
	unready, device, err := p.readyForCopy(len(volumes), spec.Copy)
	if err != nil {
		return nil, Timing{}, fmt.Errorf("create snapshot %q: %w", spec.Name, err)
	}
	var ids []uint64
	gates := p.gates(volumes)
	entered, open := time.Now(), sync.OnceValue(shut(gates)) // before the log is had alone: a file that takes its time holds up nobody but its own writers
	t, err := p.change(func(c *catalogue.Catalogue) (proposal, error) {
		now := p.opts.Clock()
		op := &catalogue.CreateSnapshots{Name: spec.Name, CreatedAt: now.UnixNano(), Labels: spec.Labels, Group: uuid.New(), DropWhenFull: spec.DropWhenFull}
		if spec.KeepFor > 0 {
			op.ExpiresAt = now.Add(spec.KeepFor).UnixNano()
		}
		seen := map[uint64]bool{}
		nextID, nextVolume := c.LastState+1, c.LastVolume+1
		for _, name := range volumes {
			v, err := findLive(c, name)
			if err != nil {
				return proposal{}, err
			}
			if seen[v.Number] {
				return proposal{}, fmt.Errorf("create snapshot: %w: volume %q is named twice", ErrInvalid, name)
			}
			seen[v.Number] = true
			if c.Taken(v, spec.Name) {
				return proposal{}, fmt.Errorf("snapshot %q: %w", SnapshotRef{name, spec.Name}, ErrExists)
			}
			n := catalogue.NewSnapshot{Volume: v.Number, ID: nextID, UUID: uuid.New()}
			ids = append(ids, nextID)
			nextID++
			if spec.Copy != nil {
				n.Copying = newCopying(spec.Copy, device, nextID, nextVolume)
				nextID++
				nextVolume++
			}
			op.Of = append(op.Of, n)
		}
		for i := range op.Of {
			if pl := p.volumes[op.Of[i].Volume].place; pl != nil && !slices.Contains(gates, pl) {
				return proposal{}, fmt.Errorf("volume %q: %w: it was renamed or deleted meanwhile", volumes[i], ErrNotFound)
			}
			op.Of[i].Pending = len(gates) > 0
		}
		return proposal{op: &catalogue.Op{CreateSnapshots: op}, after: func() { open() }}, nil
	})
	if opened := open(); len(gates) > 0 {
		t.Pause = opened.Sub(entered)
	}
	if err == nil {
		var durable time.Duration
		durable, err = p.complete(ctx, gates, ids)
		t.Durable += durable
	}
	if err != nil {
		unready()
		return nil, t, fmt.Errorf("create snapshot %q: %w", spec.Name, err)
	}
	return p.describe(ids), t, nil
}

// DeleteSnapshots deletes all or none. The file of a copy stays where it is.
func (p *Pool) DeleteSnapshots(_ context.Context, refs []SnapshotRef) error {
	var copied []*catalogue.Copying
	_, err := p.change(func(c *catalogue.Catalogue) (proposal, error) {
		op := &catalogue.DeleteSnapshots{}
		seen := map[uint64]bool{}
		for _, ref := range refs {
			_, s, err := findSnapshot(c, ref)
			switch {
			case err != nil:
				return proposal{}, err
			case s.Protected:
				return proposal{}, fmt.Errorf("snapshot %q: %w; unprotect it first", ref, ErrProtected)
			case !seen[s.ID]:
				op.IDs = append(op.IDs, s.ID)
				copied = append(copied, s.Copying)
			}
			seen[s.ID] = true
		}
		if len(op.IDs) == 0 {
			return proposal{}, nil
		}
		return proposal{op: &catalogue.Op{DeleteSnapshots: op}, urgent: true, deletes: op.IDs}, nil
	})
	for i := 0; i < len(copied) && err == nil; i++ {
		err = p.removePart(copied[i])
	}
	if err != nil {
		return fmt.Errorf("delete snapshot: %w", err)
	}
	return nil
}

// ProtectSnapshot guards a snapshot from deletion, or no longer.
func (p *Pool) ProtectSnapshot(_ context.Context, ref SnapshotRef, protected bool) error {
	_, err := p.change(func(c *catalogue.Catalogue) (proposal, error) {
		_, s, err := findSnapshot(c, ref)
		if err != nil || s.Protected == protected {
			return proposal{}, err
		}
		return proposal{op: &catalogue.Op{Protect: &catalogue.Protect{ID: s.ID, Protected: protected}}, urgent: true}, nil
	})
	if err != nil {
		return fmt.Errorf("protect snapshot: %w", err)
	}
	return nil
}

// Rollback makes the volume's head the snapshot's content and keeps the present as an
// automatic snapshot, which it returns. ErrInvalid if the snapshot is a copy: RollbackCopy. ErrInUse while a device that has written is open.
func (p *Pool) Rollback(_ context.Context, ref SnapshotRef) (SnapshotInfo, Timing, error) {
	var kept uint64
	t, err := p.changeSize(ref.Volume, func(c *catalogue.Catalogue) (proposal, error) {
		v, s, err := findSnapshot(c, ref)
		if err == nil {
			_, err = findLive(c, ref.Volume)
		}
		if err != nil {
			return proposal{}, err
		}
		if err := p.unwritten(v); err != nil {
			return proposal{}, err
		}
		if s.Kind == catalogue.Copy {
			return proposal{}, fmt.Errorf("%w: what it holds has to be copied into the volume", ErrInvalid)
		}
		if err := p.rollable(c, v, s); err != nil {
			return proposal{}, err
		}
		now := p.opts.Clock().UTC()
		name := freeName(c, v, keptName(keptByRollback, now))
		kept = c.LastState + 1
		return proposal{op: &catalogue.Op{Rollback: &catalogue.Rollback{
			Volume: v.Number, To: s.ID, KeptID: kept, KeptUUID: uuid.New(), KeptName: name, CreatedAt: now.UnixNano(),
		}}, urgent: true}, nil
	})
	if err != nil {
		return SnapshotInfo{}, t, fmt.Errorf("roll back to %q: %w", ref, err)
	}
	return p.describe([]uint64{kept})[0], t, nil
}

// freeName returns name, or name with a number where it is taken.
func freeName(c *catalogue.Catalogue, v *catalogue.Volume, name string) string {
	free := name
	for i := 2; c.Taken(v, free); i++ {
		free = fmt.Sprintf("%s-%d", name, i)
	}
	return free
}
