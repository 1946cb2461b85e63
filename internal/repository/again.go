package repository

import (
	"context"
	"errors"
	"fmt"

	"varve/internal/objects"
	"varve/internal/repository/chunk"
	"varve/internal/repository/envelope"
	"varve/internal/repository/pack"
)

// again stores chunks once more, one after the other.
type again struct {
	s    *Session
	open *pack.Builder
	done map[chunk.ID]bool
}

func (a *again) add(id chunk.ID, plain []byte) error {
	if a.open == nil {
		a.open = pack.NewBuilder(a.s.repo.keys, envelope.Pack, a.s.o.Set, a.s.repo.config.Parity)
	}
	hashes := a.s.repo.keys.BlockHashes(plain)
	encoded, enc := pack.Encode(nil, plain)
	a.open.Append(id, encoded, enc, len(plain), hashes)
	a.done[id] = true
	if a.open.Full() {
		return a.flush()
	}
	return nil
}

func (a *again) flush() error {
	if a.open == nil {
		return nil
	}
	b := a.open
	a.open = nil
	return a.s.finish(b)
}

// nodesAgain puts a pack of the session's nodes once more, while it is there: nobody else has them. ErrFenced.
func (s *Session) nodesAgain(ctx context.Context, id chunk.PackID) error {
	d, err := s.repo.packs.Directory(ctx, envelope.Nodes, id)
	b := pack.NewBuilder(s.repo.keys, envelope.Nodes, s.o.Set, s.repo.config.Parity)
	if err == nil {
		frames := make([]uint32, d.Len())
		for i := range frames {
			frames[i] = uint32(i)
		}
		err = s.repo.packs.Frames(ctx, envelope.Nodes, id, frames, func(i int, plain []byte) error {
			encoded, enc := pack.Encode(nil, plain)
			b.Append(d.Entry(uint32(i)).ID, encoded, enc, len(plain), nil)
			return nil
		})
	}
	if errors.Is(err, pack.ErrElsewhere) || errors.Is(err, objects.ErrNotFound) {
		return fmt.Errorf("commit backup %s: nodes of its map were swept: %w", s.o.ID, ErrFenced)
	}
	if err != nil {
		return err
	}
	return s.finish(b)
}
