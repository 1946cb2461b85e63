// Package raw reads and writes disk images that are nothing but the disk's
// bytes: files, sparse or not, and block devices.
//
// A device's size is a multiple of 512 bytes; a file's need not be. As QEMU
// does, the file is taken to go on with zeros up to the next multiple, and a
// warning tells so.
//
// Holes are found with SEEK_DATA and SEEK_HOLE. Where the file system or the
// device has neither, everything counts as data.
//
// Left out: offsets within a file, partitions, writing anything but whole images.
package raw

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"varve/internal/block"
)

// Errors of this package, wrapped with the file's name and the operation.
var (
	// ErrNotImage: the name is that of a directory, a pipe or the like.
	ErrNotImage = errors.New("neither a regular file nor a block device")
	// ErrTooLarge: the size is above block.MaxDeviceBytes.
	ErrTooLarge = errors.New("larger than 64 TiB")
	// ErrInUse: a running QEMU has the image open for writing, so that its content changes while it is read.
	ErrInUse = errors.New("in use: a running program, such as QEMU, has it open for writing; stop it, or read the disk through it")
	// ErrShrunk: the file became shorter while it was open.
	ErrShrunk = errors.New("the file became shorter while it was read")
	// ErrTooSmall: the block device to be written has less room than the disk.
	ErrTooSmall = errors.New("the block device is too small")
)

// Device is an open raw image. It implements block.Device and is read-only.
type Device struct {
	f         *os.File
	path      string
	fileBytes int64 // the file's own size when it was opened
	sizeBytes int64 // fileBytes rounded up to sectors
}

// Open opens a file or block device for reading. An empty file gives a device of
// size 0. The device does not lock the file: whoever changes it meanwhile changes the device.
func Open(path string) (*Device, error) {
	// Without O_NONBLOCK, opening a pipe would wait for a writer.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, cause(err))
	}
	d, err := newDevice(f, path)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return d, nil
}

func newDevice(f *os.File, path string) (*Device, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, cause(err)
	}
	if !info.Mode().IsRegular() && !isBlockDevice(info) {
		return nil, ErrNotImage
	}
	if lockedByWriter(f) {
		return nil, ErrInUse
	}
	// Unlike the size in FileInfo, the end is right for block devices too.
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, cause(err)
	}
	if size > block.MaxDeviceBytes {
		return nil, fmt.Errorf("%d bytes: %w", size, ErrTooLarge)
	}
	return &Device{
		f: f, path: path, fileBytes: size,
		sizeBytes: (size + block.SectorSize - 1) &^ (block.SectorSize - 1),
	}, nil
}

func isBlockDevice(info os.FileInfo) bool {
	return info.Mode()&os.ModeDevice != 0 && info.Mode()&os.ModeCharDevice == 0
}

// lockedByWriter tells whether a QEMU process may write to the file. QEMU marks
// each permission it uses with a shared lock on one byte from 100 on (its
// block/file-posix.c); write permission is the second.
func lockedByWriter(f *os.File) bool {
	lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: 101, Len: 1}
	err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lock)
	return err == nil && lock.Type != unix.F_UNLCK // a file system without locks has none that matter
}

// cause drops the file's name from an error that will be wrapped with it.
func cause(err error) error {
	var pathErr *os.PathError
	if errors.As(err, &pathErr) {
		return pathErr.Err
	}
	return err
}

// SizeBytes is the file's size, rounded up to whole sectors.
func (d *Device) SizeBytes() int64 { return d.sizeBytes }

// FileInfo describes the open file; os.SameFile tells whether two devices are one file.
func (d *Device) FileInfo() (os.FileInfo, error) { return d.f.Stat() }

// Files is the name of the file.
func (d *Device) Files() []string { return []string{d.path} }

// Warnings says what a user should know about the image.
func (d *Device) Warnings() []string {
	if d.sizeBytes == d.fileBytes {
		return nil
	}
	return []string{fmt.Sprintf("%s: %d bytes are no multiple of %d; %d zero bytes are added at the end",
		d.path, d.fileBytes, block.SectorSize, d.sizeBytes-d.fileBytes)}
}

// ReadAt implements block.Device.
func (d *Device) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := block.CheckRange(off, int64(len(p)), d.sizeBytes); err != nil {
		return fmt.Errorf("read %s at %d+%d: %w", d.path, off, len(p), err)
	}
	inFile := min(int64(len(p)), max(0, d.fileBytes-off))
	clear(p[inFile:])
	if inFile == 0 {
		return nil
	}
	if n, err := d.f.ReadAt(p[:inFile], off); int64(n) < inFile {
		if errors.Is(err, io.EOF) {
			err = ErrShrunk
		}
		return fmt.Errorf("read %s at %d: %w", d.path, off+int64(n), cause(err))
	}
	return nil
}

// Submit implements block.Device: it fails with block.ErrReadOnly.
func (d *Device) Submit(_ context.Context, ops []*block.Op) {
	for _, op := range ops {
		op.Err = fmt.Errorf("write %s: %w", d.path, block.ErrReadOnly)
	}
}

// Flush implements block.Device; there is nothing to flush.
func (d *Device) Flush(context.Context) error { return nil }

// Extents implements block.Device.
func (d *Device) Extents(ctx context.Context, off, length int64, limit int) ([]block.Extent, error) {
	if err := block.CheckRange(off, length, d.sizeBytes); err != nil {
		return nil, fmt.Errorf("extents of %s at %d+%d: %w", d.path, off, length, err)
	}
	var list []block.Extent
	for end := off + length; off < end; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		hole, next, err := d.run(off)
		if err != nil {
			return nil, fmt.Errorf("extents of %s at %d: %w", d.path, off, err)
		}
		next = min(next, end)
		n := len(list)
		switch {
		case n > 0 && list[n-1].Hole == hole:
			list[n-1].Length += next - off
		case n >= limit:
			return list, nil
		default:
			list = append(list, block.Extent{Offset: off, Length: next - off, Hole: hole, Zero: hole})
		}
		off = next
	}
	return list, nil
}

// run tells whether there is a hole at off, and where what is there ends.
func (d *Device) run(off int64) (hole bool, end int64, err error) {
	if off >= d.fileBytes {
		return true, d.sizeBytes, nil
	}
	data, err := unix.Seek(int(d.f.Fd()), off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return true, d.sizeBytes, nil
	case errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP):
		return false, d.sizeBytes, nil
	case err != nil:
		return false, 0, err
	case data > off:
		return true, data, nil
	}
	end, err = unix.Seek(int(d.f.Fd()), off, unix.SEEK_HOLE)
	if err != nil {
		return false, 0, err
	}
	if end <= off { // punched between the two calls; what is read is right either way
		end = off + 1
	}
	if end >= d.fileBytes {
		end = d.sizeBytes // the last, partial sector is one with the zeros added to it
	}
	return false, end, nil
}

// Close implements block.Device.
func (d *Device) Close() error { return d.f.Close() }
