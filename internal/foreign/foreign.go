// Package foreign opens disks that are not volumes of a pool, so that they can
// be backed up: raw and qcow2 files, block devices, exports of NBD servers.
//
// A backup is only worth something if the disk stands still while it is copied. Varve
// cannot freeze what is not its own, so Open looks whether somebody may be
// writing to it, and refuses it if so (ErrLive), unless that is allowed; then what is
// read is of no one instant, and its consistency is none. How it is found out:
//
//   - A regular file, and each of its backing files. A shared lock (flock) is taken, so that those who use such
//     locks stay away; a file that QEMU writes to is never read behind its back; and the kernel is asked for a
//     read lease, which it gives for a file that nobody has open for writing, and
//     which ends when somebody opens it so. Where leases are not given (another
//     user's file, some file systems) the open files of all processes that can be seen are
//     looked through. At the end size and times must be those of the beginning.
//   - A block device. It, a partition of it, or what it is a partition of, must not be mounted for
//     writing, swapped to, or part of another device; and no process that can be seen has it open for writing. At the
//     end the kernel must have counted no more sectors as written than at the beginning.
//   - An NBD export. The server says whether it can be written. If it can, anybody
//     else may: nobody could tell. If it cannot, it is taken to stand still: that
//     it is a snapshot's, and not a running disk's, is up to who exports it.
package foreign

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"varve/internal/block"
	"varve/internal/contract"
)

// Errors of this package, wrapped with the source.
var (
	// ErrLive: somebody may be writing to it.
	ErrLive = errors.New("somebody may be writing to it")
	// ErrChanged: somebody has written to it while it was read.
	ErrChanged = errors.New("it was changed while it was read")
)

// Consistency of what is read.
const (
	// crash: nobody wrote to it meanwhile.
	crash = "crash"
	// none: it is of no one instant.
	none = "none"
)

// Source is a disk that is open for reading.
type Source struct {
	Device      block.Device
	At          time.Time // when reading began
	Consistency string
	Warnings    []string
	// Changes visits what the bitmap calls dirty, in ascending order; nil without one.
	Changes func(ctx context.Context, visit func(offset, length int64) error) error

	name   string
	leases []*os.File     // under which files are read
	stills []func() error // of each file and device that it is read from: ErrChanged
	closed []func()
}

// Open opens what f names. Its code is refused for ErrLive.
func Open(ctx context.Context, f contract.ForeignSource) (*Source, error) {
	s := &Source{Consistency: crash, name: f.Source}
	err := s.open(ctx, f)
	if err != nil {
		s.Close()
		return nil, named(f, err)
	}
	s.At = time.Now().Round(0)
	return s, nil
}

// named has an error say what was to be backed up.
func named(f contract.ForeignSource, err error) error {
	told, ok := errors.AsType[*contract.Error](err)
	switch {
	case ok:
		return &contract.Error{Code: told.Code, Message: "back up " + f.Source + ": " + told.Message, Hint: told.Hint}
	case strings.Contains(err.Error(), f.Source):
		return fmt.Errorf("back up: %w", err)
	}
	return fmt.Errorf("back up %s: %w", f.Source, err)
}

func (s *Source) open(ctx context.Context, f contract.ForeignSource) error {
	if scheme, _, ok := strings.Cut(f.Source, "://"); ok {
		switch scheme {
		case "nbd", "nbds", "nbd+unix", "nbds+unix":
			return s.openNBD(ctx, f)
		}
		return contract.Errorf(contract.CodeUsage, "%s://: a source is a file, a block device, or an nbd:// or nbd+unix:// URI", scheme)
	}
	if f.Bitmap != "" {
		return contract.Errorf(contract.CodeUsage, "only NBD exports have dirty bitmaps that can be read")
	}
	info, err := os.Stat(f.Source)
	if err != nil {
		return cause(err)
	}
	switch kind := info.Mode().Type(); {
	case kind == 0:
		return s.openFile(f)
	case kind&fs.ModeDevice != 0 && kind&fs.ModeCharDevice == 0:
		return s.openDevice(f)
	default:
		return contract.Errorf(contract.CodeUsage, "it is neither a file nor a block device")
	}
}

// live is what becomes of a disk that somebody may write to, to a file of it.
func (s *Source) live(f contract.ForeignSource, path, why string) error {
	if path != f.Source {
		why = "its backing file " + path + ": " + why
	}
	if !f.AllowInconsistent {
		return contract.Errorf(contract.CodeRefused, "%s: %s", ErrLive, why).
			WithHint("stop it, or back up a snapshot of it; to have a copy that may be of no one instant: --allow-inconsistent")
	}
	s.Consistency = none
	s.Warnings = append(s.Warnings, fmt.Sprintf("%s: %s: the backup may be of no one instant", f.Source, why))
	return nil
}

// Unchanged is ErrChanged if somebody may have written to the disk since it was opened, which is looked at once all is read. Of one that was
// allowed to be written to, it is nil.
func (s *Source) Unchanged() error {
	if err := s.still(); err != nil {
		return fmt.Errorf("back up %s: %w", s.name, err)
	}
	return nil
}

// still is ErrChanged if somebody may have written to it, and that is not allowed.
func (s *Source) still() error {
	for _, still := range s.stills {
		if s.Consistency == none {
			return nil
		}
		if err := still(); err != nil {
			return err
		}
	}
	return nil
}

// Close closes the device and gives locks back.
func (s *Source) Close() {
	for i := len(s.closed) - 1; i >= 0; i-- {
		s.closed[i]()
	}
	s.closed = nil
}

func (s *Source) atEnd(f func()) { s.closed = append(s.closed, f) }

// cause drops the file's name from an error that will be wrapped with it.
func cause(err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}
