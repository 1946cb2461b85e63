package backup

import (
	"context"
	"errors"
	"fmt"

	"varve/internal/block"
	"varve/internal/repository"
)

// Verified tells what a verification found.
type Verified struct {
	Bytes int64 // of content that was read and is right
	Lost  []Range
	Errs  []error // one for each lost chunk, at most maxErrs
}

const maxErrs = 100

// Verify reads all of a backup as a restore does, into nothing, and compares
// every block with its hash too. What is lost is in the result; an error is of the store, or of the map.
func Verify(ctx context.Context, repo *repository.Repo, b repository.Backup, progress Progress) (Verified, error) {
	var v Verified
	null := &nullDevice{size: b.SizeBytes}
	pin, err := repo.Pin(ctx, b.ID)
	if err != nil {
		return v, err
	}
	defer pin.Release()
	r := &restorer{repo: repo, b: b, target: null, o: RestoreOptions{Fresh: true, SkipDamaged: true, Progress: progress}, pin: pin, regionBytes: int64(repo.ChunkBytes()), per: repo.Geometry().BlocksPerRegion}
	err = repo.Scan(ctx, repo.Tree(b.Root), 0, repo.Regions(b.SizeBytes), nil, 1, func(s *repository.Scanned) error {
		for c, ch := range s.Region.Chunks {
			if s.Errs != nil && s.Errs[c] != nil {
				if len(v.Errs) < maxErrs {
					v.Errs = append(v.Errs, s.Errs[c])
				}
				continue
			}
			if s.Plain[c] == nil {
				continue
			}
			known, err := repo.Hashes(ctx, ch)
			if err != nil {
				return err
			}
			for i, h := range known {
				if repo.BlockHash(s.Plain[c][i*block.Size:(i+1)*block.Size]) != h {
					return fmt.Errorf("chunk %s: block %d is not what its hash says: %w", ch.ID, i, ErrDamaged)
				}
			}
		}
		return r.region(ctx, s)
	})
	done := r.report()
	v.Bytes, v.Lost = done.WrittenBytes, done.Lost
	if err != nil {
		if errors.Is(err, ErrDamaged) {
			// Of the map itself: what lies under the node cannot even be named more closely.
			v.Errs = append(v.Errs, err)
			return v, nil
		}
		return v, fmt.Errorf("verify backup %s: %w", b.ID, err)
	}
	return v, nil
}

// nullDevice takes everything and keeps nothing.
type nullDevice struct{ size int64 }

func (d *nullDevice) SizeBytes() int64                            { return d.size }
func (d *nullDevice) ReadAt(context.Context, []byte, int64) error { return block.ErrClosed }
func (d *nullDevice) Submit(context.Context, []*block.Op)         {}
func (d *nullDevice) Flush(context.Context) error                 { return nil }
func (d *nullDevice) Close() error                                { return nil }
func (d *nullDevice) Extents(_ context.Context, off, length int64, _ int) ([]block.Extent, error) {
	return []block.Extent{{Offset: off, Length: length, Hole: true, Zero: true}}, nil
}
