package repository

import (
	"context"
	"errors"
	"fmt"
	"sync"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/singleflight"

	"varve/internal/block"
	"varve/internal/repository/chunk"
	"varve/internal/repository/maptree"
)

// Device is a backup as a read-only disk.
type Device struct {
	repo   *Repo
	b      Backup
	tree   *maptree.Tree
	pin    *Pin
	chunks *lru.Cache[chunk.ID, []byte]
	flight singleflight.Group
	once   sync.Once
}

// deviceCacheBytes is what a Device keeps of chunks that were read.
const deviceCacheBytes = 32 << 20

// OpenDevice opens a backup, which it pins until Close.
func (r *Repo) OpenDevice(ctx context.Context, id string) (*Device, error) {
	return r.OpenHeld(ctx, id, "")
}

// OpenHeld is OpenDevice for whoever has made a hold of the backup: it may have been deleted since.
func (r *Repo) OpenHeld(ctx context.Context, id, hold string) (*Device, error) {
	b, err := r.Held(ctx, id, hold)
	if err != nil {
		return nil, err
	}
	pin, err := r.pin(ctx, b.ID, hold)
	if err != nil {
		return nil, err
	}
	cache, err := lru.New[chunk.ID, []byte](max(8, deviceCacheBytes/r.ChunkBytes()))
	if err != nil {
		return nil, err
	}
	return &Device{repo: r, b: b.Backup, tree: r.Tree(b.Root), pin: pin, chunks: cache}, nil
}

// Backup describes what is read.
func (d *Device) Backup() Backup { return d.b }

// SizeBytes implements block.Device.
func (d *Device) SizeBytes() int64 { return d.b.SizeBytes }

// span is a part of a read within one region.
type span struct {
	index uint64
	off   int64 // in the region
	p     []byte
}

// ReadAt implements block.Device.
func (d *Device) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := block.CheckRange(off, int64(len(p)), d.b.SizeBytes); err != nil {
		return fmt.Errorf("read backup %s: %w", d.b.ID, err)
	}
	if err := d.pin.Check(ctx); err != nil {
		return fmt.Errorf("read backup %s: %w", d.b.ID, err)
	}
	size := int64(d.repo.ChunkBytes())
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for len(p) > 0 {
		s := span{index: uint64(off / size), off: off % size}
		n := min(int64(len(p)), size-s.off)
		s.p = p[:n]
		p, off = p[n:], off+n
		g.Go(func() error { return d.readSpan(gctx, s) })
	}
	return g.Wait()
}

func (d *Device) readSpan(ctx context.Context, s span) error {
	region, err := d.tree.Region(ctx, s.index)
	if err != nil {
		return d.failed(s, err)
	}
	for len(s.p) > 0 {
		i, within := int(s.off/block.Size), s.off%block.Size
		n := min(int64(len(s.p)), block.Size-within)
		c, pos, ok := region.Source(i)
		if !ok {
			clear(s.p[:n])
		} else {
			plain, err := d.chunk(ctx, region.Chunks[c])
			if err != nil {
				return d.failed(s, err)
			}
			copy(s.p[:n], plain[int64(pos)*block.Size+within:])
		}
		s.p, s.off = s.p[n:], s.off+n
	}
	return nil
}

func (d *Device) failed(s span, err error) error {
	return fmt.Errorf("read backup %s at %d: %w", d.b.ID, int64(s.index)*int64(d.repo.ChunkBytes())+s.off, err)
}

func (d *Device) chunk(ctx context.Context, c maptree.Chunk) ([]byte, error) {
	if plain, ok := d.chunks.Get(c.ID); ok && len(plain) == c.Held.Count()*block.Size {
		return plain, nil
	}
	// Whoever is first reads for all; his giving up must not fail the others.
	read := d.flight.DoChan(string(c.ID[:]), func() (any, error) {
		return d.repo.chunk(context.WithoutCancel(ctx), c)
	})
	var got singleflight.Result
	select {
	case got = <-read:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if got.Err != nil {
		return nil, got.Err
	}
	plain := got.Val.([]byte)
	if len(plain) != c.Held.Count()*block.Size {
		return nil, ErrDamaged
	}
	d.chunks.Add(c.ID, plain)
	return plain, nil
}

// Submit implements block.Device: every op is block.ErrReadOnly.
func (d *Device) Submit(_ context.Context, ops []*block.Op) {
	for _, op := range ops {
		op.Err = fmt.Errorf("write to backup %s: %w", d.b.ID, block.ErrReadOnly)
	}
}

// Flush implements block.Device: there is nothing to do.
func (d *Device) Flush(context.Context) error { return nil }

// errEnough ends a walk that has found as much as was asked for.
var errEnough = errors.New("enough")

// Extents implements block.Device: what is a hole of the backup is one here. Only the map is read.
func (d *Device) Extents(ctx context.Context, off, length int64, limit int) ([]block.Extent, error) {
	if err := block.CheckRange(off, length, d.b.SizeBytes); err != nil {
		return nil, fmt.Errorf("extents of backup %s: %w", d.b.ID, err)
	}
	size := int64(d.repo.ChunkBytes())
	end := off + length
	var out []block.Extent
	at := off
	add := func(to int64, hole bool) error {
		if to <= at {
			return nil
		}
		if n := len(out); n > 0 && out[n-1].Hole == hole {
			out[n-1].Length += to - at
		} else if n == limit {
			return errEnough
		} else {
			out = append(out, block.Extent{Offset: at, Length: to - at, Hole: hole, Zero: hole})
		}
		at = to
		return nil
	}
	err := d.tree.Walk(ctx, uint64(off/size), uint64((end+size-1)/size), func(index uint64, r maptree.Region) error {
		start := int64(index) * size
		if err := add(min(max(start, off), end), true); err != nil {
			return err
		}
		for i := range d.repo.Geometry().BlocksPerRegion {
			_, _, ok := r.Source(i)
			if err := add(min(start+int64(i+1)*block.Size, end), !ok); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		err = add(end, true)
	}
	if err != nil && !errors.Is(err, errEnough) {
		return nil, fmt.Errorf("extents of backup %s: %w", d.b.ID, err)
	}
	return out, nil
}

// Close implements block.Device and gives the pin back.
func (d *Device) Close() error {
	d.once.Do(d.pin.Release)
	return nil
}
