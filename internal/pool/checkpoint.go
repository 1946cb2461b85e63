package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"varve/internal/block"
	"varve/internal/pool/blockmap"
	"varve/internal/pool/catalogue"
	"varve/internal/pool/seglog"
)

// Checkpoint writes the maps and the catalogue as they are at one point of the log
// into the log, and then the superblock that points there, so that the next opening replays
// from that point. Writers wait only while the maps are frozen and the catalogue's
// pointers are copied: some 50 ns for each volume and 8 bytes of copying for each snapshot.
func (p *Pool) Checkpoint(context.Context) error {
	if !p.begin() {
		return fmt.Errorf("checkpoint: pool: %w", block.ErrClosed)
	}
	defer p.end()
	return p.checkpointNow()
}

func (p *Pool) checkpointNow() error {
	p.checkpointMu.Lock()
	defer p.checkpointMu.Unlock()
	if err := p.checkpoint(); err != nil {
		if !errors.Is(err, block.ErrNoSpace) && !errors.Is(err, ErrWriteStopped) {
			p.log.Stop(err)
		}
		return fmt.Errorf("checkpoint: %w", err)
	}
	keepReserve(&p.opts)
	p.space.observe(p, false)
	return nil
}

func (p *Pool) checkpoint() (err error) {
	var cat *catalogue.View
	heads := map[uint64]blockmap.Root{} // by state
	var liveThen int64
	last := p.super.Load()
	next := superblock{
		pool: last.pool, salt: last.salt, createdAt: last.createdAt, segmentBytes: last.segmentBytes, generation: last.generation + 1,
	}
	_ = p.exclusively(func() error { // which never fails
		defer p.stalls.freeze.Since(time.Now())
		next.position = p.log.Position()
		liveThen = p.reclaimer.live.Load()
		p.checkpointer.begun(p)
		p.mu.Lock()
		defer p.mu.Unlock()
		p.noteVersions()
		cat = p.cat.View()
		cat.LiveBytes = p.reclaimer.liveBytes()
		for _, v := range p.volumes {
			v.mu.Lock()
			heads[p.cat.Volume(v.number).Head] = v.tree.Freeze(v.tree.Epoch(), p.nextGen())
			v.mu.Unlock()
		}
		return nil
	})
	defer func() { p.checkpointer.ended(err) }()

	w := p.store.NewWriter(func(b []byte) (seglog.Addr, error) {
		e, err := p.appendBlob(b)
		return e.Addr, err
	})
	var roots []blockmap.Root
	for _, s := range cat.States() {
		if s.Kind == catalogue.Head {
			roots = append(roots, heads[s.ID])
		} else {
			roots = append(roots, s.Root)
		}
	}
	if err := w.Write(roots); err != nil {
		return fmt.Errorf("write maps: %w", err)
	}
	image, err := cat.Encode(heads)
	if err != nil {
		return err
	}
	if next.chunks, err = p.writeImage(image); err != nil {
		return fmt.Errorf("write catalogue: %w", err)
	}
	next.catalogueLen = int64(len(image))

	// The record in the log lets a lost superblock be found again. It is written before its
	// own durability is known; the superblock can say more.
	next.durableSeq = p.log.DurableSeq()
	record := []seglog.Entry{{Kind: seglog.KindCheckpoint, Inline: next.encode()}}
	seq, err := p.log.Append(record)
	if err != nil {
		return err
	}
	if err := p.log.Flush(seq); err != nil {
		return err
	}
	next.durableSeq = seq
	if err := writeSuperblock(p.superFile, &next); err != nil {
		return err
	}
	p.super.Store(&next)
	p.reclaimer.older = p.reclaimer.newer
	p.reclaimer.newer = freezeState(next.position, cat, heads, liveThen)
	p.settle(cat)
	return nil
}

// appendBlob puts bytes into the log that only a pointer will give a meaning.
func (p *Pool) appendBlob(b []byte) (seglog.Entry, error) {
	e := seglog.Entry{Kind: seglog.KindBlob, Count: uint64(len(b) / block.Size), Payload: [][]byte{b}}
	for i := 0; i < len(b); i += block.Size {
		e.CRCs = append(e.CRCs, seglog.Checksum(b[i:i+block.Size]))
	}
	batch := []seglog.Entry{e}
	_, held, err := p.log.AppendHolding(batch)
	p.stalls.appends.Record(held)
	return batch[0], err
}

func (p *Pool) writeImage(image []byte) ([]blockmap.Ptr, error) {
	if (len(image)+chunkBytes-1)/chunkBytes > maxChunks {
		return nil, fmt.Errorf("%w: the catalogue takes %d bytes, more than a superblock can point to; delete snapshots", ErrInvalid, len(image))
	}
	var chunks []blockmap.Ptr
	for len(image) > 0 {
		n := min(len(image), chunkBytes)
		padded := make([]byte, (n+block.Size-1)&^(block.Size-1))
		copy(padded, image[:n])
		e, err := p.appendBlob(padded)
		if err != nil {
			return nil, err
		}
		chunks = append(chunks, blockmap.Ptr{Addr: e.Addr, Length: uint32(n), CRC: seglog.Checksum(image[:n])})
		image = image[n:]
	}
	return chunks, nil
}

const (
	settleNodes  = 1024 // map nodes that are let go while a volume's writers wait
	settleAtOnce = 1000 // states' maps that are replaced while all writers wait
)

// settle lets go of the map nodes that now lie in the log, as the checkpoint saw them.
func (p *Pool) settle(seen *catalogue.View) {
	p.mu.RLock()
	volumes := make([]*volume, 0, len(p.volumes))
	for _, v := range p.volumes {
		volumes = append(volumes, v)
	}
	p.mu.RUnlock()
	for _, v := range volumes {
		for lba, done := uint64(0), false; !done; {
			lba, done = v.settle(lba)
		}
	}
	var loaded []uint64
	for _, s := range seen.States() {
		if s.Root.Settled() != s.Root {
			loaded = append(loaded, s.ID)
		}
	}
	for ids := range slices.Chunk(loaded, settleAtOnce) {
		_ = p.exclusively(func() error { // which never fails
			defer p.stalls.settle.Since(time.Now())
			p.mu.Lock()
			defer p.mu.Unlock()
			for _, id := range ids {
				if s := p.cat.State(id); s != nil {
					p.cat.SetRoot(id, s.Root.Settled())
				}
			}
			return nil
		})
	}
	p.reclaimer.pins.settle()
}

func (v *volume) settle(lba uint64) (next uint64, done bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	defer v.pool.stalls.settle.Since(time.Now())
	return v.tree.Settle(lba, settleNodes)
}

// checkpointer decides when a checkpoint is due, and holds writers back when one
// is overdue: what is not in a checkpoint takes memory, and time to replay.
type checkpointer struct {
	interval  int64 // bytes of log after which one is due
	dirtyDue  int64 // bytes of map nodes after which one is due
	dirtyMost int64 // bytes of map nodes that hold writers back
	running   bool
	due       chan struct{}
	quit      chan struct{}
	done      chan struct{}
	dirty     atomic.Int64 // bytes of map nodes changed since the last one began
	inflight  atomic.Int64 // those that it is writing
	writtenAt atomic.Uint64

	mu      sync.Mutex
	relief  chan struct{} // closed when a checkpoint has ended
	failing bool          // the last one failed
}

// maxReplayedNodes is how many bytes of dirty nodes make a checkpoint due, however large the cache is:
// replay has to read each of them first, and that, not the length of the log, is what it takes time for.
const maxReplayedNodes = 64 << 20

func (c *checkpointer) start(p *Pool) {
	c.interval = p.opts.CheckpointBytes
	c.dirtyDue, c.dirtyMost = min(p.opts.MapCacheBytes/4, maxReplayedNodes), p.opts.MapCacheBytes/4*3
	c.relief = make(chan struct{})
	if p.opts.Manual {
		return
	}
	c.running = true
	c.due, c.quit, c.done = make(chan struct{}, 1), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(c.done)
		for {
			select {
			case <-c.quit:
				return
			case <-c.due:
			}
			if err := p.checkpointNow(); err != nil {
				p.event(EventCheckpointFailed, "log", err.Error())
			}
		}
	}()
}

func (c *checkpointer) stop() {
	if c.running {
		close(c.quit)
		<-c.done
	}
}

// noticed asks for a checkpoint if one is due.
func (c *checkpointer) noticed(p *Pool) {
	p.store.Reserve(c.dirty.Load() + c.inflight.Load())
	if !c.running {
		return
	}
	if c.dirty.Load() > c.dirtyDue || int64(p.log.BytesWritten()-c.writtenAt.Load()) > c.interval {
		c.ask()
	}
}

// throttle holds a writer back while the maps take more memory than they may. Where
// checkpoints fail it does not: then the log takes no writes either, or soon will not.
func (c *checkpointer) throttle(ctx context.Context, p *Pool) error {
	for c.running {
		c.mu.Lock()
		relief, failing := c.relief, c.failing
		c.mu.Unlock()
		if failing || c.dirty.Load()+c.inflight.Load() <= c.dirtyMost {
			return nil
		}
		c.ask()
		start := time.Now()
		select {
		case <-relief:
			p.stalls.throttle.Since(start)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// ask has a checkpoint made soon.
func (c *checkpointer) ask() {
	select {
	case c.due <- struct{}{}:
	default:
	}
}

func (c *checkpointer) begun(p *Pool) {
	c.writtenAt.Store(p.log.BytesWritten())
	c.inflight.Store(c.dirty.Swap(0))
}

func (c *checkpointer) ended(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failing = err != nil; c.failing {
		c.dirty.Add(c.inflight.Load())
	}
	c.inflight.Store(0)
	close(c.relief)
	c.relief = make(chan struct{})
}
