package vfs

import (
	"errors"
	"io"
	"io/fs"
	"math"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// osFile is a regular file or block device. It asks the os.File for its
// descriptor at each call rather than keeping it: after Close that gives EBADF,
// never a descriptor that has become someone else's.
type osFile struct {
	file  *os.File
	name  string
	piece int // the most that one call writes, up to the next multiple of it; 0 if there is no limit

	// noNowait is set once the file system turned out not to know RWF_NOWAIT.
	noNowait atomic.Bool
	// resize is held for writing while a missing kernel feature is replaced by
	// looking at the size and acting on it, and for reading by writers.
	resize sync.RWMutex
}

func (f *osFile) fd() int { return int(f.file.Fd()) }

// done wraps the error of a system call; every call on fd ends with it, because
// it also keeps the file from being finalized meanwhile.
func (f *osFile) done(op string, err error) error {
	runtime.KeepAlive(f)
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: f.name, Err: err}
}

func (f *osFile) ReadAt(p []byte, off int64) (int, error) { return f.file.ReadAt(p, off) }

func (f *osFile) ReadVector(bufs [][]byte, off int64, wait bool) error {
	if off < 0 { // to preadv2, -1 is the file's own position
		return f.done("read", unix.EINVAL)
	}
	if !wait && f.noNowait.Load() {
		return ErrWouldBlock
	}
	flags := unix.RWF_NOWAIT
	if wait {
		flags = 0
	}
	iov := iovecs.Get().(*[maxIovecs]unix.Iovec)
	used := 0
	defer func() {
		clear(iov[:used])
		iovecs.Put(iov)
	}()
	for rest := (vector{bufs: bufs}); ; {
		n, length := rest.describe(iov[:], math.MaxInt)
		if n == 0 {
			return nil
		}
		used = max(used, n)
		read, errno := f.preadv2(iov[:n], off, flags)
		switch {
		case errno == unix.EINTR:
			continue
		case !wait && (errno == unix.EOPNOTSUPP || errno == unix.ENOSYS):
			f.noNowait.Store(true)
			return ErrWouldBlock
		case !wait && (errno == unix.EAGAIN || errno == 0 && read < length):
			return ErrWouldBlock
		case errno != 0:
			return f.done("read", errno)
		case read == 0:
			return io.EOF
		}
		off += int64(read)
		rest.advance(read)
	}
}

// preadv2 reads into iov. The offset is passed in two halves for 32-bit kernels; 64-bit ones ignore the upper.
func (f *osFile) preadv2(iov []unix.Iovec, off int64, flags int) (int, unix.Errno) {
	n, _, errno := unix.Syscall6(unix.SYS_PREADV2, uintptr(f.fd()),
		uintptr(unsafe.Pointer(&iov[0])), uintptr(len(iov)),
		uintptr(off), uintptr(uint64(off)>>32), uintptr(flags))
	runtime.KeepAlive(f)
	return int(n), errno
}

// maxIovecs is how many buffers one pwritev takes (IOV_MAX).
const maxIovecs = 1024

// iovecs are pooled because a batch has more buffers than fit the stack.
var iovecs = sync.Pool{New: func() any { return new([maxIovecs]unix.Iovec) }}

func (f *osFile) WriteAt(bufs [][]byte, off int64) error {
	f.resize.RLock()
	defer f.resize.RUnlock()
	return f.writeAt(bufs, off)
}

func (f *osFile) writeAt(bufs [][]byte, off int64) error {
	iov := iovecs.Get().(*[maxIovecs]unix.Iovec)
	used := 0
	defer func() {
		clear(iov[:used]) // the pool must not keep the caller's buffers alive
		iovecs.Put(iov)
	}()
	for rest := (vector{bufs: bufs}); ; {
		most := math.MaxInt
		if f.piece > 0 {
			most = f.piece - int(off%int64(f.piece))
		}
		n, _ := rest.describe(iov[:], most)
		if n == 0 {
			return nil
		}
		used = max(used, n)
		written, err := f.pwritev(iov[:n], off)
		if err != nil {
			return f.done("write", err)
		}
		off += int64(written)
		rest.advance(written)
	}
}

// vector is what is left of a vector of buffers: all of bufs but the first
// skip bytes of bufs[0].
type vector struct {
	bufs [][]byte
	skip int
}

// describe fills iov with as much as it can name and at most so many bytes, and returns how many
// it used (0 when nothing is left) and their length in bytes. Empty buffers take no place.
func (u *vector) describe(iov []unix.Iovec, most int) (n, length int) {
	for i, b := range u.bufs {
		if i == 0 {
			b = b[u.skip:]
		}
		b = b[:min(len(b), most-length)]
		if n == len(iov) || length == most {
			break
		}
		if len(b) > 0 {
			iov[n].Base = &b[0]
			iov[n].SetLen(len(b))
			n++
			length += len(b)
		}
	}
	return n, length
}

// advance takes n bytes off the front, which a read or write may end anywhere.
func (u *vector) advance(n int) {
	for u.skip += n; len(u.bufs) > 0 && u.skip >= len(u.bufs[0]); u.bufs = u.bufs[1:] {
		u.skip -= len(u.bufs[0])
	}
}

// pwritev writes at least one byte or fails. The offset is passed in two halves
// for 32-bit kernels; 64-bit ones ignore the upper.
func (f *osFile) pwritev(iov []unix.Iovec, off int64) (int, error) {
	for {
		n, _, errno := unix.Syscall6(unix.SYS_PWRITEV, uintptr(f.fd()),
			uintptr(unsafe.Pointer(&iov[0])), uintptr(len(iov)),
			uintptr(off), uintptr(uint64(off)>>32), 0)
		runtime.KeepAlive(f)
		switch {
		case errno == unix.EINTR:
		case errno != 0:
			return 0, errno
		case n == 0:
			return 0, io.ErrShortWrite
		default:
			return int(n), nil
		}
	}
}

func (f *osFile) Truncate(sizeBytes int64) error {
	f.resize.Lock()
	defer f.resize.Unlock()
	return f.file.Truncate(sizeBytes)
}

func (f *osFile) Allocate(off, length int64) error {
	if length == 0 && off >= 0 {
		return nil
	}
	err := retry(func() error { return unix.Fallocate(f.fd(), 0, off, length) })
	if errors.Is(err, unix.EOPNOTSUPP) {
		return f.grow(off + length)
	}
	return f.done("allocate", err)
}

// grow sets the size to at least sizeBytes.
func (f *osFile) grow(sizeBytes int64) error {
	f.resize.Lock()
	defer f.resize.Unlock()
	size, err := f.Size()
	if err != nil || size >= sizeBytes {
		return err
	}
	return f.file.Truncate(sizeBytes)
}

func (f *osFile) PunchHole(off, length int64) error {
	if length == 0 && off >= 0 {
		return nil
	}
	const mode = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	err := retry(func() error { return unix.Fallocate(f.fd(), mode, off, length) })
	if errors.Is(err, unix.EOPNOTSUPP) {
		return f.writeZeros(off, length)
	}
	return f.done("punch hole", err)
}

var zeros [64 << 10]byte

// writeZeros overwrites what lies within the file's size.
func (f *osFile) writeZeros(off, length int64) error {
	f.resize.Lock()
	defer f.resize.Unlock()
	size, err := f.Size()
	if err != nil {
		return err
	}
	for end := min(off+length, size); off < end; {
		n := min(end-off, int64(len(zeros)))
		if err := f.writeAt([][]byte{zeros[:n]}, off); err != nil {
			return err
		}
		off += n
	}
	return nil
}

func (f *osFile) NextData(off int64) (from, to int64, err error) {
	size, err := f.Size()
	if err != nil || off >= size {
		return size, size, err
	}
	from, err = unix.Seek(f.fd(), off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return size, size, f.done("find data", nil)
	case errors.Is(err, unix.EINVAL): // a device, or a file system that does not tell
		return off, size, f.done("find data", nil)
	case err != nil:
		return 0, 0, f.done("find data", err)
	}
	if to, err = unix.Seek(f.fd(), from, unix.SEEK_HOLE); err != nil {
		return 0, 0, f.done("find data", err)
	}
	return from, to, f.done("find data", nil)
}

func (f *osFile) Sync() error {
	return f.done("sync", retry(func() error { return unix.Fdatasync(f.fd()) }))
}

// StartWriteback drops the error: whatever hinders writing out is Sync's to report.
func (f *osFile) StartWriteback(off, length int64) {
	_ = unix.SyncFileRange(f.fd(), off, length, unix.SYNC_FILE_RANGE_WRITE)
	runtime.KeepAlive(f)
}

func (f *osFile) DropCache() error {
	return f.done("drop cache", retry(func() error {
		return unix.Fadvise(f.fd(), 0, 0, unix.FADV_DONTNEED)
	}))
}

// Size seeks to the end, which unlike fstat tells the size of a block device
// too. Nothing else uses the file's position.
func (f *osFile) Size() (int64, error) {
	size, err := unix.Seek(f.fd(), 0, io.SeekEnd)
	return size, f.done("size", err)
}

func (f *osFile) Close() error { return f.file.Close() }
