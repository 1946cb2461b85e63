package pool

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"syscall"

	"github.com/google/uuid"

	"varve/internal/pool/blockmap"
	"varve/internal/pool/catalogue"
)

// Technique says how a copy comes to be: see docs/design/copies.md.
type Technique = catalogue.Technique

// The techniques that make copies.
const (
	CowCopy = catalogue.CowCopy
	Clone   = catalogue.Clone
	Mirror  = catalogue.Mirror
)

// CopySpec says that a snapshot is to become a copy.
type CopySpec struct {
	Technique Technique // CowCopy or Clone
	// Path, if not empty, is the raw file or block device that takes the content: absolute, and nothing else's. What is
	// there is an error unless Replace; of a file that is replaced, the old one is there until the new one is whole.
	Path    string
	Replace bool
}

// CopyInfo describes a copy, or one that is being made.
type CopyInfo struct {
	Technique Technique
	Path      string // of the file that has the content; empty: it is in the pool
	Finished  bool
	DoneBytes int64 // of the snapshot's size, while it is not finished
}

// copyInfo describes what a snapshot is, or is to become; nil if that is no copy.
func copyInfo(s *catalogue.State) *CopyInfo {
	switch {
	case s.Copying != nil:
		return &CopyInfo{Technique: s.Copying.Technique, Path: s.Copying.Path, DoneBytes: s.Copying.DoneBytes}
	case s.Copy != nil:
		return &CopyInfo{Technique: s.Copy.Technique, Path: s.Copy.Path, Finished: true, DoneBytes: s.SizeBytes}
	}
	return nil
}

// Copying lists the snapshots that are to become copies, oldest first, also those that are not listed yet.
func (p *Pool) Copying() []SnapshotInfo {
	p.mu.RLock()
	defer p.mu.RUnlock()
	var out []SnapshotInfo
	for _, s := range p.cat.States() {
		if s.Copying != nil && !s.Pending && s.Copying.Technique != Mirror {
			out = append(out, p.snapshotInfo(s))
		}
	}
	return out
}

// findCopying returns a snapshot that is to become a copy; mu is held.
func (p *Pool) findCopying(id uuid.UUID) (*catalogue.State, error) {
	for _, s := range p.cat.States() {
		if s.UUID == id && s.Copying != nil && s.Kind == catalogue.Snapshot {
			return s, nil
		}
	}
	return nil, fmt.Errorf("copy: snapshot %s: %w: it is gone, a copy already, or was never to become one", id, ErrNotFound)
}

// newCopying fills in what a record says of a snapshot that is to become a copy, with the first free state and volume.
func newCopying(spec *CopySpec, device bool, state, volume uint64) *catalogue.NewCopying {
	n := &catalogue.NewCopying{Technique: spec.Technique, Path: spec.Path, Replace: spec.Replace, Device: device}
	if spec.Path == "" {
		n.Volume, n.HeadID, n.UUID = volume, state, uuid.New()
	}
	return n
}

// readyForCopy sees to it that a copy can be made as asked, before anything is recorded, and returns what undoes that. It tells
// whether a block device takes it.
func (p *Pool) readyForCopy(volumes int, spec *CopySpec) (undo func(), device bool, err error) {
	nothing := func() {}
	switch {
	case spec == nil || spec.Path == "":
		return nothing, false, nil
	case volumes > 1:
		return nothing, false, fmt.Errorf("%w: one file cannot take the copies of %d volumes", ErrInvalid, volumes)
	case !path.IsAbs(spec.Path):
		return nothing, false, fmt.Errorf("file %s: %w path: it is not absolute", spec.Path, ErrInvalid)
	case inside(p.opts.Dir, spec.Path):
		return nothing, false, fmt.Errorf("file %s: %w path: it lies in the pool's own directory", spec.Path, ErrInvalid)
	}
	if user := p.UsedBy(spec.Path); user != "" {
		return nothing, false, fmt.Errorf("file %s: %w: %s has it", spec.Path, ErrInUse, user)
	}
	switch kind, err := p.kindOf(spec.Path); {
	case err != nil:
		return nothing, false, err
	case kind == aDirectory:
		return nothing, false, fmt.Errorf("file %s: %w: it is a directory, and a raw file or block device is wanted", spec.Path, ErrInvalid)
	case kind != missing && !spec.Replace:
		return nothing, false, fmt.Errorf("file %s: %w", spec.Path, fs.ErrExist)
	case kind == aDevice:
		return nothing, true, nil
	}
	part := partName(spec.Path)
	if user := p.UsedBy(part); user != "" {
		return nothing, false, fmt.Errorf("file %s: %w: %s has %s, which it is called until it is whole", spec.Path, ErrInUse, user, part)
	}
	err = p.opts.FS.Remove(part) // of a copy that was never finished
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		err = makeFile(p.opts.FS, part, 0) // durable, as a power cut must not bring back what was there before
	}
	return func() { _ = p.opts.FS.Remove(part) }, false, err
}

// What there is at a path.
type pathKind int

const (
	missing pathKind = iota
	aFile
	aDevice
	aDirectory
)

func (p *Pool) kindOf(name string) (pathKind, error) {
	info, err := p.opts.FS.Stat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return missing, nil
	case err != nil:
		return missing, err
	case info.IsDir():
		return aDirectory, nil
	case info.Mode()&fs.ModeDevice != 0:
		return aDevice, nil
	}
	return aFile, nil
}

// partName is what a file is called until it is whole.
func partName(name string) string {
	return path.Join(path.Dir(name), "."+path.Base(name)+".varve-part")
}

// UsedBy tells what has a file, by whatever path: a volume, its mirror, or a snapshot whose content it is or is to be. Empty if nothing has.
func (p *Pool) UsedBy(name string) string {
	var taken [][2]string // paths, and what has them
	p.mu.RLock()
	for _, v := range p.cat.Volumes() {
		if v.Place != nil {
			taken = append(taken, [2]string{v.Place.Path, fmt.Sprintf("volume %q", v.Name)})
		}
		if v.Mirror != nil {
			taken = append(taken, [2]string{v.Mirror.Path, fmt.Sprintf("the mirror of volume %q", v.Name)})
		}
	}
	for _, s := range p.cat.States() {
		if c := copyInfo(s); c != nil && c.Path != "" {
			user := fmt.Sprintf("snapshot %q", SnapshotRef{p.cat.Volume(s.Volume).Name, s.Name})
			taken = append(taken, [2]string{c.Path, user}, [2]string{partName(c.Path), user})
		}
	}
	p.mu.RUnlock() // files may take their time to answer
	for _, t := range taken {
		if p.sameFile(t[0], name) {
			return t[1]
		}
	}
	return ""
}

// sameFile tells whether two paths are of one file or device, or would be if it were there.
func (p *Pool) sameFile(a, b string) bool {
	a, b = path.Clean(a), path.Clean(b)
	if a == b {
		return true
	}
	one, err := p.opts.FS.Stat(a)
	other, otherErr := p.opts.FS.Stat(b)
	if err == nil && otherErr == nil {
		x, ok := one.Sys().(*syscall.Stat_t)
		y, known := other.Sys().(*syscall.Stat_t)
		return ok && known && (x.Dev == y.Dev && x.Ino == y.Ino || x.Rdev != 0 && x.Rdev == y.Rdev)
	}
	return a != "/" && b != "/" && path.Base(a) == path.Base(b) && p.sameFile(path.Dir(a), path.Dir(b))
}

// applyCopies folds what an operation says of copies into the volumes; mu is held.
func (p *Pool) applyCopies(op *catalogue.Op) {
	switch {
	case op.CreateSnapshots != nil:
		for _, n := range op.CreateSnapshots.Of {
			if k := n.Copying; k != nil && k.Volume != 0 {
				v := p.cat.Volume(k.Volume)
				p.volumes[v.Number] = p.newVolume(v, p.cat.Head(v), blockmap.Root{})
			}
		}
	case op.FinishCopy != nil:
		if o := op.FinishCopy; o.Kept != 0 {
			v := p.cat.Volume(p.cat.State(o.Kept).Volume)
			p.freeze(v.Number, o.Kept, nil)
			p.volumes[v.Number] = p.newVolume(v, p.cat.Head(v), blockmap.Root{})
		}
		p.statesGone()
	case op.CancelCopy != nil:
		p.statesGone()
	}
}

// statesGone follows the catalogue after states went: volumes may have gone with them; mu is held.
func (p *Pool) statesGone() {
	for number, v := range p.volumes {
		if p.cat.Volume(number) == nil {
			p.forgetVolume(v)
		}
	}
	p.refreshKeep()
	p.statesWent()
}

// statesWent notes that states or bookmarks went, by the record that was logged last: what they alone had can be given back.
func (p *Pool) statesWent() {
	p.wentAt.Store(p.log.LastSeq())
	p.reclaimer.deleted.Store(true)
}

// goneDurably returns when all that went is gone durably. Before that it may come back with a crash, and what it had in place must not be
// overwritten, nor anything go unrecorded that changes.
func (p *Pool) goneDurably() error { return p.log.Flush(p.wentAt.Load()) }

// forgetVolume lets go of a volume that was deleted; mu is held.
func (p *Pool) forgetVolume(v *volume) {
	v.mu.Lock()
	v.gone = true
	v.mu.Unlock()
	delete(p.volumes, v.number)
	if v.place != nil {
		v.place.close()
	}
	if v.basis != nil {
		v.basis.closeLater()
	}
}

// CancelCopy says that a snapshot is no more to become a copy: a clone goes, of a cow-copy the snapshot stays that it is.
// ErrNotFound, ErrInUse while it is being copied.
func (p *Pool) CancelCopy(ctx context.Context, id uuid.UUID) error {
	p.mu.RLock()
	s, err := p.findCopying(id)
	p.mu.RUnlock()
	if err != nil {
		return err
	}
	if _, free := p.startCopy(ctx, s.ID); !free {
		return fmt.Errorf("cancel copy: snapshot %q: %w: it is being copied", s.Name, ErrInUse)
	}
	defer p.endCopy(s.ID)
	if err := p.removePart(s.Copying); err != nil {
		return err
	}
	_, err = p.change(func(c *catalogue.Catalogue) (proposal, error) {
		now := c.State(s.ID)
		if now == nil || now.Copying == nil {
			return proposal{}, fmt.Errorf("cancel copy: snapshot %q: %w", s.Name, ErrNotFound)
		}
		pr := proposal{op: &catalogue.Op{CancelCopy: &catalogue.CancelCopy{ID: s.ID}}, urgent: true}
		if now.Copying.Technique != CowCopy {
			pr.deletes = []uint64{s.ID}
		}
		return pr, nil
	})
	return err
}

// removePart removes a file that was never whole. Of a device, what was written stays.
func (p *Pool) removePart(k *catalogue.Copying) error {
	if k == nil || k.Path == "" || k.Device || k.Technique == Mirror {
		return nil
	}
	if err := p.opts.FS.Remove(partName(k.Path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// copyWork is the copying of a snapshot, while somebody does it.
type copyWork struct {
	stop  context.CancelCauseFunc
	ended chan struct{}
}

// startCopy claims a snapshot's copying, which ends with the context; false if somebody else works on it.
func (p *Pool) startCopy(ctx context.Context, state uint64) (context.Context, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.copies[state] != nil {
		return ctx, false
	}
	ctx, stop := context.WithCancelCause(ctx)
	p.copies[state] = &copyWork{stop, make(chan struct{})}
	return ctx, true
}

func (p *Pool) endCopy(state uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.copies[state].stop(nil)
	close(p.copies[state].ended)
	delete(p.copies, state)
}

// errDropped is why a copy is not made any more.
var errDropped = errors.New("the pool is full, and the snapshot was made with --on-full drop-snapshot")

// stopCopy ends the copying of a snapshot that is to be given up, and waits until it has.
func (p *Pool) stopCopy(ctx context.Context, state uint64) {
	p.mu.RLock()
	work := p.copies[state]
	p.mu.RUnlock()
	if work == nil {
		return
	}
	work.stop(errDropped)
	select {
	case <-work.ended:
	case <-ctx.Done():
	}
}

// contentOf returns the snapshot that has the content of a copy in the pool, or nil.
func contentOf(c *catalogue.Catalogue, s *catalogue.State) *catalogue.State {
	if s.Copy == nil {
		return nil
	}
	return c.State(s.Copy.State)
}

// seen is the state that users know a state by: of an internal volume of a copy, the copy.
func seen(c *catalogue.Catalogue, s *catalogue.State) *catalogue.State {
	if v := c.Volume(s.Volume); v != nil && v.ContentOf != 0 {
		return c.State(v.ContentOf)
	}
	return s
}

// errInFile is why a copy in a file cannot be cloned at once.
var errInFile = fmt.Errorf("%w: its content lies in a file of its own; make a volume of that file, which copies it", ErrInvalid)

// cloneable returns the state that a clone of a snapshot begins with, and the inplace volume in whose file blocks of it may lie, or 0.
func cloneable(c *catalogue.Catalogue, v *catalogue.Volume, s *catalogue.State) (from *catalogue.State, base uint64, err error) {
	if s.Kind != catalogue.Copy {
		return s, v.Base, nil
	}
	if from = contentOf(c, s); from == nil {
		return nil, 0, errInFile
	}
	return from, 0, nil
}
