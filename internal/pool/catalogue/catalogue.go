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
// A bookmark is a node of the same forest that has a snapshot's map and none of its data. The
// forest without what holds no data is the data lineage: by it blocks have owners. By the whole
// of it the maps' nodes have.
//
// A deleted snapshot from which several states still descend stays, hidden, until one
// is left: without it their common blocks would have no owner. Where only nodes have no other
// owner, a deleted snapshot or bookmark stays as a fork, which holds nodes alone.
package catalogue

import (
	"cmp"
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
	Hidden   Kind = 3 // a deleted snapshot that several states with data descend from
	Bookmark Kind = 4
	Fork     Kind = 5 // a deleted snapshot or bookmark that several states or bookmarks descend from
	Copy     Kind = 6 // a snapshot whose content is elsewhere; in the forest of states it is what a bookmark is
)

// HoldsData tells whether states of this kind refer to data, or to nodes of their maps alone.
func (k Kind) HoldsData() bool { return k != Bookmark && k != Fork && k != Copy }

// State is one node of the lineage. States in a Catalogue are never changed, but replaced.
type State struct {
	ID        uint64 // within the pool, never used again
	Kind      Kind
	Volume    uint64 // its volume's number; hidden states and forks may outlive it
	Parent    uint64 // a state's ID; 0: none
	Epoch     uint64
	SizeBytes int64
	// Root is the map. A head's is its volume's live tree.
	Root blockmap.Root

	UUID      uuid.UUID
	Name      string // of a snapshot or bookmark
	CreatedAt time.Time
	ExpiresAt time.Time // zero: never
	Labels    map[string]string
	Protected bool
	Automatic bool
	// DropWhenFull: it may be given up where there is no room for what it needs kept.
	DropWhenFull bool
	Pending      bool // nobody may see it: the file of its volume was not synced yet, or it is for a rollback that is under way
	Group        uuid.UUID
	GroupSize    int
	Copying      *Copying // of a snapshot that is to become a copy
	Copy         *Content // of a copy

	// The snapshot that a bookmark was made of, as it was then.
	Of          string // its name
	OfUUID      uuid.UUID
	OfCreatedAt time.Time
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
	Place      *Place // of an inplace volume
	// Base is the number of the volume that has blocks of it by version: the inplace volume in whose file they may lie, itself or what it
	// was cloned from; or the internal volume that is filled from a base. 0: none.
	Base      uint64
	KeptOf    uint64 // the number of the inplace volume that this one keeps versions of, which nobody sees
	ContentOf uint64 // the state whose content this one has or is to get, which nobody sees
	Deleted   bool   // and there for its copies alone
	Mirror    *Mirroring
	RegionsOf uint64   // the number of the volume whose mirror this one has the regions of
	Filling   *Filling // of an internal volume that is filled from a base, which nobody sees
}

// Place is the file of an inplace volume. Places in a Catalogue are never changed, but replaced.
type Place struct {
	Path     string
	Kept     uint64 // the number of the internal volume
	Next     uint64 // version: all below were given; no less than what the log says
	ReadOnly bool
	// Bases are states that have what is in place where a rollback has not been copied back yet.
	Bases []uint64
	Seal  Seal
	// Suspect is the newest state that there was when somebody else was found to have changed the file, 0: never. What it and
	// older ones have in place is not to be relied on, nor what was kept since, which is marked with SuspectEpoch or newer.
	Suspect, SuspectEpoch uint64
	// Whole is an epoch: of what the head has in older ones nothing lies in the log alone, but for a rollback that was not copied back.
	Whole uint64
}

// Seal is what a file was when its volume was closed. While it is in use it is zero; of a leg it has SizeBytes and Identity then.
type Seal struct {
	Closed    bool   `cbor:"1,keyasint,omitempty"`
	SizeBytes int64  `cbor:"2,keyasint,omitempty"`
	ModTime   int64  `cbor:"3,keyasint,omitempty"` // Unix nanoseconds
	Sample    uint32 `cbor:"4,keyasint,omitempty"` // CRC32C of some of its blocks; 0 if that is not known
	Identity  string `cbor:"5,keyasint,omitempty"` // of a leg: vfs.FS.Identity
}

// Catalogue is the present. It is for one writer at a time, or many readers.
type Catalogue struct {
	LastEpoch                uint64
	LastVolume               uint64
	LastState                uint64
	QuotaBytes, ReserveBytes int64

	LiveBytes int64 // what the states refer to, as far as the pool knew when the image was made

	volumes  map[uint64]*Volume
	byName   map[string]uint64
	states   map[uint64]*State
	ordered  []*State                     // the same, by ID
	children map[uint64][]uint64          // parent's ID -> IDs, ascending
	named    map[uint64]map[string]uint64 // volume's number -> snapshot's name -> ID
	marks    map[uint64]map[string]uint64 // volume's number -> bookmark's name -> ID
}

// New returns the catalogue of an empty pool.
func New() *Catalogue {
	return &Catalogue{
		volumes: map[uint64]*Volume{}, byName: map[string]uint64{}, states: map[uint64]*State{},
		children: map[uint64][]uint64{}, named: map[uint64]map[string]uint64{}, marks: map[uint64]map[string]uint64{},
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

// BookmarkByName returns the bookmark or nil.
func (c *Catalogue) BookmarkByName(v *Volume, name string) *State {
	return c.states[c.marks[v.Number][name]]
}

// Taken tells whether a snapshot or bookmark of the volume has the name.
func (c *Catalogue) Taken(v *Volume, name string) bool {
	return c.SnapshotByName(v, name) != nil || c.BookmarkByName(v, name) != nil
}

// Snapshots lists the snapshots and copies of a volume, oldest first, also those that are not whole yet.
func (c *Catalogue) Snapshots(v *Volume) []*State { return c.listed(c.named[v.Number]) }

// Bookmarks lists the bookmarks of a volume, oldest first.
func (c *Catalogue) Bookmarks(v *Volume) []*State { return c.listed(c.marks[v.Number]) }

func (c *Catalogue) listed(names map[string]uint64) []*State {
	ids := slices.Sorted(maps.Values(names))
	out := make([]*State, len(ids))
	for i, id := range ids {
		out[i] = c.states[id]
	}
	return out
}

// NewestPoints lists snapshots that can be seen and bookmarks of a volume, of epochs before that one, at most limit, the newest first.
func (c *Catalogue) NewestPoints(v *Volume, before uint64, limit int) []*State {
	newerFirst := func(a, b *State) int {
		return cmp.Or(cmp.Compare(b.Epoch, a.Epoch), cmp.Compare(b.ID, a.ID))
	}
	var points []*State
	for _, names := range []map[string]uint64{c.named[v.Number], c.marks[v.Number]} {
		for _, id := range names { // of which there may be thousands more than limit
			s := c.states[id]
			at, _ := slices.BinarySearchFunc(points, s, newerFirst)
			if s.Epoch < before && at < limit && (s.Kind == Bookmark || c.Listed(s)) {
				points = slices.Insert(points, at, s)
				points = points[:min(len(points), limit)]
			}
		}
	}
	return points
}

// SnapshotCount counts the snapshots and copies of a volume.
func (c *Catalogue) SnapshotCount(v *Volume) int { return len(c.named[v.Number]) }

// Counts says how many snapshots a volume has of which kind.
type Counts struct {
	Listed  int // can be seen
	Copies  int // of these, need nothing but themselves
	Copying int // cannot be seen, as they are not wholly copied yet
}

// Count counts the snapshots of a volume by what they are.
func (c *Catalogue) Count(v *Volume) (n Counts) {
	for _, id := range c.named[v.Number] {
		switch s := c.states[id]; {
		case c.Listed(s):
			n.Listed++
			if s.Kind == Copy {
				n.Copies++
			}
		case s.Copying != nil:
			n.Copying++
		}
	}
	return n
}

// BookmarkCount counts the bookmarks of a volume.
func (c *Catalogue) BookmarkCount(v *Volume) int { return len(c.marks[v.Number]) }

// SetNext notes which version a volume's file gives next.
func (c *Catalogue) SetNext(number, next uint64) {
	v := *c.volumes[number]
	place := *v.Place
	place.Next = max(place.Next, next)
	v.Place = &place
	c.volumes[number] = &v
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
	switch s.Kind {
	case Snapshot, Copy:
		setName(c.named, s)
	case Bookmark:
		setName(c.marks, s)
	}
	c.LastState = max(c.LastState, s.ID)
	c.LastEpoch = max(c.LastEpoch, s.Epoch)
}

func setName(of map[uint64]map[string]uint64, s *State) {
	names := of[s.Volume]
	if names == nil {
		names = map[string]uint64{}
		of[s.Volume] = names
	}
	names[s.Name] = s.ID
}

// replace changes a state by a copy.
func (c *Catalogue) replace(id uint64, change func(*State)) {
	s := *c.states[id]
	change(&s)
	c.put(&s)
}
