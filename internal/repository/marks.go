package repository

import (
	"context"
	"errors"
	"fmt"

	"github.com/fxamacker/cbor/v2"

	"varve/internal/objects"
	"varve/internal/repository/chunk"
	"varve/internal/repository/envelope"
)

const condemnedPrefix = "condemned/"

// Mark is a list of packs that will be deleted. What is in it stays condemned for ever.
type Mark struct {
	Stored
	Packs []MarkedPack
}

// MarkedPack is a pack of chunks or nodes.
type MarkedPack struct {
	ID    chunk.PackID
	Nodes bool
}

// Kind of the pack's envelope.
func (m MarkedPack) Kind() envelope.Kind {
	if m.Nodes {
		return envelope.Nodes
	}
	return envelope.Pack
}

type wireMark struct {
	Chunks []byte `cbor:"1,keyasint,omitempty"` // ids of packs, one after the other
	Nodes  []byte `cbor:"2,keyasint,omitempty"`
}

// PutMark condemns packs, at most MaxMarked at once.
func (r *Repo) PutMark(ctx context.Context, packs []MarkedPack) error {
	if len(packs) > MaxMarked {
		return fmt.Errorf("condemn %d packs in one mark: at most %d", len(packs), MaxMarked)
	}
	var w wireMark
	for _, p := range packs {
		if p.Nodes {
			w.Nodes = append(w.Nodes, p.ID[:]...)
		} else {
			w.Chunks = append(w.Chunks, p.ID[:]...)
		}
	}
	plain, err := cbor.Marshal(w)
	if err != nil {
		return err
	}
	_, err = r.putSmall(ctx, envelope.Condemned, condemnedPrefix+newObjectID(), plain)
	return err
}

// MaxMarked is how many packs one mark may list.
const MaxMarked = 1 << 16

// Marks visits all marks.
func (r *Repo) Marks(ctx context.Context, visit func(Mark) error) error {
	found, err := r.Stored(ctx, condemnedPrefix)
	if err != nil {
		return err
	}
	for _, i := range found {
		_, plain, err := r.keys.LoadObject(ctx, r.store, i.Name, envelope.Condemned)
		if errors.Is(err, objects.ErrNotFound) {
			continue // its pruner has finished: the packs are gone
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", i.Name, err)
		}
		var w wireMark
		if err := decode(plain, &w); err != nil {
			return fmt.Errorf("read %s: %w", i.Name, err)
		}
		if len(w.Chunks)%16 != 0 || len(w.Nodes)%16 != 0 {
			return fmt.Errorf("read %s: %w", i.Name, ErrDamaged)
		}
		m := Mark{Stored: i}
		for b := w.Chunks; len(b) > 0; b = b[16:] {
			m.Packs = append(m.Packs, MarkedPack{ID: chunk.PackID(b[:16])})
		}
		for b := w.Nodes; len(b) > 0; b = b[16:] {
			m.Packs = append(m.Packs, MarkedPack{ID: chunk.PackID(b[:16]), Nodes: true})
		}
		if err := visit(m); err != nil {
			return err
		}
	}
	return nil
}

// Condemned are all packs that some mark lists.
func (r *Repo) Condemned(ctx context.Context) (map[chunk.PackID]bool, error) {
	out := map[chunk.PackID]bool{}
	err := r.Marks(ctx, func(m Mark) error {
		for _, p := range m.Packs {
			out[p.ID] = true
		}
		return nil
	})
	return out, err
}
