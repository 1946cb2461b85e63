package cli

import (
	"fmt"
	"strings"

	"varve/internal/contract"
)

type statusCommand struct {
	Check bool `help:"Exit with 1 if there is a PROBLEM: writes stopped, damage found (and not gone at a later check), an adopted file that cannot be used or was changed by somebody else, the pool 95% full."`
}

// Run shows the status.
func (c statusCommand) Run(t *terminal) error {
	s, err := t.client.Status(t.ctx)
	if err != nil {
		return err
	}
	if err := t.print(s, func(w *table) { drawStatus(w, s) }); err != nil {
		return err
	}
	if c.Check && len(s.Problems) > 0 {
		return contract.Errorf(contract.CodeFailed, "%s", strings.Join(s.Problems, "; ")).WithHint("varve event list tells when; varve pool check what is damaged; varve pool show what takes space")
	}
	return nil
}

func drawStatus(w *table, s contract.Status) {
	w.row("varve", s.Version+", process "+fmt.Sprint(s.PID)+" since "+localTime(&s.StartedAt))
	w.row("data", s.Data)
	w.row("nbd", strings.Join(s.NBD, ", "))
	w.row("volumes", s.Pool.Volumes)
	w.row("snapshots", s.Pool.Snapshots)
	w.row("on disk", humanSize(s.Pool.PhysicalBytes)+", "+humanSize(s.Pool.FreeBytes)+" free")
	for _, c := range s.Clients {
		w.row("client", c.Export+" from "+c.Address+yes(c.Written, ", has written"))
	}
	for _, j := range s.Jobs {
		w.row("job", fmt.Sprintf("%s %s of %s is %s, %s", j.ID, j.Kind, j.Object, j.State, percent(j.Progress)))
	}
	for _, e := range s.Events {
		w.row("event", strings.Join(strings.Fields(localTime(&e.Time)+" "+e.Kind+" "+e.Object+": "+e.Message), " "))
	}
	for _, warning := range s.Warnings {
		w.row("warning", warning)
	}
	for _, p := range s.Problems {
		w.row("PROBLEM", p)
	}
}
