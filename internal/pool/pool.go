// Package pool stores redirect volumes and their row snapshots in a directory.
//
// It is the sum of its parts: one log (seglog) into which everything goes in one
// total order, one block map per state (blockmap), and the catalogue of volumes and
// snapshots (catalogue), all of them a fold over the log. A checkpoint writes maps and
// catalogue into the log too, and the superblock says where, so that opening replays only what came after.
//
// Invariants:
//   - After a crash the pool is some prefix of what was done to it, and contains
//     everything that a completed Flush covered. All volumes and snapshots agree on the same prefix.
//   - No data is returned whose checksum does not match.
//   - No snapshot ever changes.
//
// Lock order, outermost first: checkpointMu; volume.resize; leadership of the committer;
// mu; volume.mu; committer.mu, checkpointer.mu and base.mu, under which nothing else is
// taken; the locks inside seglog and blockmap. None is held while a client is
// waited for, nor across a sync (except checkpointMu).
//
// Left out: who the clients are. Package nbd serves Devices, package daemon decides.
package pool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/google/uuid"

	"varve/internal/block"
	"varve/internal/pool/blockmap"
	"varve/internal/pool/catalogue"
	"varve/internal/pool/seglog"
	"varve/internal/vfs"
)

// Options of Create and Open.
type Options struct {
	FS  vfs.FS
	Dir string

	MapCacheBytes   int64            // of clean map nodes in memory; 0: 256 MiB
	CheckpointBytes int64            // log between two checkpoints; 0: 256 MiB
	SegmentBytes    int64            // of a new pool; 0: 64 MiB
	OverlayBytes    int64            // of an inplace volume that may lie in the log and not in its file; 0: DefaultOverlayBytes, less: nothing
	Clock           func() time.Time // nil: time.Now
	OnEvent         func(Event)      // nil: dropped; called with locks held: must not block nor use the pool
	// OpenBase opens a base that a volume is FilledFrom, for reading. It is called when something of the base is needed, and again after that
	// failed; the device outlives ctx, and is closed when it is needed no more. nil: what is not filled cannot be read.
	OpenBase func(ctx context.Context, ref []byte) (block.Device, error)

	// KeepIncomplete tells when the pool is opened which Incomplete volumes stay; nil: none.
	KeepIncomplete func(VolumeInfo) bool

	// Manual starts no background work: checkpoints happen in Checkpoint and Close
	// alone. For tests that decide the order of everything.
	Manual bool
}

func (o *Options) setDefaults() {
	if o.MapCacheBytes == 0 {
		o.MapCacheBytes = 256 << 20
	}
	if o.CheckpointBytes == 0 {
		o.CheckpointBytes = 256 << 20
	}
	if o.SegmentBytes == 0 {
		o.SegmentBytes = 64 << 20
	}
	if o.OverlayBytes == 0 {
		o.OverlayBytes = DefaultOverlayBytes
	}
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.OnEvent == nil {
		o.OnEvent = func(Event) {}
	}
}

// Pool is an open pool.
type Pool struct {
	opts Options
	lock io.Closer
	log  *seglog.Log
	// superFile is written by checkpoints alone.
	superFile vfs.File
	adopting  sync.Mutex // one file becomes a volume, a copy or a mirror at a time
	recovery  seglog.Recovery
	readOnly  bool // opened to be checked: nothing can be written
	store     *blockmap.Store

	committer committer
	gen       atomic.Uint64 // the last generation given to a tree

	// mu guards the catalogue, volumes and the devices of each volume. The catalogue
	// is changed by the committer's leader alone.
	mu       sync.RWMutex
	cat      *catalogue.Catalogue
	changes  uint64 // of the catalogue
	volumes  map[uint64]*volume
	closed   bool
	requests sync.WaitGroup       // under way
	snapOpen map[uint64]int       // state of a snapshot or bookmark -> devices that show it or compare with it
	deleting map[uint64]bool      // states that are being deleted, and may not be opened any more
	wentAt   atomic.Uint64        // the batch by which a state or bookmark went last
	copies   map[uint64]*copyWork // by snapshot
	closing  sync.Once
	closeErr error

	checkpointMu sync.Mutex
	super        atomic.Pointer[superblock] // the newest on disk; replaced under checkpointMu
	checkpointer checkpointer
	reclaimer    reclaimer
	destaging    sync.WaitGroup // what brings blocks into files of inplace volumes
	mirrorKeeper mirrorKeeper

	answers     answers
	space       space
	clientBytes atomic.Int64
	told        told       // damage that there was an event for
	repairs     sync.Mutex // one at a time

	closingBases sync.WaitGroup // devices of bases that are needed no more

	stalls stalls
}

// Open opens and recovers a pool and locks it. Errors: ErrNotPool,
// ErrNewerFormat, ErrDamagedLog, vfs.ErrLocked.
func Open(ctx context.Context, o Options) (*Pool, error) {
	o.setDefaults()
	return openWritable(ctx, o, &opening{})
}

func openWritable(ctx context.Context, o Options, how *opening) (*Pool, error) {
	p, err := open(o, how)
	if errors.Is(err, block.ErrNoSpace) && releaseReserve(&o) {
		p, err = open(o, how)
	}
	if err != nil {
		return nil, fmt.Errorf("open pool %s: %w", o.Dir, err)
	}
	if err := p.dropIncomplete(ctx); err != nil {
		p.abandon()
		return nil, fmt.Errorf("open pool %s: %w", o.Dir, err)
	}
	if err := p.dropPending(ctx); err != nil {
		p.abandon()
		return nil, fmt.Errorf("open pool %s: %w", o.Dir, err)
	}
	p.openPlaces()
	if err := p.openMirrors(ctx, how.cut != nil); err != nil {
		p.abandon()
		return nil, fmt.Errorf("open pool %s: %w", o.Dir, err)
	}
	keepReserve(&o)
	p.checkpointer.start(p)
	p.reclaimer.start(p)
	p.startDestaging()
	p.mirrorKeeper.start(p)
	return p, nil
}

func open(o Options, how *opening) (*Pool, error) {
	if how.readOnly {
		o.FS = vfs.ReadOnly(o.FS)
	}
	name := path.Join(o.Dir, superblockName)
	_, err := o.FS.Stat(name)
	missing := errors.Is(err, fs.ErrNotExist)
	if missing && (!how.salvage || !hasLog(&o)) {
		return nil, notPool(&o)
	}
	lock, err := o.FS.Lock(path.Join(o.Dir, lockName), fmt.Sprintf("process %d", os.Getpid()))
	if err != nil {
		return nil, err
	}
	var file vfs.File
	var p *Pool
	if missing {
		err = fmt.Errorf("%w: there is no superblock", ErrDamagedLog)
	} else if file, err = o.FS.Open(name); err == nil {
		p, err = openNewest(o, file)
	}
	if errors.Is(err, blockmap.ErrDamaged) && !errors.Is(err, ErrDamagedLog) {
		err = fmt.Errorf("%w: %w", ErrDamagedLog, err)
	}
	if how.salvage && isDamage(err) {
		p, err = how.rescue(o, &file, err)
	}
	if err == nil && !how.readOnly {
		if err = p.log.Resume(&p.recovery); err != nil {
			p.log.Close()
		}
	}
	if err == nil { // now that the log has the length that it goes on with
		if err = p.reclaimer.init(p); err != nil {
			p.log.Close()
		}
		p.space.look(p)
	}
	if err != nil {
		if file != nil {
			_ = file.Close()
		}
		_ = lock.Close()
		return nil, err
	}
	p.lock, p.superFile, p.readOnly = lock, file, how.readOnly
	p.tellRecovery()
	return p, nil
}

// openNewest recovers the pool from its newest superblock, or, should what that leads to be
// damaged, from the older one, which reaches the same state by a longer replay.
func openNewest(o Options, file vfs.File) (*Pool, error) {
	supers, err := readSuperblocks(file)
	if err != nil {
		return nil, err
	}
	var durable uint64
	for _, super := range supers {
		durable = max(durable, super.durableSeq)
	}
	if newest := supers[0]; len(supers) == 1 && newest.generation > 0 {
		o.OnEvent(Event{Time: o.Clock(), Kind: EventDamage, Object: superblockName, Message: "one of its two slots is not sound; the next checkpoint writes it anew"})
	}
	for i, super := range supers {
		var p *Pool
		p, err = openAt(o, super, durable, nil)
		if err == nil {
			return p, nil
		}
		if !errors.Is(err, errDamagedCatalogue) && !errors.Is(err, blockmap.ErrDamaged) {
			break
		}
		if i+1 < len(supers) {
			o.OnEvent(Event{Time: o.Clock(), Kind: EventDamage, Object: "checkpoint", Message: err.Error() + "; using the checkpoint before it"})
		}
	}
	return nil, err
}

// openAt replays the log from one superblock on. durable is the newest batch that any of them calls so. With
// s, damage does not refuse the pool where something can be made of the rest.
func openAt(o Options, super superblock, durable uint64, s *salvaged) (*Pool, error) {
	p := &Pool{opts: o, volumes: map[uint64]*volume{}, snapOpen: map[uint64]int{}, deleting: map[uint64]bool{}, copies: map[uint64]*copyWork{}}
	p.super.Store(&super)
	p.log = seglog.New(seglog.Config{
		FS: o.FS, Dir: path.Join(o.Dir, logDirName), Pool: super.pool, Salt: super.salt, SegmentBytes: super.segmentBytes,
		OnStop: func(err error) { p.event(EventWriteStop, "log", err.Error()) },
	})
	p.store = blockmap.NewStore(o.MapCacheBytes, p.readNode)
	p.committer.pool = p
	if err := p.recover(&super, durable, s); err != nil {
		p.log.Close()
		return nil, err
	}
	return p, nil
}

func (p *Pool) recover(super *superblock, durable uint64, s *salvaged) (err error) {
	cat, err := p.loadCatalogue(super)
	if err != nil {
		return err
	}
	p.cat = cat
	p.space.bound(cat)
	for _, v := range cat.Volumes() {
		head := cat.Head(v)
		p.volumes[v.Number] = p.newVolume(v, head, head.Root)
		cat.SetRoot(head.ID, blockmap.Root{})
	}
	for _, v := range cat.Volumes() {
		switch {
		case v.Place != nil:
			p.joinPlace(v)
		case v.Filling != nil:
			p.joinBase(v)
		}
	}
	r := p.newReplayer(s)
	var salvage *seglog.Salvage
	if s != nil {
		salvage = &s.log
	}
	if p.recovery, err = p.log.Replay(super.position, durable, salvage, r.add); err == nil {
		err = r.flush()
	}
	if err != nil {
		return err
	}
	return nil
}

func (p *Pool) tellRecovery() {
	if rec := &p.recovery; rec.LastSeq > p.super.Load().durableSeq || rec.TornBytes > 0 {
		p.event(EventRecovered, "log", fmt.Sprintf("replayed %d batches up to %d; %d bytes behind them were never flushed and are gone", rec.Batches, rec.LastSeq, rec.TornBytes))
	}
}

// dropIncomplete removes volumes whose import was cut short, unless they are to stay.
func (p *Pool) dropIncomplete(ctx context.Context) error {
	for _, v := range p.cat.Volumes() {
		if !v.Incomplete || p.opts.KeepIncomplete != nil && !v.Internal() && p.opts.KeepIncomplete(p.volumeInfo(v)) {
			continue
		}
		if err := p.DeleteIncomplete(ctx, v.Name); err != nil {
			return err
		}
	}
	return nil
}

// Close waits for running requests, flushes, writes a checkpoint and releases the
// lock. Devices that are still open fail with block.ErrClosed from then on. The pool is closed
// whatever the error, which tells what could not be saved.
func (p *Pool) Close(ctx context.Context) error {
	p.closing.Do(func() {
		if err := p.close(context.WithoutCancel(ctx)); err != nil {
			p.closeErr = fmt.Errorf("close pool %s: %w", p.opts.Dir, err)
		}
	})
	return p.closeErr
}

func (p *Pool) close(ctx context.Context) error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.reclaimer.stop() // and with it those whom it holds back
	p.endBases()       // and those who read them
	p.requests.Wait()
	p.stopDestaging()
	p.mirrorKeeper.stop()
	p.checkpointer.stop()
	defer p.closingBases.Wait()
	defer p.abandon()
	err := errors.Join(p.closeMirrors(ctx), p.closePlaces())
	return errors.Join(err, p.closeLog())
}

func (p *Pool) closeLog() error {
	spares := p.log.KeepSpares(0)
	if err := p.log.Flush(p.log.LastSeq()); err != nil {
		return errors.Join(spares, err)
	}
	if err := p.checkpointNow(); !errors.Is(err, block.ErrNoSpace) {
		return errors.Join(spares, err)
	}
	return spares // everything is in the log; the next opening replays more of it
}

// abandon releases what the pool holds of the system, and saves nothing.
func (p *Pool) abandon() {
	p.stopDestaging()
	for _, v := range p.volumes {
		if v.place != nil {
			v.place.close()
		}
		if v.basis != nil {
			v.basis.closeLater()
		}
		if m := v.mirror.Load(); m != nil {
			m.close()
		}
	}
	p.log.Close()
	if p.superFile != nil {
		_ = p.superFile.Close() // synced whenever it was written
	}
	_ = p.lock.Close() // an advisory lock goes with its file whatever Close says
}

// begin marks the start of a request; end its end. False once the pool is closed.
func (p *Pool) begin() bool {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.closed {
		return false
	}
	p.requests.Add(1)
	return true
}

func (p *Pool) end() { p.requests.Done() }

// readNode reads the bytes of a map node.
func (p *Pool) readNode(addr seglog.Addr, b []byte) error {
	if err := p.log.ReadAt(addr, b); isLoss(err) {
		return fmt.Errorf("%w: %w", blockmap.ErrDamaged, err)
	} else if err != nil {
		return err
	}
	return nil
}

// isLoss tells errors that mean that stored bytes are gone from those of the moment.
func isLoss(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.EIO)
}

func (p *Pool) event(kind, object, message string) {
	p.opts.OnEvent(Event{Time: p.opts.Clock(), Kind: kind, Object: object, Message: message})
}

func (p *Pool) nextGen() uint64 { return p.gen.Add(1) }

// ID identifies the pool for ever.
func (p *Pool) ID() uuid.UUID { return p.super.Load().pool }
