package catalogue

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"varve/internal/pool/blockmap"
)

// View is the catalogue at one instant. Taking one copies pointers and nothing else, and it can be read
// without any lock, for as long as wanted.
type View struct {
	LastEpoch  uint64
	LastVolume uint64
	LastState  uint64
	LiveBytes  int64

	QuotaBytes, ReserveBytes int64

	volumes []*Volume
	states  []*State // oldest first

	children map[uint64][]*State // once it was asked for
}

// View returns the catalogue as it is now.
func (c *Catalogue) View() *View {
	return &View{
		LastEpoch: c.LastEpoch, LastVolume: c.LastVolume, LastState: c.LastState, LiveBytes: c.LiveBytes,
		QuotaBytes: c.QuotaBytes, ReserveBytes: c.ReserveBytes,
		volumes: slices.Collect(maps.Values(c.volumes)), states: c.States(),
	}
}

// Volumes lists all volumes, by name.
func (c *View) Volumes() []*Volume {
	return slices.SortedFunc(slices.Values(c.volumes), byName)
}

func byName(a, b *Volume) int { return strings.Compare(a.Name, b.Name) }

// States lists all states, oldest first.
func (c *View) States() []*State { return c.states }

// State returns the state or nil.
func (c *View) State(id uint64) *State {
	if i, found := find(c.states, id); found {
		return c.states[i]
	}
	return nil
}

// DataParent is Catalogue.DataParent.
func (c *View) DataParent(s *State) *State { return dataParent(s, c.State) }

// Own is Catalogue.Own.
func (c *View) Own(s *State) blockmap.Own { return ownOf(s, c.State) }

// VisibleBelow lists the nearest heads and snapshots below a state. It is not for concurrent use.
func (c *View) VisibleBelow(id uint64) []*State {
	if c.children == nil {
		c.children = map[uint64][]*State{}
		for _, s := range c.states {
			c.children[s.Parent] = append(c.children[s.Parent], s)
		}
	}
	return visibleBelow(id, func(id uint64) []*State { return c.children[id] })
}

// VisibleBelow lists the nearest heads and snapshots below a state.
func (c *Catalogue) VisibleBelow(id uint64) []*State { return visibleBelow(id, c.Children) }

func visibleBelow(id uint64, children func(uint64) []*State) []*State {
	var out []*State
	for _, k := range children(id) {
		if k.Kind == Head || k.Kind == Snapshot {
			out = append(out, k)
		} else {
			out = append(out, visibleBelow(k.ID, children)...)
		}
	}
	return out
}

// find looks a state up among states in the order of their IDs.
func find(states []*State, id uint64) (int, bool) {
	return slices.BinarySearchFunc(states, id, func(s *State, id uint64) int { return cmp.Compare(s.ID, id) })
}
