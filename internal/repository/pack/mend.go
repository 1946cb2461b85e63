package pack

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"varve/internal/objects"
	"varve/internal/repository/envelope"
)

// mendedFor is how long what was found out about a damaged pack is taken to be true: it may be repaired meanwhile.
const mendedFor = time.Minute

// mended is the pack that was mended last: reads of a damaged pack come in a row.
type mended struct {
	mu   sync.Mutex
	key  packKey
	pack *opened // with all frames, nil if it is lost
	lost error
	at   time.Time
}

func (m *mended) get(key packKey) (o *opened, lost error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.key != key || time.Since(m.at) > mendedFor {
		return nil, nil
	}
	return m.pack, m.lost
}

func (m *mended) put(key packKey, o *opened, lost error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.key, m.pack, m.lost, m.at = key, o, lost, time.Now()
}

// mend loads the whole pack, mended in memory if need be: objects.ErrNotFound, envelope.ErrLost. Where parity does not
// suffice it returns what is left, if the directory is; frames tell whether they are.
func (r *Reader) mend(ctx context.Context, key packKey) (*opened, error) {
	return r.mending.do(ctx, key.String(), func() (*opened, error) {
		if o, lost := r.mended.get(key); o != nil || lost != nil {
			return o, lost
		}
		h, payload, err := envelope.Load(ctx, r.st, key.String(), r.keys.Repository, key.kind)
		var o *opened
		if err == nil {
			o, err = r.openWhole(key, h, payload)
		}
		if errors.Is(err, envelope.ErrLost) {
			o, err = r.salvage(ctx, key, err)
		}
		if err == nil || errors.Is(err, envelope.ErrLost) {
			r.mended.put(key, o, err)
		}
		return o, err
	})
}

// salvage returns what is left of a lost pack, or lost.
func (r *Reader) salvage(ctx context.Context, key packKey, lost error) (*opened, error) {
	repairs, err := envelope.Repairs(ctx, r.st, key.String())
	if err != nil {
		return nil, err
	}
	for _, name := range append([]string{key.String()}, repairs...) {
		object, err := r.st.Get(ctx, name)
		if errors.Is(err, objects.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		h, payload, _, err := envelope.Salvage(object)
		if err != nil {
			continue
		}
		if o, err := r.openWhole(key, h, payload); err == nil {
			return o, nil
		}
	}
	return nil, lost
}

// openWhole opens a pack of which all is in memory: envelope.ErrLost if it is not as a pack is written.
func (r *Reader) openWhole(key packKey, h envelope.Header, payload []byte) (*opened, error) {
	err := r.check(key, h)
	var o *opened
	if err == nil {
		o, err = r.openDirectory(key, key.String(), h, payload[:h.DirectoryBytes])
	}
	if errors.Is(err, errUnsound) {
		return nil, fmt.Errorf("%w: %w", envelope.ErrLost, err)
	}
	if err != nil {
		return nil, err
	}
	o.held = payload[h.DirectoryBytes:]
	return o, nil
}

// heal returns the content of a frame that could not be read as it lies in the store, appended to dst:
// ErrElsewhere if the pack is gone, envelope.ErrLost.
func (r *Reader) heal(ctx context.Context, o *opened, frame uint32, dst []byte) ([]byte, error) {
	whole, err := r.mend(ctx, o.key)
	switch {
	case errors.Is(err, objects.ErrNotFound):
		r.cache.remove(o.key)
		return dst, fmt.Errorf("%w: %w", ErrElsewhere, err)
	case err != nil:
		return dst, err
	case int(frame) >= whole.Len() || whole.entries[frame].ID != o.entries[frame].ID:
		return dst, fmt.Errorf("%w: the pack has another directory than before", envelope.ErrLost)
	}
	plain, err := r.read(ctx, whole, frame, dst)
	if err != nil {
		return dst, fmt.Errorf("%w: %w", envelope.ErrLost, err)
	}
	return plain, nil
}
