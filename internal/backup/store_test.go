package backup

import (
	"context"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"varve/internal/objects"
	"varve/internal/objects/faulty"
	"varve/internal/repository"
)

// However many chunks are under way when the store fails or stalls, or the context ends, the backup ends, leaves nothing
// behind in memory, and is there whole or not at all.
func TestBackupEndsWhereverTheStoreFails(t *testing.T) {
	content, changed := noise(1<<20), noise(34<<20+512) // one pack is put while the next is filled
	place := faulty.New()
	base := one(t, newRepo(t, place, 1<<20), content, nil, nil).Backups[0]
	before := runtime.NumGoroutine()
	ways := []string{"fails", "is left", "stalls"}
	for n, reached := 0, true; reached; n++ {
		st := place.Clone()
		repo, err := repository.Open(t.Context(), st, repository.OpenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var calls atomic.Int64
		st.SetHook(func(ctx context.Context, c faulty.Call) error {
			if c.After || calls.Add(1) <= int64(n) {
				return nil
			}
			return fail(ctx, cancel, ways[n%3], c)
		})
		s := &Source{Device: filled(t, changed), Volume: "v", VolumeID: uuid.UUID{1}, Name: "v", Type: repository.Incremental, Base: &base}
		done := make(chan error, 1)
		go func() {
			_, err := Create(ctx, repo, []*Source{s}, Options{})
			done <- err
		}()
		select {
		case err = <-done:
		case <-time.After(30 * time.Second):
			t.Fatalf("the store %s at request %d: the backup does not end\n%s", ways[n%3], n, stacks())
		}
		cancel()
		st.SetHook(nil)
		if reached = calls.Load() > int64(n); !reached && err != nil {
			t.Fatal(err)
		}
		if repo, err = repository.Open(t.Context(), st, repository.OpenOptions{}); err != nil {
			t.Fatal(err)
		}
		all, unreadable, err := repo.Backups(t.Context())
		if err != nil || len(unreadable) > 0 || !reached && len(all) != 2 {
			t.Fatalf("the store %s at request %d: %d backups, %v", ways[n%3], n, len(all), err)
		}
		holds(t, repo, base.ID, content)
		if len(all) == 2 {
			holds(t, repo, all[1].ID, changed)
		}
	}
	for start := time.Now(); runtime.NumGoroutine() > before+2; time.Sleep(time.Millisecond) {
		if time.Since(start) > 10*time.Second {
			t.Fatalf("%d goroutines, %d before\n%s", runtime.NumGoroutine(), before, stacks())
		}
	}
}

// fail is what a store does from some request on; cancel is the user's.
func fail(ctx context.Context, cancel func(), how string, c faulty.Call) error {
	switch {
	case how == "fails":
		return objects.ErrUnavailable
	case how == "is left":
		cancel()
		return nil
	case c.Op == faulty.Put && strings.HasPrefix(c.Name, "candidates/"):
		return objects.ErrUnavailable // what is told to the next session is a courtesy, and has its time
	}
	cancel()
	<-ctx.Done()
	return ctx.Err()
}

func stacks() []byte {
	b := make([]byte, 1<<20)
	return b[:runtime.Stack(b, true)]
}
