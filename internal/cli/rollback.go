package cli

import (
	"fmt"
	"strings"

	"varve/internal/contract"
)

type snapshotRollback struct {
	Snapshot string      `arg:"" help:"Snapshot, VOLUME@NAME."`
	Range    []byteRange `help:"Only these bytes of the volume, repeatable: both are sizes, in whole blocks of 4096 bytes, as in 1M+64K. Takes the time of copying what differs." placeholder:"OFFSET+LENGTH" sep:"none"`
}

// byteRange is a run of bytes on the command line: OFFSET+LENGTH, both sizes.
type byteRange contract.Extent

// UnmarshalText implements encoding.TextUnmarshaler.
func (r *byteRange) UnmarshalText(text []byte) error {
	from, n, ok := strings.Cut(string(text), "+")
	if !ok {
		return fmt.Errorf("range %q: want OFFSET+LENGTH, as in 1M+64K", text)
	}
	offset, err := parseSize(from)
	if err != nil {
		return fmt.Errorf("range %q: %w", text, err)
	}
	length, err := parseSize(n)
	if err != nil {
		return fmt.Errorf("range %q: %w", text, err)
	}
	*r = byteRange{Offset: int64(offset), Length: int64(length)}
	return nil
}

// Run rolls a volume back.
func (c snapshotRollback) Run(t *terminal) error {
	if len(c.Range) > 0 {
		return c.byJob(t)
	}
	s, err := t.client.Snapshot(t.ctx, c.Snapshot)
	if err != nil {
		return err
	}
	if s.Class == "physical" { // all of it has to be copied
		return c.byJob(t)
	}
	r, err := t.client.Rollback(t.ctx, c.Snapshot, t.Force)
	if err != nil {
		return err
	}
	return t.showRollback(&r)
}

func (c snapshotRollback) byJob(t *terminal) error {
	request := contract.RollBackRanges{Force: t.Force}
	for _, r := range c.Range {
		request.Ranges = append(request.Ranges, contract.Extent(r))
	}
	job, err := t.client.RollbackRanges(t.ctx, c.Snapshot, request)
	if err != nil {
		return err
	}
	return t.finish(job, func(r *contract.Result) error { return t.showRollback(r.Rollback) })
}

func (t *terminal) showRollback(r *contract.Rollback) error {
	err := t.print(r, func(w *table) { drawRollback(w, r) })
	t.chat("to undo: varve snapshot rollback %s", r.Kept.Ref())
	return err
}

func drawRollback(w *table, r *contract.Rollback) {
	w.row("volume", r.Volume)
	if len(r.Ranges) == 0 {
		w.row("now holds", r.Snapshot)
	}
	for _, e := range r.Ranges {
		w.row("now as in "+r.Snapshot, fmt.Sprintf("%d+%d", e.Offset, e.Length))
	}
	if len(r.Ranges) > 0 || r.PutBackBytes > 0 {
		w.row("put back", humanSize(r.PutBackBytes))
	}
	w.row("before kept as", r.Kept.Ref())
	w.row("writers waited", milliseconds(&r.PauseMS))
	w.row("durable after", milliseconds(&r.DurableMS))
	if r.CopyBack != nil {
		w.row("being copied back", "by job "+r.CopyBack.ID+"; clients need not wait for it")
	}
}
