package main

import (
	"fmt"
)

// The numbers that backups have to reach.
const (
	firstAim   = 1.8  // times the speed of the fastest peer's first backup
	restoreAim = 1.5  // times its restore
	sizeAim    = 1.05 // times restic's repository
	memoryAim  = 300  // MiB
	idleAim    = 0.3  // seconds

	dayAim    = 1.15       // bytes stored for each changed, and besides
	dayExtra  = 1 << 20    // so many
	monthDays = 30         // over which
	monthAim  = 3.0        // bytes are stored for each changed
	busyAim   = busyDay    // times the seconds for as many times the changes
	lastDay   = 100        // after so many incrementals a restore takes
	lastAim   = 1.15       // times that of a full
	farAim    = 1.0 - 0.30 // of the speed without the delay
)

// backupAims lists what backups have to reach, measured or not.
func (r *results) backupAims() (all []aim) {
	b := r.Backups
	if b == nil {
		b = new(backupsFound)
	}
	for _, name := range []string{keptByDaemon, keptAlone} {
		all = append(all,
			b.peerAim(name, "first backup", firstAim, func(r backupRound) float64 { return r.First.Seconds }),
			b.peerAim(name, "restore", restoreAim, func(r backupRound) float64 { return r.Restore.Seconds }),
			b.memoryAim(name))
	}
	all = append(all, b.sizeAim())
	all = append(all, b.idleAims()...)
	all = append(all, b.dayAims()...)
	return append(all, b.lineAims()...)
}

// peerAim compares a step's time to that of the peer which is fastest at it.
func (b *backupsFound) peerAim(name, step string, target float64, seconds func(backupRound) float64) aim {
	best, least := "", 0.0
	for _, peer := range []string{keptByRestic, keptByBorg, keptByKopia} {
		if took := median(values(b.Rounds[peer], seconds)); took > 0 && (best == "" || took < least) {
			best, least = peer, took
		}
	}
	a := ratioAim(step+" of an image, "+name, "fastest of restic, borg, kopia", target, b.speedUps(name, best, seconds))
	if a.measured != "" {
		a.against = best
	}
	return a
}

// speedUps are how many times as fast one is as another, round by round; none where either did not get there.
func (b *backupsFound) speedUps(name, than string, seconds func(backupRound) float64) (out []float64) {
	own, others := b.Rounds[name], b.Rounds[than]
	for i := range min(len(own), len(others)) {
		if x, y := seconds(own[i]), seconds(others[i]); x > 0 && y > 0 {
			out = append(out, y/x)
		}
	}
	return out
}

func (b *backupsFound) memoryAim(name string) aim {
	a := aim{what: "backups: most memory in any step, " + name, against: "an image of any size", target: fmt.Sprintf("under %d MiB", memoryAim)}
	if all := b.Rounds[name]; len(all) > 0 {
		mib := float64(peakRSS(all)) / (1 << 20)
		a.measured, a.met = fmt.Sprintf("%.0f MiB", mib), mib < memoryAim
	}
	return a
}

// sizeAim compares what is stored besides parity, which restic has none of.
func (b *backupsFound) sizeAim() aim {
	a := aim{what: "repository after the first backup, without parity", against: keptByRestic, target: atMost(sizeAim, " x")}
	theirs := median(values(b.Rounds[keptByRestic], func(r backupRound) float64 { return float64(r.Repository) }))
	for _, name := range []string{keptAlone, keptByDaemon} {
		of := values(b.Rounds[name], func(r backupRound) float64 { return float64(r.Repository - r.First.Told.Parity) })
		if len(of) == 0 || theirs == 0 {
			continue
		}
		whole := median(values(b.Rounds[name], func(r backupRound) float64 { return float64(r.Repository) }))
		by := median(of) / theirs
		a.measured, a.met = fmt.Sprintf("%.3f x; with parity %.3f x", by, whole/theirs), by <= sizeAim
	}
	return a
}

func (b *backupsFound) idleAims() (all []aim) {
	for _, size := range []int64{1 << 30, hugeSize} {
		a := aim{what: "unchanged backup at the command line, " + binary(size), against: "the daemon has the repository open", target: fmt.Sprintf("under %g s", idleAim)}
		for _, f := range b.Idle {
			if f.SizeBytes != size || len(f.Runs) == 0 {
				continue
			}
			took, t := secondsOf(f.Runs), f.Runs[len(f.Runs)-1].Told
			a.measured = fmt.Sprintf("%s s; %s, %s", around(took, "%.3f"), count(int(t.Objects), "object"), count(int(t.Requests), "request"))
			a.met = median(took) < idleAim
		}
		all = append(all, a)
	}
	return all
}

// dayAims are those of a disk of which a hundredth changes each day.
func (b *backupsFound) dayAims() []aim {
	one := aim{what: "stored for 1 % of blocks changed at random", against: "changed bytes", target: fmt.Sprintf("at most %g x + %d MiB", dayAim, dayExtra>>20)}
	month := aim{what: fmt.Sprintf("stored over %d such days", monthDays), against: "changed bytes", target: atMost(monthAim, " x")}
	busy := aim{what: fmt.Sprintf("time of an incremental with %d times the changes", busyDay), against: "one of the days before", target: atMost(busyAim, " x")}
	last := aim{what: fmt.Sprintf("time to restore the %dth incremental", lastDay), against: "a full of the same content", target: atMost(lastAim, " x")}
	if f := b.Days; f != nil {
		if len(f.Days) > 0 {
			d := f.Days[0]
			one.measured = fmt.Sprintf("%.3f x: %.2f MiB for %.2f MiB", float64(d.Grew)/float64(d.Changed), float64(d.Grew)/(1<<20), float64(d.Changed)/(1<<20))
			one.met = float64(d.Grew) <= dayAim*float64(d.Changed)+dayExtra
		}
		if len(f.Days) >= monthDays {
			stored, changed := f.over(monthDays)
			by := float64(stored) / float64(changed)
			month.measured, month.met = fmt.Sprintf("%.2f x", by), by <= monthAim
		}
		if f.Busy.Took.Seconds > 0 {
			usual := median(f.seconds()[max(0, len(f.Days)-10):])
			by := f.Busy.Took.Seconds / usual
			busy.measured, busy.met = fmt.Sprintf("%.2f x: %.2f s for %.2f s", by, f.Busy.Took.Seconds, usual), by <= busyAim
		}
		if by := ratios(secondsOf(f.LastRestores), secondsOf(f.FreshRestores)); len(by) > 0 && len(f.Days) >= lastDay {
			last.measured, last.met = times(by), median(by) <= lastAim
		}
	}
	return []aim{one, month, busy, last}
}

func (b *backupsFound) lineAims() (all []aim) {
	for _, step := range []struct {
		name string
		of   func(lineRound) spent
	}{
		{"first backup", func(r lineRound) spent { return r.Backup }}, {"restore", func(r lineRound) spent { return r.Restore }},
	} {
		var found []float64
		if f := b.Line; f != nil {
			for i := range min(len(f.Near), len(f.Far)) {
				found = append(found, step.of(f.Near[i]).Seconds/step.of(f.Far[i]).Seconds)
			}
		}
		all = append(all, ratioAim(fmt.Sprintf("%s, S3 with %d ms added each way", step.name, lineDelay.Milliseconds()), "no delay", farAim, found))
	}
	return all
}
