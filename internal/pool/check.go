package pool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"varve/internal/block"
	"varve/internal/pool/blockmap"
	"varve/internal/pool/catalogue"
	"varve/internal/pool/seglog"
)

// Damage is one finding of Check.
type Damage struct {
	Object  string // VOLUME, VOLUME@SNAP or VOLUME#BOOKMARK, (hidden) for a deleted snapshot that others descend from, or a part of the pool
	Offset  int64  // bytes within it; -1 for a part of the pool
	Length  int64
	Message string
}

// CheckReport is what Check found.
type CheckReport struct {
	Blocks   int64 // data blocks verified
	MapNodes int64 // map nodes verified
	Bytes    int64 // of data blocks
	Damage   []Damage
}

// maxFindings bounds a report; a pool that lost a disk has no use for a longer one.
const maxFindings = 10000

// Check reads and verifies every map node that any volume, snapshot or bookmark reaches and every
// block that any volume or snapshot does, each once, while the pool is in use. progress may be nil; it is
// called with a fraction from 0 to 1. The error is nil whatever the damage found.
func (p *Pool) Check(ctx context.Context, progress func(float64)) (CheckReport, error) {
	if !p.begin() {
		return CheckReport{}, fmt.Errorf("check: pool: %w", block.ErrClosed)
	}
	defer p.end()
	var subjects []ownedRoot
	var names []string
	release, err := p.pin(func() ([]ownedRoot, error) {
		states := p.cat.States()
		roots := make(map[uint64]blockmap.Root, len(states)) // each head at one instant
		for _, s := range states {
			roots[s.ID] = p.frozenRoot(s)
		}
		// Parents first: what a state shares with its parent was verified there. (A bookmark has its snapshot's epoch,
		// and nothing of its own while that is there.)
		slices.SortStableFunc(states, func(a, b *catalogue.State) int { return cmp.Compare(a.Epoch, b.Epoch) })
		for _, s := range states {
			r := ownedRoot{state: s.ID, root: roots[s.ID], own: p.cat.Own(s), hidden: s.Kind == catalogue.Hidden}
			if r.hidden {
				for _, k := range p.cat.VisibleBelow(s.ID) {
					r.visible = append(r.visible, roots[k.ID])
				}
			}
			subjects = append(subjects, r)
			names = append(names, p.stateName(s))
		}
		return subjects, nil
	})
	if err != nil {
		return CheckReport{}, fmt.Errorf("check: %w", err)
	}
	defer release()

	report, err := p.checkCheckpoints()
	if err == nil && p.log.Failure() == nil {
		err = p.log.DropCaches() // what is verified is what is on the disk; after a failed sync the cache may be all there is
	}
	if err != nil {
		return report, fmt.Errorf("check: %w", err)
	}
	for i, s := range subjects {
		c := blockCheck{pool: p, ctx: ctx, report: &report, object: names[i]}
		verify := c.verify
		if s.hidden {
			verify = c.verifyHeld(s.visible)
		}
		nodes, err := p.store.Check(s.root, s.own, verify, c.found)
		report.MapNodes += nodes
		if err == nil {
			err = c.flush()
		}
		if err != nil {
			return report, fmt.Errorf("check %s: %w", names[i], err)
		}
		if progress != nil {
			progress(float64(i+1) / float64(len(subjects)))
		}
	}
	report.Bytes = report.Blocks * block.Size
	return report, nil
}

// checkCheckpoints verifies both superblock slots and the images they lead to.
func (p *Pool) checkCheckpoints() (CheckReport, error) {
	var report CheckReport
	p.checkpointMu.Lock()
	defer p.checkpointMu.Unlock()
	supers, err := readSuperblocks(p.superFile)
	if err != nil && !errors.Is(err, ErrDamagedLog) {
		return report, err
	}
	if n := min(2, int(p.super.Load().generation)+1) - len(supers); n > 0 {
		report.Damage = append(report.Damage, Damage{Object: superblockName, Offset: -1, Message: fmt.Sprintf("%d of its slots are not sound; the next checkpoints write them anew", n)})
	}
	for i := range supers {
		if _, err := p.loadCatalogue(&supers[i]); err != nil {
			report.Damage = append(report.Damage, Damage{Object: fmt.Sprintf("checkpoint %d", supers[i].generation), Offset: -1, Message: err.Error()})
		}
	}
	return report, nil
}

func (p *Pool) stateName(s *catalogue.State) string {
	v := p.cat.Volume(s.Volume)
	switch {
	case s.Kind == catalogue.Hidden || s.Kind == catalogue.Fork:
		return "(hidden)"
	case s.Kind == catalogue.Bookmark:
		return BookmarkRef{v.Name, s.Name}.String()
	case s.Kind == catalogue.Head:
		return v.Name
	}
	return SnapshotRef{v.Name, s.Name}.String()
}

// blockCheck verifies the blocks of one state, some at a time in the order in which they lie in the
// log: by LBA a volume that was written at random would be read at random.
type blockCheck struct {
	pool    *Pool
	ctx     context.Context
	report  *CheckReport
	object  string
	pending []checked
	buf     []byte
}

// checked is a block that is to be verified.
type checked struct {
	lba   uint64
	entry blockmap.Entry
}

const (
	checkedAtOnce = 1 << 17 // 4 MiB of them
	checkedRun    = 256     // blocks read at a time
)

func (c *blockCheck) verify(lba uint64, entries []blockmap.Entry) error {
	for i, e := range entries {
		if e.Mapped() {
			c.pending = append(c.pending, checked{lba + uint64(i), e})
		}
	}
	if len(c.pending) < checkedAtOnce {
		return nil
	}
	return c.flush()
}

// verifyHeld returns what verifies only blocks that one of these maps has as well.
func (c *blockCheck) verifyHeld(visible []blockmap.Root) func(uint64, []blockmap.Entry) error {
	var found [1]blockmap.Entry
	held := func(pins *blockmap.Pins, lba uint64, e blockmap.Entry) (bool, error) {
		for _, r := range visible {
			err := waitFor(pins, func() error { return r.Lookup(pins, lba, found[:]) })
			if err == nil && found[0].Addr == e.Addr {
				return true, nil
			} else if err != nil && !errors.Is(err, blockmap.ErrDamaged) { // which is told where that map is checked
				return false, err
			}
		}
		return false, nil
	}
	return func(lba uint64, entries []blockmap.Entry) error {
		pins := c.pool.store.NewPins()
		for i := range entries {
			ok, err := held(pins, lba+uint64(i), entries[i])
			if err == nil && ok {
				err = c.verify(lba+uint64(i), entries[i:i+1])
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
}

// flush verifies what is pending, and tells what is damaged by LBA.
func (c *blockCheck) flush() error {
	slices.SortFunc(c.pending, func(a, b checked) int { return cmp.Compare(a.entry.Addr, b.entry.Addr) })
	type finding struct {
		lba uint64
		err error
	}
	var bad []finding
	for left := c.pending; len(left) > 0; {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		n := 1
		for n < len(left) && n < checkedRun && continues(left[0].entry, left[n].entry, n) {
			n++
		}
		if err := c.verifyRun(left[:n], func(lba uint64, err error) { bad = append(bad, finding{lba, err}) }); err != nil {
			return err
		}
		left = left[n:]
	}
	slices.SortFunc(bad, func(a, b finding) int { return cmp.Compare(a.lba, b.lba) })
	for _, f := range bad {
		c.found(f.lba, 1, f.err)
	}
	c.pending = c.pending[:0]
	return nil
}

func (c *blockCheck) verifyRun(run []checked, damaged func(lba uint64, err error)) error {
	c.buf = slices.Grow(c.buf[:0], len(run)*block.Size)[:len(run)*block.Size]
	b := c.buf
	c.report.Blocks += int64(len(run))
	whole := c.pool.log.ReadAt(run[0].entry.Addr, b) == nil
	for i, k := range run {
		one := b[i*block.Size : (i+1)*block.Size]
		if whole && seglog.Checksum(one) == k.entry.CRC {
			continue
		}
		if err := c.pool.readBlock(k.entry, one); errors.Is(err, block.ErrDamaged) {
			damaged(k.lba, err)
		} else if err != nil {
			return err
		}
	}
	return nil
}

// found adds a finding, or extends the one before it.
func (c *blockCheck) found(lba, blocks uint64, err error) {
	d := Damage{Object: c.object, Offset: int64(lba) * block.Size, Length: int64(blocks) * block.Size, Message: err.Error()}
	if n := len(c.report.Damage); n > 0 {
		last := &c.report.Damage[n-1]
		if last.Object == d.Object && last.Offset+last.Length == d.Offset {
			last.Length += d.Length
			return
		}
		if n == maxFindings {
			last.Message = "and more, which are not listed"
		}
		if n >= maxFindings {
			return
		}
	}
	c.report.Damage = append(c.report.Damage, d)
}
