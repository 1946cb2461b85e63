package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"varve/internal/backup"
	"varve/internal/contract"
	"varve/internal/pool"
	"varve/internal/repository"
)

const (
	// forRepository is the label of a temporary snapshot that stays for a while if its backup, a full, is cut short: the next full of the same
	// volumes to this repository copies it, and finds almost all of it stored.
	forRepository = "varve.backup-to"
	// keptAbove is how much a full has to copy for that, in bytes, and keptFor for how long it stays.
	keptAbove = 1 << 30
	keptFor   = 24 * time.Hour
)

// errChooseAgain: what a base was chosen for is not there any more, or tells nothing.
var errChooseAgain = errors.New("choose again")

// choose decides on the types.
func (b *backupRun) choose(ctx context.Context) ([]backup.Choice, error) {
	repo := b.use.Repo()
	all, _, err := repo.Backups(ctx)
	if err != nil {
		return nil, err
	}
	volumes := b.volumes()
	all = slices.DeleteFunc(all, func(l repository.Listed) bool { return !slices.Contains(volumes, l.VolumeID) })
	if err := b.d.inOrder(volumes, all); err != nil {
		return nil, err
	}
	harmed, err := b.use.Harmed(ctx, all)
	if err != nil {
		return nil, err
	}
	points := make([]map[uuid.UUID]pool.PointRef, len(b.members))
	for i, m := range b.members {
		if points[i], err = b.d.pointsOf(m.volume); err != nil {
			return nil, err
		}
	}
	usable := func(i int, of repository.Listed) (string, bool) {
		m := b.members[i]
		if why, ok := m.unusable[of.ID]; ok {
			return why, false
		}
		if harmed[of.ID] {
			return "something is lost", false
		}
		if _, ok := points[i][of.PointID]; !ok || of.PointID == uuid.Nil {
			return "the bookmark is gone", false
		}
		return "", true
	}
	return backup.ChooseGroup(b.want, volumes, all, repo.Sets(), usable), nil
}

// freeze makes the snapshots that are copied, unless there are some already.
func (b *backupRun) freeze(ctx context.Context, choices []backup.Choice) error {
	if b.members[0].snapshot != uuid.Nil {
		return nil
	}
	fulls := !slices.ContainsFunc(choices, func(c backup.Choice) bool { return c.Type != repository.Full })
	if fulls && b.takeOver() {
		return nil
	}
	began := time.Now()
	var names []string
	var mapped int64
	for _, m := range b.members {
		info, found := b.d.volumeByID(m.volume)
		if !found {
			return fmt.Errorf("volume %q: %w", m.name, pool.ErrNotFound)
		}
		names = append(names, info.Name)
		mapped += info.MappedBytes
	}
	labels := map[string]string{temporaryLabel: "backup"}
	if b.keep = fulls && mapped > b.d.keptAbove; b.keep {
		labels[forRepository] = b.use.id.String()
	}
	// Writers of a volume in a file of its own matter more than a backup: if there is no room to keep what they overwrite, it goes.
	b.record = repository.NewID()
	spec := pool.SnapshotSpec{Name: "backup-" + b.record, Labels: labels, DropWhenFull: true}
	initiated := time.Since(began)
	infos, took, err := b.d.pool.CreateSnapshot(ctx, names, spec)
	if err != nil {
		return err
	}
	released := max(0, time.Since(began)-initiated-took.Durable)
	b.took = took
	b.steps = []repository.Step{{Name: "initiated", Took: initiated}, {Name: "created", Took: took.Durable}, {Name: "released", Took: released}}
	for _, info := range infos {
		for _, m := range b.members {
			if m.volume == info.VolumeID {
				m.snapshot = info.ID
			}
		}
	}
	return nil
}

// takeOver finds the snapshots that an earlier attempt has left.
func (b *backupRun) takeOver() bool {
	groups, err := b.d.keptSnapshots()
	if err != nil {
		return false
	}
	for _, g := range groups {
		if g[0].Labels[forRepository] != b.use.id.String() || len(g) != len(b.members) || !stays(g[0], b.d.now()) {
			continue
		}
		of := map[uuid.UUID]uuid.UUID{}
		for _, s := range g {
			of[s.VolumeID] = s.ID
		}
		if slices.ContainsFunc(b.members, func(m *backupMember) bool { return of[m.volume] == uuid.Nil }) {
			continue
		}
		for _, m := range b.members {
			m.snapshot = of[m.volume]
		}
		b.keep, b.reused = true, fmt.Sprintf("; of the snapshot of %s, whose backup was cut short", contract.Time{Time: g[0].CreatedAt})
		return true
	}
	return false
}

// stays tells whether the snapshot of a full that was cut short is of use still. One from tomorrow is of a clock that was wrong: it would stay for as
// long as that.
func stays(s pool.SnapshotInfo, now time.Time) bool { return now.Sub(s.CreatedAt).Abs() < keptFor }

// keptSnapshots are the snapshots that fulls to repositories are made of, or were, in groups of one instant, newest first.
func (d *Daemon) keptSnapshots() ([][]pool.SnapshotInfo, error) {
	infos, err := d.pool.Snapshots("")
	if err != nil {
		return nil, err
	}
	var out [][]pool.SnapshotInfo
	at := map[uuid.UUID]int{}
	for _, info := range slices.Backward(infos) {
		if info.Labels[temporaryLabel] == "" || info.Labels[forRepository] == "" {
			continue
		}
		i, ok := at[info.GroupID]
		if !ok {
			i = len(out)
			at[info.GroupID] = i
			out = append(out, nil)
		}
		out[i] = append(out[i], info)
	}
	return out, nil
}

// dropSnapshots deletes the run's own snapshots; those of a large full that was cut short stay for a day.
func (b *backupRun) dropSnapshots(ctx context.Context, done bool) {
	if !b.temporary || b.members[0].snapshot == uuid.Nil {
		return
	}
	if b.keep && !done && !errors.Is(context.Cause(ctx), errCancelled) {
		b.d.note("backup", b.job.view.Object, "the full was cut short; its snapshot stays for a day, and the next full of it to repository %s goes on with that", b.use.Name())
		return
	}
	ids := make([]uuid.UUID, len(b.members))
	for i, m := range b.members {
		ids[i] = m.snapshot
	}
	b.d.dropGroup(ids)
}

// dropGroup deletes temporary snapshots at once, whatever their volumes are called now, or those of them that are still there.
func (d *Daemon) dropGroup(ids []uuid.UUID) {
	var refs []pool.SnapshotRef
	for _, id := range ids {
		if info, err := d.snapshotByID(id.String()); err == nil {
			refs = append(refs, pool.SnapshotRef{Volume: info.Volume, Name: info.Name})
		}
	}
	if len(refs) == 0 || d.pool.DeleteSnapshots(context.Background(), refs) == nil {
		return
	}
	for _, ref := range refs {
		d.dropTemporary(ref)
	}
}

// dropKept deletes the snapshots of backups that were cut short when their time is over, unless somebody copies them.
func (d *Daemon) dropKept(now time.Time) {
	groups, err := d.keptSnapshots()
	if err != nil {
		return
	}
	for _, g := range groups {
		busy := func(s pool.SnapshotInfo) bool { return d.repositories.isBackedUp(s.VolumeID) }
		if stays(g[0], now) || slices.ContainsFunc(g, busy) {
			continue
		}
		ids := make([]uuid.UUID, len(g))
		for i, s := range g {
			ids[i] = s.ID
		}
		d.dropGroup(ids)
	}
}

// isBackedUp tells whether a job backs a volume up.
func (rs *repositories) isBackedUp(volume uuid.UUID) bool {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	return slices.ContainsFunc(rs.list, func(k *knownRepository) bool { return k.backing[volume.String()] != "" })
}

// sources opens what is copied. errChooseAgain, if what changed since a base cannot be told after all.
func (b *backupRun) sources(choices []backup.Choice) (out []*backup.Source, done func(), err error) {
	var opened []func()
	done = func() {
		for _, end := range opened {
			end()
		}
	}
	defer func() {
		if err != nil {
			done()
		}
	}()
	for i, m := range b.members {
		c := choices[i]
		info, err := b.d.snapshotByID(m.snapshot.String())
		if err != nil {
			return nil, nil, fmt.Errorf("back up %s: %w", m.name, err)
		}
		ref := pool.SnapshotRef{Volume: info.Volume, Name: info.Name}
		device, err := b.d.pool.OpenSnapshot(ref)
		if err != nil {
			return nil, nil, fmt.Errorf("back up %s: %w", m.name, err)
		}
		opened = append(opened, func() { device.Close() })
		s := &backup.Source{
			Device: device, Volume: info.Volume, VolumeID: info.VolumeID, Name: m.name, PointID: info.ID, PointAt: info.CreatedAt,
			Consistency: "crash", FreezeTime: b.took.Pause, Steps: b.steps, Policy: b.policy, Labels: b.request.Labels,
			Type: c.Type, Reason: c.Reason + b.reused,
		}
		out = append(out, s)
		if c.Base == nil {
			continue
		}
		diff, err := b.openDiff(m, c.Base.PointID, ref)
		if err != nil {
			m.unusable[c.Base.ID] = fmt.Sprintf("what changed since is not known (%v)", err)
			return nil, nil, errChooseAgain
		}
		opened = append(opened, diff.Close)
		s.Base, s.Changes = &c.Base.Backup, diff.Each
	}
	return out, done, nil
}

func (b *backupRun) openDiff(m *backupMember, base uuid.UUID, to pool.SnapshotRef) (*pool.Diff, error) {
	points, err := b.d.pointsOf(m.volume)
	if err != nil {
		return nil, err
	}
	from, ok := points[base]
	if !ok {
		return nil, errors.New("the bookmark is gone")
	}
	return b.d.pool.OpenDiff(from, pool.PointRef{Volume: to.Volume, Name: to.Name})
}
