package backup

import (
	"bytes"
	"errors"
	"testing"

	"varve/internal/block/memdisk"
	"varve/internal/objects/faulty"
	"varve/internal/repository"
	"varve/internal/repository/maptree"
)

// A node that is whole and says nothing of a map is as lost as any other.
func TestNodeThatIsNoNodeIsLost(t *testing.T) {
	ctx := t.Context()
	repo := newRepo(t, faulty.New(), 64<<10)
	s, err := repo.Begin(ctx, repository.SessionOptions{})
	if err != nil {
		t.Fatal(err)
	}
	id, place, err := s.WriteNode(ctx, []byte("\x01 nothing of a map"))
	if err != nil {
		t.Fatal(err)
	}
	b := repository.Backup{ID: s.ID(), Full: s.ID(), Type: repository.Full, SizeBytes: 1 << 20, Root: maptree.Root{ID: id, Place: place}}
	if err := s.Commit(ctx, &repository.Record{Backups: []repository.Backup{b}}, nil); err != nil {
		t.Fatal(err)
	}
	all := Range{0, 1 << 20}
	if v, err := Verify(ctx, repo, b, nil); err != nil || len(v.Lost) != 1 || v.Lost[0] != all {
		t.Errorf("%+v, %v", v, err)
	}
	target, err := memdisk.New(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Restore(ctx, repo, b, target, RestoreOptions{SkipDamaged: true}); err != nil || len(got.Lost) != 1 || got.Lost[0] != all {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := Restore(ctx, repo, b, target, RestoreOptions{}); err == nil {
		t.Error("it was restored")
	}
}

// What is lost is told in ranges, which take no more memory than they have to.
func TestRangesThatAreLostAreJoinedAtOnce(t *testing.T) {
	ctx := t.Context()
	st := faulty.New()
	content := noise(4 << 20)
	b := one(t, newRepo(t, st, 64<<10), content, nil, nil).Backups[0]
	for _, n := range st.Names() {
		if n[:6] == "packs/" {
			st.Lose(n)
		}
	}
	repo, err := repository.Open(ctx, st, repository.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r := &restorer{repo: repo, b: b, target: &nullDevice{size: b.SizeBytes}, o: RestoreOptions{Fresh: true, SkipDamaged: true}, pin: &repository.Pin{}, regionBytes: 64 << 10, per: 16}
	err = repo.Scan(ctx, repo.Tree(b.Root), 0, 64, nil, 1, func(s *repository.Scanned) error { return r.region(ctx, s) })
	if err != nil || len(r.lost) != 1 {
		t.Errorf("%d ranges, %v", len(r.lost), err)
	}
	target := filled(t, bytes.Repeat([]byte{1}, len(content)))
	if got, err := Restore(ctx, repo, b, target, RestoreOptions{SkipDamaged: true}); err != nil || len(got.Lost) != 1 || got.ZeroedBytes != b.SizeBytes {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := Restore(ctx, repo, b, target, RestoreOptions{}); !errors.Is(err, ErrDamaged) {
		t.Error(err)
	}
}
