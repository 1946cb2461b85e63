package backup

import (
	"bytes"
	"context"
	"testing"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"varve/internal/block"
	"varve/internal/block/memdisk"
	"varve/internal/block/zeros"
	"varve/internal/objects/faulty"
	"varve/internal/repository"
	"varve/internal/repository/config"
)

// model is a volume that changes, with the backups that were made of it.
type model struct {
	repo    *repository.Repo
	volume  uuid.UUID
	content []byte
	dirty   map[string]map[int64]bool // by backup: blocks that were touched since
	want    map[string][]byte         // by backup: the content it must have
}

func newModel(tb fataler, o repository.CreateOptions) *model {
	repo, err := repository.Create(context.Background(), faulty.New(), o)
	if err != nil {
		tb.Fatal(err)
	}
	return &model{repo: repo, volume: uuid.New(), content: make([]byte, 1<<20), dirty: map[string]map[int64]bool{}, want: map[string][]byte{}}
}

func (m *model) touch(off, length int64) {
	for at := off / block.Size; at*block.Size < off+length; at++ {
		for _, d := range m.dirty {
			d[at] = true
		}
	}
}

func (m *model) device(tb fataler) block.Device {
	d, err := memdisk.New(int64(len(m.content)))
	if err != nil {
		tb.Fatal(err)
	}
	op := &block.Op{Kind: block.OpWrite, Data: m.content, Length: int64(len(m.content))}
	d.Submit(context.Background(), []*block.Op{op})
	if op.Err != nil {
		tb.Fatal(op.Err)
	}
	return d
}

func (m *model) create(ctx context.Context, t *rapid.T, want Want) string {
	all, unreadable, err := m.repo.Backups(ctx)
	if err != nil || len(unreadable) > 0 {
		t.Fatal(err, unreadable)
	}
	c := Choose(want, m.volume, all, func(b repository.Listed) (string, bool) { return "its bookmark is gone", m.dirty[b.ID] != nil })
	s := &Source{Device: m.device(t), Volume: "v", VolumeID: m.volume, Name: "v", Type: c.Type, Reason: c.Reason}
	if c.Base != nil {
		s.Base = &c.Base.Backup
		dirty := m.dirty[c.Base.ID]
		s.Changes = func(_ context.Context, visit func(off, length int64) error) error {
			for at := int64(0); at*block.Size < int64(len(m.content)); at++ {
				if dirty[at] {
					if err := visit(at*block.Size, min(block.Size, int64(len(m.content))-at*block.Size)); err != nil {
						return err
					}
				}
			}
			return nil
		}
	}
	rec, err := Create(ctx, m.repo, []*Source{s}, Options{Program: "test"})
	if err != nil {
		t.Fatal(err)
	}
	b := rec.Backups[0]
	if b.Mismatched > 0 {
		t.Fatalf("backup %s: %s: %d blocks did not match", b.ID, b.Reason, b.Mismatched)
	}
	m.want[b.ID] = bytes.Clone(m.content)
	m.dirty[b.ID] = map[int64]bool{}
	mapped := int64(0)
	for at := 0; at < len(m.content); at += block.Size {
		if !zeros.All(m.content[at:min(at+block.Size, len(m.content))]) {
			mapped += block.Size
		}
	}
	if b.MappedBytes != mapped {
		t.Fatalf("backup %s says that %d bytes are mapped, not %d", b.ID, b.MappedBytes, mapped)
	}
	return b.ID
}

func (m *model) check(ctx context.Context, t *rapid.T, repo *repository.Repo) {
	all, _, err := repo.Backups(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if len(all) != len(m.want) {
		t.Fatalf("%d backups are listed, not %d", len(all), len(m.want))
	}
	for _, b := range all {
		want := m.want[b.ID]
		target, err := memdisk.New(int64(len(want)) + block.Size)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Restore(ctx, repo, b.Backup, target, RestoreOptions{Fresh: true}); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(want))
		if err := target.ReadAt(ctx, got, 0); err != nil {
			t.Fatal(err)
		}
		if at := differs(got, want); at >= 0 {
			t.Fatalf("backup %s (%s, %s) differs at block %d", b.ID, b.Type, b.Reason, at/block.Size)
		}
		d, err := repo.OpenDevice(ctx, b.ID)
		if err != nil {
			t.Fatal(err)
		}
		clear(got)
		if err := d.ReadAt(ctx, got, 0); err != nil {
			t.Fatal(err)
		}
		if at := differs(got, want); at >= 0 {
			t.Fatalf("device of backup %s differs at block %d", b.ID, at/block.Size)
		}
		checkExtents(ctx, t, d, want)
		d.Close()
	}
}

func checkExtents(ctx context.Context, t *rapid.T, d block.Device, want []byte) {
	extents, err := d.Extents(ctx, 0, d.SizeBytes(), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	at := int64(0)
	for _, e := range extents {
		if e.Offset != at {
			t.Fatalf("extent at %d after %d", e.Offset, at)
		}
		at += e.Length
		if e.Zero && !zeros.All(want[e.Offset:at]) {
			t.Fatalf("extent %+v is not zero", e)
		}
	}
	if at != d.SizeBytes() {
		t.Fatalf("extents end at %d of %d", at, d.SizeBytes())
	}
}

func differs(a, b []byte) int {
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

func TestBackupsHoldWhatTheVolumeHeld(t *testing.T) {
	scopes := map[string]config.Scope{"repository": config.ScopeRepository, "set": config.ScopeSet}
	for name, scope := range scopes {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				ctx := context.Background()
				m := newModel(t, repository.CreateOptions{ChunkBytes: 64 << 10, Scope: scope})
				seed := byte(0)
				t.Repeat(map[string]func(*rapid.T){
					"write": func(t *rapid.T) {
						if len(m.content) == 0 {
							return
						}
						off := rapid.IntRange(0, len(m.content)-1).Draw(t, "offset")
						n := min(rapid.IntRange(1, 3*block.Size).Draw(t, "length"), len(m.content)-off)
						seed++
						for i := range n {
							m.content[off+i] = byte(i)*seed + seed
						}
						m.touch(int64(off), int64(n))
					},
					"zero": func(t *rapid.T) {
						if len(m.content) == 0 {
							return
						}
						off := rapid.IntRange(0, len(m.content)-1).Draw(t, "offset")
						n := min(rapid.IntRange(1, 30*block.Size).Draw(t, "length"), len(m.content)-off)
						clear(m.content[off : off+n])
						m.touch(int64(off), int64(n))
					},
					"resize": func(t *rapid.T) {
						size := rapid.IntRange(1, 1<<20/block.SectorSize).Draw(t, "sectors") * block.SectorSize
						old := len(m.content)
						if size < old {
							m.content = m.content[:size:size]
						} else {
							m.content = append(m.content[:old:old], make([]byte, size-old)...)
						}
						m.touch(int64(min(old, size)), int64(max(old, size)-min(old, size)))
					},
					"back up": func(t *rapid.T) {
						m.create(ctx, t, rapid.SampledFrom([]Want{WantAuto, WantFull, WantIncremental, WantDifferential}).Draw(t, "type"))
					},
					"delete": func(t *rapid.T) {
						all, _, err := m.repo.Backups(ctx)
						if err != nil {
							t.Fatal(err)
						}
						if len(all) == 0 {
							return
						}
						b := rapid.SampledFrom(all).Draw(t, "backup")
						if err := m.repo.Delete(ctx, b.ID); err != nil {
							t.Fatal(err)
						}
						delete(m.want, b.ID)
						delete(m.dirty, b.ID)
					},
				})
				m.check(ctx, t, m.repo)
			})
		})
	}
}

// fataler is what testing.TB and rapid.T have in common here.
type fataler interface{ Fatal(...any) }
