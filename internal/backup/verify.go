package backup

import (
	"context"
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
// every block with its hash too. What is lost is in the result; an error is of the store.
func Verify(ctx context.Context, repo *repository.Repo, b repository.Backup, progress Progress) (Verified, error) {
	var v Verified
	null := &nullDevice{size: b.SizeBytes}
	pin, err := repo.Pin(ctx, b.ID)
	if err != nil {
		return v, err
	}
	defer pin.Release()
	r := &restorer{repo: repo, b: b, target: null, o: RestoreOptions{Fresh: true, SkipDamaged: true, Progress: progress}, pin: pin, regionBytes: int64(repo.ChunkBytes()), per: repo.Geometry().BlocksPerRegion}
	tree := repo.Tree(b.Root)
	whole, lost, errs, err := around(ctx, repo, tree, b)
	if err != nil {
		return v, fmt.Errorf("verify backup %s: %w", b.ID, err)
	}
	r.lost, v.Errs = lost, errs[:min(len(errs), maxErrs)]
	visit := func(s *repository.Scanned) error {
		for c, ch := range s.Region.Chunks {
			if s.Errs[c] != nil {
				v.note(s.Errs[c])
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
					v.note(fmt.Errorf("chunk %s: block %d is not what its hash says: %w", ch.ID, i, ErrDamaged))
					break
				}
			}
		}
		return r.region(ctx, s)
	}
	for _, s := range whole {
		if err := repo.Scan(ctx, tree, s.from, s.to, nil, 1, visit); err != nil {
			return v, fmt.Errorf("verify backup %s: %w", b.ID, err)
		}
	}
	done := r.report()
	v.Bytes, v.Lost = done.WrittenBytes, done.Lost
	return v, nil
}

func (v *Verified) note(err error) {
	if len(v.Errs) < maxErrs {
		v.Errs = append(v.Errs, err)
	}
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
