package check_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"varve/internal/objects/faulty"
	"varve/internal/repository"
	"varve/internal/repository/check"
)

// harm is something that happens to an object.
type harm struct {
	name string
	do   func(st *faulty.Store, object string)
	// small tells that parity covers it.
	small bool
}

func harms(other *faulty.Store, rng *rand.Rand) []harm {
	change := func(f func(p []byte) []byte) func(*faulty.Store, string) {
		return func(st *faulty.Store, object string) { st.Change(object, f) }
	}
	cut := func(keep func(n int) int) func(*faulty.Store, string) {
		return change(func(p []byte) []byte { return p[:keep(len(p))] })
	}
	flip := func(p []byte) []byte { p[rng.IntN(len(p))] ^= 1 << rng.IntN(8); return p }
	return []harm{
		{"flip", change(flip), true},
		{"flip in the header", change(func(p []byte) []byte { p[rng.IntN(128)] ^= 1 << rng.IntN(8); return p }), true},
		{"flip at the end", change(func(p []byte) []byte { p[len(p)-1-rng.IntN(128)] ^= 1 << rng.IntN(8); return p }), true},
		{"two flips", change(func(p []byte) []byte { return flip(flip(p)) }), false},
		{"cut by a byte", cut(func(n int) int { return n - 1 }), true},
		{"cut in half", cut(func(n int) int { return n / 2 }), false},
		{"cut to a header", cut(func(int) int { return 128 }), false},
		{"longer", change(func(p []byte) []byte { return append(p, 1, 2, 3) }), true},
		{"empty", cut(func(int) int { return 0 }), false},
		{"zeros", change(func(p []byte) []byte { clear(p); return p }), false},
		{"a hole in the middle", change(func(p []byte) []byte { clear(p[len(p)/4 : len(p)*3/4]); return p }), false},
		{"delete", func(st *faulty.Store, object string) { st.Lose(object) }, false},
		{"swap", func(st *faulty.Store, object string) {
			prefix := object[:strings.IndexAny(object, "/.")]
			for _, n := range under(st, prefix) {
				if n != object && string(st.Bytes(n)) != string(st.Bytes(object)) {
					st.Swap(n, object)
					return
				}
			}
			st.Change(object, func(p []byte) []byte { return p[:1] })
		}, false},
		{"another repository's", func(st *faulty.Store, object string) {
			kind := object[:strings.IndexAny(object, "/.")]
			st.Plant(object, other.Bytes(under(other, kind)[0]))
		}, false},
	}
}

// Whatever happens to any object of a repository: restoring refuses or is right, a check finds it, and says of each backup exactly what
// verifying it then says; what parity covers is mended, and another check finds nothing new.
func TestDamageToEveryObject(t *testing.T) {
	for _, c := range []struct {
		name      string
		encrypted bool
		parity    int
	}{{"encrypted", true, 3}, {"plain, with much parity", false, 60}, {"without parity", false, -1}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			rng := rand.New(rand.NewPCG(seed, 0))
			o := repository.CreateOptions{Parity: c.parity}
			w, st := newWorld(t, c.encrypted, o)
			w.populate(st)
			w2, other := newWorld(t, c.encrypted, o)
			w2.populate(other)
			for _, object := range st.Names() {
				for _, h := range harms(other, rng) {
					damaged := st.Clone()
					h.do(damaged, object)
					if err := w.damaged(damaged, object, h, c.parity >= 0); err != nil {
						t.Errorf("%s of %s: %v", h.name, object, err)
					}
				}
			}
		})
	}
}

// untold are objects that are gone without a trace, of which nothing is needed or which tell by being there that something exists at all.
func untold(object string) bool {
	return slices.ContainsFunc([]string{"backups/", "deleted/", "candidates/", "fenced/", "condemned/", "pins/", "ledger/", "index/"},
		func(prefix string) bool { return strings.HasPrefix(object, prefix) })
}

func (w *world) damaged(st *faulty.Store, object string, h harm, parity bool) error {
	before, beforeErr := w.truth(st.Clone())
	if beforeErr != nil && strings.Contains(beforeErr.Error(), "WRONG") {
		return beforeErr
	}
	replaced := h.name == "swap" || h.name == "another repository's"
	if object == "config.0" && replaced {
		// The first copy decides which repository it is; but the others say otherwise.
		if repo, err := w.tryOpen(st); err == nil {
			if _, err := check.Run(w.t.Context(), repo, check.Options{Dir: w.dir}); err != nil && !errors.Is(err, repository.ErrOther) {
				return fmt.Errorf("its check says %w", err)
			}
		}
		if r, err := check.Sealed(w.t.Context(), st, check.Options{Dir: w.dir}); err != nil || r.Lost() {
			return fmt.Errorf("a check without a key says %+v, %w", r, err)
		}
	}
	repo, err := w.tryOpen(st)
	if err != nil {
		return fmt.Errorf("it does not open: %w", err) // config and keys are there three times
	}
	r, err := check.Run(w.t.Context(), repo, check.Options{Dir: w.dir})
	if err != nil {
		return err
	}
	found, ok := find(r, object)
	ok = ok || object == "config.0" && replaced || slices.ContainsFunc(r.Notes, func(n string) bool { return strings.HasPrefix(n, object) })
	unneeded := (strings.HasPrefix(object, "packs/") || strings.HasPrefix(object, "nodes/")) && len(before) == 0
	if !ok && (!replaced && h.name != "delete" || h.name == "delete" && !untold(object) && !unneeded || replaced) {
		return fmt.Errorf("it was not found: %+v", r)
	}
	after, err := w.truth(st)
	if err != nil && !strings.HasPrefix(object, "condemned/") {
		return err
	}
	if !same(after, harmed(r)) {
		return fmt.Errorf("verifying says %v, before %v (%v), check says %+v", after, before, beforeErr, r) //nolint:errorlint // it is told beside
	}
	covered := parity || !strings.HasPrefix(object, "packs/") && !strings.HasPrefix(object, "nodes/") && !strings.HasPrefix(object, "index/")
	if h.small && covered && (r.Lost() || found.State != check.Mended) {
		return fmt.Errorf("it was not mended: %+v", r)
	}
	for _, b := range r.Harmed {
		if !b.Whole && !named(r, b.ID) {
			return fmt.Errorf("no object is said to harm backup %s: %+v", b.ID, r)
		}
	}
	if !slices.IsSortedFunc(r.Damage, func(a, b check.Damaged) int { return strings.Compare(a.Object, b.Object) }) {
		return fmt.Errorf("not in order: %+v", r)
	}
	st.Advance(time.Minute)
	again := w.check(st, check.Options{})
	if !same(harmed(r), harmed(again)) {
		return fmt.Errorf("another check says %+v, after %+v", again, r)
	}
	for _, d := range again.Damage {
		if first, ok := find(r, d.Object); !ok || d.State != check.Lost || first.State != check.Lost {
			return fmt.Errorf("another check finds %+v, after %+v", d, r)
		}
	}
	return nil
}

func named(r check.Report, backup string) bool {
	return slices.ContainsFunc(r.Damage, func(d check.Damaged) bool { return slices.Contains(d.Backups, backup) })
}
