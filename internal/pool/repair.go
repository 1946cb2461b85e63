package pool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"

	"varve/internal/block"
	"varve/internal/pool/blockmap"
	"varve/internal/pool/catalogue"
)

// RepairReport tells what Repair, or a check of a pool that nobody has open, found and did.
type RepairReport struct {
	// Refused is why the pool cannot be opened by itself; empty if it can, or could not have been repaired.
	Refused string
	// Before is what a check found first, and After what is left.
	Before, After CheckReport
	// Cut are the flushed batches that had to be given up; nil: none.
	Cut *CutTail
	// Done is what was changed, in words.
	Done []string
	// Left is what could not be done, and why.
	Left []string
}

func (r *RepairReport) did(format string, args ...any) {
	r.Done = append(r.Done, fmt.Sprintf(format, args...))
}

func (r *RepairReport) left(format string, args ...any) {
	r.Left = append(r.Left, fmt.Sprintf(format, args...))
}

// CheckOffline checks a pool that nobody has open, and changes nothing in it; it may lie on a medium that cannot be
// written. Where the pool is refused as damaged, it checks what a repair would make of it. Only Refused, After and Cut of the
// report are set. An error means that nothing could be checked.
func CheckOffline(ctx context.Context, o Options, progress func(float64)) (RepairReport, error) {
	o.setDefaults()
	o.Manual = true
	var rep RepairReport
	how := opening{readOnly: true, salvage: true}
	p, err := open(o, &how)
	if err != nil {
		return rep, fmt.Errorf("check pool %s: %w", o.Dir, err)
	}
	defer p.abandon()
	how.tell(&rep)
	if rep.After, err = p.Check(ctx, progress); rep.Refused != "" {
		rep.After.Damage = append([]Damage{{Object: "pool", Offset: -1, Message: "it cannot be opened: " + rep.Refused}}, rep.After.Damage...)
	}
	return rep, err
}

// RepairOffline repairs a pool that nobody has open, as Repair does, also one that is refused as damaged. force allows it to give up flushed
// batches of the log where there is no other way; without it that is ErrWouldLose, and nothing is changed.
func RepairOffline(ctx context.Context, o Options, force bool, progress func(float64)) (RepairReport, error) {
	o.setDefaults()
	o.Manual = true
	var rep RepairReport
	how := opening{salvage: true, force: force}
	p, err := openWritable(ctx, o, &how)
	how.tell(&rep)
	if err != nil {
		return rep, err
	}
	if how.rebuilt {
		rep.did("the superblock was rebuilt from the checkpoint record %d in the log", p.super.Load().generation)
	}
	if c := how.cut; c != nil {
		rep.did("the log was cut off before batch %d, and batches up to %d were given up", c.FirstSeq, c.LastSeq)
	}
	err = p.repair(ctx, &rep, progress)
	if e := p.Close(context.WithoutCancel(ctx)); err == nil {
		err = e
	}
	return rep, err
}

func (h *opening) tell(rep *RepairReport) {
	if rep.Cut = h.cut; h.refused != nil {
		rep.Refused = h.refused.Error()
	}
}

// Repair mends what can be mended while the pool is in use. What cannot be read any more is never dropped
// silently: it reads as an error, and is listed by each check. See docs/design/check.md.
func (p *Pool) Repair(ctx context.Context, progress func(float64)) (RepairReport, error) {
	var rep RepairReport
	if !p.begin() {
		return rep, fmt.Errorf("repair: pool: %w", block.ErrClosed)
	}
	defer p.end()
	err := p.repair(ctx, &rep, progress)
	return rep, err
}

// repairRounds bounds how often parts of maps are looked for again, because there were too many to list or states
// came to be meanwhile.
const repairRounds = 5

func (p *Pool) repair(ctx context.Context, rep *RepairReport, progress func(float64)) (err error) {
	p.repairs.Lock()
	defer p.repairs.Unlock()
	part := func(from float64) func(float64) {
		return func(done float64) {
			if progress != nil {
				progress(from + done/2)
			}
		}
	}
	defer func() {
		for _, done := range rep.Done {
			p.event(EventRepaired, "pool", done)
		}
	}()
	if rep.Before, err = p.Check(ctx, part(0)); err != nil {
		return fmt.Errorf("repair: %w", err)
	}
	if err := p.removeStray(rep); err != nil {
		return fmt.Errorf("repair: %w", err)
	}
	found := rep.Before
	for range repairRounds {
		if len(found.nodes) == 0 {
			break
		}
		changed, err := p.recordLosses(&found, rep)
		if err != nil {
			return fmt.Errorf("repair: %w", err)
		}
		if !changed {
			break
		}
		if found, err = p.Check(ctx, nil); err != nil {
			return fmt.Errorf("repair: %w", err)
		}
	}
	// Two checkpoints write both slots of the superblock, and both images.
	for range 2 {
		if err := p.checkpointNow(); err != nil {
			return fmt.Errorf("repair: %w", err)
		}
	}
	if hasOwn(&rep.Before) {
		rep.did("both slots of the superblock, and what they lead to, were written anew")
	}
	given, err := p.reclaim(ctx, cleanAll)
	switch {
	case isDamage(err) && p.log.Failure() == nil: // of what is stored, not of writing
		rep.left("space was not given back: %v", err)
	case err != nil:
		return fmt.Errorf("repair: %w", err)
	case given.FreedBytes > 0 && len(rep.Before.Leaks) > 0: // less is what reclaim always finds, and nothing to repair
		rep.did("%d bytes of the log that nothing refers to were given back", given.FreedBytes)
	}
	if rep.After, err = p.Check(ctx, part(0.5)); err != nil {
		return fmt.Errorf("repair: %w", err)
	}
	return nil
}

// hasOwn tells whether a part of the pool itself was found damaged.
func hasOwn(r *CheckReport) bool {
	return slices.ContainsFunc(r.Damage, func(d Damage) bool { return d.Offset < 0 })
}

// removeStray removes files that were left by what was cut short. Those of others are not touched.
func (p *Pool) removeStray(rep *RepairReport) error {
	p.checkpointMu.Lock()
	defer p.checkpointMu.Unlock()
	err := p.opts.FS.Remove(path.Join(p.opts.Dir, newSuperblockName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		rep.did("%s, which a creation or repair had left, was removed", newSuperblockName)
	}
	return err
}

// sameMap identifies the maps of states that have all in common: a snapshot and its bookmarks. They are mended together,
// as one of them relies on the other to keep it.
type sameMap struct {
	root  blockmap.Root
	epoch uint64
	size  int64
}

// mapOf tells a state's map from others, however it is kept in memory.
func mapOf(s *catalogue.State) sameMap { return sameMap{s.Root.Settled(), s.Epoch, s.SizeBytes} }

// recordLosses puts it into the maps that parts of them cannot be read any more, in every state that shows them, at one instant: from
// then on nobody needs these parts.
func (p *Pool) recordLosses(found *CheckReport, rep *RepairReport) (changed bool, err error) {
	of := map[uint64][]*blockmap.NodeError{} // by state
	for _, n := range found.nodes {
		for _, id := range n.states {
			of[id] = append(of[id], n.err)
		}
	}
	if err = p.checkpointNow(); err != nil { // what is changed below is then as it was found, or newer
		return false, err
	}
	err = p.exclusively(func() error {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.cat.LastEpoch != found.lastEpoch || p.cat.LastState != found.lastState {
			rep.left("volumes or snapshots came to be meanwhile: looking again")
			changed = true
			return nil
		}
		frozen := map[uint64]blockmap.Root{} // by state
		done := map[sameMap]blockmap.Root{}
		for _, s := range p.statesToMend(of, rep) {
			same := mapOf(s)
			root, known := done[same]
			if !known || s.Kind == catalogue.Head {
				if root, err = p.mend(s, of[s.ID]); err != nil {
					return fmt.Errorf("map of %s: %w", p.stateName(s), err)
				}
			}
			done[same] = root
			changed = true
			rep.did("%s: %d parts of the map that could not be read or were miscounted were written anew, or recorded as lost", p.stateName(s), len(of[s.ID]))
			if s.Kind != catalogue.Head {
				frozen[s.ID] = root
			}
		}
		for id, root := range frozen {
			p.cat.SetRoot(id, root)
		}
		return nil
	})
	return changed, err
}

// statesToMend lists the states whose maps are changed, children before parents. A snapshot that a client reads
// stays as it is, and so do those that it descends from: what a state shares with its parent, it relies on the parent to keep.
func (p *Pool) statesToMend(of map[uint64][]*blockmap.NodeError, rep *RepairReport) []*catalogue.State {
	states := p.cat.States()
	depth := map[uint64]int{}
	for _, s := range states { // oldest first, but a clone or rollback may descend from any
		for up := s; up != nil; up = p.cat.State(up.Parent) {
			depth[s.ID]++
		}
	}
	slices.SortStableFunc(states, func(a, b *catalogue.State) int { return cmp.Compare(depth[b.ID], depth[a.ID]) })
	open := map[sameMap]bool{}
	for _, s := range states {
		if p.snapOpen[s.ID] > 0 {
			open[mapOf(s)] = true
		}
	}
	held := map[uint64]bool{}
	var out []*catalogue.State
	for _, s := range states {
		if len(of[s.ID]) == 0 {
			continue
		}
		switch {
		case open[mapOf(s)]:
			rep.left("%s: a client reads it; repair again when it is gone", p.stateName(s))
		case held[s.ID]:
			rep.left("%s: a snapshot that descends from it is being read; repair again when that is over", p.stateName(s))
		default:
			out = append(out, s)
			continue
		}
		held[s.Parent] = true
	}
	return out
}

// mend returns the map of a state with what was found in it recorded; a head's is changed.
func (p *Pool) mend(s *catalogue.State, found []*blockmap.NodeError) (blockmap.Root, error) {
	tree := blockmap.NewTree(s.Root, s.Epoch, p.cat.DataSince(s), p.nextGen())
	if s.Kind == catalogue.Head {
		v := p.volumes[s.Volume]
		v.mu.Lock()
		defer v.mu.Unlock()
		tree = v.tree
	}
	pins := p.store.NewPins()
	for _, e := range found {
		if shows, _, err := p.store.Shows(tree.View(), e); err != nil || !shows {
			if err != nil {
				return blockmap.Root{}, err
			}
			continue // it was overwritten meanwhile
		}
		// The memory may have what the disk has lost.
		err := tree.Rewrite(pins, e.Level, e.First)
		if errors.Is(err, blockmap.ErrDamaged) {
			err = tree.Lose(pins, e.Level, e.First, blocksIn(s.SizeBytes))
		}
		if err != nil {
			return blockmap.Root{}, err
		}
	}
	p.checkpointer.dirty.Add(tree.TakeDirty())
	p.reclaimer.live.Add(tree.TakeLive() * block.Size)
	return tree.View(), nil
}
