package pool_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"path"
	"testing"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/vfs/crashfs"
)

var damageRounds = flag.Int("damage.rounds", 100, "pools to be damaged at random")

// everything is what a pool holds: the blocks of each volume and snapshot, nil where one cannot be read.
type everything map[string][][]byte

func readEverything(t tb, p *pool.Pool) everything {
	t.Helper()
	all := everything{}
	read := func(name string) {
		dev, err := openEither(p, name)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = dev.Close() }()
		all[name] = nil
		for off, size := int64(0), dev.SizeBytes(); off < size; off += block.Size {
			b := make([]byte, min(block.Size, size-off))
			if err := dev.ReadAt(ctx, b, off); errors.Is(err, block.ErrDamaged) {
				b = nil
			} else if err != nil {
				t.Fatal(err)
			}
			all[name] = append(all[name], b)
		}
	}
	for _, v := range p.Volumes() {
		read(v.Name)
		snaps, err := p.Snapshots(v.Name)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range snaps {
			read(v.Name + "@" + s.Name)
		}
	}
	return all
}

// couldBe tells whether everything that can be read is what a model has.
func (e everything) couldBe(m *model) bool {
	n := 0
	same := func(name string, c content) bool {
		n++
		blocks, there := e[name]
		if !there || int64(len(blocks)) != (c.size+block.Size-1)/block.Size {
			return false
		}
		for lba, b := range blocks {
			want := c.blocks[int64(lba)]
			if want == nil {
				want = zeros
			}
			if b != nil && !bytes.Equal(b, want[:len(b)]) {
				return false
			}
		}
		return true
	}
	for name, v := range m.volumes {
		if !same(name, v.content) {
			return false
		}
		for s, snap := range v.snapshots {
			if !same(name+"@"+s, snap.content) {
				return false
			}
		}
	}
	return n == len(e)
}

// demandPast demands that a pool holds what was the present at some time, but for what a check lists.
func (d *driver) demandPast(p *pool.Pool, what string) {
	d.tb.Helper()
	all := readEverything(d.tb, p)
	rep, err := p.Check(ctx, nil)
	if err != nil {
		d.tb.Fatalf("%s: %v", what, err)
	}
	found := listed(&rep)
	for name, blocks := range all {
		for lba, b := range blocks {
			if (b == nil) != found[name][int64(lba)] {
				d.tb.Fatalf("%s: block %d of %s cannot be read: %t, and is listed: %t", what, lba, name, b == nil, found[name][int64(lba)])
			}
		}
	}
	for i := range d.history {
		if all.couldBe(d.history[len(d.history)-1-i]) {
			return
		}
	}
	d.tb.Fatalf("%s: the pool holds what never was: %d of %d findings", what, len(rep.Damage), len(found))
}

// TestRandomDamage flips random bits anywhere in a pool, cuts files short and removes some. Whatever comes of it: what can be read
// is what was there at one time, for all volumes and snapshots alike, and what cannot is listed.
func TestRandomDamage(t *testing.T) {
	t.Parallel()
	opened, repaired, cut, hopeless := 0, 0, 0, 0
	for round := range *damageRounds / thin(5) {
		rnd := rand.New(rand.NewPCG(uint64(round), 7))
		d := damagedPool(t, round%3 == 0)
		for range rnd.IntN(20) {
			volume := []string{"v", "w", "c"}[rnd.IntN(3)]
			switch rnd.IntN(8) {
			case 0:
				d.snapshot(fmt.Sprintf("r%d", rnd.IntN(5)), volume)
			case 1:
				d.checkpoint()
			case 2:
				d.reclaim()
			case 3:
				d.flush(volume)
			case 4:
				d.deleteSnapshot("v", []string{"s1", "s2", "s3"}[rnd.IntN(3)])
			default:
				d.submit(volume, writeOp(rnd.Int64N(10)*4096, 1+rnd.Int64N(20000)))
			}
		}
		d.p.Abandon()
		d.fs = d.fs.CrashImage([]crashfs.Policy{crashfs.KeepAll, crashfs.DropAll, crashfs.Torn}[round%3])
		d.opts.FS = d.fs
		what := fmt.Sprintf("round %d: %s", round, damageAtRandom(t, d.fs, rnd))
		before := digest(t, d.fs)
		rep, err := pool.CheckOffline(ctx, d.opts, nil)
		if err != nil && !errors.Is(err, pool.ErrDamagedLog) && !errors.Is(err, pool.ErrNotPool) {
			t.Fatalf("%s: check: %v", what, err)
		}
		if digest(t, d.fs) != before {
			t.Fatalf("%s: the check changed the pool", what)
		}

		image := d.fs.CrashImage(crashfs.KeepAll)
		if p, err := d.openImage(image); err == nil {
			opened++
			d.demandPast(p, what+": opened")
			p.Abandon()
		} else if !errors.Is(err, pool.ErrDamagedLog) && !errors.Is(err, pool.ErrNotPool) {
			t.Fatalf("%s: %v", what, err)
		}

		done, err := pool.RepairOffline(ctx, d.opts, true, nil)
		if err != nil {
			if rep.Refused != "" || !errors.Is(err, pool.ErrDamagedLog) && !errors.Is(err, pool.ErrNotPool) {
				t.Fatalf("%s: repair: %v; the check said %q", what, err, rep.Refused)
			}
			hopeless++
			continue
		}
		repaired++
		if done.Cut != nil {
			cut++
		}
		if len(own(&done.After)) > 0 {
			t.Fatalf("%s: left after the repair: %+v", what, done.After.Damage)
		}
		if rep.Refused == "" && listed(&done.After).String() != listed(&rep.After).String() {
			t.Fatalf("%s: repaired: %s cannot be read; before: %s", what, listed(&done.After), listed(&rep.After))
		}
		d.open()
		d.demandPast(d.p, what+": repaired")
		d.p.Abandon()
	}
	t.Logf("%d opened by themselves, %d repaired, %d of these by giving batches up, %d beyond repair", opened, repaired, cut, hopeless)
}

// damageAtRandom does some damage and says what.
func damageAtRandom(t *testing.T, fs *crashfs.FS, rnd *rand.Rand) string {
	t.Helper()
	segments, err := fs.List("/pool/log")
	if err != nil {
		t.Fatal(err)
	}
	files := []string{superblockPath}
	for _, s := range segments {
		files = append(files, path.Join("/pool/log", s))
	}
	var said []byte
	for range 1 + rnd.IntN(8) {
		name := files[rnd.IntN(len(files))]
		if _, err := fs.Stat(name); err != nil {
			continue // removed already
		}
		size := int64(len(readAll(t, fs, name, nil)))
		if size == 0 {
			continue
		}
		off := rnd.Int64N(size)
		switch rnd.IntN(25) {
		case 0:
			said = fmt.Appendf(said, "%s removed; ", name)
			if err := errors.Join(fs.Remove(name), fs.SyncDir(path.Dir(name))); err != nil {
				t.Fatal(err)
			}
		case 1:
			said = fmt.Appendf(said, "%s cut off at %d; ", name, off)
			f, err := fs.Open(name)
			if err == nil {
				err = errors.Join(f.Truncate(off), f.Sync(), f.Close())
			}
			if err != nil {
				t.Fatal(err)
			}
		default:
			if rnd.IntN(2) == 0 {
				off &^= block.Size - 1
				off = min(off+rnd.Int64N(120), size-1) // where headers are
			}
			said = fmt.Appendf(said, "%s at %d; ", name, off)
			rot(t, fs, name, off)
		}
	}
	return string(said)
}
