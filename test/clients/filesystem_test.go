package clients

import (
	"os"
	"path/filepath"
	"testing"

	"varve/internal/contract"
)

// fileSystem is how one is made, mounted without changing anything, and examined.
type fileSystem struct {
	name    string
	make    []string
	asIs    string // options that mount what is not to be written, journal or not
	examine []string
	frozen  bool // a frozen one is clean: nothing is left in its journal
}

var fileSystems = []fileSystem{
	{name: "ext4", make: []string{"mkfs.ext4", "-q"}, asIs: "ro,noload", examine: []string{"e2fsck", "-f", "-n"}, frozen: true},
	{name: "xfs", make: []string{"mkfs.xfs", "-q"}, asIs: "ro,norecovery", examine: []string{"xfs_repair", "-n"}},
}

// wantClean wants the checker of the file system on an export to find nothing.
func (fs fileSystem) wantClean(t *testing.T, d *daemon, export string) {
	t.Helper()
	k := attach(t, d, export)
	defer k.detach()
	run(t, fs.examine[0], append(fs.examine[1:], k.device)...)
}

// wantFiles mounts an export, which replays its journal, and wants the first n files.
func (fs fileSystem) wantFiles(t *testing.T, d *daemon, export, options string, n int) {
	t.Helper()
	k := attach(t, d, export)
	defer k.detach()
	m := mount(t, k.device, fs.name, options)
	defer m.umount()
	wantFiles(t, m.dir, n)
}

func TestFileSystemsThroughSnapshotsRollbackAndKill(t *testing.T) {
	needDevices(t)
	for _, fs := range fileSystems {
		t.Run(fs.name, func(t *testing.T) {
			t.Parallel()
			data := filepath.Join(scratch(t), "d")
			d := serve(t, data)
			d.varve("volume", "create", "web", "--size", "320M")
			k := attach(t, d, "web")
			run(t, fs.make[0], append(fs.make[1:], k.device)...)
			m := mount(t, k.device, fs.name, "")

			for i := range 8 {
				must(t, writeFile(m.dir, i), "write file %d", i)
			}
			m.frozen(func() { d.varve("snapshot", "create", "web", "--name", "frozen") })
			w := startFiles(t, m.dir, 8)
			before := w.await(16)
			d.varve("snapshot", "create", "web", "--name", "running")
			w.await(before + 8)
			all := w.finish()
			must(t, w.err, "write files")
			must(t, os.Remove(fileName(m.dir, 0)), "remove a file")
			must(t, writeFile(m.dir, 0), "write it again")
			m.umount()
			k.detach()

			// The head, and what the snapshots hold, as they are and after their journals are replayed.
			fs.wantClean(t, d, "web")
			fs.wantFiles(t, d, "web", "", all)
			fs.wantFiles(t, d, "web@frozen", fs.asIs, 8)
			if fs.frozen {
				fs.wantClean(t, d, "web@frozen")
			}
			for name, files := range map[string]int{"frozen": 8, "running": before} {
				clone := ask[contract.Volume](d, "volume", "create", "of-"+name, "--from", "web@"+name)
				if clone.Origin != "web@"+name || clone.PauseMS == nil || clone.DurableMS == nil || *clone.PauseMS > *clone.DurableMS {
					t.Errorf("a clone does not tell its origin and its times: %+v", clone)
				}
				fs.wantFiles(t, d, "of-"+name, "", files)
				fs.wantClean(t, d, "of-"+name)
			}

			// Back, and forth again.
			kept := ask[contract.Rollback](d, "snapshot", "rollback", "web@running").Kept
			fs.wantFiles(t, d, "web", "", before)
			fs.wantClean(t, d, "web")
			d.varve("snapshot", "rollback", "web@"+kept.Name)
			fs.wantClean(t, d, "web")
			fs.wantFiles(t, d, "web", "", all)

			// The daemon is killed under the file system.
			k = attach(t, d, "web")
			m = mount(t, k.device, fs.name, "")
			w = startFiles(t, m.dir, all)
			w.await(all + 8)
			d.kill()
			all = w.awaitEnd()
			m.umount()
			k.detach()

			d = serve(t, data)
			fs.wantFiles(t, d, "web", "", all)
			fs.wantClean(t, d, "web")
			fs.wantFiles(t, d, "web@frozen", fs.asIs, 8)
			d.checkPool()
			d.stop()
		})
	}
}
