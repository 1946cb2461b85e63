package pool_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"

	"varve/internal/block"
)

// bases are the bases that the pools of a test can open, by reference.
type bases struct {
	mu sync.Mutex
	of map[string]*baseContent
}

// smallBases are those that nobody forgets.
var smallBases bases

// baseContent is a base: bytes that never change, and what goes wrong with them.
type baseContent struct {
	data []byte

	mu      sync.Mutex
	cannot  error                       // why it cannot be opened
	fails   func(off, n int64) error    // why some of it cannot be read
	reading func(off, n int64)          // is told what is read
	size    int64                       // that it says it has; 0: what it has
	opened  int                         // how often it was
	open    int                         // devices that are not closed
	refuses func(context.Context) error // instead of all answers
}

var errBase = errors.New("the base says no")

// add makes a base and returns its reference.
func (b *bases) add(data []byte) (ref []byte, c *baseContent) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.of == nil {
		b.of = map[string]*baseContent{}
	}
	ref = fmt.Appendf(nil, "repo/%d", len(b.of))
	c = &baseContent{data: data}
	b.of[string(ref)] = c
	return ref, c
}

// Open is pool.Options.OpenBase.
func (b *bases) Open(_ context.Context, ref []byte) (block.Device, error) {
	b.mu.Lock()
	c := b.of[string(ref)]
	b.mu.Unlock()
	if c == nil {
		return nil, fmt.Errorf("no base %q", ref)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.opened++; c.cannot != nil {
		return nil, c.cannot
	}
	c.open++
	return &baseDevice{baseContent: c}, nil
}

// set changes what goes wrong.
func (c *baseContent) set(change func(*baseContent)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(c)
}

// counts tells how often it was opened, and how many devices are open.
func (c *baseContent) counts() (opened, open int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.opened, c.open
}

type baseDevice struct {
	*baseContent
	closed bool
}

func (d *baseDevice) SizeBytes() int64 {
	if d.size != 0 {
		return d.size
	}
	return int64(len(d.data))
}

func (d *baseDevice) begin(ctx context.Context, off, n int64) error {
	d.mu.Lock()
	closed, fails, reading, refuses := d.closed, d.fails, d.reading, d.refuses
	d.mu.Unlock()
	if closed {
		return block.ErrClosed
	}
	if err := block.CheckRange(off, n, int64(len(d.data))); err != nil {
		return err
	}
	if reading != nil {
		reading(off, n)
	}
	if refuses != nil {
		if err := refuses(ctx); err != nil {
			return err
		}
	}
	if fails != nil {
		if err := fails(off, n); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (d *baseDevice) ReadAt(ctx context.Context, p []byte, off int64) error {
	err := d.begin(ctx, off, int64(len(p)))
	copy(p, d.data[off:])
	if err != nil {
		for i := range p { // nobody may look at it
			p[i] = 0xEE
		}
	}
	return err
}

func (d *baseDevice) Submit(_ context.Context, ops []*block.Op) {
	for _, op := range ops {
		op.Err = block.ErrReadOnly
	}
}

func (d *baseDevice) Flush(context.Context) error { return nil }

// Extents tells blocks of zeros from others.
func (d *baseDevice) Extents(ctx context.Context, off, length int64, limit int) ([]block.Extent, error) {
	if err := d.begin(ctx, off, 0); err != nil {
		return nil, err
	}
	var out []block.Extent
	for end := off + length; off < end; {
		next := min((off/block.Size+1)*block.Size, end)
		hole := len(bytes.TrimLeft(d.data[off/block.Size*block.Size:min((off/block.Size+1)*block.Size, int64(len(d.data)))], "\x00")) == 0
		if n := len(out); n > 0 && out[n-1].Zero == hole {
			out[n-1].Length += next - off
		} else if n == limit {
			break
		} else {
			out = append(out, block.Extent{Offset: off, Length: next - off, Hole: hole, Zero: hole})
		}
		off = next
	}
	return out, nil
}

func (d *baseDevice) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.closed {
		d.open--
	}
	d.closed = true
	return nil
}
