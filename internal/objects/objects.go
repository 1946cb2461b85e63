// Package objects is what a repository asks of the place where it lies: objects
// by name, written once and whole. Package dir is a directory, package s3 a
// bucket, package faulty a store that fails as told; package open finds the
// right one for a URL, and objectstest is the contract that they all keep.
//
// A name is one or more parts of [a-z0-9._-], none of them "." or "..", joined
// by slashes (see CheckName); no name is the beginning of another up to one of its
// slashes, as in a directory. An object is visible whole or not at all, and
// durable as soon as Put returns. What was put is seen by every later Get, Stat
// and List of any client. Ages are told by the store's own clock, in Info.Modified.
//
// A Put or Delete that fails with anything but ErrExists, ErrFull, ErrDenied or
// ErrLocked may have been done all the same, or may be done still: the answer was
// lost, not the request. Who tries such a Put again may find ErrExists, from his own.
//
// Wrappers: Counted counts what is asked of a store, Limited bounds its bandwidth.
package objects

import (
	"context"
	"errors"
	"time"
)

// MaxObjectBytes is the largest object that is ever put: it is handled in memory, in one piece.
const MaxObjectBytes = 128 << 20

// Errors of a Store, wrapped with the object's name and the operation.
var (
	// ErrNotFound: there is no object of that name.
	ErrNotFound = errors.New("no such object")
	// ErrExists: there is an object of that name; nothing was changed.
	ErrExists = errors.New("object exists")
	// ErrNoStore: the directory or bucket itself is not there.
	ErrNoStore = errors.New("no such place")
	// ErrDenied: the store refuses these credentials, or this operation with them.
	ErrDenied = errors.New("access denied")
	// ErrFull: the store has no room.
	ErrFull = errors.New("store is full")
	// ErrLocked: the object is under a retention that has not ended; it was not deleted.
	ErrLocked = errors.New("object is locked")
	// ErrUnavailable: the store did not answer, or not to the end, after as many attempts as make sense.
	ErrUnavailable = errors.New("store unavailable")
	// ErrShort: the object ends before the range that was asked for.
	ErrShort = errors.New("object is too short")
	// ErrTooLarge: the object has more than MaxObjectBytes.
	ErrTooLarge = errors.New("object is too large")
	// ErrName: that is no name of an object.
	ErrName = errors.New("not a name of an object")
)

// Info describes an object.
type Info struct {
	Name     string
	Size     int64     // bytes
	Modified time.Time // when it was put, by the store's clock
}

// PutOptions say how an object is put. The zero value is for most.
type PutOptions struct {
	// LockUntil is the retention to put it under (S3 object lock, compliance mode); zero: none.
	// A store that has no locks fails with errors.ErrUnsupported.
	LockUntil time.Time
}

// Store is a place of objects. All methods may be called concurrently.
type Store interface {
	// Put stores the concatenation of data, at most MaxObjectBytes, under a name that is free: ErrExists if the
	// store can tell that it is not (see Exclusive). data is not kept nor changed.
	Put(ctx context.Context, name string, data [][]byte, o PutOptions) error

	// Read fills p with the object's bytes from off on: ErrNotFound, ErrShort.
	Read(ctx context.Context, name string, p []byte, off int64) error

	// Get returns the whole object: ErrNotFound.
	Get(ctx context.Context, name string) ([]byte, error)

	// Stat describes an object: ErrNotFound.
	Stat(ctx context.Context, name string) (Info, error)

	// List visits all objects whose names begin with prefix, in ascending order of names. Objects put or
	// deleted meanwhile may or may not be visited. An error of visit ends it and is returned as it is.
	List(ctx context.Context, prefix string, visit func(Info) error) error

	// Delete removes an object, with all versions of it, for good when it returns; it is no error if there is none. ErrLocked.
	Delete(ctx context.Context, name string) error

	// Retain extends an object's retention to at least until, and never shortens it: ErrNotFound;
	// errors.ErrUnsupported where there are no locks.
	Retain(ctx context.Context, name string, until time.Time) error

	// Exclusive tells that Put never replaces an object, whoever puts it. It may have to ask the store; false also
	// where that fails.
	Exclusive() bool

	// URL names the place as a user does, without credentials.
	URL() string

	// Close ends connections. Nothing else may be under way.
	Close() error
}
