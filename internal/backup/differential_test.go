package backup

import (
	"bytes"
	"testing"

	"github.com/google/uuid"

	"varve/internal/block"
	"varve/internal/block/memdisk"
	"varve/internal/objects/faulty"
	"varve/internal/repository"
	"varve/internal/repository/chunk"
	"varve/internal/repository/maptree"
)

// An incremental stores a chunk, a differential of the same full has the same content: it must not break with the incremental.
func TestDifferentialRefersToItsFullAndItselfAlone(t *testing.T) {
	ctx := t.Context()
	repo, err := repository.Create(ctx, faulty.New(), repository.CreateOptions{ChunkBytes: 64 << 10})
	if err != nil {
		t.Fatal(err)
	}
	content := bytes.Repeat([]byte{1}, 256<<10)
	make1 := func(typ repository.Type, base *repository.Backup) repository.Backup {
		t.Helper()
		d, err := memdisk.New(int64(len(content)))
		if err != nil {
			t.Fatal(err)
		}
		op := &block.Op{Kind: block.OpWrite, Data: content, Length: int64(len(content))}
		if d.Submit(ctx, []*block.Op{op}); op.Err != nil {
			t.Fatal(op.Err)
		}
		rec, err := Create(ctx, repo, []*Source{{Device: d, Volume: "v", VolumeID: uuid.UUID{1}, Name: "v", Type: typ, Base: base}}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		return rec.Backups[0]
	}
	packs := func(b repository.Backup) map[chunk.PackID]bool {
		in := map[chunk.PackID]bool{}
		err := repo.Tree(b.Root).Walk(ctx, 0, 4, func(_ uint64, r maptree.Region) error {
			for _, c := range r.Chunks {
				in[c.Place.Pack] = true
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return in
	}
	full := make1(repository.Full, nil)
	copy(content[64<<10:], bytes.Repeat([]byte{2}, 64<<10))
	incremental := make1(repository.Incremental, &full)
	copy(content[128<<10:], bytes.Repeat([]byte{2}, 64<<10)) // twice: it may be compared with its own
	differential := make1(repository.Differential, &full)
	for p := range packs(differential) {
		if packs(incremental)[p] && !packs(full)[p] {
			t.Fatalf("the differential needs pack %v of the incremental", p)
		}
	}
	if n := len(packs(differential)); n != 2 {
		t.Fatalf("it needs %d packs", n)
	}
}
