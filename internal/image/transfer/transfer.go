// Package transfer reads a whole device in order, fast and in bounded memory,
// for those who copy it somewhere.
//
// The device is read by its extents, so what is empty costs nothing. Data is
// read ahead, several buffers at a time, while the consumer handles what came
// before; within data, grains that hold only zeros are told apart. A grain is
// the unit in which the consumer can leave something out: a block, or a cluster
// of an image format.
//
// Memory: Ahead buffers of ChunkBytes for each Read, and what the device's own
// reads take.
package transfer

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"

	"varve/internal/block"
	"varve/internal/block/zeros"
)

const (
	// ChunkBytes is the length of a buffer, and the grid on which chunks are cut.
	ChunkBytes = 1 << 20
	// Ahead is how many buffers may be in work at once.
	Ahead = 4
	// extentsPerCall bounds one answer of the source.
	extentsPerCall = 512
)

// Progress is told how far a transfer is: done of total bytes of the device's
// size, holes included. It is called by one goroutine, in order, and must be quick.
type Progress func(done, total int64)

// Run is a stretch of the device: data, or zeros of any length.
type Run struct {
	Offset, Length int64  // bytes
	Data           []byte // nil: the run reads as zeros
}

// A chunk is the unit of reading ahead: either up to ChunkBytes of which parts
// are data, or zeros of any length.
type chunk struct {
	start, end int64
	spans      []span // data, in order; empty: all zeros
	buf        []byte // holds [start, end) if there are spans
	runs       []Run
	done       chan struct{} // closed once runs are ready
}

type span struct{ start, end int64 }

// Read passes all of src to emit in order, without gaps. The runs of one call
// tile a stretch that follows the previous call's; neighbours differ in kind.
// Data is valid until emit returns. Runs begin and end at multiples of grain (a
// power of two up to ChunkBytes) or at the end of the device, and data runs do
// not cross multiples of ChunkBytes. An error of emit ends the transfer and is
// returned as it is; all goroutines have ended when Read returns.
func Read(ctx context.Context, src block.Device, grain int64, progress Progress, emit func([]Run) error) error {
	caller := ctx
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)

	t := &reader{
		src: src, size: src.SizeBytes(), grain: grain,
		free:  make(chan []byte, Ahead),
		queue: make(chan *chunk, 2*Ahead),
	}
	for range Ahead {
		t.free <- nil // allocated on first use: small images need few
	}
	group.Go(func() error {
		defer close(t.queue)
		return t.walk(ctx, group)
	})
	if err := t.consume(ctx, progress, emit); err != nil {
		cancel()
		_ = group.Wait() // the consumer's error is the cause of any other
		return err
	}
	if err := group.Wait(); err != nil {
		return err
	}
	// Whoever cancels at the last moment gets no success to act upon.
	return caller.Err()
}

type reader struct {
	src   block.Device
	size  int64
	grain int64
	free  chan []byte
	queue chan *chunk

	// Of walk: the chunk being filled, and the end of what was queued or is in it.
	open *chunk
	pos  int64
}

// walk cuts the device's extents into chunks and starts the reading of each.
func (t *reader) walk(ctx context.Context, group *errgroup.Group) error {
	for off := int64(0); off < t.size; {
		extents, err := t.src.Extents(ctx, off, t.size-off, extentsPerCall)
		if err != nil {
			return err
		}
		if len(extents) == 0 {
			return fmt.Errorf("extents at %d: the device described nothing", off)
		}
		for _, e := range extents {
			if e.Offset != off || e.Length <= 0 || e.Length > t.size-off {
				return fmt.Errorf("extents at %d: the device described %d+%d", off, e.Offset, e.Length)
			}
			off += e.Length
			if e.Zero {
				continue
			}
			start := max(t.pos, e.Offset&^(t.grain-1))
			end := min(t.size, (off+t.grain-1)&^(t.grain-1))
			if err := t.add(ctx, group, start, end); err != nil {
				return err
			}
		}
	}
	if err := t.flush(ctx, group); err != nil {
		return err
	}
	return t.skipTo(ctx, t.size)
}

// add appends data, cut at the grid of chunks.
func (t *reader) add(ctx context.Context, group *errgroup.Group, start, end int64) error {
	for start < end {
		stop := min(end, start&^(ChunkBytes-1)+ChunkBytes)
		if t.open != nil && t.open.start/ChunkBytes != start/ChunkBytes {
			if err := t.flush(ctx, group); err != nil {
				return err
			}
		}
		if t.open == nil {
			if err := t.skipTo(ctx, start); err != nil {
				return err
			}
			t.open = &chunk{start: start, done: make(chan struct{})}
		}
		t.open.spans = append(t.open.spans, span{start, stop})
		t.open.end, t.pos = stop, stop
		start = stop
	}
	return nil
}

// skipTo queues the zeros from pos to end.
func (t *reader) skipTo(ctx context.Context, end int64) error {
	if t.pos == end {
		return nil
	}
	c := &chunk{start: t.pos, end: end, done: make(chan struct{})}
	c.runs = []Run{{Offset: c.start, Length: c.end - c.start}}
	close(c.done)
	t.pos = end
	return t.enqueue(ctx, c)
}

// flush starts to read the open chunk, once there is a buffer for it, and queues it.
func (t *reader) flush(ctx context.Context, group *errgroup.Group) error {
	c := t.open
	if c == nil {
		return nil
	}
	t.open = nil
	select {
	case c.buf = <-t.free:
	case <-ctx.Done():
		return ctx.Err()
	}
	group.Go(func() error {
		if c.buf == nil {
			c.buf = make([]byte, ChunkBytes)
		}
		if err := t.read(ctx, c); err != nil {
			return err
		}
		close(c.done)
		return nil
	})
	return t.enqueue(ctx, c)
}

func (t *reader) enqueue(ctx context.Context, c *chunk) error {
	select {
	case t.queue <- c:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// read fills the chunk's buffer and finds its runs.
func (t *reader) read(ctx context.Context, c *chunk) error {
	at := c.start
	for _, s := range c.spans {
		c.add(at, s.start, false)
		p := c.buf[s.start-c.start : s.end-c.start]
		if err := t.src.ReadAt(ctx, p, s.start); err != nil {
			return err
		}
		for off := s.start; off < s.end; off += t.grain {
			stop := min(s.end, off+t.grain)
			c.add(off, stop, !zeros.All(c.buf[off-c.start:stop-c.start]))
		}
		at = s.end
	}
	return nil
}

// add appends [start, end) to the chunk's runs, joined with the last if it is of the same kind.
func (c *chunk) add(start, end int64, data bool) {
	if start == end {
		return
	}
	if n := len(c.runs); n > 0 && (c.runs[n-1].Data != nil) == data {
		start = c.runs[n-1].Offset
		c.runs = c.runs[:n-1]
	}
	r := Run{Offset: start, Length: end - start}
	if data {
		r.Data = c.buf[start-c.start : end-c.start]
	}
	c.runs = append(c.runs, r)
}

// consume hands the chunks to emit in order.
func (t *reader) consume(ctx context.Context, progress Progress, emit func([]Run) error) error {
	for c := range t.queue {
		select {
		case <-c.done:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			return context.Cause(ctx) // a failed read's error, or that of the caller's context
		}
		if err := emit(c.runs); err != nil {
			return err
		}
		if c.buf != nil {
			t.free <- c.buf
		}
		if progress != nil {
			progress(c.end, t.size)
		}
	}
	return nil
}
