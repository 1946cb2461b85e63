package prune_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"

	"varve/internal/objects/faulty"
)

// stage lets clients of a store take turns, one request at a time.
type stage struct {
	mu      sync.Mutex
	changed *sync.Cond
	actors  []*actor
}

// actor is a client that stops before every request.
type actor struct {
	name    string
	st      *faulty.Store
	stage   *stage
	waiting []*turn
	running *turn // let go, and not executed yet
	killed  bool
	done    bool
	err     error
}

type turn struct {
	faulty.Call
	begin    chan error
	executed bool
}

var errKilled = errors.New("killed")

func newStage() *stage {
	s := &stage{}
	s.changed = sync.NewCond(&s.mu)
	return s
}

// enter starts an actor. do uses the store through the client that it is given.
func (s *stage) enter(name string, st *faulty.Store, do func(ctx context.Context, st *faulty.Store) error) *actor {
	a := &actor{name: name, st: st.Client(), stage: s}
	a.st.SetHook(a.hook)
	s.mu.Lock()
	s.actors = append(s.actors, a)
	s.mu.Unlock()
	go func() {
		err := do(context.Background(), a.st)
		s.mu.Lock()
		defer s.mu.Unlock()
		a.done, a.err = true, err
		s.changed.Broadcast()
	}()
	return a
}

func (a *actor) hook(ctx context.Context, c faulty.Call) error {
	s := a.stage
	s.mu.Lock()
	if c.After {
		if t := a.running; t != nil && t.Op == c.Op && t.Name == c.Name {
			t.executed = true
			a.running = nil
			s.changed.Broadcast()
		}
		s.mu.Unlock()
		return nil
	}
	if a.killed {
		s.mu.Unlock()
		return errKilled
	}
	t := &turn{Call: c, begin: make(chan error, 1)}
	a.waiting = append(a.waiting, t)
	s.changed.Broadcast()
	s.mu.Unlock()
	// A request that is cancelled may never be made.
	context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		t.executed = true
		s.changed.Broadcast()
	})
	return <-t.begin
}

// settle waits until every actor waits for a turn or has ended, and returns those that have not.
func (s *stage) settle() (alive []*actor) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		alive = alive[:0]
		ready := true
		for _, a := range s.actors {
			if !a.done {
				alive = append(alive, a)
				ready = ready && len(a.waiting) > 0
			}
		}
		if ready {
			return alive
		}
		s.changed.Wait()
	}
}

// step lets an actor make one of the requests that it waits for, and returns when it is made.
func (s *stage) step(a *actor, r *rand.Rand) faulty.Call {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(a.waiting) == 0 && !a.done {
		s.changed.Wait()
	}
	if a.done {
		return faulty.Call{}
	}
	i := r.IntN(len(a.waiting))
	t := a.waiting[i]
	a.waiting = append(a.waiting[:i:i], a.waiting[i+1:]...)
	a.running = t
	t.begin <- nil
	for !t.executed {
		s.changed.Wait()
	}
	return t.Call
}

// kill ends an actor as a power cut does: none of its requests is made any more.
func (s *stage) kill(a *actor) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a.killed = true
	for _, t := range a.waiting {
		t.begin <- errKilled
	}
	a.waiting = nil
	for !a.done {
		s.changed.Wait()
	}
}

// until lets an actor go on until it waits for a request that match selects, or has ended.
func (s *stage) until(a *actor, match func(faulty.Call) bool) (reached bool) {
	for {
		s.mu.Lock()
		for len(a.waiting) == 0 && !a.done {
			s.changed.Wait()
		}
		if a.done {
			s.mu.Unlock()
			return false
		}
		first := a.waiting[0].Call
		s.mu.Unlock()
		if match(first) {
			return true
		}
		s.stepFirst(a)
	}
}

// stepFirst lets an actor make the request for which it has waited longest.
func (s *stage) stepFirst(a *actor) {
	s.mu.Lock()
	rest := a.waiting[1:]
	a.waiting = a.waiting[:1:1]
	s.mu.Unlock()
	s.step(a, rand.New(rand.NewPCG(1, 1)))
	s.mu.Lock()
	a.waiting = append(rest[:len(rest):len(rest)], a.waiting...)
	s.mu.Unlock()
}

// finish lets an actor go on to its end.
func (s *stage) finish(a *actor) error {
	if s.until(a, func(faulty.Call) bool { return false }) {
		panic("unreachable")
	}
	if _, err := a.ended(); err != nil {
		return fmt.Errorf("%s: %w", a.name, err)
	}
	return nil
}

// next is the request that an actor waits for to make.
func (a *actor) next() faulty.Call {
	a.stage.mu.Lock()
	defer a.stage.mu.Unlock()
	return a.waiting[0].Call
}

// ended tells whether an actor has, and how.
func (a *actor) ended() (bool, error) {
	a.stage.mu.Lock()
	defer a.stage.mu.Unlock()
	return a.done, a.err
}
