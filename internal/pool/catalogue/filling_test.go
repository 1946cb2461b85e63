package catalogue

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"
)

// overBase is a catalogue with volume 1 over a base, which volume 2 is filled from; its snapshot 3, and of that the clone 3.
func overBase(t rapid.TB) *Catalogue {
	c := New()
	for _, op := range []*Op{
		{CreateVolume: &CreateVolume{Number: 1, Name: "v", SizeBytes: 16384, HeadID: 1, Base: 2, Filling: &NewFilling{Ref: []byte("b"), SizeBytes: 8704, HeadID: 2}}},
		{CreateSnapshots: &CreateSnapshots{Name: "s", Of: []NewSnapshot{{Volume: 1, ID: 3}}}},
		{CreateVolume: &CreateVolume{Number: 3, Name: "clone", SizeBytes: 16384, HeadID: 4, From: 3, Base: 2}},
		{FillProgress: &FillProgress{Number: 2, DoneBytes: 4096}},
	} {
		if err := c.Apply(op); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// TestFilling: the internal volume of a base is there for as long as a volume is over it, and goes with the last one.
func TestFilling(t *testing.T) {
	c := overBase(t)
	apply := func(op *Op) {
		t.Helper()
		if err := c.Apply(op); err != nil {
			t.Fatal(err)
		}
		demandSound(t, c)
		again, err := Decode(encoded(t, c))
		if err != nil || !bytes.Equal(encoded(t, again), encoded(t, c)) {
			t.Fatalf("it is another one when it is read again: %v", err)
		}
	}
	b := c.Volume(2)
	if b == nil || b.Name != "(base of 1)" || !b.Internal() || b.Filling.DoneBytes != 4096 || b.Filling.Whole() || c.Head(b).SizeBytes != 12288 {
		t.Fatalf("the internal volume: %+v", b)
	}
	apply(&Op{FillProgress: &FillProgress{Number: 2, DoneBytes: 8704}})
	if !c.Volume(2).Filling.Whole() {
		t.Error("it is not whole")
	}
	apply(&Op{DeleteSnapshots: &DeleteSnapshots{IDs: []uint64{3}}})
	apply(&Op{DeleteVolume: &DeleteVolume{Number: 1}})
	if c.Volume(2) == nil {
		t.Fatal("the clone's base is gone")
	}
	apply(&Op{DeleteVolume: &DeleteVolume{Number: 3}})
	if n := len(c.Volumes()) + len(c.States()); n > 0 {
		t.Errorf("%d volumes and states are left", n)
	}
}

// TestFillingRefuses what cannot be, which no pool logs.
func TestFillingRefuses(t *testing.T) {
	over := func(change func(*CreateVolume)) *Op {
		o := &CreateVolume{Number: 4, Name: "x", SizeBytes: 8192, HeadID: 5, Base: 5, Filling: &NewFilling{Ref: []byte("b"), SizeBytes: 8192, HeadID: 6}}
		change(o)
		return &Op{CreateVolume: o}
	}
	if err := overBase(t).Apply(over(func(*CreateVolume) {})); err != nil {
		t.Fatal(err)
	}
	for name, op := range map[string]*Op{
		"no reference":                {CreateVolume: over(func(o *CreateVolume) { o.Filling.Ref = nil }).CreateVolume},
		"a long reference":            over(func(o *CreateVolume) { o.Filling.Ref = make([]byte, MaxRefBytes+1) }),
		"a base larger than it":       over(func(o *CreateVolume) { o.Filling.SizeBytes = 8704 }),
		"a base of nothing":           over(func(o *CreateVolume) { o.Filling.SizeBytes = 0 }),
		"the number of another":       over(func(o *CreateVolume) { o.Base = 2 }),
		"the state of another":        over(func(o *CreateVolume) { o.Filling.HeadID = 5 }),
		"a clone over a base":         over(func(o *CreateVolume) { o.From = 3 }),
		"a file and a base":           over(func(o *CreateVolume) { o.Place = &NewPlace{Path: "/x", Kept: 6, KeptHead: 7} }),
		"a clone of nothing's blocks": {CreateVolume: &CreateVolume{Number: 4, Name: "x", SizeBytes: 8192, HeadID: 5, From: 3, Base: 1}},
		"filling backwards":           {FillProgress: &FillProgress{Number: 2, DoneBytes: 0}},
		"filling too far":             {FillProgress: &FillProgress{Number: 2, DoneBytes: 12288}},
		"filling a part of a block":   {FillProgress: &FillProgress{Number: 2, DoneBytes: 5120}},
		"filling another volume":      {FillProgress: &FillProgress{Number: 1, DoneBytes: 8192}},
		"filling no volume":           {FillProgress: &FillProgress{Number: 9, DoneBytes: 8192}},
		"deleting what is filled":     {DeleteVolume: &DeleteVolume{Number: 2}},
		"a snapshot of it":            {CreateSnapshots: &CreateSnapshots{Name: "x", Of: []NewSnapshot{{Volume: 2, ID: 9}}}},
	} {
		if err := overBase(t).Apply(op); err == nil {
			t.Errorf("%s is allowed", name)
		}
	}
}
