package cli

import (
	"varve/internal/contract"
	"varve/internal/daemon"
)

type poolCommands struct {
	Show    poolShow    `cmd:"" help:"Show the pool."`
	Reclaim poolReclaim `cmd:"" help:"Give all space back that nothing holds any more, now and thoroughly; it happens by itself as well."`
	Check   poolCheck   `cmd:"" help:"Read and verify everything in the pool; exit status 5 if anything is damaged."`
}

type poolShow struct{}

// Run shows the pool.
func (poolShow) Run(t *terminal) error {
	p, err := t.client.Pool(t.ctx)
	if err != nil {
		return err
	}
	return t.print(p, func(w *table) { drawPool(w, p) })
}

func drawPool(w *table, p contract.Pool) {
	w.row("pool", p.Path)
	w.row("id", p.ID)
	w.row("format", p.FormatVersion)
	w.row("created", localTime(&p.CreatedAt))
	w.row("volumes", p.Volumes)
	w.row("snapshots", p.Snapshots)
	w.row("hidden states", p.HiddenStates)
	w.row("on disk", humanSize(p.PhysicalBytes))
	w.row("live", humanSize(p.LiveBytes))
	w.row("given back", humanSize(p.ReclaimedBytes))
	w.row("free", humanSize(p.FreeBytes))
	w.row("log written", humanSize(p.LogBytes))
	w.row("segments", p.Segments)
	w.row("checkpoints", p.Checkpoints)
	w.row("map cache", humanSize(p.MapCacheBytes))
	w.field("writes are stopped", p.ReadOnlyReason)
}

type poolReclaim struct{}

// Run gives space back.
func (poolReclaim) Run(t *terminal) error {
	job, err := t.client.Reclaim(t.ctx)
	if err != nil {
		return err
	}
	return t.finish(job, func(r *contract.Result) error {
		return t.print(r.Reclaim, func(w *table) {
			w.row("given back", humanSize(r.Reclaim.FreedBytes))
			w.row("copied for that", humanSize(r.Reclaim.CopiedBytes))
			w.row("segments removed", r.Reclaim.Removed)
			w.row("segments rewritten", r.Reclaim.Rewritten)
			w.row("segments packed", r.Reclaim.Packed)
			w.row("segments punched", r.Reclaim.Punched)
			w.row("live", humanSize(r.Reclaim.LiveBytes))
		})
	})
}

type poolCheck struct {
	Offline bool `help:"Without a daemon: open the pool in the data directory here."`
}

// Run checks the pool.
func (c poolCheck) Run(t *terminal) error {
	if c.Offline {
		found, err := daemon.CheckOffline(t.ctx, daemon.Config{DataDir: t.Data}, nil)
		if found != nil {
			if shown := t.showCheck(found); err == nil {
				err = shown
			}
		}
		return err
	}
	job, err := t.client.Check(t.ctx)
	if err != nil {
		return err
	}
	return t.finish(job, func(r *contract.Result) error { return t.showCheck(r.Check) })
}

func (t *terminal) showCheck(c *contract.Check) error {
	return t.print(c, func(w *table) {
		w.row("blocks verified", c.Blocks)
		w.row("map nodes verified", c.MapNodes)
		w.row("read", humanSize(c.Bytes))
		w.row("damaged places", len(c.Damage))
		for _, d := range c.Damage {
			if d.Offset != nil {
				w.row(d.Object, d.Message, "at", *d.Offset, "length", d.Length)
			} else {
				w.row(d.Object, d.Message)
			}
		}
	})
}
