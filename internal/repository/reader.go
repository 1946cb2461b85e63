package repository

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"varve/internal/objects"
	"varve/internal/repository/chunk"
	"varve/internal/repository/envelope"
	"varve/internal/repository/index"
	"varve/internal/repository/maptree"
	"varve/internal/repository/pack"
	"varve/internal/repository/seal"
)

// chunkAt reads a chunk where it is said to be, or wherever else the index knows it.
func (r *Repo) chunkAt(ctx context.Context, id chunk.ID, hint chunk.Place) ([]byte, error) {
	return r.contentAt(ctx, envelope.Pack, id, hint)
}

// ReadNode implements maptree.NodeReader.
func (r *Repo) ReadNode(ctx context.Context, id chunk.ID, hint chunk.Place) ([]byte, error) {
	return r.contentAt(ctx, envelope.Nodes, id, hint)
}

// contentAt returns plain content whose id is right, or an error: ErrDamaged if it is lost wherever it was.
func (r *Repo) contentAt(ctx context.Context, kind envelope.Kind, id chunk.ID, hint chunk.Place) ([]byte, error) {
	plain, err := r.frame(ctx, kind, id, hint)
	if err == nil || !lostThere(err) {
		return plain, err
	}
	for _, again := range []bool{false, true} {
		if again && !r.indexOld() {
			break
		}
		if again {
			if rerr := r.refreshIndex(ctx); rerr != nil {
				return nil, errors.Join(err, rerr)
			}
		}
		elsewhere, ierr := r.index.Find(ctx, id)
		if ierr != nil && !errors.Is(ierr, envelope.ErrLost) {
			return nil, errors.Join(err, ierr)
		}
		for _, e := range elsewhere {
			if e.Kind != kind || e.Place == hint {
				continue
			}
			plain, perr := r.frame(ctx, kind, id, e.Place)
			if perr == nil || !lostThere(perr) {
				return plain, perr
			}
		}
	}
	return nil, fmt.Errorf("%s %s: %w: %w", noun(kind), id, ErrDamaged, err)
}

// indexOld tells that somebody may have written to the index since it was listed.
func (r *Repo) indexOld() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return time.Since(r.listed) > time.Second
}

func noun(kind envelope.Kind) string {
	if kind == envelope.Nodes {
		return "map node"
	}
	return "chunk"
}

// frame reads content from one place; its id is checked there.
func (r *Repo) frame(ctx context.Context, kind envelope.Kind, id chunk.ID, at chunk.Place) ([]byte, error) {
	return r.packs.Frame(ctx, kind, at, id, nil)
}

// Hashes are those of a chunk's blocks, in their order; nil if they cannot be read any more.
func (r *Repo) Hashes(ctx context.Context, c maptree.Chunk) ([]uint64, error) {
	h, err := r.hashesAt(ctx, c.ID, c.Place)
	if err == nil && len(h) == c.Held.Count() {
		return h, nil
	}
	if err != nil && !lostThere(err) {
		return nil, err
	}
	elsewhere, err := r.index.Find(ctx, c.ID)
	if err != nil && !errors.Is(err, envelope.ErrLost) {
		return nil, err
	}
	for _, e := range elsewhere {
		if e.Kind != envelope.Pack {
			continue
		}
		h, err := r.hashesAt(ctx, c.ID, e.Place)
		if err == nil && len(h) == c.Held.Count() {
			return h, nil
		}
		if err != nil && !lostThere(err) {
			return nil, err
		}
	}
	return nil, nil
}

func (r *Repo) hashesAt(ctx context.Context, id chunk.ID, at chunk.Place) ([]uint64, error) {
	d, err := r.packs.Directory(ctx, envelope.Pack, at.Pack)
	if err != nil {
		return nil, err
	}
	if int(at.Frame) >= d.Len() || d.Entry(at.Frame).ID != id {
		return nil, pack.ErrElsewhere
	}
	return d.Entry(at.Frame).Hashes, nil
}

// slots is how many regions a leaf has, and children an inner node.
const slots = 64

// RandomRegion is a region that is not all hole, found by choosing at random in each node; ok is false if there is none.
func (r *Repo) RandomRegion(ctx context.Context, root maptree.Root) (index uint64, region maptree.Region, ok bool, err error) {
	if root.Empty {
		return 0, region, false, nil
	}
	id, place := root.ID, root.Place
	for level := root.Level; ; level-- {
		plain, err := r.ReadNode(ctx, id, place)
		if err != nil {
			return 0, region, false, err
		}
		n, err := maptree.Decode(plain, r.Geometry())
		if err != nil || n.Level != level {
			return 0, region, false, errors.Join(err, fmt.Errorf("map node %s: %w", id, ErrDamaged))
		}
		if level == 0 {
			at := n.Regions[rand.IntN(len(n.Regions))]
			return index*slots + uint64(at.Slot), at.Region, true, nil
		}
		c := n.Children[rand.IntN(len(n.Children))]
		index, id, place = index*slots+uint64(c.Slot), c.ID, c.Place
	}
}

// lostThere tells errors of a place, which another place may make good, from those of the store.
func lostThere(err error) bool {
	return errors.Is(err, pack.ErrElsewhere) || errors.Is(err, envelope.ErrLost) || errors.Is(err, ErrDamaged) ||
		errors.Is(err, envelope.ErrForeign) || errors.Is(err, seal.ErrForged) || errors.Is(err, maptree.ErrDamaged) || errors.Is(err, objects.ErrNotFound) || errors.Is(err, objects.ErrShort)
}

// Places are all places where the index knows a chunk or node to be.
func (r *Repo) Places(ctx context.Context, id chunk.ID) ([]index.Entry, error) {
	return r.index.Find(ctx, id)
}

// packThere asks the store whether a pack, or a copy of it that a repair made, is there.
func (r *Repo) packThere(ctx context.Context, kind envelope.Kind, id chunk.PackID) (bool, error) {
	name := pack.Name(kind, id)
	_, err := r.store.Stat(ctx, name)
	if err == nil {
		return true, nil
	}
	if !errors.Is(err, objects.ErrNotFound) {
		return false, err
	}
	there := false
	err = r.store.List(ctx, name+"-", func(objects.Info) error { there = true; return nil })
	return there, err
}
