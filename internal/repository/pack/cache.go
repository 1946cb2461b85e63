package pack

import (
	"context"
	"errors"
	"math"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/sync/singleflight"

	"varve/internal/repository/chunk"
	"varve/internal/repository/envelope"
)

type packKey struct {
	kind envelope.Kind
	id   chunk.PackID
}

func (k packKey) String() string { return Name(k.kind, k.id) }

// cache keeps the directories that were used last, of bounded size altogether.
type cache struct {
	limit int64
	mu    sync.Mutex
	lru   *simplelru.LRU[packKey, *opened]
	bytes int64
}

func newCache(limitBytes int64) *cache {
	c := &cache{limit: limitBytes}
	c.lru, _ = simplelru.NewLRU(math.MaxInt, func(_ packKey, o *opened) { c.bytes -= o.memory() }) // bounded by bytes, see add
	return c
}

func (c *cache) get(key packKey) *opened {
	c.mu.Lock()
	defer c.mu.Unlock()
	o, _ := c.lru.Get(key)
	return o
}

func (c *cache) add(o *opened) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lru.Remove(o.key)
	c.lru.Add(o.key, o)
	for c.bytes += o.memory(); c.bytes > c.limit && c.lru.Len() > 1; {
		c.lru.RemoveOldest()
	}
}

func (c *cache) remove(key packKey) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lru.Remove(key)
}

// errAbandoned: who did the work for all was cancelled.
var errAbandoned = errors.New("abandoned")

// once has what several ask for at the same time done by one of them.
type once struct{ group singleflight.Group }

// do returns what f returns. Who is cancelled waits no longer, and cancels nobody else.
func (o *once) do(ctx context.Context, key string, f func() (*opened, error)) (*opened, error) {
	for {
		done := o.group.DoChan(key, func() (any, error) {
			found, err := f()
			if err != nil && ctx.Err() != nil {
				err = errAbandoned
			}
			return found, err
		})
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case r := <-done:
			if errors.Is(r.Err, errAbandoned) {
				continue
			}
			return r.Val.(*opened), r.Err
		}
	}
}
