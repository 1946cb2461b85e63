package pack

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"varve/internal/objects"
	"varve/internal/repository/chunk"
	"varve/internal/repository/envelope"
	"varve/internal/repository/seal"
)

// directoryNumber is the number of the directory's frame.
const directoryNumber = 0

// headBytes is what is read of a pack at once, in the hope that the directory ends in it: that of a full pack of
// chunks of 256 KiB does, and many packs end in it themselves.
const headBytes = 256 << 10

// errUnsound: what was read is not as it was written. Only the whole object tells more.
var errUnsound = errors.New("not as it was written")

// opened is a pack whose frames can be read.
type opened struct {
	*Directory
	key    packKey
	object string // NAME, or a copy of it that a repair made
	base   int64  // of the first frame in the object
	frames *seal.Frames
	held   []byte // all frames as they are sealed, if they were read with the directory
}

func (o *opened) memory() int64 { return int64(o.Directory.memory() + len(o.held)) }

// open returns the content of a frame, appended to dst.
func (o *opened) open(dst, sealed []byte, frame uint32) ([]byte, error) {
	e := &o.entries[frame]
	if e.Encoding == Raw {
		return o.frames.Open(dst, sealed, uint64(frame)+1)
	}
	scratch, free := buffer(len(sealed))
	defer free()
	encoded, err := o.frames.Open(scratch[:0], sealed, uint64(frame)+1)
	if err != nil {
		return dst, err
	}
	return Decode(dst, encoded, e.Encoding, int(e.PlainBytes))
}

// open returns the pack, from the cache if it was used lately.
func (r *Reader) open(ctx context.Context, kind envelope.Kind, id chunk.PackID) (*opened, error) {
	key := packKey{kind, id}
	if o := r.cache.get(key); o != nil {
		return o, nil
	}
	return r.opening.do(ctx, key.String(), func() (*opened, error) {
		o, err := r.openHead(ctx, key, key.String())
		if errors.Is(err, objects.ErrNotFound) {
			o, err = r.openCopy(ctx, key)
		}
		if errors.Is(err, errUnsound) {
			o, err = r.mend(ctx, key)
		}
		if err != nil {
			return nil, fmt.Errorf("pack %s: %w", key, err)
		}
		if len(o.held) > headBytes {
			o = &opened{Directory: o.Directory, key: o.key, object: o.object, base: o.base, frames: o.frames}
		}
		r.cache.add(o)
		return o, nil
	})
}

// openCopy opens the newest of the copies that repairs made of a pack that is not there.
func (r *Reader) openCopy(ctx context.Context, key packKey) (*opened, error) {
	repairs, err := envelope.Repairs(ctx, r.st, key.String())
	if err != nil {
		return nil, err
	}
	if len(repairs) == 0 {
		return nil, objects.ErrNotFound
	}
	return r.openHead(ctx, key, repairs[0])
}

// openHead reads an object as far as the directory goes, or all of it if it is small: errUnsound if there is anything
// wrong with that.
func (r *Reader) openHead(ctx context.Context, key packKey, object string) (*opened, error) {
	head, free := buffer(headBytes)
	defer free()
	err := r.st.Read(ctx, object, head, 0)
	whole := errors.Is(err, objects.ErrShort)
	if whole {
		head, err = r.st.Get(ctx, object)
	}
	if err != nil {
		return nil, err
	}
	h, err := envelope.DecodeHeader(head)
	if errors.Is(err, envelope.ErrDamaged) {
		err = fmt.Errorf("%w: %w", errUnsound, err)
	}
	if err == nil {
		err = r.check(key, h)
	}
	if err != nil {
		return nil, err
	}
	end := h.PayloadOffset() + int64(h.DirectoryBytes)
	switch {
	case whole && h.ObjectBytes() != int64(len(head)):
		return nil, fmt.Errorf("%w: %d bytes where %d were written", errUnsound, len(head), h.ObjectBytes())
	case end > int64(len(head)):
		rest := make([]byte, end-headBytes)
		if err := r.st.Read(ctx, object, rest, headBytes); err != nil {
			return nil, unsound(err)
		}
		head = slices.Concat(head, rest)
	}
	o, err := r.openDirectory(key, object, h, head[h.PayloadOffset():end])
	if err != nil {
		return nil, err
	}
	if whole {
		o.held = head[end : h.PayloadOffset()+h.PayloadBytes]
	}
	return o, nil
}

// check tells whether a header is that of the pack: errUnsound.
func (r *Reader) check(key packKey, h envelope.Header) error {
	if h.Kind != key.kind || h.Repository != r.keys.Repository || h.NameHash != envelope.NameHash(key.String()) {
		return fmt.Errorf("%w: %w", errUnsound, envelope.ErrForeign)
	}
	return nil
}

// openDirectory opens the pack with that header and sealed directory: errUnsound, seal.ErrNoKey.
func (r *Reader) openDirectory(key packKey, object string, h envelope.Header, directory []byte) (*opened, error) {
	frames, err := r.keys.Frames(h)
	if errors.Is(err, seal.ErrForged) {
		return nil, fmt.Errorf("%w: %w", errUnsound, err)
	}
	if err != nil {
		return nil, err
	}
	plain, err := frames.Open(nil, directory, directoryNumber)
	if err != nil {
		return nil, fmt.Errorf("%w: directory: %w", errUnsound, err)
	}
	d, err := decodeDirectory(plain, h.PayloadBytes-int64(h.DirectoryBytes))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUnsound, err)
	}
	d.set = h.Set
	return &opened{Directory: d, key: key, object: object, base: h.PayloadOffset() + int64(h.DirectoryBytes), frames: frames}, nil
}

// unsound tells errors of what is damaged, or gone, from those of the store.
func unsound(err error) error {
	if errors.Is(err, objects.ErrShort) || errors.Is(err, objects.ErrNotFound) {
		return fmt.Errorf("%w: %w", errUnsound, err)
	}
	return err
}
