package blockmap

import (
	"context"
	"maps"
	"math/rand/v2"
	"testing"

	"varve/internal/pool/seglog"
)

// descendant is a state in both forms, among others that descend from each other.
type descendant struct {
	*Heir
	up    *descendant
	plain plain
	epoch uint64
}

// has tells whether a shown state below has an entry, or may have it because it is lost there.
func (d *descendant) has(below map[*Heir]*descendant, lba uint64, e Entry) (has, may bool) {
	for _, k := range d.Below {
		k := below[k]
		h, m := k.has(below, lba, e)
		if k.Shown {
			h = k.plain[lba].Addr == e.Addr
			m = h || k.plain[lba].Lost()
		}
		has, may = has || h, may || m
	}
	return has, may
}

// Of a state that is there for others, exactly those entries are visited that shown states below it have, through however many
// that are there for others as well. Where something was lost, it may be more.
func TestMarkHeldAgainstPlainMaps(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	visited, passed := 0, 0
	for round := range 200 {
		log := &memoryLog{}
		store := NewStore(4<<10, log.read)
		addr := int64(0)
		change := func(d *descendant, f func(*Tree, *Pins)) {
			tree := NewTree(d.Root, d.epoch, 0, uint64(addr)+1<<40)
			addr++
			f(tree, store.NewPins())
			d.Root = tree.Freeze(d.epoch+1, 1<<50)
			if err := store.NewWriter(log.append).Write([]Root{d.Root}); err != nil {
				t.Fatal(err)
			}
			d.Root = d.Root.Settled()
		}
		place := func() uint64 {
			return []uint64{0, 250, 1<<15 - 4, 1 << 22}[rnd.IntN(4)] + rnd.Uint64N(8)
		}
		all, of := []*descendant{}, map[*Heir]*descendant{}
		for i := range 2 + rnd.IntN(12) {
			d := &descendant{Heir: &Heir{Shown: rnd.IntN(2) == 0}, plain: plain{}, epoch: uint64(i) + 1}
			if i > 0 {
				d.up = all[max(rnd.IntN(i), rnd.IntN(i))]
				d.up.Below = append(d.up.Below, d.Heir)
				d.Root, d.plain = d.up.Root, maps.Clone(d.up.plain)
			}
			change(d, func(tree *Tree, pins *Pins) {
				for range rnd.IntN(12) {
					lba := place()
					if rnd.IntN(4) == 0 {
						delete(d.plain, lba)
						if err := tree.Clear(pins, lba, 1, true); err != nil {
							t.Fatal(err)
						}
						continue
					}
					addr++
					d.plain[lba] = Entry{Addr: seglog.MakeAddr(7, addr*4096), Epoch: d.epoch}
					if err := tree.Set(pins, lba, []Entry{d.plain[lba]}); err != nil {
						t.Fatal(err)
					}
				}
			})
			all, of[d.Heir] = append(all, d), d
		}
		losses := round%2 == 1
		if losses {
			for range 3 {
				d, lba := all[rnd.IntN(len(all))], LeafOf(place())
				change(d, func(tree *Tree, pins *Pins) {
					if err := tree.Lose(pins, 0, lba, MaxBlocks); err != nil {
						t.Fatal(err)
					}
				})
				for l := range uint64(LeafBlocks) {
					d.plain[lba+l] = lostEntry(d.epoch)
				}
			}
		}
		for _, d := range all {
			if d.Shown {
				continue
			}
			own, marked := Own{}, map[seglog.Addr]bool{}
			if d.up != nil {
				own = Own{Data: d.up.epoch, Nodes: d.up.epoch}
			}
			err := store.MarkHeld(context.Background(), d.Root, own, d.Below, func(Ptr) {}, func(entries []Entry) {
				for _, e := range entries {
					marked[e.Addr] = true
				}
			}, func(uint64, uint64) {})
			if err != nil {
				t.Fatal(err)
			}
			for lba, e := range d.plain {
				if !e.Stored() || e.Epoch <= own.Data {
					continue
				}
				has, may := d.has(of, lba, e)
				if marked[e.Addr] && !may || !marked[e.Addr] && has {
					t.Fatalf("round %d: block %d of epoch %d, which is visited (%t), is had (%t), or may be (%t)", round, lba, e.Epoch, marked[e.Addr], has, may)
				}
				if delete(marked, e.Addr); has {
					visited++
				} else {
					passed++
				}
			}
			if len(marked) > 0 {
				t.Fatalf("round %d: visited were %v as well", round, marked)
			}
		}
	}
	if visited < 100 || passed < 100 {
		t.Errorf("%d entries were visited and %d not", visited, passed)
	}
}
