package repository

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"varve/internal/objects"
	"varve/internal/repository/chunk"
	"varve/internal/repository/envelope"
	"varve/internal/repository/index"
	"varve/internal/repository/maptree"
	"varve/internal/repository/pack"
	"varve/internal/repository/seal"
)

// ReadChunk reads a chunk where it is said to be, or wherever else the index knows it: ErrDamaged if it is nowhere.
func (r *Repo) ReadChunk(ctx context.Context, id chunk.ID, hint chunk.Place) ([]byte, error) {
	return r.contentAt(ctx, envelope.Pack, id, hint)
}

// ReadNode implements maptree.NodeReader.
func (r *Repo) ReadNode(ctx context.Context, id chunk.ID, hint chunk.Place) ([]byte, error) {
	return r.contentAt(ctx, envelope.Nodes, id, hint)
}

// ReadNodes implements maptree.AheadReader: nodes of one pack with few requests, several packs at once.
func (r *Repo) ReadNodes(ctx context.Context, nodes []maptree.Child, found func(i int, plain []byte)) {
	order := make([]int, len(nodes))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return nodes[a].Place.Compare(nodes[b].Place) })
	var g errgroup.Group
	g.SetLimit(readers)
	for len(order) > 0 {
		n := 1
		for n < len(order) && nodes[order[n]].Place.Pack == nodes[order[0]].Place.Pack {
			n++
		}
		batch := order[:n]
		order = order[n:]
		g.Go(func() error { return r.readNodes(ctx, nodes, batch, found) })
	}
	_ = g.Wait() // what was not found is read by itself
}

// readNodes reads some of the nodes, which one pack has, in the order of their frames.
func (r *Repo) readNodes(ctx context.Context, nodes []maptree.Child, batch []int, found func(i int, plain []byte)) error {
	packID := nodes[batch[0]].Place.Pack
	d, err := r.packs.Directory(ctx, envelope.Nodes, packID)
	if err != nil {
		return err
	}
	var frames []uint32
	var here []int
	for _, i := range batch {
		frame := nodes[i].Place.Frame
		if int(frame) >= d.Len() || d.Entry(frame).ID != nodes[i].ID || len(frames) > 0 && frames[len(frames)-1] == frame {
			continue
		}
		frames, here = append(frames, frame), append(here, i)
	}
	return r.packs.Frames(ctx, envelope.Nodes, packID, frames, func(i int, plain []byte) error {
		found(here[i], plain)
		return nil
	})
}

// contentAt returns plain content whose id is right, or an error: ErrDamaged if it is lost wherever it was. Content
// may be moved while it is looked for: it is lost only if an index that was listed after it was not found knows no other place.
func (r *Repo) contentAt(ctx context.Context, kind envelope.Kind, id chunk.ID, hint chunk.Place) ([]byte, error) {
	plain, err := r.frame(ctx, kind, id, hint)
	if err == nil || !IsLost(err) {
		return plain, err
	}
	tried := map[chunk.Place]bool{hint: true}
	for pass := range maxMoves {
		missed := time.Now()
		elsewhere, ierr := r.index.Find(ctx, id)
		if ierr != nil && !errors.Is(ierr, envelope.ErrLost) {
			return nil, errors.Join(err, ierr)
		}
		before := len(tried)
		for _, e := range elsewhere {
			if e.Kind != kind || tried[e.Place] {
				continue
			}
			tried[e.Place] = true
			plain, perr := r.frame(ctx, kind, id, e.Place)
			if perr == nil || !IsLost(perr) {
				return plain, perr
			}
		}
		if pass > 0 && len(tried) == before {
			break
		}
		if rerr := r.indexSince(ctx, missed); rerr != nil {
			return nil, errors.Join(err, rerr)
		}
	}
	return nil, fmt.Errorf("%s %s: %w: %w", noun(kind), id, ErrDamaged, err)
}

// maxMoves is how often content is followed that is moved while it is looked for.
const maxMoves = 10

// indexSince lists the index unless that has been begun since a time.
func (r *Repo) indexSince(ctx context.Context, since time.Time) error {
	r.indexMu.Lock()
	defer r.indexMu.Unlock()
	if r.listed.After(since) {
		return nil
	}
	begun := time.Now()
	if err := r.index.Refresh(ctx); err != nil {
		return err
	}
	r.listed = begun
	return nil
}

// RefreshIndex lists the runs of the index.
func (r *Repo) RefreshIndex(ctx context.Context) error { return r.indexSince(ctx, time.Now()) }

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
	if err != nil && !IsLost(err) {
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
		if err != nil && !IsLost(err) {
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

// IsLost tells errors of a place, which another place may make good, from those of the store.
func IsLost(err error) bool {
	return errors.Is(err, pack.ErrElsewhere) || errors.Is(err, envelope.ErrLost) || errors.Is(err, ErrDamaged) ||
		errors.Is(err, envelope.ErrForeign) || errors.Is(err, seal.ErrForged) || errors.Is(err, maptree.ErrDamaged) || errors.Is(err, objects.ErrNotFound) || errors.Is(err, objects.ErrShort)
}

// Places are all places where the index knows a chunk or node to be.
func (r *Repo) Places(ctx context.Context, id chunk.ID) ([]index.Entry, error) {
	return r.index.Find(ctx, id)
}

// packThere asks the store whether a pack is there under its own name. One of which there is only a copy that a repair made may
// have been condemned and deleted before that copy was put, and nobody who finds it knows.
func (r *Repo) packThere(ctx context.Context, kind envelope.Kind, id chunk.PackID) (bool, error) {
	_, err := r.store.Stat(ctx, pack.Name(kind, id))
	if errors.Is(err, objects.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}
