package pool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"varve/internal/block"
	"varve/internal/pool/blockmap"
	"varve/internal/pool/catalogue"
	"varve/internal/pool/seglog"
)

// frozenState is what a superblock describes: the pool at a position of the log.
type frozenState struct {
	position seglog.Position
	roots    []ownedRoot
	live     int64 // the live counter at that position
	lost     bool  // the last mark found that something is lost
}

// ownedRoot is a state's map and what of it is the state's own.
type ownedRoot struct {
	state  uint64
	parent uint64 // 0: none
	root   blockmap.Root
	own    blockmap.Own
	// A hidden state's blocks are there for the nearest visible states below it alone, to which these lead.
	hidden bool
	heirs  []*blockmap.Heir
}

// freezeState describes a checkpoint whose maps lie in the log.
func freezeState(at seglog.Position, cat *catalogue.View, heads map[uint64]blockmap.Root, live int64) *frozenState {
	f := &frozenState{position: at, live: live}
	rootOf := func(s *catalogue.State) blockmap.Root {
		if s.Kind == catalogue.Head {
			return heads[s.ID].Settled()
		}
		return s.Root.Settled()
	}
	heirs := heirsOf(cat.States(), rootOf)
	for _, s := range cat.States() {
		r := ownedRoot{state: s.ID, parent: s.Parent, root: rootOf(s), own: cat.Own(s)}
		if s.Kind == catalogue.Hidden {
			r.hidden, r.heirs = true, heirs(s.ID)
		}
		f.roots = append(f.roots, r)
	}
	return f
}

// heirsOf finds for whose sake hidden states are there, and shares what several of them have below them.
func heirsOf(states []*catalogue.State, root func(*catalogue.State) blockmap.Root) (of func(id uint64) []*blockmap.Heir) {
	hidden := map[uint64]*blockmap.Heir{} // states that are there for others, or for their nodes alone
	for _, s := range states {
		if s.Kind != catalogue.Head && s.Kind != catalogue.Snapshot {
			hidden[s.ID] = &blockmap.Heir{Root: root(s)}
		}
	}
	for _, s := range states {
		up, k := hidden[s.Parent], hidden[s.ID]
		if up == nil {
			continue
		}
		if k == nil {
			k = &blockmap.Heir{Root: root(s), Shown: true}
		}
		up.Below = append(up.Below, k)
	}
	return func(id uint64) []*blockmap.Heir { return hidden[id].Below }
}

// reclaimer gives space back. What the older of the two superblocks does not refer to, in
// segments wholly before its position, is dead for ever: see docs/design/reclaim.md.
type reclaimer struct {
	pins pins

	cycles   sync.Mutex // one cycle at a time: a set of live blocks holds for the files it was made for
	running  bool
	kick     chan struct{}
	quit     context.Context // ends when the pool is closed, and with it the cycle
	end      context.CancelFunc
	done     chan struct{}
	deleted  atomic.Bool  // a state went since the last cycle began
	earliest atomic.Int64 // Unix nanoseconds; before, a deletion alone starts no cycle
	physical atomic.Int64 // bytes of segment files
	granted  atomic.Int64 // bytes that writers who were let on have not written yet
	unsure   atomic.Int64 // bytes that were cleared since the last cycle began, some of which snapshots may have
	live     atomic.Int64 // change of live bytes since the pool was opened, as far as known
	marked   atomic.Int64 // live bytes by the last mark, less the counter at its position
	maps     atomic.Int64 // bytes of live map nodes by the last mark
	left     atomic.Int64 // garbage that the last cycle left
	liveThen atomic.Int64 // live bytes when the last cycle began
	stuck    atomic.Bool  // the last cycle gave next to nothing back, though there was much

	freed, copied atomic.Int64 // bytes, by all cycles

	older, newer *frozenState // what the two superblocks describe; guarded by checkpointMu

	mu     sync.Mutex
	relief chan struct{} // closed when something was given back, or a cycle has ended
	next   time.Time     // when all who are slowed down will have gone on
}

const (
	quietTicks = 10 // of 2 s, after which next to nobody writes any more
	// idleBytes is how much is written to the log between two ticks where next to nobody writes.
	idleBytes = 4 << 20
	// retryFailed is how soon a cycle for what was deleted is tried again.
	retryFailed = 30 * time.Second
	// rollBytes of garbage may be left in the segment that is being written.
	rollBytes = 16 << 20
	// maxSets bounds the sets of live blocks that a sweep keeps at a time, 2.3 KiB for each segment.
	maxSets = 4096
	// punchable is how much of a file must be dead for it to be looked at although it is live to nine tenths.
	punchable = 1 << 20
)

func (r *reclaimer) init(p *Pool) error {
	r.marked.Store(p.cat.LiveBytes)
	r.relief = make(chan struct{})
	files, err := p.log.Files()
	if err != nil {
		return err
	}
	for _, f := range files {
		r.physical.Add(f.Bytes)
	}
	r.physical.Add(-int64(p.log.BytesWritten())) // which is counted by itself
	return nil
}

func (r *reclaimer) start(p *Pool) {
	if p.opts.Manual {
		return
	}
	r.running = true
	r.kick, r.done = make(chan struct{}, 1), make(chan struct{})
	r.quit, r.end = context.WithCancel(context.Background())
	// What was deleted before the pool was closed may still lie there, and nothing else tells.
	r.deleted.Store(r.physical.Load() > reclaimLeast)
	go func() {
		defer close(r.done)
		tick := time.NewTicker(2 * time.Second)
		defer tick.Stop()
		var written uint64 // of the log, at the last tick
		quiet := 0         // ticks since somebody wrote
		well := false      // the last cycle was for the time when nobody writes
		for {
			idle := false
			select {
			case <-r.quit.Done():
				return
			case <-r.kick:
			case <-tick.C:
				p.space.look(p)
				p.space.observe(p, false)
				now := p.log.BytesWritten()
				idle = now-written < idleBytes
				if quiet++; !idle {
					quiet = 0
				}
				written = now
				if quiet == quietTicks {
					r.keepSpares(p, r.spareFew(p, spareIdle))
				}
			}
			switch {
			case p.space.press(p):
			case idle && r.garbage(p) > cleanWell(r.liveBytes(), 0) && (!well || r.garbage(p)-r.left.Load() > reclaimLeast/2):
				r.cycle(p, cleanWell)
				written = p.log.BytesWritten()
				well = true
				r.keepSpares(p, r.spareFew(p, spareIdle))
				p.log.TakeSpare() // for whoever writes next
			case r.worth(p):
				r.cycle(p, cleanBusy)
				well = false
			}
			r.relieve()
		}
	}()
}

// keepSpares gives back what was kept for writers beyond so many bytes.
func (r *reclaimer) keepSpares(p *Pool, bytes int64) {
	if err := p.log.KeepSpares(bytes); err != nil {
		p.event(EventReclaimFailed, "log", err.Error())
	}
}

func (r *reclaimer) cycle(p *Pool, g goal) {
	start := time.Now()
	_, err := p.reclaim(r.quit, g)
	pause := 10 * time.Since(start) // frequent deletions share cycles: a mark reads every map
	if err != nil && !errors.Is(err, ErrWriteStopped) && r.quit.Err() == nil {
		p.event(EventReclaimFailed, "log", err.Error())
		pause = max(pause, retryFailed)
	}
	r.earliest.Store(time.Now().Add(pause).UnixNano())
}

func (r *reclaimer) stop() {
	if r.running {
		r.end()
		<-r.done
		r.relieve()
	}
}

// Reclaimed tells what a cycle did.
type Reclaimed struct {
	FreedBytes  int64 // that the log became smaller by
	CopiedBytes int64 // that were written to make that possible
	LiveBytes   int64 // found by the mark
	Removed     int   // files of the log
	Rewritten   int   // files that became shorter
	Packed      int   // files of which little was left, which share others now
	Punched     int   // files in which holes were made
}

// Reclaim gives back what was dead when it was called, in every segment that a tenth of is.
func (p *Pool) Reclaim(ctx context.Context) (Reclaimed, error) {
	if !p.begin() {
		return Reclaimed{}, fmt.Errorf("reclaim: pool: %w", block.ErrClosed)
	}
	defer p.end()
	out, err := p.reclaim(ctx, cleanAll)
	if err == nil {
		err = p.log.KeepSpares(p.reclaimer.spareFew(p, min(p.reclaimer.liveBytes()/20, spareIdle)))
		p.log.TakeSpare() // the log was rolled before there were any
	}
	return out, err
}

func (p *Pool) reclaim(ctx context.Context, g goal) (out Reclaimed, err error) {
	r := &p.reclaimer
	r.cycles.Lock()
	defer r.cycles.Unlock()
	if r.deleted.Swap(false) {
		defer func() {
			if err != nil {
				r.deleted.Store(true)
			}
		}()
		if err := p.collect(ctx); err != nil {
			return Reclaimed{}, fmt.Errorf("reclaim: %w", err)
		}
	}
	r.liveThen.Store(r.liveBytes())
	r.unsure.Store(0)
	defer func() { // also where it fails, so that nobody waits for what does not come
		r.left.Store(max(r.garbage(p), 0))
		r.stuck.Store(out.FreedBytes < reclaimLeast/4 && r.room(p) < 0)
	}()
	// The segment that is being written is not cleaned.
	if err := p.log.Roll(max(g(0, 1), rollBytes)); err != nil && !errors.Is(err, block.ErrNoSpace) {
		return Reclaimed{}, fmt.Errorf("reclaim: %w", err)
	}
	// Two checkpoints make both superblocks know all that is dead now.
	for range 2 {
		err := p.checkpointNow()
		if errors.Is(err, block.ErrNoSpace) && releaseReserve(&p.opts) {
			err = p.checkpointNow()
		}
		if err != nil {
			return Reclaimed{}, err
		}
	}
	out, err = p.sweep(ctx, g)
	if err != nil {
		return out, fmt.Errorf("reclaim: %w", err)
	}
	return out, nil
}

// sweep cleans the segments before the basis.
func (p *Pool) sweep(ctx context.Context, g goal) (Reclaimed, error) {
	var out Reclaimed
	basis, pinned := p.basis()
	live, err := p.markSizes(ctx, basis)
	if err != nil {
		return out, err
	}
	for _, n := range live {
		out.LiveBytes += n
	}
	p.reclaimer.marked.Store(out.LiveBytes - basis.live)
	if err := p.markPinnedSizes(ctx, basis, pinned, live); err != nil {
		return out, err
	}
	rounds, err := p.victims(basis, live, g)
	if err != nil {
		return out, err
	}
	if p.space.pressed.Load() { // room to rewrite segments in
		releaseReserve(&p.opts)
		defer keepReserve(&p.opts)
	}
	var failed error // of files that were left as they were
	for _, victims := range rounds {
		sets, err := p.markBlocks(ctx, basis, pinned, victims)
		if err != nil {
			return out, err
		}
		c := p.log.NewCompactor()
		for i := 0; i <= len(victims); i++ {
			if err := ctx.Err(); err != nil {
				return out, err
			}
			if err := p.log.KeepSpares(p.reclaimer.spareRoom(p)); err != nil {
				return out, err
			}
			var done seglog.Compacted
			var err error
			if i < len(victims) {
				done, err = c.Compact(victims[i], sets)
			} else {
				done, err = c.Flush()
			}
			out.add(done)
			p.reclaimer.gaveBack(done)
			if errors.Is(err, seglog.ErrStopped) {
				return out, err
			}
			failed = cmp.Or(failed, err)
		}
	}
	return out, failed
}

func (r *Reclaimed) add(c seglog.Compacted) {
	r.FreedBytes += c.Freed
	r.CopiedBytes += c.Copied
	r.Removed += c.Removed
	r.Rewritten += c.Rewritten
	r.Packed += c.Packed
	r.Punched += c.Punched
}

// gaveBack counts what was done, and lets writers go on.
func (r *reclaimer) gaveBack(c seglog.Compacted) {
	r.physical.Add(-c.Freed)
	r.freed.Add(c.Freed)
	r.copied.Add(c.Copied)
	if c.Freed > 0 {
		r.relieve() // room for a few more writes already
	}
}

// markSizes finds how many bytes of each segment the basis refers to.
func (p *Pool) markSizes(ctx context.Context, basis *frozenState) (map[uint64]int64, error) {
	live := map[uint64]int64{}
	maps := int64(0)
	err := p.markStates(ctx, basis, func(n blockmap.Ptr) {
		live[n.Addr.Segment()] += int64(n.Length)
		maps += int64(n.Length)
	}, func(entries []blockmap.Entry) {
		for _, e := range entries {
			if e.Stored() {
				live[e.Addr.Segment()] += block.Size
			}
		}
	})
	if err != nil {
		return nil, err
	}
	p.reclaimer.maps.Store(maps)
	return live, nil
}

// markPinnedSizes adds what pinned states refer to and the basis does not.
func (p *Pool) markPinnedSizes(ctx context.Context, basis *frozenState, pinned []ownedRoot, live map[uint64]int64) error {
	beyond := int64(0)
	err := p.markPinned(ctx, basis, pinned, func(n blockmap.Ptr) {
		live[n.Addr.Segment()] += int64(n.Length)
		beyond += int64(n.Length)
	}, func(entries []blockmap.Entry) {
		for _, e := range entries {
			live[e.Addr.Segment()] += block.Size
		}
		beyond += int64(len(entries)) * block.Size
	})
	p.reclaimer.pins.marked(beyond)
	return err
}

// markPinned visits what pinned states refer to and the basis does not.
func (p *Pool) markPinned(ctx context.Context, basis *frozenState, pinned []ownedRoot, node func(blockmap.Ptr), entries func([]blockmap.Entry)) error {
	if len(pinned) == 0 {
		return nil
	}
	known := make(map[uint64]*ownedRoot, len(basis.roots))
	for i := range basis.roots {
		known[basis.roots[i].state] = &basis.roots[i]
	}
	for _, r := range pinned {
		var visited blockmap.Root
		// Of a hidden state not all blocks were visited, and none of one that keeps a map alone, which it may have become since.
		if of := known[r.state]; of != nil && !of.hidden && (of.own.Data != blockmap.NoData || r.own.Data == blockmap.NoData) {
			visited = of.root
		}
		if err := p.store.MarkBeyond(ctx, r.root, visited, basis.ownOf(r), node, entries); err != nil {
			return fmt.Errorf("mark what is being read: %w", err)
		}
	}
	return nil
}

// victims are the files to clean, the emptiest first, until little enough garbage is left
// in those before the basis; and packs that are to become one. They are cleaned in rounds, whose sets of live blocks are kept at a time.
func (p *Pool) victims(basis *frozenState, live map[uint64]int64, g goal) (rounds [][]seglog.File, err error) {
	files, err := p.log.Files()
	if err != nil {
		return nil, err
	}
	type victim struct {
		seglog.File
		share   float64 // of it that is live
		garbage int64
	}
	var found []victim
	var packs []seglog.File
	var garbage, all int64
	for _, f := range files {
		if len(f.Segments) == 0 || f.Segments[len(f.Segments)-1] >= basis.position.Segment {
			continue
		}
		alive := int64(0)
		for _, id := range f.Segments {
			alive += live[id]
		}
		v := victim{f, float64(alive) / float64(max(f.Bytes, 1)), max(f.Bytes-alive, 0)}
		garbage += v.garbage
		all += alive
		if v.share < seglog.CompactBelow || v.garbage >= punchable && f.Pack == 0 {
			found = append(found, v)
		} else if f.Pack != 0 {
			packs = append(packs, f)
		}
	}
	slices.SortFunc(found, func(a, b victim) int { return cmp.Compare(a.share, b.share) })
	var victims []seglog.File
	for _, v := range found {
		if v.share > 0 && garbage <= g(all, v.share) {
			break
		}
		victims = append(victims, v.File)
		garbage -= v.garbage
	}
	// What is to become one is cleaned in one round, with what little is left of others if there are not many.
	merged := mergeable(packs, p.super.Load().segmentBytes, maxSets)
	if setsOf(live, append(victims[:len(victims):len(victims)], merged...)...) <= maxSets {
		return inRounds(append(victims, merged...), live, maxSets), nil
	}
	return append(inRounds(victims, live, maxSets), inRounds(merged, live, maxSets)...), nil
}

// setsOf counts the sets of live blocks of files: none where nothing is live.
func setsOf(live map[uint64]int64, files ...seglog.File) (sets int) {
	for _, f := range files {
		for _, id := range f.Segments {
			if live[id] > 0 {
				sets++
			}
		}
	}
	return sets
}

// inRounds divides files so that each part has at most so many sets of live blocks, or is one file.
func inRounds(files []seglog.File, live map[uint64]int64, most int) (rounds [][]seglog.File) {
	for from, at, sets := 0, 0, 0; at < len(files); at++ {
		n := setsOf(live, files[at])
		if at == from || sets+n > most {
			rounds, from, sets = append(rounds, nil), at, 0
		}
		sets += n
		rounds[len(rounds)-1] = files[from : at+1]
	}
	return rounds
}

// mergeable finds packs of about the same size of which there are so many that they should be one. So there are few,
// and a block is copied once for each size. What it finds has at most so many segments: packs of which no two have that few are large.
func mergeable(packs []seglog.File, full int64, segments int) []seglog.File {
	const many = 8
	sizes := map[int][]seglog.File{}
	for _, f := range packs {
		if f.Bytes < full/2 {
			tier := bits.Len64(uint64(full/f.Bytes)) / 3
			sizes[tier] = append(sizes[tier], f)
		}
	}
	var out []seglog.File
	for _, tier := range slices.Backward(slices.Sorted(maps.Keys(sizes))) { // the smallest first
		same := sizes[tier]
		if len(same) < many {
			continue
		}
		slices.SortFunc(same, func(a, b seglog.File) int { return cmp.Compare(len(a.Segments), len(b.Segments)) })
		n, left := 0, segments
		for n < len(same) && len(same[n].Segments) <= left {
			left -= len(same[n].Segments)
			n++
		}
		if n > 1 {
			out = append(out, same[:n]...)
			segments = left
		}
	}
	return out
}

// markBlocks finds which blocks of the victims the basis refers to, or a pinned state.
func (p *Pool) markBlocks(ctx context.Context, basis *frozenState, pinned []ownedRoot, victims []seglog.File) (map[uint64]seglog.BlockSet, error) {
	sets := map[uint64]seglog.BlockSet{}
	for _, f := range victims {
		for _, id := range f.Segments {
			sets[id] = nil
		}
	}
	if len(sets) == 0 {
		return sets, nil
	}
	setOf := func(id uint64) seglog.BlockSet {
		set, victim := sets[id]
		if victim && set == nil {
			set = seglog.NewBlockSet(p.log.SegmentBlocks())
			sets[id] = set
		}
		return set
	}
	node := func(n blockmap.Ptr) {
		if set := setOf(n.Addr.Segment()); set != nil {
			for off := n.Addr.Offset() / block.Size; off*block.Size < n.Addr.Offset()+int64(n.Length); off++ {
				set.Add(int(off))
			}
		}
	}
	entries := func(entries []blockmap.Entry) {
		for _, e := range entries {
			if !e.Stored() {
				continue
			}
			if set := setOf(e.Addr.Segment()); set != nil {
				set.Add(int(e.Addr.Offset() / block.Size))
			}
		}
	}
	if err := p.markStates(ctx, basis, node, entries); err != nil {
		return nil, err
	}
	return sets, p.markPinned(ctx, basis, pinned, node, entries)
}
