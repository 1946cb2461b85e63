package qcow2

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"varve/internal/block"
	"varve/internal/image/format"
	"varve/internal/image/raw"
)

// maxChain is how many files a chain may have.
const maxChain = 200

// openBacking opens the backing file and what is behind it.
func (im *Image) openBacking(front []os.FileInfo) error {
	info, err := im.file.FileInfo()
	if err != nil {
		return fmt.Errorf("open %s: %w", im.path, err)
	}
	front = append(front, info)
	if len(front) >= maxChain {
		return im.refuseBacking("the chain has more than %d files", maxChain)
	}
	path, err := im.backingPath()
	if err != nil {
		return err
	}
	base, err := raw.Open(path)
	if err != nil {
		return fmt.Errorf("backing file of %s: %w", im.path, err)
	}
	kind, err := im.backingKind(base, front)
	if err == nil && kind == format.Raw {
		im.backing = base
		return nil
	}
	base.Close()
	if err != nil {
		return err
	}
	layer, err := openLayer(path, front, im.shared)
	if err != nil {
		return fmt.Errorf("backing file of %s: %w", im.path, err)
	}
	if im.backingFormat == "" && layer.backing != nil {
		layer.Close()
		return im.refuseBacking("the format of %s is not recorded, and it names a file in turn; record it: qemu-img rebase -u -F qcow2 -b %s %s",
			path, im.backingName, im.path)
	}
	im.backing = layer
	return nil
}

func (im *Image) refuseBacking(reason string, args ...any) error {
	return fmt.Errorf("backing file of %s: %w: %s", im.path, ErrBacking, fmt.Sprintf(reason, args...))
}

// backingPath is the path that the backing file's name means: relative to the
// directory of the image. Like QEMU, it takes a name with a colon before the
// first slash as that of a protocol or of JSON, never as a file's.
func (im *Image) backingPath() (string, error) {
	name := im.backingName
	if strings.IndexByte(name, 0) >= 0 {
		return "", im.refuseBacking("its name %q is not one", name)
	}
	if before, _, ok := strings.Cut(name, ":"); ok && !strings.Contains(before, "/") {
		return "", im.refuseBacking("%q is not a file name; make the image one file: qemu-img convert -O qcow2 %s NEW", name, im.path)
	}
	if !filepath.IsAbs(name) {
		// The directory is that of the name the image was opened by, as in QEMU.
		name = filepath.Join(filepath.Dir(im.path), name)
	}
	return name, nil
}

// backingKind decides how to read base, the backing file.
//
// Where the overlay does not record the format it is detected, which a guest
// that writes to a raw disk can influence. So what is detected as qcow2 must not
// lead to further files (openBacking), and what is some other format is refused.
func (im *Image) backingKind(base *raw.Device, front []os.FileInfo) (format.Format, error) {
	info, err := base.FileInfo()
	if err != nil {
		return "", fmt.Errorf("backing file of %s: %w", im.path, err)
	}
	for _, f := range front {
		if os.SameFile(f, info) {
			return "", im.refuseBacking("the chain is a loop: %s is in it twice", im.backingName)
		}
	}
	kind := format.Format(im.backingFormat)
	switch kind {
	case "":
		head := make([]byte, min(format.HeadBytes, base.SizeBytes()))
		if err := base.ReadAt(context.Background(), head, 0); err != nil {
			return "", fmt.Errorf("backing file of %s: %w", im.path, err)
		}
		kind = format.Detect(head)
	case "file", "host_device": // what QEMU calls the layer below raw
		kind = format.Raw
	}
	if !kind.Readable() {
		return "", im.refuseBacking("%s has the format %q; make the image one file: qemu-img convert -O qcow2 %s NEW",
			im.backingName, string(kind), im.path)
	}
	return kind, nil
}

var _ block.Device = (*Image)(nil)
