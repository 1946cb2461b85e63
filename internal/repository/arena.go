package repository

import (
	"sync"

	"varve/internal/repository/pack"
)

// slabBytes is what arenas take memory in: a few chunks of any size, with what is behind each of them, fill it.
const slabBytes = 2<<20 + 4<<10

// slabs are free memory. A sync.Pool would lose it to each garbage collection, and take as much again.
type slabs struct {
	mu   sync.Mutex
	free []*[slabBytes]byte
}

func (s *slabs) take() *[slabBytes]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	last := len(s.free) - 1
	if last < 0 {
		return new([slabBytes]byte)
	}
	slab := s.free[last]
	s.free = s.free[:last]
	return slab
}

func (s *slabs) put(all []*[slabBytes]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free = append(s.free, all...)
}

// arena is memory that is given out piece by piece, and goes back all at once, for others to use. It may be used concurrently.
type arena struct {
	from *slabs

	mu    sync.Mutex
	slabs []*[slabBytes]byte
	used  int // of the last
}

// room returns that many bytes of unknown content, and the decoder's slack behind them.
func (a *arena) room(bytes int) []byte {
	need := bytes + pack.Slack
	if need > slabBytes {
		return make([]byte, bytes, need)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.slabs) == 0 || a.used+need > slabBytes {
		a.slabs = append(a.slabs, a.from.take())
		a.used = 0
	}
	p := a.slabs[len(a.slabs)-1][a.used:][:bytes:need]
	a.used += need
	return p
}

// free gives it back: whoever has got some of it has to be done.
func (a *arena) free() {
	a.from.put(a.slabs)
	a.slabs = nil
}
