package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// row is one kind of load.
type row struct {
	name   string
	rw     string // of fio
	block  string
	depth  int
	fsync  bool    // after each write
	target float64 // times qemu-nbd's figure that varve means to reach
}

var rows = []row{
	{"1 MiB sequential write, depth 16", "write", "1M", 16, false, 1},
	{"1 MiB sequential read, depth 16", "read", "1M", 16, false, 1},
	{"4 KiB random read, depth 32", "randread", "4k", 32, false, 1},
	{"4 KiB random write, depth 32", "randwrite", "4k", 32, false, 2},
	{"64 KiB random read, depth 16", "randread", "64k", 16, false, 1},
	{"4 KiB random write, depth 1", "randwrite", "4k", 1, false, 0},
	{"4 KiB random write and fsync, depth 1", "randwrite", "4k", 1, true, 0},
}

// figures are what one server did on one row, in each round.
type figures struct {
	perSecond []float64 // requests
	mib       []float64 // MiB per second
	p99       []float64 // latency, microseconds
}

// measureRows returns figures by row and kind.
func measureRows(ctx context.Context, s settings) ([][]figures, error) {
	all := make([][]figures, len(rows))
	for i := range all {
		all[i] = make([]figures, len(kinds))
	}
	for round := range s.rounds {
		if err := measureRound(ctx, s, round, all); err != nil {
			return nil, err
		}
	}
	return all, nil
}

func measureRound(ctx context.Context, s settings, round int, all [][]figures) (err error) {
	servers := make([]*server, len(kinds))
	for i, k := range kinds {
		dir, err := os.MkdirTemp(s.dir, "varve-bench")
		if err != nil {
			return err
		}
		v, err := k.start(ctx, s, dir)
		if err != nil {
			return errors.Join(err, os.RemoveAll(dir))
		}
		defer func() { err = errors.Join(err, v.stop()) }()
		servers[i] = v
		say("round %d: %s: fill its disk", round+1, k.name)
		if _, err := fio(ctx, v.uri, s, "--rw=write", "--bs=1M", "--iodepth=16"); err != nil {
			return err
		}
	}
	for i, r := range rows {
		for n := range kinds {
			// Each goes first as often as the others.
			k := (n + round) % len(kinds)
			if err := syncFS(s.dir); err != nil {
				return err
			}
			options := []string{
				"--rw=" + r.rw, "--bs=" + r.block, "--iodepth=" + strconv.Itoa(r.depth),
				"--time_based", "--runtime=" + strconv.Itoa(max(1, int(s.runTime.Seconds()))),
			}
			if r.fsync {
				options = append(options, "--fsync=1")
			}
			job, err := fio(ctx, servers[k].uri, s, options...)
			if err != nil {
				return err
			}
			f := &all[i][k]
			f.perSecond = append(f.perSecond, job.IOPS)
			f.mib = append(f.mib, job.Bandwidth/1024)
			f.p99 = append(f.p99, job.Latency.Percentile["99.000000"]/1000)
			say("round %d: %s: %s: %.0f/s, %.0f MiB/s", round+1, r.name, kinds[k].name, job.IOPS, job.Bandwidth/1024)
		}
	}
	return nil
}

// direction is a part of fio's report.
type direction struct {
	IOPS      float64 `json:"iops"`
	Bandwidth float64 `json:"bw"` // KiB per second
	Latency   struct {
		Percentile map[string]float64 `json:"percentile"` // ns
	} `json:"clat_ns"`
}

// fio runs one job on a disk and returns what it did.
func fio(ctx context.Context, uri string, s settings, options ...string) (direction, error) {
	out, err := output(ctx, "fio", append([]string{
		"--name=bench", "--ioengine=nbd", "--uri=" + uri, "--size=" + strconv.FormatInt(s.size, 10),
		"--norandommap", "--output-format=json",
	}, options...)...)
	if err != nil {
		return direction{}, err
	}
	// It may say something before its report.
	if i := bytes.IndexByte(out, '{'); i > 0 {
		out = out[i:]
	}
	var found struct {
		Jobs []struct {
			Read  direction `json:"read"`
			Write direction `json:"write"`
		} `json:"jobs"`
	}
	if err := json.Unmarshal(out, &found); err != nil || len(found.Jobs) != 1 {
		return direction{}, fmt.Errorf("fio's report: %w: %.200s", err, out)
	}
	if job := found.Jobs[0]; job.Read.IOPS > 0 {
		return job.Read, nil
	}
	return found.Jobs[0].Write, nil
}

// syncFS writes out what earlier loads left in the page cache, so that it is not in the next one's way.
func syncFS(dir string) error {
	f, err := os.Open(filepath.Clean(dir))
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}

func median(of []float64) float64 { return quantile(of, 0.5) }

// quantile is the smallest value that q of all values do not exceed; 0 of none.
func quantile(of []float64, q float64) float64 {
	if len(of) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(of))
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}
