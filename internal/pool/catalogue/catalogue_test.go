package catalogue

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"varve/internal/pool/blockmap"
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
	if err := c.Verify(); err != nil {
		t.Fatal(err)
	}
	for _, s := range c.States() {
		children := c.Children(s.ID)
		if s.Kind == Head && len(children) > 0 {
			t.Fatalf("head %d has children", s.ID)
		}
		for i, k := range children {
			if k.Parent != s.ID || k.Epoch < s.Epoch || (k.Epoch == s.Epoch && k.Kind != Bookmark && k.Kind != Copy) || (i > 0 && k.ID <= children[i-1].ID) {
				t.Fatalf("child %+v of %+v", k, s)
			}
			if !c.Related(s, k) {
				t.Fatalf("child %+v is not related to %+v", k, s)
			}
		}
		for _, k := range c.DataChildren(s.ID) {
			if p := c.DataParent(k); s.Kind.HoldsData() && p != s || !k.Kind.HoldsData() {
				t.Fatalf("data child %+v of %+v has the data parent %+v", k, s, p)
			}
		}
		if own := c.Own(s); s.Kind.HoldsData() && own.Nodes < own.Data || !s.Kind.HoldsData() && own.Data != blockmap.NoData {
			t.Fatalf("state %+v owns %+v", s, own)
		}
		if s.ID > c.LastState || s.Epoch > c.LastEpoch {
			t.Fatalf("state %d of epoch %d; the last are %d and %d", s.ID, s.Epoch, c.LastState, c.LastEpoch)
		}
		if p := c.VisibleParent(s); p != nil && !c.Listed(p) {
			t.Fatalf("visible parent %+v", p)
		}
	}
	snapshots, bookmarks := 0, 0
	for _, v := range c.Volumes() {
		if c.VolumeByName(v.Name) != v || c.Head(v).Volume != v.Number {
			t.Fatalf("volume %q is not found by its name", v.Name)
		}
		for _, s := range c.Snapshots(v) {
			if c.SnapshotByName(v, s.Name) != s {
				t.Fatalf("snapshot %q is not found by its name", s.Name)
			}
		}
		for _, s := range c.Bookmarks(v) {
			if c.BookmarkByName(v, s.Name) != s || !c.Taken(v, s.Name) {
				t.Fatalf("bookmark %q is not found by its name", s.Name)
			}
		}
		snapshots += c.SnapshotCount(v)
		bookmarks += c.BookmarkCount(v)
	}
	for _, s := range c.States() {
		switch s.Kind {
		case Snapshot, Copy:
			snapshots--
		case Bookmark:
			bookmarks--
		}
	}
	if snapshots != 0 || bookmarks != 0 {
		t.Fatalf("%d snapshots and %d bookmarks are named that do not exist", snapshots, bookmarks)
	}
}

// drawOp returns an operation that a pool would log now, or nil.
func drawOp(t *rapid.T, c *Catalogue, names int) *Op {
	name := fmt.Sprintf("n%d", names)
	now := time.Date(2026, 1, 1, 0, 0, names, 0, time.UTC).UnixNano()
	labels := rapid.MapOfN(rapid.StringN(1, 8, 16), rapid.StringN(0, 8, 16), 0, 3).Draw(t, "labels")
	var snaps, copies, copying, marks []*State
	for _, s := range c.States() {
		if c.Volume(s.Volume) != nil && c.Volume(s.Volume).Internal() {
			continue
		}
		switch s.Kind {
		case Snapshot:
			snaps = append(snaps, s)
			if s.Copying != nil {
				copying = append(copying, s)
			}
		case Copy:
			copies = append(copies, s)
		case Bookmark:
			marks = append(marks, s)
		}
	}
	volumes := slices.DeleteFunc(c.Volumes(), func(v *Volume) bool { return v.Internal() || v.Deleted })
	kind := rapid.SampledFrom([]string{"mirror", "mirror", "mirror", "copy", "copy to a file", "copied", "copied", "cancel copy", "delete copy", "create", "clone", "set", "resize", "delete volume", "snapshot", "snapshot", "group", "delete", "delete", "protect", "rollback", "rollback", "fill", "put back", "put back", "bookmark", "bookmark", "delete bookmark"}).Draw(t, "kind")
	if kind == "create" || len(volumes) == 0 {
		return &Op{CreateVolume: &CreateVolume{
			Number: c.LastVolume + 1, UUID: uuid.New(), Name: name, SizeBytes: 4096, Labels: labels, CreatedAt: now,
			HeadID: c.LastState + 1, Incomplete: rapid.Bool().Draw(t, "incomplete"),
		}}
	}
	v := rapid.SampledFrom(volumes).Draw(t, "volume")
	switch kind {
	case "mirror":
		return drawMirrorOp(t, c, v, name)
	case "set":
		return &Op{SetVolume: &SetVolume{Number: v.Number, Name: name, Labels: labels}}
	case "resize":
		return &Op{ResizeVolume: &ResizeVolume{Number: v.Number, SizeBytes: rapid.Int64Range(1, 1<<46).Draw(t, "size")}}
	case "delete volume":
		if c.SnapshotCount(v) == c.Count(v).Copies && v.Mirror == nil {
			return &Op{DeleteVolume: &DeleteVolume{Number: v.Number}}
		}
	case "copied", "cancel copy":
		if len(copying) == 0 {
			return nil
		}
		s := rapid.SampledFrom(copying).Draw(t, "snapshot")
		if kind == "cancel copy" {
			return &Op{CancelCopy: &CancelCopy{ID: s.ID}}
		}
		if rapid.Bool().Draw(t, "on the way") {
			return &Op{CopyProgress: &CopyProgress{ID: s.ID, DoneBytes: s.SizeBytes, Seal: Seal{Closed: true, Sample: 7}}}
		}
		op := &FinishCopy{Of: s.ID, ID: c.LastState + 1}
		if s.Copying.Volume != 0 {
			op.Kept = op.ID + 1
		}
		return &Op{FinishCopy: op}
	case "delete copy":
		if len(copies) == 0 {
			return nil
		}
		return &Op{DeleteSnapshots: &DeleteSnapshots{IDs: []uint64{rapid.SampledFrom(copies).Draw(t, "copy").ID}}}
	case "copy", "copy to a file":
		n := NewSnapshot{Volume: v.Number, ID: c.LastState + 1, UUID: uuid.New(), Copying: &NewCopying{Technique: rapid.SampledFrom([]Technique{CowCopy, Clone}).Draw(t, "technique")}}
		if kind == "copy" {
			n.Copying.Volume, n.Copying.HeadID = c.LastVolume+1, c.LastState+2
		} else {
			n.Copying.Path = "/" + name
		}
		return &Op{CreateSnapshots: &CreateSnapshots{Name: name, CreatedAt: now, Group: uuid.New(), Of: []NewSnapshot{n}}}
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
	if kind == "delete bookmark" && len(marks) > 0 {
		return &Op{DeleteBookmark: &DeleteBookmark{ID: rapid.SampledFrom(marks).Draw(t, "bookmark").ID}}
	}
	if len(snaps) == 0 {
		return nil
	}
	s := rapid.SampledFrom(snaps).Draw(t, "snapshot")
	switch kind {
	case "clone":
		if len(copies) > 0 && rapid.Bool().Draw(t, "of a copy") {
			if of := c.State(rapid.SampledFrom(copies).Draw(t, "copy").Copy.State); of != nil {
				s = of
			}
		}
		return &Op{CreateVolume: &CreateVolume{
			Number: c.LastVolume + 1, UUID: uuid.New(), Name: name, SizeBytes: s.SizeBytes, CreatedAt: now,
			HeadID: c.LastState + 1, From: s.ID, Origin: "x@y",
		}}
	case "fill":
		return &Op{CreateVolume: &CreateVolume{
			Number: c.LastVolume + 1, UUID: uuid.New(), Name: name, SizeBytes: 4096, CreatedAt: now,
			HeadID: c.LastState + 1, From: s.ID, Incomplete: true,
		}}
	case "put back":
		of := c.Volume(s.Volume)
		for _, w := range c.Volumes() {
			if w.Incomplete && w != of && len(c.named[w.Number])+len(c.marks[w.Number]) == 0 && c.Head(w).Parent == c.tip(s.ID) && c.Descends(c.Head(of), s) {
				return &Op{PutBack: &PutBack{Volume: of.Number, Filled: w.Number, Kept: s.ID}}
			}
		}
	case "delete":
		ids := []uint64{s.ID}
		if other := rapid.SampledFrom(snaps).Draw(t, "other"); other.ID != s.ID {
			ids = append(ids, other.ID)
		}
		return &Op{DeleteSnapshots: &DeleteSnapshots{IDs: ids}}
	case "protect":
		if len(copies) > 0 && rapid.Bool().Draw(t, "of a copy") {
			s = rapid.SampledFrom(copies).Draw(t, "copy")
		}
		return &Op{Protect: &Protect{ID: s.ID, Protected: rapid.Bool().Draw(t, "on")}}
	case "bookmark":
		if len(copies) > 0 && rapid.Bool().Draw(t, "of a copy") {
			s = rapid.SampledFrom(copies).Draw(t, "copy")
		}
		return &Op{CreateBookmark: &CreateBookmark{Of: s.ID, ID: c.LastState + 1, UUID: uuid.New(), Name: name, CreatedAt: now}}
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
		type relation struct{ a, b uint64 }
		var history []relation
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
				if n := len(c.DataChildren(s.ID)); s.Kind == Hidden && n < 2 {
					t.Fatalf("hidden state %d has %d data children", s.ID, n)
				}
				if n := len(c.Children(s.ID)); s.Kind == Fork && n < 2 {
					t.Fatalf("fork %d has %d children", s.ID, n)
				}
			}
			for i, h := range history {
				a, b := c.State(h.a), c.State(h.b)
				if a == nil || b == nil || emptied(c, a) || emptied(c, b) {
					continue
				}
				if !c.Related(a, b) {
					t.Fatalf("%+v and %+v (%d) were related once", a, b, i)
				}
			}
			if all := c.States(); len(all) > 1 {
				a, b := rapid.SampledFrom(all).Draw(t, "a"), rapid.SampledFrom(all).Draw(t, "b")
				if c.Related(a, b) {
					history = append(history, relation{a.ID, b.ID})
				}
			}
			if rapid.IntRange(0, 9).Draw(t, "reload") == 0 {
				c = loaded
			}
		}
		var ids []uint64
		for _, s := range c.States() {
			if v := c.Volume(s.Volume); (s.Kind == Snapshot || s.Kind == Copy) && !v.Internal() {
				ids = append(ids, s.ID)
			}
		}
		if err := c.Apply(&Op{DeleteSnapshots: &DeleteSnapshots{IDs: rapid.Permutation(ids).Draw(t, "order")}}); err != nil {
			t.Fatal(err)
		}
		for _, v := range c.Volumes() {
			if v.Mirror != nil {
				if err := c.Apply(&Op{DetachMirror: &DetachMirror{Volume: v.Number}}); err != nil {
					t.Fatal(err)
				}
			}
		}
		demandSound(t, c)
		for _, v := range c.Volumes() {
			if v.Internal() {
				t.Fatalf("internal volume %+v is left without copies", v)
			}
			if err := c.Apply(&Op{DeleteVolume: &DeleteVolume{Number: v.Number}}); err != nil {
				t.Fatal(err)
			}
			demandSound(t, c)
		}
		if n := len(c.States()) + len(c.children) + len(c.byName) + len(c.named) + len(c.marks); n > 0 {
			t.Fatalf("%d states or names are left of nothing", n)
		}
	})
}

// emptied tells whether a state is the head of a volume that was deleted, and has nothing in common with what it was.
func emptied(c *Catalogue, s *State) bool { return s.Kind == Head && c.Volume(s.Volume).Deleted }

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
		{CreateBookmark: &CreateBookmark{Of: 4, ID: 8, Name: "m1", CreatedAt: 6}},
		{CreateBookmark: &CreateBookmark{Of: 4, ID: 9, Name: "m2", CreatedAt: 7}},
		{CreateBookmark: &CreateBookmark{Of: 6, ID: 10, Name: "m3", CreatedAt: 8}},
		{DeleteBookmark: &DeleteBookmark{ID: 9}},
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

// Images that no pool writes: their lineage would have nodes or blocks with no owner, with two,
// or walks without end.
func TestDecodeRefusesWhatCannotBe(t *testing.T) {
	for name, forge := range map[string]func(of map[uint64]*State){
		"a snapshot of its parent's epoch":   func(of map[uint64]*State) { of[6].Epoch = of[2].Epoch },
		"two states of one epoch":            func(of map[uint64]*State) { of[5].Epoch = of[4].Epoch },
		"a bookmark of another map":          func(of map[uint64]*State) { of[8].Root = blockmap.RootAt(blockmap.Slot{Tomb: true, Epoch: 1}) },
		"a bookmark of another size":         func(of map[uint64]*State) { of[8].SizeBytes = 4096 },
		"a bookmark beside what descends":    func(of map[uint64]*State) { of[1].Parent = 4 },
		"bookmarks that descend in a circle": func(of map[uint64]*State) { of[8].Parent = 8 },
		"a bookmark that is named twice":     func(of map[uint64]*State) { of[10].Name = "m1" },
		"a bookmark named as a snapshot":     func(of map[uint64]*State) { of[10].Name = "kept" },
		"a bookmark of no volume":            func(of map[uint64]*State) { of[10].Volume = 77 },
		"a bookmark behind a fork":           func(of map[uint64]*State) { of[4].Kind = Fork },
		"a state of an unknown kind":         func(of map[uint64]*State) { of[10].Kind = 7 },
		"a copy without content":             func(of map[uint64]*State) { of[14].Copy = nil },
		"a copy whose content is nowhere":    func(of map[uint64]*State) { of[14].Copy = &Content{Technique: Clone} },
		"a copy whose content is not there":  func(of map[uint64]*State) { of[14].Copy = &Content{Technique: Clone, State: 77} },
		"a copy of another's content":        func(of map[uint64]*State) { of[14].Copy = &Content{Technique: Clone, State: 4} },
		"a snapshot that has content":        func(of map[uint64]*State) { of[4].Copy = &Content{Technique: Clone, Path: "/x"} },
		"a bookmark that is copied":          func(of map[uint64]*State) { of[8].Copying = &Copying{Technique: Clone, Path: "/x"} },
		"a snapshot that is copied nowhere":  func(of map[uint64]*State) { of[4].Copying = &Copying{Technique: Clone} },
		"a snapshot copied into another's":   func(of map[uint64]*State) { of[4].Copying = &Copying{Technique: Clone, Volume: 4} },
	} {
		c := fixture(t)
		for _, op := range []*Op{
			{CreateSnapshots: &CreateSnapshots{Name: "full", CreatedAt: 9, Of: []NewSnapshot{{Volume: 2, ID: 11, Copying: &NewCopying{Technique: Clone, Volume: 4, HeadID: 13}}}}},
			{FinishCopy: &FinishCopy{Of: 11, ID: 14, Kept: 15}},
		} {
			if err := c.Apply(op); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := Decode(encoded(t, c)); err != nil {
			t.Fatal(err)
		}
		of := map[uint64]*State{}
		for id, s := range c.states {
			forged := *s
			of[id] = &forged
			c.put(&forged)
		}
		forge(of)
		if _, err := Decode(encoded(t, c)); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

// Bookmarks are ancestors of everything that descends from their snapshot, whenever they were made.
func TestBookmarksStandDirectlyBehindTheirSnapshot(t *testing.T) {
	c := fixture(t)
	// Snapshot 4 has bookmark 8 (9 is deleted), from which head 1 descends, which was rolled back to 4.
	if c.State(8).Parent != 4 || c.State(1).Parent != 8 || c.DataParent(c.State(1)).ID != 4 {
		t.Fatalf("%+v, %+v", c.State(8), c.State(1))
	}
	for _, op := range []*Op{
		{Rollback: &Rollback{Volume: 1, To: 4, KeptID: 11, KeptName: "k2"}},
		{CreateVolume: &CreateVolume{Number: 4, Name: "e", SizeBytes: 8192, HeadID: 12, From: 4}},
		{CreateBookmark: &CreateBookmark{Of: 4, ID: 13, Name: "m4"}},
	} {
		if err := c.Apply(op); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range []uint64{1, 11, 12} {
		if p := c.State(id).Parent; p != 8 || c.State(8).Parent != 13 || c.State(13).Parent != 4 {
			t.Errorf("state %d has parent %d", id, p)
		}
	}
	if kids := c.DataChildren(4); len(kids) != 4 { // 6 was kept by the first rollback
		t.Errorf("data children %+v", kids)
	}
}

// A bookmark of a branch that is gone and the head were related through a deleted snapshot. It
// stays as a fork, without data, until one of them is gone.
func TestForkStaysWhileSeveralDescendFromIt(t *testing.T) {
	c := New()
	apply := func(ops ...*Op) {
		t.Helper()
		for _, op := range ops {
			if err := c.Apply(op); err != nil {
				t.Fatal(err)
			}
		}
		demandSound(t, c)
	}
	apply([]*Op{
		{CreateVolume: &CreateVolume{Number: 1, Name: "a", SizeBytes: 8192, HeadID: 1}},
		{CreateSnapshots: &CreateSnapshots{Name: "s", Of: []NewSnapshot{{Volume: 1, ID: 2}}}},
		{CreateSnapshots: &CreateSnapshots{Name: "t", Of: []NewSnapshot{{Volume: 1, ID: 3}}}},
		{CreateBookmark: &CreateBookmark{Of: 3, ID: 4, Name: "m"}},
		{Rollback: &Rollback{Volume: 1, To: 2, KeptID: 5, KeptName: "kept"}},
		{DeleteSnapshots: &DeleteSnapshots{IDs: []uint64{5, 3}}},
		{DeleteSnapshots: &DeleteSnapshots{IDs: []uint64{2}}},
	}...)
	if s := c.State(2); s == nil || s.Kind != Fork || !c.Related(c.State(1), c.State(4)) || c.DataParent(c.State(1)) != nil {
		t.Fatalf("state 2 is %+v", s)
	}
	if own := c.Own(c.State(1)); own.Data != 0 || own.Nodes != c.State(2).Epoch {
		t.Fatalf("the head owns %+v", own)
	}
	apply(&Op{DeleteBookmark: &DeleteBookmark{ID: 4}})
	if c.State(2) != nil || c.State(1).Parent != 0 {
		t.Fatal("state 2 has one child and stays")
	}
}

// FuzzDecode: no image makes Decode panic or return what its readers cannot rely on.
func FuzzDecode(f *testing.F) {
	f.Add(encoded(f, New()))
	f.Add(encoded(f, fixture(f)))
	f.Add(encoded(f, overBase(f)))
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
	for _, op := range []*Op{putBackOp(false), putBackOp(true), {FillProgress: &FillProgress{Number: 2, DoneBytes: 8704}}, {DeleteVolume: &DeleteVolume{Number: 3}}} {
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
		for _, c := range []*Catalogue{fixture(t), filling(t, false), filling(t, true), overBase(t)} {
			if c.Apply(op) != nil {
				continue
			}
			demandSound(t, c)
			if _, err := Decode(encoded(t, c)); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// Operations that no pool logs, found in a forged or damaged log: each would leave a
// catalogue that its readers cannot rely on.
func TestApplyRefusesWhatCannotBe(t *testing.T) {
	for name, op := range map[string]*Op{
		"nothing":                          {},
		"a number used again":              {CreateVolume: &CreateVolume{Number: 3, Name: "x", SizeBytes: 4096, HeadID: 11}},
		"a head's number used again":       {CreateVolume: &CreateVolume{Number: 4, Name: "x", SizeBytes: 4096, HeadID: 7}},
		"a name that is taken":             {CreateVolume: &CreateVolume{Number: 4, Name: "a", SizeBytes: 4096, HeadID: 11}},
		"a clone of a head":                {CreateVolume: &CreateVolume{Number: 4, Name: "x", SizeBytes: 4096, HeadID: 11, From: 1}},
		"a negative size":                  {ResizeVolume: &ResizeVolume{Number: 1, SizeBytes: -1}},
		"a size beyond every map":          {ResizeVolume: &ResizeVolume{Number: 1, SizeBytes: 1 << 47}},
		"renaming to a name that is taken": {SetVolume: &SetVolume{Number: 2, Name: "a"}},
		"deleting a volume with snapshots": {DeleteVolume: &DeleteVolume{Number: 1}},
		"two snapshots of one name":        {CreateSnapshots: &CreateSnapshots{Name: "x", Of: []NewSnapshot{{Volume: 1, ID: 11}, {Volume: 1, ID: 12}}}},
		"deleting a head":                  {DeleteSnapshots: &DeleteSnapshots{IDs: []uint64{1}}},
		"deleting a hidden state":          {DeleteSnapshots: &DeleteSnapshots{IDs: []uint64{2}}},
		"protecting a head":                {Protect: &Protect{ID: 1}},
		"rolling back to the head":         {Rollback: &Rollback{Volume: 1, To: 1, KeptID: 11, KeptName: "x"}},
		"rolling back to another volume":   {Rollback: &Rollback{Volume: 2, To: 4, KeptID: 11, KeptName: "x"}},
		"rolling back to a hidden state":   {Rollback: &Rollback{Volume: 1, To: 2, KeptID: 11, KeptName: "x"}},
		"rolling back to a bookmark":       {Rollback: &Rollback{Volume: 1, To: 8, KeptID: 11, KeptName: "x"}},
		"a clone of a bookmark":            {CreateVolume: &CreateVolume{Number: 4, Name: "x", SizeBytes: 4096, HeadID: 11, From: 8}},
		"a bookmark of a head":             {CreateBookmark: &CreateBookmark{Of: 1, ID: 11, Name: "x"}},
		"a bookmark of a hidden state":     {CreateBookmark: &CreateBookmark{Of: 2, ID: 11, Name: "x"}},
		"a bookmark of a bookmark":         {CreateBookmark: &CreateBookmark{Of: 8, ID: 11, Name: "x"}},
		"a bookmark called as a snapshot":  {CreateBookmark: &CreateBookmark{Of: 4, ID: 11, Name: "kept"}},
		"a bookmark called as another":     {CreateBookmark: &CreateBookmark{Of: 4, ID: 11, Name: "m3"}},
		"a bookmark's number used again":   {CreateBookmark: &CreateBookmark{Of: 4, ID: 10, Name: "x"}},
		"a snapshot called as a bookmark":  {CreateSnapshots: &CreateSnapshots{Name: "m1", Of: []NewSnapshot{{Volume: 1, ID: 11}}}},
		"keeping as a bookmark is called":  {Rollback: &Rollback{Volume: 1, To: 4, KeptID: 11, KeptName: "m1"}},
		"deleting a bookmark twice":        {DeleteBookmark: &DeleteBookmark{ID: 9}},
		"deleting a snapshot as bookmark":  {DeleteBookmark: &DeleteBookmark{ID: 4}},
		"deleting a bookmark as snapshot":  {DeleteSnapshots: &DeleteSnapshots{IDs: []uint64{8}}},
	} {
		if err := fixture(t).Apply(op); err == nil {
			t.Errorf("%s is allowed", name)
		}
	}
}
