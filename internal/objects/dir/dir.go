// Package dir is a store of objects in a directory: object a/b is the file b in
// the directory a below the root.
//
// How a Put is atomic and durable: the content goes to a file with a temporary
// name beside the object's, is synced, gets its name if that is free, and then the
// directory is synced. At a crash the object is there whole or not at all; what
// is left of it under the temporary name is removed by a later List, once
// it is a day older than something else in the directories that it visits
// (nobody's clock counts but the file system's).
//
// An object becomes visible a moment before it is durable. Nobody can rely on
// one whose Put has not returned; if the process dies in that moment, and then the
// power fails, it may be gone again.
//
// The root is known by its inode: when a medium is taken away and its mount point shows,
// every operation fails with ErrNoStore, and nothing seems to be deleted. Files
// whose names no object can have, and what is no regular file, are not seen.
//
// When the sync of a directory fails, a Put takes back what it has made, and a Delete fails, which cannot be taken back: a file system
// that goes on after that without the change (none with a journal does) may show a deleted object again after a crash.
//
// Nothing is locked, and no two operations wait for each other: concurrent syncs are
// joined by the file system's journal.
package dir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"sync"
	"syscall"
	"time"

	"varve/internal/objects"
	"varve/internal/vfs"
)

// Store is a directory of objects. It holds no resources.
type Store struct {
	fs   vfs.FS
	root string
	id   identity

	mu      sync.Mutex          // guards durable
	durable map[string]struct{} // directories whose names are known to be durable
}

var _ objects.Store = (*Store)(nil)

// identity tells one directory from another at the same path.
type identity struct{ device, inode uint64 }

// Create makes the directory root, unless it is there, in one that is, and opens it.
func Create(fsys vfs.FS, root string) (*Store, error) {
	root = path.Clean(root)
	err := fsys.Mkdir(root)
	if err == nil || errors.Is(err, fs.ErrExist) {
		err = fsys.SyncDir(path.Dir(root))
	}
	if err != nil {
		return nil, fmt.Errorf("create the directory %s: %w", root, classify(err, objects.ErrNoStore))
	}
	return Open(fsys, root)
}

// Open opens the directory root: ErrNoStore if there is none.
func Open(fsys vfs.FS, root string) (*Store, error) {
	s := &Store{fs: fsys, root: path.Clean(root), durable: make(map[string]struct{})}
	id, err := s.identify()
	if err != nil {
		return nil, fmt.Errorf("open the directory %s: %w", s.root, err)
	}
	s.id = id
	s.durable[s.root] = struct{}{}
	return s, nil
}

// identify tells what is at the root's path now; ErrNoStore if it is no directory.
func (s *Store) identify() (identity, error) {
	info, err := s.fs.Stat(s.root)
	if err != nil {
		return identity{}, classify(err, objects.ErrNoStore)
	}
	if !info.IsDir() {
		return identity{}, fmt.Errorf("%w: not a directory", objects.ErrNoStore)
	}
	stat := info.Sys().(*syscall.Stat_t)
	return identity{device: uint64(stat.Dev), inode: stat.Ino}, nil //nolint:unconvert // narrower on some architectures
}

// present returns ErrNoStore if the root is not the directory that was opened.
func (s *Store) present() error {
	id, err := s.identify()
	if err == nil && id != s.id {
		err = fmt.Errorf("%w: another directory is there now; is the medium mounted?", objects.ErrNoStore)
	}
	return err
}

// check is what every operation on an object begins with.
func (s *Store) check(ctx context.Context, name string) error {
	if err := objects.CheckName(name); err != nil {
		return err
	}
	return ctx.Err()
}

func (s *Store) path(name string) string { return path.Join(s.root, name) }

// wrap names operation and object, and says ErrNoStore of what seems to be missing when the root is.
func (s *Store) wrap(op, name string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, objects.ErrNotFound) {
		if gone := s.present(); gone != nil {
			err = gone
		}
	}
	return fmt.Errorf("%s %s in %s: %w", op, name, s.root, err)
}

// classify adds to an error of the file system which error of a Store it is; missing is what fs.ErrNotExist is.
func classify(err, missing error) error {
	is := func(targets ...error) bool {
		for _, target := range targets {
			if errors.Is(err, target) {
				return true
			}
		}
		return false
	}
	var kind error
	switch {
	case err == nil:
		return nil
	case is(fs.ErrNotExist, syscall.ENOTDIR):
		kind = missing
	case is(fs.ErrExist):
		kind = objects.ErrExists
	case is(syscall.ENOSPC, syscall.EDQUOT):
		kind = objects.ErrFull
	case is(fs.ErrPermission, syscall.EROFS):
		kind = objects.ErrDenied
	case is(syscall.EIO, syscall.ESTALE, syscall.ETIMEDOUT, syscall.ENOTCONN, syscall.EHOSTDOWN):
		kind = objects.ErrUnavailable
	default:
		return err
	}
	return fmt.Errorf("%w: %w", kind, err)
}

// Delete implements objects.Store. Also where there is no object the directory is synced: whoever removed it may not have.
func (s *Store) Delete(ctx context.Context, name string) error {
	if err := s.check(ctx, name); err != nil {
		return err
	}
	file := s.path(name)
	_, err := s.stat(name)
	if err == nil {
		err = classify(s.fs.Remove(file), objects.ErrNotFound)
	}
	if err == nil || errors.Is(err, objects.ErrNotFound) {
		err = s.present()
	}
	if err == nil {
		if err = classify(s.fs.SyncDir(path.Dir(file)), objects.ErrNotFound); errors.Is(err, objects.ErrNotFound) {
			err = nil
		}
	}
	return s.wrap("delete", name, err)
}

// Retain implements objects.Store: a directory has no locks.
func (s *Store) Retain(_ context.Context, name string, _ time.Time) error {
	return s.wrap("retain", name, noLocks())
}

func noLocks() error {
	return fmt.Errorf("%w: a directory keeps no retention; object lock takes an S3 bucket", errors.ErrUnsupported)
}

// Exclusive implements objects.Store: a name is given only where it is free.
func (s *Store) Exclusive() bool { return true }

// URL implements objects.Store: the directory's path.
func (s *Store) URL() string { return s.root }

// Close implements objects.Store.
func (s *Store) Close() error { return nil }
