package pool

import (
	"errors"

	"varve/internal/pool/seglog"
)

// Errors of the pool, wrapped with operation and object; test with errors.Is.
// Those of package block (ErrNoSpace, ErrDamaged, ...) are returned too.
var (
	// ErrNotFound: no volume or snapshot of that name.
	ErrNotFound = errors.New("not found")
	// ErrExists: the name is taken.
	ErrExists = errors.New("name is taken")
	// ErrInUse: clients, snapshots or clones stand in the way.
	ErrInUse = errors.New("in use")
	// ErrProtected: the snapshot is protected from deletion.
	ErrProtected = errors.New("protected")
	// ErrInvalid: a name, size or other argument that can never be right.
	ErrInvalid = errors.New("invalid")
	// ErrShrink: the new size is smaller and shrinking was not asked for.
	ErrShrink = errors.New("would shrink")
	// ErrWriteStopped: an earlier failure to reach the disk stopped all writes until the pool is opened again.
	ErrWriteStopped = seglog.ErrStopped
	// ErrNotPool: the directory holds no pool, or one whose creation was cut short.
	ErrNotPool = errors.New("not a pool")
	// ErrNewerFormat: the pool was written by a newer version.
	ErrNewerFormat = seglog.ErrNewerFormat
	// ErrWouldLose: a repair would have to give up batches of the log that were flushed.
	ErrWouldLose = errors.New("flushed writes would be lost")
	// ErrDamagedLog: a part of the log that was durable cannot be read.
	ErrDamagedLog = seglog.ErrDamaged
)
