package mapwalk_test

import (
	"context"
	"math/rand/v2"
	"testing"

	"github.com/google/uuid"

	"varve/internal/backup"
	"varve/internal/block"
	"varve/internal/block/memdisk"
	"varve/internal/objects/faulty"
	"varve/internal/repository"
	"varve/internal/repository/chunk"
	"varve/internal/repository/envelope"
	"varve/internal/repository/extsort"
	"varve/internal/repository/maptree"
	"varve/internal/repository/mapwalk"
	"varve/internal/repository/pack"
	"varve/internal/vfs"
)

// Of many maps each node is read once for each set, though more nodes than fit in memory are sorted; and what is lost is told.
func TestEachNodeIsReadOnce(t *testing.T) {
	ctx := t.Context()
	st := faulty.New()
	const region, regions = 64 << 10, 5 * 64
	repo, err := repository.Create(ctx, st, repository.CreateOptions{ChunkBytes: region})
	if err != nil {
		t.Fatal(err)
	}
	source, err := memdisk.New(regions * region)
	if err != nil {
		t.Fatal(err)
	}
	s := &backup.Source{Device: source, Volume: "v", VolumeID: uuid.New(), Name: "v", Type: repository.Full}
	var roots []mapwalk.Root
	want := map[chunk.ID]int{} // level of each node, by reading each map by itself
	noise := rand.New(rand.NewPCG(1, 1))
	for round := range 6 {
		for i := round % 3; i < regions; i += 20 + 30*round {
			op := &block.Op{Kind: block.OpWrite, Data: make([]byte, block.Size), Offset: int64(i) * region, Length: block.Size}
			op.Data[0], op.Data[1] = byte(noise.Uint32()), byte(noise.Uint32())|1
			source.Submit(ctx, []*block.Op{op})
		}
		rec, err := backup.Create(ctx, repo, []*backup.Source{s}, backup.Options{})
		if err != nil {
			t.Fatal(err)
		}
		b := rec.Backups[0]
		s = &backup.Source{Device: source, Volume: "v", VolumeID: s.VolumeID, Name: "v", Type: repository.Incremental, Base: &b}
		roots = append(roots, mapwalk.Root{Root: b.Root, Set: uint32(round % 2)})
		var collect func(id chunk.ID, p chunk.Place, level int)
		collect = func(id chunk.ID, p chunk.Place, level int) {
			plain, err := repo.ReadNode(ctx, id, p)
			if err != nil {
				t.Fatal(err)
			}
			n, err := maptree.Decode(plain, repo.Geometry())
			if err != nil {
				t.Fatal(err)
			}
			want[id] = level
			for _, c := range n.Children {
				collect(c.ID, c.Place, level-1)
			}
		}
		collect(b.Root.ID, b.Root.Place, b.Root.Level)
	}
	type key struct {
		id  chunk.ID
		set uint32
	}
	run := func(repo *repository.Repo) (found map[key]int, lost int) {
		found = map[key]int{}
		w := &mapwalk.Walk{
			Packs: repo.Packs(), Geometry: repo.Geometry(), Space: extsort.Space{FS: vfs.OS(), Dir: t.TempDir(), MemoryBytes: 600},
			Read: func(ctx context.Context, n mapwalk.Node) ([]byte, error) { return repo.ReadNode(ctx, n.ID, n.Place) },
			Found: func(level int, n mapwalk.Node, _ maptree.Node) error {
				found[key{n.ID, n.Set}]++
				if want[n.ID] != level {
					t.Errorf("node %s at level %d", n.ID, level)
				}
				return nil
			},
			Lost: func(_ int, n mapwalk.Node, _ error) error {
				lost++
				return nil
			},
		}
		if err := w.Down(ctx, roots); err != nil {
			t.Fatal(err)
		}
		return found, lost
	}
	found, lost := run(repo)
	ids := map[chunk.ID]bool{}
	for k, times := range found {
		ids[k.id] = true
		if times != 1 {
			t.Errorf("node %s was found %d times", k.id, times)
		}
	}
	if len(ids) != len(want) || lost > 0 || len(found) == len(want) {
		t.Fatalf("%d nodes of %d, in their sets %d, %d lost", len(ids), len(want), len(found), lost)
	}
	st.Lose(pack.Name(envelope.Nodes, roots[0].Place.Pack))
	again, err := repository.Open(ctx, st, repository.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if less, lost := run(again); lost == 0 || len(less) >= len(found) {
		t.Fatalf("%d nodes of %d, %d lost", len(less), len(found), lost)
	}
}
