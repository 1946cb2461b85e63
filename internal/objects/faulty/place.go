package faulty

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// Now is what the place's clock says.
func (s *Store) Now() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

// SetTime sets the clock, also back.
func (s *Store) SetTime(t time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = t
}

// Advance lets time pass.
func (s *Store) Advance(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = s.now.Add(d)
}

// SetCapacity limits the bytes of all objects together: what would need more is refused with objects.ErrFull. Negative: no limit.
func (s *Store) SetCapacity(bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.capacity = bytes
}

// UsedBytes is the size of all objects together.
func (s *Store) UsedBytes() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used
}

// SetExclusive tells whether the place can tell that a name is taken. If not, Put replaces.
func (s *Store) SetExclusive(exclusive bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shared = !exclusive
}

// SetLockable tells whether the place has object locks. What is locked stays so.
func (s *Store) SetLockable(lockable bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lockable = lockable
}

// LockedUntil is the end of an object's retention; zero if there is none.
func (s *Store) LockedUntil(name string) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.objects[name].locked
}

// Destroy makes every operation of every client fail with objects.ErrNoStore; not forever, if destroyed is false.
func (s *Store) Destroy(destroyed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.destroyed = destroyed
}

// Names are those of all objects, sorted.
func (s *Store) Names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.objects))
}

// Bytes is an object's content, to look at only; nil if there is none.
func (s *Store) Bytes(name string) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.objects[name].data
}

// Change gives an object the content that change makes of its own, which it may alter. Its age and lock stay. It panics
// if there is no such object.
func (s *Store) Change(name string, change func(data []byte) []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, ok := s.objects[name]
	if !ok {
		panic(fmt.Sprintf("no object %s to change", name))
	}
	o.data = change(slices.Clone(o.data))
	s.set(name, o)
}

// Plant puts an object as if it had always been there, in place of one that is, asking no hook and no lock.
func (s *Store) Plant(name string, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.set(name, object{data: slices.Clone(data), modified: s.now})
}

// Lose removes an object, asking no hook and no lock.
func (s *Store) Lose(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remove(name)
}

// Swap exchanges the contents of two objects.
func (s *Store) Swap(a, b string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	x, y := s.objects[a], s.objects[b]
	x.data, y.data = y.data, x.data
	s.objects[a], s.objects[b] = x, y
}
