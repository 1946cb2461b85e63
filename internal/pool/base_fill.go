package pool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"varve/internal/block"
	"varve/internal/pool/blockmap"
	"varve/internal/pool/catalogue"
)

const (
	// fillRecorded is how much is filled between two records of that.
	fillRecorded = 64 << 20
	// quietLooks is how often it is looked what states have, until no record of the catalogue came in between.
	quietLooks = 3
	// rootsKept is for how many looks maps are kept.
	rootsKept = 256
)

// Fill copies what a volume needs of its base into the pool, until the base is needed no more, by it and by all that shares it. Clients go
// on meanwhile, and are given way. It may be cut short, by a crash too, and begun again: what is done is done. progress may be nil; it
// is told how many bytes of how many are behind, may take its time, and its error ends the work. Of a volume that needs no base there is
// nothing to do.
//
// Errors: ErrNotFound (also when the volume is deleted meanwhile), ErrInUse (that is being done already), block.ErrDamaged: some of
// the base cannot be read, which it names, and the rest is filled; block.ErrNoSpace, block.ErrClosed, ctx's, and those of the base.
func (p *Pool) Fill(ctx context.Context, name string, progress func(done, total int64) error) error {
	p.mu.RLock()
	v, err := findLive(p.cat, name)
	var b *base
	if err == nil {
		b = p.volumes[v.Number].baseBelow()
	}
	p.mu.RUnlock()
	if err == nil && b != nil {
		err = b.fill(ctx, progress)
	}
	if err != nil {
		return fmt.Errorf("fill volume %q: %w", name, err)
	}
	return nil
}

// fill is Fill of all that is over a base.
func (b *base) fill(ctx context.Context, progress func(done, total int64) error) error {
	if !b.filling.TryLock() {
		return fmt.Errorf("%w: that is being done already", ErrInUse)
	}
	defer b.filling.Unlock()
	f := filler{base: b, progress: progress, buf: make([]byte, regionBlocks*block.Size), clients: b.pool.clientBytes.Load()}
	err := f.all(ctx)
	if err != nil && b.pool.gone(b.number) {
		return fmt.Errorf("%w: it was deleted meanwhile", ErrNotFound)
	}
	return err
}

// gone tells whether there is no volume of that number any more.
func (p *Pool) gone(number uint64) bool {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.cat.Volume(number) == nil
}

// filler is a Fill under way.
type filler struct {
	*base
	progress func(done, total int64) error
	unsaved  int64 // bytes done since the last record, but for holes
	clients  int64 // what clients had written before the last step
	owed     time.Duration
	buf      []byte

	damaged int64 // bytes of the base that cannot be read
	first   error // the first of that

	heads  []*volume       // over the base
	roots  []blockmap.Root // of the snapshots
	asOf   uint64          // change of the catalogue that these are as of
	looked int             // how often they were looked at

	kept           [regionBlocks]blockmap.Entry
	missing, found [regionBlocks]bool
	its            [regionBlocks]blockmap.Entry
}

func (f *filler) all(ctx context.Context) error {
	for at := f.done.Load(); at < f.size; {
		next, err := f.some(ctx, at)
		if err != nil {
			return err
		}
		if next <= at {
			return fmt.Errorf("base %s: it tells no extents at %d", f, at)
		}
		at = next
	}
	if f.first != nil {
		return fmt.Errorf("%d bytes of the base cannot be read, and the rest is filled; overwrite what has them, or delete it, to do without: %w", f.damaged, f.first)
	}
	if f.whole() {
		return nil
	}
	if err := f.record(f.size); err != nil {
		return err
	}
	f.breakOff(f.close())
	return nil
}

// some fills a number of extents from at on, and returns where they end. Blocks of which a part is data are filled whole.
func (f *filler) some(ctx context.Context, at int64) (int64, error) {
	var extents []block.Extent
	err := f.use(ctx, func(ctx context.Context, d block.Device) (err error) {
		extents, err = d.Extents(ctx, at, f.size-at, 512)
		return err
	})
	if err != nil {
		return at, fmt.Errorf("extents of %d bytes at %d of the base %s: %w", f.size-at, at, f, err)
	}
	for _, e := range extents {
		end := e.Offset + e.Length
		if e.Zero {
			if end < f.size {
				end &^= block.Size - 1
			}
			at = max(at, end)
		}
		for at < end {
			next := min((at/copyBytes+1)*copyBytes, int64(blocksIn(end))*block.Size, f.size)
			if err := f.step(ctx, at, next); err != nil {
				return at, err
			}
			if at = next; at < end {
				err = f.report(at)
			}
			if err != nil {
				return at, err
			}
		}
		if err := f.report(at); err != nil {
			return at, err
		}
	}
	return at, nil
}

func (f *filler) report(done int64) error {
	if f.progress == nil {
		return nil
	}
	return f.progress(done, f.size)
}

// step fills what is missing from off up to end, within a region, and rests where clients write.
func (f *filler) step(ctx context.Context, off, end int64) error {
	start, clients := time.Now(), f.pool.clientBytes.Load()
	if !f.pool.begin() {
		return fmt.Errorf("pool: %w", block.ErrClosed)
	}
	err := f.region(ctx, uint64(off/block.Size), int(blocksIn(end)-uint64(off/block.Size)))
	f.unsaved += end - off
	if err == nil && f.unsaved >= fillRecorded && f.first == nil {
		err = f.recordNow(min(int64(blocksIn(end))*block.Size, f.size))
	}
	f.pool.end()
	if err != nil {
		return err
	}
	if f.pool.clientBytes.Load() != clients || clients != f.clients {
		f.owed += busyShare * time.Since(start)
	}
	f.clients = clients
	if f.owed < shortestPause || f.pool.opts.Manual { // who decides the order of everything has nobody to give way to
		return ctx.Err()
	}
	owed := f.owed
	f.owed = 0
	return sleep(ctx, owed)
}

// region fills what is missing of n blocks.
func (f *filler) region(ctx context.Context, lba uint64, n int) error {
	pins := f.pool.store.NewPins()
	if err := f.origin.kept.lookup(pins, lba, f.kept[:n]); err != nil {
		return damaged(err)
	}
	f.wanted(pins, lba, n)
	for i := range n {
		f.missing[i] = f.found[i] && f.kept[i].Epoch == 0
	}
	for i := 0; i < n; {
		k := i
		for k < n && f.missing[k] == f.missing[i] {
			k++
		}
		if f.missing[i] {
			if err := f.read(ctx, lba, i, k); err != nil {
				return err
			}
		}
		i = k
	}
	var blocks []int
	for i := range n {
		if f.missing[i] && !bytes.Equal(f.block(i), zeroBlock) {
			blocks = append(blocks, i)
		}
	}
	if len(blocks) == 0 {
		return nil
	}
	return f.keep(ctx, pins, len(blocks), func(i int) (uint64, []byte) { return lba + uint64(blocks[i]), f.block(blocks[i]) })
}

func (f *filler) block(i int) []byte { return f.buf[i*block.Size : (i+1)*block.Size] }

// read reads blocks from to up to of a region that begins with lba. Of a part that cannot be read it reads what can, and leaves the rest out.
func (f *filler) read(ctx context.Context, lba uint64, from, to int) error {
	err := f.readRest(ctx, f.buf[from*block.Size:to*block.Size], int64(lba+uint64(from))*block.Size, true)
	switch {
	case !errors.Is(err, block.ErrDamaged):
		return err
	case to-from == 1:
		f.missing[from] = false
		f.damaged += block.Size
		if f.first == nil {
			f.first = err
		}
		f.pool.damageMet(fmt.Sprintf("volume %q", f.user()), "filling", block.Size, int64(lba+uint64(from))*block.Size, err)
		return nil
	}
	middle := (from + to) / 2
	if err := f.read(ctx, lba, from, middle); err != nil {
		return err
	}
	return f.read(ctx, lba, middle, to)
}

// wanted finds which of n blocks from lba on any state has in the version that the base has. What no state has, none will have.
func (f *filler) wanted(pins *blockmap.Pins, lba uint64, n int) {
	for range quietLooks {
		f.users()
		if f.look(pins, lba, n) {
			return
		}
	}
	for i := range n {
		f.found[i] = true
	}
}

// look finds which of n blocks from lba on the users have in the version that the base has. It may be wrong of those that none has, and
// returns false, if the catalogue has changed since the users were found: a snapshot that is not among them may have what a head has lost since.
func (f *filler) look(pins *blockmap.Pins, lba uint64, n int) bool {
	clear(f.found[:n])
	left := n
	note := func(err error) {
		for i, e := range f.its[:n] {
			v, ok := version(e)
			has := err != nil || e.Lost() || ok && v == lba+uint64(i) // what cannot be told may be so
			if has && !f.found[i] {
				f.found[i] = true
				left--
			}
		}
	}
	for i := 0; i < len(f.heads) && left > 0; i++ {
		note(f.heads[i].lookup(pins, lba, f.its[:n]))
	}
	for i := 0; i < len(f.roots) && left > 0; i++ {
		note(waitFor(pins, func() error { return f.roots[i].Lookup(pins, lba, f.its[:n]) }))
		pins.ForgetBeyond(pinnedNodes)
	}
	return left == 0 || f.pool.changed() == f.asOf
}

// users finds the heads and the maps of the snapshots over the base, where that may be others than before.
func (f *filler) users() {
	p := f.pool
	p.mu.RLock()
	defer p.mu.RUnlock()
	// Now and then in any case, so that maps that lie in the log by now are not kept in memory.
	if f.looked++; f.asOf == p.changes && f.looked%rootsKept != 0 && f.heads != nil {
		return
	}
	f.asOf = p.changes
	f.heads, f.roots = f.heads[:0], f.roots[:0]
	for _, v := range p.cat.Volumes() {
		if v.Base != f.number {
			continue
		}
		f.heads = append(f.heads, p.volumes[v.Number])
		for _, s := range p.cat.Snapshots(v) {
			if s.Kind == catalogue.Snapshot {
				f.roots = append(f.roots, s.Root)
			}
		}
	}
}

// changed counts the changes of the catalogue.
func (p *Pool) changed() uint64 {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.changes
}

// keep logs the content of n versions; what tells a version and its block.
func (b *base) keep(ctx context.Context, pins *blockmap.Pins, n int, what func(i int) (version uint64, data []byte)) error {
	p := b.pool
	if err := p.checkpointer.throttle(ctx, p); err != nil {
		return err
	}
	room := int64(n+2) * block.Size
	if err := p.reclaimer.throttle(ctx, p, room); err != nil {
		return err
	}
	defer p.reclaimer.written(room)
	if err := p.space.admitBytes(ctx, p, room); err != nil {
		return err
	}
	defer p.space.release(room)
	w := writes.Get().(*write)
	defer w.release()
	if err := b.addKept(w, pins, n, what); err != nil {
		return err
	}
	return p.commitChanges(w)
}

// record says how far it is filled.
func (f *filler) record(done int64) error {
	if !f.pool.begin() {
		return fmt.Errorf("pool: %w", block.ErrClosed)
	}
	defer f.pool.end()
	return f.recordNow(done)
}

func (f *filler) recordNow(done int64) error {
	f.unsaved = 0
	_, err := f.pool.changeNow(func(c *catalogue.Catalogue) (proposal, error) {
		if c.Volume(f.number) == nil {
			return proposal{}, ErrNotFound
		}
		return proposal{op: &catalogue.Op{FillProgress: &catalogue.FillProgress{Number: f.number, DoneBytes: done}}, urgent: true}, nil
	})
	return err
}

// lacks tells whether a block that an entry is of has to be read from the base.
func (b *base) lacks(pins *blockmap.Pins, lba uint64, e blockmap.Entry) (bool, error) {
	if !inFile(e) || int64(lba)*block.Size < b.done.Load() {
		return false, nil
	}
	var k [1]blockmap.Entry
	err := b.origin.kept.lookup(pins, lba, k[:])
	return k[0].Epoch == 0, damaged(err)
}

// bring brings a block of a volume from the base into the pool, unless it is there.
func (b *base) bring(ctx context.Context, v *volume, lba uint64) error {
	pins := b.pool.store.NewPins()
	var e [1]blockmap.Entry
	if err := v.lookup(pins, lba, e[:]); err != nil {
		return damaged(err)
	}
	if lacks, err := b.lacks(pins, lba, e[0]); err != nil || !lacks {
		return err
	}
	data := make([]byte, block.Size)
	if err := b.readRest(ctx, data, int64(lba)*block.Size, true); err != nil {
		return err
	}
	if bytes.Equal(data, zeroBlock) {
		data = nil
	}
	return b.keep(ctx, pins, 1, func(int) (uint64, []byte) { return lba, data })
}

// bringEdges brings what ops set in part from the base into the pool, so that nothing is held while the base is read. Of those for which that
// fails it returns why.
func (v *volume) bringEdges(ctx context.Context, ops []*block.Op) map[*block.Op]error {
	b := v.baseBelow()
	if b == nil || b.whole() {
		return nil
	}
	var failed map[*block.Op]error
	size := v.size.Load()
	for _, op := range ops {
		if block.CheckRange(op.Offset, op.Length, size) != nil || op.Length == 0 { // told by who performs them
			continue
		}
		for _, part := range pieces(op, size) {
			for _, edge := range []int64{part.lo, part.hi} {
				if !part.data || edge%block.Size == 0 || failed[op] != nil {
					continue
				}
				if err := b.bring(ctx, v, uint64(edge/block.Size)); err != nil {
					if failed == nil {
						failed = map[*block.Op]error{}
					}
					failed[op] = fmt.Errorf("write volume %q at %d: %w", v.name(), op.Offset, err)
				}
			}
		}
	}
	return failed
}

// bringEnd is volume.bringEnd of a volume that is named. One that is not there is told by who resizes it.
func (p *Pool) bringEnd(ctx context.Context, name string, sizeBytes int64) error {
	p.mu.RLock()
	var v *volume
	if found, err := findLive(p.cat, name); err == nil {
		v = p.volumes[found.Number]
	}
	p.mu.RUnlock()
	if v == nil || !p.begin() {
		return nil
	}
	defer p.end()
	return v.bringEnd(ctx, sizeBytes)
}

// bringEnd brings the block that a new end of a volume lies in from the base into the pool.
func (v *volume) bringEnd(ctx context.Context, sizeBytes int64) error {
	b := v.baseBelow()
	if b == nil || b.whole() || sizeBytes%block.Size == 0 || sizeBytes >= v.size.Load() {
		return nil
	}
	return b.bring(ctx, v, uint64(sizeBytes/block.Size))
}
