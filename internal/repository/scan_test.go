package repository_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"

	"varve/internal/backup"
	"varve/internal/block"
	"varve/internal/block/memdisk"
	"varve/internal/objects"
	"varve/internal/objects/faulty"
	"varve/internal/repository"
)

// farStore answers each read late, and knows how many wait.
type farStore struct {
	objects.Store
	delay        time.Duration
	asked        atomic.Int64
	waiting, max atomic.Int64
}

func (s *farStore) Read(ctx context.Context, name string, p []byte, off int64) error {
	s.asked.Add(1)
	s.max.Store(max(s.max.Load(), s.waiting.Add(1)))
	defer s.waiting.Add(-1)
	select {
	case <-time.After(s.delay):
	case <-ctx.Done():
		return ctx.Err()
	}
	return s.Store.Read(ctx, name, p, off)
}

// noisy makes a backup of so many bytes that do not compress.
func noisy(t *testing.T, st objects.Store, size int64) (*repository.Repo, repository.Backup) {
	t.Helper()
	d, err := memdisk.New(size)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.NewChaCha8([32]byte{})
	for off := int64(0); off < size; off += 1 << 20 {
		op := &block.Op{Kind: block.OpWrite, Offset: off, Data: make([]byte, 1<<20), Length: 1 << 20}
		r.Read(op.Data)
		if d.Submit(t.Context(), []*block.Op{op}); op.Err != nil {
			t.Fatal(op.Err)
		}
	}
	repo := create(t, st)
	rec, err := backup.Create(t.Context(), repo, []*backup.Source{{Device: d, Volume: "v", VolumeID: uuid.UUID{1}, Name: "v", Type: repository.Full}}, backup.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return repo, rec.Backups[0]
}

// A store that answers late is asked for much at once, in large pieces, and little is waited for. Who gives up waits no longer.
func TestScanOfAFarStore(t *testing.T) {
	const (
		size  = 128 << 20
		delay = time.Minute // all else takes no time beside it
	)
	st := faulty.New()
	repo, b := noisy(t, st, size)
	err := repo.Scan(t.Context(), repo.Tree(b.Root), 0, repo.Regions(size), nil, 1, func(*repository.Scanned) error { return nil })
	if err != nil { // what several share is made before anybody is in a bubble
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		far := &farStore{Store: st, delay: delay}
		repo := open(t, far)
		far.asked.Store(0)
		began, next := time.Now(), uint64(0)
		err := repo.Scan(t.Context(), repo.Tree(b.Root), 0, repo.Regions(size), nil, 1, func(s *repository.Scanned) error {
			if s.Index != next {
				t.Errorf("region %d comes after %d others", s.Index, next)
			}
			next++
			return errors.Join(s.Errs...)
		})
		if err != nil || next != repo.Regions(size) {
			t.Fatal(next, err)
		}
		// 8 windows of several requests each; a pack of four has its directory read before.
		if waits := int(time.Since(began) / delay); waits > 12 {
			t.Errorf("it waited %d times", waits)
		}
		if n := far.asked.Load(); n > 64 || far.max.Load() < 4 {
			t.Errorf("%d requests, at most %d at once", n, far.max.Load())
		}

		ctx, giveUp := context.WithCancel(t.Context())
		repo = open(t, far)
		began = time.Now()
		time.AfterFunc(delay/2, giveUp)
		err = repo.Scan(ctx, repo.Tree(b.Root), 0, repo.Regions(size), nil, 1, func(*repository.Scanned) error { return nil })
		if !errors.Is(err, context.Canceled) || time.Since(began) > delay/2 {
			t.Errorf("who gave up had %v after %v", err, time.Since(began))
		}
	})
}
