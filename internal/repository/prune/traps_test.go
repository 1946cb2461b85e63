package prune_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"varve/internal/backup"
	"varve/internal/objects/faulty"
	"varve/internal/repository"
	"varve/internal/repository/pack"
	"varve/internal/repository/prune"
)

// clone is the world as it is now, once more.
func (w *world) clone(t *testing.T) *world {
	c := &world{t: t, st: w.st.Clone(), want: map[string][]byte{}, committed: map[string]bool{}, dir: w.dir}
	for id, content := range w.want {
		c.want[id], c.committed[id] = content, w.committed[id]
	}
	return c
}

// rounds of pruning, each after the grace.
func (w *world) pruneFor(rounds int) (last prune.Report) {
	w.t.Helper()
	for range rounds {
		w.st.Advance(grace + time.Minute)
		last = w.prune()
		w.check()
	}
	return last
}

func isPut(c faulty.Call, prefix string) bool {
	return c.Op == faulty.Put && strings.HasPrefix(c.Name, prefix)
}

// orphan leaves the packs of a session that was killed before its candidate was put.
func (w *world) orphan(v *volume) {
	w.t.Helper()
	s := newStage()
	a := w.writer(s, v, nil)
	if !s.until(a, func(c faulty.Call) bool { return isPut(c, "candidates/") }) {
		w.t.Fatal(a.ended())
	}
	s.kill(a)
}

func (w *world) writer(s *stage, v *volume, base *repository.Backup) *actor {
	frozen := &volume{v.id, append([]byte(nil), v.content...)}
	return s.enter("writer", w.st, func(ctx context.Context, st *faulty.Store) error {
		repo, err := repository.Open(ctx, st, repository.OpenOptions{})
		if err != nil {
			return err
		}
		_, err = w.backUp(ctx, repo, frozen, base, backup.Options{})
		return err
	})
}

func (w *world) pruner(s *stage) *actor {
	return s.enter("pruner", w.st, func(ctx context.Context, st *faulty.Store) error {
		repo, err := repository.Open(ctx, st, repository.OpenOptions{})
		if err != nil {
			return err
		}
		_, err = prune.Run(ctx, repo, prune.Options{Dir: w.dir})
		return err
	})
}

// at is for a client that stops before its n-th request.
func at(n int) func(faulty.Call) bool {
	made := -1
	return func(faulty.Call) bool { made++; return made == n }
}

// A writer finds its chunks in packs that nobody needs, sleeps anywhere for thirty times the grace, and goes on after the sweep.
func TestWriterSleepsBeforeAnyRequestWhileOrphansAreSwept(t *testing.T) {
	w := newWorld(t, repository.CreateOptions{})
	v := newVolume(4)
	v.fill(1, 0, 1, 2, 3)
	base := w.mustBackUp(v, nil)
	v.fill(2, 0, 1)
	w.orphan(v)
	w.st.Advance(grace + time.Minute)
	outcomes := map[string]int{}
	for _, b := range []*repository.Backup{nil, &base} {
		for rounds := 0; rounds <= 4; rounds++ {
			for n := 0; ; n++ {
				w := w.clone(t)
				s := newStage()
				a := w.writer(s, v, b)
				if !s.until(a, at(n)) {
					break
				}
				stopped := a.next()
				switch rounds {
				case 0: // condemned at once, and swept while the candidate still counts
					w.prune()
					w.pruneFor(1)
				case 4:
					w.st.Advance(30 * grace)
				}
				w.pruneFor(rounds)
				err := s.finish(a)
				if err != nil && !errors.Is(err, repository.ErrFenced) {
					t.Fatalf("%d rounds at %v: %v", rounds, stopped, err)
				}
				outcomes[fmt.Sprint(err == nil)]++
				if rounds == 1 && err != nil { // nothing is swept yet
					t.Errorf("stopped at %v, within twice the grace: %v", stopped, err)
				}
				w.check(base)
				w.pruneFor(3)
			}
		}
	}
	if outcomes["true"] < 50 || outcomes["false"] < 5 {
		t.Errorf("outcomes: %v", outcomes)
	}
}

// The base of an incremental is deleted and swept while its session sleeps anywhere.
func TestBaseIsDeletedWhileTheWriterSleepsAnywhere(t *testing.T) {
	w := newWorld(t, repository.CreateOptions{})
	v := newVolume(4)
	v.fill(1, 0, 1, 2, 3)
	base := w.mustBackUp(v, nil)
	v.fill(2, 0)
	committed := 0
	for n := 0; ; n++ {
		w := w.clone(t)
		s := newStage()
		a := w.writer(s, v, &base)
		if !s.until(a, at(n)) {
			break
		}
		w.delete(base)
		w.pruneFor(2)
		if err := s.finish(a); err == nil {
			committed++
		}
		w.check()
		w.pruneFor(3)
	}
	if committed == 0 {
		t.Error("no session had its candidate in time")
	}
}

// A pruner sleeps anywhere, for days, with marks that it read; another one finishes, writers find their chunks where they are by now, a backup is
// deleted, and the first goes on.
func TestPrunerSleepsBeforeAnyRequestWhileOthersGoOn(t *testing.T) {
	w := newWorld(t, repository.CreateOptions{})
	v := newVolume(8)
	v.fill(1, 0, 1, 2, 3, 4, 5, 6, 7)
	full := w.mustBackUp(v, nil)
	old := append([]byte(nil), v.content...)
	v.fill(2, 0, 1, 2, 3, 4)
	second := w.mustBackUp(v, &full)
	w.delete(full)
	w.st.Advance(grace + time.Minute)
	w.prune() // condemns the first pack, of which three chunks are needed
	w.st.Advance(grace + time.Minute)
	for n := 0; ; n++ {
		w := w.clone(t)
		s := newStage()
		sleeper := w.pruner(s)
		if !s.until(sleeper, at(n)) {
			break
		}
		w.prune()
		third := w.mustBackUp(v, &second)
		again := w.mustBackUp(&volume{v.id, old}, nil) // has chunks of what was condemned
		w.pruneFor(2)
		w.delete(second)
		w.pruneFor(1)
		fourth := w.mustBackUp(v, &third)
		if err := s.finish(sleeper); err != nil {
			t.Fatalf("asleep before request %d: %v", n, err)
		}
		w.check(third, again, fourth)
		w.pruneFor(3)
		w.check(third, again, fourth)
	}
}

// The clock of the store goes two days ahead while somebody prunes, and back; a writer is anywhere.
func TestClockIsTwoDaysAheadForAPruner(t *testing.T) {
	w := newWorld(t, repository.CreateOptions{})
	v := newVolume(4)
	v.fill(1, 0, 1, 2, 3)
	base := w.mustBackUp(v, nil)
	v.fill(2, 0, 1)
	w.orphan(v)
	for n := 0; ; n++ {
		w := w.clone(t)
		s := newStage()
		a := w.writer(s, v, &base)
		if !s.until(a, at(n)) {
			break
		}
		now := w.st.Now()
		for range 2 {
			w.st.SetTime(now.Add(48 * time.Hour))
			w.prune()
			w.check(base)
			w.st.SetTime(now)
		}
		if err := s.finish(a); err != nil && !errors.Is(err, repository.ErrFenced) {
			t.Fatalf("at request %d: %v", n, err)
		}
		w.check(base)
		w.pruneFor(3)
	}
}

// messy is a repository in which a pruner finds all that it may find.
func messy(t *testing.T) (w *world, last repository.Backup) {
	w = newWorld(t, repository.CreateOptions{})
	v := newVolume(8)
	v.fill(1, 0, 1, 2, 3, 4, 5, 6, 7)
	full := w.mustBackUp(v, nil)
	v.fill(2, 0, 1, 2, 3, 4)
	second := w.mustBackUp(v, &full)
	v.fill(9, 0, 1, 2)
	w.orphan(v)
	s := newStage()
	a := w.writer(s, v, &second) // its candidate stays
	s.until(a, func(c faulty.Call) bool { return isPut(c, "backups/") })
	s.kill(a)
	v.fill(3, 1)
	last = w.mustBackUp(v, &second)
	w.delete(full)
	for range 7 { // runs of the index
		v.fill(4, 2)
		last = w.mustBackUp(v, &last)
		v.fill(5, 2)
	}
	if _, err := w.open(w.st.Client()).Pin(t.Context(), last.ID); err != nil {
		t.Fatal(err) // it expires
	}
	w.st.Advance(grace + time.Minute)
	w.prune()
	w.delete(second)
	w.st.Advance(grace + time.Minute)
	return w, last
}

// A pruner that is cut off before or after any of its requests leaves a repository that the next one prunes as well.
func TestPruneAfterACrashAtAnyRequest(t *testing.T) {
	w, last := messy(t)
	want := w.clone(t)
	for range 3 {
		want.st.Advance(3 * grace)
		want.prune()
	}
	for n := 0; ; n += everyCrash {
		whole := true
		for _, after := range []bool{false, true} {
			w := w.clone(t)
			st := w.st.Client()
			var made atomic.Int64
			var cut atomic.Bool
			st.SetHook(func(_ context.Context, c faulty.Call) error {
				if c.After == after && made.Add(1) > int64(n) || cut.Load() {
					cut.Store(true)
					return errKilled
				}
				return nil
			})
			repo, err := repository.Open(t.Context(), st, repository.OpenOptions{})
			if err == nil {
				_, err = prune.Run(t.Context(), repo, prune.Options{Dir: w.dir})
			}
			if err != nil && !errors.Is(err, errKilled) {
				t.Fatalf("request %d: %v", n, err)
			}
			whole = whole && !cut.Load()
			w.check(last)
			for range 3 {
				w.st.Advance(3 * grace)
				w.prune()
				w.check(last)
			}
			for _, prefix := range []string{"packs/", "nodes/", "candidates/", "condemned/", "pins/", "deleted/", "backups/"} {
				if got, most := len(w.names(prefix)), len(want.names(prefix)); got > most {
					t.Fatalf("cut off at request %d: %d objects %s are left, without that %d", n, got, prefix, most)
				}
			}
		}
		if whole {
			break
		}
	}
}

// What is needed lies in two packs. One pruner is about to delete the second, as the first stays; then that is condemned as well, and another
// pruner finds both condemned.
func TestPrunersRelyOnNoPackThatIsCondemned(t *testing.T) {
	for _, ripe := range []bool{false, true, true, true, true} { // which pack comes first is random
		w := newWorld(t, repository.CreateOptions{})
		repo := w.open(w.st.Client())
		condemn := func(name string) {
			_, id, _ := pack.ParseName(name)
			if err := repo.PutMark(t.Context(), []repository.MarkedPack{{ID: id}}); err != nil {
				t.Fatal(err)
			}
		}
		v := newVolume(4)
		v.fill(1, 0, 1, 2, 3)
		b := w.mustBackUp(v, nil)
		first := w.names("packs/")[0]
		condemn(first)
		again := w.mustBackUp(v, nil) // stores it all again
		w.st.Lose(w.names("condemned/")[0])
		second := w.names("packs/")[0]
		if second == first {
			second = w.names("packs/")[1]
		}
		condemn(second)
		w.st.Advance(grace + time.Minute)
		for n := 0; ; n++ {
			w := w.clone(t)
			s := newStage()
			one := w.pruner(s)
			if !s.until(one, func(c faulty.Call) bool { return c.Op == faulty.Delete && c.Name == second }) {
				t.Fatal(one.ended())
			}
			repo = w.open(w.st.Client())
			condemn(first)
			if ripe {
				w.st.Advance(grace + time.Minute)
			}
			other := w.pruner(s)
			reached := s.until(other, at(n))
			for _, a := range []*actor{one, other} {
				if err := s.finish(a); err != nil {
					t.Fatal(err)
				}
				w.check(b, again)
			}
			w.pruneFor(3)
			w.check(b, again)
			if !reached {
				break
			}
		}
	}
}

// condemned is a repository with a backup whose pack has a ripe mark, and the volume.
func condemned(t *testing.T) (w *world, v *volume, b repository.Backup) {
	w = newWorld(t, repository.CreateOptions{})
	v = newVolume(4)
	v.fill(1, 0, 1, 2, 3)
	b = w.mustBackUp(v, nil)
	_, id, _ := pack.ParseName(w.names("packs/")[0])
	if err := w.open(w.st.Client()).PutMark(t.Context(), []repository.MarkedPack{{ID: id}}); err != nil {
		t.Fatal(err)
	}
	w.st.Advance(grace + time.Minute)
	return w, v, b
}

// A pruner is anywhere while a session puts its candidate and sees that its base is not deleted; then that is.
func TestBaseIsDeletedWhileThePrunerIsAnywhere(t *testing.T) {
	w, v, base := condemned(t)
	v.fill(2, 0)
	for n := 0; ; n++ {
		w := w.clone(t)
		s := newStage()
		p := w.pruner(s)
		reached := s.until(p, at(n))
		a := w.writer(s, v, &base)
		if !s.until(a, func(c faulty.Call) bool { return isPut(c, "backups/") }) {
			t.Fatal(a.ended())
		}
		w.delete(base)
		for _, a := range []*actor{p, a} {
			if err := s.finish(a); err != nil {
				t.Fatal(err)
			}
			w.check()
		}
		w.pruneFor(3)
		if !reached {
			break
		}
	}
}

// A pruner is anywhere while somebody opens a backup to read it; then that is deleted.
func TestBackupIsDeletedWhileItIsReadAndThePrunerIsAnywhere(t *testing.T) {
	w, v, b := condemned(t)
	for n := 0; ; n++ {
		w := w.clone(t)
		s := newStage()
		p := w.pruner(s)
		reached := s.until(p, at(n))
		d, err := w.open(w.st.Client()).OpenDevice(t.Context(), b.ID)
		if err != nil {
			t.Fatal(err)
		}
		w.delete(b)
		if err := s.finish(p); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(v.content))
		if err := d.ReadAt(t.Context(), got, 0); err != nil || string(got) != string(v.content) {
			t.Fatalf("the pruner was at request %d: %v", n, err)
		}
		d.Close()
		if !reached {
			break
		}
	}
}

// A pruner is anywhere while a session that relies on what he is about to delete commits: the candidate goes when the record has come.
func TestSessionCommitsWhileThePrunerIsAnywhere(t *testing.T) {
	w := newWorld(t, repository.CreateOptions{})
	v := newVolume(4)
	v.fill(1, 0, 1, 2, 3)
	w.orphan(v)
	w.st.Advance(grace + time.Minute)
	for n := 0; ; n++ {
		w := w.clone(t)
		s := newStage()
		a := w.writer(s, v, nil)
		if !s.until(a, func(c faulty.Call) bool { return isPut(c, "backups/") }) {
			t.Fatal(a.ended())
		}
		_, id, _ := pack.ParseName(w.names("packs/")[0])
		if err := w.open(w.st.Client()).PutMark(t.Context(), []repository.MarkedPack{{ID: id}}); err != nil {
			t.Fatal(err)
		}
		w.st.Advance(grace + time.Minute)
		p := w.pruner(s)
		reached := s.until(p, at(n))
		for _, a := range []*actor{a, p} {
			if err := s.finish(a); err != nil {
				t.Fatal(err)
			}
			w.check()
		}
		if !reached {
			break
		}
	}
}

// What is needed lies in a pack that is about to be deleted and in the copy that a repair made of another: nobody knows whether that was condemned
// and deleted before.
func TestPrunersRelyOnNoCopyAlone(t *testing.T) {
	w, v, b := condemned(t)
	again := w.mustBackUp(v, nil) // stores it all again
	ripe := w.names("condemned/")
	if len(ripe) != 1 {
		t.Fatalf("%d marks", len(ripe))
	}
	repo := w.open(w.st.Client())
	marked, err := repo.Condemned(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var copied string
	for _, name := range w.names("packs/") {
		if _, id, _ := pack.ParseName(name); !marked[id] {
			copied = name + "-1"
			w.st.Plant(copied, w.st.Bytes(name))
			w.st.Lose(name)
		}
	}
	w.prune()
	w.st.Lose(copied)
	w.check(b, again)
}
