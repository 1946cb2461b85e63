package backup

import (
	"bytes"
	"context"
	"testing"

	"github.com/google/uuid"

	"varve/internal/block"
	"varve/internal/objects/faulty"
	"varve/internal/repository"
)

// ranges are changes as a source tells them.
func ranges(r ...int64) Extents {
	return func(_ context.Context, visit func(off, length int64) error) error {
		for i := 0; i < len(r); i += 2 {
			if err := visit(r[i], r[i+1]); err != nil {
				return err
			}
		}
		return nil
	}
}

// Changes that say nothing of what changed are found out by a sample: then everything is compared, and the backup is right. So it is
// where they begin and end anywhere, and where unchanged blocks are stored with those that changed.
func TestBackupIsRightWhateverTheChangesSaid(t *testing.T) {
	repo := newRepo(t, faulty.New(), 64<<10)
	content := noise(1<<20 + 512)
	base := one(t, repo, content, nil, nil).Backups[0]

	// All is other than it was, and nobody said so.
	for i := range content {
		content[i]++
	}
	content = append(content, noise(1<<20)...)
	told := 0
	s := &Source{Device: filled(t, content), Volume: "v", VolumeID: uuid.UUID{1}, Name: "v", Type: repository.Incremental, Base: &base, Changes: ranges()}
	rec, err := Create(t.Context(), repo, []*Source{s}, Options{Mismatch: func(string, int64) { told++ }})
	if err != nil {
		t.Fatal(err)
	}
	if base = rec.Backups[0]; base.Mismatched != 1 || told != 1 {
		t.Errorf("%d blocks did not match, %d were told", base.Mismatched, told)
	}
	holds(t, repo, base.ID, content)

	// One block of a region is changed at a time: patches are merged, with blocks of which nothing was told.
	for i := range int64(14) {
		content[i*block.Size]++
		base = one(t, repo, content, &base, ranges(i*block.Size+100, 1)).Backups[0]
		if base.Mismatched > 0 {
			t.Errorf("round %d: %+v", i, base)
		}
		holds(t, repo, base.ID, content)
	}

	// Changes where there is no device any more, and to its end, over the edges of blocks and regions.
	content = bytes.Clone(content[:700<<10])
	content[64<<10-1]++
	content[64<<10]++
	content[len(content)-1]++
	base = one(t, repo, content, &base, ranges(0, 1, 64<<10-1, 2, 700<<10-1, 1<<40, 1<<41, 4096)).Backups[0]
	holds(t, repo, base.ID, content)
}
