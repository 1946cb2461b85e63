package pool

import (
	"context"
	"errors"
	"fmt"
	"time"

	"varve/internal/block"
	"varve/internal/pool/blockmap"
	"varve/internal/pool/seglog"
)

const (
	// regionBlocks is what is moved at a time: what a leaf of the map covers, 1 MiB.
	regionBlocks = 256
	// orderedPieces is in how many pieces a region may lie and still be in order.
	orderedPieces = 4
	// A relayout leaves so many bytes to clients, or under a quota the part of it, if that is less.
	relayoutFree = 256 << 20
	relayoutPart = 16
	// relayoutAttempts is how often a relayout that has no room asks for space before it gives up.
	relayoutAttempts = 5
	// A relayout rests as long as it works; while clients write, busyShare times as long.
	busyShare     = 9
	shortestPause = 2 * time.Millisecond // shorter ones are added up: a timer is no finer
)

// RelayoutOptions of Relayout.
type RelayoutOptions struct {
	// Progress is told between batches how many mapped bytes are behind, of how many. It may wait; its error ends the work.
	Progress func(done, total int64) error
}

// Relayouted tells what a relayout did, in bytes of data.
type Relayouted struct {
	Moved   int64
	Ordered int64 // lay in order already
	Shared  int64 // with snapshots or clones: not moved, because they would be copied
	Changed int64 // written by clients just when they were to be moved
	Damaged int64 // cannot be read, and stay where they are
}

// Relayout rewrites what a volume's head has for itself in the order of its LBAs, so that it lies in the log
// as it is read. Nobody sees anything of it but its speed. It works in small steps, holds none of
// the pool's locks between them and gives way to clients; whatever ends it, what is done is
// done, and the next one passes it over. docs/design/relayout.md says how.
//
// Errors: ErrNotFound (also when the volume is deleted meanwhile), ErrInUse (another relayout of it),
// block.ErrNoSpace, ErrWriteStopped, block.ErrClosed, ctx's, and block.ErrDamaged, which names how much could
// not be read; then the rest is done.
func (p *Pool) Relayout(ctx context.Context, name string, o RelayoutOptions) (Relayouted, error) {
	fail := func(err error) error { return fmt.Errorf("relayout volume %q: %w", name, err) }
	p.mu.RLock()
	found, err := findLive(p.cat, name)
	var v *volume
	if err == nil {
		if v = p.volumes[found.Number]; v.place != nil {
			err = fmt.Errorf("volume %q: %w: it lies in a file, in order already", name, ErrInvalid)
		}
	}
	p.mu.RUnlock()
	if err != nil {
		return Relayouted{}, fmt.Errorf("relayout: %w", err)
	}
	if !v.relayout.CompareAndSwap(false, true) {
		return Relayouted{}, fail(fmt.Errorf("%w: that is being done already", ErrInUse))
	}
	defer v.relayout.Store(false)
	m := mover{pool: p, volume: v, options: o, data: make([]byte, regionBlocks*block.Size)}
	for more := true; more; {
		if err := m.report(); err != nil {
			return m.done, fail(err)
		}
		if err := m.room(ctx); err != nil {
			return m.done, fail(err)
		}
		start, clients := time.Now(), p.clientBytes.Load()
		if more, err = m.step(); err != nil {
			return m.done, fail(err)
		}
		took := time.Since(start)
		if p.clientBytes.Load() != clients || clients != m.clients {
			took *= busyShare
		}
		m.clients = clients
		if m.owed += took; m.owed < shortestPause && ctx.Err() == nil {
			continue
		}
		if err := sleep(ctx, m.owed); err != nil {
			return m.done, fail(err)
		}
		m.owed = 0
	}
	if err := p.log.Flush(p.log.LastSeq()); err != nil {
		return m.done, fail(err)
	}
	if n := m.done.Damaged; n > 0 {
		return m.done, fail(fmt.Errorf("%w: %d bytes cannot be read and stay where they are, the rest is in order; the first: %w", block.ErrDamaged, n, m.first))
	}
	return m.done, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// mover is a relayout under way.
type mover struct {
	pool    *Pool
	volume  *volume
	options RelayoutOptions
	next    uint64 // LBA where the next step begins
	clients int64  // what clients had written before the last step
	owed    time.Duration
	first   error // what damage was met with first
	done    Relayouted

	found, now [regionBlocks]blockmap.Entry
	own        []int // blocks of the region to be moved
	pieces     []seglog.Piece
	data       []byte
	crcs       [regionBlocks]uint32
}

func (m *mover) report() error {
	if m.options.Progress == nil {
		return nil
	}
	m.volume.mu.RLock()
	total := int64(m.volume.tree.View().Mapped()) * block.Size
	m.volume.mu.RUnlock()
	d := &m.done
	return m.options.Progress(min(d.Moved+d.Ordered+d.Shared+d.Changed+d.Damaged, total), total)
}

// room waits until moving takes nothing that clients need: what is moved leaves as much garbage behind,
// which reclaim must give back before clients are held up by the pool's bound, or the disk is full.
func (m *mover) room(ctx context.Context) error {
	p := m.pool
	r := &p.reclaimer
	for attempt := 0; ; attempt++ {
		if err := p.checkpointer.throttle(ctx, p); err != nil {
			return err
		}
		garbage, most := r.garbage(p), r.liveBytes()/5+64<<20 // more than a cycle leaves, less than what holds writers up
		least := int64(relayoutFree)
		if quota := p.space.quota.Load(); quota > 0 {
			least = min(least, quota/relayoutPart)
		}
		p.space.look(p)
		room := p.space.room(p)
		switch {
		case garbage <= most && room >= least:
			return nil
		case attempt == relayoutAttempts && room < least:
			return fmt.Errorf("%w: %s, and %d MiB are left to clients; what was moved stays so, start it again when there is room", block.ErrNoSpace, p.space.describe(p), least>>20)
		case attempt == relayoutAttempts:
			return fmt.Errorf("%w: reclaim leaves %d bytes of garbage; what was moved stays so, start it again later", block.ErrNoSpace, garbage)
		case attempt > 0:
			if err := sleep(ctx, time.Second<<attempt); err != nil {
				return err
			}
		}
		if !p.begin() {
			return fmt.Errorf("pool: %w", block.ErrClosed)
		}
		_, err := p.reclaim(ctx, cleanWell)
		r.keepSpares(p, 0)
		p.end()
		if err != nil {
			return err
		}
	}
}

// step moves what is not in order in the next region, and tells whether there may be more behind it.
func (m *mover) step() (more bool, err error) {
	p, v := m.pool, m.volume
	if !p.begin() {
		return false, fmt.Errorf("pool: %w", block.ErrClosed)
	}
	defer p.end()
	if _, err := v.admit(); err != nil { // what a deleted volume had may be given back
		return false, err
	}
	pins := p.store.NewPins()
	var at, passed, since uint64
	var found bool
	if err := waitFor(pins, func() (err error) {
		v.mu.RLock()
		defer v.mu.RUnlock()
		since = v.tree.Since()
		at, passed, found, err = v.tree.View().NextNewer(pins, m.next, since)
		return err
	}); err != nil {
		return false, m.unlessGone(damaged(err))
	}
	m.done.Shared += int64(passed) * block.Size
	if !found {
		return false, nil
	}
	m.next = at + regionBlocks
	err = v.lookup(pins, at, m.found[:])
	if errors.Is(err, blockmap.ErrDamaged) {
		return true, m.damage(at, regionBlocks, err)
	} else if err != nil {
		return false, m.unlessGone(err)
	}
	if m.choose(since) <= orderedPieces {
		m.done.Ordered += int64(len(m.own)) * block.Size
		return true, nil
	}
	if err := m.read(pins, at); err != nil {
		return false, err
	}
	err = p.exclusively(func() error { return m.move(pins, at) })
	p.checkpointer.noticed(p)
	p.reclaimer.noticed(p)
	return true, err
}

// unlessGone returns the error of a read, or that the volume was deleted: then what it had may have been given back.
func (m *mover) unlessGone(err error) error {
	if _, gone := m.volume.admit(); gone != nil {
		return gone
	}
	return err
}

// damage reports blocks that cannot be read, unless that is because the volume was deleted: then it returns that.
func (m *mover) damage(lba, blocks uint64, err error) error {
	if _, gone := m.volume.admit(); gone != nil {
		return gone
	}
	m.done.Damaged += int64(blocks) * block.Size
	if m.first == nil {
		m.first = err
	}
	m.pool.damageMet(fmt.Sprintf("volume %q", m.volume.name()), "moving", int64(blocks)*block.Size, int64(lba)*block.Size, err)
	return nil
}

// choose finds the region's blocks that no other state has, and in how many pieces they lie.
func (m *mover) choose(since uint64) (pieces int) {
	m.own = m.own[:0]
	var behind seglog.Addr // where the next one continues the piece
	for i, e := range m.found {
		switch {
		case !e.Mapped():
		case e.Lost():
			m.done.Damaged += block.Size
			if m.first == nil {
				m.first = lostBlock(e)
			}
		case e.Epoch <= since || inFile(e):
			m.done.Shared += block.Size
		default:
			if e.Addr != behind {
				pieces++
			}
			behind = e.Addr.Plus(block.Size)
			m.own = append(m.own, i)
		}
	}
	return pieces
}

// read reads and verifies the blocks to be moved and leaves out those that cannot be read.
func (m *mover) read(pins *blockmap.Pins, at uint64) error {
	m.pieces = m.pieces[:0]
	for _, i := range m.own {
		m.pieces = append(m.pieces, seglog.Piece{Addr: m.found[i].Addr, To: m.block(i)})
	}
	err := m.pool.log.ReadPieces(m.pieces, true)
	sound := m.own[:0]
	for _, i := range m.own {
		if err == nil && seglog.Checksum(m.block(i)) == m.found[i].CRC {
			sound = append(sound, i)
			continue
		}
		was := m.found[i]
		err := m.volume.readCurrent(&m.found[i], pins, at+uint64(i), m.block(i))
		switch {
		case errors.Is(err, block.ErrDamaged):
			if err := m.damage(at+uint64(i), 1, err); err != nil {
				return err
			}
		case err != nil:
			return m.unlessGone(err)
		case m.found[i] != was: // and its old place given back
			m.done.Changed += block.Size
		default:
			sound = append(sound, i)
		}
	}
	m.own = sound
	return nil
}

func (m *mover) block(i int) []byte { return m.data[i*block.Size : (i+1)*block.Size] }

// move gives the blocks that were read their new places, but for those that are no longer what was
// read, or are shared by now. It is called by whoever has the log to itself.
func (m *mover) move(pins *blockmap.Pins, at uint64) error {
	v, p := m.volume, m.pool
	epoch, err := v.admit()
	if err != nil {
		return err
	}
	if err := v.lookup(pins, at, m.now[:]); err != nil {
		return damaged(err)
	}
	var batch []seglog.Entry
	moved := 0
	for _, i := range m.own {
		if m.now[i] != m.found[i] || m.now[i].Epoch <= v.tree.Since() {
			continue
		}
		m.crcs[i] = m.now[i].CRC
		lba := at + uint64(i)
		if n := len(batch); n == 0 || batch[n-1].LBA+batch[n-1].Count != lba {
			batch = append(batch, seglog.Entry{Kind: seglog.KindMove, Volume: v.number, LBA: lba, Epoch: epoch, Payload: make([][]byte, 1)})
		}
		e := &batch[len(batch)-1]
		e.Count++
		from := i + 1 - int(e.Count)
		e.CRCs, e.Payload[0] = m.crcs[from:i+1], m.data[from*block.Size:(i+1)*block.Size]
		moved++
	}
	m.done.Changed += int64(len(m.own)-moved) * block.Size
	if moved == 0 {
		return nil
	}
	need := int64(moved+2) * block.Size
	if !p.space.take(p, need) {
		return fmt.Errorf("%w: %s", block.ErrNoSpace, p.space.describe(p))
	}
	defer p.space.release(need)
	if _, err := p.log.Append(batch); err != nil {
		return err
	}
	for i := range batch {
		if err := v.apply(pins, &batch[i]); err != nil {
			p.log.Stop(fmt.Errorf("map of volume %q: %w", v.name(), err))
			return p.log.Failure()
		}
	}
	m.done.Moved += int64(moved) * block.Size
	return nil
}
