package pool

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"

	"varve/internal/block"
	"varve/internal/pool/blockmap"
	"varve/internal/pool/catalogue"
)

// question is about the blocks that a state holds.
type question struct {
	state uint64
	own   bool // those newer than its parent; otherwise those that no other visible state has
	held  bool // all that the pool has of it
}

// content is what a state maps: for ever the same but for a head, whose version counts its changes.
type content struct {
	state, version uint64
}

// answer is a count and all that it depends on: as long as that is as it was, so is the count.
type answer struct {
	since  uint64    // what is not newer is not counted
	of     []content // the state, and then those whose blocks are not counted
	blocks uint64
}

// answers remembers what has been counted, so that listing walks only what has changed since.
type answers struct {
	mu    sync.Mutex
	to    map[question]answer
	bound int // so many may be remembered before those about states that are gone are dropped
}

func (a *answers) find(q question, since uint64, of []content) (uint64, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	known, ok := a.to[q]
	return known.blocks, ok && known.since == since && slices.Equal(known.of, of)
}

func (p *Pool) keepAnswer(q question, known answer) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	a := &p.answers
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.to) >= a.bound {
		maps.DeleteFunc(a.to, func(q question, _ answer) bool { return p.cat.State(q.state) == nil })
		a.bound = 2*len(a.to) + 1024
	}
	if a.to == nil {
		a.to = map[question]answer{}
	}
	a.to[q] = known
}

// subject is a question with the maps that answer it.
type subject struct {
	answer
	mapped uint64          // blocks of the state
	kept   bool            // the last of them is what is kept of its origin
	based  bool            // on a base outside of the pool
	roots  []blockmap.Root // as in of, if they were frozen
}

// subjectOf gathers what a question is about; mu is held. With freeze its maps stay as they are, and
// heads go on in copies.
func (p *Pool) subjectOf(s *catalogue.State, own, freeze bool) subject {
	out := subject{answer: answer{since: p.cat.DataSince(s)}}
	var others []*catalogue.State
	if !own {
		out.since, others = p.around(s)
	}
	add := func(s *catalogue.State) uint64 {
		c := content{state: s.ID}
		root, mapped := s.Root, s.Root.Mapped()
		if s.Kind == catalogue.Head {
			v := p.volumes[s.Volume]
			v.mu.Lock()
			root, mapped, c.version = v.tree.View(), v.tree.View().Mapped(), v.version
			if freeze {
				root = v.tree.Freeze(v.tree.Epoch(), p.nextGen())
			}
			v.mu.Unlock()
		}
		out.of = append(out.of, c)
		if freeze {
			out.roots = append(out.roots, root)
		}
		return mapped
	}
	out.mapped = add(s)
	for _, o := range others {
		add(o)
	}
	if o := p.basedOn(p.cat, s); o != nil { // what is in place takes no room in the pool, but what was kept of it does
		out.kept = true
		add(p.cat.Head(p.cat.Volume(o.kept.number)))
		if b, ok := o.rest.(*base); ok {
			if out.based = true; b.whole() { // then a version that a state has is kept for as long as it has it
				out.of[len(out.of)-1].version = math.MaxUint64
			}
		}
	}
	return out
}

// around finds what else may hold blocks of a state; mu is held. Hidden states hold nothing for themselves: a block is there for
// the visible states that have it. So the nearest visible ancestor has all blocks that are not newer than its epoch, and of the
// newer ones, what the nearest visible relatives have not, nobody has.
func (p *Pool) around(s *catalogue.State) (since uint64, others []*catalogue.State) {
	others = p.cat.VisibleBelow(s.ID)
	if s.Kind == catalogue.Hidden {
		return p.cat.DataSince(s), others
	}
	top := s
	for up := p.cat.DataParent(s); up != nil && up.Kind == catalogue.Hidden; up = p.cat.DataParent(up) {
		top = up
	}
	if top != s {
		for _, k := range p.cat.VisibleBelow(top.ID) {
			if k != s {
				others = append(others, k)
			}
		}
	}
	return p.cat.DataSince(top), others
}

// frozenRoot is a state's map as it is now and stays; mu is held.
func (p *Pool) frozenRoot(s *catalogue.State) blockmap.Root {
	if s.Kind != catalogue.Head {
		return s.Root
	}
	return p.subjectOf(s, true, true).roots[0]
}

// count answers a question about the state that find returns, in blocks, and says how many the state maps.
func (p *Pool) count(ctx context.Context, find func() (*catalogue.State, error), own bool) (blocks, mapped uint64, err error) {
	p.mu.RLock()
	s, err := find()
	if err != nil {
		p.mu.RUnlock()
		return 0, 0, err
	}
	q := question{state: s.ID, own: own}
	about := p.subjectOf(s, own, false)
	p.mu.RUnlock()
	if about.since == 0 && len(about.of) == 1 {
		return about.mapped, about.mapped, nil // all of it is its own
	}
	if blocks, ok := p.answers.find(q, about.since, about.of); ok {
		return blocks, about.mapped, nil
	}

	release, err := p.pin(func() ([]ownedRoot, error) {
		s, err := find()
		if err != nil {
			return nil, err
		}
		q.state = s.ID
		about = p.subjectOf(s, own, true)
		walked := make([]ownedRoot, len(about.of))
		for i, c := range about.of {
			walked[i] = ownedRoot{state: c.state, root: about.roots[i], own: blockmap.Own{Data: about.since, Nodes: about.since}}
		}
		return walked, nil
	})
	if err != nil {
		return 0, 0, err
	}
	defer release()
	others := about.roots[1:]
	if about.kept {
		others = others[:len(others)-1]
	}
	about.blocks, err = p.store.Exclusive(ctx, about.roots[0], about.since, others)
	switch {
	case err != nil || !about.kept:
	case about.based:
		if about.since == 0 { // all versions are of the epoch in which the first volume over the base began: what descends from it shares them
			var kept uint64
			kept, err = p.store.ExclusiveKept(ctx, about.roots[0], about.roots[len(about.roots)-1], others)
			about.blocks += kept
		}
	default:
		var kept uint64
		kept, err = p.exclusiveKept(ctx, about.roots[0], about.since, others, about.roots[len(about.roots)-1])
		about.blocks += kept
	}
	if err != nil {
		return 0, 0, fmt.Errorf("measure what it holds: %w", damaged(err))
	}
	p.keepAnswer(q, about.answer)
	return about.blocks, about.mapped, nil
}

// held counts what the pool has of the state that find returns, in blocks, if that is based on a base of which not all may be there.
func (p *Pool) held(ctx context.Context, find func() (*catalogue.State, error)) (blocks uint64, based bool, err error) {
	about := subject{}
	var q question
	look := func(freeze bool) error {
		s, err := find()
		if err != nil {
			return err
		}
		q = question{state: s.ID, held: true}
		about = p.subjectOf(s, true, freeze)
		about.since = 0
		return nil
	}
	p.mu.RLock()
	err = look(false)
	p.mu.RUnlock()
	if err != nil || !about.based {
		return 0, false, err
	}
	if blocks, ok := p.answers.find(q, about.since, about.of); ok {
		return blocks, true, nil
	}
	release, err := p.pin(func() (walked []ownedRoot, err error) {
		err = look(true)
		for i, c := range about.of {
			walked = append(walked, ownedRoot{state: c.state, root: about.roots[i]}) // all of it
		}
		return walked, err
	})
	if err != nil {
		return 0, true, err
	}
	defer release()
	about.blocks, err = p.store.Exclusive(ctx, about.roots[0], 0, nil)
	if err == nil {
		var kept uint64
		kept, err = p.store.ExclusiveKept(ctx, about.roots[0], about.roots[1], nil)
		about.blocks += kept
	}
	if err != nil {
		return 0, true, fmt.Errorf("measure what it holds: %w", damaged(err))
	}
	p.keepAnswer(q, about.answer)
	return about.blocks, true, nil
}

// VolumeUsage tells what a volume's head holds. It walks what differs from its
// parent, unless nothing has been written since that was last asked.
func (p *Pool) VolumeUsage(ctx context.Context, name string) (Usage, error) {
	return p.usage(ctx, func() (*catalogue.State, error) {
		v, err := findVolume(p.cat, name)
		if err != nil {
			return nil, err
		}
		return p.cat.Head(v), nil
	})
}

// SnapshotUsage tells what a snapshot holds. It walks what differs from its nearest relatives,
// once, and again when one of them goes, comes or is a head that was written to.
func (p *Pool) SnapshotUsage(ctx context.Context, ref SnapshotRef) (Usage, error) {
	return p.usage(ctx, func() (*catalogue.State, error) {
		_, s, err := findSnapshot(p.cat, ref)
		if err == nil && s.Kind == catalogue.Copy {
			if s = contentOf(p.cat, s); s == nil {
				err = errInFile
			}
		}
		return s, err
	})
}

func (p *Pool) usage(ctx context.Context, find func() (*catalogue.State, error)) (Usage, error) {
	if !p.begin() {
		return Usage{}, fmt.Errorf("pool: %w", block.ErrClosed)
	}
	defer p.end()
	exclusive, mapped, err := p.count(ctx, find, false)
	if err != nil {
		return Usage{}, err
	}
	if held, based, err := p.held(ctx, find); err != nil {
		return Usage{}, err
	} else if based {
		mapped = max(held, exclusive)
	}
	u := Usage{Mapped: int64(mapped) * block.Size, Exclusive: int64(exclusive) * block.Size}
	u.Shared = u.Mapped - u.Exclusive
	return u, nil
}
