// Command bench measures varve beside what its users would otherwise take: qemu-nbd
// and nbdkit serving a raw file on the same disk. It writes bench/RESULTS.md.
//
// Vocabulary: a row is one kind of load; a round runs every row on every server, one
// right after the other, since on a machine that does other things as well only what
// was measured side by side can be compared. Servers begin each round with a fresh disk
// that is written to once from end to end. What is reported is the median of the rounds.
//
// A pause is how long an operation stops the writers of a pool, as the daemon tells;
// beside it stands the slowest write that a client saw meanwhile.
//
// Left out: several connections, several machines, disks with their caches off.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

// settings are what was asked for.
type settings struct {
	varve   string        // program
	dir     string        // scratch directory is made here
	rounds  int           // for each row
	runTime time.Duration // of one row on one server
	size    int64         // of the disks, bytes
	times   int           // that each operation is timed
}

func main() {
	var s settings
	out := flag.String("out", "bench/RESULTS.md", "file for the results")
	flag.StringVar(&s.varve, "varve", "bin/varve", "program to measure")
	flag.StringVar(&s.dir, "dir", os.TempDir(), "directory on the disk to measure on; needs some 16 GiB")
	flag.IntVar(&s.rounds, "rounds", 3, "rounds, of which the median counts")
	flag.DurationVar(&s.runTime, "time", 5*time.Second, "length of one row on one server")
	flag.Int64Var(&s.size, "size", 2<<30, "size of the disks in bytes")
	flag.IntVar(&s.times, "times", 100, "how often each operation is timed")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := measure(ctx, s, *out); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func measure(ctx context.Context, s settings, out string) error {
	varve, err := filepath.Abs(s.varve)
	if err != nil {
		return err
	}
	s.varve = varve
	r := report{settings: s, began: time.Now()}
	if r.machine, err = describeMachine(ctx, s); err != nil {
		return err
	}
	if r.rows, err = measureRows(ctx, s); err != nil {
		return err
	}
	if r.pauses, err = measurePauses(ctx, s); err != nil {
		return err
	}
	return os.WriteFile(out, []byte(r.markdown()), 0o644)
}

// say tells what is going on.
func say(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
