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
	"varve/internal/repository/envelope"
	"varve/internal/repository/pack"
)

// Of a map whose second leaf is lost, all but what that covers can be verified and restored.
func TestALostMapNodeTakesOnlyWhatItCovers(t *testing.T) {
	ctx := t.Context()
	st := faulty.New()
	repo, err := repository.Create(ctx, st, repository.CreateOptions{ChunkBytes: 64 << 10})
	if err != nil {
		t.Fatal(err)
	}
	const leaf = 64 * 64 << 10
	content := make([]byte, 3*leaf-12345/512*512)
	rand.NewChaCha8([32]byte{}).Read(content)
	source, err := memdisk.New(int64(len(content)))
	if err != nil {
		t.Fatal(err)
	}
	op := &block.Op{Kind: block.OpWrite, Data: content, Length: int64(len(content))}
	source.Submit(ctx, []*block.Op{op})
	rec, err := Create(ctx, repo, []*Source{{Device: source, Volume: "v", VolumeID: uuid.New(), Name: "v", Type: repository.Full}}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	b := rec.Backups[0]
	d, err := repo.Packs().Directory(ctx, envelope.Nodes, b.Root.Place.Pack)
	if err != nil {
		t.Fatal(err)
	}
	name := pack.Name(envelope.Nodes, b.Root.Place.Pack)
	st.Change(name, func(object []byte) []byte {
		h, err := envelope.DecodeHeader(object)
		if err != nil {
			t.Fatal(err)
		}
		at := h.PayloadOffset() + int64(h.DirectoryBytes) + int64(d.Entry(1).Offset)
		clear(object[at : at+int64(d.Entry(1).SealedBytes)])
		return object
	})
	if repo, err = repository.Open(ctx, st, repository.OpenOptions{}); err != nil {
		t.Fatal(err)
	}

	lost := Range{leaf, leaf}
	v, err := Verify(ctx, repo, b, nil)
	if err != nil || len(v.Lost) != 1 || v.Lost[0] != lost || len(v.Errs) == 0 || v.Bytes != int64(len(content))-leaf {
		t.Fatalf("verify: %+v, %v", v, err)
	}
	for _, fresh := range []bool{true, false} {
		target, err := memdisk.New(int64(len(content)))
		if err != nil {
			t.Fatal(err)
		}
		if !fresh {
			old := &block.Op{Kind: block.OpWrite, Data: bytes.Repeat([]byte{7}, len(content)), Length: int64(len(content))}
			target.Submit(ctx, []*block.Op{old})
		}
		if _, err := Restore(ctx, repo, b, target, RestoreOptions{Fresh: fresh}); !errors.Is(err, ErrDamaged) {
			t.Fatalf("without skipping: %v", err)
		}
		got, err := Restore(ctx, repo, b, target, RestoreOptions{Fresh: fresh, SkipDamaged: true})
		if err != nil || len(got.Lost) != 1 || got.Lost[0] != lost {
			t.Fatalf("restore: %+v, %v", got, err)
		}
		want := bytes.Clone(content)
		clear(want[leaf : 2*leaf])
		have := make([]byte, len(content))
		if err := target.ReadAt(ctx, have, 0); err != nil || !bytes.Equal(have, want) {
			t.Fatalf("fresh %t: what was restored is wrong (%v)", fresh, err)
		}
	}
}
