package repository

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/fxamacker/cbor/v2"

	"varve/internal/objects"
	"varve/internal/repository/envelope"
)

const (
	pinPrefix = "pins/"
	// pinFor is how long a pin holds after it was put, and pinEvery how often it is put again.
	pinFor   = 30 * time.Minute
	pinEvery = pinFor / 3
)

// Pin keeps a backup's data from being pruned while it is read, also after it was deleted. It is renewed
// until it is released; one that could not be renewed in time has lapsed, and its reader stops.
type Pin struct {
	repo   *Repo
	id     string // of the pin
	backup string
	end    context.CancelFunc
	done   sync.WaitGroup

	mu    sync.Mutex
	until time.Time // by this process's clock, counted from before the request
	seq   int
}

type wirePin struct {
	Backup []byte `cbor:"1,keyasint"`
	For    int64  `cbor:"2,keyasint"` // nanoseconds, counted from when it was put by the store's clock
}

func encodePin(w wirePin) ([]byte, error) { return cbor.Marshal(w) }

// Pin pins a backup.
func (r *Repo) Pin(ctx context.Context, backup string) (*Pin, error) {
	p := &Pin{repo: r, id: newObjectID(), backup: backup}
	if r.noWrite != nil {
		p.end = func() {}
		return p, nil
	}
	if err := p.renew(ctx); err != nil {
		if errors.Is(err, objects.ErrDenied) {
			// Credentials that can only read: the grace is what protects the reader, for as long as it lasts.
			p.end, p.until = func() {}, time.Now().Add(r.config.Grace/2)
			return p, nil
		}
		return nil, fmt.Errorf("pin backup %s: %w", backup, err)
	}
	if _, err := r.Backup(ctx, backup); err != nil {
		return nil, err // deleted between being found and being pinned
	}
	ctx, p.end = context.WithCancel(context.WithoutCancel(ctx))
	p.done.Go(func() {
		tick := time.NewTicker(pinEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				// One that fails is tried again at the next tick, and twice more before it lapses.
				_ = p.renew(ctx)
			case <-ctx.Done():
				return
			}
		}
	})
	return p, nil
}

func (p *Pin) renew(ctx context.Context) error {
	p.mu.Lock()
	seq := p.seq
	p.mu.Unlock()
	plain, err := encodePin(wirePin{Backup: idBytes(p.backup), For: int64(pinFor)})
	if err != nil {
		return err
	}
	before := time.Now()
	if _, err := p.repo.putSmall(ctx, envelope.Pin, pinName(p.id, seq), plain); err != nil {
		return err
	}
	p.mu.Lock()
	p.until, p.seq = before.Add(pinFor), seq+1
	p.mu.Unlock()
	if seq > 0 {
		_ = p.repo.store.Delete(ctx, pinName(p.id, seq-1))
	}
	return nil
}

func pinName(id string, seq int) string { return fmt.Sprintf("%s%s.%d", pinPrefix, id, seq) }

// Err is ErrLapsed once what is read may be gone.
func (p *Pin) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.until.IsZero() && time.Now().Round(0).After(p.until.Round(0)) {
		return fmt.Errorf("pin of backup %s: %w", p.backup, ErrLapsed)
	}
	return nil
}

// Release gives the pin back.
func (p *Pin) Release() {
	p.end()
	p.done.Wait()
	p.mu.Lock()
	seq := p.seq
	p.mu.Unlock()
	if seq > 0 {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = p.repo.store.Delete(ctx, pinName(p.id, seq-1)) // if this fails it expires
	}
}

// Pinned are the backups that somebody reads, given what time it is by the store's clock; expired are the names of pins that hold no more.
func (r *Repo) Pinned(ctx context.Context, now time.Time) (held map[string]bool, expired []string, err error) {
	var found []objects.Info
	err = r.store.List(ctx, pinPrefix, func(i objects.Info) error {
		if !isCopy(i.Name) {
			found = append(found, i)
		}
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	held = map[string]bool{}
	for _, i := range found {
		_, plain, err := r.keys.LoadObject(ctx, r.store, i.Name, envelope.Pin)
		if errors.Is(err, objects.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("read %s: %w", i.Name, err)
		}
		var w wirePin
		if err := decode(plain, &w); err != nil {
			return nil, nil, fmt.Errorf("read %s: %w", i.Name, err)
		}
		if now.Sub(i.Modified) > time.Duration(w.For) {
			expired = append(expired, i.Name)
			continue
		}
		held[fmt.Sprintf("%x", w.Backup)] = true
	}
	return held, expired, nil
}

// isCopy tells the name of a copy that a repair made.
func isCopy(name string) bool {
	return envelope.Stem(name) != name && !strings.HasPrefix(name, "keys/") && !strings.HasPrefix(name, "config")
}
