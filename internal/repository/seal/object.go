package seal

import (
	"context"
	"fmt"

	"varve/internal/objects"
	"varve/internal/repository/envelope"
)

// SealObject returns the object with that header that holds plain as its only frame, number 0.
func (k *Keys) SealObject(h envelope.Header, plain []byte) ([][]byte, error) {
	f, err := k.Frames(h)
	if err != nil {
		return nil, fmt.Errorf("seal %v: %w", h.Kind, err)
	}
	return envelope.Build(h, f.Seal(make([]byte, 0, len(plain)+Overhead), plain, 0))
}

// LoadObject loads the object of that name, mended or from a copy if need be, and
// opens its only frame. It fails like envelope.Load and Frames.Open, and with ErrNoKey.
func (k *Keys) LoadObject(ctx context.Context, st objects.Store, name string, kind envelope.Kind) (envelope.Header, []byte, error) {
	h, payload, err := envelope.Load(ctx, st, name, k.Repository, kind)
	if err != nil {
		return h, nil, err
	}
	f, err := k.Frames(h)
	if err != nil {
		return h, nil, fmt.Errorf("open %s: %w", name, err)
	}
	plain, err := f.Open(payload[:0], payload, 0)
	if err != nil {
		return h, nil, fmt.Errorf("open %s: %w", name, err)
	}
	return h, plain, nil
}
