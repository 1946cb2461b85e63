package main

import (
	"context"
	"regexp"
	"strconv"
	"time"
)

// load is one kind of requests.
type load struct {
	name        string // for flags and results.json
	title       string
	rw          string // of fio
	block       string
	depth       int
	connections int
	fsync       bool // after each write
}

// Those that read come first, so that they find the disk as it was filled. Between those that
// write, random ones come first: they find no disk that was just written in order.
var loads = []load{
	{"seq-read-1m", "1 MiB sequential read, depth 16", "read", "1M", 16, 1, false},
	{"rand-read-64k", "64 KiB random read, depth 16", "randread", "64k", 16, 1, false},
	{"rand-read-4k-qd1", "4 KiB random read, depth 1", "randread", "4k", 1, 1, false},
	{"rand-read-4k-qd32", "4 KiB random read, depth 32", "randread", "4k", 32, 1, false},
	{"rand-read-4k-4x8", "4 KiB random read, 4 connections of depth 8", "randread", "4k", 8, 4, false},
	{"rand-write-4k-qd1", "4 KiB random write, depth 1", "randwrite", "4k", 1, 1, false},
	{"fsync-4k-qd1", "4 KiB random write + fsync, depth 1", "randwrite", "4k", 1, 1, true},
	{"rand-write-4k-qd32", "4 KiB random write, depth 32", "randwrite", "4k", 32, 1, false},
	{"rand-write-4k-4x8", "4 KiB random write, 4 connections of depth 8", "randwrite", "4k", 8, 4, false},
	{"seq-write-1m", "1 MiB sequential write, depth 16", "write", "1M", 16, 1, false},
}

// freshWrite fills a new disk.
var freshWrite = load{"fresh-write-1m", "1 MiB sequential write to a new disk and a final fsync, depth 16", "write", "1M", 16, 1, false}

// shown are the loads that servers are compared on, in the order of the tables.
var shown = append([]load{freshWrite}, loads...)

func loadNames() (names []string) {
	for _, l := range shown {
		names = append(names, l.name)
	}
	return names
}

// loadNamed returns the load of that name, which is one of ours.
func loadNamed(name string) load {
	for _, l := range loads {
		if l.name == name {
			return l
		}
	}
	panic("no load " + name)
}

func (l load) writes() bool { return l.rw == "write" || l.rw == "randwrite" }

// inMiB tells whether the load's speed is given in MiB/s, and not in requests.
func (l load) inMiB() bool { return l.block == "1M" }

func chosen(all []load, by *regexp.Regexp) (some []load) {
	for _, l := range all {
		if by.MatchString(l.name) {
			some = append(some, l)
		}
	}
	return some
}

// figures are what one run came to.
type figures struct {
	PerSecond float64 `json:"per_s"`  // requests
	MiB       float64 `json:"mib_s"`  // MiB per second
	P50       float64 `json:"p50_us"` // of a request; of the fsync where each write has one
	P99       float64 `json:"p99_us"`
	Max       float64 `json:"max_us"`
	CPU       float64 `json:"cpu_us"` // user and system time of the server per request
}

func (f figures) speed(l load) float64 {
	if l.inMiB() {
		return f.MiB
	}
	return f.PerSecond
}

// longestRun bounds a run whose end is a number of bytes.
const longestRun = time.Hour

// limits of one run; 0 is none.
type limits struct {
	time  time.Duration
	bytes int64
	seed  int  // of the places, the same for all that are compared
	once  bool // no place twice
}

// runLoad runs a load on a server that has settled.
func runLoad(ctx context.Context, v *server, size int64, l load, by limits) (figures, error) {
	options := []string{
		"--rw=" + l.rw, "--bs=" + l.block, "--iodepth=" + strconv.Itoa(l.depth),
		"--runtime=" + strconv.FormatInt(by.time.Milliseconds(), 10) + "ms", "--randseed=" + strconv.Itoa(by.seed+1),
	}
	if !by.once {
		options = append(options, "--norandommap")
	}
	if by.bytes > 0 {
		options = append(options, "--io_size="+strconv.FormatInt(by.bytes, 10))
	} else {
		options = append(options, "--time_based")
	}
	if l.connections > 1 {
		options = append(options, "--numjobs="+strconv.Itoa(l.connections), "--group_reporting")
	}
	if l.fsync {
		options = append(options, "--fsync=1")
	}
	if l.name == freshWrite.name {
		options = append(options, "--end_fsync=1")
	}
	before, err := v.cpuTime()
	if err != nil {
		return figures{}, err
	}
	v.dirty = v.dirty || l.writes()
	job, err := fio(ctx, v.uri, size, options...)
	if err != nil {
		return figures{}, err
	}
	after, err := v.cpuTime()
	if err != nil {
		return figures{}, err
	}
	requests := job.Read
	if l.writes() {
		requests = job.Write
	}
	latency := requests.Latency
	if l.fsync {
		latency = job.Sync.Latency
	}
	return figures{
		PerSecond: round3(requests.IOPS), MiB: round3(requests.Bandwidth / 1024),
		P50: round3(latency.Percentile["50.000000"] / 1000), P99: round3(latency.Percentile["99.000000"] / 1000), Max: round3(latency.Max / 1000),
		CPU: round3(float64((after - before).Microseconds()) / max(float64(requests.Total), 1)),
	}, nil
}
