// Package mapwalk goes through the maps of many backups at once, level by
// level from the roots, so that a node that many maps share is read once, and
// nodes are read pack by pack in the order of their frames.
//
// Between two levels nodes are sorted outside of memory, which is bounded by
// that whatever the maps have.
//
// Left out: which regions a node covers (package maptree), and what is done
// about what is needed.
package mapwalk

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"sync"

	"golang.org/x/sync/errgroup"

	"varve/internal/repository"
	"varve/internal/repository/chunk"
	"varve/internal/repository/envelope"
	"varve/internal/repository/extsort"
	"varve/internal/repository/maptree"
	"varve/internal/repository/pack"
)

const (
	// readers is how many packs are read at once.
	readers = 8
	// nodesAtOnce is how many nodes of a pack one of them takes.
	nodesAtOnce = 1024
)

// Root is a map to be walked.
type Root struct {
	maptree.Root
	Set uint32 // maps of different sets share no nodes, though their ids be the same
}

// Node is a node that some map needs.
type Node struct {
	ID    chunk.ID
	Place chunk.Place // a hint
	Set   uint32
	Root  uint32 // the first of the roots that need it, by its index
}

// Walk says what to do with nodes. Its functions are called by one goroutine at a time.
type Walk struct {
	Packs    *pack.Reader
	Geometry maptree.Geometry
	Space    extsort.Space
	// Read reads a node that is not where it is said to be: an error of repository.IsLost if it is nowhere.
	Read func(ctx context.Context, n Node) ([]byte, error)
	// Needed is told each node with each of its hints, before it is read; may be nil.
	Needed func(level int, n Node) error
	// Found is told what is in a node, and Lost that it cannot be read.
	Found func(level int, n Node, decoded maptree.Node) error
	Lost  func(level int, n Node, err error) error

	mu sync.Mutex // guards the calls
}

// byID orders nodes for a level, and byPlace for being read.
func byID(a, b Node) int {
	return cmp.Or(a.ID.Compare(b.ID), cmp.Compare(a.Set, b.Set), cmp.Compare(a.Root, b.Root), byPlace(a, b))
}

func byPlace(a, b Node) int {
	return cmp.Or(bytes.Compare(a.Place.Pack[:], b.Place.Pack[:]), cmp.Compare(a.Place.Frame, b.Place.Frame), a.ID.Compare(b.ID), cmp.Compare(a.Set, b.Set))
}

func form(compare func(a, b Node) int) extsort.Form[Node] {
	return extsort.Form[Node]{
		Bytes: 60,
		Put: func(b []byte, n Node) {
			copy(b, n.ID[:])
			copy(b[32:], n.Place.Pack[:])
			binary.LittleEndian.PutUint32(b[48:], n.Place.Frame)
			binary.LittleEndian.PutUint32(b[52:], n.Set)
			binary.LittleEndian.PutUint32(b[56:], n.Root)
		},
		Get: func(b []byte) Node {
			return Node{
				ID:    chunk.ID(b[:32]),
				Place: chunk.Place{Pack: chunk.PackID(b[32:48]), Frame: binary.LittleEndian.Uint32(b[48:])},
				Set:   binary.LittleEndian.Uint32(b[52:]),
				Root:  binary.LittleEndian.Uint32(b[56:]),
			}
		},
		Compare: compare,
	}
}

// Sorter sorts nodes in the order in which Read is best given them.
func Sorter(space extsort.Space) *extsort.Sorter[Node] { return extsort.New(form(byPlace), space) }

// Down reads all nodes of some maps.
func (w *Walk) Down(ctx context.Context, roots []Root) error {
	top := -1
	for _, r := range roots {
		if !r.Empty {
			top = max(top, r.Level)
		}
	}
	next := extsort.New(form(byID), w.Space)
	defer func() { next.Close() }()
	for level := top; level >= 0; level-- {
		for i, r := range roots {
			if r.Empty || r.Level != level {
				continue
			}
			if err := next.Add(Node{r.ID, r.Place, r.Set, uint32(i)}); err != nil {
				return err
			}
		}
		nodes := next
		next = extsort.New(form(byID), w.Space)
		err := w.level(ctx, level, nodes, next)
		if err := errors.Join(err, nodes.Close()); err != nil {
			return err
		}
	}
	return nil
}

// level reads the nodes of a level, each once, and finds those of the next.
func (w *Walk) level(ctx context.Context, level int, nodes, next *extsort.Sorter[Node]) error {
	once := Sorter(w.Space)
	defer once.Close()
	var last Node
	first := true
	for n, err := range nodes.Sorted() {
		if err != nil {
			return err
		}
		if w.Needed != nil {
			if err := w.Needed(level, n); err != nil {
				return err
			}
		}
		if first || n.ID != last.ID || n.Set != last.Set {
			if err := once.Add(n); err != nil {
				return err
			}
		}
		first, last = false, n
	}
	return w.read(ctx, level, once.Sorted(), func(n Node, decoded maptree.Node) error {
		for _, c := range decoded.Children {
			if err := next.Add(Node{c.ID, c.Place, n.Set, n.Root}); err != nil {
				return err
			}
		}
		return w.Found(level, n, decoded)
	})
}

// Level reads nodes of one level, which come by their places.
func (w *Walk) Level(ctx context.Context, level int, nodes iter.Seq2[Node, error]) error {
	return w.read(ctx, level, nodes, func(n Node, decoded maptree.Node) error { return w.Found(level, n, decoded) })
}

func (w *Walk) read(ctx context.Context, level int, nodes iter.Seq2[Node, error], found func(Node, maptree.Node) error) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(readers)
	var batch []Node
	hand := func() {
		taken := batch
		batch = nil
		if len(taken) > 0 {
			g.Go(func() error { return w.batch(gctx, level, taken, found) })
		}
	}
	for n, err := range nodes {
		if err != nil {
			return errors.Join(err, g.Wait())
		}
		if len(batch) > 0 && (batch[0].Place.Pack != n.Place.Pack || len(batch) == nodesAtOnce) {
			hand()
		}
		if gctx.Err() != nil {
			break
		}
		batch = append(batch, n)
	}
	hand()
	return g.Wait()
}

// batch reads nodes of one pack, those that are where they are said to be together.
func (w *Walk) batch(ctx context.Context, level int, batch []Node, found func(Node, maptree.Node) error) error {
	done := make([]bool, len(batch))
	d, err := w.Packs.Directory(ctx, envelope.Nodes, batch[0].Place.Pack)
	if err != nil && !repository.IsLost(err) {
		return err
	}
	var frames []uint32
	var there []int // indices into batch, of the first that is in each frame
	if err == nil {
		for i, n := range batch {
			if int(n.Place.Frame) >= d.Len() || d.Entry(n.Place.Frame).ID != n.ID {
				continue
			}
			if len(frames) == 0 || frames[len(frames)-1] != n.Place.Frame { // else it is of several sets
				frames, there = append(frames, n.Place.Frame), append(there, i)
			}
		}
	}
	if len(frames) > 0 {
		err = w.Packs.Frames(ctx, envelope.Nodes, batch[0].Place.Pack, frames, func(i int, plain []byte) error {
			decoded, err := w.decode(level, batch[there[i]], plain)
			for n := there[i]; err == nil && n < len(batch) && batch[n].Place == batch[there[i]].Place && batch[n].ID == batch[there[i]].ID; n++ {
				done[n] = true
				if err := w.call(func() error { return found(batch[n], decoded) }); err != nil {
					return err
				}
			}
			return nil // one that does not decode is read again, and then told to be lost
		})
		if err != nil && !repository.IsLost(err) {
			return err
		}
	}
	for i, n := range batch {
		if done[i] {
			continue
		}
		var decoded maptree.Node
		plain, err := w.Read(ctx, n)
		if err == nil {
			decoded, err = w.decode(level, n, plain)
		}
		if err != nil && !repository.IsLost(err) {
			return err
		}
		err = w.call(func() error {
			if err != nil {
				return w.Lost(level, n, err)
			}
			return found(n, decoded)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *Walk) call(f func() error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return f()
}

func (w *Walk) decode(level int, of Node, plain []byte) (maptree.Node, error) {
	n, err := maptree.Decode(plain, w.Geometry)
	if err == nil && n.Level != level {
		err = fmt.Errorf("map node %s of level %d where one of %d belongs: %w", of.ID, n.Level, level, maptree.ErrDamaged)
	}
	return n, err
}
