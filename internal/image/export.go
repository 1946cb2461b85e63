package image

import (
	"context"
	"fmt"

	"varve/internal/block"
	"varve/internal/image/format"
	"varve/internal/image/qcow2"
	"varve/internal/image/raw"
	"varve/internal/image/target"
)

// ExportOptions say how an export treats its target.
type ExportOptions = target.Options

// ErrNotFile means that the target of an export is a directory, or a device where only a file will do.
var ErrNotFile = target.ErrNotFile

// Export writes src into an image file at path. What is zero takes no space in
// it. The file appears under its name complete and durable, or not at all; one
// that exists is fs.ErrExist unless opts.Replace. A raw image may also be
// written over a block device, in place.
func Export(ctx context.Context, path, formatName string, src block.Device, opts ExportOptions) error {
	switch format.Format(formatName) {
	case format.Raw:
		return raw.Write(ctx, path, src, opts)
	case format.Qcow2:
		return qcow2.Write(ctx, path, src, opts)
	}
	return fmt.Errorf("write %s: %q: %w; raw and qcow2 are", path, formatName, ErrFormat)
}
