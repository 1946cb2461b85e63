// Package vfs is the file system as the stores see it: few operations, each
// with its durability stated, so that a test double can crash between any two
// of them. OS is the real one; package crashfs holds the one that forgets.
//
// Durability: a write, a truncation or a punched hole survives a power cut once
// Sync of that file has returned without error. A created, renamed or removed
// name survives once SyncDir of its directory has. Everything survives the end
// of the process alone.
//
// After a failed Sync nothing is known about what was written since the last
// good one: the kernel may show the new content from its cache and forget it
// later ("fsyncgate"). DropCache makes later reads come from the disk.
//
// Left out on purpose: permissions (files are 0600, directories 0700), symbolic
// links, appending, memory maps.
package vfs

import (
	"errors"
	"io"
	"io/fs"
)

// ErrWouldBlock is returned by File.ReadVector where the data is not in memory.
var ErrWouldBlock = errors.New("would wait for the disk")

// ErrLocked is returned by FS.Lock where another process (or another Lock in
// this one) holds the lock; the error text names the holder.
var ErrLocked = errors.New("locked")

// FS is a file system. Names are slash-separated paths. Errors satisfy
// errors.Is for fs.ErrNotExist, fs.ErrExist, fs.ErrPermission, and for
// syscall.ENOSPC and syscall.EIO where these are the cause.
type FS interface {
	// Create makes a new empty file, open for reading and writing; fs.ErrExist if the name is taken.
	Create(name string) (File, error)
	// Open opens an existing file for reading and writing.
	Open(name string) (File, error)
	// OpenReadOnly opens an existing file for reading.
	OpenReadOnly(name string) (File, error)
	// OpenDisk opens a file or block device that may be somebody else's as well: syscall.EBUSY if it is a device that is
	// mounted or otherwise taken.
	OpenDisk(name string, write bool) (File, error)
	// Remove deletes a file or an empty directory.
	Remove(name string) error
	// Rename gives a file or directory another name in the same directory, replacing
	// the file at newName, at once or not at all. Across directories it fails with
	// syscall.EXDEV: two directories are never durable in one step.
	Rename(oldName, newName string) error
	// RenameNew is Rename, but fs.ErrExist if there is anything at newName.
	RenameNew(oldName, newName string) error
	// Mkdir makes one directory; fs.ErrExist if the name is taken.
	Mkdir(name string) error
	// List returns the names in a directory, sorted.
	List(dir string) ([]string, error)
	// Stat describes a file or directory. Sys of the result is a *syscall.Stat_t
	// whose Ino, Size and Blocks (of 512 bytes, what is allocated) are set.
	Stat(name string) (fs.FileInfo, error)
	// Identity tells a file or device from others, also once the machine has been started anew and what was called by this name may be
	// called by another: a file by its inode, a device by what its maker or administrator gave it. Empty where nothing does.
	Identity(name string) (string, error)
	// Space tells how large the file system of a directory is and how much of it is free for us, in bytes.
	Space(dir string) (total, free int64, err error)
	// SyncDir makes the entries of a directory durable.
	SyncDir(dir string) error
	// Lock takes an exclusive lock on the file name, creating it if needed and
	// writing holder (one line) into it, so that the loser's ErrLocked can name the winner.
	// Close releases it; so does the end of the process.
	Lock(name, holder string) (io.Closer, error)
	// LockUnchanged takes the lock of a file that exists and leaves the file as it is. fs.ErrNotExist, ErrLocked.
	LockUnchanged(name string) (io.Closer, error)
	// LockDisk is LockUnchanged for a file that holds somebody's data: the error says nothing of its content.
	LockDisk(name string) (io.Closer, error)
}

// File is an open file. Methods may be called concurrently, Close last.
type File interface {
	// ReadAt is io.ReaderAt.
	ReadAt(p []byte, off int64) (int, error)
	// ReadVector fills bufs, one after the other, with what lies from off on. With wait it is io.EOF if the
	// file ends before. Without, it is ErrWouldBlock unless all of it is in memory, also beyond the end: only
	// waiting can tell these apart. After an error the content of bufs means nothing.
	ReadVector(bufs [][]byte, off int64, wait bool) error
	// WriteAt writes the concatenation of bufs at off, extending the file as needed. On an
	// error any part of it may have been written. It does not retain or change bufs.
	WriteAt(bufs [][]byte, off int64) error
	// Truncate sets the size; a grown part reads as zeros.
	Truncate(sizeBytes int64) error
	// Allocate reserves space for [off, off+length) and extends the file over it, so
	// that later writes there do not fail for lack of space. Where the file system
	// cannot, the file is extended and nil is returned.
	Allocate(off, length int64) error
	// PunchHole frees [off, off+length), which reads as zeros afterwards.
	PunchHole(off, length int64) error
	// NextData finds the first range at or behind off that may hold anything but zeros, as far as the file system
	// knows: [from, to). Where there is none, both are the file's size.
	NextData(off int64) (from, to int64, err error)
	// Sync makes content and size durable (fdatasync).
	Sync() error
	// StartWriteback begins to write [off, off+length) out, without waiting or any promise.
	StartWriteback(off, length int64)
	// DropCache forgets cached clean content, so that later reads come from the disk.
	DropCache() error
	// Size is the present size in bytes.
	Size() (int64, error)
	// Close closes the file; it does not sync.
	Close() error
}
