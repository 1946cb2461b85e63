package repository

import (
	"context"
	"errors"
	"hash/maphash"
	"maps"
	"slices"
	"time"

	"varve/internal/objects"
)

const (
	// fewPages of the ledger are left as they are.
	fewPages = 8
	// compactAtOnce is how many verdicts are in memory while pages are made one.
	compactAtOnce = 4 * MaxVerdicts
)

// CompactLedger makes few pages of many, with the last verdict on each object, if it is one to keep. existing is about how
// many objects there are. It returns how many pages there are fewer.
func (r *Repo) CompactLedger(ctx context.Context, existing int, keep func(Verdict) bool) (fewer int, err error) {
	for _, prefix := range []string{lostPages, seenPages} {
		n, err := r.compact(ctx, prefix, existing, keep)
		if err != nil {
			return fewer, err
		}
		fewer += n
	}
	return fewer, nil
}

func (r *Repo) compact(ctx context.Context, prefix string, existing int, keep func(Verdict) bool) (fewer int, err error) {
	pages, err := r.Stored(ctx, prefix)
	if err != nil || len(pages) < fewPages {
		return 0, err
	}
	verdicts := 0
	readable := pages[:0]
	for _, page := range pages {
		err := r.eachOf(ctx, page.Name, func(time.Time, wireVerdict) { verdicts++ })
		if err != nil && !IsLost(err) {
			return 0, err
		}
		if err == nil {
			readable = append(readable, page)
		}
	}
	need := (verdicts + MaxVerdicts - 1) / MaxVerdicts
	if verdicts <= 2*existing && len(readable) < fewPages+2*need {
		return 0, nil
	}
	seed := maphash.MakeSeed()
	parts := uint64(verdicts/compactAtOnce + 1)
	for part := range parts {
		last := map[string]dated{}
		for _, page := range readable {
			err := r.eachOf(ctx, page.Name, func(at time.Time, v wireVerdict) {
				known, ok := last[v.Object]
				if maphash.String(seed, v.Object)%parts == part && (!ok || at.After(known.at)) {
					last[v.Object] = dated{at, v}
				}
			})
			if errors.Is(err, objects.ErrNotFound) {
				return fewer, nil // somebody else is at it
			}
			if err != nil {
				return fewer, err
			}
		}
		maps.DeleteFunc(last, func(_ string, v dated) bool { return !keep(Verdict{v.Object, Condition(v.Condition), v.Frames}) })
		n, err := r.putCompact(ctx, prefix, last)
		fewer -= n
		if err != nil {
			return fewer, err
		}
	}
	for _, page := range readable {
		if err := r.Remove(ctx, page); err != nil {
			return fewer, err
		}
		fewer++
	}
	return fewer, nil
}

type dated struct {
	at time.Time
	wireVerdict
}

func (r *Repo) eachOf(ctx context.Context, page string, visit func(time.Time, wireVerdict)) error {
	w, err := r.page(ctx, page)
	for _, part := range append(w.More, w) {
		for _, v := range part.Verdicts {
			visit(at(part.At), v)
		}
	}
	return err
}

// putCompact puts verdicts of several times into as few pages as they fit in.
func (r *Repo) putCompact(ctx context.Context, prefix string, last map[string]dated) (pages int, err error) {
	sorted := slices.SortedFunc(maps.Values(last), func(a, b dated) int { return a.at.Compare(b.at) })
	for page := range slices.Chunk(sorted, MaxVerdicts) {
		var parts []wireLedger
		for _, v := range page {
			if n := len(parts); n == 0 || parts[n-1].At != nanos(v.at) {
				parts = append(parts, wireLedger{At: nanos(v.at)})
			}
			at := &parts[len(parts)-1]
			at.Verdicts = append(at.Verdicts, v.wireVerdict)
		}
		w := parts[0]
		w.More = parts[1:]
		if err := r.putPage(ctx, prefix, w); err != nil {
			return pages, err
		}
		pages++
	}
	return pages, nil
}
