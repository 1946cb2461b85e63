package catalogue

import (
	"slices"

	"varve/internal/pool/blockmap"
)

// Children lists the states and bookmarks that descend directly from the state id, oldest first.
func (c *Catalogue) Children(id uint64) []*State {
	out := make([]*State, len(c.children[id]))
	for i, k := range c.children[id] {
		out[i] = c.states[k]
	}
	return out
}

// DataParent is the nearest ancestor that holds data, or nil.
func (c *Catalogue) DataParent(s *State) *State { return dataParent(s, c.State) }

func dataParent(s *State, state func(uint64) *State) *State {
	p := state(s.Parent)
	for p != nil && !p.Kind.HoldsData() {
		p = state(p.Parent)
	}
	return p
}

// DataChildren lists the states with data whose DataParent is the state id.
func (c *Catalogue) DataChildren(id uint64) []*State { return c.dataChildren(id, len(c.states)) }

// dataChildren stops when it has found limit.
func (c *Catalogue) dataChildren(id uint64, limit int) []*State {
	var out []*State
	for todo := []uint64{id}; len(todo) > 0 && len(out) < limit; {
		last := len(todo) - 1
		kids := c.children[todo[last]]
		todo = todo[:last]
		for _, k := range kids {
			if s := c.states[k]; s.Kind.HoldsData() {
				out = append(out, s)
			} else {
				todo = append(todo, k)
			}
		}
	}
	return out[:min(len(out), limit)]
}

// DataSince is the epoch of the state's data parent, 0 if it has none: a block that the
// state refers to is its own iff it is newer.
func (c *Catalogue) DataSince(s *State) uint64 { return epochOf(c.DataParent(s)) }

// Own says what of a state's map is its own. Blocks have owners by the data lineage, map nodes
// by the whole, so that nothing has two.
func (c *Catalogue) Own(s *State) blockmap.Own { return ownOf(s, c.State) }

func ownOf(s *State, state func(uint64) *State) blockmap.Own {
	own := blockmap.Own{Data: blockmap.NoData, Nodes: epochOf(state(s.Parent))}
	if s.Kind.HoldsData() {
		own.Data = epochOf(dataParent(s, state))
	}
	return own
}

func epochOf(s *State) uint64 {
	if s == nil {
		return 0
	}
	return s.Epoch
}

// VisibleParent is the nearest ancestor that is listed as a snapshot, or the copy whose content it has, or nil.
func (c *Catalogue) VisibleParent(s *State) *State {
	for p := c.states[s.Parent]; p != nil; p = c.states[p.Parent] {
		if v := c.volumes[p.Volume]; v != nil && v.ContentOf != 0 {
			return c.states[v.ContentOf]
		}
		if p.Kind == Snapshot && c.Listed(p) {
			return p
		}
	}
	return nil
}

// Related tells whether two states have a common ancestor, or one is the other's. What has had one keeps one.
func (c *Catalogue) Related(a, b *State) bool { return c.oldest(a) == c.oldest(b) }

func (c *Catalogue) oldest(s *State) *State {
	for p := s; p != nil; p = c.states[p.Parent] {
		s = p
	}
	return s
}

// tip is where what continues from the snapshot id hangs: behind all bookmarks of it, so that
// these are ancestors of everything that descends from it.
func (c *Catalogue) tip(id uint64) uint64 {
	for {
		kids := c.children[id]
		if len(kids) != 1 || c.states[kids[0]].Epoch != c.states[id].Epoch {
			return id
		}
		id = kids[0]
	}
}

// reparent hangs a state below another one.
func (c *Catalogue) reparent(id, parent uint64) {
	c.unlinkChild(c.states[id].Parent, id)
	c.replace(id, func(s *State) { s.Parent = parent })
	if parent != 0 {
		kids := append(c.children[parent], id)
		slices.Sort(kids)
		c.children[parent] = kids
	}
}

func (c *Catalogue) unlinkChild(parent, id uint64) {
	kids := slices.DeleteFunc(c.children[parent], func(k uint64) bool { return k == id })
	if len(kids) == 0 {
		delete(c.children, parent)
	} else {
		c.children[parent] = kids
	}
}

// remove takes a state out; its children hang below its parent then.
func (c *Catalogue) remove(id uint64) {
	s := c.states[id]
	for _, kid := range slices.Clone(c.children[id]) {
		c.reparent(kid, s.Parent)
	}
	c.unlinkChild(s.Parent, id)
	c.drop(id)
}

// dissolve removes what was deleted and is not needed any more, beginning with id and going up.
// A hidden state is needed while several states with data descend from it; a fork, which
// is what becomes of it then, while it has several children.
func (c *Catalogue) dissolve(id uint64) {
	for s := c.states[id]; s != nil; {
		up := s.Parent
		switch {
		case s.Kind == Head || s.Kind == Snapshot:
			return
		case s.Kind == Bookmark || s.Kind == Copy: // stays, but what is above may have had it in between
		case s.Kind == Hidden && (c.isBase(s) || len(c.dataChildren(s.ID, 2)) > 1):
			return
		case len(c.children[s.ID]) <= 1:
			c.remove(s.ID)
		default:
			c.replace(s.ID, func(s *State) { s.Kind = Fork })
		}
		s = c.states[up]
	}
}
