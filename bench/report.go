package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// report is all that was found.
type report struct {
	settings settings
	began    time.Time
	machine  []string
	rows     [][]figures // by row and kind
	pauses   []pauses
}

// pauseTarget is what no pause should reach, milliseconds.
const pauseTarget = 5

// describeMachine says what was measured on, and with which versions.
func describeMachine(ctx context.Context, s settings) ([]string, error) {
	cpu, err := field("/proc/cpuinfo", "model name")
	if err != nil {
		return nil, err
	}
	memory, err := field("/proc/meminfo", "MemTotal")
	if err != nil {
		return nil, err
	}
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return nil, err
	}
	lines := []string{
		fmt.Sprintf("%d x %s, %s of memory, load before: %s", runtime.NumCPU(), cpu, memory, strings.Fields(string(load))[0]),
	}
	for _, c := range [][]string{
		{"uname", "-sr"}, {"findmnt", "--noheadings", "--output", "FSTYPE", "--target", s.dir},
		{s.varve, "version"}, {"qemu-nbd", "--version"}, {"nbdkit", "--version"}, {"fio", "--version"},
	} {
		out, err := output(ctx, c[0], c[1:]...)
		if err != nil {
			return nil, err
		}
		first, _, _ := strings.Cut(string(out), "\n")
		if c[0] == s.varve {
			first = "varve " + first
		}
		lines = append(lines, first)
	}
	return lines, nil
}

// field is the first value of a name in a file of lines "name: value".
func field(file, name string) (string, error) {
	p, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	for lines := bufio.NewScanner(bytes.NewReader(p)); lines.Scan(); {
		if key, value, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value), nil
		}
	}
	return "", fmt.Errorf("%s has no %q", file, name)
}

func (r *report) markdown() string {
	var b strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	say("# Results\n")
	say("Measured %s by `make bench`, %d rounds of %s a row on disks of %s; each operation timed %d times.",
		r.began.UTC().Format("2006-01-02 15:04 UTC"), r.settings.rounds, r.settings.runTime, binary(r.settings.size), r.settings.times)
	say("%s.\n", strings.Join(r.machine, "; "))
	say("Figures of different runs cannot be compared, those within one can: the servers take turns on the same disk.\n")
	say("## Throughput\n")
	say("fio over NBD on a unix socket, one connection. Medians, in brackets the smallest and the largest; MiB/s where requests are")
	say("1 MiB, else requests a second. All write into the page cache, but for fsync. qemu-nbd and nbdkit serve a raw file.\n")
	r.throughput(say)
	say("\n## Pauses\n")
	say("Milliseconds, median / 99th percentile / largest. *pause*: how long writers of the pool waited; *durable*: until the record")
	say("was on the disk, the pause included; *command*: until `varve` had ended, its own start included; *slowest write*: the longest that one of %d", depth)
	say("writes under way (4 KiB, random, one connection) took which ended meanwhile. Before each operation %d or more blocks are written.", between)
	say("The volume that is rolled back is another one than the one written to: what is written to is not rolled back. A FLUSH, and nothing")
	say("at all, stand beside the operations to tell what the disk and the machine do to writers by themselves.\n")
	r.operations(say)
	return b.String()
}

func (r *report) throughput(say func(string, ...any)) {
	head, line := "| |", "|---|"
	for _, k := range kinds {
		head, line = head+" "+k.name+" |", line+"---|"
	}
	own := len(kinds) - 1
	for _, k := range kinds[:own] {
		head, line = head+" x "+k.name+" |", line+"---|"
	}
	say("%s aim |", head)
	say("%s---|", line)
	for i, w := range rows {
		cells := []string{w.name}
		medians := make([]float64, len(kinds))
		for k, f := range r.rows[i] {
			of := f.perSecond
			if w.block == "1M" {
				of = f.mib
			}
			medians[k] = median(of)
			cells = append(cells, fmt.Sprintf("%.0f (%.0f to %.0f)", medians[k], slices.Min(of), slices.Max(of)))
		}
		for k := range own {
			cells = append(cells, fmt.Sprintf("%.2f", medians[own]/medians[k]))
		}
		aim := ""
		if w.target > 0 {
			aim = fmt.Sprintf("%g x %s: %s", w.target, kinds[0].name, met(medians[own] >= w.target*medians[0]))
		}
		say("| %s |", strings.Join(append(cells, aim), " | "))
	}
	say("\nThe 99th percentile of a request's time, in milliseconds:\n")
	head, line = "| |", "|---|"
	for _, k := range kinds {
		head, line = head+" "+k.name+" |", line+"---|"
	}
	say("%s", head)
	say("%s", line)
	for i, w := range rows {
		cells := []string{w.name}
		for _, f := range r.rows[i] {
			cells = append(cells, fmt.Sprintf("%.2f", median(f.p99)/1000))
		}
		say("| %s |", strings.Join(cells, " | "))
	}
}

func (r *report) operations(say func(string, ...any)) {
	say("| volume | load | operation | pause | durable | command | slowest write | pause under %d ms |", pauseTarget)
	say("|---|---|---|---|---|---|---|---|")
	for _, p := range r.pauses {
		load := "none"
		if p.load {
			load = fmt.Sprintf("%.0f writes/s", p.writes)
		}
		aim := ""
		if len(p.pause) > 0 {
			aim = met(slices.Max(p.pause) < pauseTarget)
		}
		say("| %s | %s | %s | %s | %s | %s | %s | %s |",
			binary(p.volumeBytes), load, p.operation, spread(p.pause), spread(p.durable), spread(p.command), spread(p.slowest), aim)
	}
}

func met(yes bool) string {
	if yes {
		return "met"
	}
	return "**missed**"
}

func spread(ms []float64) string {
	if len(ms) == 0 {
		return ""
	}
	return fmt.Sprintf("%.2f / %.2f / %.2f", median(ms), quantile(ms, 0.99), slices.Max(ms))
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
