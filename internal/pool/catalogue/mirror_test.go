package catalogue

import (
	"slices"
	"testing"

	"github.com/google/uuid"
	"pgregory.net/rapid"
)

// drawMirrorOp returns an operation on a volume's mirror, or nil.
func drawMirrorOp(t *rapid.T, c *Catalogue, v *Volume, name string) *Op {
	var copies []*State
	var off *State // the snapshot that is being split off
	for _, s := range c.Snapshots(v) {
		switch {
		case s.Kind == Copy && s.Copy.Path != "":
			copies = append(copies, s)
		case s.Copying != nil && s.Copying.Technique == Mirror:
			off = s
		}
	}
	if v.Incomplete {
		return nil
	}
	if v.Mirror == nil {
		return &Op{AttachMirror: &AttachMirror{
			Volume: v.Number, Path: "/" + name, Regions: c.LastVolume + 1, RegionsHead: c.LastState + 1, Joining: rapid.Bool().Draw(t, "joining"),
		}}
	}
	switch rapid.SampledFrom([]string{"set", "detach", "split", "join"}).Draw(t, "what") {
	case "set":
		return &Op{SetMirror: &SetMirror{
			Volume: v.Number, Synced: rapid.Uint64Range(0, 9).Draw(t, "synced"), Failed: rapid.SampledFrom([]string{"", "broken"}).Draw(t, "failed"),
			Seal: Seal{Closed: rapid.Bool().Draw(t, "closed")},
		}}
	case "split":
		if off != nil {
			return &Op{SplitMirror: &SplitMirror{Volume: v.Number, Of: off.ID, ID: c.LastState + 1, Seal: Seal{Closed: true}}}
		}
		return &Op{CreateSnapshots: &CreateSnapshots{Name: name, Of: []NewSnapshot{{
			Volume: v.Number, ID: c.LastState + 1, UUID: uuid.New(), Pending: true, Copying: &NewCopying{Technique: Mirror, Path: v.Mirror.Path},
		}}}}
	case "join":
		if len(copies) > 0 {
			return &Op{JoinMirror: &JoinMirror{Volume: v.Number, Copy: rapid.SampledFrom(copies).Draw(t, "copy").ID, Synced: 3}}
		}
	}
	return &Op{DetachMirror: &DetachMirror{Volume: v.Number}}
}

// TestMirrorOpsRefuse: an operation on what is not there, or on what is taken, is damage, and changes nothing that can be seen.
func TestMirrorOpsRefuse(t *testing.T) {
	c := New()
	apply := func(op *Op) error {
		t.Helper()
		return c.Apply(op)
	}
	for _, op := range []*Op{
		{CreateVolume: &CreateVolume{Number: 1, Name: "v", SizeBytes: 1 << 20, HeadID: 1}},
		{CreateVolume: &CreateVolume{Number: 2, Name: "w", SizeBytes: 1 << 20, HeadID: 2}},
		{CreateSnapshots: &CreateSnapshots{Name: "s", Of: []NewSnapshot{{Volume: 1, ID: 3}}}},
		{AttachMirror: &AttachMirror{Volume: 1, Path: "/leg", Regions: 3, RegionsHead: 4}},
	} {
		if err := apply(op); err != nil {
			t.Fatal(err)
		}
	}
	before := encoded(t, c)
	for i, op := range []*Op{
		{AttachMirror: &AttachMirror{Volume: 1, Path: "/other", Regions: 4, RegionsHead: 5}},
		{AttachMirror: &AttachMirror{Volume: 3, Path: "/other", Regions: 4, RegionsHead: 5}},
		{AttachMirror: &AttachMirror{Volume: 2, Path: "/other", Regions: 3, RegionsHead: 5}},
		{AttachMirror: &AttachMirror{Volume: 2, Path: "/other", Regions: 4, RegionsHead: 4}},
		{AttachMirror: &AttachMirror{Volume: 9, Path: "/other", Regions: 4, RegionsHead: 5}},
		{SetMirror: &SetMirror{Volume: 2}},
		{DetachMirror: &DetachMirror{Volume: 2}},
		{SplitMirror: &SplitMirror{Volume: 1, Of: 3, ID: 5}},
		{JoinMirror: &JoinMirror{Volume: 1, Copy: 3}},
		{DeleteVolume: &DeleteVolume{Number: 2}},
	} {
		if err := apply(op); (err == nil) != (op.DeleteVolume != nil) {
			t.Errorf("operation %d (%+v): %v", i, op, err)
		}
		if op.DeleteVolume == nil && !slices.Equal(encoded(t, c), before) {
			t.Errorf("operation %d (%+v) was refused, and has changed something", i, op)
		}
	}
}
