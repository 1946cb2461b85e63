package pool

import (
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"varve/internal/vfs"
)

// leg is the open file of a mirror. It is closed when the mirror has let go of it and nobody uses it any more: a descriptor that is closed
// under somebody who is about to write may be another file's by then.
type leg struct {
	vfs.File
	lock  io.Closer
	users atomic.Int64 // the mirror is one while it has it
}

// openLeg opens a file that is to be written as a volume's leg, and takes its lock.
func openLeg(fs vfs.FS, name string, sizeBytes int64) (*leg, error) {
	lock, err := fs.LockDisk(name)
	if errors.Is(err, vfs.ErrLocked) {
		err = fmt.Errorf("%w: %w", ErrInUse, err)
	}
	if err != nil {
		return nil, fmt.Errorf("file %s: %w", name, err)
	}
	file, err := fs.OpenDisk(name, true)
	if err == nil {
		var size int64
		if size, err = file.Size(); err == nil && size < sizeBytes {
			err = fmt.Errorf("%w: it has %d bytes, and the volume %d", ErrInvalid, size, sizeBytes)
		}
		if err != nil {
			_ = file.Close() // nothing was written
		}
	}
	if err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("file %s: %w", name, err)
	}
	l := &leg{File: file, lock: lock}
	l.users.Store(1)
	return l, nil
}

// letGo ends what openLeg or hold began.
func (l *leg) letGo() {
	if l.users.Add(-1) == 0 {
		_ = l.Close() // synced, or nobody relies on it
	}
}

// unlock gives a leg up that no mirror has any more.
func (l *leg) unlock() {
	_ = l.lock.Close() // an advisory lock goes with its file whatever Close says
	l.letGo()
}

// hold returns the leg for somebody who uses it, and lets go of it then; nil if it is closed.
func (m *mirror) hold() *leg {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.leg != nil {
		m.leg.users.Add(1)
	}
	return m.leg
}

// has tells whether a leg is the mirror's still.
func (m *mirror) has(l *leg) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.leg == l
}

func (m *mirror) close() {
	m.mu.Lock()
	l := m.leg
	m.leg = nil
	m.mu.Unlock()
	if l != nil {
		l.unlock()
	}
}
