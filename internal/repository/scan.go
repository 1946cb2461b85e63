package repository

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

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
	// windowBytes is how much plain content is read together, sorted by where it lies.
	windowBytes = 12 << 20
	// windows are in memory at once: one is handed over while the next are read.
	windows = 5
	// taskBytes is how much plain content one goroutine reads and decodes at a time. Compressed it is one request.
	taskBytes = 6 << 20
	// readingBytes is how much several of them read at once, and readers how many they are: enough for a store that answers slowly. A
	// piece that is too small for that many counts as if it were not.
	readingBytes = 40 << 20
	readers      = 24
	// openers is how many packs are opened at most before their window is read.
	openers = 16
)

// Want chooses what of a region a scan reads: the blocks that are needed. It is called for several at once.
type Want func(ctx context.Context, index uint64, r maptree.Region) (maptree.Bitmap, error)

// Scan reads regions [from, to) of a map in order, ahead and in large requests, and passes those that are not all hole to visit,
// several at once if it is told so by workers > 1: then the order within a window is not kept. A chunk that is lost is an error of that
// chunk alone. What is passed is valid during the call.
func (r *Repo) Scan(ctx context.Context, tree *maptree.Tree, from, to uint64, want Want, workers int, visit func(*Scanned) error) error {
	g, ctx := errgroup.WithContext(ctx)
	s := &scan{Repo: r, want: want, reading: semaphore.NewWeighted(readingBytes), taken: make(chan struct{}, windows)}
	filled := make(chan *window, windows)
	g.Go(func() error {
		defer close(filled)
		send := func(w *window) error {
			s.openPacks(ctx, g, w)
			if err := take(ctx, s.taken); err != nil {
				return err
			}
			g.Go(func() error {
				defer close(w.done)
				w.err = s.fill(ctx, w)
				return w.err
			})
			filled <- w // there is room for as many as can be taken
			return nil
		}
		w, size := s.newWindow(), 0
		err := tree.Walk(ctx, from, to, func(index uint64, region maptree.Region) error {
			w.regions = append(w.regions, &Scanned{Index: index, Region: region})
			for _, c := range region.Chunks {
				size += c.Held.Count() * block.Size
			}
			if size < windowBytes {
				return nil
			}
			full := w
			w, size = s.newWindow(), 0
			return send(full)
		})
		if err != nil {
			return err
		}
		return send(w)
	})
	g.Go(func() error {
		for w := range filled {
			<-w.done
			if w.err != nil {
				return w.err
			}
			if err := w.visit(ctx, max(workers, 1), visit); err != nil {
				return err
			}
			w.memory.free()
			<-s.taken
		}
		return ctx.Err()
	})
	return g.Wait()
}

// scan is one Scan.
type scan struct {
	*Repo
	want    Want
	slabs   slabs
	asked   map[chunk.PackID]bool // packs of the last window that were opened early
	reading *semaphore.Weighted   // bytes that are being read
	taken   chan struct{}         // by windows in memory
}

// openPacks has the packs of a window's chunks opened before its turn comes, but for those of the last one. Where there are very many they
// would push each other out of the cache. An error is left to who reads them.
func (s *scan) openPacks(ctx context.Context, g *errgroup.Group, w *window) {
	last := s.asked
	s.asked = map[chunk.PackID]bool{}
	for _, region := range w.regions {
		for _, c := range region.Region.Chunks {
			id := c.Place.Pack
			if s.asked[id] || len(s.asked) == openers {
				continue
			}
			s.asked[id] = true
			if last[id] {
				continue
			}
			g.Go(func() error {
				_, _ = s.packs.Directory(ctx, envelope.Pack, id)
				return nil
			})
		}
	}
}

// take waits for a place in a semaphore.
func take(ctx context.Context, places chan struct{}) error {
	select {
	case places <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// window is some regions whose content is read together.
type window struct {
	regions []*Scanned
	memory  arena
	done    chan struct{} // closed when it is filled, or err is set
	err     error
}

func (s *scan) newWindow() *window {
	return &window{memory: arena{from: &s.slabs}, done: make(chan struct{})}
}

func (w *window) visit(ctx context.Context, workers int, visit func(*Scanned) error) error {
	g, _ := errgroup.WithContext(ctx)
	g.SetLimit(workers)
	for _, s := range w.regions {
		if ctx.Err() != nil {
			break
		}
		g.Go(func() error { return visit(s) })
	}
	return g.Wait()
}

// piece is a chunk of a window that has to be read.
type piece struct {
	s     *Scanned
	c     int
	place chunk.Place
}

// fill reads the chunks that supply wanted blocks, sorted by where they lie.
func (s *scan) fill(ctx context.Context, w *window) error {
	needed, err := s.needed(ctx, w)
	if err != nil {
		return err
	}
	var pieces []piece
	for i, region := range w.regions {
		for c, ch := range region.Region.Chunks {
			if needed[i][c] {
				pieces = append(pieces, piece{region, c, ch.Place})
			}
		}
	}
	slices.SortFunc(pieces, func(a, b piece) int { return a.place.Compare(b.place) })
	g, gctx := errgroup.WithContext(ctx)
	for len(pieces) > 0 {
		n, size := 0, 0
		for n < len(pieces) && pieces[n].place.Pack == pieces[0].place.Pack && size < taskBytes {
			size += pieces[n].s.Region.Chunks[pieces[n].c].Held.Count() * block.Size
			n++
		}
		task := pieces[:n]
		pieces = pieces[n:]
		weight := int64(max(size, readingBytes/readers))
		if s.reading.Acquire(gctx, weight) != nil {
			break
		}
		g.Go(func() error {
			defer s.reading.Release(weight)
			return s.readPieces(gctx, task, &w.memory)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return ctx.Err() // else all was read
}

// needed tells of each region which of its chunks have to be read.
func (s *scan) needed(ctx context.Context, w *window) ([][maptree.MaxChunks]bool, error) {
	needed := make([][maptree.MaxChunks]bool, len(w.regions))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(readers)
	for i, region := range w.regions {
		// Chunks of one region are read by several goroutines.
		region.Plain, region.Errs = make([][]byte, len(region.Region.Chunks)), make([]error, len(region.Region.Chunks))
		if s.want == nil {
			needed[i] = region.needed(nil)
			continue
		}
		g.Go(func() error {
			wanted, err := s.want(ctx, region.Index, region.Region)
			needed[i] = region.needed(&wanted)
			return err
		})
	}
	return needed, g.Wait()
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
func (r *Repo) readPieces(ctx context.Context, task []piece, memory *arena) error {
	if err := r.readTogether(ctx, task, memory); err != nil && !IsLost(err) {
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
func (r *Repo) readTogether(ctx context.Context, task []piece, memory *arena) error {
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
	return r.packs.FramesInto(ctx, envelope.Pack, task[0].place.Pack, frames, memory.room, func(i int, content []byte) error {
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
