// Package envelope is what every object of a repository looks like from
// outside: header, payload, parity and checksums. It needs no key.
package envelope

import (
	"context"
	"errors"

	"github.com/google/uuid"

	"varve/internal/objects"
)

// Errors of this package, wrapped with the object and what was wrong.
var (
	// ErrDamaged: the object is not what was written.
	ErrDamaged = errors.New("object is damaged")
	// ErrLost: the object is damaged beyond what parity mends.
	ErrLost = errors.New("object is lost")
	// ErrNewer: the object is of a newer version of the format.
	ErrNewer = errors.New("object is of a newer version")
	// ErrForeign: the object belongs to another repository, kind or name.
	ErrForeign = errors.New("object belongs elsewhere")
)

// Report says what was bad in an object.
type Report struct {
	Header  Header // zero if neither copy could be read
	Headers int    // damaged copies of the header
	Tables  int    // damaged copies of the table
	Shards  []int  // damaged shards, ascending, data before parity
	Lost    []int  // those of them that parity does not restore
}

// Build returns the object, whose payload is the concatenation of the slices given, which are part of it.
func Build(h Header, payload ...[]byte) (object [][]byte, err error) { return nil, errors.ErrUnsupported }

// Open returns the header and the payload of a sound object: ErrDamaged, ErrNewer.
func Open(object []byte) (Header, []byte, error) { return Header{}, nil, ErrDamaged }

// Mend returns the object as it was written: ErrLost, ErrNewer.
func Mend(object []byte) (mended []byte, rep Report, err error) { return nil, rep, ErrLost }

// Load returns the header and payload of NAME, mended in memory if need be, or else of a copy NAME-1, NAME-2:
// objects.ErrNotFound, ErrLost, ErrNewer, ErrForeign. With uuid.Nil any repository will do.
func Load(ctx context.Context, st objects.Store, name string, repository uuid.UUID, kind Kind) (Header, []byte, error) {
	return Header{}, nil, ErrLost
}
