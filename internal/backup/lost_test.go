package backup

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/uuid"

	"varve/internal/block"
	"varve/internal/block/memdisk"
	"varve/internal/objects/faulty"
	"varve/internal/repository"
)

// Regions whose chunks lie in several packs, all of which are lost, are lost whole: the packs are read at the same time.
func TestChunksOfOneRegionAreLostAtTheSameTime(t *testing.T) {
	ctx := t.Context()
	st := faulty.New()
	repo, err := repository.Create(ctx, st, repository.CreateOptions{ChunkBytes: 64 << 10})
	if err != nil {
		t.Fatal(err)
	}
	content := make([]byte, 64*64<<10)
	noise := rand.NewChaCha8([32]byte{})
	noise.Read(content)
	source, err := memdisk.New(int64(len(content)))
	if err != nil {
		t.Fatal(err)
	}
	s := &Source{Device: source, Volume: "v", VolumeID: uuid.New(), Name: "v", Type: repository.Full}
	var b repository.Backup
	for round := range 3 {
		// Each block round of each region is one more chunk of it, in the pack of that session.
		for off := round * block.Size; round > 0 && off < len(content); off += 64 << 10 {
			noise.Read(content[off : off+block.Size])
		}
		op := &block.Op{Kind: block.OpWrite, Data: content, Length: int64(len(content))}
		source.Submit(ctx, []*block.Op{op})
		rec, err := Create(ctx, repo, []*Source{s}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		b = rec.Backups[0]
		s = &Source{Device: source, Volume: "v", VolumeID: s.VolumeID, Name: "v", Type: repository.Incremental, Base: &b}
	}
	for _, n := range st.Names() {
		if strings.HasPrefix(n, "packs/") {
			st.Lose(n)
		}
	}
	for range 10 {
		if repo, err = repository.Open(ctx, st, repository.OpenOptions{}); err != nil {
			t.Fatal(err)
		}
		v, err := Verify(ctx, repo, b, nil)
		if err != nil || len(v.Lost) != 1 || v.Lost[0] != (Range{0, int64(len(content))}) {
			t.Fatalf("%+v, %v", v, err)
		}
	}
}
