package repository

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/fxamacker/cbor/v2"

	"varve/internal/objects"
	"varve/internal/repository/chunk"
	"varve/internal/repository/envelope"
)

const ledgerPrefix = "ledger/"

// Condition is what a check found an object to be.
type Condition uint8

// The conditions.
const (
	Good   Condition = 1
	Mended Condition = 2 // it was damaged; its parity sufficed, a mended copy is there
	Lost   Condition = 3 // missing, or damaged beyond its parity
)

// Verdict is one object's entry in the ledger.
type Verdict struct {
	Object    string // its stem
	Condition Condition
	// Frames of a pack that cannot be read; none of a lost pack means all of them.
	Frames []uint32
}

type wireVerdict struct {
	Object    string   `cbor:"1,keyasint"`
	Condition uint8    `cbor:"2,keyasint"`
	Frames    []uint32 `cbor:"3,keyasint,omitempty"`
}

type wireLedger struct {
	At       int64         `cbor:"1,keyasint"` // by the store's clock as far as it is known
	Verdicts []wireVerdict `cbor:"2,keyasint"`
	More     []wireLedger  `cbor:"3,keyasint,omitempty"` // what was found at other times: pages were made one
}

// MaxVerdicts is how many verdicts one ledger object holds.
const MaxVerdicts = 1 << 16

// Pages of the ledger are of two sorts: what was ever lost is looked at before every backup, and has to be short.
const (
	lostPages = ledgerPrefix + "lost-"
	seenPages = ledgerPrefix + "seen-"
)

// PutLedger writes down what was found at a time, by the store's clock.
func (r *Repo) PutLedger(ctx context.Context, at time.Time, verdicts []Verdict) error {
	known, err := r.everLost(ctx)
	if err != nil {
		return err
	}
	var lost, seen []Verdict
	for _, v := range verdicts {
		if _, was := known[v.Object]; was || v.Condition == Lost {
			lost = append(lost, v)
		} else {
			seen = append(seen, v)
		}
	}
	if err := r.putPages(ctx, lostPages, at, lost); err != nil {
		return err
	}
	if err := r.putPages(ctx, seenPages, at, seen); err != nil {
		return err
	}
	return r.RefreshLost(ctx)
}

func (r *Repo) putPages(ctx context.Context, prefix string, at time.Time, verdicts []Verdict) error {
	for page := range slices.Chunk(verdicts, MaxVerdicts) {
		if err := r.putPage(ctx, prefix, wireLedger{At: at.UnixNano(), Verdicts: wireVerdicts(page)}); err != nil {
			return err
		}
	}
	return nil
}

func (r *Repo) putPage(ctx context.Context, prefix string, w wireLedger) error {
	plain, err := cbor.Marshal(w)
	if err != nil {
		return err
	}
	_, err = r.putSmall(ctx, envelope.Ledger, prefix+newObjectID(), plain)
	return err
}

func wireVerdicts(verdicts []Verdict) []wireVerdict {
	w := make([]wireVerdict, 0, len(verdicts))
	for _, v := range verdicts {
		w = append(w, wireVerdict{v.Object, uint8(v.Condition), v.Frames})
	}
	return w
}

// Ledger visits what was written down, in no order. The verdicts of a page are visited by the times at which they were found.
func (r *Repo) Ledger(ctx context.Context, visit func(name string, at time.Time, verdicts []Verdict) error) error {
	return r.pages(ctx, ledgerPrefix, visit)
}

func (r *Repo) pages(ctx context.Context, prefix string, visit func(name string, at time.Time, verdicts []Verdict) error) error {
	known := map[string]bool{}
	for vanished := true; vanished; {
		pages, err := r.Stored(ctx, prefix)
		if err != nil {
			return err
		}
		vanished = false
		for _, page := range pages {
			if known[page.Name] {
				continue
			}
			known[page.Name] = true
			w, err := r.page(ctx, page.Name)
			if errors.Is(err, objects.ErrNotFound) {
				vanished = true // it was made one with others: look again
				continue
			}
			if err != nil && !IsLost(err) {
				return fmt.Errorf("read %s: %w", page.Name, err)
			}
			// What a lost page knew has to be found again.
			for _, part := range append(w.More, w) {
				if len(part.Verdicts) == 0 {
					continue
				}
				verdicts := make([]Verdict, 0, len(part.Verdicts))
				for _, v := range part.Verdicts {
					verdicts = append(verdicts, Verdict{v.Object, Condition(v.Condition), v.Frames})
				}
				if err := visit(page.Name, at(part.At), verdicts); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (r *Repo) page(ctx context.Context, name string) (w wireLedger, err error) {
	_, plain, err := r.keys.LoadObject(ctx, r.store, name, envelope.Ledger)
	if err != nil {
		return w, err
	}
	if err := decode(plain, &w); err != nil {
		return wireLedger{}, err
	}
	return w, nil
}

// lost is what cannot be read, as far as the ledger knows.
type lost struct {
	packs  map[chunk.PackID]bool
	frames map[chunk.Place]bool
}

func (l *lost) has(p chunk.Place) bool { return l.packs[p.Pack] || l.frames[p] }

type datedVerdict struct {
	at time.Time
	Verdict
}

// everLost is the newest verdict of each object that was ever lost.
func (r *Repo) everLost(ctx context.Context) (map[string]datedVerdict, error) {
	last := map[string]datedVerdict{}
	err := r.pages(ctx, lostPages, func(_ string, at time.Time, verdicts []Verdict) error {
		for _, v := range verdicts {
			if known, ok := last[v.Object]; !ok || at.After(known.at) {
				last[v.Object] = datedVerdict{at, v}
			}
		}
		return nil
	})
	return last, err
}

// RefreshLost takes in what the ledger tells to be lost.
func (r *Repo) RefreshLost(ctx context.Context) error {
	last, err := r.everLost(ctx)
	if err != nil {
		return err
	}
	l := &lost{packs: map[chunk.PackID]bool{}, frames: map[chunk.Place]bool{}}
	for name, v := range last {
		id, ok := packOf(name)
		if v.Condition != Lost || !ok {
			continue
		}
		if len(v.Frames) == 0 {
			l.packs[id] = true
		}
		for _, f := range v.Frames {
			l.frames[chunk.Place{Pack: id, Frame: f}] = true
		}
	}
	r.mu.Lock()
	r.lost = l
	r.mu.Unlock()
	return nil
}

// packOf is the pack that an object's stem names.
func packOf(stem string) (id chunk.PackID, ok bool) {
	parts := strings.Split(stem, "/")
	if len(parts) != 3 || parts[0] != "packs" && parts[0] != "nodes" {
		return id, false
	}
	n, err := hex.Decode(id[:], []byte(parts[2]))
	return id, err == nil && n == len(id)
}

// unusable tells whether a place is known to be lost or condemned: what is there has to be stored again.
func (r *Repo) unusable(p chunk.Place) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.doomed[p.Pack] || r.lost != nil && r.lost.has(p)
}

// doom has a pack not be relied on until the next refresh.
func (r *Repo) doom(id chunk.PackID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.doomed[id] = true
}

// Lost tells whether any place is known to be lost, and which, as of the last refresh.
func (r *Repo) Lost() (any bool, is func(chunk.Place) bool) {
	r.mu.Lock()
	l := r.lost
	r.mu.Unlock()
	if l == nil || len(l.packs) == 0 && len(l.frames) == 0 {
		return false, func(chunk.Place) bool { return false }
	}
	return true, l.has
}
