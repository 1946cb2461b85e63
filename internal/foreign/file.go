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
	if err := s.watchFile(f, f.Source); err != nil {
		return err
	}
	device, info, err := image.Open(f.Source, f.Format)
	if err != nil {
		return err
	}
	if len(info.Files) > 1 {
		device.Close() // to be opened again once nobody writes to what is behind it
		for _, backing := range info.Files[1:] {
			if err := s.watch(f, backing); err != nil {
				return err
			}
		}
		if device, info, err = image.Open(f.Source, f.Format); err != nil {
			return err
		}
	}
	s.Device = &leasedDevice{Device: device, s: s}
	s.Warnings = append(s.Warnings, info.Warnings...)
	s.atEnd(func() { device.Close() })
	return nil
}

// watch sees to it that nobody writes to a file or block device, or that it is noticed.
func (s *Source) watch(f contract.ForeignSource, path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.Mode().IsRegular() {
		return s.watchFile(f, path)
	}
	return s.watchDevice(f, path)
}

// watchFile is watch for a file.
func (s *Source) watchFile(f contract.ForeignSource, path string) error {
	guard, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return cause(err)
	}
	s.atEnd(func() { guard.Close() })
	if err := unix.Flock(int(guard.Fd()), unix.LOCK_SH|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		if err := s.live(f, path, "another program has it locked"); err != nil {
			return err
		}
	}
	leased := false
	if s.Consistency != none { // else a lease would only have others wait who are welcome to write
		var why string
		if leased, why = lease(guard); why != "" {
			if err := s.live(f, path, why); err != nil {
				return err
			}
		}
	}
	if leased {
		s.leases = append(s.leases, guard)
	}
	before, err := guard.Stat()
	if err != nil {
		return cause(err)
	}
	s.stills = append(s.stills, func() error {
		if leased && !holds(guard) {
			return fmt.Errorf("somebody opened %s for writing: %w", path, ErrChanged)
		}
		after, err := os.Stat(path)
		if err != nil || !os.SameFile(before, after) || after.Size() != before.Size() || !after.ModTime().Equal(before.ModTime()) {
			return ErrChanged
		}
		return nil
	})
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
	s *Source
}

// ReadAt implements block.Device.
func (d *leasedDevice) ReadAt(ctx context.Context, p []byte, off int64) error {
	for _, guard := range d.s.leases {
		if d.s.Consistency != none && holds(guard) {
			continue
		}
		_, _ = unix.FcntlInt(guard.Fd(), unix.F_SETLEASE, unix.F_UNLCK)
		if err := d.s.still(); err != nil {
			return err
		}
	}
	return d.Device.ReadAt(ctx, p, off)
}
