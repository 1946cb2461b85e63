package check_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"varve/internal/objects"
	"varve/internal/objects/faulty"
	"varve/internal/repository"
	"varve/internal/repository/check"
	"varve/internal/repository/prune"
)

// A check that is killed at any request, done or not, leaves nothing worse than it was; another one finds and mends the same.
func TestKilledAtEachRequest(t *testing.T) {
	w, st := newWorld(t, true, repository.CreateOptions{})
	w.populate(st)
	packs := under(st, "packs/")
	for _, n := range []string{packs[0], under(st, "backups/")[0], under(st, "nodes/")[0], "config.2", under(st, "index/")[0], under(st, "ledger/")[0]} {
		flip(st, n)
	}
	for _, n := range []string{packs[1], under(st, "index/")[1], under(st, "deleted/")[0], "config.1"} {
		clearAll(st, n)
	}
	st.Lose("config.0")
	st.Lose(packs[2])
	before, err := w.truth(st.Clone())
	if err != nil {
		t.Fatal(err)
	}
	whole := w.check(st.Clone(), check.Options{})
	if !same(harmed(whole), before) || len(whole.Damage) < 10 {
		t.Fatalf("%v: %+v", before, whole)
	}
	for _, after := range []bool{false, true} {
		for n := int64(0); ; n++ {
			damaged := st.Clone()
			client := damaged.Client()
			repo := w.open(client)
			var calls atomic.Int64
			client.SetHook(func(_ context.Context, c faulty.Call) error {
				if calls.Load() >= n && !c.After {
					if !after || calls.Load() > n {
						return objects.ErrUnavailable
					}
				}
				if c.After && calls.Add(1) > n && after {
					return objects.ErrUnavailable
				}
				return nil
			})
			_, err := check.Run(t.Context(), repo, check.Options{Dir: w.dir})
			if got, terr := w.truth(damaged.Clone()); terr != nil || !same(got, before) {
				t.Fatalf("killed at request %d: %v, before %v (%v)", n, got, before, terr)
			}
			damaged.Advance(time.Minute)
			r := w.check(damaged, check.Options{})
			if got, terr := w.truth(damaged); terr != nil || !same(got, before) || !same(got, harmed(r)) {
				t.Fatalf("after being killed at request %d: %v, before %v, %+v (%v)", n, got, before, r, terr)
			}
			for _, d := range r.Damage {
				if first, ok := find(whole, d.Object); !ok && d.State == check.Lost || ok && d.State > first.State {
					t.Fatalf("after being killed at request %d: %+v", n, d)
				}
			}
			damaged.Advance(time.Minute)
			for _, d := range w.check(damaged, check.Options{}).Damage {
				if d.State != check.Lost {
					t.Fatalf("after being killed at request %d another check finds %+v", n, d)
				}
			}
			if err == nil {
				if n < 60 {
					t.Fatalf("it made %d requests only", n)
				}
				break
			}
		}
	}
}

// Whatever others do between two requests of a check, it finds no damage where there is none, mends what is, and harms nobody.
func TestBesideOthers(t *testing.T) {
	const grace = time.Hour
	prunes := func(w *world, st *faulty.Store) error {
		for range 3 {
			st.Advance(2 * grace)
			repo, err := w.tryOpen(st)
			if err != nil {
				return err
			}
			if _, err := prune.Run(context.Background(), repo, prune.Options{Dir: w.dir}); err != nil {
				return err
			}
		}
		return nil
	}
	for _, c := range []struct {
		name string
		do   func(w *world, st *faulty.Store, v *volume, backups []repository.Backup) error
	}{
		{"a session", func(w *world, st *faulty.Store, v *volume, backups []repository.Backup) error {
			v.fill(77, 1)
			_, err := w.tryBackUp(context.Background(), st, v, &backups[1])
			return err
		}},
		{"a deletion and prunes", func(w *world, st *faulty.Store, _ *volume, backups []repository.Backup) error {
			repo, err := w.tryOpen(st)
			if err == nil {
				err = repo.Delete(context.Background(), backups[0].ID)
			}
			if err != nil {
				return err
			}
			return prunes(w, st)
		}},
		{"another check", func(w *world, st *faulty.Store, _ *volume, _ []repository.Backup) error {
			repo, err := w.tryOpen(st)
			if err != nil {
				return err
			}
			r, err := check.Run(context.Background(), repo, check.Options{Dir: w.dir})
			if r.Lost() {
				err = fmt.Errorf("it finds %+v", r)
			}
			return err
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, st := newWorld(t, false, repository.CreateOptions{Grace: grace})
			v := newVolume("v", 70*chunkBytes)
			v.fill(1, 0, 1, 2, 3, 68)
			full := w.backUp(st, v, nil)
			v.fill(2, 0, 1, 2, 3)
			second := w.backUp(st, v, &full)
			backups := []repository.Backup{full, second}
			for _, damaged := range []bool{false, true} {
				if damaged {
					for _, n := range slices.Concat(under(st, "packs/"), under(st, "nodes/"), under(st, "index/")) {
						flip(st, n)
					}
				}
				for n := int64(0); ; n++ {
					st := st.Clone()
					client := st.Client()
					repo := w.open(client)
					var calls atomic.Int64
					var once sync.Once
					var failed error
					acted := false
					client.SetHook(func(_ context.Context, call faulty.Call) error {
						if !call.After && calls.Add(1) > n {
							once.Do(func() {
								acted = true
								copied := *v
								copied.content, copied.changed = slices.Clone(v.content), map[int]bool{}
								failed = c.do(w, st, &copied, backups)
							})
						}
						return nil
					})
					r, err := check.Run(t.Context(), repo, check.Options{Dir: w.dir})
					if err := errors.Join(err, failed); err != nil {
						t.Fatalf("at request %d: %v", n, err)
					}
					if r.Lost() || !damaged && len(r.Damage) > 0 {
						t.Fatalf("at request %d: %+v", n, r)
					}
					if truth, err := w.truth(st); err != nil || len(truth) > 0 {
						t.Fatalf("at request %d: %v %v", n, truth, err)
					}
					if err := prunes(w, st); err != nil {
						t.Fatalf("at request %d: %v", n, err)
					}
					if truth, err := w.truth(st); err != nil || len(truth) > 0 {
						t.Fatalf("at request %d, after a prune: %v %v", n, truth, err)
					}
					if !acted {
						if n < 20 {
							t.Fatalf("it made %d requests only", n)
						}
						break
					}
				}
			}
		})
	}
}

// A check that was suspended before it put a mended copy puts it, perhaps, when the pack was condemned and deleted long ago. Nobody
// relies on such a copy: a pruner that was suspended as well may delete it at any time.
func TestACopyAloneIsNotReliedOn(t *testing.T) {
	w, st := newWorld(t, false, repository.CreateOptions{Grace: time.Hour})
	v := newVolume("v", 4*chunkBytes)
	v.fill(1, 0, 1, 2)
	b := w.backUp(st, v, nil)
	name := w.packOf(st, b, 0)
	repo := w.open(st)
	if err := repo.Delete(t.Context(), b.ID); err != nil {
		t.Fatal(err)
	}
	flip(st, name)
	client := st.Client()
	stop := client.StopAt(func(c faulty.Call) bool { return c.Op == faulty.Put && c.Name == name+"-1" && !c.After })
	done := make(chan error)
	go func() {
		repo, err := w.tryOpen(client)
		if err == nil {
			_, err = check.Run(context.Background(), repo, check.Options{Dir: w.dir})
		}
		done <- err
	}()
	<-stop.Reached()
	runs := map[string][]byte{}
	for _, n := range under(st, "index/") {
		runs[n] = slices.Clone(st.Bytes(n))
	}
	for range 3 {
		st.Advance(2 * time.Hour)
		if _, err := prune.Run(t.Context(), w.open(st), prune.Options{Dir: w.dir}); err != nil {
			t.Fatal(err)
		}
	}
	if len(under(st, "packs/")) > 0 || len(under(st, "condemned/")) > 0 {
		t.Fatalf("there are %v", st.Names())
	}
	stop.Release()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(st.Names(), name+"-1") {
		t.Fatalf("there are %v", st.Names())
	}
	for n, content := range runs {
		st.Plant(n, content) // as if it had not been merged yet
	}
	w.backUp(st, v, nil)
	st.Lose(name + "-1")
	if truth, err := w.truth(st); err != nil || len(truth) > 0 {
		t.Fatalf("%v %v", truth, err)
	}
}
