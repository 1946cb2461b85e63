package prune_test

import (
	"testing"

	"varve/internal/repository"
	"varve/internal/repository/config"
)

func TestDeletedBackupsLeaveWhatOthersNeed(t *testing.T) {
	for name, scope := range map[string]config.Scope{"repository": config.ScopeRepository, "set": config.ScopeSet} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, repository.CreateOptions{Scope: scope})
			v := newVolume(40)
			for i := range 40 {
				v.fill(1, i)
			}
			full := w.mustBackUp(v, nil)
			v.fill(2, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
			second := w.mustBackUp(v, &full)
			v.fill(3, 1, 20)
			third := w.mustBackUp(v, &second)
			w.check(full, second, third)

			before := w.bytes("packs/")
			w.delete(full)
			if r := w.prune(); r.Condemned.Count != 0 || r.Deleted.Count != 0 {
				t.Fatalf("younger than the grace, and yet %+v", r)
			}
			w.check(second, third)
			w.st.Advance(grace + 2)
			r := w.prune()
			if r.Condemned.Count == 0 || r.Deleted.Count != 0 || !r.WaitingUntil.Equal(w.st.Now().Add(grace)) {
				t.Fatalf("%+v", r)
			}
			w.delete(second)
			w.st.Advance(grace + 2)
			if r = w.prune(); r.Deleted.Count == 0 || r.Rescued.Count == 0 || r.Records != 1 {
				t.Fatalf("%+v", r)
			}
			w.check(third)
			for range 3 {
				w.st.Advance(2*grace + 2)
				r = w.prune()
			}
			w.check(third)
			if after := w.bytes("packs/"); after > before*115/100 {
				t.Fatalf("%d bytes of packs before, %d after: %+v", before, after, r)
			}
			for prefix, want := range map[string]int{"backups/": 1, "deleted/": 0, "condemned/": 0, "pins/": 0, "candidates/": 0} {
				if got := w.names(prefix); len(got) != want {
					t.Errorf("%d objects %s are left, not %d", len(got), prefix, want)
				}
			}
			if r.Deleted.Count+r.Condemned.Count+r.Rescued.Count != 0 {
				t.Errorf("it never comes to rest: %+v", r)
			}
			w.delete(third)
			for range 3 {
				w.st.Advance(2*grace + 2)
				w.prune()
			}
			if left := w.bytes("packs/", "nodes/"); left != 0 {
				t.Errorf("%d bytes are left of nothing", left)
			}
		})
	}
}

// What many small backups stored comes to lie in few packs, once it fills one; and then prune comes to rest.
func TestManySmallPacksBecomeFew(t *testing.T) {
	w := newWorld(t, repository.CreateOptions{})
	v := newVolume(48)
	var all []repository.Backup
	for day := range uint64(12) { // 3 MiB each
		for i := range 48 {
			v.fill(day+1, i)
		}
		all = append(all, w.mustBackUp(v, nil))
	}
	if n := len(w.names("packs/")); n < len(all) {
		t.Fatalf("%d packs", n)
	}
	if r := w.prune(); r.Condemned.Count != 0 {
		t.Fatalf("younger than the grace, and yet %+v", r)
	}
	before := w.bytes("packs/")
	r := w.pruneFor(4)
	if n := len(w.names("packs/")); n > 2 {
		t.Errorf("%d packs are left", n)
	}
	if after := w.bytes("packs/"); after > before*101/100 { // parity is rounded up
		t.Errorf("%d bytes of packs before, %d after", before, after)
	}
	if r.Deleted.Count+r.Condemned.Count+r.Rescued.Count+r.Waiting.Count != 0 {
		t.Errorf("it never comes to rest: %+v", r)
	}
	if n := len(w.names("nodes/")); n < len(all) {
		t.Errorf("%d packs of nodes, which do not fill one", n)
	}
	w.check(all...)
}
