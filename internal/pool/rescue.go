package pool

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"

	"varve/internal/block"
	"varve/internal/pool/blockmap"
	"varve/internal/pool/catalogue"
	"varve/internal/pool/seglog"
	"varve/internal/vfs"
)

// opening says how a pool is opened, and what that met. The zero opening refuses what is damaged.
type opening struct {
	readOnly bool // nothing is changed
	salvage  bool // of a damaged pool, as much as there is
	force    bool // also where flushed batches have to be given up for that

	refused error    // why it cannot be opened without salvage; nil if it can
	rebuilt bool     // the superblock is not one of those in the file
	cut     *CutTail // nil: no batches have to be given up
}

// CutTail tells which batches of the log cannot be counted any more, because one before them cannot be read.
type CutTail struct {
	FirstSeq, LastSeq uint64 // the batches that are given up: the first cannot be read, the last is the newest known of
	Unreadable        uint64 // how many of them cannot be read, so that nobody can say what was in them
	Writes            []LostWrites
	Operations        []string // on volumes and snapshots
	Reason            string
}

// LostWrites tells what was written to a volume in batches that are given up.
type LostWrites struct {
	Volume            string
	FirstSeq, LastSeq uint64 // of the batches
	Blocks            int64  // written or cleared
}

// isDamage tells errors that something can be salvaged after.
func isDamage(err error) bool {
	return err != nil && !errors.Is(err, ErrNewerFormat) &&
		(errors.Is(err, ErrDamagedLog) || errors.Is(err, blockmap.ErrDamaged) || errors.Is(err, block.ErrDamaged) || isLoss(err))
}

func hasLog(o *Options) bool {
	names, err := o.FS.List(path.Join(o.Dir, logDirName))
	return err == nil && len(names) > 0
}

// salvaged is what replaying a damaged log met.
type salvaged struct {
	log seglog.Salvage
}

// apply folds an entry into a volume's map. Where a node of the map cannot be read, what was in it is lost from
// here on; s may be nil, then that is an error.
func (s *salvaged) apply(v *volume, pins *blockmap.Pins, e *seglog.Entry) error {
	for {
		err := v.apply(pins, e)
		node, ok := errors.AsType[*blockmap.NodeError](err)
		if s == nil || !ok {
			return err
		}
		v.mu.Lock()
		err = v.tree.Lose(pins, node.Level, node.First, blocksIn(v.size.Load()))
		v.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

// candidate is a place from which the log might be replayed.
type candidate struct {
	super   superblock
	inFile  bool   // it is one of the superblock's slots
	durable uint64 // newest batch that is known durable from there
	first   bool   // it is the empty pool: all or nothing
}

// rescue opens a pool that cannot be opened as it is: from another checkpoint if that helps, or else from
// the newest one, without what cannot be read. file is replaced if the superblock is.
func (h *opening) rescue(o Options, file *vfs.File, cause error) (*Pool, error) {
	h.refused = cause
	candidates, err := h.candidates(&o, *file)
	if err != nil {
		return nil, fmt.Errorf("%w; and nothing can be salvaged: %w", cause, err)
	}
	open := func(c *candidate, s *salvaged) *Pool {
		p, e := openAt(o, c.super, c.durable, s)
		if e != nil {
			err = e
			return nil
		}
		h.rebuilt = !c.inFile
		return p
	}
	for _, some := range [][]candidate{candidates.safe, candidates.others} {
		// Another checkpoint may lead to the very same state.
		for i := range some {
			if c := &some[i]; !c.inFile {
				if p := open(c, nil); p != nil {
					return h.rescued(o, file, p, nil)
				}
			}
		}
		var best *candidate // that gives batches up: the one that gives up least
		var bestEnd uint64
		for i := range some {
			c, s := &some[i], new(salvaged)
			if c.first {
				continue
			}
			p := open(c, s)
			if p == nil {
				continue
			}
			if s.log.Cut == nil {
				return h.rescued(o, file, p, nil)
			}
			if end := s.log.Cut.End.Seq; best == nil || end > bestEnd {
				best, bestEnd = c, end
			}
			p.log.Close()
		}
		if best != nil {
			s := new(salvaged)
			if p := open(best, s); p != nil {
				return h.rescued(o, file, p, s.log.Cut)
			}
		}
	}
	return nil, fmt.Errorf("%w; and from no checkpoint that its log knows can anything be salvaged: %w", cause, err)
}

// rescued makes the pool's superblock the one that it was opened from, where that is another.
func (h *opening) rescued(o Options, file *vfs.File, p *Pool, cut *seglog.Cut) (*Pool, error) {
	if cut != nil {
		h.cut = p.describeCut(cut)
	}
	if h.readOnly || !h.rebuilt && cut == nil {
		return p, nil
	}
	fail := func(err error) (*Pool, error) {
		p.log.Close()
		return nil, err
	}
	if cut != nil && !h.force {
		return fail(fmt.Errorf("%w: %w", ErrWouldLose, h.refused))
	}
	super := *p.super.Load()
	super.durableSeq = p.recovery.LastSeq // what was given up must not be asked for again
	name := path.Join(o.Dir, newSuperblockName)
	if err := o.FS.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fail(err)
	}
	if err := placeSuperblock(o, &super); err != nil {
		return fail(fmt.Errorf("rebuild superblock: %w", seglog.NoSpace(err)))
	}
	if err := o.FS.SyncDir(o.Dir); err != nil {
		return fail(err)
	}
	f, err := o.FS.Open(path.Join(o.Dir, superblockName))
	if err != nil {
		return fail(err)
	}
	if *file != nil {
		_ = (*file).Close() // replaced
	}
	*file = f
	p.super.Store(&super)
	return p, nil
}

// candidates are the checkpoints that might lead to the pool's state, the newest first. What the safe ones refer
// to is never given back.
type candidates struct{ safe, others []candidate }

func (h *opening) candidates(o *Options, file vfs.File) (out candidates, err error) {
	var slots []candidate
	var durable uint64
	if file != nil {
		supers, err := readSuperblocks(file)
		if errors.Is(err, ErrNewerFormat) {
			return out, err
		}
		for _, s := range supers {
			durable = max(durable, s.durableSeq)
			slots = append(slots, candidate{super: s, inFile: true})
		}
	}
	log, err := seglog.Find(o.FS, path.Join(o.Dir, logDirName))
	if err != nil {
		return out, err
	}
	found, err := soundRecords(log, slots)
	if err != nil {
		return out, err
	}
	for _, s := range slots {
		found = slices.DeleteFunc(found, func(c candidate) bool {
			return c.super.position == s.super.position && c.super.generation == s.super.generation
		})
		found = append(found, s)
	}
	if len(found) == 0 {
		return out, fmt.Errorf("%w: its log holds no checkpoint record", ErrDamagedLog)
	}
	// By place: a history that was given up has numbers that the one which goes on has used again, in earlier segments.
	slices.SortStableFunc(found, func(a, b candidate) int {
		p, q := b.super.position, a.super.position
		return cmp.Or(cmp.Compare(p.Segment, q.Segment), cmp.Compare(p.Offset, q.Offset), cmp.Compare(b.super.generation, a.super.generation))
	})
	for i := range found {
		found[i].durable = max(found[i].durable, durable)
	}
	// The superblock knew two checkpoints, and the log may have the record of one that it did not come to know.
	safe := min(3, len(found))
	if i := slices.IndexFunc(found, func(c candidate) bool { return c.inFile }); i >= 0 {
		safe = i + len(slots)
	}
	out.safe = slices.Clone(found[:min(safe, len(found))])
	out.others = found[len(out.safe):min(len(found), len(out.safe)+maxOthers)]
	// What was never cleaned can be replayed from the very beginning.
	first := candidate{super: found[0].super, durable: durable, first: true}
	first.super.position, first.super.catalogueLen, first.super.chunks = seglog.Position{}, 0, nil
	out.safe = append(out.safe, first)
	return out, nil
}

// maxOthers is how many older checkpoints are tried: what they refer to is given back sooner or later.
const maxOthers = 8

// soundRecords returns the checkpoint records of the pool that the log is of. known are what the superblock's sound slots
// say; without any, it is the pool that most segments begin with.
func soundRecords(log *seglog.Finder, known []candidate) ([]candidate, error) {
	type identity struct {
		pool [16]byte
		salt uint64
	}
	var id identity
	votes := map[identity]int{}
	if len(known) > 0 {
		id = identity{known[0].super.pool, known[0].super.salt}
		votes[id] = 1
	}
	var all []candidate
	for i := range log.Records {
		r := &log.Records[i]
		if len(r.Content) != slotBytes {
			continue
		}
		s, err := decodeSuperblock(r.Content)
		if errors.Is(err, ErrNewerFormat) && r.SoundUnder(s.salt) {
			return nil, err
		}
		if err != nil || s.pool != r.Pool || !r.SoundUnder(s.salt) {
			continue
		}
		one := identity{s.pool, s.salt}
		if _, counted := votes[one]; !counted {
			votes[one] = log.Votes(s.pool, s.salt)
		}
		if len(known) == 0 && votes[one] > votes[id] {
			id = one
		}
		// The superblock was written once the record was durable; whether it was, nobody knows any more. If not, a part of
		// what lies before the record may be missing, and is an unreadable block rather than the end of the log.
		all = append(all, candidate{super: s, durable: r.Seq})
	}
	for other, n := range votes {
		if len(known) == 0 && other != id && n > 0 && votes[id] > 0 {
			return nil, fmt.Errorf("%w: its log holds segments of two pools, %x and %x; move those of one away", ErrDamagedLog, id.pool, other.pool)
		}
	}
	return slices.DeleteFunc(all, func(c candidate) bool {
		one := identity{c.super.pool, c.super.salt}
		return one != id || votes[one] == 0
	}), nil
}

// describeCut tells what lies behind the end of a log that had to be cut off.
func (p *Pool) describeCut(c *seglog.Cut) *CutTail {
	out := &CutTail{FirstSeq: c.End.Seq + 1, LastSeq: c.Durable, Reason: c.Err.Error()}
	names := map[uint64]string{}
	for _, v := range p.cat.Volumes() {
		names[v.Number] = v.Name
	}
	writes := map[uint64]*LostWrites{}
	var order []uint64
	seen := map[uint64]bool{}
	for _, b := range c.Behind {
		out.LastSeq = max(out.LastSeq, b.Seq)
		if seen[b.Seq] {
			continue
		}
		seen[b.Seq] = true
		for i := range b.Entries {
			e := &b.Entries[i]
			switch e.Kind {
			case seglog.KindData, seglog.KindClear:
				w := writes[e.Volume]
				if w == nil {
					w = &LostWrites{FirstSeq: b.Seq}
					writes[e.Volume] = w
					order = append(order, e.Volume)
				}
				w.FirstSeq, w.LastSeq, w.Blocks = min(w.FirstSeq, b.Seq), max(w.LastSeq, b.Seq), w.Blocks+int64(e.Count)
			case seglog.KindCatalogue:
				if op, err := catalogue.DecodeOp(e.Inline); err == nil {
					out.Operations = append(out.Operations, describeOp(p.cat, op, names))
				}
			}
		}
	}
	for _, number := range order {
		w := writes[number]
		if w.Volume = names[number]; w.Volume == "" {
			w.Volume = fmt.Sprintf("volume %d", number)
		}
		out.Writes = append(out.Writes, *w)
	}
	out.Unreadable = out.LastSeq - out.FirstSeq + 1 - uint64(len(seen))
	return out
}

// describeOp says what a catalogue operation did. names are volumes by number, and learn what it says.
func describeOp(c *catalogue.Catalogue, op *catalogue.Op, names map[uint64]string) string {
	snapshot := func(id uint64) string {
		if s := c.State(id); s != nil && s.Name != "" {
			return SnapshotRef{names[s.Volume], s.Name}.String()
		}
		return fmt.Sprintf("snapshot %d", id)
	}
	switch {
	case op.CreateVolume != nil:
		names[op.CreateVolume.Number] = op.CreateVolume.Name
		return fmt.Sprintf("volume %q created", op.CreateVolume.Name)
	case op.SetVolume != nil:
		old := names[op.SetVolume.Number]
		names[op.SetVolume.Number] = op.SetVolume.Name
		return fmt.Sprintf("volume %q renamed or labelled, as %q", old, op.SetVolume.Name)
	case op.ResizeVolume != nil:
		return fmt.Sprintf("volume %q resized to %d bytes", names[op.ResizeVolume.Number], op.ResizeVolume.SizeBytes)
	case op.DeleteVolume != nil:
		return fmt.Sprintf("volume %q deleted", names[op.DeleteVolume.Number])
	case op.CreateSnapshots != nil:
		text := "snapshots created:"
		for _, n := range op.CreateSnapshots.Of {
			text += " " + SnapshotRef{names[n.Volume], op.CreateSnapshots.Name}.String()
		}
		return text
	case op.DeleteSnapshots != nil:
		text := "snapshots deleted:"
		for _, id := range op.DeleteSnapshots.IDs {
			text += " " + snapshot(id)
		}
		return text
	case op.Protect != nil:
		return fmt.Sprintf("%s protected: %t", snapshot(op.Protect.ID), op.Protect.Protected)
	case op.Rollback != nil:
		return fmt.Sprintf("volume %q rolled back to %s", names[op.Rollback.Volume], snapshot(op.Rollback.To))
	}
	return "another operation"
}
