package check

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"varve/internal/repository"
	"varve/internal/repository/extsort"
)

const (
	// lookers is how many objects are looked at at once, and heldBytes how many bytes these have together, or one of them alone. What
	// is mended takes twice its size.
	lookers   = 16
	heldBytes = 72 << 20
)

// look looks at objects, one class after the other, and as many of those that are chosen as the options have it.
func (c *checker) look(ctx context.Context, items *extsort.Sorter[item], t total) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(lookers)
	memory := semaphore.NewWeighted(heldBytes)
	var rooms sync.Pool // of objects that have been looked at
	var mu sync.Mutex   // guards what follows, and the report's sums
	var done, taken int64
	for i, err := range items.Sorted() {
		if err != nil {
			return join(err, g.Wait())
		}
		if gctx.Err() != nil {
			break
		}
		if i.class == chosen && (taken == t.packs || c.overdue()) {
			c.report.Left++
			continue
		}
		if i.class == chosen {
			taken++
		}
		weight := min(i.bytes+4096, heldBytes)
		if err := memory.Acquire(gctx, weight); err != nil {
			break
		}
		g.Go(func() error {
			defer memory.Release(weight)
			room, _ := rooms.Get().(*[]byte)
			if room == nil {
				room = new([]byte)
			}
			defer rooms.Put(room)
			f, err := c.object(gctx, i, room)
			if err != nil {
				return fmt.Errorf("look at %s: %w", i.name, err)
			}
			if err := c.take(gctx, i, f); err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			if f.condition != gone {
				c.report.Objects++
				c.report.Bytes += i.bytes
			}
			done += i.bytes
			if c.o.Progress != nil {
				c.o.Progress(min(done, t.bytes), t.bytes)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if c.report.Left > 0 {
		c.note("%d objects were not looked at", c.report.Left)
	}
	return ctx.Err()
}

// join is the error of what was under way, which may be why the first happened, or else the first.
func join(first, second error) error {
	if second != nil {
		return second
	}
	return first
}

// take takes in what was found of an object.
func (c *checker) take(ctx context.Context, i item, f finding) error {
	p, packed := packOf(i.name)
	switch f.condition {
	case gone:
		return nil
	case unknown:
		c.note("%s: %s", i.name, f.message)
		return nil
	case sound:
		if f.message != "" {
			c.note("%s: %s", i.name, f.message)
		}
		return c.verdict(ctx, i, repository.Good, nil)
	case mended:
		c.damage.add(i.name, Mended, f.message)
		return c.verdict(ctx, i, repository.Mended, nil)
	case unmended:
		c.damage.add(i.name, Harmed, f.message)
		return c.verdict(ctx, i, repository.Mended, nil)
	}
	if packed {
		c.lost.add(p, f)
	}
	c.damage.add(i.name, Lost, f.message)
	return c.verdict(ctx, i, repository.Lost, f.frames)
}
