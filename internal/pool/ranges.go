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
	held  []*reservation
	freed chan struct{} // closed, and replaced, when something is given back; nil: nobody waits
}

// reservation is what somebody has reserved, in order.
type reservation struct{ spans []span }

// reserve waits until none of the spans is reserved, reserves all of them, and returns what gives them back. Who
// holds a reservation must not ask for another one.
func (r *ranges) reserve(spans []span) (release func()) {
	own := &reservation{united(spans)}
	r.mu.Lock()
	for r.taken(own) {
		if r.freed == nil {
			r.freed = make(chan struct{})
		}
		freed := r.freed
		r.mu.Unlock()
		<-freed
		r.mu.Lock()
	}
	r.held = append(r.held, own)
	r.mu.Unlock()
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.held = slices.DeleteFunc(r.held, func(o *reservation) bool { return o == own })
		if r.freed != nil {
			close(r.freed)
			r.freed = nil
		}
	}
}

func (r *ranges) taken(own *reservation) bool {
	return slices.ContainsFunc(r.held, own.meets)
}

// meets tells whether two reservations have a block in common.
func (r *reservation) meets(o *reservation) bool {
	few, many := r.spans, o.spans
	if len(few) > len(many) {
		few, many = many, few
	}
	for _, s := range few {
		i, _ := slices.BinarySearchFunc(many, s.lo, func(m span, lo uint64) int { return cmp.Compare(m.hi, lo+1) })
		if i < len(many) && many[i].lo < s.hi {
			return true
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

// spansOf joins blocks, in order, to spans.
func spansOf(lbas []uint64) []span {
	var out []span
	for _, lba := range lbas {
		if n := len(out); n > 0 && out[n-1].hi == lba {
			out[n-1].hi++
		} else {
			out = append(out, span{lba, lba + 1})
		}
	}
	return out
}
