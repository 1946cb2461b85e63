package depot

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"varve/internal/contract"
	"varve/internal/objects"
	"varve/internal/objects/faulty"
	"varve/internal/repository"
)

// A backup that is made is told of, though the store goes away as soon as its record is there.
func TestABackupThatIsMadeIsToldOf(t *testing.T) {
	f := newFixture(t, repository.CreateOptions{})
	var made atomic.Bool
	f.store.SetHook(func(_ context.Context, c faulty.Call) error {
		if c.Op == faulty.List && c.Name == "backups/" && made.Load() {
			return objects.ErrUnavailable
		}
		if c.Op == faulty.Put && strings.HasPrefix(c.Name, "backups/") {
			made.Store(true)
		}
		return nil
	})
	b := f.backUp(t, contract.BackupAuto)
	f.store.SetHook(nil)
	if !made.Load() || b.ID == "" || b.Type != contract.BackupFull || b.Size != int64(len(f.content)) || b.State != contract.BackupGood || b.StoredAt != nil {
		t.Fatalf("%v: %+v", made.Load(), b)
	}
	listed, err := f.Backup(t.Context(), b.ID)
	if err != nil || listed.StoredAt == nil {
		t.Fatal(listed, err)
	}
	if listed.StoredAt = nil; fmt.Sprintf("%+v", listed) != fmt.Sprintf("%+v", b) {
		t.Errorf("it is told as\n%+v, and listed as\n%+v", b, listed)
	}
}

// What a backup took is the same when it is made and when it is looked up by somebody else.
func TestWhatABackupTookIsToldAlike(t *testing.T) {
	f := newFixture(t, repository.CreateOptions{})
	made := f.backUp(t, contract.BackupAuto)
	f.again(t)
	later, err := f.Backup(t.Context(), made.ID)
	if err != nil || later.StoredBytes != made.StoredBytes || later.Objects != made.Objects || later.Requests != made.Requests {
		t.Errorf("made: %d bytes in %d objects by %d requests, later %d in %d by %d; %v", made.StoredBytes, made.Objects, made.Requests,
			later.StoredBytes, later.Objects, later.Requests, err)
	}
}
