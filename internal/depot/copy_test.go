package depot

import (
	"strings"
	"testing"

	"varve/internal/contract"
	"varve/internal/repository"
)

// A backup that is damaged does not keep the others from being copied, and is named.
func TestACopyOfAllGoesAroundDamage(t *testing.T) {
	f := newFixture(t, repository.CreateOptions{})
	lost := f.backUp(t, contract.BackupAuto)
	for _, name := range f.store.Names() {
		if strings.HasPrefix(name, "packs/") {
			f.store.Lose(name)
		}
	}
	f.again(t)
	f.content = noise(9, 1<<20)
	sound := f.backUp(t, contract.BackupFull)
	g := newFixture(t, repository.CreateOptions{})
	done, err := Copy(t.Context(), f.Depot, g.Depot, contract.CopyRepository{}, nil)
	if codeOf(err) != contract.CodeDamaged || !strings.Contains(err.Error(), lost.ID) || strings.Contains(err.Error(), sound.ID) {
		t.Errorf("copying all: %v", err)
	}
	if len(done.Copied) != 1 || done.Copied[0].ID != sound.ID {
		t.Errorf("%+v", done)
	}
	if _, err := Copy(t.Context(), f.Depot, g.Depot, contract.CopyRepository{Backups: []string{lost.ID, sound.ID}}, nil); codeOf(err) != contract.CodeDamaged {
		t.Errorf("copying what is damaged: %v", err)
	}
	if all, _, err := g.Backups(t.Context(), ""); err != nil || len(all) != 1 {
		t.Errorf("there are %d backups there, %v", len(all), err)
	}
}
