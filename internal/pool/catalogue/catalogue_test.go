package catalogue

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/google/uuid"
	"pgregory.net/rapid"
)

// encoded is the catalogue's image; two catalogues are alike iff theirs are equal.
func encoded(t rapid.TB, c *Catalogue) []byte {
	t.Helper()
	return encodedView(t, c.View())
}

func encodedView(t rapid.TB, v *View) []byte {
	t.Helper()
	b, err := v.Encode(nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// demandSound checks what must hold whatever was done.
func demandSound(t rapid.TB, c *Catalogue) {
	t.Helper()
	if err := c.verify(); err != nil {
		t.Fatal(err)
	}
	for _, s := range c.States() {
		children := c.Children(s.ID)
		if s.Kind == Head && len(children) > 0 {
			t.Fatalf("head %d has children", s.ID)
		}
		for i, k := range children {
			if k.Parent != s.ID || k.Epoch <= s.Epoch || (i > 0 && k.ID <= children[i-1].ID) {
				t.Fatalf("child %+v of %+v", k, s)
			}
		}
		if s.ID > c.LastState || s.Epoch > c.LastEpoch {
			t.Fatalf("state %d of epoch %d; the last are %d and %d", s.ID, s.Epoch, c.LastState, c.LastEpoch)
		}
		if p := c.VisibleParent(s); p != nil && p.Kind != Snapshot {
			t.Fatalf("visible parent %+v", p)
		}
	}
	snapshots := 0
	for _, v := range c.Volumes() {
		if c.VolumeByName(v.Name) != v || c.Head(v).Volume != v.Number {
			t.Fatalf("volume %q is not found by its name", v.Name)
		}
		for _, s := range c.Snapshots(v) {
			if c.SnapshotByName(v, s.Name) != s {
				t.Fatalf("snapshot %q is not found by its name", s.Name)
			}
		}
		snapshots += c.SnapshotCount(v)
	}
	for _, s := range c.States() {
		if s.Kind == Snapshot {
			snapshots--
		}
	}
	if snapshots != 0 {
		t.Fatalf("%d snapshots are named that do not exist", snapshots)
	}
}

// drawOp returns an operation that a pool would log now, or nil.
func drawOp(t *rapid.T, c *Catalogue, names int) *Op {
	name := fmt.Sprintf("n%d", names)
	now := time.Date(2026, 1, 1, 0, 0, names, 0, time.UTC).UnixNano()
	labels := rapid.MapOfN(rapid.StringN(1, 8, 16), rapid.StringN(0, 8, 16), 0, 3).Draw(t, "labels")
	var snaps []*State
	for _, s := range c.States() {
		if s.Kind == Snapshot {
			snaps = append(snaps, s)
		}
	}
	volumes := c.Volumes()
	kind := rapid.SampledFrom([]string{"create", "clone", "set", "resize", "delete volume", "snapshot", "snapshot", "group", "delete", "delete", "protect", "rollback"}).Draw(t, "kind")
	if kind == "create" || len(volumes) == 0 {
		return &Op{CreateVolume: &CreateVolume{
			Number: c.LastVolume + 1, UUID: uuid.New(), Name: name, SizeBytes: 4096, Labels: labels, CreatedAt: now,
			HeadID: c.LastState + 1, Incomplete: rapid.Bool().Draw(t, "incomplete"),
		}}
	}
	v := rapid.SampledFrom(volumes).Draw(t, "volume")
	switch kind {
	case "set":
		return &Op{SetVolume: &SetVolume{Number: v.Number, Name: name, Labels: labels}}
	case "resize":
		return &Op{ResizeVolume: &ResizeVolume{Number: v.Number, SizeBytes: rapid.Int64Range(1, 1<<46).Draw(t, "size")}}
	case "delete volume":
		if c.SnapshotCount(v) == 0 {
			return &Op{DeleteVolume: &DeleteVolume{Number: v.Number}}
		}
	case "snapshot", "group":
		op := &CreateSnapshots{Name: name, CreatedAt: now, ExpiresAt: now + 5, Labels: labels, Group: uuid.New()}
		of := []*Volume{v}
		if kind == "group" {
			of = volumes
		}
		for i, v := range of {
			op.Of = append(op.Of, NewSnapshot{Volume: v.Number, ID: c.LastState + 1 + uint64(i), UUID: uuid.New()})
		}
		return &Op{CreateSnapshots: op}
	}
	if len(snaps) == 0 {
		return nil
	}
	s := rapid.SampledFrom(snaps).Draw(t, "snapshot")
	switch kind {
	case "clone":
		return &Op{CreateVolume: &CreateVolume{
			Number: c.LastVolume + 1, UUID: uuid.New(), Name: name, SizeBytes: s.SizeBytes, CreatedAt: now,
			HeadID: c.LastState + 1, From: s.ID, Origin: "x@y",
		}}
	case "delete":
		ids := []uint64{s.ID}
		if other := rapid.SampledFrom(snaps).Draw(t, "other"); other.ID != s.ID {
			ids = append(ids, other.ID)
		}
		return &Op{DeleteSnapshots: &DeleteSnapshots{IDs: ids}}
	case "protect":
		return &Op{Protect: &Protect{ID: s.ID, Protected: rapid.Bool().Draw(t, "on")}}
	case "rollback":
		return &Op{Rollback: &Rollback{
			Volume: s.Volume, To: s.ID, KeptID: c.LastState + 1, KeptUUID: uuid.New(), KeptName: name, CreatedAt: now,
		}}
	}
	return nil
}

// Whatever is done: an operation that went through its bytes does the same, the image holds
// everything, views stay as they are, hidden states dissolve in time, and in the end nothing is left.
func TestFold(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c, replayed := New(), New()
		for i := range rapid.IntRange(1, 60).Draw(t, "operations") {
			op := drawOp(t, c, i)
			if op == nil {
				continue
			}
			before := c.View()
			image := encodedView(t, before)
			if err := c.Apply(op); err != nil {
				t.Fatalf("%+v: %v", op, err)
			}
			if !bytes.Equal(encodedView(t, before), image) {
				t.Fatal("a view changed with its catalogue")
			}
			b, err := op.Encode()
			if err != nil {
				t.Fatal(err)
			}
			again, err := DecodeOp(b)
			if err != nil {
				t.Fatal(err)
			}
			if err := replayed.Apply(again); err != nil {
				t.Fatal(err)
			}
			image = encoded(t, c)
			if !bytes.Equal(encoded(t, replayed), image) {
				t.Fatalf("%+v does something else when it is replayed", op)
			}
			loaded, err := Decode(image)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(encoded(t, loaded), image) {
				t.Fatal("the image does not hold everything")
			}
			demandSound(t, c)
			demandSound(t, loaded)
			for _, s := range c.States() {
				if n := len(c.Children(s.ID)); s.Kind == Hidden && n < 2 {
					t.Fatalf("hidden state %d has %d children", s.ID, n)
				}
			}
			if rapid.IntRange(0, 9).Draw(t, "reload") == 0 {
				c = loaded
			}
		}
		var ids []uint64
		for _, s := range c.States() {
			if s.Kind == Snapshot {
				ids = append(ids, s.ID)
			}
		}
		if err := c.Apply(&Op{DeleteSnapshots: &DeleteSnapshots{IDs: rapid.Permutation(ids).Draw(t, "order")}}); err != nil {
			t.Fatal(err)
		}
		demandSound(t, c)
		for _, v := range c.Volumes() {
			if err := c.Apply(&Op{DeleteVolume: &DeleteVolume{Number: v.Number}}); err != nil {
				t.Fatal(err)
			}
			demandSound(t, c)
		}
		if n := len(c.States()) + len(c.children) + len(c.byName) + len(c.named); n > 0 {
			t.Fatalf("%d states or names are left of nothing", n)
		}
	})
}

// fixture is a catalogue with everything in it: volumes 1 and 2 (a clone), snapshots, a hidden state.
func fixture(t rapid.TB) *Catalogue {
	c := New()
	for _, op := range fixtureOps() {
		if err := c.Apply(op); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func fixtureOps() []*Op {
	return []*Op{
		{CreateVolume: &CreateVolume{Number: 1, Name: "a", SizeBytes: 8192, CreatedAt: 1, HeadID: 1, Labels: map[string]string{"k": "v"}}},
		{CreateSnapshots: &CreateSnapshots{Name: "s1", CreatedAt: 2, ExpiresAt: 3, Of: []NewSnapshot{{Volume: 1, ID: 2}}}},
		{CreateVolume: &CreateVolume{Number: 2, Name: "b", SizeBytes: 8192, CreatedAt: 3, HeadID: 3, From: 2, Origin: "a@s1", Incomplete: true}},
		{CreateSnapshots: &CreateSnapshots{Name: "g", CreatedAt: 4, Of: []NewSnapshot{{Volume: 1, ID: 4}, {Volume: 2, ID: 5}}}},
		{Rollback: &Rollback{Volume: 1, To: 4, KeptID: 6, KeptName: "kept", CreatedAt: 5}},
		{DeleteSnapshots: &DeleteSnapshots{IDs: []uint64{2}}}, // hidden: 4 and 5 descend from it
		{Protect: &Protect{ID: 4, Protected: true}},
		{SetVolume: &SetVolume{Number: 2, Name: "c"}},
		{ResizeVolume: &ResizeVolume{Number: 2, SizeBytes: 4096}},
		{CreateVolume: &CreateVolume{Number: 3, Name: "d", SizeBytes: 4096, HeadID: 7}},
		{DeleteVolume: &DeleteVolume{Number: 3}},
	}
}

func TestHiddenStateStaysWhileSeveralDescendFromIt(t *testing.T) {
	c := fixture(t)
	if s := c.State(2); s == nil || s.Kind != Hidden || len(c.Children(2)) != 2 {
		t.Fatalf("state 2 is %+v", s)
	}
	if err := c.Apply(&Op{DeleteSnapshots: &DeleteSnapshots{IDs: []uint64{5}}}); err != nil {
		t.Fatal(err)
	}
	if c.State(2) == nil { // the head of volume 2 descends from it now
		t.Fatal("state 2 is gone too early")
	}
	if err := c.Apply(&Op{DeleteVolume: &DeleteVolume{Number: 2}}); err != nil {
		t.Fatal(err)
	}
	if c.State(2) != nil || c.State(4).Parent != 0 {
		t.Fatal("state 2 has one child and stays")
	}
}

// FuzzDecode: no image makes Decode panic or return what its readers cannot rely on.
func FuzzDecode(f *testing.F) {
	f.Add(encoded(f, New()))
	f.Add(encoded(f, fixture(f)))
	f.Fuzz(func(t *testing.T, p []byte) {
		c, err := Decode(p)
		if err != nil {
			return
		}
		demandSound(t, c)
		image := encoded(t, c)
		again, err := Decode(image)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(encoded(t, again), image) {
			t.Fatal("the image does not hold everything")
		}
		if c.VolumeByName("there is none") != nil || c.State(0) != nil {
			t.Fatal("what is not there is found")
		}
	})
}

// FuzzDecodeOp: no operation makes Apply panic or leave a catalogue that is not sound.
func FuzzDecodeOp(f *testing.F) {
	for _, op := range fixtureOps() {
		b, err := op.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		op, err := DecodeOp(p)
		if err != nil {
			return
		}
		c := fixture(t)
		if c.Apply(op) != nil {
			return
		}
		demandSound(t, c)
		if _, err := Decode(encoded(t, c)); err != nil {
			t.Fatal(err)
		}
	})
}

// Operations that no pool logs, found in a forged or damaged log: each would leave a
// catalogue that its readers cannot rely on.
func TestApplyRefusesWhatCannotBe(t *testing.T) {
	for name, op := range map[string]*Op{
		"nothing":                          {},
		"a number used again":              {CreateVolume: &CreateVolume{Number: 3, Name: "x", SizeBytes: 4096, HeadID: 8}},
		"a head's number used again":       {CreateVolume: &CreateVolume{Number: 4, Name: "x", SizeBytes: 4096, HeadID: 7}},
		"a name that is taken":             {CreateVolume: &CreateVolume{Number: 4, Name: "a", SizeBytes: 4096, HeadID: 8}},
		"a clone of a head":                {CreateVolume: &CreateVolume{Number: 4, Name: "x", SizeBytes: 4096, HeadID: 8, From: 1}},
		"a negative size":                  {ResizeVolume: &ResizeVolume{Number: 1, SizeBytes: -1}},
		"a size beyond every map":          {ResizeVolume: &ResizeVolume{Number: 1, SizeBytes: 1 << 47}},
		"renaming to a name that is taken": {SetVolume: &SetVolume{Number: 2, Name: "a"}},
		"deleting a volume with snapshots": {DeleteVolume: &DeleteVolume{Number: 1}},
		"two snapshots of one name":        {CreateSnapshots: &CreateSnapshots{Name: "x", Of: []NewSnapshot{{Volume: 1, ID: 8}, {Volume: 1, ID: 9}}}},
		"deleting a head":                  {DeleteSnapshots: &DeleteSnapshots{IDs: []uint64{1}}},
		"deleting a hidden state":          {DeleteSnapshots: &DeleteSnapshots{IDs: []uint64{2}}},
		"protecting a head":                {Protect: &Protect{ID: 1}},
		"rolling back to the head":         {Rollback: &Rollback{Volume: 1, To: 1, KeptID: 8, KeptName: "x"}},
		"rolling back to another volume":   {Rollback: &Rollback{Volume: 2, To: 4, KeptID: 8, KeptName: "x"}},
		"rolling back to a hidden state":   {Rollback: &Rollback{Volume: 1, To: 2, KeptID: 8, KeptName: "x"}},
	} {
		if err := fixture(t).Apply(op); err == nil {
			t.Errorf("%s is allowed", name)
		}
	}
}
