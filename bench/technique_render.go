package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// renderTechniques has a row for each technique and peer, in several tables.
func (r *results) renderTechniques(p *page) {
	t := r.Techniques
	p.say("## Snapshot techniques side by side\n")
	p.say("Each disk, of %s, is filled in order, read, and %d blocks of 4 KiB (%s of it) are written in random order at depth %d: *before*. Then a snapshot is taken.",
		binary(t.SizeBytes), t.Blocks, fraction(t.share()), frozenWrites.depth)
	p.say("*first*: the same blocks are written again, each for the first time after the snapshot. *again*: and once more. Then the volume and the snapshot are read, the volume is")
	p.say("rolled back, the snapshot deleted. After each step all is written out and what nothing holds is given back. %s, on fresh disks; those that differ little ran each step one right after the other.",
		count(r.of("techniques").Settings.FrozenRounds, "round"))
	p.say("All are served over NBD on a unix socket and written by fio. redirect: a volume in varve's pool. inplace: one in a raw file of its own. *qemu copy-before-write*: a raw file behind")
	p.say("qemu-storage-daemon, with a backup job that copies nothing but what is overwritten (sync=none), into a qcow2 or raw file. *reflink*: a raw file on a file system in a loop-mounted image,")
	p.say("served by qemu-nbd, and FICLONE.\n")
	t.renderFailures(p)
	p.say("Medians, in brackets the ratio within a round. *usable*: until a reader could have the snapshot, durably. *whole*: until nothing was copied for it any more, the first writes included.")
	p.say("A mirror is whole before it is split, so for it *usable* is the split, and *whole* the copying before. *to the disk*: bytes that went to the block device for each byte of the first writes, until")
	p.say("all was settled: log, copies, maps, the file system's journal. Whatever else the machine writes is counted with them, so the smallest of the rounds is given; of reflinks, what went to their own loop device.\n")
	t.table(p, []column{
		{"usable, ms", median1(func(r frozenRound) float64 { return r.Creation.Usable })},
		{"whole, ms", func(all []frozenRound) string {
			if all[0].Creation.Copies {
				return median1(func(r frozenRound) float64 { return r.Creation.Whole })(all)
			}
			return ""
		}},
		{"before, writes/s", median0(func(r frozenRound) float64 { return r.Before.PerSecond })},
		{"first, writes/s", against(func(r frozenRound) (of, to float64) { return r.First.PerSecond, r.Before.PerSecond })},
		{"again, writes/s", against(func(r frozenRound) (of, to float64) { return r.Rewrite.PerSecond, r.Before.PerSecond })},
		{"to the disk", leastBytes},
	})
	p.say("Sequential reads of the volume, 1 MiB at depth 16, as it was filled and after all these random writes; reads of the snapshot, such and 4 KiB at random, depth 32; what the snapshot takes on the disk after")
	p.say("the first writes:\n")
	t.table(p, []column{
		{"volume as filled, MiB/s", median0(func(r frozenRound) float64 { return r.Read.MiB })},
		{"after, MiB/s", against(func(r frozenRound) (of, to float64) { return r.Reread.MiB, r.Read.MiB })},
		{"snapshot, MiB/s", median0(func(r frozenRound) float64 { return r.SnapSeq.MiB })},
		{"snapshot, reads/s", median0(func(r frozenRound) float64 { return r.SnapRand.PerSecond })},
		{"space, MiB", median0(func(r frozenRound) float64 { return float64(r.Space) / (1 << 20) })},
	})
	p.say("Rollback, the present kept: until clients could read what was, and until nothing was copied back any more; deletion, and until its space was given back, milliseconds:\n")
	t.table(p, []column{
		{"rolled back", orNone(func(r frozenRound) float64 { return r.RollbackMS })},
		{"copied back", orNone(func(r frozenRound) float64 { return r.CopiedBackMS })},
		{"deleted", median1(func(r frozenRound) float64 { return r.DeleteMS })},
		{"given back", median1(func(r frozenRound) float64 { return r.FreedMS })},
	})
	t.renderStacked(p)
	t.renderMirrors(p)
}

func (t *techniquesFound) renderFailures(p *page) {
	for _, name := range slices.Sorted(maps.Keys(t.Failures)) {
		p.say("**%s failed: %s**\n", name, t.Failures[name])
	}
}

// column is a figure that each contestant has.
type column struct {
	title string
	cell  func([]frozenRound) string // of at least one round
}

func (t *techniquesFound) table(p *page, columns []column) {
	rows := [][]string{{""}}
	for _, c := range columns {
		rows[0] = append(rows[0], c.title)
	}
	for _, name := range techniqueNames {
		all := t.Rounds[name]
		if len(all) == 0 {
			continue
		}
		row := []string{name}
		for _, c := range columns {
			row = append(row, c.cell(all))
		}
		rows = append(rows, row)
	}
	p.table(rows)
}

func figuresOf(all []frozenRound, of func(frozenRound) float64) (out []float64) {
	for _, r := range all {
		out = append(out, of(r))
	}
	return out
}

func median0(of func(frozenRound) float64) func([]frozenRound) string { return medianAs("%.0f", of) }

func median1(of func(frozenRound) float64) func([]frozenRound) string { return medianAs("%.1f", of) }

// medianAs has no figure of what was not reached.
func medianAs(format string, of func(frozenRound) float64) func([]frozenRound) string {
	return func(all []frozenRound) string {
		all = slices.DeleteFunc(slices.Clone(all), func(r frozenRound) bool { return of(r) == 0 })
		if len(all) == 0 {
			return ""
		}
		return fmt.Sprintf(format, median(figuresOf(all, of)))
	}
}

func leastBytes(all []frozenRound) string {
	if least := slices.Min(figuresOf(all, amplification)); least > 0 {
		return fmt.Sprintf("%.2f x", least)
	}
	return ""
}

// orNone is for peers that have no rollback.
func orNone(of func(frozenRound) float64) func([]frozenRound) string {
	return func(all []frozenRound) string {
		if all[0].NoRollback {
			return "none"
		}
		return median1(of)(all)
	}
}

// against is a median, and the median of its ratios to another figure of the same round.
func against(pick func(frozenRound) (of, to float64)) func([]frozenRound) string {
	return func(all []frozenRound) string {
		var a, b []float64
		for _, r := range all {
			if of, to := pick(r); of > 0 {
				a, b = append(a, of), append(b, to)
			}
		}
		if len(a) == 0 {
			return ""
		}
		return fmt.Sprintf("%.0f (%.2f x)", median(a), median(ratios(a, b)))
	}
}

func fraction(x float64) string {
	names := map[int]string{2: "half", 4: "a quarter", 8: "an eighth", 16: "a sixteenth"}
	if x > 0 {
		if name := names[int(1/x)]; name != "" {
			return name
		}
	}
	return fmt.Sprintf("%.3f", x)
}

func (t *techniquesFound) renderStacked(p *page) {
	if len(t.Stacked) == 0 {
		return
	}
	p.say("Several snapshots of one disk, %d changed blocks before each: how long the last ten took, the median, and random writes after the last, of %d blocks. Snapshots are taken for %s at each depth and no longer:",
		changes, t.Blocks/stackedShare, stackedTime)
	p.say("where fewer were made than the column says, the number stands there.\n")
	rows := [][]string{{""}}
	for _, n := range stackedDepths {
		rows[0] = append(rows[0], count(n, "snapshot"))
	}
	for _, name := range stackedNames {
		row := []string{name}
		for i, s := range t.Stacked[name] {
			last := s.CreateMS[max(0, len(s.CreateMS)-10):]
			cell := fmt.Sprintf("%.1f ms, %.0f writes/s", median(last), s.First.PerSecond)
			if s.Snapshots != stackedDepths[i] {
				cell += fmt.Sprintf(" (%d)", s.Snapshots)
			}
			row = append(row, cell)
		}
		for len(row) < len(rows[0]) {
			row = append(row, "")
		}
		rows = append(rows, row)
	}
	p.table(rows)
}

func (t *techniquesFound) renderMirrors(p *page) {
	for _, m := range t.Mirrors {
		if len(m.Pairs) == 0 {
			continue
		}
		var parts []string
		for _, x := range []struct {
			what string
			ms   []float64
		}{{"pause", m.PauseMS}, {"command", m.SplitMS}, {"slowest write meanwhile", m.SlowestMS}} {
			if len(x.ms) > 0 {
				parts = append(parts, x.what+" "+around(x.ms, "%.2f"))
			}
		}
		p.say("%s: random writes at %s of a single leg's speed; splits while %d writes are under way, milliseconds: %s.\n", mirrorName(m.Inplace), times(speedUps(m.Pairs, frozenWrites)), depth, strings.Join(parts, "; "))
	}
}
