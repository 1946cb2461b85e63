package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"

	"varve/internal/pool"
	"varve/internal/repository"
)

// What a volume held when it was backed up is kept as a bookmark: enough to tell what changed since. Its name says of which backup it is,
// in which repository:
//
//	backup-ID.REPOSITORY    the ids, in hexadecimal digits without dashes
//
// and the pool knows which snapshot it was made of. So all that has to agree for a backup to be the base of another is in one place, that
// changes at once, and goes and comes with the pool. A bookmark is made before the backup exists; of a volume and a repository two stay.

func bookmarkName(backup string, repo uuid.UUID) string {
	return "backup-" + backup + "." + strings.ReplaceAll(repo.String(), "-", "")
}

// bookmarkOf reads a bookmark's name; ok is false for those that users make.
func bookmarkOf(name string) (backup string, repo uuid.UUID, ok bool) {
	rest, ok := strings.CutPrefix(name, "backup-")
	backup, id, both := strings.Cut(rest, ".")
	repo, err := uuid.Parse(id)
	return backup, repo, ok && both && err == nil && repository.ValidID(backup) && bookmarkName(backup, repo) == name
}

// pointsOf are the points in time of a volume from which the pool can tell what changed since, by the ids of the snapshots that they are
// or were: bookmarks, and snapshots that are still there.
func (d *Daemon) pointsOf(volume uuid.UUID) (map[uuid.UUID]pool.PointRef, error) {
	info, found := d.volumeByID(volume)
	if !found {
		return nil, fmt.Errorf("volume %s: %w", volume, pool.ErrNotFound)
	}
	out := map[uuid.UUID]pool.PointRef{}
	snapshots, err := d.pool.Snapshots(info.Name)
	if err != nil {
		return nil, err
	}
	for _, s := range snapshots {
		if !isCopy(s) {
			out[s.ID] = pool.PointRef{Volume: s.Volume, Name: s.Name}
		}
	}
	bookmarks, err := d.pool.Bookmarks(info.Name)
	for _, b := range bookmarks {
		out[b.SnapshotID] = pool.PointRef{Volume: b.Volume, Name: b.Name, Bookmark: true}
	}
	return out, err
}

// inOrder sorts backups of volumes by when the pool was told of them: what their records say is by a clock that may have been set back
// since. Those that it has no bookmark of come first, in the order that they have.
func (d *Daemon) inOrder(volumes []uuid.UUID, all []repository.Listed) error {
	told := map[uuid.UUID]int{}
	for _, volume := range volumes {
		info, found := d.volumeByID(volume)
		if !found {
			return fmt.Errorf("volume %s: %w", volume, pool.ErrNotFound)
		}
		bookmarks, err := d.pool.Bookmarks(info.Name)
		if err != nil {
			return err
		}
		for i, b := range bookmarks {
			told[b.SnapshotID] = i + 1
		}
	}
	slices.SortStableFunc(all, func(a, b repository.Listed) int { return cmp.Compare(told[a.PointID], told[b.PointID]) })
	return nil
}

// pruneBookmarks leaves, of a volume and a repository, the bookmarks of the last backup and of the last full, of those that the repository
// has. all are its backups.
func (d *Daemon) pruneBookmarks(ctx context.Context, volume, repo uuid.UUID, all []repository.Listed) {
	info, found := d.volumeByID(volume)
	if !found {
		return
	}
	bookmarks, err := d.pool.Bookmarks(info.Name) // oldest first
	if err != nil {
		return // the volume has just been renamed or deleted; the next backup looks again
	}
	sound := map[string]repository.Listed{}
	for _, b := range all {
		if b.VolumeID == volume && !b.Doubtful {
			sound[b.ID] = b
		}
	}
	var last, full string
	for _, b := range bookmarks {
		id, of, ok := bookmarkOf(b.Name)
		its, is := sound[id]
		if !ok || of != repo || !is || its.PointID != b.SnapshotID {
			continue
		}
		last = id
		if its.Type == repository.Full {
			full = id
		}
	}
	for _, b := range bookmarks {
		if id, of, ok := bookmarkOf(b.Name); ok && of == repo && id != last && id != full {
			d.deleteBookmark(ctx, pool.BookmarkRef{Volume: b.Volume, Name: b.Name})
		}
	}
}

// deleteBookmark deletes one that is not needed. One that somebody compares with stays until the next backup.
func (d *Daemon) deleteBookmark(ctx context.Context, ref pool.BookmarkRef) {
	err := d.pool.DeleteBookmark(ctx, ref)
	if err != nil && !errors.Is(err, pool.ErrNotFound) && !errors.Is(err, pool.ErrInUse) {
		d.note("leftover", ref.String(), "a backup's bookmark cannot be deleted: %v", err)
	}
}
