package pool_test

import (
	"flag"
	"maps"
	"slices"
	"strconv"
	"testing"

	"pgregory.net/rapid"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/vfs/crashfs"
)

func init() {
	for name, value := range map[string]int{"rapid.steps": 100, "rapid.checks": 100 / thin(5)} { // what the command line says comes later
		if err := flag.Set(name, strconv.Itoa(value)); err != nil {
			panic(err)
		}
	}
}

// TestRandomOperationsAgainstModel does random things to a pool and to a model of
// plain bytes, crashes now and then, and compares everything. 100 runs of about 100 steps, ten
// thousand operations, fewer under the race detector; -rapid.checks and -rapid.steps make it any number.
func TestRandomOperationsAgainstModel(t *testing.T) { againstModel(t, false) }

// TestBaseAgainstModel does the same to volumes that begin with a base, of which nobody sees when they are filled.
func TestBaseAgainstModel(t *testing.T) { againstModel(t, true) }

func againstModel(t *testing.T, based bool) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		d := newDriver(t)
		defer func() { _ = d.p.Close(ctx) }()
		if rapid.Bool().Draw(t, "tiny cache") {
			d.opts.MapCacheBytes = 1 // a node or two
			d.reopen()
		}
		volume := rapid.SampledFrom([]string{"a", "b", "c"})
		snap := rapid.SampledFrom([]string{"s1", "s2", "s3", "s4"})
		size := rapid.SampledFrom([]int64{4096, 4608, 40 << 10, 1<<20 + 512, 1<<20 + 8192, 3 << 20})
		anySnap := func(v string) string {
			if w := d.present().volumes[v]; w != nil && len(w.snapshots) > 0 && rapid.Bool().Draw(t, "existing") {
				names := slices.Sorted(maps.Keys(w.snapshots))
				return rapid.SampledFrom(names).Draw(t, "snapshot")
			}
			return snap.Draw(t, "snapshot")
		}
		changes := func(size int64) []*block.Op {
			var ops []*block.Op
			for range rapid.IntRange(1, 4).Draw(t, "ops") {
				off := rapid.Int64Range(0, size-1).Draw(t, "offset")
				n := min(rapid.SampledFrom([]int64{1, 512, 4096, 5000, 12288, 70000, 1 << 20}).Draw(t, "length"), size-off)
				if rapid.Bool().Draw(t, "aligned") {
					off &^= block.Size - 1
				}
				kind := rapid.SampledFrom([]block.OpKind{block.OpWrite, block.OpWrite, block.OpWrite, block.OpZero, block.OpZeroAllocated, block.OpDiscard}).Draw(t, "kind")
				if kind == block.OpWrite {
					ops = append(ops, writeOp(off, n))
				} else {
					ops = append(ops, op(kind, off, n))
				}
			}
			return ops
		}
		write := func(t *rapid.T) {
			v := volume.Draw(t, "volume")
			if w := d.present().volumes[v]; w != nil {
				d.submit(v, changes(w.size)...)
			} else if based || rapid.IntRange(0, 3).Draw(t, "over a base") == 0 {
				d.createOver(v, size.Draw(t, "size"), size.Draw(t, "base"))
			} else {
				d.createVolume(v, size.Draw(t, "size"))
			}
		}
		fill := func(t *rapid.T) { d.fillBase(volume.Draw(t, "volume"), rapid.IntRange(-1, 4).Draw(t, "steps")) }
		t.Repeat(map[string]func(*rapid.T){
			"write": write, "write more": write, "write much": write,
			"create": func(t *rapid.T) { d.createVolume(volume.Draw(t, "volume"), size.Draw(t, "size")) },
			"fill":   fill,
			"flush":  func(t *rapid.T) { d.flush(volume.Draw(t, "volume")) },
			"snapshot": func(t *rapid.T) {
				d.snapshot(snap.Draw(t, "snapshot"), volume.Draw(t, "volume"))
			},
			"group": func(t *rapid.T) { d.snapshot(snap.Draw(t, "snapshot"), "a", "b") },
			"delete snapshot": func(t *rapid.T) {
				v := volume.Draw(t, "volume")
				d.deleteSnapshot(v, anySnap(v))
			},
			"rollback": func(t *rapid.T) {
				v := volume.Draw(t, "volume")
				d.rollback(v, anySnap(v))
			},
			"put back": func(t *rapid.T) {
				v := volume.Draw(t, "volume")
				s := anySnap(v)
				var ranges []pool.Range
				if w := d.present().find(v, s); w != nil {
					if ranges = drawRanges(t, min(w.size, d.present().volumes[v].size)); rapid.IntRange(0, 19).Draw(t, "odd") == 0 {
						ranges[0].Length++
					}
				}
				switch rapid.SampledFrom([]string{"ranges", "ranges", "all", "compared"}).Draw(t, "what") {
				case "all":
					d.putBack(v, s)
				case "compared":
					d.putBackCompared(v, s)
				default:
					if len(ranges) > 0 {
						d.putBack(v, s, ranges...)
					}
				}
			},
			"clone": func(t *rapid.T) {
				v := volume.Draw(t, "volume")
				d.cloneVolume(v, anySnap(v), volume.Draw(t, "clone"))
			},
			"bookmark": func(t *rapid.T) {
				v := volume.Draw(t, "volume")
				d.bookmark(v, anySnap(v), rapid.SampledFrom([]string{"k1", "k2", "k3", "s2"}).Draw(t, "bookmark"))
			},
			"delete bookmark": func(t *rapid.T) {
				v := volume.Draw(t, "volume")
				name := snap.Draw(t, "snapshot") // mostly none
				if w := d.present().volumes[v]; w != nil && len(w.bookmarks) > 0 {
					name = rapid.SampledFrom(slices.Sorted(maps.Keys(w.bookmarks))).Draw(t, "bookmark")
				}
				d.deleteBookmark(v, name)
			},
			"protect": func(t *rapid.T) {
				v := volume.Draw(t, "volume")
				d.protect(v, anySnap(v), rapid.Bool().Draw(t, "on"))
			},
			"delete volume": func(t *rapid.T) {
				v := volume.Draw(t, "volume")
				if w := d.present().volumes[v]; w != nil && rapid.Bool().Draw(t, "emptied") {
					for _, s := range slices.Sorted(maps.Keys(w.snapshots)) {
						d.protect(v, s, false)
						d.deleteSnapshot(v, s)
					}
				}
				d.deleteVolume(v)
			},
			"rename":     func(t *rapid.T) { d.rename(volume.Draw(t, "volume"), volume.Draw(t, "to")) },
			"resize":     func(t *rapid.T) { d.resize(volume.Draw(t, "volume"), size.Draw(t, "size")) },
			"set quota":  func(t *rapid.T) { d.setQuota(rapid.SampledFrom([]int64{0, 1 << 30, 1 << 40}).Draw(t, "quota")) },
			"checkpoint": func(t *rapid.T) { d.checkpoint() },
			"reclaim":    func(t *rapid.T) { d.reclaim() },
			"repair":     func(t *rapid.T) { d.repair() },
			"relayout": func(t *rapid.T) {
				v := volume.Draw(t, "volume")
				if rapid.Bool().Draw(t, "scattered") {
					d.scatter(v)
				}
				d.relayout(v)
			},
			"reopen": func(t *rapid.T) { d.reopen() },
			"crash": func(t *rapid.T) {
				policies := []crashfs.Policy{crashfs.KeepAll, crashfs.DropAll, crashfs.Torn, crashfs.ProcessCrash, crashfs.Random(rapid.Uint64().Draw(t, "seed"))}
				d.crash(rapid.SampledFrom(policies).Draw(t, "policy"))
			},
			"diff": func(t *rapid.T) {
				if all := d.points(); len(all) > 0 {
					d.verifyDiff(rapid.SampledFrom(all).Draw(t, "from"), rapid.SampledFrom(all).Draw(t, "to"))
				}
			},
			"verify": func(t *rapid.T) { d.verify() },
		})
		d.verify()
		d.verifyDiffs()
	})
}

// drawRanges draws ranges of a volume of that size that can be put back.
func drawRanges(t *rapid.T, size int64) (ranges []pool.Range) {
	blocks := (size + block.Size - 1) / block.Size
	for range rapid.IntRange(1, 3).Draw(t, "ranges") {
		lo := rapid.Int64Range(0, blocks-1).Draw(t, "from")
		hi := rapid.Int64Range(lo+1, blocks).Draw(t, "to")
		ranges = append(ranges, pool.Range{Offset: lo * block.Size, Length: min(hi*block.Size, size) - lo*block.Size})
	}
	return ranges
}
