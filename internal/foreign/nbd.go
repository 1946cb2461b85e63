package foreign

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"varve/internal/contract"
	"varve/internal/nbd"
	"varve/internal/nbd/client"
)

const (
	// statusBytes is how much one request asks about.
	statusBytes = 1 << 30
	statusRuns  = 1 << 16
	// dirty is the bit of qemu:dirty-bitmap that says so.
	dirty = 1
)

// openNBD connects to an export.
func (s *Source) openNBD(ctx context.Context, f contract.ForeignSource) error {
	if f.Format != "" && f.Format != "raw" {
		return contract.Errorf(contract.CodeUsage, "format %s: what an NBD server exports is raw", f.Format)
	}
	o := client.Options{}
	bitmap := "qemu:dirty-bitmap:" + f.Bitmap
	if f.Bitmap != "" {
		o.Contexts = []string{bitmap}
	}
	c, err := client.Dial(ctx, f.Source, o)
	if errors.Is(err, client.ErrURI) {
		return contract.Errorf(contract.CodeUsage, "%s", err)
	}
	if err != nil {
		return err
	}
	s.Device = c
	s.atEnd(func() { c.Close() })
	if f.Bitmap != "" {
		if !slices.Contains(c.Info().Contexts, bitmap) {
			return contract.Errorf(contract.CodeNotFound, "the export has no dirty bitmap %q", f.Bitmap).
				WithHint("have the server export it, as qemu-nbd -B %s does; or leave --bitmap out, and all is compared", f.Bitmap)
		}
		s.Changes = func(ctx context.Context, visit func(offset, length int64) error) error {
			return changes(ctx, c, bitmap, visit)
		}
	}
	if c.Info().Flags&nbd.FlagReadOnly == 0 {
		return s.live(f, f.Source, "the export can be written, so others may be writing to it")
	}
	return nil
}

// changes visits what a bitmap calls dirty.
func changes(ctx context.Context, c *client.Client, bitmap string, visit func(offset, length int64) error) error {
	size := c.SizeBytes()
	for off := int64(0); off < size; {
		runs, err := c.BlockStatus(ctx, bitmap, off, min(statusBytes, size-off), statusRuns)
		if err != nil {
			return fmt.Errorf("read the dirty bitmap at %d: %w", off, err)
		}
		if len(runs) == 0 {
			return fmt.Errorf("read the dirty bitmap at %d: the server says nothing of it", off)
		}
		for _, r := range runs {
			if r.Flags&dirty != 0 {
				if err := visit(off, r.Length); err != nil {
					return err
				}
			}
			off += r.Length
		}
	}
	return nil
}
