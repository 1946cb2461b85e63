package image

import (
	"context"
	"fmt"

	"varve/internal/block"
	"varve/internal/image/transfer"
)

// Progress is told how far a copy is: done of total bytes of the source's size,
// what is empty included. It is called in order by one goroutine, must be quick, and may be nil.
type Progress = transfer.Progress

// Copy makes the beginning of dst equal to src and flushes dst. What dst has
// beyond src's size is left alone; a smaller dst is block.ErrOutOfRange. Zeros
// become OpZero. After an error or cancellation dst holds a part of src.
func Copy(ctx context.Context, dst, src block.Device, progress Progress) error {
	return copyDevice(ctx, dst, src, false, progress)
}

// CopyToEmpty is Copy for a dst that reads as zeros: zeros are not written at all.
func CopyToEmpty(ctx context.Context, dst, src block.Device, progress Progress) error {
	return copyDevice(ctx, dst, src, true, progress)
}

func copyDevice(ctx context.Context, dst, src block.Device, empty bool, progress Progress) error {
	if src.SizeBytes() > dst.SizeBytes() {
		return fmt.Errorf("copy %d bytes to a device of %d: %w", src.SizeBytes(), dst.SizeBytes(), block.ErrOutOfRange)
	}
	err := transfer.Read(ctx, src, block.Size, progress, func(runs []transfer.Run) error {
		var ops []*block.Op
		for _, r := range runs {
			switch {
			case r.Data != nil:
				ops = append(ops, &block.Op{Kind: block.OpWrite, Offset: r.Offset, Length: r.Length, Data: r.Data})
			case !empty:
				ops = append(ops, &block.Op{Kind: block.OpZero, Offset: r.Offset, Length: r.Length})
			}
		}
		if len(ops) == 0 {
			return nil
		}
		dst.Submit(ctx, ops)
		for _, op := range ops {
			if op.Err != nil {
				return fmt.Errorf("copy: write %d+%d: %w", op.Offset, op.Length, op.Err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return dst.Flush(ctx)
}
