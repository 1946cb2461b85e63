package cli

import (
	"errors"
	"fmt"

	"varve/internal/api/client"
	"varve/internal/contract"
	"varve/internal/daemon"
)

type poolCheck struct {
	Offline bool `help:"Without a daemon: read the pool in the data directory here, and change nothing in it but with --repair."`
	Repair  bool `help:"Mend what can be mended. What cannot be read is recorded and stays an error. With --offline, --force gives up flushed writes where nothing else helps."`
}

// Run checks the pool.
func (c poolCheck) Run(t *terminal) error {
	if c.Offline {
		return c.offline(t)
	}
	if c.Repair && t.Force {
		return contract.Errorf(contract.CodeUsage, "a pool that is in use never needs --force").WithHint("--force goes with --repair --offline, while no daemon runs")
	}
	start := t.client.Check
	if c.Repair {
		start = t.client.Repair
	}
	job, err := start(t.ctx)
	if errors.Is(err, client.ErrNoDaemon) {
		return contract.Errorf(contract.CodeFailed, "%s", err).WithHint("start one: varve serve; or have the pool in the data directory read here: --offline")
	}
	if err != nil {
		return err
	}
	return t.finish(job, func(r *contract.Result) error {
		if r.Check == nil {
			return nil
		}
		return t.showCheck(r.Check, c.Repair)
	})
}

func (c poolCheck) offline(t *terminal) error {
	if t.Detach {
		return contract.Errorf(contract.CodeUsage, "--detach needs a daemon, and --offline has none")
	}
	var found *contract.Check
	var err error
	if config := (daemon.Config{DataDir: t.Data}); c.Repair {
		found, err = daemon.RepairOffline(t.ctx, config, t.Force, nil)
	} else {
		found, err = daemon.CheckOffline(t.ctx, config, nil)
	}
	if found != nil {
		if shown := t.showCheck(found, c.Repair); err == nil {
			err = shown
		}
	}
	return err
}

func (t *terminal) showCheck(c *contract.Check, repair bool) error {
	return t.print(c, func(w *table) { drawCheck(w, c, repair) })
}

// drawCheck shows what a check found, or a repair found and did.
func drawCheck(w *table, c *contract.Check, repair bool) {
	refused, cut := "cannot be opened", "would be given up"
	if len(c.Repairs) > 0 {
		refused, cut = "could not be opened", "given up"
	}
	if c.Refused == "" || c.Blocks+c.MapNodes > 0 { // else nothing was looked at
		w.row("blocks verified", c.Blocks)
		w.row("map nodes verified", c.MapNodes)
		w.row("read", humanSize(c.Bytes))
		w.row("live", humanSize(c.LiveBytes)+" of "+humanSize(c.LogBytes)+" in the log")
		w.row("reclaimable", humanSize(c.GarbageBytes))
		w.row("damaged places", len(c.Damage))
	}
	w.field(refused, c.Refused)
	if c.Cut != nil {
		w.row(cut, fmt.Sprintf("batches %d to %d, of which %d cannot be read and may be of any volume", c.Cut.FirstSeq, c.Cut.LastSeq, c.Cut.Unreadable))
		for _, l := range c.Cut.Writes {
			w.row(cut+": "+l.Volume, fmt.Sprintf("%s written in batches %d to %d", humanSize(l.Bytes), l.FirstSeq, l.LastSeq))
		}
		for _, o := range c.Cut.Operations {
			w.row(cut, o)
		}
	}
	for _, r := range c.Repairs {
		w.row("repaired", r)
	}
	for _, l := range c.Left {
		w.row("not repaired", l)
	}
	if repair && c.Refused == "" && len(c.Damage)+len(c.Repairs)+len(c.Left) == 0 {
		w.row("repaired", "nothing: there was no need to")
	}
	if len(c.Damage) > 0 {
		w.row()
		w.row("DAMAGED", "OFFSET", "LENGTH", "WHY")
		for _, d := range c.Damage {
			if d.Offset != nil {
				w.row(d.Object, *d.Offset, d.Length, d.Message)
			} else {
				w.row(d.Object, "-", "-", d.Message)
			}
		}
	}
	if len(c.Leaks) > 0 {
		w.row()
		w.row("LEAK", "SIZE", "WHY")
		for _, l := range c.Leaks {
			w.row(l.Object, humanSize(l.Bytes), l.Message)
		}
	}
}
