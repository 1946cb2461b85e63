package format_test

import (
	"bytes"
	"fmt"
	"os"
	"path"
	"testing"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/vfs"
)

// mirrored is what a volume's image says of its mirror.
type mirrored struct {
	Mirror *struct {
		Path    string `cbor:"1,keyasint"`
		Regions uint64 `cbor:"2,keyasint"`
		Synced  uint64 `cbor:"3,keyasint"`
		Failed  string `cbor:"4,keyasint"`
		Joining bool   `cbor:"6,keyasint"`
	} `cbor:"20,keyasint"`
	RegionsOf uint64 `cbor:"21,keyasint"`
}

type mirrorOperation struct {
	Attach *struct {
		Volume  uint64 `cbor:"1,keyasint"`
		Path    string `cbor:"2,keyasint"`
		Regions uint64 `cbor:"3,keyasint"`
		Head    uint64 `cbor:"4,keyasint"`
		Joining bool   `cbor:"6,keyasint"`
	} `cbor:"20,keyasint"`
	SetMirror *struct {
		Volume uint64 `cbor:"1,keyasint"`
		Synced uint64 `cbor:"2,keyasint"`
		Failed string `cbor:"3,keyasint"`
	} `cbor:"21,keyasint"`
	Detach *struct {
		Volume uint64 `cbor:"1,keyasint"`
	} `cbor:"22,keyasint"`
	Split *struct {
		Volume uint64 `cbor:"1,keyasint"`
		Of     uint64 `cbor:"2,keyasint"`
		ID     uint64 `cbor:"3,keyasint"`
	} `cbor:"23,keyasint"`
	Join *struct {
		Volume uint64 `cbor:"1,keyasint"`
		Copy   uint64 `cbor:"2,keyasint"`
		Synced uint64 `cbor:"3,keyasint"`
	} `cbor:"24,keyasint"`
}

func (op *mirrorOperation) mirrors() bool {
	return op.Attach != nil || op.SetMirror != nil || op.Detach != nil || op.Split != nil || op.Join != nil
}

func (c *contents) applyMirror(op *mirrorOperation) {
	switch {
	case op.Attach != nil:
		o := op.Attach
		var m mirrored
		m.Mirror = new(struct {
			Path    string `cbor:"1,keyasint"`
			Regions uint64 `cbor:"2,keyasint"`
			Synced  uint64 `cbor:"3,keyasint"`
			Failed  string `cbor:"4,keyasint"`
			Joining bool   `cbor:"6,keyasint"`
		})
		m.Mirror.Path, m.Mirror.Regions, m.Mirror.Joining = o.Path, o.Regions, o.Joining
		c.volumes[o.Volume].mirrored = m
		c.lastEpoch++
		set := &imageVolume{Number: o.Regions, Name: fmt.Sprintf("(regions of %d)", o.Volume), Head: o.Head}
		set.RegionsOf = o.Volume
		c.volumes[o.Regions] = set
		c.states[o.Head] = &state{imageState{ID: o.Head, Kind: 1, Volume: o.Regions, Epoch: c.lastEpoch, Size: 1 << 38}, blockMap{}}
	case op.SetMirror != nil:
		m := c.volumes[op.SetMirror.Volume].Mirror
		m.Synced, m.Failed = op.SetMirror.Synced, op.SetMirror.Failed
	case op.Detach != nil:
		c.detachMirror(op.Detach.Volume)
	case op.Split != nil:
		c.finishCopy(op.Split.Of, op.Split.ID, 0)
		c.detachMirror(op.Split.Volume)
	case op.Join != nil:
		m := c.volumes[op.Join.Volume].Mirror
		m.Joining, m.Synced = false, op.Join.Synced
		c.deleteSnapshot(c.states[op.Join.Copy])
	}
}

func (c *contents) detachMirror(number uint64) {
	v := c.volumes[number]
	set := v.Mirror.Regions
	v.mirrored = mirrored{}
	c.deleteVolume(set)
}

func (c *contents) unsync(number uint64) {
	if m := c.volumes[number].Mirror; m != nil {
		m.Synced = 0
	}
}

// TestReaderFindsMirrors: the reader finds which regions of a mirror may differ; in all others the file is what the volume is. It finds what was split
// off, and what became of a copy.
func TestReaderFindsMirrors(t *testing.T) {
	dir := t.TempDir()
	w := newWriter(t, vfs.OS(), path.Join(dir, "pool"), 23)
	_, err := w.p.AdoptVolume(ctx, pool.PlaceSpec{Name: "i", Path: path.Join(dir, "disk"), SizeBytes: volumeBytes})
	w.must(err)
	w.create("r", volumeBytes)
	leg := func(volume string) string { return path.Join(dir, volume+"-leg") }
	differed := 0
	look := func() {
		t.Helper()
		for range 2 {
			c, err := readPool(os.DirFS(path.Join(dir, "pool")))
			w.must(err)
			compare(t, c, w.p)
			for _, v := range c.volumes {
				if v.Mirror == nil {
					continue
				}
				dev, err := w.p.OpenVolume(v.Name)
				w.must(err)
				got, err := os.ReadFile(v.Mirror.Path)
				w.must(err)
				want := make([]byte, volumeBytes)
				w.must(dev.ReadAt(ctx, want, 0))
				w.must(dev.Close())
				may := c.head(v.Mirror.Regions).blocks
				for at := 0; at < volumeBytes; at += 1 << 20 {
					n, end := uint64(at>>20), min(at+1<<20, volumeBytes)
					if _, recorded := may[n]; recorded || n >= v.Mirror.Synced {
						differed++
					} else if !bytes.Equal(got[at:end], want[at:end]) {
						t.Fatalf("region %d of the mirror of %s differs, and nothing says so", n, v.Name)
					}
				}
			}
			w.must(w.p.Checkpoint(ctx))
		}
	}
	for _, volume := range []string{"i", "r"} {
		w.scribble(volume, 20)
		_, err := w.p.AttachMirror(ctx, volume, pool.LegSpec{Path: leg(volume)})
		w.must(err)
		look()
		w.must(w.p.SyncMirror(ctx, volume, nil))
		look()
		w.scribble(volume, 3)
		look()
		w.must(w.p.Close(ctx))
		w.open()
		look()
		w.submit(volume, block.OpZero, 1<<20, 300<<10)
		look()
		_, _, err = w.p.SplitMirror(ctx, volume, pool.SnapshotSpec{Name: "c"})
		w.must(err)
		look()
		w.scribble(volume, 3)
		_, err = w.p.ResyncMirror(ctx, pool.SnapshotRef{Volume: volume, Name: "c"})
		w.must(err)
		look()
		w.must(w.p.SyncMirror(ctx, volume, nil))
		w.snapshot("s", volume)
		w.scribble(volume, 3)
		_, _, err = w.p.Rollback(ctx, pool.SnapshotRef{Volume: volume, Name: "s"})
		w.must(err)
		look()
		w.must(w.p.DetachMirror(ctx, volume))
		look()
	}
	if differed == 0 {
		t.Error("no region differed")
	}
	w.must(w.p.Close(ctx))
}
