package repository

import (
	"bytes"
	"context"
	"runtime"
	"testing"
	"time"

	"github.com/google/uuid"

	"varve/internal/objects"
	"varve/internal/objects/faulty"
	"varve/internal/repository/chunk"
	"varve/internal/repository/envelope"
)

// FuzzSmallObjects reads any bytes as each of the small objects: what is made of them is what writes them again, or an error.
func FuzzSmallObjects(f *testing.F) {
	id := NewID()
	rec := Record{ID: id, StartedAt: time.Unix(1, 2).UTC(), Host: "h", Backups: []Backup{{ID: id, Full: id, Type: Full, SizeBytes: 4096, Labels: map[string]string{"a": "b"}}}}
	rec.Backups[0].Root.Empty = true
	plain, err := rec.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(plain, id)
	c := Candidate{Record: id, Final: &rec, Packs: []chunk.PackID{{1}, {2}}, Set: uuid.UUID{3}, Volumes: []uuid.UUID{{4}}}
	if plain, err = c.encode(); err != nil {
		f.Fatal(err)
	}
	f.Add(plain, id)
	f.Add([]byte{0xa1, 0x01, 0x58, 0x20}, id)
	f.Fuzz(func(t *testing.T, plain []byte, id string) {
		if !ValidID(id) {
			return
		}
		if rec, err := decodeRecord(plain, id); err == nil {
			again, err := rec.encode()
			if err != nil {
				t.Fatal(err)
			}
			if back, err := decodeRecord(again, id); err != nil || len(back.Backups) != len(rec.Backups) {
				t.Fatalf("%+v is read back as %+v, %v", rec, back, err)
			}
		}
		if c, err := decodeCandidate(plain, id); err == nil {
			again, err := c.encode()
			if err != nil {
				t.Fatal(err)
			}
			if back, err := decodeCandidate(again, id); err != nil || len(back.Packs) != len(c.Packs) || back.Set != c.Set {
				t.Fatalf("%+v is read back as %+v, %v", c, back, err)
			}
		}
		// Marks, pins and pages of the ledger are read from a store.
		st := faulty.New()
		repo := fuzzed(t, st)
		for kind, name := range map[envelope.Kind]string{envelope.Condemned: "condemned/" + newObjectID(), envelope.Pin: pinName(newObjectID(), 0), envelope.Ledger: lostPages + newObjectID()} {
			if _, err := repo.putSmall(t.Context(), kind, name, plain); err != nil {
				t.Fatal(err)
			}
		}
		_ = repo.Marks(t.Context(), func(Mark) error { return nil })
		_, _, _ = repo.Pinned(t.Context(), st.Now())
		if err := repo.RefreshLost(t.Context()); err != nil {
			t.Fatal(err) // who cannot read the ledger finds out again
		}
	})
}

// What is decoded takes memory in proportion to what was read, or is refused.
func TestWhatIsDecodedIsBounded(t *testing.T) {
	for name, key := range map[string]byte{"backups": 2, "packs": 3} {
		const n = 2 << 20
		plain := append([]byte{0xa1, key, 0x9a, 0, n >> 16, 0, 0}, bytes.Repeat([]byte{0xa0}, n)...)
		if key == 3 {
			plain = append(plain[:7], bytes.Repeat([]byte{0x40}, n)...)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, errRecord := decodeRecord(plain, NewID())
		_, errCandidate := decodeCandidate(plain, NewID())
		runtime.ReadMemStats(&after)
		if took := after.TotalAlloc - before.TotalAlloc; errRecord == nil || errCandidate == nil || took > 64<<20 {
			t.Errorf("%s: %d MiB for %d, %v, %v", name, took>>20, len(plain), errRecord, errCandidate)
		}
	}
}

func fuzzed(t testing.TB, st objects.Store) *Repo {
	r, err := Create(context.Background(), st, CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestMarksAndPinsAreReadAsTheyWereWritten(t *testing.T) {
	st := faulty.New()
	repo := fuzzed(t, st)
	packs := []MarkedPack{{ID: chunk.PackID{1}}, {ID: chunk.PackID{2}, Nodes: true}, {ID: chunk.PackID{3}}}
	if err := repo.PutMark(t.Context(), packs); err != nil {
		t.Fatal(err)
	}
	n := 0
	err := repo.Marks(t.Context(), func(m Mark) error {
		for _, p := range m.Packs {
			n++
			if p.Nodes != bytes.Equal(p.ID[:1], []byte{2}) || (p.Kind() == envelope.Nodes) != p.Nodes {
				t.Errorf("%+v", p)
			}
		}
		return nil
	})
	if err != nil || n != 3 {
		t.Fatal(n, err)
	}
	if err := repo.PutMark(t.Context(), make([]MarkedPack, MaxMarked+1)); err == nil {
		t.Error("a mark of too many packs")
	}
}
