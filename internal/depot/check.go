package depot

import (
	"context"
	"os"
	"time"

	"varve/internal/contract"
	"varve/internal/repository/check"
)

// Check looks for damage and mends what can be. The error, with the code of damage, says so if something is lost; then the result tells
// what. After any other the result tells what had been found.
func (d *Depot) Check(ctx context.Context, r contract.CheckRepository, progress Progress) (contract.RepositoryCheck, error) {
	began := time.Now()
	o := checkOptions(r, d.temporary, progress)
	if r.Sealed {
		report, err := check.Sealed(ctx, d.repo.Store(), o)
		return checked(d.name, true, report, began, err)
	}
	report, err := check.Run(ctx, d.repo, o)
	return checked(d.name, false, report, began, err)
}

// CheckSealed is Check without a key, of a repository that need not be open: envelopes are looked at, and mended, and nothing else.
func CheckSealed(ctx context.Context, a contract.RepositoryAccess, r contract.CheckRepository, progress Progress) (contract.RepositoryCheck, error) {
	st, err := openStore(ctx, a, Options{}, false)
	if err != nil {
		return contract.RepositoryCheck{}, err
	}
	defer st.Close()
	began := time.Now()
	report, err := check.Sealed(ctx, st, checkOptions(r, os.TempDir(), progress))
	return checked(st.URL(), true, report, began, err)
}

func checkOptions(r contract.CheckRepository, dir string, progress Progress) check.Options {
	return check.Options{
		SamplePercent: r.SamplePercent, Budget: time.Duration(r.BudgetSeconds * float64(time.Second)), Dir: dir, Progress: monotone(progress),
	}
}

// checked is a report in the contract's words.
func checked(name string, sealed bool, r check.Report, began time.Time, err error) (contract.RepositoryCheck, error) {
	out := contract.RepositoryCheck{
		Repository: name, Sealed: sealed, Objects: r.Objects, Bytes: r.Bytes, Left: r.Left, Damage: []contract.DamagedObject{}, MoreDamage: r.MoreDamage,
		Harmed: []contract.HarmedBackup{}, Notes: append([]string{}, r.Notes...), Seconds: seconds(began),
	}
	lost := r.MoreDamage
	for _, d := range r.Damage {
		if d.State == check.Lost {
			lost++
		}
		out.Damage = append(out.Damage, contract.DamagedObject{
			Object: d.Object, State: d.State.String(), Message: d.Message, Backups: append([]string{}, d.Backups...),
		})
	}
	for _, h := range r.Harmed {
		b := contract.HarmedBackup{ID: h.ID, Volume: h.Volume, Whole: h.Whole, Bytes: h.Bytes, Ranges: []contract.Extent{}}
		for _, e := range h.Ranges {
			b.Ranges = append(b.Ranges, contract.Extent{Offset: e.Offset, Length: e.Length})
		}
		out.Harmed = append(out.Harmed, b)
	}
	if err == nil && out.Lost() {
		hint := "a backup stores again what is lost if its source still has it; to restore what is left: varve backup restore --skip-damaged"
		switch {
		case sealed:
			hint = "which backups that harms a check with a key tells"
		case len(out.Harmed) == 0:
			hint = "varve repo prune takes away what is damaged and harms no backup, once its grace is over"
		}
		err = contract.Errorf(contract.CodeDamaged, "repository %s: %d objects are lost, which harms %d backups", name, lost, len(out.Harmed)).WithHint("%s", hint)
	}
	return out, err
}
