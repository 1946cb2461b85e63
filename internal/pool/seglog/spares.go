package seglog

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"

	"varve/internal/vfs"
)

// spares are files of segments that went, kept to be written again as new segments: their pages
// are in memory and their blocks allocated, so that a write is a copy and a sync changes nothing but data. What
// they hold is never taken for a part of the log, as every header names the segment and place that it was
// written for, and a number is never used again. They do not outlive the process.
type spares struct {
	mu    sync.Mutex
	limit int64 // bytes
	bytes int64
	files []spare
}

type spare struct {
	name string
	file vfs.File
	size int64
}

const spareSuffix = ".spare"

// add keeps a file, unless there are enough.
func (s *spares) add(f spare) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bytes+f.size > s.limit {
		return false
	}
	s.files = append(s.files, f)
	s.bytes += f.size
	return true
}

// take returns the file that was kept last, whose pages are the likeliest to be in memory.
func (s *spares) take() (spare, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.files) == 0 {
		return spare{}, false
	}
	f := s.files[len(s.files)-1]
	s.files = s.files[:len(s.files)-1]
	s.bytes -= f.size
	return f, true
}

// surplus takes out what is beyond the limit.
func (s *spares) surplus(limit int64) []spare {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limit = limit
	n := 0
	for s.bytes > limit {
		s.bytes -= s.files[n].size
		n++
	}
	out := s.files[:n:n]
	s.files = s.files[n:]
	return out
}

// close closes the files; what is left of them is removed by the next opening.
func (s *spares) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.files {
		_ = f.file.Close() // nothing in it is of use
	}
	s.files, s.bytes, s.limit = nil, 0, 0
}

// SpareBytes is how much the files take that are kept to be written again.
func (l *Log) SpareBytes() int64 {
	l.spares.mu.Lock()
	defer l.spares.mu.Unlock()
	return l.spares.bytes
}

// KeepSpares sets how many bytes of removed segments' files may be kept to be written again, and
// removes what is more than that.
func (l *Log) KeepSpares(limit int64) error {
	var failed error
	for _, f := range l.spares.surplus(limit) {
		_ = f.file.Close() // nothing in it is of use
		if err := l.cfg.FS.Remove(f.name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed = fmt.Errorf("remove spare segment file: %w", err)
		}
	}
	return failed
}

// discard removes a file that the segment s, retired and held by the caller alone, no
// longer has, or keeps it as a spare: not one with holes in it.
func (l *Log) discard(s *segment) error {
	name := l.segments.path(s)
	size, allocated, err := l.sizes(s)
	if err != nil {
		return err
	}
	if s.index == nil && size >= l.cfg.SegmentBytes/2 && allocated >= size && l.segments.take(s) {
		f := spare{strings.TrimSuffix(name, segmentSuffix) + spareSuffix, s.file, size}
		if err := l.cfg.FS.Rename(name, f.name); err != nil {
			l.segments.giveBack(s)
		} else if l.spares.add(f) {
			return nil
		} else {
			l.segments.giveBack(s)
			name = f.name
		}
	}
	if err := l.cfg.FS.Remove(name); err != nil {
		return fmt.Errorf("remove %s: %w", s, err)
	}
	return nil
}

// create makes the file of a new segment, from a spare one if there is any.
// It returns how long the file is.
func (l *Log) create(name string) (vfs.File, int64, error) {
	if f, ok := l.spares.take(); ok {
		err := l.cfg.FS.Rename(f.name, name)
		if err == nil {
			return f.file, f.size, nil
		}
		_ = f.file.Close() // nothing in it is of use
		return nil, 0, err
	}
	f, err := l.cfg.FS.Create(name)
	return f, 0, err
}
