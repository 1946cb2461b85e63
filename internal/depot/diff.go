package depot

import (
	"context"
	"fmt"

	"varve/internal/block"
	"varve/internal/contract"
	"varve/internal/repository"
	"varve/internal/repository/maptree"
)

// Diff visits the extents of the newer backup whose content is not that of the older one, in order and united. It is of the newer
// one's size; what lies beyond the end of the older compares as zeros. Blocks are told apart by their hashes; no content is read. A
// block of which no hash can be had any more is called changed: nobody can tell.
func (d *Depot) Diff(ctx context.Context, older, newer string, visit func(contract.Extent) error) error {
	a, err := d.repo.Backup(ctx, older)
	if err != nil {
		return err
	}
	b, err := d.repo.Backup(ctx, newer)
	if err != nil {
		return err
	}
	if a.VolumeID != b.VolumeID {
		return contract.Errorf(contract.CodeUsage, "backup %s is of volume %s, backup %s of %s: they have nothing in common", a.ID, a.Volume, b.ID, b.Volume)
	}
	c := comparison{repo: d.repo, size: b.SizeBytes, visit: visit}
	err = maptree.Diff(ctx, d.repo.Tree(a.Root), d.repo.Tree(b.Root), func(index uint64, x, y maptree.Region) error {
		return c.region(ctx, index, x, y)
	})
	if err == nil {
		err = c.flush()
	}
	if err != nil {
		return fmt.Errorf("compare backups %s and %s: %w", a.ID, b.ID, err)
	}
	return nil
}

// comparison makes extents of regions that differ.
type comparison struct {
	repo  *repository.Repo
	size  int64
	visit func(contract.Extent) error
	run   contract.Extent // not told yet
}

func (c *comparison) region(ctx context.Context, index uint64, x, y maptree.Region) error {
	per := c.repo.Geometry().BlocksPerRegion
	start := int64(index) * int64(per) * block.Size
	xs, ys := hashes{region: x}, hashes{region: y}
	for i := 0; i < per; i++ {
		off := start + int64(i)*block.Size
		if off >= c.size {
			break
		}
		same, err := alike(ctx, c.repo, &xs, &ys, i)
		if err != nil {
			return err
		}
		if !same {
			if err := c.add(off, min(block.Size, c.size-off)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *comparison) add(off, length int64) error {
	if c.run.Length > 0 && c.run.Offset+c.run.Length == off {
		c.run.Length += length
		return nil
	}
	err := c.flush()
	c.run = contract.Extent{Offset: off, Length: length}
	return err
}

func (c *comparison) flush() error {
	if c.run.Length == 0 {
		return nil
	}
	run := c.run
	c.run = contract.Extent{}
	return c.visit(run)
}

// hashes are those of a region's blocks, read where they are asked for.
type hashes struct {
	region maptree.Region
	known  [maptree.MaxChunks][]uint64
	read   [maptree.MaxChunks]bool
}

func (h *hashes) of(ctx context.Context, repo *repository.Repo, c, pos int) (hash uint64, ok bool, err error) {
	if !h.read[c] {
		if h.known[c], err = repo.Hashes(ctx, h.region.Chunks[c]); err != nil {
			return 0, false, err
		}
		h.read[c] = true
	}
	if pos >= len(h.known[c]) {
		return 0, false, nil
	}
	return h.known[c][pos], true, nil
}

// alike tells whether a block is the same in two regions.
func alike(ctx context.Context, repo *repository.Repo, x, y *hashes, i int) (bool, error) {
	cx, px, okX := x.region.Source(i)
	cy, py, okY := y.region.Source(i)
	if !okX || !okY {
		return okX == okY, nil
	}
	if px == py && x.region.Chunks[cx].ID == y.region.Chunks[cy].ID {
		return true, nil
	}
	hx, ok, err := x.of(ctx, repo, cx, px)
	if err != nil || !ok {
		return false, err
	}
	hy, ok, err := y.of(ctx, repo, cy, py)
	if err != nil || !ok {
		return false, err
	}
	return hx == hy, nil
}
