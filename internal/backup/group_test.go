package backup

import (
	"bytes"
	"errors"
	"testing"

	"github.com/google/uuid"

	"varve/internal/objects/faulty"
	"varve/internal/repository"
	"varve/internal/repository/config"
)

// Volumes of any size are backed up as one record, in one set, and each on its own base.
func TestGroupHoldsEachOfItsVolumes(t *testing.T) {
	for _, scope := range []config.Scope{config.ScopeRepository, config.ScopeSet} {
		ctx := t.Context()
		repo, err := repository.Create(ctx, faulty.New(), repository.CreateOptions{ChunkBytes: 64 << 10, Scope: scope})
		if err != nil {
			t.Fatal(err)
		}
		contents := [][]byte{noise(1 << 20), noise(4096), noise(64<<10 + 512), make([]byte, 3<<20), noise(512)}
		var bases []repository.Backup
		for round := range 3 {
			var sources []*Source
			for i, c := range contents {
				s := &Source{Device: filled(t, c), Volume: "v", VolumeID: uuid.UUID{byte(i + 1)}, Name: "v", Type: repository.Full}
				if round > 0 {
					s.Type, s.Base = repository.Incremental, &bases[i]
				}
				sources = append(sources, s)
			}
			rec, err := Create(ctx, repo, sources, Options{})
			if err != nil {
				t.Fatal(err)
			}
			bases = rec.Backups
			for i, b := range bases {
				if b.Set != bases[0].Set || b.Set == uuid.Nil == repo.Sets() {
					t.Errorf("set %v of volume %d", b.Set, i)
				}
				holds(t, repo, b.ID, contents[i])
			}
			// The next is another: what the first two hold changes places, and one grows.
			contents[0], contents[3] = contents[3], contents[0]
			contents[4] = append(bytes.Clone(contents[4]), noise(1<<20)...)
		}
		// Bases of other sets cannot be those of one record.
		other := one(t, repo, contents[0], nil, nil).Backups[0]
		mixed := []*Source{
			{Device: filled(t, contents[0]), Name: "a", Type: repository.Incremental, Base: &other},
			{Device: filled(t, contents[2]), Name: "b", Type: repository.Incremental, Base: &bases[2]},
		}
		if _, err := Create(ctx, repo, mixed, Options{}); errors.Is(err, errSets) != repo.Sets() {
			t.Errorf("bases of two sets: %v", err)
		}
	}
}

// A restore into what is there, also what another one left that was cut short, makes it the backup's, and leaves what lies beyond.
func TestRestoreGoesOnWhereAnotherEnded(t *testing.T) {
	ctx := t.Context()
	content := noise(3<<20 + 512)
	clear(content[1<<20 : 2<<20])
	clear(content[12288:20480])
	repo := newRepo(t, faulty.New(), 64<<10)
	b := one(t, repo, content, nil, nil).Backups[0]
	for name, there := range map[string][]byte{
		"nothing":    make([]byte, 4<<20),
		"all":        append(bytes.Clone(content), make([]byte, 4<<20-len(content))...),
		"other":      bytes.Repeat([]byte{7}, 4<<20),
		"half of it": append(bytes.Clone(content[:1500<<10]), bytes.Repeat([]byte{7}, 4<<20-1500<<10)...),
	} {
		target := filled(t, there)
		before := repo.Counts().DownloadBytes
		got, err := Restore(ctx, repo, b, target, RestoreOptions{})
		if err != nil {
			t.Fatal(err)
		}
		have := make([]byte, len(there))
		if err := target.ReadAt(ctx, have, 0); err != nil {
			t.Fatal(err)
		}
		if at := differs(have[:len(content)], content); at >= 0 {
			t.Errorf("%s: it differs at %d", name, at)
		}
		if !bytes.Equal(have[len(content):], there[len(content):]) {
			t.Errorf("%s: what lies beyond was changed", name)
		}
		if name == "all" && (got.WrittenBytes+got.ZeroedBytes > 0 || repo.Counts().DownloadBytes-before > 1<<20) {
			t.Errorf("%+v, and %d bytes were fetched", got, repo.Counts().DownloadBytes-before)
		}
		if same, err := Restore(ctx, repo, b, target, RestoreOptions{}); err != nil || same.WrittenBytes+same.ZeroedBytes > 0 {
			t.Errorf("%s, again: %+v, %v", name, same, err)
		}
	}
	if _, err := Restore(ctx, repo, b, filled(t, make([]byte, 3<<20)), RestoreOptions{}); !errors.Is(err, ErrTooSmall) {
		t.Error(err)
	}
}
