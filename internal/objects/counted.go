package objects

import (
	"context"
	"sync/atomic"
	"time"
)

// Counts is what was asked of a store: calls by their kind, whether they succeeded or not, and the bytes of objects that
// went either way. What a store tries again counts once.
type Counts struct {
	Puts, Reads, Gets, Stats, Lists, Deletes, Retains int64
	// Listed is how many objects lists visited; a bucket tells a thousand a request.
	Listed                     int64
	UploadBytes, DownloadBytes int64
}

// Requests is the number of all calls.
func (c Counts) Requests() int64 {
	return c.Puts + c.Reads + c.Gets + c.Stats + c.Lists + c.Deletes + c.Retains
}

// Minus is what was asked since an earlier count.
func (c Counts) Minus(earlier Counts) Counts {
	return Counts{
		Puts: c.Puts - earlier.Puts, Reads: c.Reads - earlier.Reads, Gets: c.Gets - earlier.Gets,
		Stats: c.Stats - earlier.Stats, Lists: c.Lists - earlier.Lists,
		Deletes: c.Deletes - earlier.Deletes, Retains: c.Retains - earlier.Retains,
		Listed:      c.Listed - earlier.Listed,
		UploadBytes: c.UploadBytes - earlier.UploadBytes, DownloadBytes: c.DownloadBytes - earlier.DownloadBytes,
	}
}

// Counter is a Store that counts what is asked of another.
type Counter struct {
	Store
	puts, reads, gets, stats, lists, deletes, retains, listed, up, down atomic.Int64
}

var _ Store = (*Counter)(nil)

// Counted is st with everything that is asked of it counted.
func Counted(st Store) *Counter { return &Counter{Store: st} }

// Counts tells the counts so far, at any time.
func (c *Counter) Counts() Counts {
	return Counts{
		Puts: c.puts.Load(), Reads: c.reads.Load(), Gets: c.gets.Load(), Stats: c.stats.Load(), Lists: c.lists.Load(),
		Deletes: c.deletes.Load(), Retains: c.retains.Load(), Listed: c.listed.Load(),
		UploadBytes: c.up.Load(), DownloadBytes: c.down.Load(),
	}
}

// Put implements Store.
func (c *Counter) Put(ctx context.Context, name string, data [][]byte, o PutOptions) error {
	c.puts.Add(1)
	err := c.Store.Put(ctx, name, data, o)
	if err == nil {
		size, _ := Size(data)
		c.up.Add(size)
	}
	return err
}

// Read implements Store.
func (c *Counter) Read(ctx context.Context, name string, p []byte, off int64) error {
	c.reads.Add(1)
	err := c.Store.Read(ctx, name, p, off)
	if err == nil {
		c.down.Add(int64(len(p)))
	}
	return err
}

// Get implements Store.
func (c *Counter) Get(ctx context.Context, name string) ([]byte, error) {
	c.gets.Add(1)
	p, err := c.Store.Get(ctx, name)
	c.down.Add(int64(len(p)))
	return p, err
}

// Stat implements Store.
func (c *Counter) Stat(ctx context.Context, name string) (Info, error) {
	c.stats.Add(1)
	return c.Store.Stat(ctx, name)
}

// List implements Store.
func (c *Counter) List(ctx context.Context, prefix string, visit func(Info) error) error {
	c.lists.Add(1)
	return c.Store.List(ctx, prefix, func(info Info) error {
		c.listed.Add(1)
		return visit(info)
	})
}

// Delete implements Store.
func (c *Counter) Delete(ctx context.Context, name string) error {
	c.deletes.Add(1)
	return c.Store.Delete(ctx, name)
}

// Retain implements Store.
func (c *Counter) Retain(ctx context.Context, name string, until time.Time) error {
	c.retains.Add(1)
	return c.Store.Retain(ctx, name, until)
}
