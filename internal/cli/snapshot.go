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
	Copy      snapshotCopy      `cmd:"" help:"Go on with the copy that a snapshot is to become, where that has failed."`
	Diff      snapshotDiff      `cmd:"" help:"Print the extents that changed from a snapshot or bookmark to another snapshot, or to the present."`
}

type snapshotCreate struct {
	Volumes   []string          `arg:"" name:"volume" help:"Volumes."`
	Name      string            `required:"" help:"Name of the snapshot." placeholder:"SNAP"`
	Technique string            `help:"How: row of volumes in the pool, cow of those in a file of their own; that is the default. clone: a full copy, which needs nothing but itself; cow-copy: the same, used at once and copied in the background; mirror: the same, copied before, by writing to both: see varve mirror." enum:",row,cow,cow-copy,clone,mirror" default:"" placeholder:"TECHNIQUE"`
	To        string            `help:"Have a full copy lie in this raw file or block device rather than in the pool; what exists needs --force." placeholder:"FILE"`
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
	to, err := absolute(c.To)
	if err != nil {
		return err
	}
	if c.Technique == contract.TechniqueMirror && len(c.Volumes) == 1 && to != "" {
		if err := t.mirrored(c.Volumes[0], to); err != nil {
			return err
		}
	}
	made, err := t.client.CreateSnapshots(t.ctx, contract.CreateSnapshot{
		Volumes: c.Volumes, Name: c.Name, Labels: c.Label, KeepFor: time.Duration(c.KeepFor).Seconds(),
		Technique: c.Technique, OnFull: c.OnFull, To: to, Force: t.Force,
	})
	if err != nil {
		return err
	}
	if c.Technique == contract.TechniqueClone {
		return t.whole(made)
	}
	err = t.print(made, func(w *table) { drawMade(w, made) })
	for _, s := range made {
		if s.CopyJob != "" {
			t.chat("%s can be used; job %s copies it meanwhile", s.Ref(), s.CopyJob)
		}
	}
	return err
}

// whole waits until clones are copied, and prints them; with --detach it prints the jobs.
func (t *terminal) whole(made []contract.Snapshot) error {
	jobs := make([]contract.Job, 0, len(made))
	for _, s := range made {
		job, err := t.client.Job(t.ctx, s.CopyJob, 0)
		if err != nil {
			return err
		}
		jobs = append(jobs, job)
	}
	if t.Detach {
		return t.print(jobs, func(w *table) {
			for _, job := range jobs {
				w.row(job.ID)
			}
		})
	}
	var failed error
	whole := make([]contract.Snapshot, 0, len(made))
	for i, job := range jobs {
		job, err := t.await(job)
		if failed = cmp.Or(failed, err); err == nil && job.Result != nil && job.Result.Snapshot != nil {
			s := *job.Result.Snapshot
			s.PauseMS, s.DurableMS = made[i].PauseMS, made[i].DurableMS
			whole = append(whole, s)
		}
	}
	if failed != nil && len(whole) == 0 {
		return failed
	}
	return cmp.Or(failed, t.print(whole, func(w *table) { drawMade(w, whole) }))
}

func drawMade(w *table, made []contract.Snapshot) {
	w.row("SNAPSHOT", "CREATED", "SIZE", "WRITERS WAITED", "DURABLE AFTER")
	for _, s := range made {
		w.row(s.Ref(), localTime(&s.CreatedAt), humanSize(s.Size), milliseconds(s.PauseMS), milliseconds(s.DurableMS))
	}
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
		copyNote(s), yes(s.Suspect, "file changed by somebody else"), yes(s.Protected, "protected"), yes(s.Automatic, "automatic"),
		yes(s.Head, "present descends from it"),
	}
	for _, clone := range s.Clones {
		n = append(n, "clone "+clone)
	}
	return listed(append(n, joined(s.Labels))...)
}

// copyNote says what kind of copy a snapshot is, or how far that is.
func copyNote(s contract.Snapshot) string {
	switch {
	case s.Copied != nil:
		return fmt.Sprintf("%s, %s copied", s.Technique, percent(*s.Copied))
	case s.Class == "physical":
		return s.Technique
	}
	return ""
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
	return t.print(s, func(w *table) { drawSnapshot(w, s) })
}

func drawSnapshot(w *table, s contract.Snapshot) {
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
	w.field("file", s.File)
	if s.Copied != nil {
		w.row("copied", percent(*s.Copied))
		w.field("by job", s.CopyJob)
	}
	w.field("on full", s.OnFull)
	w.row("expires", cmp.Or(localTime(s.ExpiresAt), "never"))
	w.field("parent", s.Parent)
	w.field("notes", notes(s))
	for _, step := range s.Steps {
		w.row("step "+step.Name, milliseconds(&step.MS))
	}
	w.field("writers waited", milliseconds(s.PauseMS))
	w.field("durable after", milliseconds(s.DurableMS))
}

type snapshotCopy struct {
	Snapshot string `arg:"" help:"Snapshot, VOLUME@NAME."`
}

// Run goes on with a copy.
func (c snapshotCopy) Run(t *terminal) error {
	job, err := t.client.CopySnapshot(t.ctx, c.Snapshot)
	if err != nil {
		return err
	}
	return t.finish(job, func(r *contract.Result) error {
		if r.Snapshot == nil {
			return nil
		}
		return t.showSnapshot(*r.Snapshot)
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
