package crashfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"sync"
	"syscall"
	"time"

	"varve/internal/vfs"
)

// clean makes a name absolute.
func clean(name string) string { return path.Clean("/" + name) }

// find returns the inode a clean path leads to.
func (f *FS) find(name string) (inodeID, *inode, error) {
	id := rootID
	for rest := name[1:]; rest != ""; {
		var elem string
		elem, rest = cut(rest)
		in := f.inodes[id]
		if !in.isDir {
			return 0, nil, syscall.ENOTDIR
		}
		next, ok := in.cached.entries[elem]
		if !ok {
			return 0, nil, syscall.ENOENT
		}
		id = next
	}
	return id, f.inodes[id], nil
}

// cut splits a path without a leading slash after its first element.
func cut(p string) (first, rest string) {
	for i := range len(p) {
		if p[i] == '/' {
			return p[:i], p[i+1:]
		}
	}
	return p, ""
}

// findDir is find for a directory.
func (f *FS) findDir(name string) (inodeID, *inode, error) {
	id, in, err := f.find(name)
	if err == nil && !in.isDir {
		err = syscall.ENOTDIR
	}
	return id, in, err
}

// findFile is find for what is not a directory.
func (f *FS) findFile(name string) (inodeID, *inode, error) {
	id, in, err := f.find(name)
	if err == nil && in.isDir {
		err = syscall.EISDIR
	}
	return id, in, err
}

// add makes an inode and its name, and returns it.
func (f *FS) add(op Op, isDir bool) (inodeID, *inode, error) {
	dirID, dir, err := f.findDir(path.Dir(op.Path))
	if err != nil {
		return 0, nil, err
	}
	base := path.Base(op.Path)
	if _, taken := dir.cached.entries[base]; taken || op.Path == "/" {
		return 0, nil, syscall.EEXIST
	}
	f.lastID++
	in := &inode{isDir: isDir, links: 1}
	f.inodes[f.lastID] = in
	f.note(dirID, change{Op: op, child: f.lastID})
	return f.lastID, in, nil
}

// Create is vfs.FS.
func (f *FS) Create(name string) (vfs.File, error) {
	op := Op{Kind: Create, Path: clean(name)}
	var file *file
	err := f.change(op, func() error {
		id, in, err := f.add(op, false)
		if err == nil {
			file = f.handle(op.Path, id, in, true)
		}
		return err
	}, nil)
	if err != nil {
		return nil, err
	}
	return file, nil
}

// Open is vfs.FS.
func (f *FS) Open(name string) (vfs.File, error) { return f.open(name, true) }

// OpenReadOnly is vfs.FS.
func (f *FS) OpenReadOnly(name string) (vfs.File, error) { return f.open(name, false) }

// OpenDisk is vfs.FS.
func (f *FS) OpenDisk(name string, write bool) (vfs.File, error) { return f.open(name, write) }

func (f *FS) open(name string, writable bool) (vfs.File, error) {
	op := Op{Kind: Open, Path: clean(name)}
	var file *file
	err := f.look(op, func() error {
		id, in, err := f.findFile(op.Path)
		if err == nil {
			file = f.handle(op.Path, id, in, writable)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return file, nil
}

func (f *FS) handle(name string, id inodeID, in *inode, writable bool) *file {
	in.handles++
	return &file{fs: f, name: name, id: id, in: in, writable: writable}
}

// Mkdir is vfs.FS.
func (f *FS) Mkdir(name string) error {
	op := Op{Kind: Mkdir, Path: clean(name)}
	return f.change(op, func() error {
		_, _, err := f.add(op, true)
		return err
	}, nil)
}

// Remove is vfs.FS.
func (f *FS) Remove(name string) error {
	op := Op{Kind: Remove, Path: clean(name)}
	return f.change(op, func() error {
		id, in, err := f.find(op.Path)
		switch {
		case err != nil:
			return err
		case op.Path == "/":
			return syscall.EBUSY
		case len(in.cached.entries) > 0:
			return syscall.ENOTEMPTY
		}
		dirID, _, err := f.findDir(path.Dir(op.Path))
		if err != nil {
			return err
		}
		f.note(dirID, change{Op: op, child: id})
		in.links--
		f.release(in)
		return nil
	}, nil)
}

// Rename is vfs.FS.
func (f *FS) Rename(oldName, newName string) error {
	op := Op{Kind: Rename, Path: clean(oldName), NewPath: clean(newName)}
	return f.change(op, func() error { return f.rename(op, true) }, nil)
}

// RenameNew is vfs.FS.
func (f *FS) RenameNew(oldName, newName string) error {
	op := Op{Kind: Rename, Path: clean(oldName), NewPath: clean(newName)}
	return f.change(op, func() error { return f.rename(op, false) }, nil)
}

func (f *FS) rename(op Op, replace bool) error {
	if path.Dir(op.Path) != path.Dir(op.NewPath) {
		return syscall.EXDEV
	}
	id, in, err := f.find(op.Path)
	if err != nil {
		return err
	}
	dirID, dir, err := f.findDir(path.Dir(op.NewPath))
	if err != nil {
		return err
	}
	if replacedID, ok := dir.cached.entries[path.Base(op.NewPath)]; ok {
		replaced := f.inodes[replacedID]
		switch {
		case !replace:
			return syscall.EEXIST
		case replaced.isDir:
			return syscall.EEXIST
		case in.isDir:
			return syscall.ENOTDIR
		case replaced == in:
			return nil
		}
		replaced.links--
		f.release(replaced)
	}
	f.note(dirID, change{Op: op, child: id})
	return nil
}

// SyncDir is vfs.FS.
func (f *FS) SyncDir(name string) error {
	op := Op{Kind: SyncDir, Path: clean(name)}
	return f.change(op, func() error {
		_, dir, err := f.findDir(op.Path)
		if err == nil {
			dir.sync()
			f.sweep()
		}
		return err
	}, func(Fault) {
		if _, dir, err := f.findDir(op.Path); err == nil {
			dir.failSync()
		}
	})
}

// sweep forgets the inodes that no name leads to, on disk or in the cache,
// whatever becomes of the pending changes, and that no handle holds.
func (f *FS) sweep() {
	reachable := f.reachable()
	maps.DeleteFunc(f.inodes, func(id inodeID, in *inode) bool {
		_, ok := reachable[id]
		return !ok && in.handles == 0
	})
}

// List is vfs.FS.
func (f *FS) List(name string) (names []string, err error) {
	op := Op{Kind: List, Path: clean(name)}
	err = f.look(op, func() error {
		_, dir, err := f.findDir(op.Path)
		if err == nil {
			names = slices.Sorted(maps.Keys(dir.cached.entries))
		}
		return err
	})
	return names, err
}

// Stat is vfs.FS. ModTime is always zero.
func (f *FS) Stat(name string) (info fs.FileInfo, err error) {
	op := Op{Kind: Stat, Path: clean(name)}
	err = f.look(op, func() error {
		id, in, err := f.find(op.Path)
		if err == nil {
			info = fileInfo{
				name:  path.Base(op.Path),
				isDir: in.isDir,
				stat: syscall.Stat_t{
					Ino:    uint64(id),
					Size:   in.cached.content.size,
					Blocks: in.cached.content.allocated() * (pageSize / 512),
				},
			}
		}
		return err
	})
	return info, err
}

// Identity is vfs.FS.
func (f *FS) Identity(name string) (string, error) {
	info, err := f.Stat(name)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("inode %d", info.Sys().(*syscall.Stat_t).Ino), nil
}

type fileInfo struct {
	name  string
	isDir bool
	stat  syscall.Stat_t
}

func (i fileInfo) Name() string       { return i.name }
func (i fileInfo) Size() int64        { return i.stat.Size }
func (i fileInfo) IsDir() bool        { return i.isDir }
func (i fileInfo) ModTime() time.Time { return time.Time{} }
func (i fileInfo) Sys() any           { return &i.stat }

func (i fileInfo) Mode() fs.FileMode {
	if i.isDir {
		return fs.ModeDir | 0o700
	}
	return 0o600
}

// Lock is vfs.FS. A lock file it has to make is durable at once and no numbered
// operation: what it holds means nothing after a crash.
func (f *FS) Lock(name, holder string) (io.Closer, error) {
	op := Op{Kind: Lock, Path: clean(name)}
	var id inodeID
	err := f.look(op, func() error {
		var in *inode
		var err error
		id, in, err = f.findFile(op.Path)
		if errors.Is(err, fs.ErrNotExist) {
			id, in, err = f.addLockFile(op.Path)
		}
		if err != nil {
			return err
		}
		if other, taken := f.locks[id]; taken {
			return fmt.Errorf("%w by %s", vfs.ErrLocked, other)
		}
		f.locks[id] = holder
		text := content{}.write(0, []byte(holder+"\n"))
		f.setCached(in, state{content: text})
		in.durable, in.pending = in.cached, nil
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &lock{fs: f, id: id}, nil
}

// LockDisk is vfs.FS.
func (f *FS) LockDisk(name string) (io.Closer, error) { return f.LockUnchanged(name) }

// LockUnchanged is vfs.FS.
func (f *FS) LockUnchanged(name string) (io.Closer, error) {
	op := Op{Kind: Lock, Path: clean(name)}
	var id inodeID
	err := f.look(op, func() (err error) {
		if id, _, err = f.findFile(op.Path); err != nil {
			return err
		}
		if other, taken := f.locks[id]; taken {
			return fmt.Errorf("%w by %s", vfs.ErrLocked, other)
		}
		f.locks[id] = "a reader"
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &lock{fs: f, id: id}, nil
}

func (f *FS) addLockFile(name string) (inodeID, *inode, error) {
	_, dir, err := f.findDir(path.Dir(name))
	if err != nil {
		return 0, nil, err
	}
	f.lastID++
	in := &inode{links: 1}
	f.inodes[f.lastID] = in
	c := change{Op: Op{Kind: Create, Path: name}, child: f.lastID}
	dir.cached, dir.durable = dir.cached.apply(c), dir.durable.apply(c)
	return f.lastID, in, nil
}

type lock struct {
	fs   *FS
	id   inodeID
	once sync.Once
}

func (l *lock) Close() error {
	l.once.Do(func() {
		l.fs.mu.Lock()
		defer l.fs.mu.Unlock()
		delete(l.fs.locks, l.id)
	})
	return nil
}
