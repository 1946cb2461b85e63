package blockmap

import (
	"math/rand/v2"
	"testing"

	"varve/internal/pool/seglog"
)

// One changed block among many in 64 TiB: the nodes on the way to it are read, on both sides, and no others.
func TestDiffReadsOnlyTheWayToWhatChanged(t *testing.T) {
	const blocks = 1 << 34 // 64 TiB
	log := &memoryLog{}
	store := NewStore(1<<20, log.read)
	tree := NewTree(Root{}, 1, 0, 1)
	rnd := rand.New(rand.NewPCG(1, 2))
	set := func(lba uint64, epoch uint64) {
		t.Helper()
		e := Entry{Addr: seglog.MakeAddr(7, int64(rnd.Uint64N(1<<16))*4096), Epoch: epoch}
		if err := tree.Set(store.NewPins(), lba, []Entry{e}); err != nil {
			t.Fatal(err)
		}
	}
	for range 20000 {
		set(rnd.Uint64N(blocks), 1)
	}
	at := func(r Root) Root {
		s, ok := r.Slot()
		if !ok {
			t.Fatal("a root is not in the log")
		}
		return RootAt(s)
	}
	for name, change := range map[string]func(lba uint64, epoch uint64){
		"written":   set,
		"discarded": func(lba, _ uint64) { _ = tree.Clear(store.NewPins(), lba, 1, true) },
		"erased":    func(lba, _ uint64) { _ = tree.Clear(store.NewPins(), lba, 1, false) },
	} {
		changed := rnd.Uint64N(blocks)
		epoch := tree.Epoch()
		set(changed, epoch)
		from := tree.Freeze(epoch+1, epoch*2)
		change(changed, epoch+1)
		to := tree.Freeze(epoch+2, epoch*2+1)
		if err := store.NewWriter(log.append).Write([]Root{from, to}); err != nil {
			t.Fatal(err)
		}
		tree.Settle(0, MaxBlocks)
		reads, steps := 0, 0
		fresh := NewStore(1<<20, func(a seglog.Addr, p []byte) error { reads++; return log.read(a, p) })
		pins := fresh.NewPins()
		a, b := at(from), at(to)
		for lba := uint64(0); lba < blocks; steps++ {
			var n uint64
			var differs bool
			waiting(t, pins, func() (err error) {
				n, differs, err = Diff(pins, a, b, lba, blocks-lba)
				return err
			})
			if differs != (lba == changed) || differs && n != 1 {
				t.Fatalf("%s: %d blocks at %d differ: %t; %d was changed", name, n, lba, differs, changed)
			}
			lba += n
		}
		if reads > 2*(rootLevel+1) || steps > 2*(rootLevel+1)+1 {
			t.Errorf("%s: %d nodes read in %d steps", name, reads, steps)
		}
	}
}
