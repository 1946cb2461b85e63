package faulty

import (
	"context"
	"path"
	"slices"
	"sync"
	"sync/atomic"
)

// Fault makes operations of one client fail, or return damaged bytes.
type Fault struct {
	// Op selects operations of one kind; empty: all.
	Op Op
	// Pattern selects names, as path.Match has it ("packs/*/*"); empty: all.
	Pattern string
	// Skip is how many such operations go well first, and Times how many fail then; 0: all.
	Skip, Times int

	// Err is what they fail with, such as objects.ErrUnavailable, after they have been done if After is set.
	Err   error
	After bool
	// Damage alters what a Read or Get returns, where Err is nil.
	Damage func(p []byte)
}

// faultState is an injected Fault and what became of it.
type faultState struct {
	Fault
	mu      sync.Mutex
	matched int
}

// Inject adds a fault to this client; the returned function removes it.
func (s *Store) Inject(f Fault) (remove func()) {
	if _, err := path.Match(f.Pattern, ""); err != nil {
		panic(err)
	}
	state := &faultState{Fault: f}
	s.hooks.Lock()
	defer s.hooks.Unlock()
	s.faults = append(s.faults, state)
	return func() {
		s.hooks.Lock()
		defer s.hooks.Unlock()
		s.faults = slices.DeleteFunc(s.faults, func(x *faultState) bool { return x == state })
	}
}

// hit tells whether the fault applies to an operation that it might concern, and counts it.
func (f *faultState) hit(op Op, name string) bool {
	if f.Op != "" && f.Op != op {
		return false
	}
	if matches, _ := path.Match(f.Pattern, name); f.Pattern != "" && !matches {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.matched++
	return f.matched > f.Skip && (f.Times == 0 || f.matched <= f.Skip+f.Times)
}

func (s *Store) injected() (Hook, []*faultState) {
	s.hooks.RLock()
	defer s.hooks.RUnlock()
	return s.hook, slices.Clone(s.faults)
}

// call asks the hook, then the faults.
func (s *Store) call(ctx context.Context, c Call) error {
	hook, faults := s.injected()
	if hook != nil {
		if err := hook(ctx, c); err != nil {
			return err
		}
	}
	for _, f := range faults {
		if f.Err != nil && f.After == c.After && f.hit(c.Op, c.Name) {
			return f.Err
		}
	}
	return nil
}

// damage alters what was read as faults have it.
func (s *Store) damage(op Op, name string, p []byte) {
	_, faults := s.injected()
	for _, f := range faults {
		if f.Err == nil && f.Damage != nil && f.hit(op, name) {
			f.Damage(p)
		}
	}
}

// Stop is a place where a client is held: see StopAt.
type Stop struct {
	reached, release chan struct{}
	once             sync.Once
}

// StopAt holds the client at the first call that match selects, until it is released or the operation's context ends. It
// takes the place of the hook.
func (s *Store) StopAt(match func(Call) bool) *Stop {
	stop := &Stop{reached: make(chan struct{}), release: make(chan struct{})}
	var held atomic.Bool
	s.SetHook(func(ctx context.Context, c Call) error {
		if !match(c) || held.Swap(true) {
			return nil
		}
		close(stop.reached)
		select {
		case <-stop.release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	return stop
}

// Reached is closed when the client is held.
func (s *Stop) Reached() <-chan struct{} { return s.reached }

// Release lets it go on, or through if it has not come there yet.
func (s *Stop) Release() { s.once.Do(func() { close(s.release) }) }
