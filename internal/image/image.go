// Package image reads disk images into devices and writes devices into images:
// raw files, block devices, and QEMU's qcow2. It is all that the rest of Varve
// sees of image formats.
//
//   - Open gives an image as a read-only block.Device.
//   - Copy and CopyToEmpty fill a device from another: an import.
//   - Export writes a device into an image file.
//
// Its parts: raw and qcow2 know one format each; format tells them apart;
// transfer reads devices ahead; target makes files appear whole or not at all;
// zeros finds zero bytes.
//
// All of it runs in bounded memory, whatever the image says, and does no work
// for what is empty. See docs/design/images.md.
package image

import (
	"context"
	"errors"
	"fmt"

	"varve/internal/block"
	"varve/internal/image/format"
	"varve/internal/image/qcow2"
	"varve/internal/image/raw"
)

// Errors of this package and its parts, wrapped with the file's name and what
// to do; test with errors.Is. fs.ErrNotExist, fs.ErrExist, fs.ErrPermission and
// syscall.ENOSPC are returned too where these are the cause.
var (
	// ErrFormat: the file has a format, or the caller named one, that is neither raw nor qcow2.
	ErrFormat = errors.New("format not supported")
	// ErrEmpty: the image holds a disk of size 0.
	ErrEmpty = errors.New("the disk has no content: its size is 0")

	// ErrNotImage: the name is that of a directory, a pipe or the like.
	ErrNotImage = raw.ErrNotImage
	// ErrInUse: a running program has the image open for writing.
	ErrInUse = raw.ErrInUse
	// ErrTooLarge: the disk is larger than block.MaxDeviceBytes.
	ErrTooLarge = raw.ErrTooLarge
	// ErrCorrupt: the image's structure is damaged, cut short or forged.
	ErrCorrupt = qcow2.ErrCorrupt
	// ErrUnsupported: the image uses a feature that is not read.
	ErrUnsupported = qcow2.ErrUnsupported
	// ErrNeedsCheck: the image marks itself as dirty or corrupt.
	ErrNeedsCheck = qcow2.ErrNeedsCheck
	// ErrBacking: a backing file cannot or must not be used.
	ErrBacking = qcow2.ErrBacking
)

// Names of formats, for Open and Export.
const (
	Raw   = string(format.Raw)
	Qcow2 = string(format.Qcow2)
)

// Info describes an open image.
type Info struct {
	Format string // Raw or Qcow2
	// Files are the names of the files that it is read from: its own, and those of its backing files.
	Files []string
	// Warnings are what a user should know: what was ignored or added.
	Warnings []string
}

// Open opens an image for reading. An empty format is detected; see
// format.Detect for whom to trust then. The sizes of images are up to
// block.MaxDeviceBytes.
//
// Opening a qcow2 image opens the files that it names as backing files, with
// the rights of this process.
func Open(path, formatName string) (block.Device, Info, error) {
	kind := format.Format(formatName)
	if kind == "" {
		var err error
		if kind, err = Detect(path); err != nil {
			return nil, Info{}, err
		}
	}
	if !kind.Readable() {
		return nil, Info{}, fmt.Errorf("open %s: %s: %w; %s", path, kind, ErrFormat, kind.Hint())
	}
	device, err := open(path, kind)
	if err != nil {
		return nil, Info{}, err
	}
	if device.SizeBytes() == 0 {
		device.Close()
		return nil, Info{}, fmt.Errorf("open %s: %w", path, ErrEmpty)
	}
	return device, Info{Format: string(kind), Files: device.Files(), Warnings: device.Warnings()}, nil
}

type imageDevice interface {
	block.Device
	Files() []string
	Warnings() []string
}

func open(path string, kind format.Format) (imageDevice, error) {
	if kind == format.Qcow2 {
		return asDevice(qcow2.Open(path))
	}
	return asDevice(raw.Open(path))
}

// asDevice keeps a nil pointer from becoming an interface that is not nil.
func asDevice[D imageDevice](d D, err error) (imageDevice, error) {
	if err != nil {
		return nil, err
	}
	return d, nil
}

// Detect finds the format of the file at path, by its first bytes alone. ErrInUse.
func Detect(path string) (format.Format, error) {
	file, err := raw.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	head := make([]byte, min(format.HeadBytes, file.SizeBytes()))
	if err := file.ReadAt(context.Background(), head, 0); err != nil {
		return "", err
	}
	return format.Detect(head), nil
}
