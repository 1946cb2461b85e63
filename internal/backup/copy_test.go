package backup

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/google/uuid"

	"varve/internal/block"
	"varve/internal/block/memdisk"
	"varve/internal/objects/faulty"
	"varve/internal/repository"
)

// filled is a device that holds content.
func filled(t testing.TB, content []byte) block.Device {
	t.Helper()
	d, err := memdisk.New(int64(len(content)))
	if err != nil {
		t.Fatal(err)
	}
	op := &block.Op{Kind: block.OpWrite, Data: content, Length: int64(len(content))}
	if d.Submit(t.Context(), []*block.Op{op}); op.Err != nil {
		t.Fatal(op.Err)
	}
	return d
}

func noise(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(n)}).Read(b)
	return b
}

func newRepo(t testing.TB, st *faulty.Store, chunkBytes int) *repository.Repo {
	t.Helper()
	repo, err := repository.Create(t.Context(), st, repository.CreateOptions{ChunkBytes: chunkBytes})
	if err != nil {
		t.Fatal(err)
	}
	return repo
}

// one backs up one volume as it is.
func one(t testing.TB, repo *repository.Repo, content []byte, base *repository.Backup, changes Extents) *repository.Record {
	t.Helper()
	s := &Source{Device: filled(t, content), Volume: "v", VolumeID: uuid.UUID{1}, Name: "v", Type: repository.Full, Base: base, Changes: changes}
	if base != nil {
		s.Type = repository.Incremental
	}
	rec, err := Create(t.Context(), repo, []*Source{s}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	return rec
}

func holds(t testing.TB, repo *repository.Repo, id string, want []byte) {
	t.Helper()
	d, err := repo.OpenDevice(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	got := make([]byte, d.SizeBytes())
	if err := d.ReadAt(t.Context(), got, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("backup %s differs at %d", id, differs(got, want))
	}
}

// A copy that was interrupted leaves its candidate behind, and may be given up: the next one is made all the same.
func TestCopyIsMadeAfterOneThatWasInterrupted(t *testing.T) {
	ctx := t.Context()
	content := noise(40 << 20)
	from := newRepo(t, faulty.New(), 64<<10)
	rec := one(t, from, content, nil, nil)
	ids := map[string]bool{rec.ID: true}
	for _, givenUp := range []bool{false, true} {
		st := faulty.New()
		to := newRepo(t, st, 1<<20)
		cut := st.Inject(faulty.Fault{Op: faulty.Put, Pattern: "packs/*/*", Skip: 1, Err: errCut})
		if _, err := Copy(ctx, from, to, rec, ids, Options{}); !errors.Is(err, errCut) {
			t.Fatalf("the interrupted copy ends with %v", err)
		}
		cut()
		if givenUp {
			if there, err := to.Fence(ctx, rec.ID); there || err != nil {
				t.Fatal(there, err)
			}
		}
		copied, err := Copy(ctx, from, to, rec, ids, Options{})
		if err != nil {
			t.Fatal(err)
		}
		all, _, err := to.Backups(ctx)
		if err != nil || len(all) != 1 || all[0].Doubtful || all[0].ID != copied.Backups[0].ID {
			t.Fatalf("%+v, %v", all, err)
		}
		holds(t, to, rec.ID, content)
	}
}

// What was deleted there would be invisible: nobody is told that it has been copied.
func TestWhatWasDeletedThereIsNotCopied(t *testing.T) {
	ctx := t.Context()
	from := newRepo(t, faulty.New(), 64<<10)
	rec := one(t, from, noise(256<<10), nil, nil)
	ids := map[string]bool{rec.ID: true}
	for _, pruned := range []bool{false, true} {
		st := faulty.New()
		to := newRepo(t, st, 64<<10)
		if _, err := Copy(ctx, from, to, rec, ids, Options{}); err != nil {
			t.Fatal(err)
		}
		if err := to.Delete(ctx, rec.ID); err != nil {
			t.Fatal(err)
		}
		if pruned { // the tombstone outlives the record
			st.Lose("backups/" + rec.ID)
		}
		puts := to.Counts().Puts
		if copied, err := Copy(ctx, from, to, rec, ids, Options{}); !errors.Is(err, repository.ErrDeleted) {
			t.Fatalf("%+v, %v", copied, err)
		}
		if n := to.Counts().Puts - puts; n > 1 { // a pin
			t.Errorf("%d objects were put first", n)
		}
	}
}

// Incrementals of a volume that grows and shrinks, between chunks of other sizes.
func TestIncrementalsAreCopiedIntoChunksOfAnotherSize(t *testing.T) {
	ctx := t.Context()
	for _, sizes := range [][2]int{{64 << 10, 1 << 20}, {1 << 20, 64 << 10}, {256 << 10, 64 << 10}} {
		from, to := newRepo(t, faulty.New(), sizes[0]), newRepo(t, faulty.New(), sizes[1])
		content := noise(3<<20 + 512)
		var base *repository.Backup
		want := map[string][]byte{}
		r := rand.New(rand.NewPCG(1, uint64(sizes[0])))
		for step := range 12 {
			rec := one(t, from, content, base, nil)
			base = &rec.Backups[0]
			want[base.ID] = bytes.Clone(content)
			copied, err := Copy(ctx, from, to, rec, map[string]bool{base.ID: true}, Options{})
			if err != nil {
				t.Fatal(err)
			}
			if b := copied.Backups[0]; b.Type != base.Type || b.Mismatched > 0 || b.MappedBytes != base.MappedBytes {
				t.Fatalf("step %d: %+v of %+v", step, b, base)
			}
			size := (1 + r.IntN(4<<20/512)) * 512
			content = append(bytes.Clone(content), make([]byte, max(size-len(content), 0))...)[:size]
			for range 5 {
				off, n := r.IntN(size), r.IntN(40<<10)
				p := content[off:min(off+n, size)]
				if clear(p); r.IntN(3) > 0 {
					copy(p, noise(len(p)))
				}
			}
		}
		for id, content := range want {
			holds(t, to, id, content)
		}
	}
}

// Who tries again with the same sources makes another backup: the first one's id may have been given up.
func TestSourcesAreAsTheyWereAfterABackup(t *testing.T) {
	repo := newRepo(t, faulty.New(), 64<<10)
	s := &Source{Device: filled(t, noise(64<<10)), Volume: "v", VolumeID: uuid.UUID{1}, Name: "v", Type: repository.Full}
	seen := map[string]bool{}
	for range 2 {
		rec, err := Create(t.Context(), repo, []*Source{s}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if b := rec.Backups[0]; b.ID != rec.ID || seen[b.ID] {
			t.Fatalf("backup %s in record %s, after %v", b.ID, rec.ID, seen)
		}
		seen[rec.ID] = true
	}
}
