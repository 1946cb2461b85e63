package cli

import (
	"errors"
	"fmt"

	"varve/internal/contract"
)

type poolCommands struct {
	Show    poolShow    `cmd:"" help:"Show the pool."`
	Set     poolSet     `cmd:"" help:"Bound what the pool may take: at the quota writes fail, and what gives space back goes on."`
	Reclaim poolReclaim `cmd:"" help:"Give all space back that nothing holds any more, now and thoroughly; it happens by itself as well."`
	Check   poolCheck   `cmd:"" help:"Read and verify everything in the pool, and mend it if asked to; exit status 5 if anything is damaged."`
}

type poolShow struct{}

// Run shows the pool.
func (poolShow) Run(t *terminal) error {
	p, err := t.client.Pool(t.ctx, shownHolders)
	if err != nil {
		return err
	}
	return t.print(p, func(w *table) { drawPool(w, p) })
}

// shownHolders is how many volumes and snapshots are named as those that hold the most.
const shownHolders = 10

type poolSet struct {
	Quota   string `required:"" help:"Bytes that the pool may take, or none." placeholder:"SIZE|none"`
	Reserve size   `help:"Of the quota, what is kept for deletions and discards (default: a 64th, at least 8M)." placeholder:"SIZE"`
}

// Run sets what bounds the pool.
func (c poolSet) Run(t *terminal) error {
	change := contract.ChangePool{ReserveBytes: int64(c.Reserve)}
	if c.Quota != "none" {
		n, err := parseSize(c.Quota)
		if err == nil && n == 0 {
			err = errors.New("size 0: to lift the quota, say none")
		}
		if err != nil {
			return contract.Errorf(contract.CodeUsage, "--quota: %s", err).WithHint("a quota is a size, as in 500G, or none")
		}
		change.QuotaBytes = int64(n)
	}
	p, err := t.client.ChangePool(t.ctx, change)
	if err != nil {
		return err
	}
	return t.print(p, func(w *table) { drawSpace(w, p) })
}

// drawSpace shows what there is and what of it is used.
func drawSpace(w *table, p contract.Pool) {
	if p.QuotaBytes != nil {
		w.row("quota", humanSize(*p.QuotaBytes)+", of which reserve "+humanSize(*p.ReserveBytes))
	} else {
		w.row("quota", "none")
	}
	w.row("used", fmt.Sprintf("%d%%, clients may write %s more", p.FullPercent, humanSize(p.RoomBytes)))
	w.row("on disk", humanSize(p.PhysicalBytes))
	maps := ""
	if p.MapBytes > 0 {
		maps = ", of which maps " + humanSize(p.MapBytes)
	}
	w.row("live", humanSize(p.LiveBytes)+maps)
	w.row("reclaimable", humanSize(p.ReclaimableBytes))
	w.row("given back", humanSize(p.ReclaimedBytes))
	w.row("copied for that", fmt.Sprintf("%s, %.2f bytes for each written", humanSize(p.CopiedBytes), float64(p.CopiedBytes)/float64(max(p.ClientBytes, 1))))
	w.row("free", humanSize(p.FreeBytes))
}

// drawHolders names those that hold the most.
func drawHolders(w *table, h *contract.Holders) {
	if h == nil {
		return
	}
	w.row("held by deleted snapshots", humanSize(h.HiddenBytes))
	w.row()
	w.row("VOLUME", "EXCLUSIVE", "WITH SNAPSHOTS", "SNAPSHOTS")
	for _, v := range h.Volumes {
		total := "shared"
		if v.TotalBytes != nil {
			total = humanSize(*v.TotalBytes)
		}
		w.row(v.Name, humanSize(v.ExclusiveBytes), total, *v.Snapshots)
	}
	w.row()
	w.row("SNAPSHOT", "EXCLUSIVE")
	for _, s := range h.Snapshots {
		w.row(s.Name, humanSize(s.ExclusiveBytes))
	}
}

func drawPool(w *table, p contract.Pool) {
	w.row("pool", p.Path)
	w.row("id", p.ID)
	w.row("format", p.FormatVersion)
	w.row("created", localTime(&p.CreatedAt))
	w.row("volumes", p.Volumes)
	w.row("snapshots", p.Snapshots)
	w.row("bookmarks", p.Bookmarks)
	w.row("hidden states", p.HiddenStates)
	drawSpace(w, p)
	w.row("log written", humanSize(p.LogBytes))
	w.row("segments", p.Segments)
	w.row("checkpoints", p.Checkpoints)
	w.row("map cache", humanSize(p.MapCacheBytes))
	w.row("stalls by checkpoints", stalls(p.Stalls))
	w.field("writes are stopped", p.ReadOnlyReason)
	drawHolders(w, p.Holders)
}

// stalls is the worst of what keeps writers waiting, and the waits for memory where there were any.
func stalls(s contract.Stalls) string {
	worst := s.Freeze
	for _, l := range []contract.Latency{s.Append, s.Settle} {
		if l.P999 > worst.P999 {
			worst = l
		}
	}
	if worst.Count == 0 {
		return "none"
	}
	text := fmt.Sprintf("p99.9 %.2f ms, longest %.2f ms", worst.P999, max(s.Freeze.Max, s.Append.Max, s.Settle.Max))
	if s.Delayed.Count > 0 {
		text += fmt.Sprintf("; map cache full %d times, p99.9 %.2f ms", s.Delayed.Count, s.Delayed.P999)
	}
	return text
}

type poolReclaim struct{}

// Run gives space back.
func (poolReclaim) Run(t *terminal) error {
	job, err := t.client.Reclaim(t.ctx)
	if err != nil {
		return err
	}
	return t.finish(job, func(r *contract.Result) error {
		return t.print(r.Reclaim, func(w *table) { drawReclaim(w, r.Reclaim) })
	})
}

func drawReclaim(w *table, r *contract.Reclaim) {
	w.row("given back", humanSize(r.FreedBytes))
	w.row("copied for that", humanSize(r.CopiedBytes))
	w.row("segments removed", r.Removed)
	w.row("segments rewritten", r.Rewritten)
	w.row("segments packed", r.Packed)
	w.row("segments punched", r.Punched)
	w.row("live", humanSize(r.LiveBytes))
}
