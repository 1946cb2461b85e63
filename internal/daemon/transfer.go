package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"varve/internal/block"
	"varve/internal/contract"
	"varve/internal/image"
	"varve/internal/pool"
)

// temporaryLabel marks snapshots that a job made for its own use. Those found
// when the daemon starts belong to nobody and are deleted.
const temporaryLabel = "varve.temporary"

// pausing is a device whose reads wait while the job is paused.
type pausing struct {
	block.Device
	j *job
}

// ReadAt implements block.Device.
func (p pausing) ReadAt(ctx context.Context, b []byte, off int64) error {
	if err := p.j.pause(ctx); err != nil {
		return err
	}
	return p.Device.ReadAt(ctx, b, off)
}

// fraction turns bytes done of a total into what a job reports.
func (j *job) fraction(done, total int64) { j.progress(float64(done) / float64(max(total, 1))) }

// StartImport starts a job that makes a volume from an image file. The file is
// opened and the name taken before it returns; the volume is seen once it is complete.
func (d *Daemon) StartImport(r contract.Import) (contract.Job, error) {
	if r.Snapshot != "" {
		return d.startImportOf(r)
	}
	if !filepath.IsAbs(r.File) {
		return contract.Job{}, contract.Errorf(contract.CodeUsage, "import %s: the path is not absolute", r.File)
	}
	if name := d.volumeIn(r.File); name != "" {
		return contract.Job{}, contract.Errorf(contract.CodeRefused, "create volume %s from %s: volume %q lies in it, and may be written to meanwhile", r.Name, r.File, name).
			WithHint("clone a snapshot of it: varve snapshot create %s --name SNAP, varve volume create %s --from %s@SNAP", name, r.Name, name)
	}
	source, info, err := image.Open(r.File, r.Format)
	if err != nil {
		return contract.Job{}, fmt.Errorf("create volume %s: %w", r.Name, err)
	}
	return d.importFrom(r, r.File, source, info.Warnings)
}

// startImportOf is StartImport from a snapshot, whose content is copied.
func (d *Daemon) startImportOf(r contract.Import) (contract.Job, error) {
	if r.File != "" || r.Format != "" {
		return contract.Job{}, contract.Errorf(contract.CodeUsage, "create volume %s: from a file or from a snapshot", r.Name)
	}
	ref, err := parseRef(r.Snapshot)
	if err != nil {
		return contract.Job{}, err
	}
	source, err := d.pool.OpenSnapshot(ref)
	if err != nil {
		return contract.Job{}, hinted(err, pool.ErrNotFound, "list snapshots: varve snapshot list")
	}
	return d.importFrom(r, r.Snapshot, source, nil)
}

// importFrom copies a device into a new volume; it closes the device.
func (d *Daemon) importFrom(r contract.Import, from string, source block.Device, warnings []string) (contract.Job, error) {
	size := r.Size
	if size == 0 {
		size = max(source.SizeBytes(), pool.MinVolumeBytes)
	}
	if size < source.SizeBytes() {
		source.Close()
		return contract.Job{}, contract.Errorf(contract.CodeUsage,
			"create volume %s: size %d is smaller than the image's %d bytes", r.Name, size, source.SizeBytes()).
			WithHint("leave the size out to take the image's")
	}
	spec := pool.VolumeSpec{Name: r.Name, SizeBytes: size, Labels: r.Labels, Incomplete: true}
	if _, err := d.pool.CreateVolume(context.Background(), spec); err != nil {
		source.Close()
		return contract.Job{}, err
	}
	undo := func() {
		if err := d.pool.DeleteIncomplete(context.Background(), r.Name); err != nil {
			d.note("import", r.Name, "what the import made cannot be removed before the next start: %v", err)
		}
	}
	job, err := d.jobs.start(contract.JobImport, r.Name, true, func(ctx context.Context, j *job) (*contract.Result, error) {
		defer source.Close()
		if err := d.fill(ctx, j, r.Name, source); err != nil {
			undo()
			return nil, fmt.Errorf("create volume %s from %s: %w", r.Name, from, err)
		}
		v, err := d.Volume(context.WithoutCancel(ctx), r.Name)
		if err != nil {
			return nil, err
		}
		return &contract.Result{Volume: &v, Warnings: warnings}, nil
	})
	if err != nil {
		source.Close()
		undo()
	}
	return job, err
}

// fill copies source into an incomplete volume and completes it.
func (d *Daemon) fill(ctx context.Context, j *job, name string, source block.Device) error {
	if err := j.pause(ctx); err != nil {
		return err
	}
	volume, err := d.pool.OpenIncomplete(name)
	if err != nil {
		return err
	}
	err = image.CopyToEmpty(ctx, volume, pausing{source, j}, j.fraction)
	if closed := volume.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return err
	}
	return d.pool.CompleteVolume(ctx, name)
}

// StartExport starts a job that writes a snapshot, or a volume as it is when
// the job begins to run, to an image file. The file appears whole or not at all.
func (d *Daemon) StartExport(r contract.ExportFile) (contract.Job, error) {
	if !filepath.IsAbs(r.File) {
		return contract.Job{}, contract.Errorf(contract.CodeUsage, "export to %s: the path is not absolute", r.File)
	}
	if info, err := os.Stat(r.File); err == nil && !info.IsDir() && !r.Force {
		return contract.Job{}, fmt.Errorf("export to %s: %w", r.File, fs.ErrExist)
	}
	if user := d.pool.UsedBy(r.File); user != "" {
		return contract.Job{}, contract.Errorf(contract.CodeRefused, "export to %s: %s has it", r.File, user).WithHint("name another file")
	}
	volume, snapshot, isSnapshot := contract.ParseRef(r.Source)
	if isSnapshot {
		if _, err := d.snapshotInfo(pool.SnapshotRef{Volume: volume, Name: snapshot}); err != nil {
			return contract.Job{}, err
		}
	} else if _, err := d.pool.Volume(r.Source); err != nil {
		return contract.Job{}, hinted(err, pool.ErrNotFound, "list volumes: varve volume list")
	}
	return d.jobs.start(contract.JobExport, r.Source, true, func(ctx context.Context, j *job) (*contract.Result, error) {
		if err := j.pause(ctx); err != nil {
			return nil, err
		}
		ref := pool.SnapshotRef{Volume: volume, Name: snapshot}
		if !isSnapshot {
			// Clients go on writing while the copy is made: it is one of a frozen instant.
			var err error
			if ref, err = d.temporarySnapshot(ctx, r.Source, j.view.ID); err != nil {
				return nil, err
			}
			defer d.dropTemporary(ref)
		}
		export, err := d.export(ctx, j, ref, r)
		if err != nil {
			return nil, fmt.Errorf("export %s to %s: %w", r.Source, r.File, err)
		}
		return &contract.Result{Export: export}, nil
	})
}

func (d *Daemon) export(ctx context.Context, j *job, ref pool.SnapshotRef, r contract.ExportFile) (*contract.Export, error) {
	info, err := d.pool.Snapshot(ref)
	if err != nil {
		return nil, err
	}
	source, err := d.pool.OpenSnapshot(ref)
	if err != nil {
		return nil, err
	}
	defer source.Close()
	err = image.Export(ctx, r.File, r.Format, pausing{source, j}, image.ExportOptions{Replace: r.Force, Progress: j.fraction})
	if err != nil {
		return nil, err
	}
	return &contract.Export{
		Source: r.Source, File: r.File, Format: r.Format, Size: info.SizeBytes, DataBytes: info.MappedBytes,
	}, nil
}

func (d *Daemon) temporarySnapshot(ctx context.Context, volume, job string) (pool.SnapshotRef, error) {
	ref := pool.SnapshotRef{Volume: volume, Name: "auto-export-" + job}
	_, _, err := d.pool.CreateSnapshot(ctx, []string{volume}, pool.SnapshotSpec{
		Name: ref.Name, Labels: map[string]string{temporaryLabel: "export"},
	})
	return ref, err
}

func (d *Daemon) dropTemporary(ref pool.SnapshotRef) {
	err := d.pool.DeleteSnapshots(context.Background(), []pool.SnapshotRef{ref})
	if err != nil && !errors.Is(err, pool.ErrNotFound) {
		d.note("leftover", ref.String(), "a temporary snapshot cannot be deleted: %v", err)
	}
}

// dropLeftovers deletes the temporary snapshots of a daemon that was killed.
func (d *Daemon) dropLeftovers() error {
	infos, err := d.pool.Snapshots("")
	if err != nil {
		return err
	}
	for _, info := range infos {
		if info.Labels[forRepository] != "" && stays(info, d.now()) {
			continue // of a full that was cut short: the next one takes it
		}
		if info.Labels[temporaryLabel] != "" {
			d.dropTemporary(pool.SnapshotRef{Volume: info.Volume, Name: info.Name})
		}
	}
	return nil
}
