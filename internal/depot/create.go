package depot

import (
	"context"
	"errors"
	"slices"

	"github.com/google/uuid"

	"varve/internal/backup"
	"varve/internal/contract"
	"varve/internal/foreign"
	"varve/internal/repository"
)

// attempts is how often a backup is tried whose base was deleted, or that was given up, just before it was committed.
const attempts = 3

// BackupForeign backs up what r.Foreign says. Warnings are what a user should know of the source.
func (d *Depot) BackupForeign(ctx context.Context, r contract.CreateBackup, progress Progress) (made contract.Backup, warnings []string, err error) {
	f := *r.Foreign
	if !validName(f.As) {
		return made, nil, contract.Errorf(contract.CodeUsage, "back up %s: %q is no name: letters a to z, digits, dots, dashes and underscores, 63 at most", f.Source, f.As).
			WithHint("say what it is called in the repository: --as NAME")
	}
	want, err := parseType(r.Type)
	if err != nil {
		return made, nil, err
	}
	since, err := d.since(ctx, f)
	if err != nil {
		return made, nil, err
	}
	src, err := foreign.Open(ctx, f)
	if err != nil {
		return made, nil, err
	}
	defer src.Close()
	for try := 1; ; try++ {
		rec, err := d.backupForeign(ctx, r, want, since, src, progress)
		if try < attempts && (errors.Is(err, repository.ErrBaseGone) || errors.Is(err, repository.ErrFenced)) {
			continue
		}
		if err != nil {
			return made, src.Warnings, err
		}
		all, _, err := d.repo.Backups(ctx)
		if err != nil {
			all = nil // it is made all the same
		}
		return d.Made(rec, all)[0], src.Warnings, nil
	}
}

func (d *Depot) backupForeign(ctx context.Context, r contract.CreateBackup, want backup.Want, since *repository.Listed, src *foreign.Source, progress Progress) (*repository.Record, error) {
	f := *r.Foreign
	all, _, err := d.repo.Backups(ctx)
	if err != nil {
		return nil, err
	}
	volume := d.foreignVolume(f.As, all)
	if since != nil && since.VolumeID != volume {
		return nil, contract.Errorf(contract.CodeUsage, "back up %s as %s: backup %s is of %s", f.Source, f.As, since.ID, since.Volume)
	}
	all = slices.DeleteFunc(all, func(b repository.Listed) bool { return b.VolumeID != volume })
	harmed, err := d.Harmed(ctx, all)
	if err != nil {
		return nil, err
	}
	choice := backup.Choose(want, volume, all, func(b repository.Listed) (string, bool) {
		if harmed[b.ID] {
			return "something is lost", false
		}
		if since != nil && b.ID != since.ID {
			return "the bitmap does not tell the changes", false
		}
		return "", true
	})
	s := &backup.Source{
		Device: src.Device, Volume: f.As, VolumeID: volume, Name: f.Source, PointAt: src.At, Consistency: src.Consistency,
		Labels: r.Labels, Type: choice.Type, Reason: choice.Reason,
	}
	if r.PolicyID != "" {
		if s.Policy, err = uuid.Parse(r.PolicyID); err != nil {
			return nil, contract.Errorf(contract.CodeUsage, "policy %q: %s", r.PolicyID, err)
		}
	}
	if choice.Base != nil {
		s.Base = &choice.Base.Backup
		if since != nil {
			s.Changes = src.Changes
			s.Reason += "; by bitmap " + f.Bitmap
		} else {
			s.Reason = "all is compared with backup " + s.Base.ID
			if want != backup.WantAuto {
				s.Reason = choice.Reason + "; " + s.Reason
			}
		}
	}
	return backup.Create(ctx, d.repo, []*backup.Source{s}, backup.Options{
		Program: d.program, LockUntil: lockUntil(r.LockDays), Progress: monotone(progress),
		BeforeCommit: func(*repository.Record) error { return src.Unchanged() },
	})
}

// since is the backup that a bitmap counts from; nil if there is no bitmap.
func (d *Depot) since(ctx context.Context, f contract.ForeignSource) (*repository.Listed, error) {
	if (f.Bitmap == "") != (f.Since == "") {
		return nil, contract.Errorf(contract.CodeUsage, "back up %s: a bitmap, and the id of the backup since which it tells the changes, go together", f.Source).
			WithHint("--bitmap NAME --since BACKUP-ID")
	}
	if f.Since == "" {
		return nil, nil
	}
	b, err := d.repo.Backup(ctx, f.Since)
	return &b, err
}

// foreignVolume is the UUID of what is backed up under a name: that which it has here already, also if it came from
// another repository, else one that follows from the repository and the name.
func (d *Depot) foreignVolume(name string, all []repository.Listed) uuid.UUID {
	id := uuid.NewSHA1(d.repo.ID(), []byte("varve foreign source "+name))
	for _, b := range all {
		if b.Volume == name && b.PointID == uuid.Nil {
			id = b.VolumeID
		}
	}
	return id
}

func parseType(s string) (backup.Want, error) {
	if s == "" {
		return backup.WantAuto, nil
	}
	want, err := backup.ParseWant(s)
	if err != nil {
		return want, contract.Errorf(contract.CodeUsage, "%s", err)
	}
	return want, nil
}

// maxNameBytes is that of names in the contract.
const maxNameBytes = 63

// validName tells whether s is [a-z0-9][a-z0-9._-]{0,62}.
func validName(s string) bool {
	for i, c := range s {
		letter := c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		if !letter && (i == 0 || c != '.' && c != '_' && c != '-') {
			return false
		}
	}
	return s != "" && len(s) <= maxNameBytes
}
