package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"varve/internal/block"
	nbd "varve/internal/nbd/client"
)

// techniqueExample has a row for each contestant but one, with figures that are easy to divide.
func techniqueExample() *techniquesFound {
	t := &techniquesFound{
		SizeBytes: 1 << 30, Blocks: 1 << 15, Rounds: map[string][]frozenRound{}, Stacked: map[string][]stacked{},
		Failures: map[string]string{redirectMirror: "there is no mirror"},
	}
	for i, name := range techniqueNames {
		for round := range 3 {
			x := float64(100 * (i + 1 + round))
			t.Rounds[name] = append(t.Rounds[name], frozenRound{
				Before: speeds(x)[0], Read: speeds(1000)[0], First: speeds(x / 2)[0], Rewrite: speeds(x * 0.9)[0], Reread: speeds(960)[0],
				Creation: creation{Usable: 1.25, Whole: 777, Copies: strings.HasPrefix(name, "clone")}, SnapSeq: speeds(10)[0], SnapRand: speeds(20)[0],
				Client: 1000, Written: int64(2100 + 50*round), Space: 64 << 20, RollbackMS: 4, CopiedBackMS: 400, DeleteMS: 1, FreedMS: 30,
			})
		}
	}
	delete(t.Rounds, redirectMirror)
	for i := range t.Rounds[filterRaw] {
		t.Rounds[filterQcow2][i].First, t.Rounds[filterRaw][i].First = speeds(20)[0], speeds(40)[0]
		t.Rounds[filterRaw][i].Written, t.Rounds[filterRaw][i].NoRollback = 7900, true
	}
	t.Rounds[redirectCopy] = []frozenRound{{Before: speeds(100)[0], First: speeds(60)[0]}} // and then it failed
	t.Stacked[inplaceCOW] = []stacked{{1, []float64{3}, speeds(50)[0]}, {10, []float64{3, 4, 5}, speeds(50)[0]}, {73, []float64{8, 9, 10}, speeds(49)[0]}}
	pairs := func(of ...float64) (out []pair) {
		for _, x := range of {
			out = append(out, pair{speeds(100)[0], speeds(x)[0]})
		}
		return out
	}
	t.Close = &closeFound{Deep: pairs(95, 91, 99), Rewrite: pairs(80, 89, 93), Read: pairs(97, 96, 95), Nbdkit: pairs(70, 71, 72)}
	t.Mirrors = []mirrorFound{{Inplace: true, Pairs: pairs(55, 60, 65), SplitMS: []float64{20}, PauseMS: []float64{2, 3}, SlowestMS: []float64{5}}}
	return t
}

func TestTechniqueAims(t *testing.T) {
	r := &results{Techniques: techniqueExample()}
	got := map[string]string{}
	for _, a := range r.techniqueAims() {
		got[a.what] = a.against + " | " + a.measured + " | " + a.verdict()
	}
	for what, want := range map[string]string{
		"cow: first writes after a snapshot":                    filterRaw + " | 3.75 x (2.50 to 5.00) | met",
		"cow: bytes to the disk for first writes":               "bytes from the client | 2.10 x; qemu's filter 2.10 x | met",
		"cow: first writes with 100 snapshots":                  "with one | 0.95 x (0.91 to 0.99) | met",
		"cow: rewrites":                                         "an inplace volume without snapshots | 0.89 x (0.80 to 0.93) | **short**",
		"cow: sequential read after random writes":              "a raw file as it was filled, served by varve | 0.96 x (0.95 to 0.97); 0.71 x nbdkit on the same file | met",
		"mirror, redirect: random writes":                       "a single leg |  | not measured",
		"mirror, inplace: random writes":                        "a single leg | 0.60 x (0.55 to 0.65) | met",
		"mirror, inplace: pause of writers at a split, largest": "32 random 4 KiB writes under way | 3.00 ms; slowest write meanwhile 5.00 ms | met",
	} {
		if got[what] != want {
			t.Errorf("%s: %q, not %q", what, got[what], want)
		}
	}
	for _, a := range new(results).techniqueAims() {
		if a.verdict() != "not measured" {
			t.Errorf("%s without a measurement: %s", a.what, a.verdict())
		}
	}
}

func TestTechniquesPage(t *testing.T) {
	p := new(page)
	(&results{Techniques: techniqueExample(), Runs: map[string]*measuring{"techniques": {Settings: settings{FrozenRounds: 3}}}}).renderTechniques(p)
	text := p.String()
	for _, want := range []string{
		"**mirror, redirect failed: there is no mirror**", "an eighth", "3 rounds",
		"| row | 1.2 |  | 200 | 100 (0.50 x) | 180 (0.90 x) | 2.10 x |", "| cow-copy, redirect |  |  | 100 | 60 (0.60 x) |  |  |", "| cow-copy, redirect |  |  |  |  |", "| clone, redirect | 1.2 | 777.0 |",
		"| cow | 1000 | 960 (0.96 x) | 10 | 20 | 64 |", "| qemu copy-before-write, raw | none | none | 1.0 | 30.0 |", "| cow | 3.0 ms, 50 writes/s | 4.0 ms, 50 writes/s | 9.0 ms, 49 writes/s (73) |",
		"mirror, inplace: random writes at 0.60 x (0.55 to 0.65) of a single leg's speed", "pause 2.50 (2.00 to 3.00)",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing", want)
		}
	}
	if strings.Contains(text, "| mirror, redirect |") || strings.Contains(text, "NaN") || strings.Contains(text, "%!") {
		t.Error("what was not measured has a row, or a figure is none")
	}
	if t.Failed() {
		t.Log(text)
	}
}

// TestFailureCostsOneRow: the first reason is told, without the scratch directory, and what the machine lacks is no failure of the run.
func TestFailureCostsOneRow(t *testing.T) {
	found := &techniquesFound{Failures: map[string]string{}}
	s := settings{dir: "/scratch/x"}
	found.fail(s, "cow", errors.New("read /scratch/x/disk: no\nmore"))
	found.fail(s, "cow", errors.New("later"))
	found.fail(s, xfsReflink, errAbsent)
	if found.Failures["cow"] != "read DIR/disk: no" || len(found.failed) != 1 || found.Failures[xfsReflink] == "" {
		t.Errorf("%+v", found)
	}
}

// TestSnapshotsAreWhatTheyAreTakenFor: what is measured freezes, and is rolled back to where that can be; and nothing
// of it stays behind.
func TestSnapshotsAreWhatTheyAreTakenFor(t *testing.T) {
	s := settings{Size: 64 << 20, dir: t.TempDir(), varve: filepath.Join(t.TempDir(), "varve"), techniques: regexp.MustCompile("")}
	if out, err := exec.Command("go", "build", "-o", s.varve, "../cmd/varve").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, c := range batches[0] {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			disk, err := c.start(ctx, s)
			if errors.Is(err, errAbsent) && os.Geteuid() != 0 {
				return // and the page says so
			}
			if err != nil {
				t.Fatal(err)
			}
			frozen := freezesAndRollsBack(ctx, disk)
			if err := errors.Join(frozen, disk.stop()); err != nil {
				t.Error(err)
			}
			mounts, err := os.ReadFile("/proc/self/mounts")
			if left, failed := os.ReadDir(s.dir); err != nil || failed != nil || len(left) > 0 || bytes.Contains(mounts, []byte(s.dir)) {
				t.Errorf("left behind: %v, %v, %v, or a mount", left, err, failed)
			}
		})
	}
}

func freezesAndRollsBack(ctx context.Context, disk frozen) error {
	before, err := firstBlock(ctx, disk.disk(), nil)
	if err != nil {
		return err
	}
	if _, err := disk.create(ctx, "s"); err != nil {
		return err
	}
	if _, err := firstBlock(ctx, disk.disk(), content); err != nil {
		return err
	}
	v, closed, err := disk.open(ctx, "s")
	if err != nil {
		return err
	}
	then, err := firstBlock(ctx, v, nil)
	if err := errors.Join(err, closed()); err != nil {
		return err
	}
	if !bytes.Equal(then, before) || bytes.Equal(then, content) {
		return errors.New("the snapshot does not hold what was there")
	}
	_, _, err = disk.rollback(ctx, "s")
	if err == nil {
		now, err := firstBlock(ctx, disk.disk(), nil)
		if err != nil || !bytes.Equal(now, before) {
			return errors.Join(err, errors.New("the volume does not hold what was rolled back to"))
		}
	} else if !errors.Is(err, errNone) {
		return err
	}
	if err := errors.Join(disk.remove(ctx, "s"), disk.settle(ctx)); err != nil {
		return err
	}
	if n, err := disk.written(); err != nil || n == 0 {
		return errors.Join(err, errors.New("nothing was written to the disk"))
	}
	return nil
}

// firstBlock reads the first block of a disk, after writing it if there is something to write.
func firstBlock(ctx context.Context, v *server, write []byte) ([]byte, error) {
	c, err := nbd.Dial(ctx, v.uri, nbd.Options{})
	if err != nil {
		return nil, err
	}
	if write != nil {
		op := &block.Op{Kind: block.OpWrite, Length: block.Size, Data: write}
		c.Submit(ctx, []*block.Op{op})
		return write, errors.Join(op.Err, c.Close())
	}
	p := make([]byte, block.Size)
	return p, errors.Join(c.ReadAt(ctx, p, 0), c.Close())
}
