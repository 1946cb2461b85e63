package pool

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"varve/internal/pool/catalogue"
	"varve/internal/vfs"
)

// leg is the open file of a mirror. It is closed when the mirror has let go of it and nobody uses it any more: a descriptor that is closed
// under somebody who is about to write may be another file's by then.
type leg struct {
	vfs.File
	lock  io.Closer
	inUse catalogue.Seal // its size and identity
	users atomic.Int64   // the mirror is one while it has it

	written atomic.Uint64 // counts changes
	syncing sync.Mutex    // held across a sync, so that many share one
	synced  uint64        // one more than written was when all of that had been synced: after opening, nothing has
	lost    error         // why a sync failed
}

// WriteAt implements vfs.File.
func (l *leg) WriteAt(bufs [][]byte, off int64) error {
	defer l.written.Add(1)
	return l.File.WriteAt(bufs, off)
}

// PunchHole implements vfs.File.
func (l *leg) PunchHole(off, length int64) error {
	defer l.written.Add(1)
	return l.File.PunchHole(off, length)
}

// Sync implements vfs.File. Of two who sync a file at the same time the kernel tells but one that what was written is lost, and no one who
// comes later: here all are told.
func (l *leg) Sync() error {
	l.syncing.Lock()
	defer l.syncing.Unlock()
	if now := l.written.Load(); l.lost == nil && l.synced <= now {
		if l.lost = l.File.Sync(); l.lost == nil {
			l.synced = now + 1
		}
	}
	return l.lost
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
	var seal catalogue.Seal
	file, err := fs.OpenDisk(name, true)
	if err == nil {
		if seal.SizeBytes, err = file.Size(); err == nil && seal.SizeBytes < sizeBytes {
			err = fmt.Errorf("%w: it has %d bytes, and the volume %d", ErrInvalid, seal.SizeBytes, sizeBytes)
		}
		if err == nil {
			seal.Identity, err = fs.Identity(name)
		}
		if err != nil {
			_ = file.Close() // nothing was written
		}
	}
	if err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("file %s: %w", name, err)
	}
	l := &leg{File: file, lock: lock, inUse: seal}
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
