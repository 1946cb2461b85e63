// Package backup makes backups of devices and devices of backups. It knows
// repositories and block devices, and nothing of where these come from.
//
// Vocabulary: a source is a device that does not change, with what is known of
// how it came to be; its changes are the extents that may differ from an older
// backup, the base. A scan compares everything instead. The plan for a region
// says which of its blocks are stored anew.
//
// Invariants: what a backup holds is the source's content, whatever the changes
// said: a sample of what should be as it was is compared, and a difference makes
// it a scan. Memory is bounded, whatever the size. Nothing is visible before the
// record is; what was stored by then is found again.
package backup

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"

	"varve/internal/block"
	"varve/internal/repository"
)

// Errors of this package.
var (
	// ErrTooSmall: the target has less room than the backup is large.
	ErrTooSmall = errors.New("target is smaller than the backup")
	// ErrDamaged: the backup, or a part of it, cannot be read.
	ErrDamaged = repository.ErrDamaged
	// errMismatch: something changed of which the changes said nothing.
	errMismatch = errors.New("a block changed without being tracked")
)

// Extents visits runs of bytes in ascending order; an error of visit ends it.
type Extents func(ctx context.Context, visit func(offset, length int64) error) error

// Source is one volume at one instant.
type Source struct {
	Device   block.Device // does not change
	Volume   string
	VolumeID uuid.UUID
	Name     string // what the user called it, for the record

	PointID     uuid.UUID // of the snapshot; zero for foreign sources
	PointAt     time.Time
	Consistency string
	FreezeTime  time.Duration
	Steps       []repository.Step
	Policy      uuid.UUID
	Labels      map[string]string

	ID     string          // of the backup; empty: a new one
	Type   repository.Type // as Choose decided
	Reason string
	// Base is the backup whose map the new one begins with; nil for a full.
	Base *repository.Backup
	// Changes are the extents that may differ from Base. nil: unknown, all is compared.
	Changes Extents
}

// Progress is told how many bytes of the sources have been looked at, of all that will be.
type Progress func(done, total int64)

// Options say how a backup is made.
type Options struct {
	Record    string    // its id; empty: a new one
	Program   string    // what makes it, with its version
	Host      string    // where
	LockUntil time.Time // retention; zero: none
	Progress  Progress  // may be nil
	// Mismatch is told when the changes were found to be wrong. May be nil.
	Mismatch func(volume string, offset int64)
	// BeforeCommit is called when all is stored, before the record is put: bookmarks are made there. May be nil.
	BeforeCommit func(rec *repository.Record) error
}
