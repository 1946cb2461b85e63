package catalogue

import (
	"testing"

	"varve/internal/pool/blockmap"
	"varve/internal/pool/seglog"
)

// TestBookmarkAndSnapshotHaveOneMapHoweverItIsKept: a bookmark that is made while a checkpoint runs keeps the
// map in memory for longer than its snapshot does. It is the same map.
func TestBookmarkAndSnapshotHaveOneMapHoweverItIsKept(t *testing.T) {
	store := blockmap.NewStore(1<<20, func(seglog.Addr, []byte) error { panic("nothing is read") })
	tree := blockmap.NewTree(blockmap.Root{}, 1, 0, 1)
	if err := tree.Set(store.NewPins(), 0, []blockmap.Entry{{Addr: seglog.MakeAddr(1, 4096), Epoch: 1, CRC: 1}}); err != nil {
		t.Fatal(err)
	}
	root := tree.Freeze(1, 2)
	at := int64(0)
	w := store.NewWriter(func(p []byte) (seglog.Addr, error) {
		at += 1 << 20
		return seglog.MakeAddr(2, at), nil
	})
	if err := w.Write([]blockmap.Root{root}); err != nil {
		t.Fatal(err)
	}
	if root.Settled() == root {
		t.Fatal("the map is not kept in two ways")
	}

	c := New()
	for _, op := range []*Op{
		{CreateVolume: &CreateVolume{Number: 1, Name: "v", SizeBytes: 1 << 20, HeadID: 1}},
		{CreateSnapshots: &CreateSnapshots{Name: "s", Of: []NewSnapshot{{Volume: 1, ID: 2}}}},
	} {
		if err := c.Apply(op); err != nil {
			t.Fatal(err)
		}
	}
	c.SetRoot(2, root)
	if err := c.Apply(&Op{CreateBookmark: &CreateBookmark{Of: 2, ID: 3, Name: "k"}}); err != nil {
		t.Fatal(err)
	}
	c.SetRoot(2, root.Settled())
	if err := c.Verify(); err != nil {
		t.Errorf("%v", err)
	}
}
