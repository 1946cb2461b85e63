package prune_test

import (
	"testing"

	"varve/internal/backup"
	"varve/internal/repository"
)

// A process that goes on for months finds what prune has moved, as one that has just begun does.
func TestWhatPruneMovedIsFoundByWhoHadStoredIt(t *testing.T) {
	w := newWorld(t, repository.CreateOptions{})
	repo := w.open(w.st.Client())
	v := newVolume(40)
	for i := range 40 {
		v.fill(1, i)
	}
	full := func() repository.Listed {
		t.Helper()
		made, err := w.backUp(t.Context(), repo, v, nil, backup.Options{})
		if err != nil {
			t.Fatal(err)
		}
		b, err := repo.Backup(t.Context(), made.ID)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	first := full()
	v.content = v.content[:8*chunkBytes]
	if b := full(); b.Record.Stats.NewBytes > 0 {
		t.Fatalf("%d bytes are new", b.Record.Stats.NewBytes)
	}
	before := w.bytes("packs/")
	w.delete(first.Backup)
	w.pruneFor(4)
	after := w.bytes("packs/")
	if after > before/2 {
		t.Fatalf("nothing was moved: %d bytes, %d before", after, before)
	}
	full()
	if n := w.bytes("packs/") - after; n > 0 {
		t.Errorf("%d bytes were stored again", n)
	}
	w.check()
}
