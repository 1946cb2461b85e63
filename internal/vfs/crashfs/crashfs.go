// Package crashfs is a file system in memory that forgets: a vfs.FS for tests,
// which can fail at any operation and tell what a power cut would have left.
//
// Vocabulary. Every file and directory has a cached state, which readers see,
// and a durable state, which is on the disk. A change (of content, size or
// names) is pending from when it is made until Sync of its file, or SyncDir of
// its directory, makes it durable. A crash image is a new file system that holds
// the durable state and a selection of the pending changes; a Policy selects.
//
// Invariants. A synced change is in every image. A pending change is in an image
// wholly, not at all or, if it is a write, in part: some of its 512-byte sectors.
// A rename is one change: never both names, never neither. Pending changes may
// survive in any combination, but are applied in the order they were made. What
// no name leads to in an image does not exist there.
//
// A sync that fails (see Inject) drops the pending changes without making them
// durable: readers still see them, later syncs succeed without them, DropCache
// and power cuts forget them. So does a real kernel.
//
// Every change is one numbered operation, successful or not: CrashAt stops the
// file system before the nth, OnOp is told after each.
//
// Left out: the order that journals impose on changes of names (worse is
// possible here than on most real file systems), bit rot, symbolic and hard
// links, modification times.
package crashfs

import (
	"errors"
	"io/fs"
	"math"
	"slices"
	"sync"

	"varve/internal/vfs"
)

// ErrCrashed is what every operation returns from the crash on.
var ErrCrashed = errors.New("file system crashed")

// SectorSize is what a disk writes wholly or not at all, in bytes.
const SectorSize = 512

// FS is a crashable file system. It is safe for concurrent use.
type FS struct {
	// changing is held over each numbered operation and its hook, so that the
	// hook sees the state right after its operation. Taken before mu.
	changing sync.Mutex

	mu       sync.Mutex // guards all below
	inodes   map[inodeID]*inode
	lastID   inodeID
	lastSeq  uint64
	capacity int64 // in pages
	used     int64 // pages of all cached contents
	cold     bool
	locks    map[inodeID]string // holders

	ops     int
	crashAt int // value of ops that crashes; 0: never
	crashed bool
	faults  []*faultState
	onOp    func(n int, op Op, err error)
}

var _ vfs.FS = (*FS)(nil)

// New returns a file system that holds an empty root directory, "/", and has no
// limit of space. A relative name starts at the root.
func New() *FS {
	f := empty()
	f.inodes[rootID] = &inode{isDir: true, links: 1}
	f.lastID = rootID
	return f
}

func empty() *FS {
	return &FS{
		inodes:   make(map[inodeID]*inode),
		locks:    make(map[inodeID]string),
		capacity: math.MaxInt64,
	}
}

// Ops returns how many numbered operations there have been.
func (f *FS) Ops() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ops
}

// CrashAt makes the nth numbered operation from now (1: the next) and everything
// after it fail with ErrCrashed, and that operation change nothing. 0 withdraws it.
func (f *FS) CrashAt(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.crashAt = 0
	if n > 0 {
		f.crashAt = f.ops + n
	}
}

// Crash makes everything from now on fail with ErrCrashed.
func (f *FS) Crash() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.crashed = true
}

// Crashed tells whether the crash has happened.
func (f *FS) Crashed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.crashed
}

// OnOp sets a function that is called after each numbered operation with its
// number and result, before any other numbered operation begins. It may read the
// file system and make images of it, but change nothing in it. nil removes it.
func (f *FS) OnOp(hook func(n int, op Op, err error)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.onOp = hook
}

// Inject adds a fault; the returned function removes it.
func (f *FS) Inject(fault Fault) (remove func()) {
	s := &faultState{Fault: fault}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults = append(f.faults, s)
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.faults = slices.DeleteFunc(f.faults, func(x *faultState) bool { return x == s })
	}
}

// SetCapacity limits the space for file content, in bytes, counted in pages of
// 4096; what needs more fails with ENOSPC. Crash images inherit it.
func (f *FS) SetCapacity(sizeBytes int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.capacity = sizeBytes / pageSize
}

// Space implements vfs.FS.
func (f *FS) Space(string) (total, free int64, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	capacity := min(f.capacity, 1<<40)
	return capacity * pageSize, max(capacity-f.used, 0) * pageSize, nil
}

// UsedBytes is the space that file content takes.
func (f *FS) UsedBytes() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.used * pageSize
}

// SetCold makes every ReadVector that does not wait return ErrWouldBlock, or none. Crash images inherit it.
func (f *FS) SetCold(cold bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cold = cold
}

// change runs one numbered operation. do is not called if the operation crashes
// or fails by a fault; onFault, if not nil, says what such a failure does.
func (f *FS) change(op Op, do func() error, onFault func(Fault)) error {
	f.changing.Lock()
	defer f.changing.Unlock()
	n, hook, err := f.step(op, do, onFault)
	if hook != nil && !errors.Is(err, ErrCrashed) {
		hook(n, op, err)
	}
	return err
}

func (f *FS) step(op Op, do func() error, onFault func(Fault)) (n int, hook func(int, Op, error), err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.crashed {
		f.ops++
		f.crashed = f.ops == f.crashAt
	}
	err = f.refusal(op, onFault)
	if err == nil {
		err = do()
	}
	return f.ops, f.onOp, wrap(op, err)
}

// look runs an operation that changes nothing.
func (f *FS) look(op Op, do func() error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	err := f.refusal(op, nil)
	if err == nil {
		err = do()
	}
	return wrap(op, err)
}

// refusal is why op fails before it is tried.
func (f *FS) refusal(op Op, onFault func(Fault)) error {
	if f.crashed {
		return ErrCrashed
	}
	for _, s := range f.faults {
		if s.hit(op) {
			if onFault != nil {
				onFault(s.Fault)
			}
			return s.Err
		}
	}
	return nil
}

func wrap(op Op, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op.Kind.String(), Path: op.Path, Err: err}
}

// note records a change of in: readers see it now, the disk later.
func (f *FS) note(id inodeID, c change) {
	f.lastSeq++
	c.seq, c.inode = f.lastSeq, id
	in := f.inodes[id]
	f.setCached(in, in.cached.apply(c))
	in.pending = append(in.pending, c)
}

// setCached keeps count of the pages in use.
func (f *FS) setCached(in *inode, s state) {
	f.used += s.content.allocated() - in.cached.content.allocated()
	in.cached = s
}

// release frees the space of an inode that neither a name nor a handle leads to.
// It stays known: an image in which its removal did not survive needs it.
func (f *FS) release(in *inode) {
	if in.links == 0 && in.handles == 0 {
		f.setCached(in, state{})
	}
}
