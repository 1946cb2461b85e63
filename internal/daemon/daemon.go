// Package daemon is the service: it owns an open pool and everything that works
// on it. It serves volumes and snapshots over NBD, runs jobs, remembers events,
// deletes snapshots whose time is over, and does for the API what the API is
// asked for, in the words of package contract.
//
// Vocabulary: the data directory holds the pool (DATA/pool) and the daemon's
// sockets. An export is what NBD serves: VOLUME, read-write, or
// VOLUME@SNAPSHOT, read-only. A session is one NBD connection that has an export
// open. A job is long work (import, export, check); it ends with the daemon and
// leaves nothing half-made when it is cancelled; a rollback that is copied back
// into a file, and a copy of a snapshot, go on when a daemon starts.
//
// Invariants: one daemon works on a data directory, the pool's lock sees to
// it. What stands in somebody's way (clients, snapshots, protection) is a
// refusal that changes nothing; force disconnects clients, waits until their
// requests are over, and does nothing else. Memory is bounded: jobs, events and
// buffers have limits, sessions are bounded by the NBD server.
//
// Left out: HTTP (package api), what the disk looks like (package pool), the
// protocol (package nbd), images (package image).
package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"varve/internal/contract"
	"varve/internal/nbd/server"
	"varve/internal/pool"
	"varve/internal/vfs"
)

// Config says how to start a daemon.
type Config struct {
	DataDir       string
	NBD           []string         // further addresses for NBD: host:port, or paths of unix sockets
	MapCacheBytes int64            // memory for block maps; 0 means the pool's default
	TLS           *tls.Config      // nil: NBD is not encrypted; else it must be, but over unix sockets
	Version       string           // told by Status
	Log           *slog.Logger     // nil: discarded
	Clock         func() time.Time // nil: time.Now

	keptAbove int64 // for tests; 0: keptAbove
}

func (c Config) withDefaults() Config {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.keptAbove == 0 {
		c.keptAbove = keptAbove
	}
	return c
}

// Daemon is a running service. All methods may be called concurrently.
type Daemon struct {
	dir, poolDir, version string
	log                   *slog.Logger
	now                   func() time.Time
	startedAt             time.Time

	pool         *pool.Pool
	repositories *repositories
	jobs         *jobs
	copyBacks    copyBacks
	copies       copies
	mirrors      mirrors
	fills        fills
	holds        holds
	begins       sync.Mutex // held while a restore to a new volume begins, or is given up
	journal      *journal
	sessions     *sessions
	timings      timings
	dropped      atomic.Bool // the pool has given up snapshots
	expiryKick   chan struct{}

	listeners  []net.Listener
	nbd        *server.Server
	background sync.WaitGroup  // serving NBD, expiry, what looks after mirrors, fills and repositories
	running    context.Context // until the daemon stops
	endRunning context.CancelFunc
	keptAbove  int64 // see keptAbove
}

// poolDir is where the pool lies in a data directory.
func poolDir(data string) string { return filepath.Join(data, "pool") }

// NBDSocket is the path of the socket in a data directory that NBD is always served on.
func NBDSocket(data string) string { return filepath.Join(data, "nbd.sock") }

// APISocket is the usual path of the API's socket.
func APISocket(data string) string { return filepath.Join(data, "api.sock") }

// Start opens the pool of a data directory, making both if there is nothing yet,
// and returns once NBD is served on all addresses. ErrForeign, ErrServed,
// vfs.ErrLocked, and what pool.Open returns.
func Start(ctx context.Context, c Config) (*Daemon, error) {
	c = c.withDefaults()
	dir, err := filepath.Abs(c.DataDir)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", c.DataDir, err)
	}
	d := &Daemon{
		dir: dir, poolDir: poolDir(dir), version: c.Version, log: c.Log, now: c.Clock, startedAt: c.Clock(),
		jobs: newJobs(c.Clock), copyBacks: copyBacks{jobs: map[uuid.UUID]string{}}, copies: copies{jobs: map[uuid.UUID]string{}}, mirrors: newMirrors(), journal: newJournal(c.Log), timings: timings{of: map[string]timing{}},
		expiryKick: make(chan struct{}, 1), fills: newFills(), holds: holds{known: map[baseRef]held{}}, keptAbove: c.keptAbove,
	}
	d.running, d.endRunning = context.WithCancel(context.Background())
	if err := d.openPool(ctx, c); err != nil {
		return nil, err
	}
	if err := d.serveNBD(c); err != nil {
		return nil, errors.Join(err, d.pool.Close(context.WithoutCancel(ctx)), d.repositories.close())
	}
	d.background.Go(func() { d.expireLoop(d.running) })
	d.resumeCopyBacks()
	d.resumeCopies()
	d.background.Go(func() { d.keepMirrors(d.running) })
	d.knowHolds()
	d.background.Go(func() { d.keepFilling(d.running) })
	d.log.Info("ready", "data", dir, "nbd", d.addresses(), "volumes", d.pool.Info().Volumes)
	return d, nil
}

// own are the names that Varve puts into a data directory, and what mkfs puts into a new file system.
var own = map[string]bool{"pool": true, "nbd.sock": true, "api.sock": true, "lost+found": true,
	repositoriesFile: true, repositoriesFile + ".new": true}

func (d *Daemon) openPool(ctx context.Context, c Config) error {
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return fmt.Errorf("make data directory: %w", err)
	}
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		return fmt.Errorf("read data directory: %w", err)
	}
	d.repositories = openRepositories(vfs.OS(), d.dir, "varve "+d.version)
	options := pool.Options{FS: vfs.OS(), Dir: d.poolDir, MapCacheBytes: c.MapCacheBytes, Clock: c.Clock, OnEvent: d.poolEvent, OpenBase: d.openBase,
		KeepIncomplete: func(v pool.VolumeInfo) bool { return keepBegun(v, d.now()) },
	}
	if _, err := os.Stat(d.poolDir); errors.Is(err, fs.ErrNotExist) {
		for _, e := range entries {
			if !own[e.Name()] {
				return fmt.Errorf("open %s: it holds %s and no pool: %w", d.dir, e.Name(), ErrForeign)
			}
		}
	}
	d.pool, err = pool.Open(ctx, options)
	if errors.Is(err, pool.ErrNotPool) {
		// There is nothing yet, or what a creation left that was cut short; Create refuses anything else.
		if err := pool.Create(ctx, options); err != nil {
			return err
		}
		d.log.Info("made a new pool", "dir", d.poolDir)
		d.pool, err = pool.Open(ctx, options)
	}
	if err != nil {
		return err
	}
	if err := d.dropLeftovers(); err != nil {
		return errors.Join(err, d.pool.Close(context.WithoutCancel(ctx)))
	}
	return nil
}

// StopJobs cancels all jobs and waits until they have cleaned up; no more can be started.
func (d *Daemon) StopJobs() { d.jobs.close() }

// Stop ends the daemon: no new connections and jobs, running requests finish,
// jobs are cancelled and clean up, and all that was written is made durable and
// checkpointed. When ctx ends first, connections are cut rather than drained.
func (d *Daemon) Stop(ctx context.Context) error {
	d.log.Info("stopping")
	d.StopJobs()
	if err := d.nbd.Shutdown(ctx); err != nil {
		d.log.Warn("clients were cut off before they were done", "error", err)
	}
	d.repositories.stop()
	d.endRunning()
	d.background.Wait()
	err := d.pool.Close(context.WithoutCancel(ctx))
	if err != nil {
		err = fmt.Errorf("close pool: %w", err)
	}
	if err := errors.Join(err, d.repositories.close()); err != nil {
		return err
	}
	d.log.Info("stopped")
	return nil
}

// addresses are where NBD is served.
func (d *Daemon) addresses() []string {
	out := make([]string, 0, len(d.listeners))
	for _, l := range d.listeners {
		out = append(out, l.Addr().String())
	}
	return out
}

// note records something the daemon did of itself.
func (d *Daemon) note(kind, object, format string, args ...any) {
	d.journal.add(contract.Event{
		Time: contract.Time{Time: d.now()}, Kind: kind, Object: object, Message: fmt.Sprintf(format, args...),
	})
}
