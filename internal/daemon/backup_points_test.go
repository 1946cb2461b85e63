package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/uuid"

	"varve/internal/block"
	"varve/internal/contract"
	"varve/internal/pool"
)

// TestBackupOfAFullPool: what is there can be backed up, though there is no room for a bookmark.
func TestBackupOfAFullPool(t *testing.T) {
	d := start(t, scratch(t))
	d.mustInit(t, "home")
	d.mustCreate(t, "web")
	d.noise(t, "web")
	d.mustSnapshot(t, contract.CreateSnapshot{Volumes: []string{"web"}, Name: "s"})
	const quota = 256 << 20
	if err := d.pool.SetQuota(t.Context(), quota, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := d.CreateVolume(t.Context(), contract.CreateVolume{Name: "large", Size: 2 * quota}); err != nil {
		t.Fatal(err)
	}
	c, data := dial(t, d, "large"), bytes.Repeat([]byte{1}, 1<<20)
	for off := int64(0); len(data) > block.Size/2; {
		op := &block.Op{Kind: block.OpWrite, Offset: off, Length: int64(len(data)), Data: data}
		if c.Submit(t.Context(), []*block.Op{op}); op.Err != nil {
			data = data[:len(data)/2]
		}
		off += op.Length
	}
	for i := 0; ; i++ {
		_, err := d.pool.CreateBookmark(t.Context(), pool.SnapshotRef{Volume: "web", Name: "s"}, fmt.Sprintf("more-%d", i))
		if errors.Is(err, block.ErrNoSpace) {
			break
		}
		if err != nil || i > 10000 {
			t.Fatal(err)
		}
	}
	b := d.mustBackUpOne(t, "web@s", "home", "")
	same(t, "the backup", d.backedUp(t, b.ID), d.content(t, "web@s"))
	d.wantBookmarks(t, "web", "home")
}

// TestBackupOfCopies: of one that needs nothing but itself the backup is what it holds, and the volume's backups go on as they were.
func TestBackupOfCopies(t *testing.T) {
	bothPlaces(t, func(t *testing.T, d *Daemon) {
		d.mustInit(t, "home")
		d.put(t, "web", 1, 0, 1)
		d.mustBackUpOne(t, "web", "home", "")
		for i, technique := range []string{contract.TechniqueClone, contract.TechniqueCOWCopy} {
			d.put(t, "web", byte(10+i), 1, 2)
			made, err := d.CreateSnapshots(t.Context(), contract.CreateSnapshot{Volumes: []string{"web"}, Name: technique, Technique: technique})
			if err != nil {
				t.Fatal(err)
			}
			then := d.content(t, "web")
			d.put(t, "web", byte(20+i), 2, 3)
			d.ended(t, made[0].CopyJob)
			copied := d.mustBackUpOne(t, "web@"+technique, "home", "")
			same(t, "the backup of a "+technique, d.backedUp(t, copied.ID), then)
			last := d.mustBackUpOne(t, "web", "home", "")
			if last.Type != contract.BackupIncremental || last.Mismatched > 0 {
				t.Errorf("after that of a %s: %+v", technique, last)
			}
			same(t, "the next backup", d.backedUp(t, last.ID), d.content(t, "web"))
		}
	})
}

// TestClockThatWasSetBack: backups are in the order in which they were made, whatever time their records say.
func TestClockThatWasSetBack(t *testing.T) {
	d := start(t, scratch(t))
	d.mustInit(t, "home")
	d.mustCreate(t, "web")
	var ids []string
	for i := range byte(2) {
		d.put(t, "web", i+1, 0)
		ids = append(ids, d.mustBackUpOne(t, "web", "home", "").ID)
	}
	k, err := d.repositories.named("home")
	if err != nil {
		t.Fatal(err)
	}
	u, err := d.repositories.use(t.Context(), k)
	if err != nil {
		t.Fatal(err)
	}
	defer u.done()
	all, _, err := u.Repo().Backups(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(all) // as if each had been made before the one that it is based on
	volume := all[0].VolumeID
	if err := d.inOrder([]uuid.UUID{volume}, all); err != nil || all[0].ID != ids[0] || all[1].ID != ids[1] {
		t.Errorf("in order: %v, %v", all, err)
	}
	third := d.mustBackUpOne(t, "web", "home", "")
	if all, _, err = u.Repo().Backups(t.Context()); err != nil {
		t.Fatal(err)
	}
	slices.Reverse(all)
	d.pruneBookmarks(t.Context(), volume, u.id, all)
	d.wantBookmarks(t, "web", "home", ids[0], third.ID)
}

// TestTemporaryLabel is nothing that a user gives: his snapshot would be gone with the next start.
func TestTemporaryLabel(t *testing.T) {
	d := start(t, scratch(t))
	d.mustCreate(t, "web")
	_, err := d.CreateSnapshots(t.Context(), contract.CreateSnapshot{Volumes: []string{"web"}, Name: "s", Labels: map[string]string{temporaryLabel: "x"}})
	wantCode(t, err, contract.CodeUsage)
	d.wantNoSnapshots(t)
}
