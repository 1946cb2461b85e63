package repository

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"varve/internal/block"
	"varve/internal/repository/chunk"
	"varve/internal/repository/envelope"
	"varve/internal/repository/maptree"
)

// Scanned is a region with what its chunks hold.
type Scanned struct {
	Index  uint64
	Region maptree.Region
	Plain  [][]byte // of each chunk that supplies a block, else nil
	Errs   []error  // of each chunk
}

// Block is the content of one of the region's blocks; nil if it is a hole.
func (s *Scanned) Block(i int) ([]byte, error) {
	c, pos, ok := s.Region.Source(i)
	if !ok {
		return nil, nil
	}
	if s.Errs[c] != nil {
		return nil, s.Errs[c]
	}
	return s.Plain[c][pos*block.Size : (pos+1)*block.Size], nil
}

const (
	// windowBytes is how much plain content is read ahead; two windows are in memory, and a third while it is handed over.
	windowBytes = 16 << 20
	// taskBytes is what one goroutine reads and decodes at a time.
	taskBytes = 2 << 20
	// readers is how many do so at once: enough for a store that answers slowly.
	readers = 12
)

// Want chooses what of a region a scan reads: the blocks that are needed. It is called for several at once.
type Want func(ctx context.Context, index uint64, r maptree.Region) (maptree.Bitmap, error)

// Scan reads regions [from, to) of a map in order, ahead and in large requests, and passes those that are not all hole to visit,
// several at once if it is told so by workers > 1: then the order within a window is not kept. A chunk that is lost is an error of that chunk alone.
func (r *Repo) Scan(ctx context.Context, tree *maptree.Tree, from, to uint64, want Want, workers int, visit func(*Scanned) error) error {
	g, ctx := errgroup.WithContext(ctx)
	windows := make(chan []*Scanned, 1)
	g.Go(func() error {
		defer close(windows)
		var window []*Scanned
		size := 0
		send := func() error {
			if err := r.fillWindow(ctx, window, want); err != nil {
				return err
			}
			select {
			case windows <- window:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			window, size = nil, 0
			return nil
		}
		err := tree.Walk(ctx, from, to, func(index uint64, region maptree.Region) error {
			window = append(window, &Scanned{Index: index, Region: region})
			for _, c := range region.Chunks {
				size += c.Held.Count() * block.Size
			}
			if size >= windowBytes {
				return send()
			}
			return nil
		})
		if err != nil {
			return err
		}
		return send()
	})
	g.Go(func() error {
		for window := range windows {
			vg, _ := errgroup.WithContext(ctx)
			vg.SetLimit(max(workers, 1))
			for _, s := range window {
				if ctx.Err() != nil {
					break
				}
				vg.Go(func() error { return visit(s) })
			}
			if err := vg.Wait(); err != nil {
				return err
			}
		}
		return ctx.Err()
	})
	return g.Wait()
}

// piece is a chunk of a window that has to be read.
type piece struct {
	s     *Scanned
	c     int
	place chunk.Place
}

// fillWindow reads the chunks that supply wanted blocks, sorted by where they lie.
func (r *Repo) fillWindow(ctx context.Context, window []*Scanned, want Want) error {
	needed := make([][maptree.MaxChunks]bool, len(window))
	wg, wctx := errgroup.WithContext(ctx)
	wg.SetLimit(readers)
	for i, s := range window {
		// Chunks of one region are read by several goroutines.
		s.Plain, s.Errs = make([][]byte, len(s.Region.Chunks)), make([]error, len(s.Region.Chunks))
		if want == nil {
			needed[i] = s.needed(nil)
			continue
		}
		wg.Go(func() error {
			wanted, err := want(wctx, s.Index, s.Region)
			needed[i] = s.needed(&wanted)
			return err
		})
	}
	if err := wg.Wait(); err != nil {
		return err
	}
	var pieces []piece
	for i, s := range window {
		for c, ch := range s.Region.Chunks {
			if needed[i][c] {
				pieces = append(pieces, piece{s, c, ch.Place})
			}
		}
	}
	slices.SortFunc(pieces, func(a, b piece) int {
		if c := bytes.Compare(a.place.Pack[:], b.place.Pack[:]); c != 0 {
			return c
		}
		return int(int64(a.place.Frame) - int64(b.place.Frame))
	})
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(readers)
	for len(pieces) > 0 {
		n, size := 0, 0
		for n < len(pieces) && pieces[n].place.Pack == pieces[0].place.Pack && size < taskBytes {
			size += pieces[n].s.Region.Chunks[pieces[n].c].Held.Count() * block.Size
			n++
		}
		task := pieces[:n]
		pieces = pieces[n:]
		g.Go(func() error { return r.readPieces(gctx, task) })
	}
	return g.Wait()
}

// needed tells which chunks supply a wanted block; nil wants all.
func (s *Scanned) needed(wanted *maptree.Bitmap) [maptree.MaxChunks]bool {
	var needed [maptree.MaxChunks]bool
	for c, supplied := range s.Region.Supplied() {
		needed[c] = !supplied.Empty()
		if wanted != nil {
			needed[c] = !supplied.And(*wanted).Empty()
		}
	}
	return needed
}

// readPieces reads chunks of one pack, in order of their frames, and those that are not there wherever else they are.
func (r *Repo) readPieces(ctx context.Context, task []piece) error {
	if err := r.readTogether(ctx, task); err != nil && !IsLost(err) {
		return err
	}
	for _, p := range task {
		if p.s.Plain[p.c] != nil {
			continue
		}
		plain, err := r.chunk(ctx, p.s.Region.Chunks[p.c])
		if err != nil && !errors.Is(err, ErrDamaged) {
			return err
		}
		if err != nil {
			p.s.Errs[p.c] = err
		}
		p.s.Plain[p.c] = plain
	}
	return nil
}

// readTogether reads the pieces that the pack holds where it is said to. What is in a frame is compared with the directory's id then.
func (r *Repo) readTogether(ctx context.Context, task []piece) error {
	d, err := r.packs.Directory(ctx, envelope.Pack, task[0].place.Pack)
	if err != nil {
		return err
	}
	var frames []uint32
	here := make([]piece, 0, len(task))
	for _, p := range task {
		ch := p.s.Region.Chunks[p.c]
		if int(p.place.Frame) >= d.Len() {
			continue
		}
		if e := d.Entry(p.place.Frame); e.ID != ch.ID || int(e.PlainBytes) != ch.Held.Count()*block.Size {
			continue
		}
		here = append(here, p)
		if n := len(frames); n == 0 || frames[n-1] != p.place.Frame {
			frames = append(frames, p.place.Frame)
		}
	}
	if len(frames) == 0 {
		return nil
	}
	next := 0
	return r.packs.Frames(ctx, envelope.Pack, task[0].place.Pack, frames, func(i int, plain []byte) error {
		content := bytes.Clone(plain)
		for ; next < len(here) && here[next].place.Frame <= frames[i]; next++ {
			if p := here[next]; p.place.Frame == frames[i] { // else it is lost
				p.s.Plain[p.c] = content
			}
		}
		return nil
	})
}

// chunk reads a region's chunk and checks its length against the map.
func (r *Repo) chunk(ctx context.Context, c maptree.Chunk) ([]byte, error) {
	plain, err := r.ReadChunk(ctx, c.ID, c.Place)
	if err != nil {
		return nil, err
	}
	if want := c.Held.Count() * block.Size; len(plain) != want {
		return nil, fmt.Errorf("chunk %s has %d bytes, the map says %d: %w", c.ID, len(plain), want, ErrDamaged)
	}
	return plain, nil
}
