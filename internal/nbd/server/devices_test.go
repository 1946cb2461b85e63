package server_test

import (
	"context"
	"slices"
	"sync/atomic"

	"varve/internal/block"
	"varve/internal/nbd/server"
)

// stripes are meta contexts that call sectors even or odd.
type stripes []string

func (s stripes) Names(context.Context) ([]string, error) { return s, nil }

// Has knows one more than are listed.
func (s stripes) Has(_ context.Context, name string) bool {
	return name == "x-test:unlisted" || slices.Contains(s, name)
}

func (s stripes) Open(_ context.Context, name string) (server.MetaContext, error) {
	if i := slices.Index(append(s, "x-test:unlisted"), name); i >= 0 {
		return stripe(i), nil
	}
	return nil, server.ErrUnknownContext
}

type stripe int64

func (s stripe) Status(_ context.Context, off, length int64, limit int) ([]server.Status, error) {
	var list []server.Status
	for end := off + length; off < end && len(list) < limit; {
		n := min(end-off, 512-off%512)
		r := server.Status{Length: n}
		if off/512%2 == int64(s) {
			r.Flags = 1
		}
		list = append(list, r)
		off += n
	}
	return list, nil
}

// gated is a device whose operations say that they have begun, and wait. It is no
// block.ResidentReader.
type gated struct {
	block.Device
	begun chan string   // one for each operation that waits
	gate  chan struct{} // one for each that may go on; closed: all
}

func newGated(d block.Device) *gated {
	return &gated{d, make(chan string, 1000), make(chan struct{})}
}

func (g *gated) pass(ctx context.Context, what string) error {
	g.begun <- what
	select {
	case <-g.gate:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (g *gated) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := g.pass(ctx, "read"); err != nil {
		return err
	}
	return g.Device.ReadAt(ctx, p, off)
}

func (g *gated) Flush(ctx context.Context) error {
	if err := g.pass(ctx, "flush"); err != nil {
		return err
	}
	return g.Device.Flush(ctx)
}

// failing is a device whose operations fail with err once it is set.
type failing struct {
	block.Device
	err atomic.Pointer[error]
}

func (f *failing) fail(err error) { f.err.Store(&err) }

func (f *failing) cause() error {
	if p := f.err.Load(); p != nil {
		return *p
	}
	return nil
}

func (f *failing) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := f.cause(); err != nil {
		return err
	}
	return f.Device.ReadAt(ctx, p, off)
}

func (f *failing) TryReadAt(p []byte, off int64) (bool, error) {
	if err := f.cause(); err != nil {
		return true, err
	}
	return true, f.Device.ReadAt(context.Background(), p, off)
}

func (f *failing) Submit(ctx context.Context, ops []*block.Op) {
	if err := f.cause(); err != nil {
		for _, op := range ops {
			op.Err = err
		}
		return
	}
	f.Device.Submit(ctx, ops)
}

func (f *failing) Flush(ctx context.Context) error {
	if err := f.cause(); err != nil {
		return err
	}
	return f.Device.Flush(ctx)
}

func (f *failing) Extents(ctx context.Context, off, length int64, limit int) ([]block.Extent, error) {
	if err := f.cause(); err != nil {
		return nil, err
	}
	return f.Device.Extents(ctx, off, length, limit)
}
