package main

import (
	"fmt"
	"slices"
)

// aim is a target and what was measured; measured is empty where it was not.
type aim struct {
	what, against string
	target        string
	measured      string
	met           bool
}

// The numbers to reach.
const (
	deepest       = 1000 // snapshots
	deepAim       = 0.95 // of the speed without snapshots
	chainAim      = 5.0  // times the speed of a chain as deep
	pauseAim      = 5.0  // ms
	stallAim      = 10.0 // ms
	writtenAim    = 1.15 // bytes per byte, depth 32
	writtenAimOne = 2.0  // depth 1
)

// speedAims are the ratios to reach against the best server of a raw file.
var speedAims = []struct {
	load string
	aim  float64
}{
	{"rand-write-4k-qd32", 1.5},
	{"rand-write-4k-qd1", 1},
	{"rand-read-4k-qd32", 1},
	{"seq-write-1m", 1.2},
	{"seq-read-1m", 1},
	{"fsync-4k-qd1", 1},
}

// aims lists all targets, those that were measured and those that were not.
func (r *results) aims() (all []aim) {
	for _, t := range speedAims {
		l := loadNamed(t.load)
		best := r.Peers.bestRaw(l)
		a := aim{what: l.title, against: "best server of a raw file", target: atLeast(t.aim)}
		if found := r.Peers.ratios(l, varvePlain, best); len(found) > 0 {
			a.against = best
			a.measured, a.met = times(found), median(found) >= t.aim
		}
		all = append(all, a)
	}
	for _, t := range speedAims {
		l := loadNamed(t.load)
		a := aim{what: fmt.Sprintf("%s, with %d snapshots", l.title, deepest), against: "varve with none", target: atLeast(deepAim)}
		if found := r.deep(l); len(found) > 0 {
			a.measured, a.met = times(found), median(found) >= deepAim
		}
		all = append(all, a)
	}
	l := loadNamed("rand-read-4k-qd32")
	a := aim{what: l.title + ", with 100 snapshots", against: chain100, target: atLeast(chainAim)}
	if found := r.Peers.ratios(l, varve100, chain100); len(found) > 0 {
		a.measured, a.met = times(found), median(found) >= chainAim
	}
	all = append(all, a)
	all = append(all, r.pauseAims()...)
	all = append(all, r.writtenAims()...)
	all = append(all, r.otherAims()...)
	all = append(all, r.techniqueAims()...)
	return append(all, r.backupAims()...)
}

func atLeast(x float64) string { return fmt.Sprintf("at least %.2f x", x) }

func atMost(x float64, unit string) string { return fmt.Sprintf("at most %g%s", x, unit) }

// times is a ratio with its spread.
func times(found []float64) string {
	return fmt.Sprintf("%.2f x (%.2f to %.2f)", median(found), slices.Min(found), slices.Max(found))
}

func (r *results) deep(l load) []float64 {
	for _, d := range r.Depth {
		if d.Snapshots == deepest {
			return speedUps(d.Pairs[l.name], l)
		}
	}
	return nil
}

func (r *results) pauseAims() (all []aim) {
	for _, size := range pausedSizes {
		a := aim{
			what: "pause of writers at snapshot create, p99, " + binary(size), against: fmt.Sprintf("%d random 4 KiB writes under way", depth),
			target: atMost(pauseAim, " ms"),
		}
		for _, v := range r.Pauses {
			if v.SizeBytes != size || !v.Load {
				continue
			}
			o := v.operation(opSnapshot)
			p99 := quantile(o.Pause, 0.99)
			a.measured = fmt.Sprintf("%.2f ms; durable after %.1f ms", p99, quantile(o.Durable, 0.99))
			a.met = p99 <= pauseAim
		}
		all = append(all, a)
	}
	return all
}

func (r *results) writtenAims() (all []aim) {
	for _, t := range []struct {
		load   string
		target float64
	}{{"rand-write-4k-qd32", writtenAim}, {"rand-write-4k-qd1", writtenAimOne}} {
		for _, empty := range []bool{true, false} {
			a := aim{
				what:    fmt.Sprintf("bytes to log and checkpoints, %s, %s", loadNamed(t.load).title, writtenBy{Empty: empty}.disk()),
				against: "bytes from the client", target: atMost(t.target, " x"),
			}
			for _, w := range r.Written {
				if w.Load == t.load && w.Empty == empty {
					by := float64(w.Log) / float64(w.Client)
					a.measured = fmt.Sprintf("%.3f x over %d checkpoints", by, w.Checkpoints)
					a.met = by <= t.target
				}
			}
			all = append(all, a)
		}
	}
	return all
}

// otherAims are promises of the engine that the same run happens to measure.
func (r *results) otherAims() (all []aim) {
	if r.Reclaim != nil {
		found := r.Reclaim
		all = append(all, aim{
			what: "size of a full pool overwritten at random", against: "1.3 x live + 256 MiB",
			target:   fmt.Sprintf("at most %d MiB", found.bound()>>20),
			measured: fmt.Sprintf("%d MiB", found.PeakPhysical>>20), met: found.PeakPhysical <= found.bound(),
		})
	}
	for _, w := range r.Written {
		if w.Load != "rand-write-4k-qd32" || w.Stalls == nil {
			continue
		}
		worst := 0.0
		for _, s := range w.Stalls {
			worst = max(worst, s.P999)
		}
		all = append(all, aim{
			what: "stall by a checkpoint, p99.9, measured inside", against: loadNamed(w.Load).title + ", " + w.disk(),
			target: atMost(stallAim, " ms"), measured: fmt.Sprintf("%.2f ms", worst), met: worst <= stallAim,
		})
	}
	return all
}

func (a aim) verdict() string {
	switch {
	case a.measured == "":
		return "not measured"
	case a.met:
		return "met"
	default:
		return "**short**"
	}
}

func (v pausedVolume) operation(name string) operation {
	for _, o := range v.Operations {
		if o.Name == name {
			return o
		}
	}
	return operation{}
}

// speeds are a server's on a load, by round; none where it was not measured.
func (p *peersFound) speeds(l load, server string) (out []float64) {
	if p == nil {
		return nil
	}
	for _, f := range p.Runs[l.name][server] {
		out = append(out, f.speed(l))
	}
	return out
}

// ratios compares two servers, round by round.
func (p *peersFound) ratios(l load, a, b string) []float64 {
	return ratios(p.speeds(l, a), p.speeds(l, b))
}

// bestRaw is the faster of those that serve a raw file.
func (p *peersFound) bestRaw(l load) string {
	if median(p.speeds(l, nbdkitFile)) > median(p.speeds(l, qemuRaw)) {
		return nbdkitFile
	}
	return qemuRaw
}
