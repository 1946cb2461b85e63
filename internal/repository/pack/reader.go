package pack

import (
	"context"
	"errors"
	"fmt"

	"varve/internal/objects"
	"varve/internal/repository/chunk"
	"varve/internal/repository/envelope"
	"varve/internal/repository/seal"
)

const (
	// Frames that lie this close to each other are read with one request, up to this size.
	gapBytes     = 64 << 10
	requestBytes = 4 << 20
)

// Reader reads packs of a store. It may be used concurrently.
type Reader struct {
	st      objects.Store
	keys    *seal.Keys
	cache   *cache
	mended  mended
	opening once
	mending once
}

// NewReader returns a reader that keeps about dirCacheBytes of directories, and one damaged pack, in memory.
func NewReader(st objects.Store, k *seal.Keys, dirCacheBytes int64) *Reader {
	return &Reader{st: st, keys: k, cache: newCache(dirCacheBytes)}
}

// Store is where the packs lie.
func (r *Reader) Store() objects.Store { return r.st }

// Add puts the directory of a pack that was just built into the cache: what is in it can be looked up at once,
// and read once it is in the store.
func (r *Reader) Add(p Packed) { r.cache.add(p.opened) }

// Directory returns a pack's directory: objects.ErrNotFound if the pack is gone, envelope.ErrLost, seal.ErrNoKey,
// or an error of the store.
func (r *Reader) Directory(ctx context.Context, kind envelope.Kind, id chunk.PackID) (*Directory, error) {
	o, err := r.open(ctx, kind, id)
	if err != nil {
		return nil, err
	}
	return o.Directory, nil
}

// Frame returns the content with that id, appended to dst: ErrElsewhere if the pack does not hold it at that
// place, or is gone, envelope.ErrLost if it does and parity does not give it back.
func (r *Reader) Frame(ctx context.Context, kind envelope.Kind, p chunk.Place, want chunk.ID, dst []byte) ([]byte, error) {
	o, err := r.open(ctx, kind, p.Pack)
	if err != nil {
		return dst, gone(err)
	}
	if int(p.Frame) >= o.Len() || o.entries[p.Frame].ID != want {
		return dst, fmt.Errorf("pack %s: frame %d: %w", o.key, p.Frame, ErrElsewhere)
	}
	plain, err := r.read(ctx, o, p.Frame, dst)
	if errors.Is(err, errUnsound) {
		plain, err = r.heal(ctx, o, p.Frame, dst)
	}
	if err != nil {
		return dst, fmt.Errorf("pack %s: frame %d: %w", o.key, p.Frame, err)
	}
	return plain, nil
}

// Frames visits the contents of some frames of one pack, which are given in ascending order; i is an index into
// frames, plain is valid during the call. An error of visit ends it and is returned as it is. Frames that are
// lost are left out; they are told at the end, by a LostFrames. ErrElsewhere if the pack is gone, or has no such frames.
func (r *Reader) Frames(ctx context.Context, kind envelope.Kind, id chunk.PackID, frames []uint32, visit func(i int, plain []byte) error) error {
	o, err := r.open(ctx, kind, id)
	if err != nil {
		return gone(err)
	}
	var plainBytes uint32 // of the largest
	for _, frame := range frames {
		if int(frame) < o.Len() {
			plainBytes = max(plainBytes, o.entries[frame].PlainBytes)
		}
	}
	plain, free := buffer(int(plainBytes) + Slack)
	defer free()
	return r.frames(ctx, o, frames, func(int) []byte { return plain[:0] }, visit)
}

// FramesInto is Frames with contents that stay: each is in memory that room gives, which has at least so many bytes of capacity. With
// Slack bytes more it decodes faster.
func (r *Reader) FramesInto(ctx context.Context, kind envelope.Kind, id chunk.PackID, frames []uint32, room func(bytes int) []byte, visit func(i int, plain []byte) error) error {
	o, err := r.open(ctx, kind, id)
	if err != nil {
		return gone(err)
	}
	return r.frames(ctx, o, frames, func(bytes int) []byte { return room(bytes)[:0] }, visit)
}

func (r *Reader) frames(ctx context.Context, o *opened, frames []uint32, room func(bytes int) []byte, visit func(i int, plain []byte) error) error {
	for i, frame := range frames {
		if int(frame) >= o.Len() {
			return fmt.Errorf("pack %s: frame %d: %w", o.key, frame, ErrElsewhere)
		}
		if i > 0 && frame <= frames[i-1] {
			return fmt.Errorf("pack %s: frame %d after %d: order is ascending", o.key, frame, frames[i-1])
		}
	}
	var lost []uint32
	for first := 0; first < len(frames); {
		run := o.run(frames[first:])
		err := r.readRun(ctx, o, run, func(i int, content []byte, err error) error {
			switch {
			case errors.Is(err, envelope.ErrLost):
				lost = append(lost, run[i])
				return nil
			case err != nil:
				return fmt.Errorf("pack %s: frame %d: %w", o.key, run[i], err)
			}
			return visit(first+i, content)
		}, room)
		if err != nil {
			return err
		}
		first += len(run)
	}
	if len(lost) > 0 {
		return &LostFrames{Name: o.key.String(), Frames: lost}
	}
	return nil
}

// run is the longest beginning of frames that is read with one request.
func (o *opened) run(frames []uint32) []uint32 {
	first := o.entries[frames[0]]
	end := first.Offset + first.SealedBytes
	n := 1
	for ; n < len(frames); n++ {
		e := &o.entries[frames[n]]
		if e.Offset-end > gapBytes || e.Offset+e.SealedBytes-first.Offset > requestBytes {
			break
		}
		end = e.Offset + e.SealedBytes
	}
	return frames[:n]
}

// readRun reads frames that lie close to each other, and visits all of them, with their content or with what is
// wrong with it. The contents are in memory that room gives.
func (r *Reader) readRun(ctx context.Context, o *opened, run []uint32, visit func(i int, content []byte, err error) error, room func(bytes int) []byte) error {
	first, last := &o.entries[run[0]], &o.entries[run[len(run)-1]]
	sealed, free, failed := r.sealed(ctx, o, first.Offset, last.Offset+last.SealedBytes-first.Offset)
	switch {
	case failed == nil:
		defer free()
	case !errors.Is(failed, errUnsound):
		return fmt.Errorf("pack %s: %w", o.key, failed)
	}
	for i, frame := range run {
		e := &o.entries[frame]
		plain := room(int(e.PlainBytes))
		var content []byte
		err := failed
		if err == nil {
			content, err = r.content(o, sealed[e.Offset-first.Offset:][:e.SealedBytes], frame, plain)
		}
		if errors.Is(err, errUnsound) {
			content, err = r.heal(ctx, o, frame, plain)
		}
		if errors.Is(err, envelope.ErrLost) && failed != nil {
			// The others of the run may be what is missing.
			if alone, again := r.read(ctx, o, frame, plain); again == nil {
				content, err = alone, nil
			}
		}
		if err := visit(i, content, err); err != nil {
			return err
		}
	}
	return nil
}

// read returns the content of a frame as it lies in the store, appended to dst: errUnsound.
func (r *Reader) read(ctx context.Context, o *opened, frame uint32, dst []byte) ([]byte, error) {
	e := &o.entries[frame]
	sealed, free, err := r.sealed(ctx, o, e.Offset, e.SealedBytes)
	if err != nil {
		return dst, err
	}
	defer free()
	return r.content(o, sealed, frame, dst)
}

// sealed returns bytes of the frames, counted from the first of them, and what frees them: errUnsound.
func (r *Reader) sealed(ctx context.Context, o *opened, offset, bytes uint32) ([]byte, func(), error) {
	if o.held != nil {
		return o.held[offset:][:bytes], func() {}, nil
	}
	b, free := buffer(int(bytes))
	if err := r.st.Read(ctx, o.object, b, o.base+int64(offset)); err != nil {
		free()
		return nil, nil, unsound(err)
	}
	return b, free, nil
}

// content opens a frame and compares what is in it with its id, appended to dst: errUnsound.
func (r *Reader) content(o *opened, sealed []byte, frame uint32, dst []byte) ([]byte, error) {
	plain, err := o.open(dst, sealed, frame)
	if err != nil {
		return dst, fmt.Errorf("%w: %w", errUnsound, err)
	}
	e := &o.entries[frame]
	if n := len(plain) - len(dst); n != int(e.PlainBytes) {
		return dst, fmt.Errorf("%w: %d bytes where %d were stored", errUnsound, n, e.PlainBytes)
	}
	// An index frame has the id of its first entry.
	if o.key.kind != envelope.Index && r.keys.ChunkID(plain[len(dst):]) != e.ID {
		return dst, fmt.Errorf("%w: the content has another id", errUnsound)
	}
	return plain, nil
}

// gone says ErrElsewhere of a pack that is not there.
func gone(err error) error {
	if errors.Is(err, objects.ErrNotFound) {
		return fmt.Errorf("%w: %w", ErrElsewhere, err)
	}
	return err
}
