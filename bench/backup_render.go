package main

import (
	"fmt"
	"slices"
)

// renderBackups has a row for each keeper, and a table for each other part.
func (r *results) renderBackups(p *page) {
	b := r.Backups
	p.say("## Backups side by side\n")
	p.say("A raw image of %d MiB, an ext4 file system with %d files of programs and libraries, %d MiB of content. All encrypt, compress with zstd and write to a repository in a directory of its own;",
		b.Image.SizeBytes>>20, b.Image.Files, b.Image.ContentBytes>>20)
	p.say("*restic* with its defaults, *borg* with zstd,1 and chunks of a fixed size, *kopia* with zstd-fastest. *varve*: the command line asks the daemon, which has adopted the image. *%s*: the command", keptAlone)
	p.say("line does it by itself and reads a file, as the peers do. %s, in which each step ran on all, one right after the other; the image, or the repository, in the page cache, all written out before.",
		count(r.of("backups").Settings.BackupRounds, "round"))
	p.say("What came back was compared with the image each time.\n")
	for _, f := range b.failures() {
		p.say("%s", f)
	}
	b.renderRounds(p)
	b.renderIdle(p)
	b.renderDays(p)
	b.renderLine(p)
}

func (b *backupsFound) renderRounds(p *page) {
	if len(b.Rounds) == 0 {
		return
	}
	p.say("Seconds from the start of a command to its end, medians, in brackets the smallest and the largest. *unchanged*: the whole image is read again, but by the daemon, which knows what has changed since. *verify*: all content")
	p.say("is read and compared with what it was when it was stored (`backup verify`, `check --read-data`, `check --verify-data`).\n")
	rows := [][]string{{"", "first backup", "unchanged", "verify", "restore", "content restored, MiB/s"}}
	for _, name := range keeperNames() {
		all := b.Rounds[name]
		if len(all) == 0 {
			continue
		}
		row := []string{name}
		for _, step := range roundSteps {
			row = append(row, around(values(all, func(r backupRound) float64 { return step(r).Seconds }), "%.1f"))
		}
		rows = append(rows, append(row, around(values(all, func(r backupRound) float64 {
			if r.Restore.Seconds == 0 {
				return 0
			}
			return float64(b.Image.ContentBytes) / (1 << 20) / r.Restore.Seconds
		}), "%.0f")))
	}
	p.table(rows)
	p.say("Most memory that the process which does the work had in any step, user and system time of the first backup and of the restore, and what the repository holds after the first backup, all its files:\n")
	rows = [][]string{{"", "memory, MiB", "first backup, CPU s", "restore, CPU s", "repository, MiB", "of it parity, MiB", "objects", "requests"}}
	for _, name := range keeperNames() {
		all := b.Rounds[name]
		if len(all) == 0 {
			continue
		}
		row := []string{
			name, fmt.Sprintf("%.0f", float64(peakRSS(all))/(1<<20)),
			around(values(all, func(r backupRound) float64 { return r.First.CPU }), "%.1f"),
			around(values(all, func(r backupRound) float64 { return r.Restore.CPU }), "%.1f"),
			fmt.Sprintf("%.0f", median(values(all, func(r backupRound) float64 { return float64(r.Repository) }))/(1<<20)), "", "", "",
		}
		if t := all[0].First.Told; t != nil {
			row[5], row[6], row[7] = fmt.Sprintf("%.1f", float64(t.Parity)/(1<<20)), fmt.Sprint(t.Objects), fmt.Sprint(t.Requests)
		}
		rows = append(rows, row)
	}
	p.table(rows)
}

// roundSteps are those of a round, in the order of the table.
var roundSteps = []func(backupRound) spent{
	func(r backupRound) spent { return r.First },
	func(r backupRound) spent { return r.Again },
	func(r backupRound) spent { return r.Verify },
	func(r backupRound) spent { return r.Restore },
}

// values are one figure of all rounds that have it.
func values(all []backupRound, of func(backupRound) float64) (out []float64) {
	for _, r := range all {
		if x := of(r); x > 0 {
			out = append(out, x)
		}
	}
	return out
}

// peakRSS is the most memory in any step of any round, in bytes.
func peakRSS(all []backupRound) (peak int64) {
	for _, r := range all {
		for _, step := range roundSteps {
			peak = max(peak, step(r).RSS)
		}
	}
	return peak
}

func (b *backupsFound) renderIdle(p *page) {
	if len(b.Idle) == 0 {
		return
	}
	p.say("Backups of volumes that do not change, at the command line, through a daemon that has the repository open; %s each:\n", count(idleRuns, "run"))
	rows := [][]string{{"volume", "", "first backup, s", "unchanged, s", "read, KiB", "objects", "requests", "stored, KiB"}}
	for _, f := range b.Idle {
		last := f.Runs[len(f.Runs)-1].Told
		rows = append(rows, []string{
			binary(f.SizeBytes), f.What, fmt.Sprintf("%.2f", f.First.Seconds), around(secondsOf(f.Runs), "%.3f"),
			fmt.Sprint(last.Read >> 10), fmt.Sprint(last.Objects), fmt.Sprint(last.Requests), fmt.Sprint(last.Stored >> 10),
		})
	}
	p.table(rows)
}

func (b *backupsFound) renderDays(p *page) {
	f := b.Days
	if f == nil || len(f.Days) == 0 {
		return
	}
	how := "a file that is backed up without a daemon, so that all of it is read each time"
	if f.Daemon {
		how = "adopted by a daemon"
	}
	p.say("A disk of %s, %s. Before each backup one block of 4 KiB in %d is overwritten at random with what cannot be compressed, %d in all. *stored*: what the repository grew by, all its files, for each byte that changed;",
		binary(f.SizeBytes), how, dailyShare, f.Days[0].Changed/4096)
	p.say("parity, maps and records included. The first full took %.2f s.\n", f.First.Seconds)
	rows := [][]string{{"", "stored for each changed byte", "seconds a day", "objects", "requests"}}
	for i, n := range []int{1, 30, len(f.Days)} {
		if n > len(f.Days) || i == 2 && slices.Contains([]int{1, 30}, n) {
			continue
		}
		stored, changed := f.over(n)
		last := f.Days[n-1].Took.Told
		rows = append(rows, []string{
			count(n, "day"), fmt.Sprintf("%.2f", float64(stored)/float64(changed)), around(f.seconds()[max(0, n-10):n], "%.2f"), fmt.Sprint(last.Objects), fmt.Sprint(last.Requests),
		})
	}
	if t := f.Busy.Took.Told; t != nil {
		rows = append(rows, []string{
			fmt.Sprintf("another, with %d times the changes", busyDay), fmt.Sprintf("%.2f", float64(f.Busy.Grew)/float64(f.Busy.Changed)), fmt.Sprintf("%.2f", f.Busy.Took.Seconds),
			fmt.Sprint(t.Objects), fmt.Sprint(t.Requests),
		})
	}
	p.table(rows)
	p.say("Seconds and objects are those of the last days in the row, at most ten. Restores to a file, the last day's backup and a full of the same content in a repository of its own: %s and %s s.\n",
		around(secondsOf(f.LastRestores), "%.2f"), around(secondsOf(f.FreshRestores), "%.2f"))
}

func (b *backupsFound) renderLine(p *page) {
	f := b.Line
	if f == nil || len(f.Near) == 0 {
		return
	}
	p.say("The same image to a bucket (versitygw on loopback, plain HTTP), without a daemon, over a line that adds nothing and one that adds %.0f ms each way; MiB of content a second, and requests:\n", f.DelayMS)
	rows := [][]string{{"added, ms", "first backup, MiB/s", "restore, MiB/s", "requests for each GiB of content backed up", "for each GiB stored", "for each GiB restored"}}
	gib := float64(b.Image.ContentBytes) / (1 << 30)
	for _, l := range []struct {
		delay float64
		all   []lineRound
	}{{0, f.Near}, {f.DelayMS, f.Far}} {
		var up, down []float64
		for _, r := range l.all {
			up, down = append(up, gib*1024/r.Backup.Seconds), append(down, gib*1024/r.Restore.Seconds)
		}
		one := l.all[0]
		rows = append(rows, []string{
			fmt.Sprintf("%.0f", l.delay), around(up, "%.0f"), around(down, "%.0f"),
			fmt.Sprintf("%.0f", float64(one.Backup.Told.Requests)/gib), fmt.Sprintf("%.0f", float64(one.Backup.Told.Requests)/(float64(one.Backup.Told.Stored)/(1<<30))),
			fmt.Sprintf("%.0f", float64(one.Restore.Told.Requests)/gib),
		})
	}
	p.table(rows)
}
