package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// page is a Markdown document that grows.
type page struct{ strings.Builder }

func (p *page) say(format string, args ...any) { fmt.Fprintf(p, format+"\n", args...) }

// table writes a table; its first row is the head.
func (p *page) table(rows [][]string) {
	for i, row := range rows {
		p.say("| %s |", strings.Join(row, " | "))
		if i == 0 {
			p.say("|%s", strings.Repeat("---|", len(row)))
		}
	}
	p.say("")
}

// markdown is RESULTS.md.
func (r *results) markdown() string {
	p := new(page)
	p.say("# Results\n")
	r.renderRuns(p)
	p.say("Figures of different runs cannot be compared; ratios are taken between neighbours in one run. Everything measured is in")
	p.say("[results.json](results.json), from which `make bench BENCH=\"-render bench/results.json\"` writes this page again.\n")
	for _, name := range sectionNames() {
		if failure, ok := r.Failures[name]; ok {
			p.say("**The section %s failed: %s**\n", name, failure)
		}
	}
	r.renderAims(p)
	if r.Peers != nil {
		p.say("![speed relative to the best server of a raw file](results.svg)\n")
		r.renderPeers(p)
	}
	if r.Depth != nil {
		r.renderDepth(p)
	}
	if r.Pauses != nil {
		r.renderPauses(p)
	}
	if r.Written != nil {
		r.renderWritten(p)
	}
	if r.Reclaim != nil {
		r.renderReclaim(p)
	}
	if r.Aged != nil {
		r.renderAged(p)
	}
	if r.Techniques != nil {
		r.renderTechniques(p)
	}
	if r.Backups != nil {
		r.renderBackups(p)
	}
	return strings.TrimRight(p.String(), "\n") + "\n"
}

func (r *results) renderAims(p *page) {
	p.say("## Numbers to reach\n")
	p.say("Ratios are medians, in brackets the smallest and the largest of all rounds or pairs.\n")
	rows := [][]string{{"", "against", "target", "measured", ""}}
	for _, a := range r.aims() {
		rows = append(rows, []string{a.what, a.against, a.target, a.measured, a.verdict()})
	}
	p.table(rows)
}

// renderPeers has tables of loads by servers.
func (r *results) renderPeers(p *page) {
	found := r.Peers
	s := r.of("peers").Settings
	p.say("## Servers side by side\n")
	p.say("fio over NBD on a unix socket; %s, %s a run, disks of %s, each written to once from end to end and in the page cache;",
		count(s.Rounds, "round"), s.Time, binary(s.Size))
	p.say("before each of its layers or snapshots %d scattered blocks of 4 KiB were changed. A chain of 100 has 100 images below the one", changes)
	p.say("that is written to. Loads ran in the order of the table. What runs left behind was written out, and varve's pools gave back what nothing")
	p.say("held any more, between runs. All write into the page cache, but for fsync.\n")
	p.say("Medians, in brackets the smallest and the largest; MiB/s where requests are 1 MiB, else requests a second. First without snapshots:\n")
	found.compare(p, []string{qemuRaw, nbdkitFile, varvePlain}, "varve x best of the others", varvePlain, found.bestRaw)
	p.say("With snapshots, and what has them besides:\n")
	found.compare(p, []string{qemuQcow2, chain10, chain100, varve100}, "varve x chain of 100", varve100, func(load) string { return chain100 })
	p.say("Latency of a request, median / 99th percentile in milliseconds; of the fsync alone where each write has one:\n")
	found.table(p, func(all []figures) string {
		var p50, p99 []float64
		for _, f := range all {
			p50, p99 = append(p50, f.P50/1000), append(p99, f.P99/1000)
		}
		return fmt.Sprintf("%.2f / %.2f", median(p50), median(p99))
	})
	p.say("User and system time of the server's process for each request, in microseconds:\n")
	found.table(p, func(all []figures) string {
		var cpu []float64
		for _, f := range all {
			cpu = append(cpu, f.CPU)
		}
		return fmt.Sprintf("%.1f", median(cpu))
	})
	var memory []string
	for _, server := range found.Servers {
		if len(found.RSS[server]) > 0 {
			memory = append(memory, fmt.Sprintf("%s %d", server, slices.Max(found.RSS[server])>>20))
		}
	}
	p.say("Most memory that a server's process had, in MiB: %s.\n", strings.Join(memory, "; "))
}

// compare has the speeds of some servers, as far as they were measured, and one's ratio to another.
func (p *peersFound) compare(to *page, some []string, title, one string, other func(load) string) {
	some = slices.DeleteFunc(slices.Clone(some), func(s string) bool { return !slices.Contains(p.Servers, s) })
	rows := [][]string{append(append([]string{""}, some...), title)}
	for _, l := range shown {
		row := []string{l.title}
		for _, server := range some {
			row = append(row, around(p.speeds(l, server), "%.0f"))
		}
		ratio := ""
		if found := p.ratios(l, one, other(l)); len(found) > 0 {
			ratio = times(found)
		}
		if p.Runs[l.name] != nil {
			rows = append(rows, append(row, ratio))
		}
	}
	to.table(rows)
}

// table has a cell for each load and server.
func (p *peersFound) table(to *page, cell func([]figures) string) {
	rows := [][]string{append([]string{""}, p.Servers...)}
	for _, l := range shown {
		if p.Runs[l.name] == nil {
			continue
		}
		row := []string{l.title}
		for _, server := range p.Servers {
			if all := p.Runs[l.name][server]; len(all) > 0 {
				row = append(row, cell(all))
			} else {
				row = append(row, "")
			}
		}
		rows = append(rows, row)
	}
	to.table(rows)
}

// around is a median with its spread.
func around(of []float64, format string) string {
	if len(of) == 0 {
		return ""
	}
	f := func(x float64) string { return fmt.Sprintf(format, x) }
	return fmt.Sprintf("%s (%s to %s)", f(median(of)), f(slices.Min(of)), f(slices.Max(of)))
}

func (r *results) renderDepth(p *page) {
	s := r.of("depth").Settings
	p.say("## With snapshots, against without\n")
	p.say("Two pools get the same writes, one of them snapshots in between, %d changed blocks before each; disks of %s. %d pairs of runs of at most %s, the order",
		changes, binary(min(s.Size, pairSize)), s.Pairs, s.PairTime)
	p.say("swapped each time: medians of the pairs' ratios, in brackets the smallest and the largest.\n")
	rows := [][]string{{""}}
	for _, d := range r.Depth {
		rows[0] = append(rows[0], count(d.Snapshots, "snapshot"))
	}
	for _, l := range deepLoads {
		row := []string{l.title}
		some := false
		for _, d := range r.Depth {
			found := speedUps(d.Pairs[l.name], l)
			some = some || len(found) > 0
			row = append(row, around(found, "%.3f"))
		}
		if some {
			rows = append(rows, row)
		}
	}
	p.table(rows)
}

func (r *results) renderPauses(p *page) {
	p.say("## Pauses\n")
	p.say("Milliseconds, median / 99th percentile / largest of %d. *pause*: how long all writers of the pool waited, as the daemon tells; *durable*: until the record", r.of("pauses").Settings.Times)
	p.say("was on the disk, the pause included; *answered*: until the API had answered; *slowest write*: the longest that one of %d", depth)
	p.say("writes under way (4 KiB, random, one connection) took which ended meanwhile. Each volume held %d scattered blocks, and %d or more were", scattered, between)
	p.say("written before each operation. What is rolled back is another volume of the pool than what is written to. Snapshots are deleted in random order.")
	p.say("What stands in brackets tells what the disk and the machine do to writers by themselves.\n")
	rows := [][]string{{"volume", "load", "operation", "pause", "durable", "answered", "slowest write"}}
	for _, v := range r.Pauses {
		load := "none"
		if v.Load {
			load = fmt.Sprintf("%.0f writes/s", v.Writes)
		}
		for _, o := range v.Operations {
			rows = append(rows, []string{binary(v.SizeBytes), load, o.Name, tail(o.Pause), tail(o.Durable), tail(o.Answered), tail(o.Slowest)})
		}
	}
	p.table(rows)
	for _, v := range r.Pauses {
		if v.Load {
			renderStalls(p, fmt.Sprintf("this load on %s", binary(v.SizeBytes)), v.Stalls)
		}
	}
}

// tail is what matters of times in milliseconds.
func tail(ms []float64) string {
	if len(ms) == 0 {
		return ""
	}
	return fmt.Sprintf("%.2f / %.2f / %.2f", median(ms), quantile(ms, 0.99), slices.Max(ms))
}

// renderStalls tells what checkpoints did to writers, as the daemon measured inside.
func renderStalls(p *page, load string, stalls map[string]stall) {
	if len(stalls) == 0 {
		return
	}
	var parts []string
	for name, s := range stalls {
		parts = append(parts, fmt.Sprintf("%s %.2f / %.2f / %.2f (%d times)", name, s.P99, s.P999, s.Max, s.Count))
	}
	slices.Sort(parts)
	p.say("Stalls by checkpoints under %s, measured inside, 99th / 99.9th percentile / largest in milliseconds: %s.\n", load, strings.Join(parts, "; "))
}

func (r *results) renderWritten(p *page) {
	p.say("## Bytes written for each byte from the client\n")
	p.say("A disk of %s, from the end of one checkpoint to the end of a later one. *log*: clients' records and checkpoints; *copied*: by reclaim, apart;", binary(writtenSize(r.of("written").Settings)))
	p.say("*dirtied*: all that the process wrote into the page cache, as the kernel counted. What is overwritten gives reclaim something to do, which takes checkpoints of its own.\n")
	rows := [][]string{{"", "", "from the client", "checkpoints", "log", "copied", "dirtied"}}
	for _, w := range r.Written {
		rows = append(rows, []string{
			loadNamed(w.Load).title, w.disk(), fmt.Sprintf("%d MiB in %.1f s", w.Client>>20, w.Seconds), fmt.Sprint(w.Checkpoints),
			perByte(w.Log, w.Client), perByte(w.Copied, w.Client), perByte(w.Dirtied, w.Client),
		})
	}
	p.table(rows)
	for _, w := range r.Written {
		renderStalls(p, loadNamed(w.Load).title+", "+w.disk(), w.Stalls)
	}
}

// disk says what was written to.
func (w writtenBy) disk() string {
	if w.Empty {
		return "empty disk, every block once"
	}
	return "full disk"
}

func perByte(of, client int64) string { return fmt.Sprintf("%.3f", float64(of)/float64(client)) }

func (r *results) renderReclaim(p *page) {
	f := r.Reclaim
	p.say("## Reclaim under endless overwriting\n")
	p.say("A disk of %s without snapshots, each block of which was overwritten once in random order before, overwritten at random for %.0f s (%s):\n",
		binary(f.SizeBytes), f.Seconds, loadNamed("rand-write-4k-qd32").title)
	p.table([][]string{
		{"writes/s", "p99 / slowest write, ms", "copied for each byte from the client", "given back", "largest size of the pool", "bound (1.3 x live + 256 MiB)"},
		{
			fmt.Sprintf("%.0f", f.Load.PerSecond), fmt.Sprintf("%.2f / %.0f", f.Load.P99/1000, f.Load.Max/1000), perByte(f.Copied, f.Client),
			fmt.Sprintf("%.0f MiB/s", float64(f.Freed)/(1<<20)/f.Seconds), fmt.Sprintf("%d MiB", f.PeakPhysical>>20), fmt.Sprintf("%d MiB", f.bound()>>20),
		},
	})
	renderStalls(p, "this load", f.Stalls)
}

func (r *results) renderAged(p *page) {
	f := r.Aged
	p.say("## An aged volume\n")
	p.say("A disk of %s whose every block was overwritten once in random order, against one that was filled in order; then after `varve volume relayout`,", binary(f.SizeBytes))
	p.say("which took %.0f ms. Medians of the ratios of %d pairs of runs, in brackets the smallest and the largest.\n", f.RelayoutMS, r.of("aged").Settings.Pairs)
	rows := [][]string{{"", "filled in order", "aged", "after relayout"}}
	for _, l := range loads {
		if f.Aged[l.name] == nil {
			continue
		}
		var fresh []float64
		for _, p := range f.Aged[l.name] {
			fresh = append(fresh, p.Base.speed(l))
		}
		unit := "/s"
		if l.inMiB() {
			unit = " MiB/s"
		}
		rows = append(rows, []string{
			l.title, fmt.Sprintf("%.0f%s", median(fresh), unit), around(speedUps(f.Aged[l.name], l), "%.3f"), around(speedUps(f.RelaidOut[l.name], l), "%.3f"),
		})
	}
	p.table(rows)
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// binary is a size in the largest unit that it is a whole number of.
func binary(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	i := 0
	for n >= 1024 && n%1024 == 0 && i < len(units)-1 {
		n, i = n/1024, i+1
	}
	return fmt.Sprintf("%d %s", n, units[i])
}

// renderRuns tells when, how and on what the sections were measured.
func (r *results) renderRuns(p *page) {
	var runs []*measuring
	sections := map[time.Time][]string{}
	for _, name := range sectionNames() {
		m, ok := r.Runs[name]
		if !ok {
			continue
		}
		if len(sections[m.Began]) == 0 {
			runs = append(runs, m)
		}
		sections[m.Began] = append(sections[m.Began], name)
	}
	for _, m := range runs {
		which := "Measured"
		if len(runs) > 1 {
			which = "*" + strings.Join(sections[m.Began], ", ") + "*: measured"
		}
		p.say("%s %s in %s by", which, m.Began.UTC().Format("2006-01-02 15:04 UTC"), time.Duration(m.Seconds*float64(time.Second)).Round(time.Second))
		p.say("`%s` on %d cores (%s), %s of memory, %s, %s, load before: %s.", m.Command, m.Machine.Cores, m.Machine.CPU, m.Machine.Memory,
			m.Machine.Kernel, m.Machine.FileSystem, m.Machine.Load)
		p.say("Programs: %s.\n", strings.Join(m.Machine.Programs, "; "))
		if m.Machine.busy() {
			p.say("**The machine was busy when this began (load %s on %s): these figures show that the program works, and little else.**\n",
				m.Machine.Load, count(m.Machine.Cores, "core"))
		}
	}
}
