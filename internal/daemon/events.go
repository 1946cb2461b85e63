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
var brokenPromises = map[string]bool{
	pool.EventDamage: true, pool.EventWriteStop: true, pool.EventPlaceLost: true, pool.EventPlaceChanged: true,
}

// warnings are the kinds of event that will become broken promises unless something is done.
var warnings = map[string]bool{pool.EventSpace: true, pool.EventSpaceFull: true, pool.EventReclaimFailed: true, pool.EventSnapshotDropped: true,
	pool.EventBaseLost: true, mismatchEvent: true, backupFailed: true, damagedEvent: true}

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
		j.broken[brokenKey(e.Kind, e.Object)] = e
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

// problems returns the broken promises seen since the daemon started, but for damage that a later check did not find,
// and for what fileProblems tells.
func (j *journal) problems() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	out := make([]string, 0, len(j.broken))
	for _, e := range j.broken {
		if e.Kind != pool.EventPlaceLost && e.Kind != pool.EventPlaceChanged {
			out = append(out, e.Object+": "+e.Message)
		}
	}
	return out
}

func brokenKey(kind, object string) string { return kind + " " + object }

// brokenBy returns what was last told of this kind about an object; empty if nothing was.
func (j *journal) brokenBy(kind, object string) string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.broken[brokenKey(kind, object)].Message
}

// renamedFile has what was wrong with the file of a volume told of its new name.
func (j *journal) renamedFile(from, to string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, kind := range []string{pool.EventPlaceLost, pool.EventPlaceChanged} {
		if e, ok := j.broken[brokenKey(kind, from)]; ok {
			delete(j.broken, brokenKey(kind, from))
			j.broken[brokenKey(kind, to)] = e
		}
	}
}

// forgetFile forgets what was wrong with the file of a volume that is deleted: another one may have its name next.
func (j *journal) forgetFile(volume string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.broken, brokenKey(pool.EventPlaceLost, volume))
	delete(j.broken, brokenKey(pool.EventPlaceChanged, volume))
}
