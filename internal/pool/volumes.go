package pool

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"unicode/utf8"

	"github.com/google/uuid"

	"varve/internal/block"
	"varve/internal/pool/blockmap"
	"varve/internal/pool/catalogue"
	"varve/internal/pool/seglog"
)

// MinVolumeBytes and MaxVolumeBytes bound a volume's size.
const (
	MinVolumeBytes = block.Size
	MaxVolumeBytes = block.MaxDeviceBytes
)

var namePattern = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)

func checkName(what, name string) error {
	if !namePattern.MatchString(name) {
		return fmt.Errorf("%w %s name %q: 1 to 63 of a-z, 0-9, '.', '_' and '-', beginning with a letter or digit", ErrInvalid, what, name)
	}
	return nil
}

func checkSize(size int64) error {
	if size < MinVolumeBytes || size > MaxVolumeBytes || size%block.SectorSize != 0 {
		return fmt.Errorf("%w size %d: a multiple of %d from %d to %d bytes (64 TiB)", ErrInvalid, size, block.SectorSize, MinVolumeBytes, MaxVolumeBytes)
	}
	return nil
}

const (
	maxLabels     = 64
	maxLabelBytes = 256
)

func checkLabels(labels map[string]string) error {
	if len(labels) > maxLabels {
		return fmt.Errorf("%w: %d labels, at most %d are kept", ErrInvalid, len(labels), maxLabels)
	}
	for k, v := range labels {
		if k == "" || len(k) > maxLabelBytes || len(v) > maxLabelBytes || !utf8.ValidString(k) || !utf8.ValidString(v) {
			return fmt.Errorf("%w label %.40q: a key of 1 to %d bytes and a value of at most %d, both UTF-8", ErrInvalid, k+"="+v, maxLabelBytes, maxLabelBytes)
		}
	}
	return nil
}

// CreateVolume creates a volume that is empty, or holds what its base does.
func (p *Pool) CreateVolume(_ context.Context, spec VolumeSpec) (VolumeInfo, error) {
	if b := spec.Base; b != nil {
		if spec.SizeBytes == 0 {
			spec.SizeBytes = b.SizeBytes
		}
		if err := b.check(spec.SizeBytes); err != nil {
			return VolumeInfo{}, fmt.Errorf("create volume %q: %w", spec.Name, err)
		}
	}
	if err := checkSize(spec.SizeBytes); err != nil {
		return VolumeInfo{}, fmt.Errorf("create volume: %w", err)
	}
	info, _, err := p.createVolume(spec, func(_ *catalogue.Catalogue, op *catalogue.CreateVolume) error {
		if b := spec.Base; b != nil {
			op.Base = op.Number + 1
			op.Filling = &catalogue.NewFilling{Ref: b.Ref, SizeBytes: b.SizeBytes, HeadID: op.HeadID + 1}
		}
		return nil
	})
	return info, err
}

// CloneVolume creates a writable volume that starts as the snapshot's content and
// size; the size and the base in spec are not used.
func (p *Pool) CloneVolume(_ context.Context, from SnapshotRef, spec VolumeSpec) (VolumeInfo, Timing, error) {
	return p.createVolume(spec, func(c *catalogue.Catalogue, op *catalogue.CreateVolume) error {
		v, s, err := findSnapshot(c, from)
		if err != nil {
			return err
		}
		begin, base, err := cloneable(c, v, s)
		if err != nil {
			return err
		}
		op.From, op.Base, op.Origin, op.SizeBytes = begin.ID, base, from.String(), s.SizeBytes
		return nil
	})
}

func (p *Pool) createVolume(spec VolumeSpec, begin func(*catalogue.Catalogue, *catalogue.CreateVolume) error) (VolumeInfo, Timing, error) {
	if err := checkName("volume", spec.Name); err != nil {
		return VolumeInfo{}, Timing{}, fmt.Errorf("create volume: %w", err)
	}
	if err := checkLabels(spec.Labels); err != nil {
		return VolumeInfo{}, Timing{}, fmt.Errorf("create volume %q: %w", spec.Name, err)
	}
	var number uint64
	t, err := p.change(func(c *catalogue.Catalogue) (proposal, error) {
		if c.VolumeByName(spec.Name) != nil {
			return proposal{}, ErrExists
		}
		number = c.LastVolume + 1
		op := &catalogue.CreateVolume{
			Number: number, UUID: uuid.New(), Name: spec.Name, SizeBytes: spec.SizeBytes, Labels: spec.Labels,
			CreatedAt: p.opts.Clock().UnixNano(), HeadID: c.LastState + 1, Incomplete: spec.Incomplete,
		}
		return proposal{op: &catalogue.Op{CreateVolume: op}}, begin(c, op)
	})
	if err != nil {
		return VolumeInfo{}, t, fmt.Errorf("create volume %q: %w", spec.Name, err)
	}
	p.mu.RLock()
	defer p.mu.RUnlock()
	if v := p.cat.Volume(number); v != nil {
		return p.volumeInfo(v), t, nil
	}
	return VolumeInfo{}, t, fmt.Errorf("create volume %q: %w: it was deleted at once", spec.Name, ErrNotFound)
}

// setVolume changes a volume's name, labels or completeness.
func (p *Pool) setVolume(name string, incomplete bool, set func(*catalogue.Catalogue, *catalogue.SetVolume) error) error {
	_, err := p.change(func(c *catalogue.Catalogue) (proposal, error) {
		v := c.VolumeByName(name)
		if v == nil || v.Incomplete != incomplete || v.Internal() {
			return proposal{}, fmt.Errorf("volume %q: %w", name, ErrNotFound)
		}
		op := &catalogue.SetVolume{Number: v.Number, Name: v.Name, Labels: maps.Clone(v.Labels)}
		return proposal{op: &catalogue.Op{SetVolume: op}}, set(c, op)
	})
	return err
}

// CompleteVolume makes an Incomplete volume an ordinary one, without some of its labels.
func (p *Pool) CompleteVolume(_ context.Context, name string, without ...string) error {
	return p.setVolume(name, true, func(_ *catalogue.Catalogue, op *catalogue.SetVolume) error {
		for _, label := range without {
			delete(op.Labels, label)
		}
		return nil
	})
}

// RenameVolume gives a volume another name; connected clients stay connected.
func (p *Pool) RenameVolume(_ context.Context, name, newName string) error {
	if err := checkName("volume", newName); err != nil {
		return fmt.Errorf("rename volume %q: %w", name, err)
	}
	err := p.setVolume(name, false, func(c *catalogue.Catalogue, op *catalogue.SetVolume) error {
		if newName != name && c.VolumeByName(newName) != nil {
			return fmt.Errorf("volume %q: %w", newName, ErrExists)
		}
		op.Name = newName
		return nil
	})
	if err != nil {
		return fmt.Errorf("rename volume %q: %w", name, err)
	}
	return nil
}

// LabelVolume sets labels; an empty value removes the label.
func (p *Pool) LabelVolume(_ context.Context, name string, labels map[string]string) error {
	err := p.setVolume(name, false, func(_ *catalogue.Catalogue, op *catalogue.SetVolume) error {
		if op.Labels == nil {
			op.Labels = map[string]string{}
		}
		for k, v := range labels {
			if v == "" {
				delete(op.Labels, k)
			} else {
				op.Labels[k] = v
			}
		}
		return checkLabels(op.Labels)
	})
	if err != nil {
		return fmt.Errorf("label volume %q: %w", name, err)
	}
	return nil
}

// ResizeVolume grows a volume, or with shrink also shrinks it: what lies beyond the
// new end is then lost to the head, while every snapshot keeps its own size and content.
func (p *Pool) ResizeVolume(ctx context.Context, name string, sizeBytes int64, shrink bool) error {
	err := checkSize(sizeBytes)
	if err == nil && shrink {
		err = p.bringEnd(ctx, name, sizeBytes)
	}
	if err == nil {
		_, err = p.changeSize(name, func(c *catalogue.Catalogue) (proposal, error) {
			v, err := findLive(c, name)
			if err != nil {
				return proposal{}, err
			}
			old := c.Head(v).SizeBytes
			pr := proposal{op: &catalogue.Op{ResizeVolume: &catalogue.ResizeVolume{Number: v.Number, SizeBytes: sizeBytes}}}
			switch {
			case old == sizeBytes:
				return proposal{}, nil
			case v.Mirror != nil:
				return proposal{}, fmt.Errorf("%w: its mirror has its size; detach that first", ErrInUse)
			case v.Place != nil:
				return proposal{}, fmt.Errorf("%w: it lies in a file of its own; delete the volume, which leaves the file, change that, and adopt it again", ErrInvalid)
			case old < sizeBytes:
				return pr, nil
			case !shrink:
				return proposal{}, fmt.Errorf("%w: from %d to %d bytes; what lies beyond would be lost", ErrShrink, old, sizeBytes)
			case p.writers(v.Number) > 0:
				return proposal{}, fmt.Errorf("%w: a client that has written to it is connected", ErrInUse)
			}
			err = p.cutOff(&pr, p.volumes[v.Number], sizeBytes, old)
			return pr, err
		})
	}
	if err != nil {
		return fmt.Errorf("resize volume %q: %w", name, err)
	}
	return nil
}

// cutOff adds the entries that make everything from size on read as zeros, should the
// volume grow again: also the rest of the block that size lies in.
func (p *Pool) cutOff(pr *proposal, v *volume, size, old int64) error {
	epoch, err := v.admit()
	if err != nil {
		return err
	}
	pr.pins = p.store.NewPins()
	if in := size % block.Size; in != 0 {
		lba := uint64(size / block.Size)
		var e [1]blockmap.Entry
		if err := v.lookup(pr.pins, lba, e[:]); err != nil {
			return damaged(err)
		}
		if base := v.baseBelow(); base != nil { // which nobody waits for here
			if lacks, err := base.lacks(pr.pins, lba, e[0]); err != nil || lacks {
				return errors.Join(err, fmt.Errorf("%w: it was changed meanwhile; try again", ErrInUse))
			}
		}
		if e[0].Mapped() {
			b := make([]byte, block.Size)
			if err := v.readCurrent(&e[0], pr.pins, lba, b); err != nil {
				return err
			}
			clear(b[in:])
			pr.entries = append(pr.entries, seglog.Entry{
				Kind: seglog.KindData, Volume: v.number, LBA: lba, Count: 1, Epoch: epoch, Payload: [][]byte{b}, CRCs: []uint32{seglog.Checksum(b)},
			})
		}
	}
	if from, to := blocksIn(size), blocksIn(old); from < to {
		var e [1]blockmap.Entry
		if err := v.lookup(pr.pins, from, e[:]); err != nil {
			return damaged(err)
		}
		if err := v.lookup(pr.pins, to-1, e[:]); err != nil {
			return damaged(err)
		}
		pr.entries = append(pr.entries, seglog.Entry{Kind: seglog.KindClear, Volume: v.number, LBA: from, Count: to - from})
	}
	return nil
}

// DeleteVolume deletes a volume and its bookmarks. ErrInUse while it has snapshots or open devices.
func (p *Pool) DeleteVolume(ctx context.Context, name string) error {
	return p.deleteVolume(ctx, name, false)
}

// DeleteIncomplete deletes a volume that was created Incomplete and never completed.
func (p *Pool) DeleteIncomplete(ctx context.Context, name string) error {
	return p.deleteVolume(ctx, name, true)
}

func (p *Pool) deleteVolume(ctx context.Context, name string, incomplete bool) error {
	p.mu.RLock()
	v := p.cat.VolumeByName(name)
	var pl *place
	if v != nil && v.Place != nil {
		pl = p.volumes[v.Number].place
	}
	p.mu.RUnlock()
	if pl != nil && pl.inUse.Load() { // from now on the file is all there is
		if _, broken := pl.get(); broken == nil {
			err := pl.destage(ctx)
			if errors.Is(err, block.ErrDamaged) {
				err = fmt.Errorf("%w; what cannot be read and was to come into its file has to be written again first, in whole blocks of %d bytes: a check lists it", err, block.Size)
			}
			if err == nil {
				err = pl.sync()
			}
			if err != nil {
				return fmt.Errorf("delete volume %q: %w", name, err)
			}
		}
	}
	_, err := p.change(func(c *catalogue.Catalogue) (proposal, error) {
		v := c.VolumeByName(name)
		if v == nil || v.Incomplete != incomplete || v.Internal() {
			return proposal{}, ErrNotFound
		}
		counts := c.Count(v)
		n := c.SnapshotCount(v) - counts.Copies
		if n > 0 && counts.Listed == counts.Copies {
			return proposal{}, fmt.Errorf("%w: a snapshot or a rollback of it is under way; wait for that", ErrInUse)
		}
		if n > 0 {
			return proposal{}, fmt.Errorf("%w: it has %d snapshots that need it; delete them first", ErrInUse, n)
		}
		if v.Deleted {
			return proposal{}, fmt.Errorf("%w: it was deleted before; it goes with the last of its copies", ErrInUse)
		}
		if v.Mirror != nil {
			return proposal{}, fmt.Errorf("%w: it is mirrored to %s; detach that first", ErrInUse, v.Mirror.Path)
		}
		op := &catalogue.DeleteVolume{Number: v.Number}
		deletes := []uint64{v.Head}
		if v.Place != nil {
			if err := p.detachable(c, v); err != nil {
				return proposal{}, err
			}
			deletes = append(deletes, c.Volume(v.Place.Kept).Head)
		}
		for _, b := range c.Bookmarks(v) {
			deletes = append(deletes, b.ID)
		}
		return proposal{op: &catalogue.Op{DeleteVolume: op}, urgent: true, deletes: deletes}, nil
	})
	if err != nil {
		return fmt.Errorf("delete volume %q: %w", name, err)
	}
	return nil
}

// writers counts the open devices of a volume that have written to it.
func (p *Pool) writers(number uint64) int {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.volumes[number].writers()
}

// writers counts the open devices that have written; the pool's mu is held.
func (v *volume) writers() (n int) {
	for d := range v.devices {
		if d.wrote.Load() {
			n++
		}
	}
	return n
}
