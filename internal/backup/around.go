package backup

import (
	"context"
	"errors"

	"varve/internal/repository"
	"varve/internal/repository/maptree"
)

// stretch is a run of regions, [from, to).
type stretch struct{ from, to uint64 }

// around finds the stretches of a map that can be read, and what nodes that are lost have taken with them. Only the map is read.
func around(ctx context.Context, repo *repository.Repo, tree *maptree.Tree, b repository.Backup) (sound []stretch, lost []Range, errs []error, err error) {
	regions := repo.Regions(b.SizeBytes)
	size := int64(repo.ChunkBytes())
	for from := uint64(0); from < regions; {
		err := tree.Walk(ctx, from, regions, func(uint64, maptree.Region) error { return nil })
		var node *maptree.NodeError
		switch {
		case err == nil:
			return append(sound, stretch{from, regions}), lost, errs, nil
		case !errors.As(err, &node) || !repository.IsLost(err):
			return nil, nil, nil, err
		}
		first, end := max(node.First, from), min(node.First+node.Regions(), regions)
		if first > from {
			sound = append(sound, stretch{from, first})
		}
		off := int64(first) * size
		lost = append(lost, Range{off, min(int64(end)*size, b.SizeBytes) - off})
		errs = append(errs, err)
		from = end
	}
	return sound, lost, errs, nil
}
