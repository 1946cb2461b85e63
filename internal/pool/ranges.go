package pool

import (
	"cmp"
	"slices"
	"sync"
)

// span is a range of blocks, from lo up to hi.
type span struct{ lo, hi uint64 }

// ranges are reservations of blocks: whoever looks at a block, keeps what it holds and overwrites it
// does so alone. The zero value is ready.
type ranges struct {
	mu    sync.Mutex
	held  []span
	freed chan struct{} // closed, and replaced, when something is given back; nil: nobody waits
}

// reserve waits until none of the spans is reserved, reserves all of them, and returns what gives them back. Who
// holds a reservation must not ask for another one.
func (r *ranges) reserve(spans []span) (release func()) {
	spans = united(spans)
	r.mu.Lock()
	for r.taken(spans) {
		if r.freed == nil {
			r.freed = make(chan struct{})
		}
		freed := r.freed
		r.mu.Unlock()
		<-freed
		r.mu.Lock()
	}
	r.held = append(r.held, spans...)
	r.mu.Unlock()
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, s := range spans {
			i := slices.Index(r.held, s)
			r.held[i] = r.held[len(r.held)-1]
			r.held = r.held[:len(r.held)-1]
		}
		if r.freed != nil {
			close(r.freed)
			r.freed = nil
		}
	}
}

func (r *ranges) taken(spans []span) bool {
	for _, s := range spans {
		for _, h := range r.held {
			if s.lo < h.hi && h.lo < s.hi {
				return true
			}
		}
	}
	return false
}

// united sorts spans and joins those that touch.
func united(spans []span) []span {
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.lo, b.lo) })
	out := spans[:0]
	for _, s := range spans {
		if n := len(out); n > 0 && s.lo <= out[n-1].hi {
			out[n-1].hi = max(out[n-1].hi, s.hi)
		} else if s.lo < s.hi {
			out = append(out, s)
		}
	}
	return out
}
