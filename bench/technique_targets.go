package main

import (
	"fmt"
	"slices"

	"varve/internal/block"
)

// The numbers that techniques have to reach.
const (
	filterAim  = 2.0  // times the first writes under QEMU's filter
	cowBytes   = 3.2  // to the disk for each byte from the client
	closeAim   = 0.9  // of the speed without snapshots, or with one
	readAim    = 0.95 // of the speed of a raw file
	mirrorAim  = 0.5  // of the speed of a single leg
	splitAimMS = 10.0
)

// techniqueAims lists what techniques have to reach, measured or not.
func (r *results) techniqueAims() []aim {
	t := r.Techniques
	if t == nil {
		t = new(techniquesFound)
	}
	all := []aim{t.filterAim(), t.bytesAim()}
	c := t.Close
	if c == nil {
		c = new(closeFound)
	}
	writes, read := frozenWrites, loadNamed("seq-read-1m")
	all = append(all,
		ratioAim(fmt.Sprintf("cow: first writes with %d snapshots", closeDeep), "with one", closeAim, speedUps(c.Deep, writes)),
		ratioAim("cow: rewrites", "an inplace volume without snapshots", closeAim, speedUps(c.Rewrite, writes)))
	inOrder := ratioAim("cow: sequential read after random writes", "a raw file as it was filled, served by varve", readAim, speedUps(c.Read, read))
	if kit := speedUps(c.Nbdkit, read); len(kit) > 0 {
		inOrder.measured += fmt.Sprintf("; %.2f x nbdkit on the same file", median(kit))
	}
	all = append(all, inOrder)
	for _, inplace := range []bool{false, true} {
		var found mirrorFound
		for _, m := range t.Mirrors {
			if m.Inplace == inplace {
				found = m
			}
		}
		name := mirrorName(inplace)
		all = append(all, ratioAim(name+": random writes", "a single leg", mirrorAim, speedUps(found.Pairs, writes)))
		split := aim{what: name + ": pause of writers at a split, largest", against: fmt.Sprintf("%d random 4 KiB writes under way", depth), target: atMost(splitAimMS, " ms")}
		if len(found.PauseMS) > 0 {
			worst := slices.Max(found.PauseMS)
			split.measured, split.met = fmt.Sprintf("%.2f ms; slowest write meanwhile %.2f ms", worst, slices.Max(found.SlowestMS)), worst <= splitAimMS
		} else if len(found.SlowestMS) > 0 { // the daemon does not tell; no write waited longer than this
			worst := slices.Max(found.SlowestMS)
			split.measured, split.met = fmt.Sprintf("slowest write meanwhile %.2f ms", worst), worst <= splitAimMS
		}
		all = append(all, split)
	}
	return all
}

func mirrorName(inplace bool) string {
	if inplace {
		return inplaceMirror
	}
	return redirectMirror
}

func ratioAim(what, against string, target float64, found []float64) aim {
	a := aim{what: what, against: against, target: atLeast(target)}
	if len(found) > 0 {
		a.measured, a.met = times(found), median(found) >= target
	}
	return a
}

// filterAim compares cow to the faster of QEMU's filters.
func (t *techniquesFound) filterAim() aim {
	first := func(r frozenRound) float64 { return r.First.PerSecond }
	best := filterQcow2
	if median(t.values(filterRaw, first)) > median(t.values(filterQcow2, first)) {
		best = filterRaw
	}
	a := ratioAim("cow: first writes after a snapshot", "qemu copy-before-write", filterAim, ratios(t.values(inplaceCOW, first), t.values(best, first)))
	if a.measured != "" {
		a.against = best
	}
	return a
}

func (t *techniquesFound) bytesAim() aim {
	a := aim{what: "cow: bytes to the disk for first writes", against: "bytes from the client", target: atMost(cowBytes, " x")}
	if own := t.values(inplaceCOW, amplification); len(own) > 0 {
		a.measured, a.met = fmt.Sprintf("%.2f x", slices.Min(own)), slices.Min(own) <= cowBytes
		if theirs := slices.Concat(t.values(filterQcow2, amplification), t.values(filterRaw, amplification)); len(theirs) > 0 {
			a.measured += fmt.Sprintf("; qemu's filter %.2f x", slices.Min(theirs))
		}
	}
	return a
}

// amplification is how many bytes went to the disk for each from the client.
func amplification(r frozenRound) float64 {
	if r.Client == 0 {
		return 0
	}
	return float64(r.Written) / float64(r.Client)
}

// values are one figure of a contestant, by round; none where it was not measured.
func (t *techniquesFound) values(name string, of func(frozenRound) float64) (out []float64) {
	for _, r := range t.Rounds[name] {
		out = append(out, of(r))
	}
	return out
}

// share is how much of its disk a run writes.
func (t *techniquesFound) share() float64 { return float64(t.Blocks*block.Size) / float64(t.SizeBytes) }
