package pool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"varve/internal/block"
	"varve/internal/pool/blockmap"
	"varve/internal/pool/catalogue"
	"varve/internal/pool/seglog"
)

// Damage is one finding of Check: a range of a volume or snapshot, or a part of the pool, that cannot be read. What several
// states share is found in each.
type Damage struct {
	Object           string // VOLUME, VOLUME@SNAP or VOLUME#BOOKMARK, (hidden) for a deleted snapshot that others descend from, or a part of the pool
	Volume, Snapshot string // empty where Object is not of one
	Offset           int64  // bytes within it; -1 for a part of the pool
	Length           int64
	Lost             bool // it is recorded as lost: a repair will not make more of it
	Message          string
}

// Leak is space that nothing refers to and that nobody would give back by himself, or a file that is none of the pool's.
type Leak struct {
	Object  string // a file, or "log"
	Bytes   int64
	Message string
}

// CheckReport is what Check found.
type CheckReport struct {
	Blocks   int64 // data blocks verified
	MapNodes int64 // pieces of maps verified
	Bytes    int64 // of data blocks
	Damage   []Damage
	Leaks    []Leak

	LiveBytes      int64 // what volumes and snapshots refer to: data and maps
	EstimatedBytes int64 // what the pool took that to be
	LogBytes       int64 // in segment files
	GarbageBytes   int64 // of these, what nothing refers to in segments that could be reclaimed

	nodes []*nodeDamage // damaged parts of maps, that a repair can record as lost
	// last epoch and state that there were: what is newer was not looked at.
	lastEpoch, lastState uint64
}

// nodeDamage is a part of a map that cannot be read, or a count in it that is wrong, and the states that show it.
type nodeDamage struct {
	err    *blockmap.NodeError
	states []uint64
	listed bool // in the report
}

// Check reads and verifies every map node that any volume, snapshot or bookmark reaches and every
// block that any volume or snapshot does, each once, while the pool is in use. progress may be nil; it is
// called with a fraction from 0 to 1. The error is nil whatever the damage found.
func (p *Pool) Check(ctx context.Context, progress func(float64)) (CheckReport, error) {
	if !p.begin() {
		return CheckReport{}, fmt.Errorf("check: pool: %w", block.ErrClosed)
	}
	defer p.end()
	c := checker{pool: p, ctx: ctx, children: map[uint64][]*checkedState{}, blind: map[uint64][]lostRange{}, live: map[uint64]int64{}}
	release, err := p.pin(c.choose)
	if err != nil {
		return CheckReport{}, fmt.Errorf("check: %w", err)
	}
	defer release()
	c.weigh()

	reclaimable, err := c.checkpoints()
	if err == nil && (p.readOnly || p.log.Failure() == nil) {
		err = p.log.DropCaches() // what is verified is what is on the disk; after a failed sync the cache may be all there is
	}
	if err != nil {
		return c.report, fmt.Errorf("check: %w", err)
	}
	for i, s := range c.subjects {
		if err := c.check(s); err != nil {
			return c.report, fmt.Errorf("check %s: %w", s.name, err)
		}
		c.settle(i)
		if progress != nil {
			progress(float64(i+1) / float64(len(c.subjects)))
		}
	}
	if err := c.tellKept(); err != nil {
		return c.report, fmt.Errorf("check: %w", err)
	}
	if err := c.leaks(reclaimable); err != nil {
		return c.report, fmt.Errorf("check: %w", err)
	}
	if c.more {
		c.report.Damage = append(c.report.Damage, Damage{Object: "pool", Offset: -1, Message: "there is more damage, which is not listed"})
	}
	c.report.Bytes = c.report.Blocks * block.Size
	c.report.EstimatedBytes = p.reclaimer.liveBytes()
	c.report.Damage = merged(c.report.Damage)
	return c.report, nil
}

// checker is one check under way.
type checker struct {
	pool     *Pool
	ctx      context.Context
	report   CheckReport
	subjects []*checkedState            // parents first: what a state shares with its parent was verified there
	children map[uint64][]*checkedState // by parent's ID
	blind    map[uint64][]lostRange     // by state: where its own could not be found
	live     map[uint64]int64           // bytes by segment
	loaded   []*checkedState            // whose maps have nodes in memory

	kept    map[*origin][]keptDamage
	kepts   int                                 // how many
	shown   int                                 // states that show damaged parts of maps, for all of these
	more    bool                                // there is damage that is not in the report
	entries [blockmap.LeafBlocks]blockmap.Entry // of sharedBlocks
}

// checkedState is a state that is checked.
type checkedState struct {
	ownedRoot
	name, volume, snapshot string
	blocks, parent         uint64
	noData                 bool    // a bookmark, whose map may name blocks that are gone
	base                   *origin // of blocks of which it has versions
	keeps                  *origin // of the internal volume: whose versions it keeps

	up      *checkedState // parent
	descent int           // how many states there are from here down
	unnamed int           // those of them that are not in the report, and may be
	named   bool          // it is in the report, or need not be
	last    int           // its last finding, counted from 1
}

func (c *checker) choose() ([]ownedRoot, error) {
	cat := c.pool.cat
	c.report.lastEpoch, c.report.lastState = cat.LastEpoch, cat.LastState
	states := cat.States()
	slices.SortStableFunc(states, func(a, b *catalogue.State) int { return cmp.Compare(a.Epoch, b.Epoch) })
	var roots []ownedRoot
	for _, st := range states {
		r := ownedRoot{state: st.ID, root: c.pool.frozenRoot(st), own: cat.Own(st), hidden: st.Kind == catalogue.Hidden}
		s := &checkedState{ownedRoot: r, name: c.pool.stateName(st), blocks: blocksIn(st.SizeBytes), parent: st.Parent, noData: !st.Kind.HoldsData()}
		switch st.Kind {
		case catalogue.Snapshot, catalogue.Copy, catalogue.Head, catalogue.Bookmark:
			shown := seen(cat, st)
			if s.volume = cat.Volume(shown.Volume).Name; shown.Kind == catalogue.Snapshot || shown.Kind == catalogue.Copy {
				s.snapshot = shown.Name
			}
		}
		if s.base = c.pool.basedOn(cat, st); s.base == nil && st.Kind == catalogue.Head {
			v := cat.Volume(st.Volume)
			if of := cat.Volume(v.KeptOf); of != nil {
				v = of
			}
			s.keeps = c.pool.volumes[v.Number].provides()
		}
		roots = append(roots, s.ownedRoot)
		c.subjects = append(c.subjects, s)
		c.children[st.Parent] = append(c.children[st.Parent], s)
	}
	if err := cat.Verify(); err != nil {
		c.report.Damage = append(c.report.Damage, Damage{Object: "catalogue", Offset: -1, Message: err.Error()})
	}
	return roots, nil
}

// check verifies what a state does not share with its parent, and what its parent could not show that it shares.
func (c *checker) check(s *checkedState) error {
	b := blockCheck{checker: c, of: s, own: s.own}
	verify := b.verify
	if s.hidden {
		verify = b.verifyHeld(s)
	}
	damaged := func(e *blockmap.NodeError) {
		if e.First >= s.blocks || b.failed != nil { // beyond the end of a volume that was shrunk nobody looks
			return
		}
		b.found(finding{
			lba: e.First, blocks: min(e.Blocks(), s.blocks-e.First), node: &nodeDamage{err: e}, lost: errors.Is(e, blockmap.ErrLost), message: e.Error(),
		})
		b.failed = b.tell(false)
		if !errors.Is(e, blockmap.ErrMiscounted) {
			b.cannotSee(e.First, e.First+e.Blocks())
		}
	}
	err := c.pool.store.Check(s.root, s.own, func(n blockmap.Ptr) {
		c.report.MapNodes++
		c.live[n.Addr.Segment()] += int64(n.Length)
	}, verify, damaged)
	for _, r := range c.blind[s.parent] {
		if err != nil {
			return err
		}
		b.own = r.own
		err = c.pool.store.CheckRange(s.root, r.own, r.lo, r.hi, func(blockmap.Ptr) {}, func(lba uint64, entries []blockmap.Entry) error {
			for i := range entries {
				if !s.noData && entries[i].Epoch <= s.own.Data { // newer ones were verified above
					if err := verify(lba+uint64(i), entries[i:i+1]); err != nil {
						return err
					}
				}
			}
			return nil
		}, damaged)
		if s.noData { // it keeps no blocks, and what descends from it may have them
			c.blind[s.state] = append(c.blind[s.state], r)
		}
	}
	if err == nil {
		err = b.flush()
	}
	if err == nil {
		err = b.failed
	}
	if err == nil {
		err = b.tell(true)
	}
	return err
}

// settle lets go of the nodes in memory of maps that lie in the log by now.
func (c *checker) settle(verified int) {
	if verified == 0 {
		c.loaded = slices.Clone(c.subjects)
	}
	c.loaded = slices.DeleteFunc(c.loaded, func(s *checkedState) bool {
		s.root = s.root.Settled()
		_, inLog := s.root.Slot()
		return inLog
	})
}

// checkpoints verifies both superblock slots and the images they lead to. It returns the segment from
// which on nothing may be reclaimed yet.
func (c *checker) checkpoints() (reclaimable uint64, err error) {
	p := c.pool
	p.checkpointMu.Lock()
	defer p.checkpointMu.Unlock()
	found := func(object, message string) {
		c.report.Damage = append(c.report.Damage, Damage{Object: object, Offset: -1, Message: message})
	}
	if p.superFile == nil {
		found(superblockName, "it is missing")
		return 0, nil
	}
	supers, err := readSuperblocks(p.superFile)
	if err != nil && !errors.Is(err, ErrDamagedLog) {
		return 0, err
	}
	if n := min(2, int(p.super.Load().generation)+1) - len(supers); n > 0 {
		found(superblockName, fmt.Sprintf("%d of its slots are not sound; the next checkpoints write them anew", n))
	}
	for i := range supers {
		s := &supers[i]
		if s.pool != p.ID() {
			found(superblockName, fmt.Sprintf("a slot is of another pool, %s", s.pool))
		}
		if reclaimable = s.position.Segment; i > 0 {
			reclaimable = min(reclaimable, supers[0].position.Segment)
		}
		if _, err := p.loadCatalogue(s); err != nil {
			found(fmt.Sprintf("checkpoint %d", s.generation), err.Error())
		}
	}
	return reclaimable, nil
}

func (p *Pool) stateName(s *catalogue.State) string {
	if s.Kind == catalogue.Hidden || s.Kind == catalogue.Fork {
		return "(hidden)"
	}
	s = seen(p.cat, s)
	v := p.cat.Volume(s.Volume)
	switch {
	case s.Kind == catalogue.Bookmark:
		return BookmarkRef{v.Name, s.Name}.String()
	case s.Kind == catalogue.Head:
		return v.Name
	}
	return SnapshotRef{v.Name, s.Name}.String()
}

// blockCheck verifies the blocks of one state, some at a time in the order in which they lie in the
// log: by LBA a volume that was written at random would be read at random.
type blockCheck struct {
	*checker
	of        *checkedState
	own       blockmap.Own // what of the state's is looked at
	pending   []checked
	bad       []finding // that were not told yet
	badBlocks uint64    // in these
	message   string    // of the last one
	failed    error     // of telling
	buf       []byte
}

// checked is a block that is to be verified.
type checked struct {
	lba   uint64
	entry blockmap.Entry
}

const (
	checkedAtOnce = 1 << 17 // 4 MiB of them
	checkedRun    = 256     // blocks read at a time
)

// cannotSee notes a range of blocks of which nobody can say what of them was the state's own.
func (c *blockCheck) cannotSee(lo, hi uint64) {
	c.blind[c.of.state] = add(c.blind[c.of.state], lo, hi, c.own)
}

func (c *blockCheck) verify(lba uint64, entries []blockmap.Entry) error {
	for i, e := range entries {
		switch {
		case e.Lost():
			c.cannotSee(lba+uint64(i), lba+uint64(i)+1)
			c.found(finding{lba: lba + uint64(i), blocks: 1, lost: true, message: c.saying(lostBlock(e))})
		case e.Stored():
			c.live[e.Addr.Segment()] += block.Size
			c.pending = append(c.pending, checked{lba + uint64(i), e})
		}
	}
	if len(c.pending) >= checkedAtOnce {
		if err := c.flush(); err != nil {
			return err
		}
	}
	return c.tell(false)
}

// saying is an error's text, of which there is one copy for many that are alike.
func (c *blockCheck) saying(err error) string {
	if m := err.Error(); m != c.message {
		c.message = m
	}
	return c.message
}

// verifyHeld returns what verifies only those blocks of a hidden state that a visible one below it has as well. No map gains what
// one that it descends from has not.
func (c *blockCheck) verifyHeld(s *checkedState) func(uint64, []blockmap.Entry) error {
	var found [1]blockmap.Entry
	has := func(pins *blockmap.Pins, k *checkedState, lba uint64, e blockmap.Entry) (bool, error) {
		err := waitFor(pins, func() error { return k.root.Lookup(pins, lba, found[:]) })
		if errors.Is(err, blockmap.ErrDamaged) { // what that map cannot say any more, one below it may
			return true, nil
		}
		return found[0].Addr == e.Addr || found[0].Lost(), err
	}
	held := func(pins *blockmap.Pins, lba uint64, e blockmap.Entry) (bool, error) {
		for todo := []uint64{s.state}; len(todo) > 0; {
			below := c.children[todo[len(todo)-1]]
			todo = todo[:len(todo)-1]
			for _, k := range below {
				shown := !k.hidden && !k.noData
				if ok, err := has(pins, k, lba, e); err != nil || ok && shown {
					return ok, err
				} else if ok {
					todo = append(todo, k.state)
				}
			}
		}
		return false, nil
	}
	return func(lba uint64, entries []blockmap.Entry) error {
		pins := c.pool.store.NewPins()
		for i := range entries {
			ok, err := held(pins, lba+uint64(i), entries[i])
			if err == nil && ok {
				err = c.verify(lba+uint64(i), entries[i:i+1])
			}
			if err != nil {
				return err
			}
		}
		return nil
	}
}

// flush verifies what is pending.
func (c *blockCheck) flush() error {
	slices.SortFunc(c.pending, func(a, b checked) int { return cmp.Compare(a.entry.Addr, b.entry.Addr) })
	for left := c.pending; len(left) > 0; {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		n := 1
		for n < len(left) && n < checkedRun && continues(left[0].entry, left[n].entry, n) {
			n++
		}
		if err := c.verifyRun(left[:n]); err != nil {
			return err
		}
		left = left[n:]
	}
	c.pending = c.pending[:0]
	return nil
}

func (c *blockCheck) verifyRun(run []checked) error {
	c.buf = slices.Grow(c.buf[:0], len(run)*block.Size)[:len(run)*block.Size]
	b := c.buf
	c.report.Blocks += int64(len(run))
	whole := c.pool.log.ReadAt(run[0].entry.Addr, b) == nil
	for i, k := range run {
		one := b[i*block.Size : (i+1)*block.Size]
		if whole && seglog.Checksum(one) == k.entry.CRC {
			continue
		}
		if err := c.pool.readBlock(k.entry, one); errors.Is(err, block.ErrDamaged) {
			c.found(finding{lba: k.lba, blocks: 1, message: c.saying(err)})
		} else if err != nil {
			return err
		}
	}
	return nil
}
