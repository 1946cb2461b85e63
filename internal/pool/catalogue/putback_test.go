package catalogue

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// filling is a catalogue with a rollback under way: of volume 1 with snapshots 2 and 3, which is kept as snapshot 9, and for which
// volume 5 is filled.
func filling(t rapid.TB, inplace bool) *Catalogue {
	c := New()
	create := &CreateVolume{Number: 1, Name: "a", SizeBytes: 8192, HeadID: 1}
	base := uint64(0)
	if inplace {
		base = 1
		create.Base, create.Place = 1, &NewPlace{Path: "/disk", Kept: 2, KeptHead: 4}
	}
	for _, op := range []*Op{
		{CreateVolume: create},
		{CreateSnapshots: &CreateSnapshots{Name: "s", Of: []NewSnapshot{{Volume: 1, ID: 5}}}},
		{CreateVolume: &CreateVolume{Number: 3, Name: "clone", SizeBytes: 8192, HeadID: 6, From: 5, Base: base}},
		{CreateVolume: &CreateVolume{Number: 4, Name: "import", SizeBytes: 8192, HeadID: 7, Incomplete: true}},
		{CreateSnapshots: &CreateSnapshots{Name: "kept", Of: []NewSnapshot{{Volume: 1, ID: 9, Pending: true}}}},
		{CreateVolume: &CreateVolume{Number: 5, Name: "(rollback of 1)", SizeBytes: 4096, HeadID: 10, From: 9, Base: base, Incomplete: true}},
	} {
		if err := c.Apply(op); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func putBackOp(inplace bool) *Op {
	o := &PutBack{Volume: 1, Filled: 5, Kept: 9}
	if inplace {
		o.Was = 11
	}
	return &Op{PutBack: o}
}

// TestPutBack: the volume goes on as what was filled, which is gone, behind the snapshot that keeps what it was.
func TestPutBack(t *testing.T) {
	for _, inplace := range []bool{false, true} {
		c := filling(t, inplace)
		v := c.VolumeByName("a")
		if n := c.Count(v).Listed; n != 1 {
			t.Errorf("before, %d snapshots can be seen", n)
		}
		if p := c.VisibleParent(c.Head(v)); p == nil || p.ID != 5 {
			t.Errorf("before, the volume descends from %+v", p)
		}
		before, filled := c.Head(v), c.State(10)
		if err := c.Apply(putBackOp(inplace)); err != nil {
			t.Fatal(err)
		}
		demandSound(t, c)
		v = c.VolumeByName("a")
		head, kept := c.Head(v), c.State(9)
		if head.ID != before.ID || head.Parent != 9 || head.SizeBytes != 4096 || head.Epoch != c.LastEpoch || head.Epoch <= filled.Epoch {
			t.Errorf("the head is %+v", head)
		}
		if kept.Pending || !kept.Automatic || kept.SizeBytes != 8192 || c.Count(v).Listed != 2 {
			t.Errorf("what is kept is %+v, of %d snapshots", kept, c.Count(v).Listed)
		}
		if c.Volume(5) != nil || c.State(10) != nil || c.VolumeByName("(rollback of 1)") != nil {
			t.Error("what was filled is still there")
		}
		if !inplace {
			if n := len(c.States()); n != 5 {
				t.Errorf("there are %d states", n)
			}
			continue
		}
		was := c.State(11)
		if was == nil || was.Kind != Hidden || was.Epoch != before.Epoch || was.Parent != 9 || !slices.Equal(v.Place.Bases, []uint64{11}) {
			t.Errorf("what is in place is %+v, and the bases are %v", was, v.Place.Bases)
		}
		if err := c.Apply(&Op{Settled: &Settled{Number: 1}}); err != nil {
			t.Fatal(err)
		}
		demandSound(t, c)
		if c.State(11) != nil {
			t.Error("what was in place stays when all is copied back")
		}
	}
}

// TestPutBackRefusesWhatCannotBe: operations that no pool logs.
func TestPutBackRefusesWhatCannotBe(t *testing.T) {
	for name, o := range map[string]PutBack{
		"no such volume":                        {Volume: 77, Filled: 5, Kept: 9},
		"nothing filled":                        {Volume: 1, Filled: 77, Kept: 9},
		"a volume filled for itself":            {Volume: 5, Filled: 5, Kept: 9},
		"a volume that is complete":             {Volume: 1, Filled: 3, Kept: 5},
		"a volume that was not cloned":          {Volume: 1, Filled: 4, Kept: 9},
		"what is kept of an ancestor":           {Volume: 1, Filled: 5, Kept: 5},
		"what is kept of another volume":        {Volume: 3, Filled: 5, Kept: 9},
		"what is kept is no snapshot":           {Volume: 1, Filled: 5, Kept: 1},
		"a base of a volume that has no file":   {Volume: 1, Filled: 5, Kept: 9, Was: 11},
		"a state that has been used of another": {Volume: 1, Filled: 5, Kept: 9, Was: 4},
	} {
		if err := filling(t, false).Apply(&Op{PutBack: &o}); err == nil {
			t.Errorf("%s is allowed", name)
		}
	}
	for name, was := range map[string]uint64{"no base": 0, "a base that is a state already": 10} {
		if err := filling(t, true).Apply(&Op{PutBack: &PutBack{Volume: 1, Filled: 5, Kept: 9, Was: was}}); err == nil {
			t.Errorf("inplace, %s is allowed", name)
		}
	}
}
