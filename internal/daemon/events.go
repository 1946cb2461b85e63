package daemon

import (
	"context"
	"log/slog"
	"sync"

	"varve/internal/contract"
	"varve/internal/pool"
)

// maxEvents is how many events are remembered; older ones are in the log only.
const maxEvents = 1000

// journal remembers the latest events and writes each to the log.
type journal struct {
	log *slog.Logger

	mu     sync.Mutex
	events []contract.Event // oldest first
	broken map[string]string
}

// brokenPromises are the kinds of event after which `status --check` fails.
var brokenPromises = map[string]bool{"damage": true, "write-stop": true}

func newJournal(log *slog.Logger) *journal {
	return &journal{log: log, broken: map[string]string{}}
}

// poolEvent takes what the pool tells; it never blocks for long.
func (j *journal) poolEvent(e pool.Event) {
	j.add(contract.Event{Time: contract.Time{Time: e.Time}, Kind: e.Kind, Object: e.Object, Message: e.Message})
}

func (j *journal) add(e contract.Event) {
	level := slog.LevelInfo
	if brokenPromises[e.Kind] {
		level = slog.LevelError
	}
	j.log.Log(context.Background(), level, e.Message, "event", e.Kind, "object", e.Object)
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.events) == maxEvents {
		j.events = append(j.events[:0], j.events[1:]...)
	}
	j.events = append(j.events, e)
	if brokenPromises[e.Kind] && len(j.broken) < maxEvents {
		j.broken[e.Kind+" "+e.Object] = e.Object + ": " + e.Message
	}
}

// latest returns up to n events, oldest first.
func (j *journal) latest(n int) []contract.Event {
	j.mu.Lock()
	defer j.mu.Unlock()
	return append([]contract.Event{}, j.events[max(0, len(j.events)-n):]...)
}

// problems returns the broken promises seen since the daemon started.
func (j *journal) problems() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	out := make([]string, 0, len(j.broken))
	for _, message := range j.broken {
		out = append(out, message)
	}
	return out
}
