package daemon

import (
	"context"
	"errors"

	"varve/internal/block"
	"varve/internal/contract"
	"varve/internal/pool"
	"varve/internal/vfs"
)

func offline(c Config) pool.Options {
	c = c.withDefaults()
	return pool.Options{FS: vfs.OS(), Dir: poolDir(c.DataDir), MapCacheBytes: c.MapCacheBytes, Clock: c.Clock}
}

// CheckOffline verifies the pool of a data directory that no daemon works on, and changes nothing in it.
// Damage is reported in the result and as an error of code damaged.
func CheckOffline(ctx context.Context, c Config, progress func(float64)) (*contract.Check, error) {
	report, err := pool.CheckOffline(ctx, offline(c), progress)
	if err != nil {
		return nil, err
	}
	return checked(report, false)
}

// RepairOffline mends the pool of a data directory that no daemon works on. With force it may give up flushed writes
// where there is no other way; without, that is an error and the result says what would be lost.
func RepairOffline(ctx context.Context, c Config, force bool, progress func(float64)) (*contract.Check, error) {
	report, err := pool.RepairOffline(ctx, offline(c), force, progress)
	switch {
	case errors.Is(err, pool.ErrWouldLose):
		check, _ := checked(report, false)
		return check, contract.Errorf(contract.CodeDamaged, "%s", err).
			WithHint("copy the data directory away first; then --repair --force goes back to before the first batch that cannot be read, and loses what is listed")
	case err != nil:
		return nil, err
	}
	return checked(report, true)
}

// checked is a report as the API gives it. repaired: it is that of a repair which came to its end.
func checked(report pool.RepairReport, repaired bool) (*contract.Check, error) {
	r := &report.After
	c := &contract.Check{
		Blocks: r.Blocks, MapNodes: r.MapNodes, Bytes: r.Bytes, Damage: []contract.Damage{}, Leaks: []contract.Leak{},
		LiveBytes: r.LiveBytes, EstimatedBytes: r.EstimatedBytes, LogBytes: r.LogBytes, GarbageBytes: r.GarbageBytes,
		Refused: report.Refused, Repairs: report.Done, Left: report.Left,
	}
	for _, found := range r.Damage {
		damage := contract.Damage{
			Object: found.Object, Volume: found.Volume, Snapshot: found.Snapshot, Length: found.Length, Lost: found.Lost, Message: found.Message,
		}
		if found.Offset >= 0 {
			damage.Offset = &found.Offset
		}
		c.Damage = append(c.Damage, damage)
	}
	for _, l := range r.Leaks {
		c.Leaks = append(c.Leaks, contract.Leak{Object: l.Object, Bytes: l.Bytes, Message: l.Message})
	}
	if cut := report.Cut; cut != nil {
		c.Cut = &contract.Cut{
			FirstSeq: cut.FirstSeq, LastSeq: cut.LastSeq, Unreadable: cut.Unreadable, Writes: []contract.LostWrites{},
			Operations: append([]string{}, cut.Operations...), Reason: cut.Reason,
		}
		for _, w := range cut.Writes {
			c.Cut.Writes = append(c.Cut.Writes, contract.LostWrites{Volume: w.Volume, FirstSeq: w.FirstSeq, LastSeq: w.LastSeq, Bytes: w.Blocks * block.Size})
		}
	}
	if n := len(c.Damage); n > 0 {
		hint := "what is listed cannot be read; everything else can: copy it elsewhere, or see varve pool check --repair"
		if repaired {
			hint = "what is listed cannot be read until it is written anew, and nothing more can be made of it"
		}
		return c, contract.Errorf(contract.CodeDamaged, "check pool: %s found", count(n, "damaged place")).WithHint("%s", hint)
	}
	return c, nil
}
