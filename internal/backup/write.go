package backup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sync/errgroup"

	"varve/internal/block"
	"varve/internal/block/zeros"
	"varve/internal/repository"
	"varve/internal/repository/maptree"
)

// readAhead is how many regions of a source are read at once, and wait for the planner.
const readAhead = 8

// Create backs up sources, which are of one instant, as one record. When it
// returns without error, all of them are in the repository; otherwise none is.
// repository.ErrBaseGone and ErrFenced: try again, Choose may decide otherwise.
func Create(ctx context.Context, repo *repository.Repo, sources []*Source, o Options) (*repository.Record, error) {
	so := repository.SessionOptions{ID: o.Record, LockUntil: o.LockUntil}
	for _, s := range sources {
		so.Volumes = append(so.Volumes, s.VolumeID)
		if s.Type == repository.Differential {
			so.Against = repository.AgainstOwn // it depends on nothing but its full
		}
	}
	var err error
	if so.Set, err = setOf(ctx, repo, sources); err != nil {
		return nil, err
	}
	session, err := repo.Begin(ctx, so)
	if err != nil {
		return nil, err
	}
	rec := &repository.Record{ID: session.ID(), Program: o.Program, Host: o.Host}
	if rec.Host == "" {
		rec.Host, _ = os.Hostname()
	}
	b := &batch{repo: repo, session: session, o: o}
	for _, s := range sources {
		b.total += s.Device.SizeBytes()
	}
	for i, s := range sources {
		id := s.ID
		if id == "" && len(sources) == 1 {
			id = session.ID()
		} else if id == "" {
			id = repository.NewID()
		}
		m, err := b.member(ctx, s, id)
		if err != nil {
			session.Abort()
			return nil, fmt.Errorf("back up %s: %w", s.Name, err)
		}
		m.Set = so.Set
		rec.Backups = append(rec.Backups, m)
		b.base += sources[i].Device.SizeBytes()
	}
	if o.BeforeCommit != nil {
		if err := o.BeforeCommit(rec); err != nil {
			session.Abort()
			return nil, err
		}
	}
	return rec, session.Commit(ctx, rec, b.again(sources))
}

// batch is what the sources of one record share.
type batch struct {
	repo        *repository.Repo
	session     *repository.Session
	o           Options
	base, total int64 // bytes of the sources: done with, and in all
}

// member writes the map of one source, by its changes or, if they are unknown or were wrong, by looking at everything.
func (b *batch) member(ctx context.Context, s *Source, id string) (repository.Backup, error) {
	w := b.writer(s)
	err := w.write(ctx)
	if errors.Is(err, errMismatch) {
		first := w
		w = b.writer(s)
		w.scan, w.sampled, w.mismatched = true, first.sampled, first.mismatched
		w.readBytes = first.readBytes
		err = w.write(ctx)
	}
	if err != nil {
		return repository.Backup{}, err
	}
	m := repository.Backup{
		ID: id, Volume: s.Volume, VolumeID: s.VolumeID, SizeBytes: s.Device.SizeBytes(), Type: s.Type, Full: id, Reason: s.Reason,
		Root: w.root, PointID: s.PointID, PointAt: s.PointAt, Consistency: s.Consistency, FreezeTime: s.FreezeTime, Steps: s.Steps,
		Source: s.Name, Policy: s.Policy, Labels: s.Labels,
		MappedBytes: w.mapped * block.Size, ReadBytes: w.readBytes, ChangedBytes: w.changedBytes, Sampled: w.sampled, Mismatched: w.mismatched,
	}
	if s.Base != nil {
		m.Base, m.Full = s.Base.ID, s.Base.Full
	}
	if w.mismatched > 0 {
		m.Reason += "; a block had changed that was not tracked, so all were compared"
	}
	return m, nil
}

// writer turns one source into a map.
type writer struct {
	repo        *repository.Repo
	session     *repository.Session
	source      *Source
	geometry    maptree.Geometry
	regionBytes int64
	tree        *maptree.Tree // of the base; nil if there is none
	scan        bool          // everything is looked at
	progress    func(offset int64)
	tell        func(offset int64)

	root                maptree.Root
	mapped              int64 // blocks
	mu                  sync.Mutex
	readBytes           int64
	changedBytes        int64
	sampled, mismatched int64
}

func (b *batch) writer(s *Source) *writer {
	w := &writer{
		repo: b.repo, session: b.session, source: s, geometry: b.repo.Geometry(), regionBytes: int64(b.repo.ChunkBytes()),
		scan: s.Changes == nil, progress: func(int64) {}, tell: func(int64) {},
	}
	if s.Base != nil {
		w.tree = b.repo.Tree(s.Base.Root)
		w.mapped = s.Base.MappedBytes / block.Size
	}
	if b.o.Progress != nil {
		base := b.base
		w.progress = func(offset int64) { b.o.Progress(base+offset, b.total) }
	}
	if b.o.Mismatch != nil {
		w.tell = func(offset int64) { b.o.Mismatch(s.Volume, offset) }
	}
	return w
}

// write makes the map: regions are found, read ahead, planned and put into the map in order.
func (w *writer) write(ctx context.Context) error {
	var root maptree.Root
	root.Empty = true
	if w.source.Base != nil {
		root = w.source.Base.Root
	}
	sample, err := w.choose(ctx)
	if err != nil {
		return err
	}
	builder := maptree.NewBuilder(w.repo, w.session, w.geometry, root)
	g, gctx := errgroup.WithContext(ctx)
	read := make(chan *job, readAhead)
	planned := make(chan *job, 4*readAhead)
	g.Go(func() error {
		defer close(read)
		return w.find(gctx, sample, func(j *job) error { return w.readAhead(gctx, g, read, j) })
	})
	g.Go(func() error {
		defer close(planned)
		for j := range read {
			select {
			case <-j.done:
			case <-gctx.Done():
				return context.Cause(gctx)
			}
			if j.err != nil {
				return j.err
			}
			if err := w.plan(gctx, j); err != nil {
				return err
			}
			w.progress(int64(j.index) * w.regionBytes)
			if !j.changed {
				continue
			}
			select {
			case planned <- j:
			case <-gctx.Done():
				return context.Cause(gctx)
			}
		}
		return nil
	})
	g.Go(func() error {
		for j := range planned {
			if err := w.set(gctx, builder, j); err != nil {
				return err
			}
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		return w.noteMismatch(err)
	}
	if err := w.compare(ctx, sample); err != nil {
		return w.noteMismatch(err)
	}
	w.root, err = builder.Finish(ctx, w.repo.Regions(w.source.Device.SizeBytes()))
	if err != nil {
		return err
	}
	return w.countCutOff(ctx)
}

func (w *writer) noteMismatch(err error) error {
	if errors.Is(err, errMismatch) {
		w.mismatched++
	}
	return err
}

// set puts a planned region into the map once its new chunk has a place.
func (w *writer) set(ctx context.Context, builder *maptree.Builder, j *job) error {
	if j.pending != nil {
		id, place, err := j.pending.Wait(ctx)
		if err != nil {
			return err
		}
		j.region.Chunks = append(j.region.Chunks, maptree.Chunk{ID: id, Place: place, Held: j.held})
	}
	w.mapped += int64(j.region.Mapped().Count() - j.base.Mapped().Count())
	return builder.Set(ctx, j.index, j.region)
}

// countCutOff takes what lies beyond the end of a device that has shrunk off the number of mapped blocks.
func (w *writer) countCutOff(ctx context.Context) error {
	if w.source.Base == nil || w.source.Base.SizeBytes <= w.source.Device.SizeBytes() {
		return nil
	}
	from, to := w.repo.Regions(w.source.Device.SizeBytes()), w.repo.Regions(w.source.Base.SizeBytes)
	return w.tree.Walk(ctx, from, to, func(_ uint64, r maptree.Region) error {
		w.mapped -= int64(r.Mapped().Count())
		return nil
	})
}

// readAhead begins to read a region's blocks and queues it.
func (w *writer) readAhead(ctx context.Context, g *errgroup.Group, queue chan<- *job, j *job) error {
	j.buffer, j.done = w.session.Buffer(), make(chan struct{})
	select {
	case queue <- j:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	g.Go(func() error {
		defer close(j.done)
		j.err = w.read(ctx, j, j.look)
		return nil
	})
	return nil
}

// read fills the buffer's blocks from the source, each at its own place, and tells which are zeros. What lies beyond the end is.
func (w *writer) read(ctx context.Context, j *job, blocks maptree.Bitmap) error {
	start := int64(j.index) * w.regionBytes
	end := w.source.Device.SizeBytes()
	b := *j.buffer
	for i := 0; i < w.geometry.BlocksPerRegion; {
		if !blocks.Has(i) {
			i++
			continue
		}
		n := i
		for n < w.geometry.BlocksPerRegion && blocks.Has(n) {
			n++
		}
		p := b[i*block.Size : n*block.Size]
		off := start + int64(i)*block.Size
		have := max(min(int64(len(p)), end-off), 0)
		if have > 0 {
			if err := w.source.Device.ReadAt(ctx, p[:have], off); err != nil {
				return fmt.Errorf("read %s: %w", w.source.Name, err)
			}
		}
		clear(p[have:])
		w.mu.Lock()
		w.readBytes += have
		w.mu.Unlock()
		for ; i < n; i++ {
			if zeros.All(blockOf(j.buffer, i)) {
				j.zero.Set(i)
			}
		}
	}
	return nil
}

// again reads the content of a chunk once more, for a commit.
func (b *batch) again(sources []*Source) repository.Source {
	return func(ctx context.Context, member int, index uint64, r maptree.Region, c int) ([]byte, error) {
		w := b.writer(sources[member])
		buffer := make([]byte, b.repo.ChunkBytes())
		j := &job{index: index, buffer: &buffer}
		if err := w.read(ctx, j, r.Chunks[c].Held); err != nil {
			return nil, err
		}
		return buffer[:dense(&buffer, r.Chunks[c].Held)], nil
	}
}
