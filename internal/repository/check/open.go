package check

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"varve/internal/block"
	"varve/internal/objects"
	"varve/internal/repository"
	"varve/internal/repository/chunk"
	"varve/internal/repository/envelope"
	"varve/internal/repository/index"
	"varve/internal/repository/pack"
	"varve/internal/repository/seal"
)

// open looks at what is in a version: with its keys an object is good only if all that is in it is right, and then the envelope can
// be made again, whatever is wrong with it.
func (c *checker) open(ctx context.Context, i item, v version) (version, error) {
	if c.keys == nil || isThrice(i.kind) {
		return v, nil
	}
	object := v.bytes
	if v.state == bad {
		object = rebuilt(v.bytes)
	}
	var frames []uint32
	err := envelope.ErrLost
	switch {
	case isPack(i.kind) && object != nil:
		frames, err = c.openPack(ctx, i, object)
	case object != nil:
		err = c.openSmall(ctx, i, object)
	}
	switch {
	case errors.Is(err, seal.ErrNoKey):
		v.state, v.why = newer, err.Error()
	case repository.IsLost(err):
		v.frames = frames
		if v.state != bad {
			v.why = err.Error()
		}
		if v.state = bad; len(frames) > 0 {
			v.state, v.why = part, err.Error()
		}
	case err != nil:
		return v, err
	case v.state == bad:
		v.state, v.bytes, v.why = parity, object, v.why+", but all that is in it is right"
	}
	return v, nil
}

// rebuilt is an object that is lost, as what is left of it would have been written; nil if nothing is.
func rebuilt(object []byte) []byte {
	h, payload, _, err := envelope.Salvage(object)
	if err != nil {
		return nil
	}
	built, err := envelope.Build(h, payload)
	if err != nil {
		return nil
	}
	return concat(built)
}

func (c *checker) openSmall(ctx context.Context, i item, object []byte) error {
	// It is opened where it lies, so in a copy.
	_, plain, err := c.keys.LoadObject(ctx, &alone{name: i.name, object: bytes.Clone(object)}, i.name, i.kind)
	if err != nil {
		return err
	}
	return repository.Understand(i.kind, i.name, plain)
}

// openPack reads all frames of a pack. The error is one of repository.IsLost, for the frames that are returned or for all.
func (c *checker) openPack(ctx context.Context, i item, object []byte) ([]uint32, error) {
	st := &alone{name: i.name, object: object}
	packs := pack.NewReader(st, c.keys, 1<<20)
	_, id, _ := pack.ParseName(i.name)
	d, err := packs.Directory(ctx, i.kind, id)
	if err != nil {
		return nil, err
	}
	if i.kind == envelope.Index {
		for _, err := range index.New(packs).Merge(ctx, []chunk.PackID{id}) {
			if err != nil {
				return nil, err
			}
		}
		return nil, nil
	}
	all := make([]uint32, d.Len())
	for n := range all {
		all[n] = uint32(n)
	}
	var wrong []uint32
	err = packs.Frames(ctx, i.kind, id, all, func(n int, plain []byte) error {
		if !c.hashed(d.Entry(uint32(n)).Hashes, plain, i.kind) {
			wrong = append(wrong, uint32(n))
		}
		return nil
	})
	var lost *pack.LostFrames
	if errors.As(err, &lost) {
		return slices.Sorted(slices.Values(append(wrong, lost.Frames...))), err
	}
	if err == nil && len(wrong) > 0 {
		err = fmt.Errorf("%w: frames %v have other hashes than their blocks", envelope.ErrLost, wrong)
	}
	return wrong, err
}

// hashed tells whether hashes are those of a chunk's blocks.
func (c *checker) hashed(hashes []uint64, plain []byte, kind envelope.Kind) bool {
	if kind != envelope.Pack {
		return true
	}
	if len(plain) != len(hashes)*block.Size {
		return false
	}
	for n, h := range hashes {
		if c.keys.BlockHash(plain[n*block.Size:(n+1)*block.Size]) != h {
			return false
		}
	}
	return true
}

// alone is a store that holds one object.
type alone struct {
	name   string
	object []byte
}

var _ objects.Store = (*alone)(nil)

func (a *alone) find(name string) error {
	if name != a.name {
		return fmt.Errorf("%s: %w", name, objects.ErrNotFound)
	}
	return nil
}

// Get implements objects.Store. What it returns is read only.
func (a *alone) Get(_ context.Context, name string) ([]byte, error) {
	return a.object, a.find(name)
}

// Read implements objects.Store.
func (a *alone) Read(_ context.Context, name string, p []byte, off int64) error {
	if err := a.find(name); err != nil {
		return err
	}
	if off < 0 || off > int64(len(a.object)) || int64(len(p)) > int64(len(a.object))-off {
		return fmt.Errorf("%s: %w", name, objects.ErrShort)
	}
	copy(p, a.object[off:])
	return nil
}

// Stat implements objects.Store.
func (a *alone) Stat(_ context.Context, name string) (objects.Info, error) {
	return objects.Info{Name: name, Size: int64(len(a.object))}, a.find(name)
}

// List implements objects.Store: there are no copies.
func (a *alone) List(context.Context, string, func(objects.Info) error) error { return nil }

// Put implements objects.Store: nothing can be put.
func (a *alone) Put(context.Context, string, [][]byte, objects.PutOptions) error {
	return errors.ErrUnsupported
}

// Delete implements objects.Store: nothing can be deleted.
func (a *alone) Delete(context.Context, string) error { return errors.ErrUnsupported }

// Retain implements objects.Store: nothing can be locked.
func (a *alone) Retain(context.Context, string, time.Time) error { return errors.ErrUnsupported }

// Exclusive implements objects.Store.
func (a *alone) Exclusive() bool { return true }

// URL implements objects.Store.
func (a *alone) URL() string { return "memory:" + a.name }

// Close implements objects.Store.
func (a *alone) Close() error { return nil }
