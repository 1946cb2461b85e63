package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
)

// Names of the servers, as results.json and the tables have them.
const (
	qemuRaw    = "qemu-nbd raw"
	nbdkitFile = "nbdkit file"
	qemuQcow2  = "qemu-nbd qcow2"
	chain10    = "qcow2 chain of 10"
	chain100   = "qcow2 chain of 100"
	varvePlain = "varve"
	varve100   = "varve, 100 snapshots"
)

// peer is a server to compare.
type peer struct {
	name string
	// start serves a disk that was written to once from end to end, and then changed before each
	// snapshot or layer. The server owns a directory for its files.
	start func(context.Context, settings, *layers) (*server, error)
}

// Those that serve a raw file are the yardstick.
var peers = []peer{
	{qemuRaw, startQemuRaw},
	{nbdkitFile, startNbdkit},
	{qemuQcow2, startQemuQcow2},
	{chain10, func(ctx context.Context, s settings, l *layers) (*server, error) { return l.serve(ctx, s, 10) }},
	{chain100, func(ctx context.Context, s settings, l *layers) (*server, error) { return l.serve(ctx, s, 100) }},
	{varvePlain, func(ctx context.Context, s settings, _ *layers) (*server, error) { return startVolume(ctx, s, s.Size) }},
	{varve100, startVarve100},
}

func startQemuRaw(ctx context.Context, s settings, _ *layers) (*server, error) {
	return startFilled(ctx, s, func(dir string) (*server, error) {
		disk := filepath.Join(dir, "disk")
		if err := rawDisk(disk, s.Size); err != nil {
			return nil, err
		}
		return startQemu(ctx, dir, "raw", disk)
	})
}

func startNbdkit(ctx context.Context, s settings, _ *layers) (*server, error) {
	return startFilled(ctx, s, func(dir string) (*server, error) {
		disk := filepath.Join(dir, "disk")
		if err := rawDisk(disk, s.Size); err != nil {
			return nil, err
		}
		return nbdkit(ctx, dir, disk)
	})
}

func nbdkit(ctx context.Context, dir, disk string, more ...string) (*server, error) {
	socket, ready := filepath.Join(dir, "sock"), filepath.Join(dir, "pid")
	args := append([]string{"--foreground", "--unix=" + socket, "--pidfile=" + ready}, more...)
	return start(ctx, dir, socketURI(socket), ready, "nbdkit", append(args, "file", disk)...)
}

// serveReadOnly has nbdkit serve a file that belongs to another server.
func serveReadOnly(ctx context.Context, s settings, disk string) (*server, error) {
	dir, err := os.MkdirTemp(s.dir, "varve-bench")
	if err != nil {
		return nil, err
	}
	v, err := nbdkit(ctx, dir, disk, "--readonly")
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return v, nil
}

func startQemuQcow2(ctx context.Context, s settings, _ *layers) (*server, error) {
	return startFilled(ctx, s, func(dir string) (*server, error) {
		disk := filepath.Join(dir, "disk")
		if err := createQcow2(ctx, disk, s.Size); err != nil {
			return nil, err
		}
		return startQemu(ctx, dir, "qcow2", disk)
	})
}

func startVarve100(ctx context.Context, s settings, _ *layers) (*server, error) {
	v, err := startVolume(ctx, s, s.Size)
	if err != nil {
		return nil, err
	}
	if err := takeSnapshots(ctx, 0, 100, v); err != nil {
		return nil, errors.Join(err, v.stop())
	}
	return v, nil
}

// startFilled serves an empty disk in a directory of its own and fills it.
func startFilled(ctx context.Context, s settings, begin func(dir string) (*server, error)) (*server, error) {
	dir, err := os.MkdirTemp(s.dir, "varve-bench")
	if err != nil {
		return nil, err
	}
	v, err := begin(dir)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	if err := fill(ctx, v, s.Size); err != nil {
		return nil, errors.Join(err, v.stop())
	}
	return v, nil
}

// startQemu serves a disk, as a user would: with the page cache, and durable at a flush.
func startQemu(ctx context.Context, dir, format, disk string) (*server, error) {
	socket, ready := filepath.Join(dir, "sock"), filepath.Join(dir, "pid")
	return start(ctx, dir, socketURI(socket), ready, "qemu-nbd",
		"--persistent", "--shared=8", "--format="+format, "--cache=writeback", "--socket="+socket, "--pid-file="+ready, disk)
}

func socketURI(socket string) string { return exportURI(socket, "") }

func exportURI(socket, name string) string { return "nbd+unix:///" + name + "?socket=" + socket }

func rawDisk(name string, size int64) error {
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		return err
	}
	return os.Truncate(name, size)
}

func createQcow2(ctx context.Context, name string, size int64) error {
	_, err := output(ctx, "qemu-img", "create", "-q", "-f", "qcow2", name, strconv.FormatInt(size, 10))
	return err
}

// layers are qcow2 images, each over the one before, that all rounds share: they are only read.
type layers struct {
	dir   string
	files []string // the lowest first
}

// makeLayers makes as many layers, the lowest full, and changes scattered blocks in each.
func makeLayers(ctx context.Context, s settings, count int) (_ *layers, err error) {
	l := new(layers)
	if l.dir, err = os.MkdirTemp(s.dir, "varve-bench"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.remove())
		}
	}()
	for n := range count {
		file := filepath.Join(l.dir, fmt.Sprintf("layer%d", n))
		if n == 0 {
			err = l.base(ctx, s, file)
		} else {
			err = l.overlay(ctx, file, n)
		}
		if err != nil {
			return nil, err
		}
		commands := []string{"-f", "qcow2", "-t", "unsafe"} // what is made here is synced before anything runs
		for _, at := range places(n, s.Size) {
			commands = append(commands, "-c", fmt.Sprintf("write -q -P %d %d 4k", n%255+1, at))
		}
		if _, err := output(ctx, "qemu-io", append(commands, file)...); err != nil {
			return nil, err
		}
		l.files = append(l.files, file)
	}
	return l, nil
}

func (l *layers) base(ctx context.Context, s settings, file string) error {
	if err := createQcow2(ctx, file, s.Size); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(s.dir, "varve-bench")
	if err != nil {
		return err
	}
	v, err := startQemu(ctx, dir, "qcow2", file)
	if err != nil {
		return errors.Join(err, os.RemoveAll(dir))
	}
	return errors.Join(fill(ctx, v, s.Size), v.stop())
}

// overlay makes an empty image over the first n layers.
func (l *layers) overlay(ctx context.Context, file string, n int) error {
	_, err := output(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", l.files[n-1], file)
	return err
}

// serve serves a fresh image over the first n layers.
func (l *layers) serve(ctx context.Context, s settings, n int) (*server, error) {
	dir, err := os.MkdirTemp(s.dir, "varve-bench")
	if err != nil {
		return nil, err
	}
	disk := filepath.Join(dir, "disk")
	if err := l.overlay(ctx, disk, n); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	v, err := startQemu(ctx, dir, "qcow2", disk)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return v, nil
}

func (l *layers) remove() error { return os.RemoveAll(l.dir) }

// peersFound is what the servers did, each in every round.
type peersFound struct {
	Servers []string                        `json:"servers"`
	Runs    map[string]map[string][]figures `json:"runs"`     // by load and server
	RSS     map[string][]int64              `json:"peak_rss"` // bytes, by server
}

func (p *peersFound) add(l load, server string, f figures) {
	if p.Runs[l.name] == nil {
		p.Runs[l.name] = map[string][]figures{}
	}
	p.Runs[l.name][server] = append(p.Runs[l.name][server], f)
}

func measurePeers(ctx context.Context, s settings, r *results) (err error) {
	found := &peersFound{Runs: map[string]map[string][]figures{}, RSS: map[string][]int64{}}
	var some []peer
	for _, p := range peers {
		if s.servers.MatchString(p.name) {
			some = append(some, p)
			found.Servers = append(found.Servers, p.name)
		}
	}
	if s.profiles != "" {
		if err := os.MkdirAll(s.profiles, 0o755); err != nil {
			return err
		}
	}
	var below *layers
	if slices.Contains(found.Servers, chain10) || slices.Contains(found.Servers, chain100) {
		say("peers: make 100 layers of qcow2")
		if below, err = makeLayers(ctx, s, 100); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, below.remove()) }()
	}
	for round := range s.Rounds {
		if err := measureRound(ctx, s, round, some, below, found); err != nil {
			return err
		}
	}
	r.Peers = found
	return nil
}

// inTurn is the order of n servers in a round: reversed in every other one, and each goes first as often
// as the others.
func inTurn(n, round int) []int {
	order := make([]int, n)
	for i := range order {
		order[i] = (i + round/2) % n
	}
	if round%2 == 1 {
		slices.Reverse(order)
	}
	return order
}

func measureRound(ctx context.Context, s settings, round int, some []peer, below *layers, found *peersFound) (err error) {
	all, started := make(fleet, len(some)), fleet{}
	defer func() { err = errors.Join(err, started.stop()) }()
	for _, k := range inTurn(len(some), round) {
		p := some[k]
		say("peers: round %d of %d: fill a disk of %s", round+1, s.Rounds, p.name)
		if err := syncFileSystem(s.dir); err != nil {
			return err
		}
		v, err := p.start(ctx, s, below)
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		all[k], started = v, append(started, v)
		if v.filled.MiB > 0 && s.loads.MatchString(freshWrite.name) {
			found.add(freshWrite, p.name, v.filled)
		}
	}
	if err := all.settle(ctx); err != nil {
		return err
	}
	for i, v := range all {
		if err := warm(ctx, v, s.Size); err != nil {
			return fmt.Errorf("%s: %w", some[i].name, err)
		}
	}
	for i, l := range chosen(loads, s.loads) {
		for _, k := range inTurn(len(some), round+i) {
			if err := all.settle(ctx); err != nil {
				return err
			}
			f, err := runPeer(ctx, s, all[k], some[k].name, l, round)
			if err != nil {
				return fmt.Errorf("%s: %s: %w", some[k].name, l.name, err)
			}
			found.add(l, some[k].name, f)
			say("peers: round %d of %d: %-18s %-20s %7.0f/s %6.0f MiB/s", round+1, s.Rounds, l.name, some[k].name, f.PerSecond, f.MiB)
		}
	}
	for i, v := range all {
		rss, err := v.peakRSS()
		if err != nil {
			return err
		}
		found.RSS[some[i].name] = append(found.RSS[some[i].name], rss)
	}
	return nil
}

// runPeer runs a load, and takes a profile of varve meanwhile if that is wanted.
func runPeer(ctx context.Context, s settings, v *server, name string, l load, round int) (f figures, err error) {
	if s.profiles != "" && v.api != nil {
		file := filepath.Join(s.profiles, fmt.Sprintf("%s-%s-%d.pprof", l.name, fileName(name), round+1))
		taken := make(chan error, 1)
		go func() { taken <- v.profile(ctx, s.Time, file) }()
		defer func() { err = errors.Join(err, <-taken) }()
	}
	return runLoad(ctx, v, s.Size, l, limits{time: s.Time, seed: round})
}

// fileName is a server's name without what is awkward in a file's name.
func fileName(name string) string {
	out := []byte(name)
	return string(slices.DeleteFunc(out, func(c byte) bool { return c == ',' || c == ' ' }))
}
