package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"varve/internal/contract"
	"varve/internal/pool"
)

// Volumes lists all volumes by name, with what each holds.
func (d *Daemon) Volumes(ctx context.Context) ([]contract.Volume, error) {
	infos := d.pool.Volumes()
	out := make([]contract.Volume, 0, len(infos))
	for _, info := range infos {
		v, err := d.volume(ctx, info)
		if isGone(err) {
			continue // deleted since the list was made
		}
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

func (d *Daemon) volumeInfo(name string) (pool.VolumeInfo, error) {
	info, err := d.pool.Volume(name)
	return info, hinted(err, pool.ErrNotFound, "list volumes: varve volume list")
}

// Volume describes one volume. pool.ErrNotFound.
func (d *Daemon) Volume(ctx context.Context, name string) (contract.Volume, error) {
	info, err := d.volumeInfo(name)
	if err != nil {
		return contract.Volume{}, err
	}
	v, err := d.volume(ctx, info)
	if err != nil {
		return v, err
	}
	total, err := d.pool.VolumeTotal(ctx, name)
	if err == nil && total >= 0 {
		v.TotalBytes = &total
	}
	return v, err
}

func (d *Daemon) volume(ctx context.Context, info pool.VolumeInfo) (contract.Volume, error) {
	usage, err := d.pool.VolumeUsage(ctx, info.Name)
	if err != nil {
		return contract.Volume{}, err
	}
	v := contract.Volume{
		ID: info.ID.String(), Name: info.Name, Size: info.SizeBytes, Layout: layout(info), Labels: labels(info.Labels),
		MappedBytes: usage.Mapped, ExclusiveBytes: usage.Exclusive, SharedBytes: usage.Shared,
		DependsOn: volumeNeeds(info), Snapshots: info.Snapshots, Bookmarks: info.Bookmarks, Parent: info.Parent, Origin: info.Origin,
		CreatedAt: contract.Time{Time: info.CreatedAt}, Clients: d.sessions.of(info.Name),
		Path: info.Path, ReadOnly: info.ReadOnly, Broken: info.Broken, Suspect: info.Suspect, CopyingBack: info.CopyingBack,
		Deleted: info.Deleted, MirroredTo: info.Leg,
	}
	if f := info.FilledFrom; f != nil {
		if base, err := parseBase(f.Ref); err == nil {
			v.FilledFrom = base.backup
		}
		v.FilledBytes = &f.FilledBytes
	}
	if info.Path != "" { // its blocks take room in the file, not in the pool
		v.MappedBytes, v.ExclusiveBytes, v.SharedBytes = info.MappedBytes, 0, 0
	}
	return v, nil
}

// labels is never nil, so that JSON has {} where there are none.
func labels(of map[string]string) map[string]string {
	out := map[string]string{}
	maps.Copy(out, of)
	return out
}

// CreateVolume makes an empty volume, in the pool or in a new file r.Inplace, or a clone of the snapshot r.From.
func (d *Daemon) CreateVolume(ctx context.Context, r contract.CreateVolume) (contract.Volume, error) {
	if r.Inplace != "" {
		return d.createInplace(ctx, r)
	}
	spec := pool.VolumeSpec{Name: r.Name, SizeBytes: r.Size, Labels: r.Labels}
	if r.From == "" {
		info, err := d.pool.CreateVolume(ctx, spec)
		if err != nil {
			return contract.Volume{}, err
		}
		return d.volume(ctx, info)
	}

	ref, err := parseRef(r.From)
	if err != nil {
		return contract.Volume{}, err
	}
	from, err := d.snapshotInfo(ref)
	if err != nil {
		return contract.Volume{}, err
	}
	if r.Size != 0 && r.Size < from.SizeBytes {
		return contract.Volume{}, contract.Errorf(contract.CodeUsage,
			"create volume %s from %s: size %d is smaller than the snapshot's %d bytes", r.Name, ref, r.Size, from.SizeBytes).
			WithHint("leave the size out to take the snapshot's")
	}
	spec.SizeBytes = 0
	info, took, err := d.pool.CloneVolume(ctx, ref, spec)
	if err != nil {
		return contract.Volume{}, err
	}
	if r.Size > from.SizeBytes {
		if err := d.pool.ResizeVolume(ctx, r.Name, r.Size, false); err != nil {
			return contract.Volume{}, errors.Join(err, d.pool.DeleteVolume(ctx, r.Name))
		}
	}
	v, err := d.Volume(ctx, info.Name)
	pause, durable := contract.Milliseconds(took.Pause), contract.Milliseconds(took.Durable)
	v.PauseMS, v.DurableMS = &pause, &durable
	return v, err
}

// ChangeVolume labels, resizes, then renames, as far as asked.
// With r.Force a volume may shrink; clients that have written to it are disconnected first.
func (d *Daemon) ChangeVolume(ctx context.Context, name string, r contract.ChangeVolume) (contract.Volume, error) {
	if len(r.Labels) > 0 {
		if err := d.pool.LabelVolume(ctx, name, r.Labels); err != nil {
			return contract.Volume{}, err
		}
	}
	if r.Size != nil {
		if err := d.resize(ctx, name, *r.Size, r.Force); err != nil {
			return contract.Volume{}, err
		}
	}
	if r.Name != "" && r.Name != name {
		if err := d.pool.RenameVolume(ctx, name, r.Name); err != nil {
			return contract.Volume{}, err
		}
		d.journal.renamedFile(name, r.Name)
		name = r.Name
	}
	return d.Volume(ctx, name)
}

func (d *Daemon) resize(ctx context.Context, name string, size int64, force bool) error {
	before, err := d.pool.Volume(name)
	if err != nil {
		return err
	}
	if size >= before.SizeBytes || before.Path != "" || before.Leg != "" { // that of a file is refused, and nobody is cut off for it
		return d.pool.ResizeVolume(ctx, name, size, false)
	}
	if force {
		d.sessions.disconnect(name, true, "the volume is shrunk")
	}
	return d.sessions.unlessInUse(ctx, func() error { return d.pool.ResizeVolume(ctx, name, size, force) }, name)
}

// DeleteVolume deletes a volume without snapshots; the file of an inplace one stays. Clients stand in the way unless force, which disconnects them.
func (d *Daemon) DeleteVolume(ctx context.Context, name string, force bool) error {
	if found, err := d.deleteBegun(name); found {
		return err
	}
	info, err := d.volumeInfo(name)
	if err != nil {
		return err
	}
	if info.Deleted {
		return contract.Errorf(contract.CodeRefused, "delete volume %q: it was deleted before, and is listed for its copies", name).
			WithHint("it goes with the last of them: varve snapshot list %s", name)
	}
	if info.Making > 0 {
		return contract.Errorf(contract.CodeRefused, "delete volume %q: %s of it is being copied", name, count(info.Making, "snapshot")).
			WithHint("wait for it, or cancel it: varve job list")
	}
	if err := d.unlessRollingBack(name, info.ID); err != nil {
		return err
	}
	if needing := info.Snapshots - info.Copies; needing > 0 {
		return contract.Errorf(contract.CodeRefused, "delete volume %q: it has %s", name, count(needing, "snapshot")+" that cannot be without it").
			WithHint("delete them first: varve snapshot list %s", name)
	}
	if err := d.detachable(info); err != nil {
		return err
	}
	if info.Leg != "" {
		return contract.Errorf(contract.CodeRefused, "delete volume %q: it is mirrored to %s", name, info.Leg).
			WithHint("detach that first; the file stays: varve mirror detach %s", name)
	}
	if force {
		d.sessions.disconnect(name, false, "the volume is deleted")
	}
	err = d.sessions.unlessInUse(ctx, func() error { return d.pool.DeleteVolume(ctx, name) }, name)
	if err == nil && info.Path != "" {
		d.journal.forgetFile(name)
	}
	return hinted(err, pool.ErrInUse, "see who is connected with varve status; to disconnect them: --force")
}

// count is "1 client" or "3 clients".
func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
