package clients

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// tree is what a directory holds by path: kind and content. Sockets are left out, and
// the lock, in which who tries to open a pool writes its name.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	must(t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.Type()&fs.ModeSocket != 0 || e.Name() == "LOCK" {
			return err
		}
		content := ""
		if e.Type().IsRegular() {
			p, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			content = fmt.Sprintf("%d %x", len(p), crc32.ChecksumIEEE(p))
		}
		found[path] = e.Type().String() + content
		return nil
	}), "walk %s", dir)
	return found
}

// serveRefused wants `varve serve` to end with this status and these words, and to leave the directory as it is.
func serveRefused(t *testing.T, status int, words, data string, flags ...string) {
	t.Helper()
	before := tree(t, data)
	o := execute("", program, append([]string{"serve", "--quiet", "--data", data}, flags...)...)
	wantRefusal(t, o, status, words)
	if after := tree(t, data); !maps.Equal(before, after) {
		t.Fatalf("what could not be served was changed: %v, then %v", before, after)
	}
}

func TestDataDirectoryIsServedOnce(t *testing.T) {
	t.Parallel()
	dir := scratch(t)
	d := serve(t, filepath.Join(dir, "d"))
	d.varve("volume", "create", "web", "--size", "1M")
	serveRefused(t, 4, fmt.Sprintf("process %d", d.cmd.Process.Pid), d.data)
	o := execute("", program, "pool", "check", "--offline", "--data", d.data)
	wantRefusal(t, o, 4, fmt.Sprintf("process %d", d.cmd.Process.Pid))
	d.varve("volume", "show", "web")
	run(t, "qemu-io", "-f", "raw", "-c", "write -P 1 0 64k", d.uri("web"))
}

func TestSocketIsServedOnce(t *testing.T) {
	t.Parallel()
	dir := scratch(t)
	socket := filepath.Join(dir, "nbd")
	d := serve(t, filepath.Join(dir, "d"), "--nbd", socket)
	d.varve("volume", "create", "web", "--size", "1M")
	o := execute("", program, "serve", "--quiet", "--data", filepath.Join(dir, "e"), "--nbd", socket)
	wantRefusal(t, o, 4, "already served")
	run(t, "nbdinfo", "nbd+unix:///web?socket="+socket)

	// A killed daemon leaves its sockets, and they are no obstacle.
	d.kill()
	if _, err := os.Lstat(socket); err != nil {
		t.Fatalf("a killed daemon leaves its socket: %v", err)
	}
	serve(t, filepath.Join(dir, "e"), "--nbd", socket)
}

func TestReadOnlyDataDirectory(t *testing.T) {
	needDevices(t)
	t.Parallel()
	dir := scratch(t)
	data, view := filepath.Join(dir, "d"), filepath.Join(dir, "view")
	serve(t, data).stop()
	must(t, os.Mkdir(view, 0o700), "make a mount point")
	t.Cleanup(func() { must(t, unmount(view, unix.MNT_DETACH), "unmount") })
	run(t, "mount", "--bind", data, view)
	run(t, "mount", "-o", "remount,bind,ro", view)
	serveRefused(t, 1, "read-only file system", view)
	o := execute("", program, "serve", "--quiet", "--data", filepath.Join(view, "new"))
	wantRefusal(t, o, 1, "read-only file system")
}

func TestDirectoriesThatAreNoPools(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		spoil  func(t *testing.T, data string)
		status int
		words  string
	}{
		"without its superblock": {func(t *testing.T, data string) {
			must(t, os.Remove(filepath.Join(data, "pool", "superblock")), "remove the superblock")
		}, 5, "the superblock is missing"},
		"something else": {func(t *testing.T, data string) {
			must(t, os.RemoveAll(filepath.Join(data, "pool")), "remove the pool")
			must(t, os.Mkdir(filepath.Join(data, "pool"), 0o700), "make a directory")
			must(t, os.WriteFile(filepath.Join(data, "pool", "letter"), []byte("dear"), 0o600), "write a file")
		}, 1, "not a pool"},
		"somebody else's": {func(t *testing.T, data string) {
			must(t, os.Rename(filepath.Join(data, "pool"), filepath.Join(data, "swimming")), "rename the pool")
		}, 4, "not a data directory"},
		"from the future": {func(t *testing.T, data string) { patchSuperblock(t, data, 2) }, 1, "newer version"},
		"damaged": {func(t *testing.T, data string) {
			must(t, os.WriteFile(filepath.Join(data, "pool", "superblock"), make([]byte, 8192), 0o600), "overwrite the superblock")
		}, 5, "superblock"},
	} {
		t.Run(name, func(t *testing.T) {
			data := filepath.Join(scratch(t), "d")
			d := serve(t, data)
			d.varve("volume", "create", "web", "--size", "1M")
			d.stop()
			c.spoil(t, data)
			serveRefused(t, c.status, c.words, data)
		})
	}
}

// The first daemon was killed while it made the pool; the next one makes the rest.
func TestHalfCreatedPool(t *testing.T) {
	t.Parallel()
	data := filepath.Join(scratch(t), "d")
	must(t, os.MkdirAll(filepath.Join(data, "pool", "log"), 0o700), "make directories")
	must(t, os.WriteFile(filepath.Join(data, "pool", "LOCK"), nil, 0o600), "make the lock")
	must(t, os.WriteFile(filepath.Join(data, "pool", "superblock.new"), []byte("VARVE"), 0o600), "make half a superblock")
	wantRefusal(t, execute("", program, "pool", "check", "--offline", "--data", data), 1, "not a pool")
	d := serve(t, data)
	d.varve("volume", "create", "web", "--size", "1M")
	d.stop()
	d = serve(t, data)
	d.varve("volume", "show", "web")
}

// patchSuperblock makes both slots claim a format version, with a checksum that is
// right. Offsets and checksum as in docs/format.md: magic, version at 8, CRC32C at 12 over the slot with zero in its place.
func patchSuperblock(t *testing.T, data string, version uint32) {
	t.Helper()
	name := filepath.Join(data, "pool", "superblock")
	p, err := os.ReadFile(name)
	must(t, err, "read the superblock")
	for slot := range slices.Chunk(p, 4096) {
		binary.LittleEndian.PutUint32(slot[8:], version)
		binary.LittleEndian.PutUint32(slot[12:], 0)
		binary.LittleEndian.PutUint32(slot[12:], crc32.Checksum(slot, crc32.MakeTable(crc32.Castagnoli)))
	}
	must(t, os.WriteFile(name, p, 0o600), "write the superblock")
}
