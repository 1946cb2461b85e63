package check

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"varve/internal/repository"
	"varve/internal/repository/chunk"
	"varve/internal/repository/envelope"
	"varve/internal/repository/extsort"
	"varve/internal/repository/index"
	"varve/internal/repository/maptree"
	"varve/internal/repository/mapwalk"
	"varve/internal/repository/pack"
)

// content is a chunk or node.
type content struct {
	kind envelope.Kind
	id   chunk.ID
}

// at is content and where it is said to be: by a map, or by the index.
type at struct {
	content
	place chunk.Place
}

func (a at) compare(o at) int {
	return cmp.Or(a.id.Compare(o.id), cmp.Compare(a.kind, o.kind), bytes.Compare(a.place.Pack[:], o.place.Pack[:]), cmp.Compare(a.place.Frame, o.place.Frame))
}

func (a at) in() place { return place{packKey{a.kind, a.place.Pack}, a.place.Frame} }

var atForm = extsort.Form[at]{
	Bytes: 53,
	Put: func(b []byte, a at) {
		copy(b, a.id[:])
		b[32] = byte(a.kind)
		copy(b[33:], a.place.Pack[:])
		binary.LittleEndian.PutUint32(b[49:], a.place.Frame)
	},
	Get: func(b []byte) at {
		return at{
			content{envelope.Kind(b[32]), chunk.ID(b[:32])},
			chunk.Place{Pack: chunk.PackID(b[33:49]), Frame: binary.LittleEndian.Uint32(b[49:])},
		}
	},
	Compare: at.compare,
}

// survey is what backups need, and where that is.
type survey struct {
	c       *checker
	backups []repository.Listed
	needs   *extsort.Sorter[at]             // with every hint
	index   *extsort.Sorter[at]             // all that runs tell
	nodes   []*extsort.Sorter[mapwalk.Node] // of each level, without those that are lost
	missing map[packKey]bool                // packs that are not in the table: whether they really are not there
	bad     map[content][]packKey           // what cannot be read, and the objects that it was lost with
	unnamed *extsort.Sorter[at]             // what is needed and is there, and is in no run
}

func (c *checker) newSurvey(backups []repository.Listed) *survey {
	return &survey{
		c: c, backups: backups, needs: extsort.New(atForm, c.space), index: extsort.New(atForm, c.space), unnamed: extsort.New(inForm, c.space),
		missing: map[packKey]bool{}, bad: map[content][]packKey{},
	}
}

func (s *survey) close() {
	s.needs.Close()
	s.index.Close()
	s.unnamed.Close()
	for _, l := range s.nodes {
		l.Close()
	}
}

// needs finds out whether all that backups need is there, and which are harmed.
func (c *checker) needs(ctx context.Context) error {
	err := c.walkAll(ctx)
	if unknownHere(err) {
		c.note("the maps of backups were not walked, since they need what is not known here: %v", err)
		return nil
	}
	return err
}

func (c *checker) walkAll(ctx context.Context) error {
	all, unreadable, err := c.repo.Backups(ctx)
	if err != nil {
		return err
	}
	c.recordsLost(unreadable)
	backups := slices.DeleteFunc(all, func(b repository.Listed) bool { return b.Doubtful })
	if n := len(all) - len(backups); n > 0 {
		c.note("%d backups are doubtful, whose sessions were given up: a prune decides about them", n)
	}
	if c.overdue() && !c.anyLost() {
		c.note("the maps of backups were not walked: whether anything is missing is not known")
		return nil
	}
	for round := 1; ; round++ {
		s := c.newSurvey(backups)
		again, err := s.run(ctx)
		again = again && round < maxRounds
		if err == nil && !again {
			err = s.tell(ctx)
		}
		s.close()
		if err != nil || !again {
			return err
		}
	}
}

// maxRounds is how often maps are walked because more can be read than before.
const maxRounds = 4

func (c *checker) anyLost() bool {
	c.lost.mu.Lock()
	defer c.lost.mu.Unlock()
	return len(c.lost.packs)+len(c.lost.frames) > 0 || len(c.report.Harmed) > 0
}

// recordsLost tells of records that cannot be read: of these backups nothing can be had.
func (c *checker) recordsLost(unreadable []repository.Unreadable) {
	for _, u := range unreadable {
		if !c.damage.has("backups/" + u.Record) {
			c.damage.add("backups/"+u.Record, Lost, u.Err.Error())
		}
		c.damage.harms("backups/"+u.Record, u.Record)
		c.report.Harmed = append(c.report.Harmed, HarmedBackup{ID: u.Record, Whole: true})
	}
}

// run finds what is bad. again: something that seemed so is not, so that more may be found in it.
func (s *survey) run(ctx context.Context) (again bool, err error) {
	if err := s.readIndex(ctx); err != nil {
		return false, err
	}
	if err := s.walk(ctx); err != nil {
		return false, err
	}
	if err := s.match(ctx); err != nil {
		return false, err
	}
	if again, err = s.confirm(ctx); err != nil || again {
		return again, err
	}
	if len(s.bad) > 0 && s.c.o.Budget == 0 && s.c.write.why() == nil {
		if again, err = s.search(ctx); err != nil {
			return false, err
		}
	}
	return again, s.nameAgain(ctx)
}

// readIndex takes in all runs. Those that were merged meanwhile are followed; those that are lost are left out.
func (s *survey) readIndex(ctx context.Context) error {
	x := s.c.index
	read := map[chunk.PackID]bool{}
	for again := true; again; {
		if err := x.Refresh(ctx); err != nil {
			return err
		}
		again = false
		for _, run := range x.Runs() {
			if read[run.ID] {
				continue
			}
			read[run.ID] = true
			for e, err := range x.Merge(ctx, []chunk.PackID{run.ID}) {
				if errors.Is(err, pack.ErrElsewhere) {
					again = true
					break
				}
				if repository.IsLost(err) {
					break
				}
				if err != nil {
					return err
				}
				if err := s.index.Add(at{content{e.Kind, e.ID}, e.Place}); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// walk finds all that the maps need.
func (s *survey) walk(ctx context.Context) error {
	c := s.c
	var roots []mapwalk.Root
	for _, b := range s.backups {
		roots = append(roots, mapwalk.Root{Root: b.Root})
	}
	w := s.walker()
	w.Needed = func(level int, n mapwalk.Node) error {
		for len(s.nodes) <= level {
			s.nodes = append(s.nodes, mapwalk.Sorter(c.space))
		}
		return s.needs.Add(at{content{envelope.Nodes, n.ID}, n.Place})
	}
	w.Found = func(level int, n mapwalk.Node, decoded maptree.Node) error {
		if err := s.nodes[level].Add(n); err != nil {
			return err
		}
		for _, r := range decoded.Regions {
			for i, supplied := range r.Region.Supplied() {
				if supplied.Empty() {
					continue
				}
				ch := r.Region.Chunks[i]
				if err := s.needs.Add(at{content{envelope.Pack, ch.ID}, ch.Place}); err != nil {
					return err
				}
			}
		}
		return nil
	}
	w.Lost = func(_ int, n mapwalk.Node, _ error) error {
		s.bad[content{envelope.Nodes, n.ID}] = nil
		return nil
	}
	return w.Down(ctx, roots)
}

func (s *survey) walker() *mapwalk.Walk {
	c := s.c
	return &mapwalk.Walk{
		Packs: c.packs, Geometry: c.repo.Geometry(), Space: c.space,
		Read: func(ctx context.Context, n mapwalk.Node) ([]byte, error) {
			return c.read(ctx, at{content{envelope.Nodes, n.ID}, n.Place})
		},
		Lost: func(int, mapwalk.Node, error) error { return nil },
	}
}

// read reads content where it is said to be, or wherever else the index knows it.
func (c *checker) read(ctx context.Context, a at) ([]byte, error) {
	plain, err := c.packs.Frame(ctx, a.kind, a.place, a.id, nil)
	if err == nil || !repository.IsLost(err) {
		return plain, err
	}
	entries, findErr := c.index.Find(ctx, a.id)
	if findErr != nil && !repository.IsLost(findErr) {
		return nil, findErr
	}
	for _, e := range entries {
		if e.Kind != a.kind || e.Place == a.place {
			continue
		}
		plain, elsewhere := c.packs.Frame(ctx, a.kind, e.Place, a.id, nil)
		if elsewhere == nil || !repository.IsLost(elsewhere) {
			return plain, elsewhere
		}
	}
	return nil, fmt.Errorf("%w: %w", repository.ErrDamaged, err)
}

// gone tells whether a pack is not there. What came after the store was listed is.
func (s *survey) gone(ctx context.Context, p packKey) (bool, error) {
	if s.c.there.has(p) {
		return false, nil
	}
	gone, known := s.missing[p]
	if known {
		return gone, nil
	}
	there, err := s.c.repo.There(ctx, p.name())
	s.missing[p] = !there
	return !there, err
}

// readable tells whether content can be read at a place, as far as that is known.
func (s *survey) readable(ctx context.Context, a at) (bool, error) {
	if s.c.lost.has(a.in()) {
		return false, nil
	}
	gone, err := s.gone(ctx, a.in().packKey)
	return !gone, err
}

// match finds out where what is needed is: at one of the places that maps name, or that the index does.
func (s *survey) match(ctx context.Context) error {
	var group []at // hints of one content
	var err error
	places := newCursor(s.index)
	defer places.stop()
	for n, nerr := range s.needs.Sorted() {
		if nerr != nil {
			return nerr
		}
		if len(group) > 0 && group[0].content != n.content {
			if err = s.place(ctx, group, places); err != nil {
				return err
			}
			group = group[:0]
		}
		group = append(group, n)
	}
	if len(group) == 0 {
		return nil
	}
	return s.place(ctx, group, places)
}

// place decides about one content.
func (s *survey) place(ctx context.Context, hints []at, places *cursor) error {
	indexed, err := places.of(hints[0].content)
	if err != nil {
		return err
	}
	named := false // some readable place is in the index
	for _, a := range indexed {
		ok, err := s.readable(ctx, a)
		if err != nil {
			return err
		}
		named = named || ok
	}
	hinted := 0
	var there at
	for _, a := range hints {
		ok, err := s.readable(ctx, a)
		if err != nil {
			return err
		}
		if ok {
			hinted++
			there = a
		}
	}
	if hinted > 0 && !named {
		if err := s.unnamed.Add(there); err != nil {
			return err
		}
	}
	// Whose hint is wrong depends on the index.
	if named || hinted > 0 && (hinted == len(hints) || s.c.write.why() == nil) {
		if _, known := s.bad[hints[0].content]; !known {
			return nil
		}
	}
	return s.blame(ctx, hints, indexed)
}

// blame notes that content is bad, and which objects it was lost with: those that are there and damaged, or else all that are missing.
func (s *survey) blame(ctx context.Context, hints, indexed []at) error {
	var damaged, missing []packKey
	for _, a := range append(slices.Clone(hints), indexed...) {
		p := a.in().packKey
		gone, err := s.gone(ctx, p)
		if err != nil {
			return err
		}
		if gone && !slices.Contains(missing, p) {
			missing = append(missing, p)
		}
		if !gone && s.c.lost.has(a.in()) && !slices.Contains(damaged, p) {
			damaged = append(damaged, p)
		}
	}
	if len(damaged) == 0 {
		damaged = missing
	}
	s.bad[hints[0].content] = damaged
	return nil
}

// confirm looks again at what seems bad, one by one: it may have been moved, or the backup that needed it deleted, since it was listed.
// again: nodes can be read now.
func (s *survey) confirm(ctx context.Context) (again bool, err error) {
	if len(s.bad) == 0 {
		return false, nil
	}
	s.c.packs = pack.NewReader(s.c.st, s.c.keys, 16<<20) // what was read before may be old
	s.c.index = index.New(s.c.packs)
	if err := s.c.index.Refresh(ctx); err != nil {
		return false, err
	}
	visible := map[string]bool{}
	all, _, err := s.c.repo.Backups(ctx)
	for _, b := range all {
		visible[b.ID] = true
	}
	if err != nil {
		return false, err
	}
	s.backups = slices.DeleteFunc(s.backups, func(b repository.Listed) bool { return !visible[b.ID] })
	var last content
	for n, err := range s.needs.Sorted() {
		if err != nil {
			return false, err
		}
		if _, seems := s.bad[n.content]; !seems || n.content == last {
			continue
		}
		last = n.content
		_, err := s.c.read(ctx, n)
		if err == nil {
			again = again || n.kind == envelope.Nodes // what it needs is not known yet
			delete(s.bad, n.content)
		} else if !repository.IsLost(err) {
			return false, err
		}
	}
	return again, nil
}
