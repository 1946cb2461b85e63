package pool

import (
	"testing"
	"time"
)

// The less room is left the longer a writer waits, behind those who wait already; there is no step in it, and no end.
func TestWritersSlowDownInProportion(t *testing.T) {
	var r reclaimer
	r.marked.Store(1 << 30)
	const bytes = 1 << 20
	if d := r.delay(r.slow(), bytes); d != 0 {
		t.Errorf("with room enough a writer waits %v", d)
	}
	last := time.Duration(0)
	for room := r.slow(); room >= 0; room -= r.slow() / 200 {
		r.next = time.Time{}
		d := r.delay(room, bytes)
		if d < last || d-last > 25*time.Millisecond {
			t.Errorf("with %d bytes of room a writer waits %v, with a little more %v", room, d, last)
		}
		last = d
	}
	if slowest := time.Second * bytes / paceLeast; last != slowest {
		t.Errorf("without any room a writer waits %v, want %v", last, slowest)
	}
	r.next = time.Time{}
	first, second := r.delay(1<<20, bytes), r.delay(1<<20, bytes)
	if second <= first {
		t.Errorf("one waits %v, and who comes behind %v", first, second)
	}
	r.stuck.Store(true)
	if d := r.delay(0, bytes); d != 0 {
		t.Errorf("where cycles give nothing back a writer waits %v", d)
	}
}

// A goal leaves no more garbage the emptier the files are, and each less than the one before.
func TestGoals(t *testing.T) {
	for _, live := range []int64{0, 1 << 20, 1 << 30, 1 << 40} {
		for _, share := range []float64{0, 0.3, 0.6, 0.9} {
			all, well, busy := cleanAll(live, share), cleanWell(live, share), cleanBusy(live, share)
			if all != 0 || well <= all || busy <= well || busy < cleanBusy(live, 0) {
				t.Errorf("live %d, share %g: %d, %d, %d", live, share, all, well, busy)
			}
			var r reclaimer
			r.marked.Store(live)
			// A cycle begins before writers are slowed down, and leaves less than what that begins with.
			if bound := live/10*spaceTenth + spaceSlack; worthBusy(live) > bound-r.slow() {
				t.Errorf("live %d: a cycle leaves %d, and writers are slowed down from %d on", live, busy, bound-r.slow())
			}
		}
	}
}
