package pool_test

import (
	"errors"
	"strings"
	"sync"

	"varve/internal/vfs"
	"varve/internal/vfs/crashfs"
)

// disk is a crashable file system that can hold one operation up while a test does
// something else, and can have a bad sector.
type disk struct {
	vfs.FS

	mu   sync.Mutex
	next *held
	bad  *crashfs.Op // the read that fails
}

// held is an operation that is held up before it is done.
type held struct {
	matches  func(crashfs.Op) bool
	reached  chan struct{} // closed when it is being held
	released chan struct{} // close it to let it go on
}

// putOn opens the pool again, through a disk.
func (d *driver) putOn() *disk {
	d.tb.Helper()
	k := &disk{FS: d.fs}
	d.opts.FS = k
	d.reopen()
	return k
}

// hold holds up the next ReadAt or Sync of a file that matches, and no other.
func (k *disk) hold(matches func(crashfs.Op) bool) *held {
	h := &held{matches, make(chan struct{}), make(chan struct{})}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.next = h
	return h
}

func (k *disk) before(op crashfs.Op) {
	k.mu.Lock()
	h := k.next
	if h == nil || !h.matches(op) {
		k.mu.Unlock()
		return
	}
	k.next = nil
	k.mu.Unlock()
	close(h.reached)
	<-h.released
}

func (k *disk) wrap(name string, f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return &diskFile{f, k, name}, nil
}

func (k *disk) Create(name string) (vfs.File, error) {
	f, err := k.FS.Create(name)
	return k.wrap(name, f, err)
}

func (k *disk) Open(name string) (vfs.File, error) {
	f, err := k.FS.Open(name)
	return k.wrap(name, f, err)
}

func (k *disk) OpenReadOnly(name string) (vfs.File, error) {
	f, err := k.FS.OpenReadOnly(name)
	return k.wrap(name, f, err)
}

type diskFile struct {
	vfs.File
	disk *disk
	name string
}

func (f *diskFile) Sync() error {
	f.disk.before(crashfs.Op{Kind: crashfs.Sync, Path: f.name})
	return f.File.Sync()
}

// isBad tells whether n bytes from off on touch the bad sector.
func (f *diskFile) isBad(off, n int64) bool {
	bad := f.disk.bad
	return bad != nil && bad.Path == f.name && off+n > bad.Offset && off < bad.Offset+bad.Length
}

func (f *diskFile) ReadVector(bufs [][]byte, off int64, wait bool) error {
	n := int64(0)
	for _, b := range bufs {
		n += int64(len(b))
	}
	if wait {
		f.disk.before(crashfs.Op{Kind: crashfs.Read, Path: f.name, Offset: off, Length: n})
	}
	if f.isBad(off, n) {
		return errIO
	}
	return f.File.ReadVector(bufs, off, wait)
}

// ReadAt reads up to the bad sector, as a real disk does.
func (f *diskFile) ReadAt(p []byte, off int64) (int, error) {
	f.disk.before(crashfs.Op{Kind: crashfs.Read, Path: f.name, Offset: off, Length: int64(len(p))})
	bad := f.disk.bad
	if !f.isBad(off, int64(len(p))) {
		return f.File.ReadAt(p, off)
	}
	n, err := f.File.ReadAt(p[:max(0, bad.Offset-off)], off)
	return n, errors.Join(err, errIO)
}

// inLog tells operations on segments.
func inLog(op crashfs.Op) bool { return strings.HasPrefix(op.Path, "/pool/log/") }
