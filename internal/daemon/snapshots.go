package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"varve/internal/contract"
	"varve/internal/pool"
)

// maxKeepFor is the longest time to live of a snapshot that a time.Duration holds, in seconds.
const maxKeepFor = float64(1<<63-1) / float64(time.Second)

// timings remembers how the snapshots of this run of the daemon were made.
// It is bounded by the number of snapshots: a deleted one is forgotten.
type timings struct {
	mu sync.Mutex
	of map[string]timing // by snapshot id
}

type timing struct {
	steps          []contract.Step
	pause, durable float64 // ms
}

func (t *timings) set(id string, v timing) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.of[id] = v
}

func (t *timings) get(id string) (timing, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	v, ok := t.of[id]
	return v, ok
}

// ids are the snapshots that are remembered.
func (t *timings) ids() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Collect(maps.Keys(t.of))
}

func (t *timings) forget(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.of, id)
}

// parseRef reads VOLUME@NAME.
func parseRef(s string) (pool.SnapshotRef, error) {
	volume, name, ok := contract.ParseRef(s)
	if !ok {
		return pool.SnapshotRef{}, contract.Errorf(contract.CodeUsage, "%q is no snapshot", s).WithHint("a snapshot is VOLUME@NAME")
	}
	return pool.SnapshotRef{Volume: volume, Name: name}, nil
}

// isGone tells an error that means that there is no such thing, with or without a hint.
func isGone(err error) bool {
	var told *contract.Error
	return errors.Is(err, pool.ErrNotFound) || errors.As(err, &told) && told.Code == contract.CodeNotFound
}

// Snapshots lists the snapshots of a volume, of all volumes if its name is
// empty: parents before children, oldest first.
func (d *Daemon) Snapshots(ctx context.Context, volume string) ([]contract.Snapshot, error) {
	infos, err := d.pool.Snapshots(volume)
	if err != nil {
		return nil, hinted(err, pool.ErrNotFound, "list volumes: varve volume list")
	}
	out := make([]contract.Snapshot, 0, len(infos))
	for _, info := range infos {
		s, err := d.snapshot(ctx, info)
		if isGone(err) {
			continue // deleted since the list was made
		}
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}

// Snapshot describes one snapshot, VOLUME@NAME. pool.ErrNotFound.
func (d *Daemon) Snapshot(ctx context.Context, ref string) (contract.Snapshot, error) {
	r, err := parseRef(ref)
	if err != nil {
		return contract.Snapshot{}, err
	}
	info, err := d.snapshotInfo(r)
	if err != nil {
		return contract.Snapshot{}, err
	}
	return d.snapshot(ctx, info)
}

func (d *Daemon) snapshotInfo(ref pool.SnapshotRef) (pool.SnapshotInfo, error) {
	info, err := d.pool.Snapshot(ref)
	return info, hinted(err, pool.ErrNotFound, "list snapshots: varve snapshot list")
}

func (d *Daemon) snapshot(ctx context.Context, info pool.SnapshotInfo) (contract.Snapshot, error) {
	usage := pool.Usage{Mapped: info.MappedBytes}
	unseen := info.Copy != nil && !info.Copy.Finished && info.Copy.Technique != pool.CowCopy
	if !unseen && (!isCopy(info) || info.Copy.Path == "") { // a file takes nothing of the pool
		var err error
		if usage, err = d.pool.SnapshotUsage(ctx, pool.SnapshotRef{Volume: info.Volume, Name: info.Name}); err != nil {
			return contract.Snapshot{}, err
		}
	}
	s := contract.Snapshot{
		ID: info.ID.String(), Volume: info.Volume, VolumeID: info.VolumeID.String(), Name: info.Name,
		Size: info.SizeBytes, CreatedAt: contract.Time{Time: info.CreatedAt},
		Technique: techniqueOf(info), Class: "logical", Content: "incremental", Consistency: "crash", DependsOn: snapshotNeeds(info),
		OnFull: onFull(info), Suspect: info.Suspect,
		Protected: info.Protected, ExpiresAt: contract.At(info.ExpiresAt), Automatic: info.Automatic,
		Labels: labels(info.Labels), Parent: info.Parent, Head: info.Head, Clones: append([]string{}, info.Clones...),
		MappedBytes: usage.Mapped, ExclusiveBytes: usage.Exclusive, SharedBytes: usage.Shared,
		Steps: []contract.Step{},
	}
	if c := info.Copy; c != nil {
		s.File = c.Path
		if c.Finished {
			s.Class, s.Content = "physical", "full"
		} else {
			s.CopyJob = d.copiedBy(info.ID)
			copied := float64(c.DoneBytes) / float64(max(info.SizeBytes, 1))
			if job, err := d.Job(s.CopyJob); err == nil {
				copied = max(copied, job.Progress)
			}
			s.Copied = &copied
		}
	}
	if info.GroupID != uuid.Nil {
		s.GroupID = info.GroupID.String()
	}
	if t, ok := d.timings.get(s.ID); ok {
		s.Steps, s.PauseMS, s.DurableMS = t.steps, &t.pause, &t.durable
	}
	return s, nil
}

// CreateSnapshots freezes all volumes of r at one instant, all or none, and
// returns once that is durable.
func (d *Daemon) CreateSnapshots(ctx context.Context, r contract.CreateSnapshot) ([]contract.Snapshot, error) {
	began := time.Now()
	if r.KeepFor > maxKeepFor {
		return nil, contract.Errorf(contract.CodeUsage, "create snapshot %s: %g seconds is too long a time to keep it", r.Name, r.KeepFor)
	}
	if err := d.checkTechnique(r); err != nil {
		return nil, err
	}
	if _, own := r.Labels[temporaryLabel]; own {
		return nil, contract.Errorf(contract.CodeUsage, "create snapshot %s: what has the label %s is deleted when the daemon starts", r.Name, temporaryLabel)
	}
	spec := pool.SnapshotSpec{
		Name: r.Name, Labels: r.Labels, KeepFor: time.Duration(r.KeepFor * float64(time.Second)),
		DropWhenFull: r.OnFull == contract.OnFullDropSnapshot, Copy: copySpec(r),
	}
	initiated := time.Since(began)
	create := d.pool.CreateSnapshot
	if r.Technique == contract.TechniqueMirror {
		create = d.splitOff
	}
	infos, took, err := create(ctx, r.Volumes, spec)
	if err != nil {
		err = hinted(err, pool.ErrInUse, "name another file")
		err = hinted(err, fs.ErrExist, "name a file that does not exist yet; to replace it when the copy is whole: --force")
		return nil, hinted(err, pool.ErrNotFound, "list volumes: varve volume list")
	}
	d.snapshotsChanged()
	released := time.Since(began) - initiated - took.Durable
	for _, info := range infos {
		d.timings.set(info.ID.String(), timing{
			steps: []contract.Step{
				{Name: "initiated", MS: contract.Milliseconds(initiated)},
				{Name: "created", MS: contract.Milliseconds(took.Durable)},
				{Name: "released", MS: contract.Milliseconds(max(0, released))},
			},
			pause: contract.Milliseconds(took.Pause), durable: contract.Milliseconds(took.Durable),
		})
	}
	if spec.Copy != nil {
		if err := d.startCopies(ctx, infos); err != nil {
			return nil, err
		}
	}
	out := make([]contract.Snapshot, 0, len(infos))
	for _, info := range infos {
		s, err := d.snapshot(ctx, info)
		if err != nil {
			return nil, fmt.Errorf("the snapshot is made, but cannot be described: %w", err)
		}
		out = append(out, s)
	}
	return out, nil
}

// seeReaders says who stands in the way of deleting a snapshot or bookmark: who has it open, or has another export
// of the volume open and asked what changed since.
const seeReaders = "see who is connected to the volume or its snapshots: varve status"

// DeleteSnapshots deletes all of them or none. pool.ErrProtected, pool.ErrNotFound, pool.ErrInUse.
func (d *Daemon) DeleteSnapshots(ctx context.Context, names []string) error {
	refs, infos := make([]pool.SnapshotRef, 0, len(names)), make([]pool.SnapshotInfo, 0, len(names))
	ids, volumes := make([]string, 0, len(names)), make([]string, 0, len(names))
	protected := false
	for _, name := range names {
		ref, err := parseRef(name)
		if err != nil {
			return err
		}
		info, err := d.snapshotInfo(ref)
		if err != nil {
			return err
		}
		protected = protected || info.Protected
		refs, infos, ids, volumes = append(refs, ref), append(infos, info), append(ids, info.ID.String()), append(volumes, ref.Volume)
	}
	resume, err := func() {}, error(nil)
	if !protected { // which is refused
		resume, err = d.stopCopies(ctx, infos)
	}
	if err == nil {
		err = d.sessions.unlessInUse(ctx, func() error { return d.pool.DeleteSnapshots(ctx, refs) }, volumes...)
	}
	if err != nil {
		resume()
		return hinted(err, pool.ErrInUse, seeReaders)
	}
	for _, id := range ids {
		d.timings.forget(id)
	}
	d.snapshotsChanged()
	return nil
}

// ProtectSnapshot sets or lifts protection from deletion and expiry.
func (d *Daemon) ProtectSnapshot(ctx context.Context, name string, protected bool) (contract.Snapshot, error) {
	ref, err := parseRef(name)
	if err != nil {
		return contract.Snapshot{}, err
	}
	before, err := d.Snapshot(ctx, name)
	if err == nil {
		err = d.pool.ProtectSnapshot(ctx, ref, protected)
	}
	if err != nil {
		return contract.Snapshot{}, hinted(err, pool.ErrNotFound, "list snapshots: varve snapshot list")
	}
	d.snapshotsChanged()
	now, err := d.Snapshot(ctx, name)
	if isGone(err) { // its time was over
		before.Protected = protected
		return before, nil
	}
	return now, err
}
