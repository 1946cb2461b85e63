package pack

import (
	"math/bits"
	"sync"
	"sync/atomic"
)

// Packs are built in segments of this size, which pass from one to the next.
const segmentBytes = 1 << 20

var freeSegments = sync.Pool{New: func() any { return new([segmentBytes]byte) }}

// segments is memory that grows by segments. Its slices are full but for the last.
type segments struct {
	slices [][]byte
	freed  atomic.Bool
}

// room is what is left of the last segment: an empty slice with the capacity that is left.
func (s *segments) room() []byte {
	if n := len(s.slices); n > 0 {
		last := s.slices[n-1]
		return last[len(last):]
	}
	return nil
}

// extend adds what was written into room.
func (s *segments) extend(bytes int) {
	last := &s.slices[len(s.slices)-1]
	*last = (*last)[:len(*last)+bytes]
}

// write adds a copy of b.
func (s *segments) write(b []byte) {
	for len(b) > 0 {
		room := s.room()
		if cap(room) == 0 {
			s.slices = append(s.slices, freeSegments.Get().(*[segmentBytes]byte)[:0])
			continue
		}
		n := copy(room[:cap(room)], b)
		s.extend(n)
		b = b[n:]
	}
}

// free gives the memory to whoever builds next.
func (s *segments) free() {
	if s.freed.Swap(true) {
		return
	}
	for _, b := range s.slices {
		freeSegments.Put((*[segmentBytes]byte)(b[:segmentBytes]))
	}
	s.slices = nil
}

// freeBuffers are for what is read and opened: those of 2^i bytes at i.
var freeBuffers [28]sync.Pool

// buffer returns that many bytes of unknown content, and what gives them to the next who asks.
func buffer(bytes int) (b []byte, free func()) {
	class := max(bits.Len(uint(max(bytes, 1)-1)), 12)
	if class >= len(freeBuffers) {
		return make([]byte, bytes), func() {}
	}
	p, _ := freeBuffers[class].Get().(*[]byte)
	if p == nil {
		p = new(make([]byte, 1<<class))
	}
	return (*p)[:bytes], func() { freeBuffers[class].Put(p) }
}
