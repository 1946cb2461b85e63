package seglog

import (
	"sync"
	"sync/atomic"
)

// writebackBytes is how much is written before the kernel is asked to begin to write it out, so that
// a later sync finds little left to do.
const writebackBytes = 8 << 20

// writeback has the kernel begin to write out what was appended. Asking takes as long as queueing the pages
// does, so it is done beside the writers.
type writeback struct {
	from  int64 // in the active segment: before, it was asked for; guarded by Log.mu
	busy  atomic.Bool
	under sync.WaitGroup
}

// appended notes that active ends at end now, for the last time or not. What cannot be asked for while the
// last range is still being queued is asked for later, or left to a sync. Log.mu is held.
func (w *writeback) appended(l *Log, end int64, last bool) {
	if length := end - w.from; length < writebackBytes && !last || length == 0 || w.busy.Swap(true) {
		return
	}
	s, off, length := l.active, w.from, end-w.from
	w.from = end
	l.segments.retain([]*segment{s})
	w.under.Go(func() {
		defer w.busy.Store(false)
		defer l.segments.release(s)
		s.file.StartWriteback(off, length)
	})
}
