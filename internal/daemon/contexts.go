package daemon

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"varve/internal/nbd/server"
	"varve/internal/pool"
)

// changedPrefixes begin the names of meta contexts that tell what has changed since a snapshot or bookmark. QEMU
// and those who speak with it know the second one.
var changedPrefixes = []string{"varve:changed:", "qemu:dirty-bitmap:"}

// listedPoints is of how many snapshots and bookmarks the contexts are listed, the newest ones. By its exact name a client
// selects any: a client that lists all exports with all contexts of each would else be sent the square of their number.
const listedPoints = 64

// contexts are the meta contexts of an export beside base:allocation.
type contexts struct{ device *pool.Device }

// Names implements server.ContextSource.
func (c contexts) Names(context.Context) ([]string, error) {
	points := c.device.OlderNames(listedPoints)
	var names []string
	for _, prefix := range changedPrefixes {
		for _, point := range points {
			names = append(names, prefix+point)
		}
	}
	return names, nil
}

func pointOf(name string) (string, bool) {
	for _, prefix := range changedPrefixes {
		if point, ok := strings.CutPrefix(name, prefix); ok {
			return point, true
		}
	}
	return "", false
}

// Has implements server.ContextSource.
func (c contexts) Has(_ context.Context, name string) bool {
	point, ok := pointOf(name)
	return ok && c.device.HasOlder(point)
}

// Open implements server.ContextSource. What is compared with stays until the device is closed.
func (c contexts) Open(_ context.Context, name string) (server.MetaContext, error) {
	point, ok := pointOf(name)
	if !ok {
		return nil, server.ErrUnknownContext
	}
	changes, err := c.device.ChangesSince(point)
	if errors.Is(err, pool.ErrNotFound) {
		return nil, fmt.Errorf("%w: %w", server.ErrUnknownContext, err)
	} else if err != nil {
		return nil, err
	}
	return changed{changes}, nil
}

// stateChanged is bit 0 of these contexts; qemu calls it dirty.
const stateChanged = 1

type changed struct{ changes *pool.Changes }

// Status implements server.MetaContext.
func (c changed) Status(ctx context.Context, off, length int64, limit int) ([]server.Status, error) {
	runs, err := c.changes.Runs(ctx, off, length, limit)
	if err != nil {
		return nil, err
	}
	out := make([]server.Status, len(runs))
	for i, r := range runs {
		out[i].Length = r.Length
		if r.Changed {
			out[i].Flags = stateChanged
		}
	}
	return out, nil
}
