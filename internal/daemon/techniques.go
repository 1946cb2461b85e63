package daemon

import (
	"varve/internal/contract"
)

// checkTechnique tells why snapshots cannot be made as r asks. A layout has one technique that is there already.
func (d *Daemon) checkTechnique(r contract.CreateSnapshot) error {
	refuse := func(format string, args ...any) *contract.Error {
		return contract.Errorf(contract.CodeUsage, "create snapshot %s: "+format, append([]any{r.Name}, args...)...)
	}
	switch r.Technique {
	case contract.TechniqueCOWCopy, contract.TechniqueClone:
		if r.To != "" {
			if err := d.placeable(r.To); err != nil {
				return err
			}
		}
	case "", contract.TechniqueRow, contract.TechniqueCOW:
		if r.To != "" {
			return refuse("a file to copy to (--to) is of the techniques that copy").
				WithHint("use --technique clone, which copies at once, or cow-copy, which copies in the background")
		}
	case contract.TechniqueMirror:
		if err := d.checkMirrored(r); err != nil {
			return err
		}
	default:
		return refuse("there is no technique %q", r.Technique)
	}
	switch r.OnFull {
	case "", contract.OnFullFailWrites, contract.OnFullDropSnapshot:
	default:
		return refuse("there is no %q to do when the pool is full", r.OnFull)
	}
	for _, name := range r.Volumes {
		info, err := d.volumeInfo(name)
		if err != nil {
			return err
		}
		fits, where := contract.TechniqueRow, "in the pool"
		if info.Path != "" {
			fits, where = contract.TechniqueCOW, "in a file of its own"
		}
		if (r.Technique == contract.TechniqueRow || r.Technique == contract.TechniqueCOW) && r.Technique != fits {
			return refuse("technique %s is not for volume %q, which lies %s", r.Technique, name, where).
				WithHint("use --technique %s, or leave it out", fits)
		}
		if r.OnFull == contract.OnFullDropSnapshot && r.Technique == contract.TechniqueClone {
			return refuse("drop-snapshot is of snapshots that can be read before they are copied").WithHint("leave --on-full out")
		}
		if r.OnFull == contract.OnFullDropSnapshot && fits == contract.TechniqueRow {
			return refuse("drop-snapshot is of technique cow, and volume %q lies in the pool, where nothing is kept for a snapshot before a write", name).
				WithHint("leave --on-full out; on a full pool writes fail until something is deleted")
		}
	}
	return nil
}
