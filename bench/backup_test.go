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
)

// backupExample has three keepers, two rounds of each, and all other parts, with figures that are easy to divide.
func backupExample() *backupsFound {
	b := &backupsFound{
		Image:  imageFound{SizeBytes: 6 << 30, ContentBytes: 4 << 30, Files: 1234},
		Rounds: map[string][]backupRound{}, Failures: map[string]string{keptByKopia: "kopia is not installed"},
	}
	seconds := func(x float64, told *told) spent { return spent{Seconds: x, CPU: 2 * x, RSS: 100 << 20, Told: told} }
	add := func(name string, first, restore float64, repository int64, told *told) {
		b.Rounds[name] = append(b.Rounds[name], backupRound{
			First: seconds(first, told), Repository: repository, Again: seconds(3, told), Verify: seconds(5, nil), Restore: seconds(restore, nil),
		})
	}
	full := &told{Type: "full", Read: 4 << 30, Stored: 1100 << 20, Parity: 30 << 20, Objects: 40, Requests: 60}
	for round := range 2 {
		x := float64(round)
		add(keptByDaemon, 10+x, 8, 1080<<20, full)
		add(keptAlone, 20, 8+x, 1090<<20, full)
		add(keptByRestic, 40, 10, 1000<<20, nil)
		add(keptByBorg, 22, 16, 1100<<20, nil)
	}
	b.Rounds[keptByDaemon][1].Again.RSS = 301 << 20
	b.Rounds[keptByBorg][0].Restore = spent{} // it did not get there
	none := &told{Type: "incremental", Read: 256 << 10, Stored: 4 << 10, Objects: 3, Requests: 9}
	b.Idle = []idleFound{
		{What: "adopted file, full", SizeBytes: 1 << 30, First: seconds(5, full), Runs: []spent{seconds(0.1, none), seconds(0.2, none), seconds(0.4, none)}},
		{What: "in the pool", SizeBytes: hugeSize, First: seconds(2, full), Runs: []spent{seconds(0.3, none)}},
	}
	b.Days = &daysFound{Daemon: true, SizeBytes: 1 << 30, First: seconds(5, full), Busy: day{Changed: 40 << 20, Grew: 60 << 20, Took: seconds(0.9, none)}}
	for n := range 100 {
		grew := int64(30 << 20)
		if n == 0 {
			grew = 11 << 20
		}
		b.Days.Days = append(b.Days.Days, day{Changed: 10 << 20, Grew: grew, Took: seconds(0.25, none)})
	}
	for _, x := range []float64{1, 1.1, 1.3} {
		b.Days.LastRestores = append(b.Days.LastRestores, seconds(x, none))
		b.Days.FreshRestores = append(b.Days.FreshRestores, seconds(1, none))
	}
	b.Line = &lineFound{
		DelayMS: 20, Near: []lineRound{{seconds(16, full), seconds(8, none)}, {seconds(16, full), seconds(8, none)}},
		Far: []lineRound{{seconds(20, full), seconds(16, none)}, {seconds(20, full), seconds(32, none)}},
	}
	return b
}

func TestBackupAims(t *testing.T) {
	r := &results{Backups: backupExample()}
	got := map[string]string{}
	for _, a := range r.backupAims() {
		got[a.what] = a.against + " | " + a.measured + " | " + a.verdict()
	}
	for what, want := range map[string]string{
		"first backup of an image, varve":                          "borg | 2.10 x (2.00 to 2.20) | met",
		"restore of an image, varve":                               "restic | 1.25 x (1.25 to 1.25) | **short**",
		"backups: most memory in any step, varve":                  "an image of any size | 301 MiB | **short**",
		"first backup of an image, varve without a daemon":         "borg | 1.10 x (1.10 to 1.10) | **short**",
		"backups: most memory in any step, varve without a daemon": "an image of any size | 100 MiB | met",
		"repository after the first backup, without parity":        "restic | 1.050 x; with parity 1.080 x | met",
		"unchanged backup at the command line, 1 GiB":              "the daemon has the repository open | 0.200 (0.100 to 0.400) s; 3 objects, 9 requests | met",
		"unchanged backup at the command line, 64 TiB":             "the daemon has the repository open | 0.300 (0.300 to 0.300) s; 3 objects, 9 requests | **short**",
		"stored for 1 % of blocks changed at random":               "changed bytes | 1.100 x: 11.00 MiB for 10.00 MiB | met",
		"stored over 30 such days":                                 "changed bytes | 2.94 x | met",
		"time of an incremental with 4 times the changes":          "one of the days before | 3.60 x: 0.90 s for 0.25 s | met",
		"time to restore the 100th incremental":                    "a full of the same content | 1.10 x (1.00 to 1.30) | met",
		"first backup, S3 with 20 ms added each way":               "no delay | 0.80 x (0.80 to 0.80) | met",
		"restore, S3 with 20 ms added each way":                    "no delay | 0.38 x (0.25 to 0.50) | **short**",
	} {
		if got[what] != want {
			t.Errorf("%s: %q, not %q", what, got[what], want)
		}
	}
	r.Backups.Days.Days = r.Backups.Days.Days[:29]
	for _, a := range append(new(results).backupAims(), r.backupAims()[10:13]...) {
		if strings.HasPrefix(a.what, "time of an incremental") && a.measured != "" {
			continue
		}
		if a.verdict() != "not measured" {
			t.Errorf("%s without a measurement: %s", a.what, a.verdict())
		}
	}
}

func TestBackupsPage(t *testing.T) {
	p := new(page)
	(&results{Backups: backupExample(), Runs: map[string]*measuring{"backups": {Settings: settings{BackupRounds: 2}}}}).renderBackups(p)
	text := p.String()
	for _, want := range []string{
		"image of 6144 MiB, an ext4 file system with 1234 files", "2 rounds", "**kopia: kopia is not installed**",
		"| varve | 10.5 (10.0 to 11.0) | 3.0 (3.0 to 3.0) | 5.0 (5.0 to 5.0) | 8.0 (8.0 to 8.0) | 512 (512 to 512) |",
		"| borg | 22.0 (22.0 to 22.0) | 3.0 (3.0 to 3.0) | 5.0 (5.0 to 5.0) | 16.0 (16.0 to 16.0) | 256 (256 to 256) |",
		"| varve | 301 | 21.0 (20.0 to 22.0) | 16.0 (16.0 to 16.0) | 1080 | 30.0 | 40 | 60 |", "| restic | 100 | 80.0 (80.0 to 80.0) | 20.0 (20.0 to 20.0) | 1000 |  |  |  |",
		"| 64 TiB | in the pool | 2.00 | 0.300 (0.300 to 0.300) | 256 | 3 | 9 | 4 |", "adopted by a daemon",
		"| 1 day | 1.10 | 0.25", "| 30 days | 2.94 |", "| 100 days | 2.98 |", "| another, with 4 times the changes | 1.50 | 0.90 | 3 | 9 |", "1.10 (1.00 to 1.30) and 1.00 (1.00 to 1.00) s",
		"| 0 | 256 (256 to 256) | 512 (512 to 512) | 15 | 56 | 2 |", "| 20 | 205 (205 to 205) | 192 (128 to 256) |",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing", want)
		}
	}
	if strings.Contains(text, "| kopia |") || strings.Contains(text, "NaN") || strings.Contains(text, "Inf") || strings.Contains(text, "%!") {
		t.Error("what was not measured has a row, or a figure is none")
	}
	if t.Failed() {
		t.Log(text)
	}
	nothing := new(page)
	(&results{Backups: &backupsFound{}}).renderBackups(nothing)
	if strings.Contains(nothing.String(), "|") {
		t.Errorf("tables of nothing: %s", nothing)
	}
}

// smallBackups are settings of runs of a second.
func smallBackups(t *testing.T) settings {
	t.Helper()
	s := settings{
		dir: t.TempDir(), varve: filepath.Join(t.TempDir(), "varve"), keepers: regexp.MustCompile(keptAlone),
		BackupRounds: 1, BackupContent: 4 << 20, BackupDisk: 8 << 20, BackupDays: 2,
	}
	if out, err := exec.Command("go", "build", "-o", s.varve, "../cmd/varve").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return s
}

// TestBackupsAreWhatTheyAreTakenFor: an image is backed up, verified and restored as it was, days store what changed, lines are slow and
// slower; and nothing stays behind.
func TestBackupsAreWhatTheyAreTakenFor(t *testing.T) {
	s := smallBackups(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	r := new(results)
	if err := measureBackups(ctx, s, r); err != nil {
		t.Fatal(err)
	}
	b := r.Backups
	if b.Image.ContentBytes < 3<<20 || b.Image.SizeBytes < b.Image.ContentBytes {
		t.Errorf("the image: %+v", b.Image)
	}
	for name, all := range b.Rounds {
		f := all[0]
		if name != keptAlone || f.First.Told.Read < b.Image.ContentBytes || f.First.RSS == 0 || f.First.CPU == 0 || f.Repository < f.First.Told.Stored || f.Restore.Seconds == 0 {
			t.Errorf("%s: %+v", name, f)
		}
	}
	if d := b.Days; len(d.Days) != 2 || d.Days[1].Changed != 20*4096 || d.Days[1].Grew < d.Days[1].Changed || d.Busy.Grew < 4*d.Days[1].Changed || len(d.LastRestores) != restorePairs {
		t.Errorf("days: %+v", d)
	}
	if l := b.Line; len(l.Near) != 1 || l.Far[0].Backup.Seconds < 4*lineDelay.Seconds() || l.Far[0].Restore.Seconds < 4*lineDelay.Seconds() {
		t.Errorf("lines: %+v", l)
	}
	if left, err := os.ReadDir(s.dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestPeersAreRunByTheirRecipe: with cp as the program, which keeps what it is given, and once with another that brings back something else.
func TestPeersAreRunByTheirRecipe(t *testing.T) {
	s := settings{dir: t.TempDir()}
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, content, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	good := recipe{
		program: "sh", env: []string{"FROM={image}"}, prepare: [][]string{{"-c", "mkdir {repo}"}}, first: []string{"-c", `cp "$FROM" {repo}/disk`},
		restore: []string{"-c", "cp {repo}/disk {out}/{latest}"}, restored: "{out}/b", list: []string{"-c", `echo '[{"id": "a"}, {"id": "b"}]'`},
	}
	bad := good
	bad.restore = []string{"-c", "tr a b < {repo}/disk > {out}/{latest}"}
	for _, c := range []struct {
		recipe
		want error
	}{{good, nil}, {bad, errDiffers}} {
		r := c.recipe
		k, err := r.start(ctx, s, image)
		if err != nil {
			t.Fatal(err)
		}
		running := &runningKeeper{keeper: k}
		if running.found.First, err = k.first(ctx); err != nil {
			t.Fatal(err)
		}
		if n, err := treeSize(k.repository()); err != nil || n != int64(len(content)) {
			t.Errorf("the repository has %d bytes, %v", n, err)
		}
		if err := restoreAndCompare(ctx, s.dir, running); !errors.Is(err, c.want) {
			t.Errorf("%q: %v", r.restore, err)
		}
		if err := k.stop(); err != nil {
			t.Error(err)
		}
	}
	if _, err := (recipe{program: "there is none"}).start(ctx, s, image); !errors.Is(err, errAbsent) {
		t.Errorf("a program that is not there: %v", err)
	}
	if left, err := os.ReadDir(s.dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestHostEndsWhatWasBegun: also what was begun before a failure, in the reverse order.
func TestHostEndsWhatWasBegun(t *testing.T) {
	dir, ended := t.TempDir(), ""
	err := hosted(dir, func(h *host) error {
		made := h.TempDir()
		h.Cleanup(func() { ended += "first" })
		h.Cleanup(func() {
			_, err := os.Stat(made)
			if ended += "second "; err != nil || !h.Failed() {
				t.Errorf("ended after its directory, or as a success: %v", err)
			}
		})
		h.Fatalf("the reason is %d", 7)
		return nil
	})
	if err == nil || err.Error() != "the reason is 7" || ended != "second first" {
		t.Errorf("%v, ended: %q", err, ended)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestCopiesAreExact: of any length, and with holes where there were zeros.
func TestCopiesAreExact(t *testing.T) {
	dir := t.TempDir()
	from := filepath.Join(dir, "from")
	p := make([]byte, 1<<20+7)
	copy(p[300<<10:], content)
	if err := os.WriteFile(from, p, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, n := range map[string]int64{"all": -1, "some": 301<<10 + 1, "none": 0, "more": 2 << 20} {
		to := filepath.Join(dir, name)
		want := p
		if n >= 0 {
			want = p[:min(n, int64(len(p)))]
		}
		copied, err := copyFile(from, to, n)
		got, failed := os.ReadFile(to)
		if err != nil || failed != nil || copied != int64(len(want)) || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v, %v", name, copied, err, failed)
		}
		if err := sameContent(from, to); (err == nil) != (len(want) == len(p)) {
			t.Errorf("%s: compared: %v", name, err)
		}
	}
}
