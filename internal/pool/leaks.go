package pool

import (
	"fmt"
	"path"

	"varve/internal/pool/seglog"
)

// leaks compares what is in the pool's directory with what volumes and snapshots refer to. Segments from end on are not
// reclaimed yet.
func (c *checker) leaks(end uint64) error {
	p := c.pool
	if err := c.strayFiles(); err != nil {
		return err
	}
	files, err := p.log.Files()
	if err != nil {
		return err
	}
	for _, n := range c.live {
		c.report.LiveBytes += n
	}
	var whole []Leak
	var wholeBytes int64
	for _, f := range files {
		c.report.LogBytes += f.Bytes
		if len(f.Segments) == 0 {
			c.report.Leaks = append(c.report.Leaks, Leak{Object: fmt.Sprintf("pack %016x", f.Pack), Bytes: f.Bytes, Message: "it cannot be read, and is kept in case that it can be some day"})
			continue
		}
		if f.Segments[len(f.Segments)-1] >= end {
			continue
		}
		live := int64(0)
		for _, id := range f.Segments {
			live += c.live[id]
		}
		c.report.GarbageBytes += max(f.Bytes-live, 0)
		if live == 0 {
			wholeBytes += f.Bytes
			what := fmt.Sprintf("segment %016x", f.Segments[0])
			if f.Pack != 0 {
				what = fmt.Sprintf("pack %016x", f.Pack)
			}
			whole = append(whole, Leak{Object: what, Bytes: f.Bytes, Message: "no volume or snapshot refers to anything in it"})
		}
	}
	// Reclaim works when enough has gathered, so that some garbage is in order.
	if c.report.GarbageBytes <= worthBusy(c.report.LiveBytes) {
		return nil
	}
	c.report.Leaks = append(c.report.Leaks, whole[:min(len(whole), maxFindings)]...)
	if rest := c.report.GarbageBytes - wholeBytes; rest > 0 {
		c.report.Leaks = append(c.report.Leaks, Leak{Object: "log", Bytes: rest, Message: "ranges of segments that no volume or snapshot refers to"})
	}
	return nil
}

// strayFiles lists what is in the pool's directory and belongs to nothing.
func (c *checker) strayFiles() error {
	p := c.pool
	names, err := p.opts.FS.List(p.opts.Dir)
	if err != nil {
		return err
	}
	for _, n := range names {
		switch n {
		case superblockName, logDirName, lockName, reserveName:
		case newSuperblockName:
			c.stray(n, "left by a creation or repair that was cut short")
		default:
			c.stray(n, notOurs)
		}
	}
	// A reclaim that is under way has files of its own.
	idle := p.reclaimer.cycles.TryLock()
	if idle {
		defer p.reclaimer.cycles.Unlock()
	}
	names, err = p.opts.FS.List(path.Join(p.opts.Dir, logDirName))
	if err != nil {
		return err
	}
	for _, n := range names {
		switch kind := seglog.KindOf(n, names); {
		case kind == seglog.ForeignFile:
			c.stray(path.Join(logDirName, n), notOurs)
		case kind == seglog.LeftoverFile && idle:
			c.stray(path.Join(logDirName, n), "left by a reclaim that was cut short; the next opening removes it")
		}
	}
	return nil
}

const notOurs = "not of this pool; move it away"

func (c *checker) stray(name, message string) {
	if len(c.report.Leaks) >= maxFindings {
		return
	}
	fi, err := c.pool.opts.FS.Stat(path.Join(c.pool.opts.Dir, name))
	if err != nil {
		return // it went meanwhile
	}
	c.report.Leaks = append(c.report.Leaks, Leak{Object: name, Bytes: fi.Size(), Message: message})
}
