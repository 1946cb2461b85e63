package vfs

import (
	"errors"
	"io"
	"io/fs"
	"syscall"
)

// ReadOnly is fsys for somebody who must change nothing in it, and who may find it on a medium that cannot be written: Open
// opens for reading, Lock writes nothing, and what would change a name fails with syscall.EROFS.
func ReadOnly(fsys FS) FS { return readOnly{fsys} }

type readOnly struct{ FS }

func refuse(op, name string) error { return &fs.PathError{Op: op, Path: name, Err: syscall.EROFS} }

func (readOnly) Create(name string) (File, error) { return nil, refuse("create", name) }
func (readOnly) Remove(name string) error         { return refuse("remove", name) }
func (readOnly) Rename(name, _ string) error      { return refuse("rename", name) }
func (readOnly) RenameNew(name, _ string) error   { return refuse("rename", name) }
func (readOnly) Mkdir(name string) error          { return refuse("make directory", name) }

func (r readOnly) Open(name string) (File, error) { return r.OpenReadOnly(name) }

func (r readOnly) OpenReadOnly(name string) (File, error) {
	f, err := r.FS.OpenReadOnly(name)
	if err != nil {
		return nil, err
	}
	return readOnlyFile{f}, nil
}

func (r readOnly) OpenDisk(name string, _ bool) (File, error) {
	f, err := r.FS.OpenDisk(name, false)
	if err != nil {
		return nil, err
	}
	return readOnlyFile{f}, nil
}

func (r readOnly) SyncDir(dir string) error { return syncable(r.FS.SyncDir(dir)) }

// Lock takes the lock if there is one. Who works on the files without having made one works without a lock.
func (r readOnly) Lock(name, _ string) (io.Closer, error) {
	l, err := r.LockUnchanged(name)
	if errors.Is(err, fs.ErrNotExist) {
		return unlocked{}, nil
	}
	return l, err
}

type unlocked struct{}

func (unlocked) Close() error { return nil }

type readOnlyFile struct{ File }

func (f readOnlyFile) Sync() error { return syncable(f.File.Sync()) }

func (f readOnlyFile) WriteAt([][]byte, int64) error { return refuse("write", "") }
func (f readOnlyFile) Truncate(int64) error          { return refuse("truncate", "") }
func (f readOnlyFile) Allocate(_, _ int64) error     { return refuse("allocate", "") }
func (f readOnlyFile) PunchHole(_, _ int64) error    { return refuse("punch hole", "") }

// syncable drops the errors of file systems that have nothing to sync.
func syncable(err error) error {
	if errors.Is(err, syscall.EROFS) || errors.Is(err, syscall.EINVAL) {
		return nil
	}
	return err
}
