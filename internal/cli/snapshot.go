package cli

import (
	"cmp"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"varve/internal/contract"
)

type snapshotCommands struct {
	Create    snapshotCreate    `cmd:"" help:"Freeze volumes at one instant."`
	List      snapshotList      `cmd:"" help:"List snapshots as a tree."`
	Show      snapshotShow      `cmd:"" help:"Show a snapshot."`
	Delete    snapshotDelete    `cmd:"" help:"Delete snapshots, all of them or none."`
	Protect   snapshotProtect   `cmd:"" help:"Protect a snapshot from deletion and expiry."`
	Unprotect snapshotUnprotect `cmd:"" help:"Lift a snapshot's protection."`
	Rollback  snapshotRollback  `cmd:"" help:"Make a snapshot its volume's content; the present is kept as a snapshot."`
	Diff      snapshotDiff      `cmd:"" help:"Print the extents that changed from a snapshot or bookmark to another snapshot, or to the present."`
}

type snapshotCreate struct {
	Volumes   []string          `arg:"" name:"volume" help:"Volumes."`
	Name      string            `required:"" help:"Name of the snapshot." placeholder:"SNAP"`
	Technique string            `help:"How: row of volumes in the pool, cow of those in a file of their own; that is the default. cow-copy, clone and mirror are not built yet." enum:",row,cow,cow-copy,clone,mirror" default:"" placeholder:"TECHNIQUE"`
	OnFull    string            `help:"What to do if the pool has no room for what a cow snapshot needs kept: fail-writes to the volume, or drop-snapshot." enum:"fail-writes,drop-snapshot" default:"fail-writes" placeholder:"WHAT"`
	KeepFor   keepFor           `help:"Delete it after this time: 90m, 36h, 7d." placeholder:"DURATION"`
	Label     map[string]string `help:"Label, repeatable." placeholder:"K=V" mapsep:"none"`
}

// keepFor is a time to live: what time.ParseDuration reads, and whole days (7d) or weeks (2w).
type keepFor time.Duration

// UnmarshalText implements encoding.TextUnmarshaler.
func (k *keepFor) UnmarshalText(text []byte) error {
	s := string(text)
	unit := time.Duration(0)
	switch {
	case strings.HasSuffix(s, "d"):
		unit = 24 * time.Hour
	case strings.HasSuffix(s, "w"):
		unit = 7 * 24 * time.Hour
	}
	var d time.Duration
	var err error
	if unit != 0 {
		var n int64
		n, err = strconv.ParseInt(s[:len(s)-1], 10, 64)
		if err == nil && n > math.MaxInt64/int64(unit) {
			err = strconv.ErrRange
		}
		d = time.Duration(n) * unit
	} else {
		d, err = time.ParseDuration(s)
	}
	if err != nil {
		return fmt.Errorf("duration %q: want a number and a unit, as in 90m, 36h, 7d, 2w", s)
	}
	if d <= 0 {
		return fmt.Errorf("duration %q: it must be longer than 0", s)
	}
	*k = keepFor(d)
	return nil
}

// Run creates snapshots.
func (c snapshotCreate) Run(t *terminal) error {
	made, err := t.client.CreateSnapshots(t.ctx, contract.CreateSnapshot{
		Volumes: c.Volumes, Name: c.Name, Labels: c.Label, KeepFor: time.Duration(c.KeepFor).Seconds(),
		Technique: c.Technique, OnFull: c.OnFull,
	})
	if err != nil {
		return err
	}
	return t.print(made, func(w *table) {
		w.row("SNAPSHOT", "CREATED", "SIZE", "WRITERS WAITED", "DURABLE AFTER")
		for _, s := range made {
			w.row(s.Ref(), localTime(&s.CreatedAt), humanSize(s.Size), milliseconds(s.PauseMS), milliseconds(s.DurableMS))
		}
	})
}

func milliseconds(ms *float64) string {
	if ms == nil {
		return ""
	}
	return fmt.Sprintf("%.2f ms", *ms)
}

type snapshotList struct {
	Volume string `arg:"" optional:"" help:"Only of this volume."`
}

// Run lists snapshots.
func (c snapshotList) Run(t *terminal) error {
	snapshots, err := t.client.Snapshots(t.ctx, c.Volume)
	if err != nil {
		return err
	}
	return t.print(snapshots, func(w *table) {
		w.row("SNAPSHOT", "CREATED", "MAPPED", "EXCLUSIVE", "EXPIRES", "NOTES")
		for _, line := range tree(snapshots, t.fancy) {
			s := line.snapshot
			w.row(line.lead+s.Ref(), localTime(&s.CreatedAt), humanSize(s.MappedBytes), humanSize(s.ExclusiveBytes),
				cmp.Or(localTime(s.ExpiresAt), "never"), notes(s))
		}
	})
}

func notes(s contract.Snapshot) string {
	n := []string{
		yes(s.Suspect, "file changed by somebody else"), yes(s.Protected, "protected"), yes(s.Automatic, "automatic"),
		yes(s.Head, "present descends from it"),
	}
	for _, clone := range s.Clones {
		n = append(n, "clone "+clone)
	}
	return listed(append(n, joined(s.Labels))...)
}

// branch is a snapshot and what is drawn before it.
type branch struct {
	lead     string
	snapshot contract.Snapshot
}

// tree orders snapshots so that each follows its parent, with lines between
// them; one whose parent is not in the list is a root.
func tree(snapshots []contract.Snapshot, unicode bool) []branch {
	middle, last, through := "|- ", "`- ", "|  "
	if unicode {
		middle, last, through = "├─ ", "└─ ", "│  "
	}
	listed := map[string]bool{}
	for _, s := range snapshots {
		listed[s.Ref()] = true
	}
	children := map[string][]contract.Snapshot{}
	for _, s := range snapshots {
		parent := s.Parent
		if !listed[parent] {
			parent = ""
		}
		children[parent] = append(children[parent], s)
	}
	// A line of descent can be 10,000 long: it is walked, not recursed, and a
	// single child stands below its parent without stepping to the right.
	type visit struct {
		branch
		indent string
	}
	var out []branch
	stack := []visit{}
	push := func(of, indent string) {
		below := children[of]
		for i := len(below) - 1; i >= 0; i-- {
			v := visit{branch{indent, below[i]}, indent}
			if of != "" && len(below) > 1 {
				v.lead, v.indent = indent+middle, indent+through
				if i == len(below)-1 {
					v.lead, v.indent = indent+last, indent+"   "
				}
			}
			stack = append(stack, v)
		}
	}
	push("", "")
	for len(stack) > 0 {
		v := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		out = append(out, v.branch)
		push(v.snapshot.Ref(), v.indent)
	}
	return out
}

type snapshotShow struct {
	Snapshot string `arg:"" name:"snapshot" help:"Snapshot, VOLUME@NAME."`
}

// Run shows a snapshot.
func (c snapshotShow) Run(t *terminal) error {
	s, err := t.client.Snapshot(t.ctx, c.Snapshot)
	if err != nil {
		return err
	}
	return t.showSnapshot(s)
}

func (t *terminal) showSnapshot(s contract.Snapshot) error {
	return t.print(s, func(w *table) {
		w.row("snapshot", s.Ref())
		w.row("id", s.ID)
		w.row("created", localTime(&s.CreatedAt))
		w.row("size", humanSize(s.Size))
		w.row("mapped", humanSize(s.MappedBytes))
		w.row("exclusive", humanSize(s.ExclusiveBytes))
		w.row("shared", humanSize(s.SharedBytes))
		w.row("technique", s.Technique)
		w.row("class", s.Class)
		w.row("content", s.Content)
		w.row("consistency", s.Consistency)
		w.row("depends on", strings.Join(s.DependsOn, ", "))
		w.field("on full", s.OnFull)
		w.row("expires", cmp.Or(localTime(s.ExpiresAt), "never"))
		w.field("parent", s.Parent)
		w.field("notes", notes(s))
		for _, step := range s.Steps {
			w.row("step "+step.Name, milliseconds(&step.MS))
		}
		w.field("writers waited", milliseconds(s.PauseMS))
		w.field("durable after", milliseconds(s.DurableMS))
	})
}

type snapshotDelete struct {
	Snapshots []string `arg:"" name:"snapshot" help:"Snapshots, VOLUME@NAME."`
}

// Run deletes snapshots.
func (c snapshotDelete) Run(t *terminal) error {
	if err := t.client.DeleteSnapshots(t.ctx, c.Snapshots); err != nil {
		return err
	}
	t.chat("deleted: %s", strings.Join(c.Snapshots, " "))
	return nil
}

type snapshotProtect struct {
	Snapshot string `arg:"" help:"Snapshot, VOLUME@NAME."`
}

// Run protects a snapshot.
func (c snapshotProtect) Run(t *terminal) error { return t.protect(c.Snapshot, true) }

type snapshotUnprotect struct {
	Snapshot string `arg:"" help:"Snapshot, VOLUME@NAME."`
}

// Run lifts the protection of a snapshot.
func (c snapshotUnprotect) Run(t *terminal) error { return t.protect(c.Snapshot, false) }

func (t *terminal) protect(ref string, protected bool) error {
	s, err := t.client.ProtectSnapshot(t.ctx, ref, protected)
	if err != nil {
		return err
	}
	return t.showSnapshot(s)
}

type snapshotRollback struct {
	Snapshot string `arg:"" help:"Snapshot, VOLUME@NAME."`
}

// Run rolls a volume back.
func (c snapshotRollback) Run(t *terminal) error {
	r, err := t.client.Rollback(t.ctx, c.Snapshot, t.Force)
	if err != nil {
		return err
	}
	err = t.print(r, func(w *table) {
		w.row("volume", r.Volume)
		w.row("now holds", r.Snapshot)
		w.row("before kept as", r.Kept.Ref())
		w.row("writers waited", milliseconds(&r.PauseMS))
		w.row("durable after", milliseconds(&r.DurableMS))
		if r.CopyBack != nil {
			w.row("being copied back", "by job "+r.CopyBack.ID+"; clients need not wait for it")
		}
	})
	t.chat("to undo: varve snapshot rollback %s", r.Kept.Ref())
	return err
}
