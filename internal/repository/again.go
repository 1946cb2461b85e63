package repository

import (
	"varve/internal/block"
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
	var hashes []uint64
	for b := plain; len(b) > 0; b = b[block.Size:] {
		hashes = append(hashes, a.s.repo.keys.BlockHash(b[:block.Size]))
	}
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
	return a.s.put(b)
}
