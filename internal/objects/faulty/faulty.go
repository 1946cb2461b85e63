// Package faulty is a store of objects in memory that fails as told: the test double of a repository's store.
//
// It is strongly consistent, has a clock of its own that moves only when it is told to, and counts nothing. Vocabulary: a place
// is what the objects lie in; a Store is one client of it. Clients share objects, clock and capacity (see Client), and
// each has its own hook and faults, so that a test can let one host fail, wait or be cut off while others go on.
//
// A hook is called before and after each operation. Waiting in it suspends the client there; an error from the call before
// fails the operation undone, from the call after it fails an operation that was done: the answer is lost.
// Faults are ready-made hooks.
package faulty

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"varve/internal/objects"
)

// Op is a kind of operation.
type Op string

// The operations of objects.Store.
const (
	Put    Op = "put"
	Read   Op = "read"
	Get    Op = "get"
	Stat   Op = "stat"
	List   Op = "list"
	Delete Op = "delete"
	Retain Op = "retain"
)

// Call is one operation that a client asks for.
type Call struct {
	Op   Op
	Name string // of the object; of a list its prefix
	// After tells that the operation has been tried, and Err with what result.
	After bool
	Err   error
}

func (c Call) String() string {
	when := "before"
	if c.After {
		when = "after"
	}
	return fmt.Sprintf("%s %s %s", when, c.Op, c.Name)
}

// Hook is called before and after each operation, by the goroutine that asks for it; the result, if not nil, is the operation's.
// It may use any store but through the client that it hooks only with care for itself.
type Hook func(ctx context.Context, c Call) error

// Store is one client of a place.
type Store struct {
	*place

	hooks  sync.RWMutex // guards what follows
	hook   Hook
	faults []*faultState
}

var _ objects.Store = (*Store)(nil)

// place is what clients share.
type place struct {
	mu        sync.Mutex // guards all below
	objects   map[string]object
	now       time.Time
	capacity  int64 // bytes of all objects; negative: no limit
	used      int64
	shared    bool // Put replaces
	lockable  bool
	destroyed bool
}

// object is never changed, so that clones share its content.
type object struct {
	data     []byte
	modified time.Time
	locked   time.Time // until when
}

// Epoch is what the clock of a new place says.
var Epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// New is a client of a new, empty place without a limit of space, exclusive and without locks.
func New() *Store {
	return &Store{place: &place{objects: make(map[string]object), now: Epoch, capacity: -1}}
}

// Client is another client of the same place, without hook and faults.
func (s *Store) Client() *Store { return &Store{place: s.place} }

// Clone is a client of another place that is now as this one is.
func (s *Store) Clone() *Store {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &Store{place: &place{
		objects: maps.Clone(s.objects), now: s.now, capacity: s.capacity, used: s.used,
		shared: s.shared, lockable: s.lockable, destroyed: s.destroyed,
	}}
}

// SetHook sets the client's hook; nil removes it.
func (s *Store) SetHook(h Hook) {
	s.hooks.Lock()
	defer s.hooks.Unlock()
	s.hook = h
}

// operate runs one operation between the calls of hooks and faults.
func (s *Store) operate(ctx context.Context, op Op, name string, do func() error) error {
	check := objects.CheckName
	if op == List {
		check = objects.CheckPrefix
	}
	if err := check(name); err != nil {
		return err
	}
	c := Call{Op: op, Name: name}
	err := s.call(ctx, c)
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		c.Err, c.After = s.try(do), true
		err = c.Err
		if lost := s.call(ctx, c); lost != nil {
			err = lost
		}
	}
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %s: %w", op, name, err)
}

// try does an operation with the place locked.
func (s *Store) try(do func() error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.destroyed {
		return objects.ErrNoStore
	}
	return do()
}

// Put implements objects.Store.
func (s *Store) Put(ctx context.Context, name string, data [][]byte, o objects.PutOptions) error {
	size, err := objects.Size(data)
	if err != nil {
		return fmt.Errorf("put %s: %w", name, err)
	}
	if err := wait(ctx, objects.UploadPace(ctx), int(size)); err != nil {
		return fmt.Errorf("put %s: %w", name, err)
	}
	return s.operate(ctx, Put, name, func() error {
		old, taken := s.objects[name]
		switch {
		case taken && !s.shared:
			return objects.ErrExists
		case taken && old.locked.After(s.now):
			return objects.ErrLocked
		case !o.LockUntil.IsZero() && !s.lockable:
			return errors.ErrUnsupported
		case s.capacity >= 0 && s.used-int64(len(old.data))+size > s.capacity:
			return objects.ErrFull
		}
		s.set(name, object{data: slices.Concat(data...), modified: s.now, locked: o.LockUntil})
		return nil
	})
}

// set stores an object, with the place locked.
func (s *Store) set(name string, o object) {
	s.used += int64(len(o.data)) - int64(len(s.objects[name].data))
	s.objects[name] = o
}

// remove removes one, with the place locked.
func (s *Store) remove(name string) {
	s.used -= int64(len(s.objects[name].data))
	delete(s.objects, name)
}

// wait keeps to a pace before n bytes are moved.
func wait(ctx context.Context, p objects.Pace, n int) error {
	for n > 0 {
		piece := min(n, p.Piece())
		if err := p.Wait(ctx, piece); err != nil {
			return err
		}
		n -= piece
	}
	return nil
}

// Read implements objects.Store.
func (s *Store) Read(ctx context.Context, name string, p []byte, off int64) error {
	err := wait(ctx, objects.DownloadPace(ctx), len(p))
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	err = s.operate(ctx, Read, name, func() error {
		o, ok := s.objects[name]
		if !ok {
			return objects.ErrNotFound
		}
		size := int64(len(o.data))
		if off < 0 || off > size || int64(len(p)) > size-off {
			return objects.ErrShort
		}
		copy(p, o.data[off:])
		return nil
	})
	if err == nil {
		s.damage(Read, name, p)
	}
	return err
}

// Get implements objects.Store.
func (s *Store) Get(ctx context.Context, name string) (data []byte, err error) {
	err = s.operate(ctx, Get, name, func() error {
		o, ok := s.objects[name]
		if !ok {
			return objects.ErrNotFound
		}
		data = slices.Clone(o.data)
		return nil
	})
	if err == nil {
		err = wait(ctx, objects.DownloadPace(ctx), len(data))
	}
	if err != nil {
		return nil, err
	}
	s.damage(Get, name, data)
	return data, nil
}

// Stat implements objects.Store.
func (s *Store) Stat(ctx context.Context, name string) (info objects.Info, err error) {
	err = s.operate(ctx, Stat, name, func() error {
		o, ok := s.objects[name]
		if !ok {
			return objects.ErrNotFound
		}
		info = o.info(name)
		return nil
	})
	return info, err
}

func (o object) info(name string) objects.Info {
	return objects.Info{Name: name, Size: int64(len(o.data)), Modified: o.modified}
}

// List implements objects.Store: it visits what there is when it begins.
func (s *Store) List(ctx context.Context, prefix string, visit func(objects.Info) error) error {
	var found []objects.Info
	err := s.operate(ctx, List, prefix, func() error {
		for name, o := range s.objects {
			if strings.HasPrefix(name, prefix) {
				found = append(found, o.info(name))
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	slices.SortFunc(found, func(a, b objects.Info) int { return strings.Compare(a.Name, b.Name) })
	for _, info := range found {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("list %s: %w", prefix, err)
		}
		if err := visit(info); err != nil {
			return err
		}
	}
	return nil
}

// Delete implements objects.Store.
func (s *Store) Delete(ctx context.Context, name string) error {
	return s.operate(ctx, Delete, name, func() error {
		if s.objects[name].locked.After(s.now) {
			return objects.ErrLocked
		}
		s.remove(name)
		return nil
	})
}

// Retain implements objects.Store.
func (s *Store) Retain(ctx context.Context, name string, until time.Time) error {
	return s.operate(ctx, Retain, name, func() error {
		o, ok := s.objects[name]
		switch {
		case !s.lockable:
			return errors.ErrUnsupported
		case !ok:
			return objects.ErrNotFound
		case until.After(o.locked):
			o.locked = until
			s.objects[name] = o
		}
		return nil
	})
}

// Exclusive implements objects.Store.
func (s *Store) Exclusive() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.shared
}

// URL implements objects.Store.
func (s *Store) URL() string { return "memory:" }

// Close implements objects.Store.
func (s *Store) Close() error { return nil }
