package pool_test

import (
	"sync"
	"sync/atomic"

	"varve/internal/vfs"
	"varve/internal/vfs/crashfs"
)

// hooked is a file system in which something happens before and behind what is done to files. A hook may use the file system, and meets
// itself then.
type hooked struct {
	vfs.FS
	hook atomic.Pointer[func(o crashfs.Op, done bool)] // nil: none
	open sync.Map                                      // name -> *atomic.Int64, how many have it open
}

// handles counts those who have a file open.
func (f *hooked) handles(name string) int64 {
	n, _ := f.open.LoadOrStore(name, new(atomic.Int64))
	return n.(*atomic.Int64).Load()
}

func (f *hooked) opened(name string, by int64) {
	n, _ := f.open.LoadOrStore(name, new(atomic.Int64))
	n.(*atomic.Int64).Add(by)
}

// on sets the hook; nil removes it.
func (f *hooked) on(hook func(o crashfs.Op, done bool)) {
	if hook == nil {
		f.hook.Store(nil)
		return
	}
	f.hook.Store(&hook)
}

// once sets a hook for one moment: do is called the first time that when says so, and is the last that is called.
func (f *hooked) once(when func(o crashfs.Op, done bool) bool, do func()) {
	f.on(func(o crashfs.Op, done bool) {
		if when(o, done) {
			f.on(nil)
			do()
		}
	})
}

func (f *hooked) wrapped(name string) func(vfs.File, error) (vfs.File, error) {
	return func(file vfs.File, err error) (vfs.File, error) {
		if err != nil {
			return nil, err
		}
		f.opened(name, 1)
		return &hookedFile{file, f, name}, nil
	}
}

func (f *hooked) Create(name string) (vfs.File, error) { return f.wrapped(name)(f.FS.Create(name)) }

func (f *hooked) Open(name string) (vfs.File, error) { return f.wrapped(name)(f.FS.Open(name)) }

func (f *hooked) OpenDisk(name string, write bool) (vfs.File, error) {
	return f.wrapped(name)(f.FS.OpenDisk(name, write))
}

type hookedFile struct {
	vfs.File
	fs   *hooked
	name string
}

func (f *hookedFile) around(kind crashfs.Kind, off, length int64, do func() error) error {
	o := crashfs.Op{Kind: kind, Path: f.name, Offset: off, Length: length}
	call := func(done bool) {
		if hook := f.fs.hook.Load(); hook != nil {
			(*hook)(o, done)
		}
	}
	call(false)
	err := do()
	call(true)
	return err
}

func (f *hookedFile) Size() (size int64, err error) {
	err = f.around(crashfs.Stat, 0, 0, func() (err error) {
		size, err = f.File.Size()
		return err
	})
	return size, err
}

func (f *hookedFile) ReadAt(p []byte, off int64) (n int, err error) {
	err = f.around(crashfs.Read, off, int64(len(p)), func() (err error) {
		n, err = f.File.ReadAt(p, off)
		return err
	})
	return n, err
}

func (f *hookedFile) WriteAt(bufs [][]byte, off int64) error {
	length := 0
	for _, b := range bufs {
		length += len(b)
	}
	return f.around(crashfs.Write, off, int64(length), func() error { return f.File.WriteAt(bufs, off) })
}

func (f *hookedFile) PunchHole(off, length int64) error {
	return f.around(crashfs.PunchHole, off, length, func() error { return f.File.PunchHole(off, length) })
}

func (f *hookedFile) Close() error {
	f.fs.opened(f.name, -1)
	return f.File.Close()
}

func (f *hookedFile) Sync() error {
	return f.around(crashfs.Sync, 0, 0, f.File.Sync)
}

// rehook closes the pool and opens it on a file system with hooks.
func (d *mirrored) rehook() *hooked {
	d.tb.Helper()
	d.must(d.p.Close(ctx))
	fs := &hooked{FS: d.fs}
	d.opts.FS = fs
	d.open()
	return fs
}

// of tells operations of one kind on a file, before or behind them.
func of(name string, kind crashfs.Kind, behind bool) func(o crashfs.Op, done bool) bool {
	return func(o crashfs.Op, done bool) bool { return o.Path == name && o.Kind == kind && done == behind }
}
