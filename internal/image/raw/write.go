package raw

import (
	"context"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"varve/internal/block"
	"varve/internal/block/zeros"
	"varve/internal/image/target"
	"varve/internal/image/transfer"
)

// Write exports src as a raw image. Blocks of zeros become holes.
//
// A regular file appears under its name only when it is complete and durable
// (package target). A block device is written in place, its first
// src.SizeBytes() bytes; it must not be mounted (the kernel's exclusive open
// says so), and an export that fails leaves it half-written.
func Write(ctx context.Context, path string, src block.Device, opts target.Options) error {
	if info, err := os.Stat(path); err == nil && isBlockDevice(info) {
		return writeDevice(ctx, path, src, opts.Progress)
	}
	out, err := target.Create(path, opts.Replace)
	if err != nil {
		return err
	}
	defer out.Abort()
	if err := out.Truncate(src.SizeBytes()); err != nil {
		return err
	}
	err = transfer.Read(ctx, src, block.Size, opts.Progress, func(runs []transfer.Run) error {
		for _, r := range runs {
			if r.Data == nil {
				continue
			}
			if err := out.WriteAt(r.Data, r.Offset); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return out.Commit()
}

func writeDevice(ctx context.Context, path string, src block.Device, progress transfer.Progress) error {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_EXCL, 0)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, cause(err))
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, cause(err))
	}
	if size < src.SizeBytes() {
		return fmt.Errorf("write %s: it has %d of %d bytes: %w", path, size, src.SizeBytes(), ErrTooSmall)
	}
	if err := overwrite(ctx, f, src, progress); err != nil {
		return fmt.Errorf("write %s: %w", path, cause(err))
	}
	return nil
}

// overwrite makes the beginning of f equal to src, whatever it held before, and durable.
func overwrite(ctx context.Context, f *os.File, src block.Device, progress transfer.Progress) error {
	err := transfer.Read(ctx, src, block.Size, progress, func(runs []transfer.Run) error {
		for _, r := range runs {
			var err error
			if r.Data == nil {
				err = writeZeros(ctx, f, r.Offset, r.Length)
			} else {
				_, err = f.WriteAt(r.Data, r.Offset)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return f.Sync()
}

// zeroStep bounds how long the kernel zeroes before cancellation is looked at.
const zeroStep = 1 << 30

// writeZeros makes [off, off+length) read as zeros in the cheapest way that f has.
func writeZeros(ctx context.Context, f *os.File, off, length int64) error {
	for end := off + length; off < end; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(end-off, zeroStep)
		punch := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
		if punch != nil && unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, off, n) != nil {
			// Neither is possible here, or not at this alignment.
			n = min(n, transfer.ChunkBytes)
			if err := writeZeroBytes(f, off, n); err != nil {
				return err
			}
		}
		off += n
	}
	return nil
}

// writeZeroBytes writes n zero bytes where something else is.
func writeZeroBytes(f *os.File, off, n int64) error {
	buf := make([]byte, n)
	if _, err := f.ReadAt(buf, off); err == nil && zeros.All(buf) {
		return nil
	}
	clear(buf)
	_, err := f.WriteAt(buf, off)
	return err
}
