package daemon

import (
	"context"
	"log/slog"
	"maps"
	"sync"
	"time"

	"varve/internal/contract"
	"varve/internal/pool"
)

// maxEvents is how many events are remembered; older ones are in the log only.
const maxEvents = 1000

// journal remembers the latest events and writes each to the log.
type journal struct {
	log *slog.Logger

	mu     sync.Mutex
	events []contract.Event          // oldest first
	broken map[string]contract.Event // by kind and object: the latest
}

// brokenPromises are the kinds of event after which `status --check` fails.
var brokenPromises = map[string]bool{pool.EventDamage: true, pool.EventWriteStop: true}

// warnings are the kinds of event that will become broken promises unless something is done.
var warnings = map[string]bool{pool.EventSpace: true, pool.EventSpaceFull: true, pool.EventReclaimFailed: true}

func newJournal(log *slog.Logger) *journal {
	return &journal{log: log, broken: map[string]contract.Event{}}
}

// poolEvent takes what the pool tells; it never blocks for long.
func (j *journal) poolEvent(e pool.Event) {
	j.add(contract.Event{Time: contract.Time{Time: e.Time}, Kind: e.Kind, Object: e.Object, Message: e.Message})
}

func (j *journal) add(e contract.Event) {
	level := slog.LevelInfo
	switch {
	case brokenPromises[e.Kind]:
		level = slog.LevelError
	case warnings[e.Kind]:
		level = slog.LevelWarn
	}
	j.log.Log(context.Background(), level, e.Message, "event", e.Kind, "object", e.Object)
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.events) == maxEvents {
		j.events = append(j.events[:0], j.events[1:]...)
	}
	j.events = append(j.events, e)
	if brokenPromises[e.Kind] && len(j.broken) < maxEvents {
		j.broken[e.Kind+" "+e.Object] = e
	}
}

// checked takes what a check of the whole pool found that began at a time. It knows better than what clients met before
// that: some of it may have been overwritten or deleted.
func (j *journal) checked(began, now time.Time, check *contract.Check) {
	j.mu.Lock()
	maps.DeleteFunc(j.broken, func(_ string, e contract.Event) bool { return e.Kind == pool.EventDamage && e.Time.Before(began) })
	j.mu.Unlock()
	if n := len(check.Damage); n > 0 {
		j.add(contract.Event{
			Time: contract.Time{Time: now}, Kind: pool.EventDamage, Object: "pool",
			Message: "a check found " + count(n, "damaged place") + "; varve pool check lists what is left of it",
		})
	}
}

// latest returns up to n events, oldest first.
func (j *journal) latest(n int) []contract.Event {
	j.mu.Lock()
	defer j.mu.Unlock()
	return append([]contract.Event{}, j.events[max(0, len(j.events)-n):]...)
}

// problems returns the broken promises seen since the daemon started, but for damage that a later check did not find.
func (j *journal) problems() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	out := make([]string, 0, len(j.broken))
	for _, e := range j.broken {
		out = append(out, e.Object+": "+e.Message)
	}
	return out
}
