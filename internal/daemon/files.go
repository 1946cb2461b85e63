package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"varve/internal/pool"
)

// fileProblems tells what is wrong with the files of inplace volumes: those that cannot be used, or are gone from their paths, those
// that failed since the daemon started, and those that somebody else has changed: as long as a snapshot is affected, and in the daemon that found it.
func (d *Daemon) fileProblems() []string {
	var out []string
	for _, info := range d.pool.Volumes() {
		if info.Path == "" {
			continue
		}
		if info.Broken != "" {
			out = append(out, info.Name+": "+info.Broken)
		} else if _, err := os.Lstat(info.Path); errors.Is(err, fs.ErrNotExist) {
			out = append(out, fmt.Sprintf("%s: file %s was moved or deleted while it is served; put it back before the daemon ends, or the volume is lost to it", info.Name, info.Path))
		} else if failed := d.journal.brokenBy(pool.EventPlaceLost, info.Name); failed != "" {
			out = append(out, info.Name+": "+failed)
		}
		if changed := d.journal.brokenBy(pool.EventPlaceChanged, info.Name); changed != "" {
			out = append(out, info.Name+": "+changed)
		} else if n := d.suspects(info); n > 0 {
			out = append(out, fmt.Sprintf("%s: somebody else has changed file %s; what %s of before that had in it is not served", info.Name, info.Path, count(n, "snapshot")))
		}
	}
	return append(out, d.lostCopies()...)
}

// lostCopies tells which snapshots cannot be read, because the file that has their content is gone.
func (d *Daemon) lostCopies() (out []string) {
	for _, s := range d.pool.InFiles() {
		if _, err := os.Stat(s.Copy.Path); err != nil {
			out = append(out, fmt.Sprintf("%s@%s: the file that has its content cannot be found: %v", s.Volume, s.Name, err))
		}
	}
	return out
}

// suspects counts the snapshots with blocks in a volume's file that are not to be relied on.
func (d *Daemon) suspects(info pool.VolumeInfo) (n int) {
	if !info.Suspect {
		return 0
	}
	snapshots, err := d.pool.Snapshots("")
	if err != nil {
		return 0 // of all volumes it cannot fail
	}
	for _, s := range snapshots {
		if s.Suspect && s.Base == info.Name {
			n++
		}
	}
	return n
}

// poolEvent takes what the pool tells; it never blocks for long, and asks nothing of the pool.
func (d *Daemon) poolEvent(e pool.Event) {
	d.journal.poolEvent(e)
	if e.Kind == pool.EventSnapshotDropped {
		d.dropped.Store(true)
		d.snapshotsChanged()
	}
}

// forgetDropped forgets how the snapshots were made that the pool has given up.
func (d *Daemon) forgetDropped() {
	if !d.dropped.Swap(false) {
		return
	}
	known := d.timings.ids() // first: one that is made meanwhile is not among them
	snapshots, err := d.pool.Snapshots("")
	if err != nil {
		return
	}
	there := map[string]bool{}
	for _, s := range snapshots {
		there[s.ID.String()] = true
	}
	for _, id := range known {
		if !there[id] {
			d.timings.forget(id)
		}
	}
}
