package repository

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
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
	// pinAgain is how soon a reader tries again to renew one that has lapsed.
	pinAgain = 10 * time.Second
)

// Pin keeps a backup's data from being pruned while it is read, also after it was deleted. It is renewed
// until it is released; one that could not be renewed in time has lapsed, and its reader stops, unless it can be by then (Check).
type Pin struct {
	repo   *Repo
	id     string // of the pin
	backup string
	hold   string // that may keep the backup although it was deleted; empty: none
	end    context.CancelFunc
	done   sync.WaitGroup

	turn  sync.Mutex                  // one renews it at a time
	renew func(context.Context) error // put or look
	tried time.Time                   // when a reader did that last, of one that had lapsed

	mu    sync.Mutex
	until time.Time // by this process's clock, counted from before the request; zero before the first
	// Sequence numbers: of the oldest object that may be there, of the last that certainly is, of the next.
	oldest, last, next int
}

type wirePin struct {
	Backup []byte `cbor:"1,keyasint"`
	For    int64  `cbor:"2,keyasint"` // nanoseconds, counted from when it was put by the store's clock
}

func encodePin(w wirePin) ([]byte, error) { return cbor.Marshal(w) }

// Pin pins a backup. Who cannot write has no pin: the grace is what protects him, from when the backup is deleted.
func (r *Repo) Pin(ctx context.Context, backup string) (*Pin, error) { return r.pin(ctx, backup, "") }

func (r *Repo) pin(ctx context.Context, backup, hold string) (*Pin, error) {
	p := &Pin{repo: r, id: newObjectID(), backup: backup, hold: hold}
	p.renew = p.put
	err := r.noWrite
	if err == nil {
		err = p.put(ctx)
	}
	if r.noWrite != nil || errors.Is(err, objects.ErrDenied) {
		p.renew = p.look
		err = p.look(ctx)
	} else if err == nil {
		_, err = r.Held(ctx, backup, hold) // it may have been deleted between being found and being pinned
	}
	p.end = func() {}
	if err != nil {
		p.Release()
		return nil, fmt.Errorf("pin backup %s: %w", backup, err)
	}
	ctx, p.end = context.WithCancel(context.WithoutCancel(ctx))
	p.done.Go(func() {
		tick := time.NewTicker(pinEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				// One that fails is tried again at the next tick, and twice more before it lapses.
				p.turn.Lock()
				_ = p.renew(ctx)
				p.turn.Unlock()
			case <-ctx.Done():
				return
			}
		}
	})
	return p, nil
}

// put puts the pin under its next name: what a put that failed did is not known. A pin that had lapsed holds again if the
// backup is there still: then no pruner has touched it.
func (p *Pin) put(ctx context.Context) error {
	p.mu.Lock()
	seq := p.next
	p.next++
	p.mu.Unlock()
	plain, err := encodePin(wirePin{Backup: idBytes(p.backup), For: int64(pinFor)})
	if err != nil {
		return err
	}
	before := time.Now()
	if _, err := p.repo.putSmall(ctx, envelope.Pin, pinName(p.id, seq), plain); err != nil {
		return err
	}
	if p.Err() != nil {
		if _, err := p.repo.Held(ctx, p.backup, p.hold); err != nil {
			return err
		}
	}
	p.mu.Lock()
	p.until = before.Add(pinFor)
	// The one before stays: a listing may miss what comes and what goes meanwhile, but not both of two.
	from, to := p.oldest, p.last
	p.oldest, p.last = p.last, seq
	p.mu.Unlock()
	p.remove(ctx, from, to)
	return nil
}

// look is what is done in place of renewing by who cannot write.
func (p *Pin) look(ctx context.Context) error {
	before := time.Now()
	if _, err := p.repo.Backup(ctx, p.backup); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.until = before.Add(max(p.repo.config.Grace/2, pinFor))
	return nil
}

func (p *Pin) remove(ctx context.Context, from, to int) {
	for seq := from; seq < to; seq++ {
		_ = p.repo.store.Delete(ctx, pinName(p.id, seq)) // if this fails it expires
	}
}

func pinName(id string, seq int) string { return fmt.Sprintf("%s%s.%d", pinPrefix, id, seq) }

// Check is Err, but tries to renew a pin that has lapsed: the machine may have slept, or its clock been set.
func (p *Pin) Check(ctx context.Context) error {
	if p.Err() == nil {
		return nil
	}
	p.turn.Lock()
	defer p.turn.Unlock()
	if p.Err() != nil && time.Since(p.tried) >= pinAgain && ctx.Err() == nil {
		_ = p.renew(ctx)
		p.tried = time.Now()
	}
	return p.Err()
}

// Err is ErrLapsed once what is read may be gone.
func (p *Pin) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	// One clock stands still while the machine sleeps, the other may be set back.
	if !p.until.IsZero() && (now.After(p.until) || now.Round(0).After(p.until.Round(0))) {
		return fmt.Errorf("pin of backup %s: %w", p.backup, ErrLapsed)
	}
	return nil
}

// Release gives the pin back.
func (p *Pin) Release() {
	p.end()
	p.done.Wait()
	p.mu.Lock()
	from, to := p.oldest, p.next
	p.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	p.remove(ctx, from, to)
}

// Pinned are the backups that somebody reads, given what time it is by the store's clock, and the pins that hold no more.
func (r *Repo) Pinned(ctx context.Context, now time.Time) (held map[string]bool, expired []Stored, err error) {
	held, known := map[string]bool{}, map[string]bool{}
	for vanished := true; vanished; {
		found, err := r.Stored(ctx, pinPrefix)
		if err != nil {
			return nil, nil, err
		}
		vanished = false
		for _, p := range found {
			if known[p.Name] {
				continue
			}
			backup, holds, err := r.readPin(ctx, p, now)
			if errors.Is(err, objects.ErrNotFound) {
				vanished = true // released, or renewed under another name: look again
				continue
			}
			if err != nil {
				return nil, nil, err
			}
			known[p.Name] = true
			if !holds {
				expired = append(expired, p)
				continue
			}
			held[backup] = true
		}
	}
	return held, expired, nil
}

// readPin tells what backup a pin is of, and whether it holds still.
func (r *Repo) readPin(ctx context.Context, p Stored, now time.Time) (backup string, holds bool, err error) {
	_, plain, err := r.keys.LoadObject(ctx, r.store, p.Name, envelope.Pin)
	var w wirePin
	if err == nil {
		err = decode(plain, &w)
	}
	if err != nil {
		return "", false, fmt.Errorf("read %s: %w", p.Name, err)
	}
	return hex.EncodeToString(w.Backup), now.Sub(p.Modified) <= time.Duration(w.For), nil
}
