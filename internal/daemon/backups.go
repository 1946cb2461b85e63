package daemon

import (
	"context"
	"fmt"
	"slices"
	"time"

	"varve/internal/contract"
	"varve/internal/pool"
)

// chosen are the repositories that a request may mean: the named one, or all.
func (rs *repositories) chosen(name string) ([]*knownRepository, error) {
	if name == "" {
		return rs.all(), nil
	}
	k, err := rs.named(name)
	return []*knownRepository{k}, err
}

// Backups lists the backups of a repository and of a volume, by its name or UUID; empty: of all. Without a repository being named, those that cannot be
// used now are left out: status names them.
func (d *Daemon) Backups(ctx context.Context, repo, volume string) ([]contract.Backup, error) {
	known, err := d.repositories.chosen(repo)
	if err != nil {
		return nil, err
	}
	found, failed := make([][]contract.Backup, len(known)), make([]error, len(known))
	atOnce(known, func(i int, k *knownRepository) {
		ctx, cancel := ctx, func() {}
		if repo == "" {
			ctx, cancel = context.WithTimeout(ctx, listPatience)
		}
		defer cancel()
		u, err := d.repositories.use(ctx, k)
		if err == nil {
			found[i], _, err = u.Backups(ctx, volume)
			u.done()
		}
		failed[i] = err
	})
	out := []contract.Backup{}
	for i := range known {
		if repo != "" && failed[i] != nil {
			return nil, failed[i]
		}
		out = append(out, found[i]...)
	}
	return out, nil
}

// Backup describes one, by its id or the beginning of it; repo may be empty.
func (d *Daemon) Backup(ctx context.Context, repo, id string) (contract.Backup, error) {
	u, b, err := d.find(ctx, repo, id, anyOf, d.repositories.use)
	if err != nil {
		return contract.Backup{}, err
	}
	defer u.done()
	return u.Backup(ctx, b.ID)
}

// DeleteBackups deletes all of them or none, as far as they can be found; others are not harmed.
func (d *Daemon) DeleteBackups(ctx context.Context, r contract.DeleteBackups) error {
	byRepository, err := d.findAll(ctx, r.Repo, r.Backups, theOnly)
	if err != nil {
		return err
	}
	defer byRepository.done()
	for _, f := range d.filling() {
		for _, one := range byRepository {
			if f.base.repository == one.u.id && slices.Contains(one.ids, f.base.backup) {
				return contract.Errorf(contract.CodeRefused, "delete backup %s: volume %q is being filled from it", f.base.backup, f.volume).
					WithHint("wait for that: varve job list; or delete the volume")
			}
		}
	}
	for _, one := range byRepository {
		deleted, err := one.u.Delete(ctx, one.ids)
		for _, b := range deleted {
			d.note("backup-deleted", b.Volume, "backup %s is deleted from %s", b.ID, one.u.Name())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// BackupDiff is what differs in two backups.
type BackupDiff struct {
	u            *use
	older, newer string
}

// OpenBackupDiff finds two backups in one repository. It is to be closed.
func (d *Daemon) OpenBackupDiff(ctx context.Context, repo, older, newer string) (*BackupDiff, error) {
	u, a, err := d.find(ctx, repo, older, anyOf, d.repositories.use)
	if err != nil {
		return nil, err
	}
	b, err := u.Repo().Backup(ctx, newer)
	if err != nil {
		u.done()
		return nil, err
	}
	return &BackupDiff{u, a.ID, b.ID}, nil
}

// Each visits the extents of the newer backup whose content is not that of the older one, in ascending order.
func (b *BackupDiff) Each(ctx context.Context, visit func(offset, length int64) error) error {
	return b.u.Diff(ctx, b.older, b.newer, func(e contract.Extent) error { return visit(e.Offset, e.Length) })
}

// Close lets go of the repository.
func (b *BackupDiff) Close() { b.u.done() }

const (
	// pointsKept is how long what a repository was found to have is taken to be so.
	pointsKept = 5 * time.Minute
	// pointsPatience is how long status waits for repositories that have not been asked yet.
	pointsPatience = time.Second
)

// notBackedUp counts the snapshots older than a week of which no known repository has a backup, as far as they can be asked.
func (d *Daemon) notBackedUp() (n int) {
	before := d.now().Add(-oldSnapshot)
	if d.pool.SnapshotsBefore(before) == 0 {
		return 0
	}
	snapshots, err := d.pool.Snapshots("")
	if err != nil {
		return 0
	}
	points := d.backedUpPoints()
	for _, s := range snapshots {
		if s.CreatedAt.Before(before) && !points[s.ID.String()] {
			n++
		}
	}
	return n
}

// backedUpPoints are the ids of snapshots that repositories have backups of.
func (d *Daemon) backedUpPoints() map[string]bool {
	rs := d.repositories
	d.lookAgain(rs.all(), func(k *knownRepository) bool { return k.points == nil || time.Since(k.looked) > pointsKept })
	out := map[string]bool{}
	rs.mu.Lock()
	defer rs.mu.Unlock()
	for _, k := range rs.list {
		for id := range k.points {
			out[id] = true
		}
	}
	return out
}

// lookAgain has those repositories asked what they have of which that is due, and waits for the answers for a moment.
func (d *Daemon) lookAgain(known []*knownRepository, due func(*knownRepository) bool) {
	rs := d.repositories
	var answers []chan struct{}
	rs.mu.Lock()
	for _, k := range known {
		if !due(k) || rs.closed {
			continue
		}
		if k.looking == nil {
			answer := make(chan struct{})
			k.looking = answer
			d.background.Go(func() {
				defer close(answer)
				d.look(k)
			})
		}
		answers = append(answers, k.looking)
	}
	rs.mu.Unlock()
	patience := time.NewTimer(pointsPatience)
	defer patience.Stop()
	for _, answer := range answers {
		select {
		case <-answer:
		case <-patience.C:
			return
		}
	}
}

// look asks a repository what it has.
func (d *Daemon) look(k *knownRepository) {
	ctx, cancel := context.WithTimeout(d.running, listPatience)
	defer cancel()
	points, err := d.pointsIn(ctx, k)
	rs := d.repositories
	rs.mu.Lock()
	defer rs.mu.Unlock()
	k.looking = nil
	if err == nil {
		k.points, k.looked = points, time.Now()
	}
}

func (d *Daemon) pointsIn(ctx context.Context, k *knownRepository) (map[string]bool, error) {
	u, err := d.repositories.use(ctx, k)
	if err != nil {
		return nil, err
	}
	defer u.done()
	all, _, err := u.Repo().Backups(ctx)
	points := map[string]bool{}
	for _, b := range all {
		points[b.PointID.String()] = true
	}
	return points, err
}

// backupPrefix begins the names of exports that are backups.
const backupPrefix = "backup/"

// snapshotByID finds a snapshot whatever it and its volume are called now.
func (d *Daemon) snapshotByID(id string) (pool.SnapshotInfo, error) {
	snapshots, err := d.pool.Snapshots("")
	if err != nil {
		return pool.SnapshotInfo{}, err
	}
	for _, s := range snapshots {
		if s.ID.String() == id {
			return s, nil
		}
	}
	return pool.SnapshotInfo{}, fmt.Errorf("snapshot %s: %w", id, pool.ErrNotFound)
}
