package depot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"varve/internal/backup"
	"varve/internal/block"
	"varve/internal/contract"
	"varve/internal/image"
	"varve/internal/objects/open"
	"varve/internal/repository"
	"varve/internal/vfs"
)

// RestoreTo brings a backup into a device of the caller's. fresh tells that it reads as zeros; else what it holds is compared, and only what differs is
// fetched and written. With SkipDamaged the error, with the code of damage, says so if something is lost; then the result tells what.
func (d *Depot) RestoreTo(ctx context.Context, r contract.RestoreBackup, target block.Device, name string, fresh bool, progress Progress) (contract.BackupRestore, error) {
	b, err := d.repo.Backup(ctx, r.Backup)
	if err != nil {
		return contract.BackupRestore{}, err
	}
	out, err := d.restore(ctx, b, r, target, fresh, progress)
	out.Target = name
	if err != nil {
		return out, fmt.Errorf("%s: %w", name, err)
	}
	return out, lostError(out)
}

// restore fills in all of the result but where it went.
func (d *Depot) restore(ctx context.Context, b repository.Listed, r contract.RestoreBackup, target block.Device, fresh bool, progress Progress) (out contract.BackupRestore, err error) {
	began, before := time.Now(), d.repo.Counts()
	if out.Backup, err = d.describe(ctx, b); err != nil {
		return out, err
	}
	got, err := backup.Restore(ctx, d.repo, b.Backup, target, backup.RestoreOptions{Fresh: fresh, SkipDamaged: r.SkipDamaged, Progress: monotone(progress)})
	out.Size, out.WrittenBytes, out.ZeroedBytes, out.SameBytes = b.SizeBytes, got.WrittenBytes, got.ZeroedBytes, got.SameBytes
	out.Lost, out.Seconds, out.Requests = extents(got.Lost), seconds(began), d.repo.Counts().Minus(before).Requests()
	return out, err
}

// lostError says that a restore went around damage.
func lostError(r contract.BackupRestore) error {
	var lost int64
	for _, e := range r.Lost {
		lost += e.Length
	}
	if lost == 0 {
		return nil
	}
	return contract.Errorf(contract.CodeDamaged, "backup %s was restored to %s but for %d bytes in %d ranges, which are zeros now", r.Backup.ID, r.Target, lost, len(r.Lost))
}

// RestoreFile brings a backup into a file or a block device, as r.ToFile says. A file appears when it is complete and durable; one that
// exists, or a device, needs r.Force. If it is cut short, another one of the same backup to the same place goes on.
func (d *Depot) RestoreFile(ctx context.Context, r contract.RestoreBackup, progress Progress) (contract.BackupRestore, error) {
	b, err := d.repo.Backup(ctx, r.Backup)
	if err != nil {
		return contract.BackupRestore{}, err
	}
	if !filepath.IsAbs(r.ToFile) {
		return contract.BackupRestore{}, contract.Errorf(contract.CodeUsage, "restore to %q: the path is not absolute", r.ToFile)
	}
	if l, err := open.Parse(d.repo.URL()); err == nil && l.Dir != "" && vfs.Within(vfs.Resolved(l.Dir), vfs.Resolved(r.ToFile)) {
		return contract.BackupRestore{}, contract.Errorf(contract.CodeRefused, "restore to %s: it lies in the repository", r.ToFile).WithHint("name a file elsewhere")
	}
	info, err := os.Stat(r.ToFile)
	onDevice := err == nil && info.Mode()&fs.ModeDevice != 0 && info.Mode()&fs.ModeCharDevice == 0
	var out contract.BackupRestore
	switch {
	case r.Format != "" && r.Format != image.Raw && r.Format != image.Qcow2:
		return out, contract.Errorf(contract.CodeUsage, "restore to %s: format %q: it is raw or qcow2", r.ToFile, r.Format)
	case onDevice && r.Format == image.Qcow2:
		return out, contract.Errorf(contract.CodeUsage, "restore to %s: a block device is raw", r.ToFile)
	case onDevice:
		out, err = d.restoreDevice(ctx, b, r, progress)
	default:
		out, err = d.restoreFile(ctx, b, r, progress)
	}
	out.Target, out.Format = r.ToFile, r.Format
	if out.Format == "" {
		out.Format = image.Raw
	}
	if err != nil {
		return out, err
	}
	return out, lostError(out)
}

func (d *Depot) restoreDevice(ctx context.Context, b repository.Listed, r contract.RestoreBackup, progress Progress) (contract.BackupRestore, error) {
	if !r.Force {
		return contract.BackupRestore{}, contract.Errorf(contract.CodeRefused, "restore to %s: it is a block device, and all that it holds would be lost", r.ToFile).
			WithHint("if that is meant: --force")
	}
	unlock, err := claim(r.ToFile)
	if err != nil {
		return contract.BackupRestore{}, err
	}
	defer unlock()
	f, err := vfs.OS().OpenDisk(r.ToFile, true)
	if err != nil {
		return contract.BackupRestore{}, fmt.Errorf("restore to %s: %w", r.ToFile, err)
	}
	target := &disk{f: f, name: r.ToFile}
	defer target.Close()
	if target.size, err = f.Size(); err != nil {
		return contract.BackupRestore{}, fmt.Errorf("restore to %s: %w", r.ToFile, err)
	}
	out, err := d.restoreDisk(ctx, b, r, target, false, progress)
	if err != nil {
		return out, fmt.Errorf("%s: %w", r.ToFile, err)
	}
	return out, nil
}

// restoreDisk restores to a disk, of which what is compared comes from the medium: what the kernel has failed to write it may go on
// showing, as if it were there.
func (d *Depot) restoreDisk(ctx context.Context, b repository.Listed, r contract.RestoreBackup, target *disk, fresh bool, progress Progress) (contract.BackupRestore, error) {
	if !fresh {
		_ = target.f.Sync() // what cannot be written will be found to differ
		if err := target.f.DropCache(); err != nil {
			return contract.BackupRestore{}, err
		}
	}
	return d.restore(ctx, b, r, target, fresh, progress)
}

// restoreFile restores to a raw part. A qcow2 file is made from that, so that it can go on too; while it is made, both are there.
func (d *Depot) restoreFile(ctx context.Context, b repository.Listed, r contract.RestoreBackup, progress Progress) (out contract.BackupRestore, err error) {
	p, err := openPart(r.ToFile, b.Backup, r.Force)
	if err != nil {
		return out, err
	}
	defer p.close()
	qcow2 := r.Format == image.Qcow2
	fetching, need := progress, b.MappedBytes
	if qcow2 {
		fetching, need = part2(progress, 0), 2*b.MappedBytes
	}
	if err := p.room(need); err != nil {
		p.remove = p.fresh
		return out, err
	}
	out, err = d.restoreDisk(ctx, b, r, &p.disk, p.fresh, fetching)
	if err != nil {
		p.remove = p.fresh && out.WrittenBytes == 0
		return out, p.goesOn(fmt.Errorf("%s: %w", r.ToFile, err))
	}
	if !qcow2 {
		return out, p.commit(r.Force)
	}
	unlock, err := claim(p.path)
	if err != nil {
		return out, p.goesOn(err)
	}
	defer unlock()
	err = image.Export(ctx, p.path, image.Qcow2, p, image.ExportOptions{Replace: r.Force, Progress: monotone(part2(progress, 1))})
	if err != nil {
		return out, p.goesOn(err)
	}
	p.remove = true
	return out, nil
}

// goesOn says that what was done is kept.
func (p *part) goesOn(err error) error {
	if p.remove {
		return err
	}
	told := Explain(err)
	if told == nil {
		told = contract.Errorf(contract.CodeFailed, "%s", err)
	}
	if errors.Is(err, context.Canceled) {
		told.Message = "interrupted: " + err.Error()
	}
	hint := fmt.Sprintf("what was restored is kept in %s: the same command goes on with it", p.name)
	if told.Hint != "" {
		hint = told.Hint + "; " + hint
	}
	return &contract.Error{Code: told.Code, Message: told.Message, Hint: hint}
}

// room looks, before anything is written, whether the file system has the room for so many bytes, of which the part may have some.
func (p *part) room(bytes int64) error {
	info, err := os.Stat(p.name)
	if err != nil {
		return fmt.Errorf("restore to %s: %w", p.path, err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	total, free, err := vfs.OS().Space(filepath.Dir(p.path))
	if err != nil || total == 0 { // some file systems do not tell
		return nil // it will be found out
	}
	if need := bytes - st.Blocks*512; need > free {
		return contract.Errorf(contract.CodeRefused, "restore to %s: it needs %d bytes, and its file system has %d left", p.path, need, free).
			WithHint("nothing was written; make room, or name a file elsewhere")
	}
	return nil
}

// part2 is the progress of one of two halves.
func part2(p Progress, half int64) Progress {
	if p == nil {
		return nil
	}
	return func(done, total int64) { p(half*total+done, 2*total) }
}
