package main

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// speeds are runs at these requests a second, and as many MiB.
func speeds(of ...float64) (out []figures) {
	for _, x := range of {
		out = append(out, figures{PerSecond: x, MiB: x, P50: 100, P99: 2000, CPU: 3.25})
	}
	return out
}

// example has every section, with figures that are easy to divide.
func example() *results {
	r := &results{
		Runs:     map[string]*measuring{},
		Failures: map[string]string{},
		Peers:    &peersFound{Runs: map[string]map[string][]figures{}, RSS: map[string][]int64{}},
	}
	m := &measuring{
		Began: time.Date(2026, 1, 2, 3, 4, 0, 0, time.UTC), Seconds: 61, Command: "make bench",
		Settings: settings{Rounds: 3, Time: time.Second, Size: 2 << 30, Pairs: 3, PairTime: time.Second, Times: 100, AgeTime: time.Second},
		Machine:  machine{Cores: 2, CPU: "a processor", Memory: "1 kB", Kernel: "Linux", FileSystem: "ext4", Load: "0.1", Programs: []string{"varve v1"}},
	}
	for _, name := range []string{"peers", "depth", "pauses", "written", "reclaim", "aged"} {
		r.Runs[name] = m
	}
	for _, p := range peers {
		r.Peers.Servers = append(r.Peers.Servers, p.name)
		r.Peers.RSS[p.name] = []int64{64 << 20}
	}
	for _, l := range shown {
		r.Peers.Runs[l.name] = map[string][]figures{
			qemuRaw: speeds(50, 50, 50), nbdkitFile: speeds(100, 200, 100), qemuQcow2: speeds(40, 40, 40), chain10: speeds(30, 30, 30),
			chain100: speeds(20, 20, 20), varvePlain: speeds(170, 300, 150), varve100: speeds(120, 80, 160),
		}
	}
	for _, n := range depths {
		pairs := map[string][]pair{}
		for _, l := range deepLoads {
			for _, x := range []float64{90, 94, 99} {
				pairs[l.name] = append(pairs[l.name], pair{speeds(100)[0], speeds(x)[0]})
			}
		}
		r.Depth = append(r.Depth, depthFound{n, pairs})
	}
	var pause []float64
	for i := range 100 {
		pause = append(pause, float64(i+1)/20)
	}
	for _, size := range pausedSizes {
		r.Pauses = append(r.Pauses, pausedVolume{SizeBytes: size, Load: true, Writes: 1000, Operations: []operation{{opSnapshot, pause, pause, pause, pause}}})
	}
	stalls := map[string]stall{"append": {Count: 9, P99: 1, P999: 10.5, Max: 12}}
	for _, empty := range []bool{true, false} {
		r.Written = append(r.Written,
			writtenBy{Load: "rand-write-4k-qd32", Empty: empty, Checkpoints: 2, Client: 1000, Log: 1100, Dirtied: 1200, Seconds: 1, Stalls: stalls},
			writtenBy{Load: "rand-write-4k-qd1", Empty: empty, Checkpoints: 2, Client: 1000, Log: 2001, Dirtied: 2200, Seconds: 1})
	}
	r.Reclaim = &reclaimFound{SizeBytes: 1 << 30, Seconds: 1, Client: 1000, Log: 1100, Copied: 500, Freed: 1 << 20, PeakPhysical: 1 << 30, Load: speeds(10)[0]}
	r.Aged = &agedFound{SizeBytes: 1 << 30, RelayoutMS: 1234, Aged: r.Depth[0].Pairs, RelaidOut: r.Depth[1].Pairs}
	r.Techniques = techniqueExample()
	r.Backups = backupExample()
	return r
}

// TestAims: what is reached, what is short and what was not measured.
func TestAims(t *testing.T) {
	verdicts := map[string]string{}
	for _, a := range example().aims() {
		verdicts[a.what+" | "+a.measured] = a.verdict()
	}
	want := map[string]string{
		"4 KiB random write, depth 32 | 1.50 x (1.50 to 1.70)":                                               "met",
		"1 MiB sequential write, depth 16 | 1.50 x (1.50 to 1.70)":                                           "met",
		"4 KiB random read, depth 32, with 1000 snapshots | 0.94 x (0.90 to 0.99)":                           "**short**",
		"4 KiB random read, depth 32, with 100 snapshots | 6.00 x (4.00 to 8.00)":                            "met",
		"pause of writers at snapshot create, p99, 64 TiB | 4.95 ms; durable after 5.0 ms":                   "met",
		"bytes to log and checkpoints, 4 KiB random write, depth 32, full disk | 1.100 x over 2 checkpoints": "met",
		"bytes to log and checkpoints, 4 KiB random write, depth 1, full disk | 2.001 x over 2 checkpoints":  "**short**",
		"stall by a checkpoint, p99.9, measured inside | 10.50 ms":                                           "**short**",
		"size of a full pool overwritten at random | 1024 MiB":                                               "met",
	}
	for what, verdict := range want {
		if verdicts[what] != verdict {
			t.Errorf("%s: %q, not %q", what, verdicts[what], verdict)
		}
	}
	if t.Failed() {
		t.Logf("%+v", verdicts)
	}
	for _, a := range new(results).aims() {
		if a.verdict() != "not measured" {
			t.Errorf("%s without a measurement: %s", a.what, a.verdict())
		}
	}
}

// TestPage: the page begins with the targets, its tables are tables, and every section is there.
func TestPage(t *testing.T) {
	r := example()
	r.Failures["aged"] = "it did not work"
	text := r.markdown()
	for _, want := range []string{
		"**The section aged failed: it did not work**", "results.svg", "make bench", "2 cores (a processor)", "varve v1",
		"| 4 KiB random write, depth 32 | nbdkit file | at least 1.50 x | 1.50 x (1.50 to 1.70) | met |",
		"| 4 KiB random read, depth 1 | 50 (50 to 50) | 100 (100 to 200) | 170 (150 to 300) | 1.50 x (1.50 to 1.70) |",
		"0.10 / 2.00", "3.2", "varve 64", "1 snapshot |", "0.940 (0.900 to 0.990)", "1000 writes/s", "| 1.100 | 0.000 | 1.200 |", "1234 ms",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing", want)
		}
	}
	if strings.Index(text, "## Numbers to reach") > strings.Index(text, "## Servers side by side") {
		t.Error("the targets do not come first")
	}
	columns := 0
	for _, line := range strings.Split(text, "\n") {
		if !strings.HasPrefix(line, "|") {
			columns = 0
			continue
		}
		n := strings.Count(line, "|")
		if columns != 0 && n != columns {
			t.Errorf("%d columns, not %d: %s", n, columns, line)
		}
		columns = n
	}
	if t.Failed() {
		t.Log(text)
	}
}

// TestBusyMachineIsNamed: who reads figures from a machine that did other things is told.
func TestBusyMachineIsNamed(t *testing.T) {
	r := example()
	if strings.Contains(r.markdown(), "busy") {
		t.Error("an idle machine is called busy")
	}
	r.of("peers").Machine.Load = "1.20"
	if !strings.Contains(r.markdown(), "busy when this began (load 1.20 on 2 cores)") {
		t.Error("a busy machine is not called so")
	}
	if !strings.Contains(r.chart(), "the machine was busy") {
		t.Error("the chart of a busy machine does not say so")
	}
}

// TestPageOfNothing: what was not measured has no table and stops nothing.
func TestPageOfNothing(t *testing.T) {
	r := &results{Runs: map[string]*measuring{}, Failures: map[string]string{}}
	if text := r.markdown(); !strings.Contains(text, "not measured") || strings.Contains(text, "## Servers") {
		t.Error(text)
	}
	wellFormed(t, r.chart())
	only := example()
	only.Peers.Servers = []string{varvePlain}
	for _, l := range loads {
		only.Peers.Runs[l.name] = map[string][]figures{varvePlain: speeds(1)}
	}
	wellFormed(t, only.chart())
	if text := only.markdown(); strings.Contains(text, "NaN") || strings.Contains(text, "Inf") {
		t.Error(text)
	}
}

func wellFormed(t *testing.T, chart string) (elements map[string]int) {
	t.Helper()
	elements = map[string]int{}
	for d := xml.NewDecoder(strings.NewReader(chart)); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%v in %s", err, chart)
		}
		if e, ok := token.(xml.StartElement); ok {
			elements[e.Name.Local]++
		}
	}
	if strings.Contains(chart, "NaN") || strings.Contains(chart, "%!") {
		t.Error(chart)
	}
	return elements
}

// TestChart: a bar for each load and series, in well-formed XML.
func TestChart(t *testing.T) {
	r := example()
	chart := r.chart()
	elements := wellFormed(t, chart)
	if want := len(loads)*len(series) + len(series) + 1; elements["rect"] != want {
		t.Errorf("%d bars, squares and grounds, not %d", elements["rect"], want)
	}
	if !strings.Contains(chart, "1.50× · 170/s") {
		t.Error(chart)
	}
}

// TestResultsCanBeReadAgain: the page and the chart come out of the file as they came out of the run.
func TestResultsCanBeReadAgain(t *testing.T) {
	dir := t.TempDir()
	r, file := example(), filepath.Join(dir, "results.json")
	if err := r.write(file); err != nil {
		t.Fatal(err)
	}
	if err := run(t.Context(), settings{}, dir, file, ""); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"RESULTS.md": r.markdown(), "results.svg": r.chart()} {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, string(got)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	again, err := readResults(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(r, again, cmpopts.IgnoreUnexported(settings{}, techniquesFound{}, backupsFound{})); diff != "" {
		t.Error(diff)
	}
}

// TestDamagedResultsAreRefused: nothing is written from half a file.
func TestDamagedResultsAreRefused(t *testing.T) {
	dir := t.TempDir()
	p, err := json.Marshal(example())
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "results.json")
	if err := os.WriteFile(file, p[:len(p)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run(t.Context(), settings{}, dir, file, ""); err == nil {
		t.Error("half a file was rendered")
	}
	if _, err := os.Stat(filepath.Join(dir, "RESULTS.md")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a page was written: %v", err)
	}
	if err := run(t.Context(), settings{}, dir, "", "peers,paers"); err == nil || !strings.Contains(err.Error(), `"paers"`) {
		t.Errorf("a section that does not exist: %v", err)
	}
}

// TestSectionsOfTwoRunsAreTold: a section that was measured later says so, and the others keep what measured them.
func TestSectionsOfTwoRunsAreTold(t *testing.T) {
	r := example()
	r.Runs["aged"] = &measuring{Began: time.Date(2026, 2, 2, 3, 4, 0, 0, time.UTC), Seconds: 5, Command: "make bench BENCH=\"-only aged\"", Machine: machine{Programs: []string{"varve v2"}}}
	page := r.markdown()
	for _, want := range []string{
		"*peers, depth, pauses, written, reclaim*: measured 2026-01-02 03:04 UTC in 1m1s by", "Programs: varve v1.",
		"*aged*: measured 2026-02-02 03:04 UTC in 5s by", "Programs: varve v2.",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
}
