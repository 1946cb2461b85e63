package crashfs

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"syscall"

	"varve/internal/vfs"
)

// file is an open file.
type file struct {
	fs       *FS
	name     string
	id       inodeID
	in       *inode
	writable bool
	closed   bool // guarded by fs.mu
}

// check refuses what no open file could do.
func (f *file) check(off, length int64) error {
	switch {
	case f.closed:
		return fs.ErrClosed
	case off < 0 || length < 0:
		return syscall.EINVAL
	case off > maxFileSize-length:
		return syscall.EFBIG
	}
	return nil
}

// checkChange is check for a change of length bytes, which wants a writable file
// unless it changes nothing.
func (f *file) checkChange(off, length int64) error {
	err := f.check(off, length)
	if err == nil && length > 0 && !f.writable {
		err = syscall.EBADF
	}
	return err
}

func (f *file) ReadAt(p []byte, off int64) (n int, err error) {
	op := Op{Kind: Read, Path: f.name, Offset: off, Length: int64(len(p))}
	err = f.fs.look(op, func() error {
		if err := f.check(off, 0); err != nil {
			return err
		}
		n = f.in.cached.content.read(p, off)
		return nil
	})
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}

func (f *file) ReadVector(bufs [][]byte, off int64, wait bool) error {
	f.fs.mu.Lock()
	cold := f.fs.cold
	f.fs.mu.Unlock()
	length := 0
	for _, b := range bufs {
		length += len(b)
	}
	if cold && length > 0 && !wait {
		return vfs.ErrWouldBlock
	}
	p := make([]byte, length)
	_, err := f.ReadAt(p, off)
	if errors.Is(err, io.EOF) && !wait {
		return vfs.ErrWouldBlock
	}
	for _, b := range bufs {
		p = p[copy(b, p):]
	}
	return err
}

func (f *file) WriteAt(bufs [][]byte, off int64) error {
	data := bytes.Join(bufs, nil) // copies
	op := Op{Kind: Write, Path: f.name, Offset: off, Length: int64(len(data))}
	return f.fs.change(op, func() error { return f.write(op, data) }, func(fault Fault) {
		_ = f.write(op, data[:min(fault.Prefix, op.Length)])
	})
}

// write stores as much of data as there is space for.
func (f *file) write(op Op, data []byte) error {
	err := f.checkChange(op.Offset, op.Length)
	if err != nil || len(data) == 0 {
		return err
	}
	fits := f.fits(op.Offset, int64(len(data)))
	if fits < int64(len(data)) {
		err = syscall.ENOSPC
		data = data[:fits]
	}
	if len(data) > 0 {
		op.Length = int64(len(data))
		f.fs.note(f.id, change{Op: op, data: data})
	}
	return err
}

// fits is how many of length bytes at off can be written before space runs out.
func (f *file) fits(off, length int64) int64 {
	free := f.fs.capacity - f.fs.used
	if length/pageSize+2 <= free {
		return length
	}
	for at, end := off, off+length; at < end; at += pageSize - at%pageSize {
		if f.in.cached.content.page(at) == nil {
			if free <= 0 {
				return at - off
			}
			free--
		}
	}
	return length
}

func (f *file) Truncate(sizeBytes int64) error {
	op := Op{Kind: Truncate, Path: f.name, Offset: sizeBytes}
	return f.fs.change(op, func() error {
		err := f.check(sizeBytes, 0)
		if err == nil && !f.writable {
			err = syscall.EINVAL
		}
		if err == nil {
			f.fs.note(f.id, change{Op: op})
		}
		return err
	}, nil)
}

func (f *file) Allocate(off, length int64) error {
	op := Op{Kind: Allocate, Path: f.name, Offset: off, Length: length}
	return f.fs.change(op, func() error {
		err := f.checkChange(off, length)
		if err != nil || length == 0 {
			return err
		}
		if f.fits(off, length) < length {
			return syscall.ENOSPC
		}
		f.fs.note(f.id, change{Op: op})
		return nil
	}, nil)
}

func (f *file) PunchHole(off, length int64) error {
	op := Op{Kind: PunchHole, Path: f.name, Offset: off, Length: length}
	return f.fs.change(op, func() error {
		err := f.checkChange(off, length)
		if err == nil && length > 0 {
			f.fs.note(f.id, change{Op: op})
		}
		return err
	}, nil)
}

func (f *file) NextData(off int64) (from, to int64, err error) {
	err = f.fs.look(Op{Kind: Stat, Path: f.name}, func() error {
		content := &f.in.cached.content
		for from = off; from < content.size && content.page(from) == nil; {
			from = min(from-from%pageSize+pageSize, content.size)
		}
		from = min(from, content.size)
		for to = from; to < content.size && content.page(to) != nil; {
			to = min(to-to%pageSize+pageSize, content.size)
		}
		return f.check(off, 0)
	})
	return from, to, err
}

func (f *file) Sync() error {
	op := Op{Kind: Sync, Path: f.name}
	return f.fs.change(op, func() error {
		err := f.check(0, 0)
		if err == nil {
			f.in.sync()
		}
		return err
	}, func(Fault) { f.in.failSync() })
}

// StartWriteback promises nothing, and does nothing.
func (f *file) StartWriteback(_, _ int64) {}

// DropCache makes readers see what the disk has, and what is still to be written to it.
func (f *file) DropCache() error {
	return f.fs.look(Op{Kind: DropCache, Path: f.name}, func() error {
		err := f.check(0, 0)
		if err == nil && f.in.lost {
			f.fs.setCached(f.in, f.in.written())
			f.in.lost = false
		}
		return err
	})
}

func (f *file) Size() (size int64, err error) {
	err = f.fs.look(Op{Kind: Stat, Path: f.name}, func() error {
		size = f.in.cached.content.size
		return f.check(0, 0)
	})
	return size, err
}

// Close succeeds after a crash too, so that what a test cleans up stays quiet.
func (f *file) Close() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.closed {
		return &fs.PathError{Op: "close", Path: f.name, Err: fs.ErrClosed}
	}
	f.closed = true
	f.in.handles--
	f.fs.release(f.in)
	return nil
}
