package format_test

import (
	"errors"
	"os"
	"path"
	"testing"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/vfs"
)

// TestReaderAgreesAboutLosses damages leaves of maps and has the pool repaired: what is recorded as lost is what
// cannot be read, in every volume and snapshot.
func TestReaderAgreesAboutLosses(t *testing.T) {
	dir := path.Join(t.TempDir(), "pool")
	w := newWriter(t, vfs.OS(), dir, 4)
	w.story()
	w.must(w.p.Close(ctx))
	segments, err := os.ReadDir(path.Join(dir, "log"))
	w.must(err)
	damaged := 0
	for _, s := range segments {
		name := path.Join(dir, "log", s.Name())
		b, err := os.ReadFile(name)
		w.must(err)
		for off := 0; off+48 <= len(b); off += 64 {
			if le.Uint32(b[off:]) == 0x444F4E56 && b[off+4] == 0 && le.Uint64(b[off+8:]) == 256 {
				b[off+40] ^= 1
				damaged++
			}
		}
		w.must(os.WriteFile(name, b, 0o600))
	}
	rep, err := pool.RepairOffline(ctx, w.opts, false, nil)
	w.must(err)
	if damaged == 0 || len(rep.After.Damage) == 0 {
		t.Fatalf("%d leaves were damaged, and a repair found %+v", damaged, rep.Before.Damage)
	}

	c, err := readPool(os.DirFS(dir))
	w.must(err)
	w.open()
	total := 0
	for _, s := range c.states {
		v := c.volumes[s.Volume]
		var dev block.Device
		switch s.Kind {
		case 1:
			dev, err = w.p.OpenVolume(v.Name)
		case 2:
			dev, err = w.p.OpenSnapshot(pool.SnapshotRef{Volume: v.Name, Name: s.Name})
		default:
			continue
		}
		w.must(err)
		for lba := range (s.Size + blockBytes - 1) / blockBytes {
			b := make([]byte, min(blockBytes, s.Size-lba*blockBytes))
			err := dev.ReadAt(ctx, b, lba*blockBytes)
			lost := s.blocks[uint64(lba)].lost
			if lost != errors.Is(err, block.ErrDamaged) || !lost && err != nil {
				t.Fatalf("block %d of %s@%s: lost for the reader: %t; the pool says %v", lba, v.Name, s.Name, lost, err)
			}
			if lost {
				total++
			}
		}
		w.must(dev.Close())
	}
	if total < 256 {
		t.Errorf("only %d blocks are lost", total)
	}
}
