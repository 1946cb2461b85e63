package foreign

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"varve/internal/block"
	"varve/internal/contract"
	"varve/internal/image"
)

// openFile opens a raw or qcow2 file.
func (s *Source) openFile(f contract.ForeignSource) error {
	guard, err := os.OpenFile(f.Source, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return cause(err)
	}
	s.atEnd(func() { guard.Close() })
	if err := unix.Flock(int(guard.Fd()), unix.LOCK_SH|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		if err := s.live(f, "another program has it locked"); err != nil {
			return err
		}
	}
	leased := false
	if s.Consistency != none { // else a lease would only have others wait who are welcome to write
		var why string
		if leased, why = lease(guard); why != "" {
			if err := s.live(f, why); err != nil {
				return err
			}
		}
	}
	before, err := guard.Stat()
	if err != nil {
		return cause(err)
	}
	s.still = func() error {
		if leased && !holds(guard) {
			return fmt.Errorf("somebody opened it for writing: %w", ErrChanged)
		}
		after, err := os.Stat(f.Source)
		if err != nil || !os.SameFile(before, after) || after.Size() != before.Size() || !after.ModTime().Equal(before.ModTime()) {
			return ErrChanged
		}
		return nil
	}
	device, info, err := image.Open(f.Source, f.Format)
	if err != nil {
		return err
	}
	s.Device = &leasedDevice{Device: device, s: s, guard: guard, leased: leased}
	s.Warnings = append(s.Warnings, info.Warnings...)
	s.atEnd(func() { device.Close() })
	return nil
}

// lease asks the kernel for a read lease, which is given where nobody has the file open for writing. Where it gives none for other
// reasons, the open files of processes are looked through. why tells of a writer.
func lease(f *os.File) (leased bool, why string) {
	_, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_RDLCK)
	if err == nil {
		return true, ""
	}
	if info, err := f.Stat(); err == nil {
		why = writers(func(other os.FileInfo) bool { return os.SameFile(info, other) })
	}
	if why == "" && errors.Is(err, unix.EAGAIN) {
		why = "somebody has it open for writing"
	}
	return false, why
}

// holds tells whether a lease is still there: it ends when somebody opens the file for writing, who waits until it is given back.
func holds(f *os.File) bool {
	kind, err := unix.FcntlInt(f.Fd(), unix.F_GETLEASE, 0)
	return err == nil && kind == unix.F_RDLCK
}

// leasedDevice gives a lease back as soon as somebody waits for it, and fails from then on.
type leasedDevice struct {
	block.Device
	s      *Source
	guard  *os.File
	leased bool
}

// ReadAt implements block.Device.
func (d *leasedDevice) ReadAt(ctx context.Context, p []byte, off int64) error {
	if d.leased && !holds(d.guard) {
		_, _ = unix.FcntlInt(d.guard.Fd(), unix.F_SETLEASE, unix.F_UNLCK)
		return d.s.still()
	}
	return d.Device.ReadAt(ctx, p, off)
}
