// Command bench measures varve beside what its users would otherwise take: qemu-nbd
// and nbdkit on the same disk, for snapshots QEMU's copy-before-write filter and
// reflinks of XFS and btrfs, for backups restic, borg and kopia. It writes results.json, and from that RESULTS.md and
// results.svg.
//
// Vocabulary: a load is one kind of requests (loads.go); a run is one load on one
// server for a while; a round runs every load on every server, one right after the
// other, since on a machine that does other things as well only what was measured side
// by side can be compared. A pair is two runs of one load on two pools, the order
// swapped each time. Ratios are taken within a round or a pair; what is reported is their median.
//
// Before each run what earlier ones left is written out, and pools give back what
// nothing holds any more; so a run pays for its own work and no other's.
//
// A contestant is a snapshot technique, or what a peer has instead (techniques.go). All take the
// same steps: fill, write, freeze, write, read, roll back, delete.
//
// A keeper is a program that keeps backups of a disk image (backup_rounds.go). All take the same steps: back up, back up
// again, verify, restore.
//
// A pause is how long an operation stops the writers of a pool, as the daemon tells;
// beside it stands the slowest write that a client saw meanwhile.
//
// Left out: several machines, disks with their caches off, more load than one client makes.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

// settings are what was asked for.
type settings struct {
	Rounds   int           `json:"rounds"`
	Time     time.Duration `json:"time_ns"`
	Size     int64         `json:"size_bytes"`
	Pairs    int           `json:"pairs"`
	PairTime time.Duration `json:"pair_time_ns"`
	Times    int           `json:"times"`
	AgeTime  time.Duration `json:"age_time_ns"`

	FrozenRounds int   `json:"technique_rounds"`
	FrozenSize   int64 `json:"technique_size_bytes"`
	FrozenBlocks int64 `json:"technique_blocks"`

	BackupRounds  int   `json:"backup_rounds"`
	BackupContent int64 `json:"backup_content_bytes"`
	BackupDisk    int64 `json:"backup_disk_bytes"`
	BackupDays    int   `json:"backup_days"`

	varve    string // program
	dir      string // scratch directories are made here
	profiles string // directory for profiles of varve; none if empty
	sections []string
	loads    *regexp.Regexp
	servers  *regexp.Regexp

	techniques *regexp.Regexp
	keepers    *regexp.Regexp
}

const usage = `bench measures varve beside qemu-nbd and nbdkit, its snapshots beside those of qemu-storage-daemon, XFS and btrfs, and its
backups beside those of restic, borg and kopia, as far as these are installed.
With the defaults it takes about an hour and a half, 24 GiB of disk and 24 GiB of memory (so that all disks stay in the page cache),
and wants an idle machine. File systems are mounted through loop devices, which needs root; without, their rows say so.
Sections: %s.
Loads: %s.

`

func main() {
	s := settings{loads: regexp.MustCompile(""), servers: regexp.MustCompile(""), techniques: regexp.MustCompile(""), keepers: regexp.MustCompile("")}
	out := flag.String("out", "bench", "directory for results.json, RESULTS.md and results.svg")
	render := flag.String("render", "", "measure nothing: read this results.json and write the other two")
	only := flag.String("only", "", "sections to measure, separated by commas: the others stay as they are in results.json; without, all are measured")
	flag.StringVar(&s.varve, "varve", "bin/varve", "program to measure")
	flag.StringVar(&s.dir, "dir", os.TempDir(), "directory on the disk to measure on")
	flag.StringVar(&s.profiles, "profile", "", "directory for a CPU profile of varve during each of its runs of the section peers; slows them a little")
	flag.IntVar(&s.Rounds, "rounds", 5, "rounds of the section peers")
	flag.DurationVar(&s.Time, "time", 3*time.Second, "length of a run of the section peers")
	flag.Int64Var(&s.Size, "size", 2<<30, "size of the disks in bytes")
	flag.IntVar(&s.Pairs, "pairs", 9, "pairs of runs in the sections depth and aged")
	flag.DurationVar(&s.PairTime, "pair-time", time.Second, "length of a run of these")
	flag.IntVar(&s.Times, "times", 200, "how often each operation of the section pauses is timed")
	flag.DurationVar(&s.AgeTime, "age-time", time.Minute, "length of the random overwriting of the section reclaim")
	flag.IntVar(&s.FrozenRounds, "technique-rounds", 3, "rounds of the section techniques")
	flag.Int64Var(&s.FrozenSize, "technique-size", 1<<29, "size of its disks in bytes")
	flag.Int64Var(&s.FrozenBlocks, "technique-blocks", 1<<14, "blocks of 4 KiB that a run of it writes, none twice")
	flag.TextVar(s.techniques, "techniques", s.techniques, "regular expression of the techniques and peers of it; without, all")
	flag.IntVar(&s.BackupRounds, "backup-rounds", 3, "rounds of the section backups")
	flag.Int64Var(&s.BackupContent, "backup-content", 4300<<20, "bytes of programs and libraries in the image that it backs up, which is 10/7 as large")
	flag.Int64Var(&s.BackupDisk, "backup-disk", 1<<30, "size in bytes of the disk that it backs up again and again")
	flag.IntVar(&s.BackupDays, "backup-days", 100, "incremental backups of it, with one block in a hundred changed before each")
	flag.TextVar(s.keepers, "keepers", s.keepers, "regular expression of those whose backups it compares, "+strings.Join(keeperNames(), ", ")+"; without, all")
	flag.TextVar(s.loads, "loads", s.loads, "regular expression of the loads to run; without, all")
	flag.TextVar(s.servers, "servers", s.servers, "regular expression of the servers of the section peers; without, all")
	flag.Usage = func() {
		fmt.Fprintf(flag.CommandLine.Output(), usage, strings.Join(sectionNames(), ", "), strings.Join(loadNames(), ", "))
		flag.PrintDefaults()
	}
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, s, *out, *render, *only); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, s settings, out, render, only string) error {
	if render != "" {
		found, err := readResults(render)
		if err != nil {
			return err
		}
		return found.writeReport(out)
	}
	s.sections = sectionNames()
	if only != "" {
		s.sections = strings.Split(only, ",")
	}
	for _, name := range s.sections {
		if !slices.Contains(sectionNames(), name) {
			return fmt.Errorf("there is no section %q, but %s", name, strings.Join(sectionNames(), ", "))
		}
	}
	var err error
	if s.varve, err = filepath.Abs(s.varve); err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	found := &results{Runs: map[string]*measuring{}, Failures: map[string]string{}}
	if file := filepath.Join(out, "results.json"); only != "" {
		// What is not measured now stays as it was found before.
		if found, err = readResults(file); errors.Is(err, fs.ErrNotExist) {
			found, err = &results{Runs: map[string]*measuring{}, Failures: map[string]string{}}, nil
		}
		if err != nil {
			return err
		}
	}
	return measure(ctx, s, found, out)
}

// section is a part of the measurement that stands by itself.
type section struct {
	name    string
	measure func(context.Context, settings, *results) error
}

var sections = []section{
	{"peers", measurePeers},
	{"depth", measureDepth},
	{"pauses", measurePauses},
	{"written", measureWritten},
	{"reclaim", measureReclaim},
	{"aged", measureAged},
	{"techniques", measureTechniques},
	{"backups", measureBackups},
}

func sectionNames() (names []string) {
	for _, s := range sections {
		names = append(names, s.name)
	}
	return names
}

// measure runs the sections. What is found is written after each: a failure costs one section.
func measure(ctx context.Context, s settings, found *results, out string) error {
	now := &measuring{Began: began, Command: command(), Settings: s}
	var err error
	if now.Machine, err = describeMachine(ctx, s); err != nil {
		return err
	}
	var failed error
	for _, section := range sections {
		if !slices.Contains(s.sections, section.name) {
			continue
		}
		delete(found.Failures, section.name)
		err := section.measure(ctx, s, found)
		if ctx.Err() != nil {
			return errors.Join(ctx.Err(), failed) // and what there was before stays
		}
		if err != nil {
			say("%s: failed: %v", section.name, err)
			found.Failures[section.name] = strings.ReplaceAll(firstLine(err.Error()), s.dir, "DIR")
			failed = errors.Join(failed, fmt.Errorf("%s: %w", section.name, err))
		}
		now.Seconds = time.Since(began).Seconds()
		found.Runs[section.name] = now
		if err := errors.Join(found.write(filepath.Join(out, "results.json")), found.writeReport(out)); err != nil {
			return errors.Join(err, failed)
		}
	}
	return failed
}

// command is how to do the same again; where the files lie is nobody's concern.
func command() string {
	var flags []string
	flag.Visit(func(f *flag.Flag) {
		switch f.Name {
		case "dir", "out", "varve", "profile":
		default:
			flags = append(flags, "-"+f.Name+" "+quoted(f.Value.String()))
		}
	})
	if len(flags) == 0 {
		return "make bench"
	}
	return `make bench BENCH="` + strings.Join(flags, " ") + `"`
}

// quoted is a value as make hands it to a shell.
func quoted(value string) string {
	if plain.MatchString(value) {
		return value
	}
	return "'" + strings.ReplaceAll(value, "$", "$$") + "'"
}

var plain = regexp.MustCompile(`^[-\w.,/=]+$`)

var began = time.Now()

// say tells what is going on, and when.
func say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%6s  %s\n", time.Since(began).Truncate(time.Second), fmt.Sprintf(format, args...))
}

func firstLine(s string) string {
	first, _, _ := strings.Cut(s, "\n")
	return first
}
