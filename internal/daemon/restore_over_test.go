package daemon

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"varve/internal/block"
	"varve/internal/contract"
)

// damage spoils what a pool stores of some blocks of a volume; no daemon has it.
func damage(t *testing.T, data string, blocks ...[]byte) {
	t.Helper()
	err := filepath.WalkDir(poolDir(data), func(name string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		content, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		for _, b := range blocks {
			for at := 0; ; {
				i := bytes.Index(content[at:], b)
				if i < 0 {
					break
				}
				at += i
				content[at] ^= 1
			}
		}
		return os.WriteFile(name, content, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestRestoreInPlaceMendsDamage: what cannot be read of the volume is what has to be restored most of all.
func TestRestoreInPlaceMendsDamage(t *testing.T) {
	dir := scratch(t)
	d, err := Start(t.Context(), Config{DataDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	d.mustInit(t, "home")
	d.mustCreate(t, "web")
	then := d.noise(t, "web")
	hole := &block.Op{Kind: block.OpZero, Offset: 200 * block.Size, Length: 56 * block.Size}
	clear(then[hole.Offset:])
	d.submit(t, "web", hole)
	b := d.mustBackUpOne(t, "web", "home", "")
	now := d.noise(t, "web")
	if err := d.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, i := range []int{3, 100, 220, 255} {
		damage(t, dir, now[i*block.Size:(i+1)*block.Size])
	}
	d = start(t, dir)
	if err := dial(t, d, "web").ReadAt(t.Context(), make([]byte, block.Size), 100*block.Size); err == nil {
		t.Fatal("what is damaged is read")
	}
	d.mustRestore(t, contract.RestoreBackup{Backup: b.ID, InPlace: "web"})
	same(t, "the volume", d.content(t, "web"), then)
}

// TestRestoreInPlaceMeanwhile a snapshot is being copied and a mirror attached: the copy is of before, the mirror's leg is what the volume is.
func TestRestoreInPlaceMeanwhile(t *testing.T) {
	bothPlaces(t, func(t *testing.T, d *Daemon) {
		d.mustInit(t, "home")
		then := d.noise(t, "web")
		b := d.mustBackUpOne(t, "web", "home", "")
		now := d.noise(t, "web")
		release := d.engagedBehind(t)
		made, err := d.CreateSnapshots(t.Context(), contract.CreateSnapshot{Volumes: []string{"web"}, Name: "copied", Technique: contract.TechniqueCOWCopy})
		if err != nil {
			t.Fatal(err)
		}
		leg := filepath.Join(scratch(t), "leg")
		if _, err := d.AttachMirror("web", contract.AttachMirror{To: leg}); err != nil {
			t.Fatal(err)
		}
		got := d.mustRestore(t, contract.RestoreBackup{Backup: b.ID, InPlace: "web"})
		for range 2 {
			same(t, "the volume", d.content(t, "web"), then)
			same(t, "the copy", d.content(t, "web@copied"), now)
			same(t, "what was kept", d.content(t, "web@"+got.Kept.Name), now)
			release()
			d.ended(t, made[0].CopyJob)
			if got.CopyBack != nil {
				d.ended(t, got.CopyBack.ID)
			}
			await(t, "the mirror is in sync", func() bool {
				m, err := d.Mirror("web")
				return err == nil && m.State == contract.MirrorInSync
			})
		}
		written, err := os.ReadFile(leg)
		if err != nil {
			t.Fatal(err)
		}
		same(t, "the leg", written, then)
	})
}

// TestRestoreInPlaceOverABase: what is being filled from one backup becomes another one, and its present is kept; both are filled.
func TestRestoreInPlaceOverABase(t *testing.T) {
	d := start(t, scratch(t))
	where := d.mustInit(t, "home")
	d.mustCreate(t, "web")
	first := d.noise(t, "web")
	a := d.mustBackUpOne(t, "web", "home", "")
	d.put(t, "web", 7, 5, 80)
	second := d.content(t, "web")
	b := d.mustBackUpOne(t, "web", "home", "")
	release := d.engagedBehind(t)
	d.mustRestore(t, contract.RestoreBackup{Backup: a.ID, ToVolume: "back", Instant: true})
	got := d.mustRestore(t, contract.RestoreBackup{Backup: b.ID, InPlace: "back", Force: true})
	if got.WrittenBytes != 2*block.Size {
		t.Errorf("%d bytes were written", got.WrittenBytes)
	}
	kept := "back@" + got.Kept.Name
	same(t, "the volume", d.content(t, "back"), second)
	same(t, "what was kept", d.content(t, kept), first)
	release()
	d.filled(t)
	noPins(t, where)
	if err := d.RemoveRepository(t.Context(), "home"); err != nil {
		t.Fatal(err)
	}
	same(t, "the volume that is filled", d.content(t, "back"), second)
	same(t, "what was kept of it", d.content(t, kept), first)
}

// TestCloneOfAnInstantRestore is filled by itself once its origin is gone, whoever else is filled from the same backup.
func TestCloneOfAnInstantRestore(t *testing.T) {
	d := start(t, scratch(t))
	d.mustInit(t, "home")
	d.mustCreate(t, "web")
	then := d.noise(t, "web")
	b := d.mustBackUpOne(t, "web", "home", "")
	release := d.engagedBehind(t)
	for _, name := range []string{"a", "b"} {
		d.mustRestore(t, contract.RestoreBackup{Backup: b.ID, ToVolume: name, Instant: true})
	}
	d.mustSnapshot(t, contract.CreateSnapshot{Volumes: []string{"a"}, Name: "s"})
	if _, err := d.CreateVolume(t.Context(), contract.CreateVolume{Name: "clone", From: "a@s"}); err != nil {
		t.Fatal(err)
	}
	if err := d.DeleteSnapshots(t.Context(), []string{"a@s"}); err != nil {
		t.Fatal(err)
	}
	if err := d.DeleteVolume(t.Context(), "a", true); err != nil {
		t.Fatal(err)
	}
	release()
	d.filled(t)
	if err := d.RemoveRepository(t.Context(), "home"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"b", "clone"} {
		same(t, name, d.content(t, name), then)
	}
}
