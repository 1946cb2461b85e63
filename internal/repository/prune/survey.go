package prune

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"iter"
	"sync"

	"golang.org/x/sync/errgroup"

	"varve/internal/block"
	"varve/internal/objects"
	"varve/internal/repository"
	"varve/internal/repository/chunk"
	"varve/internal/repository/envelope"
	"varve/internal/repository/extsort"
	"varve/internal/repository/index"
	"varve/internal/repository/pack"
)

// survey finds out what some roots need and where it lies.
type survey struct {
	p      *pruner
	inv    *inventory
	needs  *extsort.Sorter[need]
	places *extsort.Sorter[place]  // that runs of the index name
	more   *extsort.Sorter[place]  // in packs of which runs do not name all
	rescue *extsort.Sorter[placed] // what has to be copied
	all    bool                    // also what lies in condemned packs that are not ripe
	runs   []runInfo

	needed   int64 // bytes of what counts in packs that stay
	rescued  int64 // bytes of what lies in condemned packs alone
	lost     int64 // chunks and nodes that are needed, and lie nowhere
	mapsLost int
	lostMaps []string // backups
	isLost   func(chunk.Place) bool
}

func newSurvey(p *pruner, inv *inventory) *survey {
	_, isLost := p.repo.Lost()
	return &survey{
		p: p, inv: inv, isLost: isLost,
		needs: extsort.New(needForm, p.space), places: extsort.New(placeForm, p.space),
		more: extsort.New(placeForm, p.space), rescue: extsort.New(placedForm, p.space),
	}
}

// close gives temporary files back; what fails of that ends with the process.
func (s *survey) close() {
	_ = errors.Join(s.needs.Close(), s.places.Close(), s.more.Close(), s.rescue.Close())
}

// need is a chunk or node that is needed in a set.
type need struct {
	id    chunk.ID
	kind  envelope.Kind
	set   uint32
	pack  uint32 // where it is said to be, or none
	frame uint32
}

func (n need) compare(o need) int {
	return cmp.Or(n.id.Compare(o.id), cmp.Compare(n.kind, o.kind), cmp.Compare(n.set, o.set), cmp.Compare(n.pack, o.pack), cmp.Compare(n.frame, o.frame))
}

// place is where a chunk or node lies.
type place struct {
	id     chunk.ID
	kind   envelope.Kind
	pack   uint32
	frame  uint32
	sealed uint32
	plain  uint32
}

func (p place) compare(o place) int {
	return cmp.Or(p.id.Compare(o.id), cmp.Compare(p.kind, o.kind), cmp.Compare(p.pack, o.pack), cmp.Compare(p.frame, o.frame))
}

// placed is a place that counts for a set: what is rescued, in an order that opens each pack once and mixes no sets.
type placed struct {
	set uint32
	place
}

func (p placed) compare(o placed) int {
	return cmp.Or(cmp.Compare(p.set, o.set), cmp.Compare(p.kind, o.kind), cmp.Compare(p.pack, o.pack), cmp.Compare(p.frame, o.frame), p.id.Compare(o.id))
}

var (
	needForm = extsort.Form[need]{
		Bytes: 45,
		Put: func(b []byte, n need) {
			copy(b, n.id[:])
			b[32] = byte(n.kind)
			putNumbers(b[33:], n.set, n.pack, n.frame)
		},
		Get: func(b []byte) need {
			return need{chunk.ID(b[:32]), envelope.Kind(b[32]), number(b[33:]), number(b[37:]), number(b[41:])}
		},
		Compare: need.compare,
	}
	placeForm = extsort.Form[place]{
		Bytes: 49,
		Put:   putPlace,
		Get:   getPlace,

		Compare: place.compare,
	}
	placedForm = extsort.Form[placed]{
		Bytes: 53,
		Put: func(b []byte, p placed) {
			putPlace(b, p.place)
			putNumbers(b[49:], p.set)
		},
		Get:     func(b []byte) placed { return placed{number(b[49:]), getPlace(b)} },
		Compare: placed.compare,
	}
)

func putPlace(b []byte, p place) {
	copy(b, p.id[:])
	b[32] = byte(p.kind)
	putNumbers(b[33:], p.pack, p.frame, p.sealed, p.plain)
}

func getPlace(b []byte) place {
	return place{chunk.ID(b[:32]), envelope.Kind(b[32]), number(b[33:]), number(b[37:]), number(b[41:]), number(b[45:])}
}

func putNumbers(b []byte, numbers ...uint32) {
	for i, n := range numbers {
		binary.LittleEndian.PutUint32(b[4*i:], n)
	}
}

func number(b []byte) uint32 { return binary.LittleEndian.Uint32(b) }

// need notes that something is needed.
func (s *survey) need(kind envelope.Kind, set uint32, id chunk.ID, hint chunk.Place) error {
	return s.needs.Add(need{id, kind, set, s.inv.table.find(keyOf(kind, hint.Pack)), hint.Frame})
}

// locate finds out where all that is needed lies, and which of several places counts.
func (s *survey) locate(ctx context.Context) error {
	if err := s.readIndex(ctx); err != nil {
		return err
	}
	if err := s.readDirectories(ctx); err != nil {
		return err
	}
	return s.choose()
}

// runInfo is what was found in a run of the index.
type runInfo struct {
	repository.Stored
	id        chunk.PackID
	set       uint32
	all, gone int64 // entries, and those of them whose packs are gone
	whole     bool
}

// readIndex takes in what runs say of packs that are there. Runs that were merged meanwhile are followed, those that are
// lost left out: the packs' directories tell as much.
func (s *survey) readIndex(ctx context.Context) error {
	x := s.p.repo.Index()
	listed := map[chunk.PackID]repository.Stored{}
	for _, r := range s.inv.runs {
		if _, id, ok := pack.ParseName(r.Name); ok {
			listed[id] = r
		}
	}
	read := map[chunk.PackID]bool{}
	for again := true; again; {
		if err := s.p.repo.RefreshIndex(ctx); err != nil {
			return err
		}
		again = false
		for _, run := range x.Runs() {
			if read[run.ID] {
				continue
			}
			read[run.ID] = true
			info := runInfo{Stored: listed[run.ID], id: run.ID}
			err := s.readRun(ctx, &info)
			if err != nil && !repository.IsLost(err) {
				return err
			}
			again = again || isGone(err)
			info.whole = err == nil
			if info.Name != "" { // listed before the packs, so that what it says of packs that are gone is so
				s.runs = append(s.runs, info)
			}
		}
	}
	return nil
}

func (s *survey) readRun(ctx context.Context, info *runInfo) error {
	d, err := s.p.repo.Packs().Directory(ctx, envelope.Index, info.id)
	if err != nil {
		return err
	}
	t := s.inv.table
	info.set = t.set(d.Set())
	for e, err := range s.p.repo.Index().Merge(ctx, []chunk.PackID{info.id}) {
		if err != nil {
			return err
		}
		info.all++
		n := t.find(keyOf(e.Kind, e.Place.Pack))
		if n == none {
			info.gone++
			continue
		}
		t.packs[n].set = info.set
		if err := s.places.Add(placeOf(e, n)); err != nil {
			return err
		}
	}
	return nil
}

// isGone tells that what was listed has been deleted since.
func isGone(err error) bool {
	return errors.Is(err, pack.ErrElsewhere) || errors.Is(err, objects.ErrNotFound)
}

func placeOf(e index.Entry, pack uint32) place {
	return place{e.ID, e.Kind, pack, e.Place.Frame, e.SealedBytes, e.PlainBytes}
}

// readDirectories finds packs of which runs do not name all, and takes in their directories.
func (s *survey) readDirectories(ctx context.Context) error {
	t := s.inv.table
	for pl, err := range s.places.Sorted() {
		if err != nil {
			return err
		}
		s.count(pl)
	}
	parity := s.p.repo.Config().Parity
	var mu sync.Mutex // guards what follows, but for each pack's own
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(readers)
	for n := range t.packs {
		info := &t.packs[n]
		if info.complete(parity) {
			continue
		}
		g.Go(func() error {
			d, err := s.p.repo.Packs().Directory(gctx, info.kind(), info.id)
			if err != nil {
				info.lost = repository.IsLost(err)
				if info.lost {
					err = nil
				}
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			info.set = t.set(d.Set())
			info.frames, info.hashes, info.sealed, info.unindexed = 0, 0, 0, true
			for i, e := range d.Entries() {
				pl := place{e.ID, info.packKey.kind(), uint32(n), uint32(i), e.SealedBytes, e.PlainBytes}
				s.count(pl)
				if err := s.more.Add(pl); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// count takes in that a frame is in the pack.
func (p *packInfo) count(pl place) {
	p.frames++
	p.sealed += pl.sealed
	if !p.nodes {
		p.hashes += pl.plain / block.Size
	}
}

// choose decides for all that is needed which place counts.
func (s *survey) choose() error {
	next, stop := iter.Pull2(extsort.Merge(place.compare, s.places.Sorted(), s.more.Sorted()))
	defer stop()
	var at place // the next place
	var some bool
	advance := func() (err error) {
		at, err, some = next()
		return err
	}
	if err := advance(); err != nil {
		return err
	}
	var group []need // of one id and kind
	var places []place
	settle := func() error {
		if len(group) == 0 {
			return nil
		}
		places = places[:0]
		for some {
			c := cmp.Or(at.id.Compare(group[0].id), cmp.Compare(at.kind, group[0].kind))
			if c > 0 {
				break
			}
			if c == 0 {
				places = append(places, at)
			}
			if err := advance(); err != nil {
				return err
			}
		}
		err := s.settle(group, places)
		group = group[:0]
		return err
	}
	for n, err := range s.needs.Sorted() {
		if err != nil {
			return err
		}
		if len(group) > 0 && (group[0].id != n.id || group[0].kind != n.kind) {
			if err := settle(); err != nil {
				return err
			}
		}
		group = append(group, n)
	}
	return settle()
}

// settle decides which of an id's places count: one for each set that needs it.
func (s *survey) settle(needs []need, places []place) error {
	t := s.inv.table
	var counted []place
	for len(needs) > 0 {
		n := 1
		for n < len(needs) && needs[n].set == needs[0].set {
			n++
		}
		hints := needs[:n]
		needs = needs[n:]
		best, ok := s.best(hints, places)
		if !ok {
			// If the pack is there that it is said to be in, it is not taken away: somebody may mend it.
			s.lost++
			for _, h := range hints {
				if h.pack != none {
					t.packs[h.pack].keep = true
				}
			}
			continue
		}
		already := false
		for _, c := range counted {
			already = already || c == best
		}
		if already {
			continue
		}
		counted = append(counted, best)
		info := &t.packs[best.pack]
		switch {
		case s.unusable(best):
			s.lost++
			for _, pl := range places {
				t.packs[pl.pack].keep = true
			}
		case info.condemned, info.copied && s.deletes(places):
			s.rescued += int64(best.sealed)
			if !s.mustRescue(places) {
				continue
			}
			if err := s.rescue.Add(placed{hints[0].set, best}); err != nil {
				return err
			}
		default:
			info.live += best.sealed
			s.needed += int64(best.sealed)
		}
	}
	return nil
}

// mustRescue tells whether what lies in condemned packs alone has to be copied now, and has all of these wait for that: none
// of them may be relied on when another is deleted, since whoever deletes that one may rely on this.
func (s *survey) mustRescue(places []place) bool {
	t := s.inv.table
	must := s.deletes(places)
	for _, pl := range places {
		t.packs[pl.pack].holds = t.packs[pl.pack].holds || must
	}
	return must
}

// deletes tells whether one of the packs is about to be deleted, or all of them must be ones that can be relied on.
func (s *survey) deletes(places []place) bool {
	for _, pl := range places {
		if s.inv.table.packs[pl.pack].ripe {
			return true
		}
	}
	return s.all
}

// stays tells whether a pack can be relied on. One of which there is only a copy that a repair made may have been condemned and deleted
// before that was put.
func (p *packInfo) stays() bool { return !p.condemned && !p.copied }

// count takes in what a pack has.
func (s *survey) count(p place) {
	info := &s.inv.table.packs[p.pack]
	info.count(p)
	info.hurt = info.hurt || s.unusable(p)
}

func (s *survey) unusable(p place) bool {
	info := &s.inv.table.packs[p.pack]
	return info.lost || s.isLost(chunk.Place{Pack: info.id, Frame: p.frame})
}

// best is the place that counts: one that can be read, in the set itself, in a pack that stays; then one that maps name, then the
// one that has been there for longest.
func (s *survey) best(hints []need, places []place) (best place, ok bool) {
	t := s.inv.table
	rank := func(p place) int {
		info := &t.packs[p.pack]
		r := 0
		for i, good := range []bool{info.stays(), info.set == hints[0].set, !s.unusable(p)} {
			if good {
				r |= 1 << i
			}
		}
		return r
	}
	named := func(p place) int {
		for _, h := range hints {
			if h.pack == p.pack && h.frame == p.frame {
				return 1
			}
		}
		return 0
	}
	better := func(a, b place) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(named(a), named(b)), -cmp.Compare(t.packs[a.pack].put, t.packs[b.pack].put),
			-bytes.Compare(t.packs[a.pack].id[:], t.packs[b.pack].id[:]), -cmp.Compare(a.frame, b.frame))
	}
	for _, p := range places {
		if !ok || better(p, best) > 0 {
			best, ok = p, true
		}
	}
	return best, ok
}
