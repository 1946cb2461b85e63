// Package catalogue knows which volumes and snapshots a pool has and how they
// descend from each other. It is a fold: Apply turns operations from the log, in
// log order, into the present, the same way when they are made and when they are
// replayed. It does no I/O and knows nothing of blocks.
//
// Vocabulary: a state is a volume's content at one instant or, for its head, now.
// States form a forest by parent: the state that a state continued from. An epoch
// is a number that every snapshot, clone and rollback takes anew; a state's
// Epoch is the one that its last writes were marked with, so that what is newer than a
// state's parent is exactly what was written since.
//
// A deleted snapshot from which several states still descend stays, hidden, until one
// is left: without it their common blocks would have no owner.
package catalogue

import (
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"

	"varve/internal/pool/blockmap"
)

// Kind tells heads, snapshots and hidden states apart.
type Kind uint8

// The kinds of states.
const (
	Head     Kind = 1
	Snapshot Kind = 2
	Hidden   Kind = 3
)

// State is one node of the lineage. States in a Catalogue are never changed, but replaced.
type State struct {
	ID        uint64 // within the pool, never used again
	Kind      Kind
	Volume    uint64 // its volume's number; hidden states may outlive it
	Parent    uint64 // a state's ID; 0: none
	Epoch     uint64
	SizeBytes int64
	// Root is the map of a snapshot or hidden state. A head's is its volume's live tree.
	Root blockmap.Root

	UUID      uuid.UUID
	Name      string // of a snapshot
	CreatedAt time.Time
	ExpiresAt time.Time // zero: never
	Labels    map[string]string
	Protected bool
	Automatic bool
	Group     uuid.UUID
	GroupSize int
}

// Volume is a virtual disk. Volumes in a Catalogue are never changed, but replaced.
type Volume struct {
	Number     uint64 // within the pool, never used again
	UUID       uuid.UUID
	Name       string
	Labels     map[string]string
	CreatedAt  time.Time
	Origin     string // VOLUME@NAME it was cloned from
	Incomplete bool
	Head       uint64 // a state's ID
}

// Catalogue is the present. It is for one writer at a time, or many readers.
type Catalogue struct {
	LastEpoch  uint64
	LastVolume uint64
	LastState  uint64
	LiveBytes  int64 // what the states refer to, as far as the pool knew when the image was made

	volumes  map[uint64]*Volume
	byName   map[string]uint64
	states   map[uint64]*State
	ordered  []*State                     // the same, by ID
	children map[uint64][]uint64          // parent's ID -> IDs, ascending
	named    map[uint64]map[string]uint64 // volume's number -> snapshot's name -> ID
}

// New returns the catalogue of an empty pool.
func New() *Catalogue {
	return &Catalogue{
		volumes: map[uint64]*Volume{}, byName: map[string]uint64{}, states: map[uint64]*State{},
		children: map[uint64][]uint64{}, named: map[uint64]map[string]uint64{},
	}
}

// VolumeByName returns the volume or nil.
func (c *Catalogue) VolumeByName(name string) *Volume { return c.volumes[c.byName[name]] }

// Volume returns the volume or nil.
func (c *Catalogue) Volume(number uint64) *Volume { return c.volumes[number] }

// Volumes lists all volumes, by name.
func (c *Catalogue) Volumes() []*Volume {
	return slices.SortedFunc(maps.Values(c.volumes), byName)
}

// State returns the state or nil.
func (c *Catalogue) State(id uint64) *State { return c.states[id] }

// States lists all states, oldest first.
func (c *Catalogue) States() []*State {
	return slices.Clone(c.ordered)
}

// Head returns the head of a volume.
func (c *Catalogue) Head(v *Volume) *State { return c.states[v.Head] }

// SnapshotByName returns the snapshot or nil.
func (c *Catalogue) SnapshotByName(v *Volume, name string) *State {
	return c.states[c.named[v.Number][name]]
}

// Snapshots lists the visible snapshots of a volume, oldest first.
func (c *Catalogue) Snapshots(v *Volume) []*State {
	ids := slices.Sorted(maps.Values(c.named[v.Number]))
	out := make([]*State, len(ids))
	for i, id := range ids {
		out[i] = c.states[id]
	}
	return out
}

// SnapshotCount counts the visible snapshots of a volume.
func (c *Catalogue) SnapshotCount(v *Volume) int { return len(c.named[v.Number]) }

// Children lists the states that descend directly from the state id, oldest first.
func (c *Catalogue) Children(id uint64) []*State {
	out := make([]*State, len(c.children[id]))
	for i, k := range c.children[id] {
		out[i] = c.states[k]
	}
	return out
}

// ParentEpoch is the epoch of the state's parent, 0 if it has none. What the state
// holds is its own iff it is newer.
func (c *Catalogue) ParentEpoch(s *State) uint64 {
	if p := c.states[s.Parent]; p != nil {
		return p.Epoch
	}
	return 0
}

// VisibleParent is the nearest ancestor that is not hidden, or nil.
func (c *Catalogue) VisibleParent(s *State) *State {
	p := c.states[s.Parent]
	for p != nil && p.Kind == Hidden {
		p = c.states[p.Parent]
	}
	return p
}

// SetRoot gives a frozen state its map, or the same map by its place in the log.
func (c *Catalogue) SetRoot(id uint64, r blockmap.Root) {
	s := *c.states[id]
	s.Root = r
	c.put(&s)
}

// put adds a state, or replaces the one of its ID.
func (c *Catalogue) put(s *State) {
	if i, found := find(c.ordered, s.ID); found {
		c.ordered[i] = s
	} else {
		c.ordered = slices.Insert(c.ordered, i, s)
	}
	c.states[s.ID] = s
}

// drop removes a state.
func (c *Catalogue) drop(id uint64) {
	if i, found := find(c.ordered, id); found {
		c.ordered = slices.Delete(c.ordered, i, i+1)
	}
	delete(c.states, id)
}

func (c *Catalogue) addState(s *State) {
	c.put(s)
	if s.Parent != 0 {
		c.children[s.Parent] = append(c.children[s.Parent], s.ID)
	}
	if s.Kind == Snapshot {
		names := c.named[s.Volume]
		if names == nil {
			names = map[string]uint64{}
			c.named[s.Volume] = names
		}
		names[s.Name] = s.ID
	}
	c.LastState = max(c.LastState, s.ID)
	c.LastEpoch = max(c.LastEpoch, s.Epoch)
}

// replace changes a state by a copy.
func (c *Catalogue) replace(id uint64, change func(*State)) {
	s := *c.states[id]
	change(&s)
	c.put(&s)
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

// dissolve removes hidden states that no longer have several children, beginning
// with id and going up.
func (c *Catalogue) dissolve(id uint64) {
	for s := c.states[id]; s != nil && s.Kind == Hidden && len(c.children[s.ID]) <= 1; {
		for _, kid := range slices.Clone(c.children[s.ID]) {
			c.reparent(kid, s.Parent)
		}
		c.unlinkChild(s.Parent, s.ID)
		c.drop(s.ID)
		s = c.states[s.Parent]
	}
}
