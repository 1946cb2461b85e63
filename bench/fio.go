package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
)

// job is fio's report of one job.
type job struct {
	Read  direction `json:"read"`
	Write direction `json:"write"`
	Sync  struct {
		Latency latency `json:"lat_ns"`
	} `json:"sync"`
}

type direction struct {
	IOPS      float64 `json:"iops"`
	Bandwidth float64 `json:"bw"` // KiB per second
	Total     int64   `json:"total_ios"`
	Bytes     int64   `json:"io_bytes"`
	Latency   latency `json:"clat_ns"`
}

type latency struct {
	Max        float64            `json:"max"`
	Percentile map[string]float64 `json:"percentile"`
}

// fio runs one job on a disk, in threads: what it forks would outlive it when it is ended.
func fio(ctx context.Context, uri string, size int64, options ...string) (job, error) {
	out, err := output(ctx, "fio", append([]string{
		"--name=bench", "--thread", "--ioengine=nbd", "--uri=" + uri, "--size=" + strconv.FormatInt(size, 10), "--output-format=json",
	}, options...)...)
	if err != nil {
		return job{}, err
	}
	return parseFio(out)
}

func parseFio(out []byte) (job, error) {
	// It may say something before its report.
	if i := bytes.IndexByte(out, '{'); i > 0 {
		out = out[i:]
	}
	var found struct {
		Jobs []job `json:"jobs"`
	}
	if err := json.Unmarshal(out, &found); err != nil {
		return job{}, fmt.Errorf("fio's report: %w: %.200s", err, out)
	}
	if len(found.Jobs) != 1 {
		return job{}, fmt.Errorf("fio's report has %d jobs: %.200s", len(found.Jobs), out)
	}
	return found.Jobs[0], nil
}

// fill writes the whole disk from its beginning to its end, and has it synced.
func fill(ctx context.Context, v *server, size int64) (err error) {
	v.filled, err = runLoad(ctx, v, size, freshWrite, limits{time: longestRun, bytes: size})
	return err
}

// warm reads the whole disk, so that it is in the page cache and its maps are known.
func warm(ctx context.Context, v *server, size int64) error {
	_, err := fio(ctx, v.uri, size, "--rw=read", "--bs=1M", "--iodepth=16")
	return err
}

// output runs a program and returns what it prints.
func output(ctx context.Context, name string, args ...string) ([]byte, error) {
	out, err := exec.CommandContext(ctx, name, args...).Output()
	var ended *exec.ExitError
	if errors.As(err, &ended) {
		return nil, fmt.Errorf("%s %.300q: %w: %s", filepath.Base(name), args, err, ended.Stderr)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Base(name), err)
	}
	return out, nil
}
