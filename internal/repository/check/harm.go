package check

import (
	"context"
	"errors"
	"fmt"

	"varve/internal/block"
	"varve/internal/repository"
	"varve/internal/repository/chunk"
	"varve/internal/repository/envelope"
	"varve/internal/repository/maptree"
	"varve/internal/repository/mapwalk"
)

// tell tells which objects harm which backups, and where.
func (s *survey) tell(ctx context.Context) error {
	s.tellObjects()
	if len(s.bad) == 0 {
		return nil
	}
	tainted, err := s.taint(ctx)
	if err != nil {
		return err
	}
	for _, b := range s.backups {
		h := &harm{s: s, b: b, tainted: tainted, report: HarmedBackup{ID: b.ID, Volume: b.Volume}, blocks: s.c.repo.Geometry().BlocksPerRegion}
		if !b.Root.Empty {
			if err := h.node(ctx, content{envelope.Nodes, b.Root.ID}, b.Root.Place, b.Root.Level, 0); err != nil {
				return err
			}
		}
		if h.report.Bytes > 0 {
			s.c.report.Harmed = append(s.c.report.Harmed, h.report)
		}
	}
	return nil
}

// tellObjects tells of packs that are missing, and of those that are another object and are needed.
func (s *survey) tellObjects() {
	lost := map[packKey]int{}
	for _, from := range s.bad {
		for _, p := range from {
			lost[p]++
		}
	}
	for p, what := range s.c.lost.foreign {
		if lost[p] == 0 {
			s.c.damage.forget(p.name())
			s.c.ledger.find(p.name())
			s.c.note("%s: %s; no backup needs what belongs there: left alone", p.name(), what)
		}
	}
	for p, n := range lost {
		if !s.missing[p] {
			continue
		}
		s.c.damage.add(p.name(), Lost, fmt.Sprintf("it is missing, and with it %s that backups need", count(n, "chunk or map node", "chunks and map nodes")))
		s.c.ledger.lose(p.name(), nil)
	}
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprint(n, " ", many)
}

// maxTainted bounds how many nodes are remembered to have something bad below them: if there are more, all are taken to have.
const maxTainted = 1 << 20

// taint finds the nodes below which something is bad, from the leaves up: nil if these are too many.
func (s *survey) taint(ctx context.Context) (map[chunk.ID]bool, error) {
	tainted := map[chunk.ID]bool{}
	w := s.walker()
	w.Found = func(_ int, n mapwalk.Node, decoded maptree.Node) error {
		is := false
		for _, child := range decoded.Children {
			is = is || tainted[child.ID] || s.isBad(envelope.Nodes, child.ID)
		}
		for _, r := range decoded.Regions {
			for _, ch := range r.Region.Chunks {
				is = is || s.isBad(envelope.Pack, ch.ID)
			}
		}
		if is {
			tainted[n.ID] = true
		}
		if len(tainted) > maxTainted {
			return errTooMany
		}
		return nil
	}
	for level, nodes := range s.nodes {
		err := w.Level(ctx, level, nodes.Sorted())
		if errors.Is(err, errTooMany) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
	}
	return tainted, nil
}

var errTooMany = fmt.Errorf("more than %d nodes", maxTainted)

func (s *survey) isBad(kind envelope.Kind, id chunk.ID) bool {
	_, is := s.bad[content{kind, id}]
	return is
}

// harm finds what of a backup is lost.
type harm struct {
	s       *survey
	b       repository.Listed
	tainted map[chunk.ID]bool
	report  HarmedBackup
	blocks  int // of a region
	last    Range
}

// node looks at a node that covers regions from first on.
func (h *harm) node(ctx context.Context, n content, hint chunk.Place, level int, first uint64) error {
	region := int64(h.s.c.repo.ChunkBytes())
	span := uint64(1) << (6 * (level + 1))
	regions := h.s.c.repo.Regions(h.b.SizeBytes)
	if first >= regions {
		return nil
	}
	if h.s.isBad(envelope.Nodes, n.id) {
		h.lost(n, int64(first)*region, int64(min(span, regions))*region)
		return nil
	}
	if h.tainted != nil && !h.tainted[n.id] {
		return nil
	}
	plain, err := h.s.c.read(ctx, at{n, hint})
	var decoded maptree.Node
	if err == nil {
		decoded, err = maptree.Decode(plain, h.s.c.repo.Geometry())
	}
	if repository.IsLost(err) || err == nil && decoded.Level != level {
		h.lost(n, int64(first)*region, int64(min(span, regions))*region)
		return nil
	}
	if err != nil {
		return err
	}
	for _, c := range decoded.Children {
		err := h.node(ctx, content{envelope.Nodes, c.ID}, c.Place, level-1, first+uint64(c.Slot)*(span/64))
		if err != nil {
			return err
		}
	}
	for _, r := range decoded.Regions {
		h.region(r.Region, int64(first+uint64(r.Slot))*region)
	}
	return nil
}

// region looks at the chunks of a region that begins at off.
func (h *harm) region(r maptree.Region, off int64) {
	var bad maptree.Bitmap
	for i, supplied := range r.Supplied() {
		if supplied.Empty() {
			continue
		}
		if c := (content{envelope.Pack, r.Chunks[i].ID}); h.s.isBad(c.kind, c.id) {
			h.blame(c)
			bad = bad.Or(supplied)
		}
	}
	for i := range h.blocks {
		if bad.Has(i) {
			h.add(off+int64(i)*block.Size, block.Size)
		}
	}
}

func (h *harm) lost(n content, off, length int64) {
	h.blame(n)
	h.add(off, length)
}

func (h *harm) blame(c content) {
	for _, p := range h.s.bad[c] {
		h.s.c.damage.harms(p.name(), h.b.ID)
	}
}

// add notes a range that is lost, behind those before.
func (h *harm) add(off, length int64) {
	length = min(length, h.b.SizeBytes-off)
	if length <= 0 {
		return
	}
	h.report.Bytes += length
	ranges := &h.report.Ranges
	follows := h.last.Length > 0 && h.last.Offset+h.last.Length == off
	if follows {
		h.last.Length += length
	} else {
		h.last = Range{off, length}
	}
	switch n := len(*ranges); {
	case follows && n > 0 && (*ranges)[n-1].Offset == h.last.Offset:
		(*ranges)[n-1] = h.last
	case !follows && n < MaxRanges:
		*ranges = append(*ranges, h.last)
	}
}
