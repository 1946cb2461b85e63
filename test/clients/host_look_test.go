package clients

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"varve/internal/block"
	"varve/internal/contract"
)

// tidy leaves, when nothing is under way, no snapshot that the test has made.
func (h *host) tidy() error {
	for _, v := range h.volumes {
		all, err := asked[[]contract.Snapshot](h, "snapshot", "list", v.name)
		if err != nil {
			return err
		}
		for _, s := range all {
			if !strings.HasPrefix(s.Name, "s") {
				return fmt.Errorf("snapshot %s is left", s.Ref())
			}
		}
		if err := h.deleteSnapshots(v); err != nil {
			return err
		}
	}
	return nil
}

// look wants all volumes to hold what was written.
func (h *host) look() {
	h.t.Helper()
	for _, v := range h.volumes {
		must(h.t, h.leave(v), "flush %s", v.name)
		c := h.connect(v.name)
		got, err := readImage(c)
		c.Close()
		must(h.t, err, "read %s", v.name)
		if !slices.Equal(got, v.now) {
			h.t.Fatalf("%s of %s does not hold what was written", v.name, h.dir)
		}
	}
}

func (h *host) backups() []contract.Backup {
	h.t.Helper()
	return ask[[]contract.Backup](h.daemon, "backup", "list", "--repo", "away")
}

// restore brings a backup back, in one of the ways there are, and wants it to be an image.
func (h *host) restore(id string, want image) {
	h.t.Helper()
	export := "backup/" + id
	switch h.random.IntN(12) {
	case 0, 1:
		export = "back"
		args := []string{"backup", "restore", id, "--repo", "away", "--to-volume", export}
		if h.random.IntN(2) == 0 {
			args = append(args, "--instant")
		}
		h.varve(args...)
		defer h.varve("volume", "delete", export, "--force")
	case 2:
		file := filepath.Join(filepath.Dir(h.dir), "back.raw")
		defer os.Remove(file)
		h.varve("backup", "restore", id, "--repo", "away", "--to", file)
		h.wantFile(file, want)
		return
	case 3: // as on a bare machine
		file := filepath.Join(filepath.Dir(h.dir), "back.raw")
		defer os.Remove(file)
		h.varve(append([]string{"backup", "restore", id, "--url", h.place, "--to", file}, h.w.open...)...)
		h.wantFile(file, want)
		return
	}
	c := h.connect(export)
	defer c.Close()
	got, err := readImage(c)
	must(h.t, err, "read %s", export)
	if !slices.Equal(got, want) {
		h.t.Fatalf("backup %s does not hold what its volume did", id)
	}
}

func (h *host) wantFile(file string, want image) {
	h.t.Helper()
	p := make([]byte, len(want)*block.Size)
	for lba, s := range want {
		fill(p[lba*block.Size:][:block.Size], int64(lba), s)
	}
	wantContent(h.t, file, p)
}

// lastBackups makes a backup of each of the first volumes, after which there is no more in the pool for the repository than there has to be.
func (h *host) lastBackups() {
	h.t.Helper()
	for len(h.volumes) > 2 {
		must(h.t, h.drop(h.volumes[2]), "delete a volume")
	}
	for _, v := range h.volumes {
		attempt := h.w.attempt([]*volume{v})
		must(h.t, h.w.made(ask[[]contract.Backup](h.daemon, "backup", "create", v.name, "--repo", "away", "--label", attemptLabel+"="+attempt)), "back up")
		if marks := ask[[]contract.Bookmark](h.daemon, "bookmark", "list", v.name); len(marks) > 2 {
			h.t.Errorf("bookmarks of %s: %+v", v.name, marks)
		}
	}
	if left := ask[[]contract.Snapshot](h.daemon, "snapshot", "list"); len(left) > 0 {
		h.t.Errorf("snapshots are left: %+v", left)
	}
}
