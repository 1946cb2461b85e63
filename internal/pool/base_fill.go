package pool

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"varve/internal/block"
	"varve/internal/pool/blockmap"
	"varve/internal/pool/catalogue"
)

const (
	// fillRecorded is how much is filled between two records of that.
	fillRecorded = 64 << 20
	// fillWindow is how many regions of up to 1 MiB are read at once: a base may be far away.
	fillWindow = 16
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
	f := filler{base: b, progress: progress, clients: b.pool.clientBytes.Load()}
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
	window   []*fillRegion // that are filled together
	spare    []*fillRegion
	unsaved  int64 // bytes done since the last record, but for holes
	clients  int64 // what clients had written before the last step
	owed     time.Duration

	damaged int64 // bytes of the base that cannot be read
	first   error // the first of that

	heads  []*volume       // over the base
	roots  []blockmap.Root // of the snapshots
	asOf   uint64          // change of the catalogue that these are as of
	looked int             // how often they were looked at

	its [regionBlocks]blockmap.Entry
}

// fillRegion is what is filled at a time: blocks of the base that hold data, within what a leaf of the map covers.
type fillRegion struct {
	lba     uint64
	n       int
	kept    [regionBlocks]blockmap.Entry
	found   [regionBlocks]bool // some state has the block in the version that the base has
	missing [regionBlocks]bool // and it is not kept
	buf     []byte

	damaged int64
	err     error // why it cannot be read; where there is damage, of the first of that
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
			f.add(at, next)
			at = next
			if len(f.window) == fillWindow || f.pool.opts.Manual { // who decides the order of everything sees each
				if err := f.step(ctx, at); err != nil {
					return at, err
				}
			}
		}
	}
	return at, f.step(ctx, at)
}

// add adds what lies from off up to end, within a region, to the window.
func (f *filler) add(off, end int64) {
	var r *fillRegion
	if last := len(f.spare) - 1; last >= 0 {
		r, f.spare = f.spare[last], f.spare[:last]
	} else {
		r = &fillRegion{buf: make([]byte, regionBlocks*block.Size)}
	}
	r.lba = uint64(off / block.Size)
	r.n = int(blocksIn(end) - r.lba)
	r.damaged, r.err = 0, nil
	f.window = append(f.window, r)
	f.unsaved += end - off
}

// step fills what is missing of the window, which ends before at, and rests where clients write.
func (f *filler) step(ctx context.Context, at int64) error {
	if !f.pool.begin() {
		return fmt.Errorf("pool: %w", block.ErrClosed)
	}
	clients := f.pool.clientBytes.Load()
	took, err := f.fillWindow(ctx)
	if err == nil && f.unsaved >= fillRecorded && f.first == nil && at < f.size {
		err = f.recordNow(at)
	}
	f.pool.end()
	if err == nil && f.progress != nil {
		err = f.progress(at, f.size)
	}
	if err != nil {
		return err
	}
	if f.pool.clientBytes.Load() != clients || clients != f.clients {
		f.owed += busyShare * took
	}
	f.clients = clients
	if f.owed < shortestPause || f.pool.opts.Manual { // who decides the order of everything has nobody to give way to
		return ctx.Err()
	}
	owed := f.owed
	f.owed = 0
	return sleep(ctx, owed)
}

// fillWindow fills what is missing of the window, and tells how long that took, but for reading the base, of which clients notice nothing.
func (f *filler) fillWindow(ctx context.Context) (took time.Duration, err error) {
	start := time.Now()
	for _, r := range f.window {
		if err := f.choose(r); err != nil {
			return 0, err
		}
	}
	took = time.Since(start)
	var wg sync.WaitGroup
	for _, r := range f.window {
		wg.Go(func() { f.readRegion(ctx, r) })
	}
	wg.Wait()
	start = time.Now()
	for _, r := range f.window {
		if r.damaged > 0 {
			f.damaged += r.damaged
			f.first = cmp.Or(f.first, r.err)
		} else if r.err != nil {
			return 0, r.err
		}
		if err := f.keepRegion(ctx, r); err != nil {
			return 0, err
		}
	}
	f.spare, f.window = append(f.spare, f.window...), f.window[:0]
	return took + time.Since(start), nil
}

// choose finds what is missing of a region.
func (f *filler) choose(r *fillRegion) error {
	pins := f.pool.store.NewPins()
	if err := f.origin.kept.lookup(pins, r.lba, r.kept[:r.n]); err != nil {
		return damaged(err)
	}
	f.wanted(pins, r)
	for i := range r.n {
		r.missing[i] = r.found[i] && r.kept[i].Epoch == 0
	}
	return nil
}

func (r *fillRegion) block(i int) []byte { return r.buf[i*block.Size : (i+1)*block.Size] }

// readRegion reads what is missing of a region.
func (f *filler) readRegion(ctx context.Context, r *fillRegion) {
	for i := 0; i < r.n; {
		k := i
		for k < r.n && r.missing[k] == r.missing[i] {
			k++
		}
		if r.missing[i] {
			if err := f.read(ctx, r, i, k); err != nil {
				r.damaged, r.err = 0, err
				return
			}
		}
		i = k
	}
}

// read reads blocks from to up to of a region. Of a part that is damaged it reads what can be read, and leaves the rest out.
func (f *filler) read(ctx context.Context, r *fillRegion, from, to int) error {
	off := int64(r.lba+uint64(from)) * block.Size
	err := f.readRest(ctx, r.buf[from*block.Size:to*block.Size], off, true)
	switch {
	case !errors.Is(err, block.ErrDamaged):
		return err
	case to-from == 1:
		r.missing[from] = false
		r.damaged += block.Size
		r.err = cmp.Or(r.err, err)
		f.pool.damageMet(fmt.Sprintf("volume %q", f.user()), "filling", block.Size, off, err)
		return nil
	}
	middle := (from + to) / 2
	if err := f.read(ctx, r, from, middle); err != nil {
		return err
	}
	return f.read(ctx, r, middle, to)
}

// keepRegion keeps what was missing of a region, but for zeros.
func (f *filler) keepRegion(ctx context.Context, r *fillRegion) error {
	var blocks []int
	for i := range r.n {
		if r.missing[i] && !bytes.Equal(r.block(i), zeroBlock) {
			blocks = append(blocks, i)
		}
	}
	if len(blocks) == 0 {
		return nil
	}
	return f.keep(ctx, f.pool.store.NewPins(), len(blocks), func(i int) (uint64, []byte) { return r.lba + uint64(blocks[i]), r.block(blocks[i]) })
}

// wanted finds which blocks of a region any state has in the version that the base has. What no state has, none will have.
func (f *filler) wanted(pins *blockmap.Pins, r *fillRegion) {
	for range quietLooks {
		f.users()
		if f.look(pins, r) {
			return
		}
	}
	for i := range r.n {
		r.found[i] = true
	}
}

// look finds which blocks of a region the users have in the version that the base has. It may be wrong of those that none has, and
// returns false, if the catalogue has changed since the users were found: a snapshot that is not among them may have what a head has lost since.
func (f *filler) look(pins *blockmap.Pins, r *fillRegion) bool {
	clear(r.found[:r.n])
	left, its := r.n, f.its[:r.n]
	note := func(err error) {
		for i, e := range its {
			v, ok := version(e)
			has := err != nil || e.Lost() || ok && v == r.lba+uint64(i) // what cannot be told may be so
			if has && !r.found[i] {
				r.found[i] = true
				left--
			}
		}
	}
	for i := 0; i < len(f.heads) && left > 0; i++ {
		note(f.heads[i].lookup(pins, r.lba, its))
	}
	for i := 0; i < len(f.roots) && left > 0; i++ {
		note(waitFor(pins, func() error { return f.roots[i].Lookup(pins, r.lba, its) }))
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
