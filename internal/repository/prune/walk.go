package prune

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"

	"varve/internal/repository"
	"varve/internal/repository/chunk"
	"varve/internal/repository/envelope"
	"varve/internal/repository/extsort"
	"varve/internal/repository/maptree"
)

const (
	// readers is how many packs are read at once.
	readers = 8
	// nodesAtOnce is how many nodes of a pack one of them takes.
	nodesAtOnce = 1024
)

// node is a map node to be read. A node belongs to one level.
type node struct {
	id    chunk.ID
	place chunk.Place // a hint
	set   uint32
	root  uint32 // one that needs it, the first of several
}

func (n node) byID(o node) int {
	return cmp.Or(n.id.Compare(o.id), cmp.Compare(n.set, o.set), cmp.Compare(n.root, o.root), n.byPlace(o))
}

func (n node) byPlace(o node) int {
	return cmp.Or(bytes.Compare(n.place.Pack[:], o.place.Pack[:]), cmp.Compare(n.place.Frame, o.place.Frame), n.id.Compare(o.id), cmp.Compare(n.set, o.set))
}

func nodeForm(compare func(node, node) int) extsort.Form[node] {
	return extsort.Form[node]{
		Bytes: 60,
		Put: func(b []byte, n node) {
			copy(b, n.id[:])
			copy(b[32:], n.place.Pack[:])
			binary.LittleEndian.PutUint32(b[48:], n.place.Frame)
			binary.LittleEndian.PutUint32(b[52:], n.set)
			binary.LittleEndian.PutUint32(b[56:], n.root)
		},
		Get: func(b []byte) node {
			return node{
				id:    chunk.ID(b[:32]),
				place: chunk.Place{Pack: chunk.PackID(b[32:48]), Frame: binary.LittleEndian.Uint32(b[48:])},
				set:   binary.LittleEndian.Uint32(b[52:]),
				root:  binary.LittleEndian.Uint32(b[56:]),
			}
		},
		Compare: compare,
	}
}

// walker goes through maps level by level, so that each node is read once, however many maps share it, and pack by pack.
type walker struct {
	s     *survey
	roots []root

	mu   sync.Mutex // guards what follows, and the survey's needs
	next *extsort.Sorter[node]
	lost map[uint32]bool // roots of which a node is lost
	why  error           // the first
}

// walk finds out all that the roots need.
func (s *survey) walk(ctx context.Context, roots []root) error {
	w := &walker{s: s, roots: roots, lost: map[uint32]bool{}}
	top := 0
	for _, r := range roots {
		if !r.Root.Empty {
			top = max(top, r.Root.Level)
		}
	}
	w.next = extsort.New(nodeForm(node.byID), s.p.space)
	defer func() { w.next.Close() }()
	for level := top; level >= 0; level-- {
		for i, r := range roots {
			if r.Root.Empty || r.Root.Level != level {
				continue
			}
			if err := w.next.Add(node{r.Root.ID, r.Root.Place, s.inv.table.set(r.Set), uint32(i)}); err != nil {
				return err
			}
		}
		level1 := w.next
		w.next = extsort.New(nodeForm(node.byID), s.p.space)
		err := w.level(ctx, level, level1)
		if err := errors.Join(err, level1.Close()); err != nil {
			return err
		}
	}
	return w.verdict(ctx)
}

// verdict is an error if the map of a backup is lost in part; not if the backup has been deleted since the walk began, and others
// have pruned it.
func (w *walker) verdict(ctx context.Context) error {
	if len(w.lost) == 0 {
		return nil
	}
	visible := map[string]bool{}
	all, _, err := w.s.p.repo.Backups(ctx)
	if err != nil {
		return err
	}
	for _, b := range all {
		visible[b.ID] = true
	}
	for i, r := range w.roots {
		if w.lost[uint32(i)] {
			w.s.mapsLost++
			if r.required && visible[r.ID] {
				w.s.lostMaps = append(w.s.lostMaps, r.ID)
			}
		}
	}
	if len(w.s.lostMaps) == 0 || w.s.p.o.IgnoreLost {
		return nil
	}
	return fmt.Errorf("%w: what backup %s needs cannot be told (repair or delete it): %w", ErrMapLost, w.s.lostMaps[0], w.why)
}

// level reads all nodes of a level, each once, and finds those of the next.
func (w *walker) level(ctx context.Context, level int, byID *extsort.Sorter[node]) error {
	byPlace := extsort.New(nodeForm(node.byPlace), w.s.p.space)
	defer byPlace.Close()
	var last node
	first := true
	for n, err := range byID.Sorted() {
		if err != nil {
			return err
		}
		if !first && n.id == last.id && n.set == last.set {
			continue
		}
		first, last = false, n
		if err := byPlace.Add(n); err != nil {
			return err
		}
		if err := w.s.need(envelope.Nodes, n.set, n.id, n.place); err != nil {
			return err
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(readers)
	var batch []node
	read := func() {
		taken := batch
		batch = nil
		if len(taken) > 0 {
			g.Go(func() error { return w.read(gctx, level, taken) })
		}
	}
	for n, err := range byPlace.Sorted() {
		if err != nil {
			return errors.Join(err, g.Wait())
		}
		if len(batch) > 0 && (batch[0].place.Pack != n.place.Pack || len(batch) == nodesAtOnce) {
			read()
		}
		if gctx.Err() != nil {
			break
		}
		batch = append(batch, n)
	}
	read()
	return g.Wait()
}

// read reads nodes of one pack, in their order.
func (w *walker) read(ctx context.Context, level int, batch []node) error {
	packs := w.s.p.repo.Packs()
	d, err := packs.Directory(ctx, envelope.Nodes, batch[0].place.Pack)
	if err != nil && !repository.IsLost(err) {
		return err
	}
	var frames []uint32
	var there, done []int // indices into batch
	if err == nil {
		for i, n := range batch {
			if int(n.place.Frame) < d.Len() && d.Entry(n.place.Frame).ID == n.id && (len(frames) == 0 || frames[len(frames)-1] != n.place.Frame) {
				frames = append(frames, n.place.Frame)
				there = append(there, i)
			}
		}
	}
	if len(frames) > 0 {
		err = packs.Frames(ctx, envelope.Nodes, batch[0].place.Pack, frames, func(i int, plain []byte) error {
			err := w.decode(level, batch[there[i]], plain)
			if err == nil {
				done = append(done, there[i])
			}
			return err
		})
		if err != nil && !repository.IsLost(err) {
			return err
		}
	}
	for i, n := range batch {
		if len(done) > 0 && done[0] == i {
			done = done[1:]
			continue
		}
		plain, err := w.s.p.repo.ReadNode(ctx, n.id, n.place)
		if err == nil {
			err = w.decode(level, n, plain)
		}
		if err != nil && !errors.Is(err, repository.ErrDamaged) && !errors.Is(err, maptree.ErrDamaged) {
			return err
		}
		if err != nil {
			w.mu.Lock()
			w.lost[n.root] = true
			if w.roots[n.root].required && w.why == nil {
				w.why = err
			}
			w.mu.Unlock()
		}
	}
	return nil
}

// decode takes in what a node needs: an error that is not of damage ends the walk.
func (w *walker) decode(level int, of node, plain []byte) error {
	n, err := maptree.Decode(plain, w.s.p.repo.Geometry())
	if err != nil {
		return err
	}
	if n.Level != level {
		return fmt.Errorf("map node %s of level %d where one of %d belongs: %w", of.id, n.Level, level, maptree.ErrDamaged)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range n.Children {
		if err := w.next.Add(node{c.ID, c.Place, of.set, of.root}); err != nil {
			return err
		}
	}
	for _, r := range n.Regions {
		for _, c := range r.Region.Chunks {
			if err := w.s.need(envelope.Pack, of.set, c.ID, c.Place); err != nil {
				return err
			}
		}
	}
	return nil
}
