package depot

import (
	"context"
	"slices"
	"time"

	"varve/internal/backup"
	"varve/internal/contract"
)

// Verify reads backups as a restore does. The error, with the code of damage, says so if something is lost; then the result tells what.
func (d *Depot) Verify(ctx context.Context, ids []string, progress Progress) ([]contract.BackupVerification, error) {
	found, err := d.find(ctx, ids, false)
	if err != nil {
		return nil, err
	}
	out := []contract.BackupVerification{}
	bad := 0
	for i, b := range found {
		began := time.Now()
		v, err := backup.Verify(ctx, d.repo, b.Backup, monotone(each(progress, i, len(found))))
		if err != nil {
			return out, err
		}
		view, err := d.describe(ctx, b)
		if err != nil {
			return out, err
		}
		r := contract.BackupVerification{Backup: view, Bytes: v.Bytes, Lost: extents(v.Lost), Messages: []string{}, Seconds: seconds(began)}
		for _, e := range v.Errs {
			r.Messages = append(r.Messages, e.Error())
		}
		slices.Sort(r.Messages)
		r.Messages = slices.Compact(r.Messages)
		r.Whole = len(r.Lost) == 1 && r.Lost[0].Length == b.SizeBytes
		if !r.OK() {
			bad++
			r.Backup.State = contract.BackupDamaged
		}
		out = append(out, r)
	}
	if bad > 0 {
		return out, contract.Errorf(contract.CodeDamaged, "%d of %d backups cannot be read wholly", bad, len(found)).
			WithHint("the next backup stores what is lost again if the source still has it: varve repo check, varve backup create; to restore what is left: --skip-damaged")
	}
	return out, nil
}

func extents(in []backup.Range) []contract.Extent {
	out := make([]contract.Extent, 0, len(in))
	for _, r := range in {
		out = append(out, contract.Extent{Offset: r.Offset, Length: r.Length})
	}
	return out
}
