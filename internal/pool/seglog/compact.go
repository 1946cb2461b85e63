package seglog

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"syscall"

	"varve/internal/block"
	"varve/internal/vfs"
)

// File is a file of the log that is not written to any more, or the one that is.
type File struct {
	Segments []uint64 // whose blocks it has, ascending: one, or what a pack has
	Bytes    int64    // that it takes on the disk
	Pack     uint64   // number; 0: not a pack
}

const (
	// CompactBelow is the share of a file that may be live for a rewrite to be worth it.
	CompactBelow = 0.9
	// punchRun is the shortest run of dead blocks that is worth a hole, and how much may be copied
	// instead of making one: docs/design/reclaim.md has the measurements.
	punchRun = 64 << 10
	// packShare: a segment of which less than one in so many blocks is left goes into a pack.
	packShare = 16

	rewriteSuffix = ".new"
)

// Compacted tells what was done to files of the log.
type Compacted struct {
	Freed     int64 // bytes
	Copied    int64 // bytes
	Removed   int   // files of which nothing was left
	Rewritten int   // files that became shorter
	Packed    int   // files whose blocks went into a pack
	Punched   int   // files in which holes were made
}

func (c *Compacted) add(o Compacted) {
	c.Freed += o.Freed
	c.Copied += o.Copied
	c.Removed += o.Removed
	c.Rewritten += o.Rewritten
	c.Packed += o.Packed
	c.Punched += o.Punched
}

// Compactor makes files of the log smaller that are neither written to nor replayed any more. After a crash
// each is as before or as after. It is for one goroutine, and the only one to change these files.
type Compactor struct {
	log     *Log
	pending []leftover // to be packed together
	bytes   int64      // of their live blocks
	most    int64      // that are put into one pack: less where the disk has no room for more
	full    bool       // the disk has no room for a copy: only what little is left is still copied
}

// leftover is a file of which little is left, or a pack.
type leftover struct {
	File
	live  map[uint64]BlockSet
	bytes int64 // of its live blocks
}

// NewCompactor returns a Compactor.
func (l *Log) NewCompactor() *Compactor { return &Compactor{log: l, most: l.cfg.SegmentBytes} }

// Compact keeps only the live blocks of a file, which live has by segment, nil where none are. It removes the file, makes holes,
// rewrites it densely, or keeps it back to be packed together with others, whichever gives most for least;
// and leaves it where that gives too little. The error of a file that cannot be read or rewritten leaves that file as it was,
// and others may be compacted, unless it is ErrStopped.
func (c *Compactor) Compact(f File, live map[uint64]BlockSet) (Compacted, error) {
	var blocks int64
	for _, id := range f.Segments {
		blocks += int64(live[id].Count())
	}
	switch most := max(c.log.cfg.SegmentBytes/packShare, block.Size); {
	case blocks == 0:
		return c.log.remove(f)
	case f.Pack == 0 && blocks*block.Size > most:
		return c.one(f.Segments[0], live[f.Segments[0]])
	case f.Pack == 0 && float64(blocks*block.Size) > CompactBelow*float64(f.Bytes):
		return Compacted{}, nil
	case f.Pack != 0 && c.full:
		return c.punchAll(f, live)
	}
	var done Compacted
	var err error
	if c.bytes+blocks*block.Size > c.most {
		done, err = c.Flush()
	}
	if !errors.Is(err, ErrStopped) {
		c.pending = append(c.pending, leftover{f, live, blocks * block.Size})
		c.bytes += blocks * block.Size
	}
	return done, err
}

// remove removes a file of which nothing is left.
func (l *Log) remove(f File) (Compacted, error) {
	s, err := l.segments.acquire(f.Segments[0])
	if err != nil {
		return Compacted{}, err
	}
	defer l.segments.release(s)
	if err := l.retire(s, f); err != nil {
		return Compacted{}, err
	}
	return Compacted{Freed: f.Bytes, Removed: 1}, nil
}

// retire takes a file away whose blocks are dead, or elsewhere; the caller holds it.
func (l *Log) retire(s *segment, f File) error {
	l.segments.retire(s)
	if f.Pack != 0 {
		l.segments.dropPack(f.Pack)
	}
	return l.discard(s)
}

// one makes the file of one segment smaller, of which not little is left.
func (c *Compactor) one(id uint64, live BlockSet) (Compacted, error) {
	l := c.log
	s, err := l.segments.acquire(id)
	if err != nil {
		return Compacted{}, err
	}
	defer l.segments.release(s)
	size, allocated, err := l.sizes(s)
	if err != nil {
		return Compacted{}, err
	}
	sets := map[uint64]BlockSet{id: live}
	runs, left := s.deadRuns(sets, size, punchRun)
	bytes, d := int64(live.Count())*block.Size, newDense(live)
	want := 2*d.header + bytes
	dense := float64(want) <= CompactBelow*float64(allocated)
	enough := !dense || float64(bytes) >= CompactBelow*float64(left)
	if gain := allocated - left; gain >= punchRun && enough && int64(len(runs))*punchRun <= bytes && !l.noHoles.Load() {
		return l.punch(s, runs, gain)
	}
	if !dense {
		return Compacted{}, nil
	}
	if !c.full {
		err = c.retry(func() error { return l.rewrite(s, d) })
		c.full = noRoom(err)
	}
	if c.full && !l.noHoles.Load() {
		return l.punchAll(s, sets)
	}
	if err != nil {
		return Compacted{}, fmt.Errorf("rewrite segment %016x: %w", id, err)
	}
	if c.full {
		return Compacted{}, nil
	}
	l.segments.retire(s)
	if s.index == nil {
		if err := l.discard(s); err != nil {
			return Compacted{}, err
		}
	}
	return Compacted{Freed: allocated - want, Copied: want, Rewritten: 1}, nil
}

// retry does what needs space, a second time without spare files where these take it.
func (c *Compactor) retry(f func() error) error {
	err := NoSpace(f())
	if noRoom(err) && c.log.SpareBytes() > 0 {
		if err = c.log.KeepSpares(0); err == nil {
			err = NoSpace(f())
		}
	}
	return err
}

// noRoom tells whether the disk is too full for a copy.
func noRoom(err error) bool { return errors.Is(err, block.ErrNoSpace) && !errors.Is(err, ErrStopped) }

// punchAll makes holes of whatever is dead in a file for whose copy there is no room.
func (c *Compactor) punchAll(f File, live map[uint64]BlockSet) (Compacted, error) {
	if c.log.noHoles.Load() {
		return Compacted{}, nil
	}
	s, err := c.log.segments.acquire(f.Segments[0])
	if err != nil {
		return Compacted{}, err
	}
	defer c.log.segments.release(s)
	return c.log.punchAll(s, live)
}

// punchAll makes holes of dead runs however short: that is slow, and takes no room.
func (l *Log) punchAll(s *segment, live map[uint64]BlockSet) (Compacted, error) {
	size, allocated, err := l.sizes(s)
	if err != nil {
		return Compacted{}, err
	}
	runs, left := s.deadRuns(live, size, block.Size)
	return l.punch(s, runs, allocated-left)
}

// sizes returns the length of an open file and what it takes on the disk.
func (l *Log) sizes(s *segment) (length, allocated int64, err error) {
	length, allocated, err = l.stat(l.segments.path(s))
	if err != nil {
		return 0, 0, fmt.Errorf("size of %s: %w", s, err)
	}
	return length, allocated, nil
}

func (l *Log) stat(name string) (length, allocated int64, err error) {
	fi, err := l.cfg.FS.Stat(name)
	if err != nil {
		return 0, 0, err
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return fi.Size(), st.Blocks * 512, nil
	}
	return fi.Size(), fi.Size(), nil
}

// extent is a range of a file in bytes.
type extent struct{ off, length int64 }

// deadRuns finds the runs of dead bytes in a file that are as long as shortest, and how much of the file is not in one. live
// is by segment.
func (s *segment) deadRuns(live map[uint64]BlockSet, size, shortest int64) (runs []extent, left int64) {
	var run extent
	end := func() {
		if run.length >= shortest {
			runs = append(runs, run)
		} else {
			left += run.length
		}
		run = extent{}
	}
	visit := func(at int64, keep bool) {
		if keep {
			end()
			left += block.Size
		} else if run.length += block.Size; run.length == block.Size {
			run.off = at
		}
	}
	switch x := s.index.(type) {
	case *dense:
		of, at := live[s.id], x.header
		for i := x.live.next(0); i >= 0; i = x.live.next(i + 1) {
			visit(at, of.Has(i))
			at += block.Size
		}
		left += 2 * x.header
	case *pack:
		for k, id := range x.ids {
			for i := x.first[k]; i < x.first[k+1]; i++ {
				visit(x.header+int64(i)*block.Size, live[id].Has(int(x.blocks[i])))
			}
		}
		left += 2 * x.header
	default:
		of := live[s.id]
		for at := int64(0); at < size; at += block.Size {
			visit(at, of.Has(int(at/block.Size)))
		}
	}
	end()
	return runs, left
}

// punch makes holes of dead runs. It needs no order and no sync: a hole that a crash forgets, or leaves half made,
// is dead all the same.
func (l *Log) punch(s *segment, runs []extent, gain int64) (Compacted, error) {
	_, before, err := l.sizes(s)
	if err != nil {
		return Compacted{}, err
	}
	for _, r := range runs {
		if err := s.file.PunchHole(r.off, r.length); err != nil {
			return Compacted{}, fmt.Errorf("make a hole in %s: %w", s, err)
		}
	}
	_, after, err := l.sizes(s)
	if err != nil {
		return Compacted{}, err
	}
	if before-after < gain/2 {
		l.noHoles.Store(true) // the file system writes zeros instead, or does not tell
	}
	return Compacted{Freed: before - after, Punched: 1}, nil
}

// rewrite puts a dense file beside a segment's, or in the place of an older dense one. Where both have a name the dense one counts.
func (l *Log) rewrite(s *segment, d *dense) error {
	header := l.encodeDense(s.id, d)
	return l.replace(l.segments.denseName(s.id), func(f vfs.File) error {
		w := copier{file: f}
		w.write(header)
		w.copyLive(s, s.id, d.live)
		w.write(header)
		return w.err
	})
}

// replace makes a file durable, and then gives it its name, durably.
func (l *Log) replace(target string, fill func(vfs.File) error) error {
	name := target + rewriteSuffix
	if err := l.cfg.FS.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := l.cfg.FS.Create(name)
	if err != nil {
		return err
	}
	err = fill(f)
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = l.cfg.FS.Rename(name, target)
	}
	if err != nil {
		_ = l.cfg.FS.Remove(name) // it is removed when the pool is opened, too
		return err
	}
	if err := l.cfg.FS.SyncDir(l.cfg.Dir); err != nil {
		// It may have been the one report that the name of a new segment is lost.
		return l.stop(fmt.Errorf("sync directory of segments: %w", err))
	}
	return nil
}

// copier writes a file from its beginning to its end.
type copier struct {
	file       vfs.File
	buf        []byte
	at         int64
	err        error
	unreadable uint64 // the segment whose blocks could not be read, if that is what failed
}

func (w *copier) write(b []byte) {
	if w.err == nil {
		w.err = w.file.WriteAt([][]byte{b}, w.at)
		from := w.at / writebackBytes
		w.at += int64(len(b))
		if to := w.at / writebackBytes; to > from {
			w.file.StartWriteback(from*writebackBytes, (to-from)*writebackBytes)
		}
	}
}

// copyLive appends live blocks of a segment.
func (w *copier) copyLive(s *segment, id uint64, live BlockSet) {
	const run = 256 // blocks copied at a time
	if w.buf == nil {
		w.buf = make([]byte, run*block.Size)
	}
	for i := live.next(0); i >= 0 && w.err == nil; {
		n := 1
		for n < run && live.Has(i+n) {
			n++
		}
		p := w.buf[:n*block.Size]
		if err := s.readAt(id, int64(i)*block.Size, p); err != nil {
			w.unreadable, w.err = id, fmt.Errorf("read segment %016x: %w", id, err)
			return
		}
		w.write(p)
		i = live.next(i + n)
	}
}

// Flush packs what was kept back. Where the disk has no room for a pack of it all, smaller ones make room for the rest; what not even
// by itself can be copied gets holes.
func (c *Compactor) Flush() (Compacted, error) {
	var done Compacted
	var failed error
	for len(c.pending) > 0 {
		n, bytes := 1, c.pending[0].bytes
		for n < len(c.pending) && bytes+c.pending[n].bytes <= c.most {
			bytes += c.pending[n].bytes
			n++
		}
		files := c.pending[:n]
		one, err := c.packReadable(files)
		switch {
		case noRoom(err) && n > 1:
			c.most = bytes / 2
			continue
		case noRoom(err):
			c.full = true
			if !c.log.noHoles.Load() {
				one, err = c.punchAll(files[0].File, files[0].live)
			}
		case err == nil: // which gave back more than it took
			c.most = min(2*c.most, c.log.cfg.SegmentBytes)
		}
		done.add(one)
		failed = errors.Join(failed, err)
		c.pending = c.pending[n:]
		if c.bytes -= bytes; errors.Is(err, ErrStopped) {
			break
		}
	}
	return done, failed
}

// packReadable puts files into a pack, but for those that cannot be read: they stay as they are. Where there is no
// room for it, it does nothing.
func (c *Compactor) packReadable(files []leftover) (Compacted, error) {
	var failed error
	for len(files) > 0 {
		done, unreadable, err := c.pack(files)
		if noRoom(err) {
			return Compacted{}, err
		}
		failed = errors.Join(failed, err)
		if unreadable == 0 {
			return done, failed
		}
		files = slices.DeleteFunc(slices.Clone(files), func(f leftover) bool { return slices.Contains(f.Segments, unreadable) })
	}
	return Compacted{}, failed
}

// pack puts the live blocks of files into a pack. If a segment cannot be read it returns which, and does nothing.
func (c *Compactor) pack(files []leftover) (done Compacted, unreadable uint64, err error) {
	l := c.log
	held := make([]*segment, 0, len(files))
	defer func() { l.segments.releaseAll(held) }()
	of, live := map[uint64]*segment{}, map[uint64]BlockSet{}
	for _, f := range files {
		s, err := l.segments.acquire(f.Segments[0])
		if err != nil {
			return Compacted{}, f.Segments[0], err
		}
		held = append(held, s)
		for _, id := range f.Segments {
			if of[id] = s; f.live[id] != nil {
				live[id] = f.live[id]
			}
		}
	}
	k := newPack(slices.Sorted(maps.Keys(live)), live)
	l.segments.lastPack++
	number := l.segments.lastPack
	header := l.encodePack(number, k)
	err = c.retry(func() error {
		return l.replace(l.segments.packName(number), func(f vfs.File) error {
			w := copier{file: f}
			w.write(header)
			for _, id := range k.ids {
				w.copyLive(of[id], id, live[id])
			}
			w.write(header)
			unreadable = w.unreadable
			return w.err
		})
	})
	if err != nil {
		return Compacted{}, unreadable, fmt.Errorf("pack %d files: %w", len(files), err)
	}
	l.segments.setPacked(k.ids, number)
	size := 2*k.header + int64(len(k.blocks))*block.Size
	done = Compacted{Freed: -size, Copied: size, Packed: len(files)}
	for i, f := range files {
		if e := l.retire(held[i], f.File); e != nil {
			err = errors.Join(err, e)
		} else {
			done.Freed += f.Bytes
		}
	}
	return done, 0, err
}

// removeLeftovers removes what interrupted rewrites left, and the spares of an earlier process.
func (l *Log) removeLeftovers() error {
	names, err := l.cfg.FS.List(l.cfg.Dir)
	if err != nil {
		return err
	}
	exists := make(map[string]bool, len(names))
	for _, n := range names {
		exists[n] = true
	}
	for _, p := range l.segments.packed {
		for _, n := range []string{path.Base(l.segments.name(p.segment)), path.Base(l.segments.denseName(p.segment))} {
			if exists[n] {
				exists[n] = false
				if err := l.removeLeftover(n); err != nil {
					return err
				}
			}
		}
	}
	packs := l.segments.contents()
	for _, n := range l.segments.loaded {
		if packs[n] == nil { // others have all of it
			if err := l.removeLeftover(path.Base(l.segments.packName(n))); err != nil {
				return err
			}
		}
	}
	l.segments.loaded = nil
	for _, n := range names {
		number, written := strings.CutSuffix(n, segmentSuffix)
		superseded := written && exists[n] && exists[number+denseSuffix]
		if superseded || strings.HasSuffix(n, rewriteSuffix) || strings.HasSuffix(n, spareSuffix) {
			if err := l.removeLeftover(n); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *Log) removeLeftover(name string) error {
	if err := l.cfg.FS.Remove(path.Join(l.cfg.Dir, name)); err != nil {
		return fmt.Errorf("remove the leftover %s: %w", name, err)
	}
	return nil
}
