package clients

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"varve/internal/contract"
)

// copied is a copy of a file, holes and all.
func copied(t *testing.T, file string) string {
	t.Helper()
	to := file + ".copy"
	run(t, "cp", "--sparse=always", file, to)
	return to
}

func sameDisk(t *testing.T, a, b string) {
	t.Helper()
	run(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", a, b)
}

// deleteSnapshots deletes all snapshots of a volume.
func (d *daemon) deleteSnapshots(volume string) {
	d.t.Helper()
	for _, s := range ask[[]contract.Snapshot](d, "snapshot", "list", volume) {
		d.varve("snapshot", "delete", s.Ref())
	}
}

// awaitCopyBack waits until a rollback is wholly in the file.
func (d *daemon) awaitCopyBack(volume string) {
	d.t.Helper()
	await(d.t, "the rollback is copied back into "+volume, func() bool {
		return !ask[contract.Volume](d, "volume", "show", volume).CopyingBack
	})
}

func TestAdoptedImageStaysARawImage(t *testing.T) {
	t.Parallel()
	dir := scratch(t)
	raw := picture(t, dir, 16<<20+512)
	original := copied(t, raw)
	d := serve(t, filepath.Join(dir, "d"))
	v := ask[contract.Volume](d, "volume", "adopt", "web", raw)
	if v.Layout != contract.LayoutInplace || v.Path != raw || v.Size != 16<<20+512 || v.ReadOnly {
		t.Fatalf("adopted: %+v", v)
	}
	sameDisk(t, original, d.uri("web"))
	d.varve("snapshot", "create", "web", "--name", "one")
	for _, c := range []string{"write -P 7 1M 64k", "write -P 8 100 513", "write -z 2M 128k", "discard 3M 512k", "write -P 9 16777216 512", "write -P 10 8M 1M"} {
		run(t, "qemu-io", "-f", "raw", "-d", "unmap", "-c", c, "-c", "flush", d.uri("web"))
	}
	run(t, "qemu-io", "-f", "raw", "-c", "read -P 7 1M 64k", "-c", "read -P 0 2M 128k", "-c", "read -P 9 16777216 512", d.uri("web"))

	sameDisk(t, original, d.uri("web@one"))
	for _, format := range []string{"raw", "qcow2"} {
		out := filepath.Join(dir, "out."+format)
		d.varve("volume", "export", "web@one", out, "--format", format)
		run(t, "qemu-img", "compare", "-f", "raw", "-F", format, original, out)
	}
	now := filepath.Join(dir, "now.raw")
	d.varve("volume", "export", "web", now)
	d.varve("volume", "create", "copy", "--from", "web@one")
	run(t, "qemu-io", "-f", "raw", "-c", "write -P 11 4M 64k", d.uri("copy"))
	sameDisk(t, now, d.uri("web"))

	// There and back again.
	d.varve("snapshot", "rollback", "web@one")
	sameDisk(t, original, d.uri("web"))
	d.awaitCopyBack("web")
	sameDisk(t, original, raw)
	for _, s := range ask[[]contract.Snapshot](d, "snapshot", "list", "web") {
		if s.Automatic {
			d.varve("snapshot", "rollback", s.Ref())
		}
	}
	d.awaitCopyBack("web")
	d.checkPool()

	d.deleteSnapshots("web")
	d.varve("volume", "delete", "copy")
	d.varve("volume", "delete", "web")
	sameDisk(t, now, raw)
	if info, err := os.Stat(raw); err != nil || info.Size() != 16<<20+512 {
		t.Fatalf("the file: %v, %v", info, err)
	}
	run(t, "qemu-io", "-f", "raw", "-c", "read -P 7 1M 64k", "-c", "write -P 12 0 64k", raw)
	d.stop()
}

// A daemon that is killed while a rollback is copied back goes on with it.
func TestCopyBackSurvivesAKill(t *testing.T) {
	t.Parallel()
	dir := scratch(t)
	raw := picture(t, dir, 64<<20)
	original := copied(t, raw)
	data := filepath.Join(dir, "d")
	d := serve(t, data)
	d.varve("volume", "adopt", "web", raw)
	d.varve("snapshot", "create", "web", "--name", "one")
	run(t, "qemu-io", "-f", "raw", "-c", "write -P 7 0 64M", "-c", "flush", d.uri("web"))
	d.varve("snapshot", "rollback", "web@one")
	for range 3 {
		d.kill()
		d = serve(t, data)
		sameDisk(t, original, d.uri("web"))
	}
	d.awaitCopyBack("web")
	sameDisk(t, original, raw)
	for _, s := range ask[[]contract.Snapshot](d, "snapshot", "list", "web") {
		if s.Automatic {
			run(t, "qemu-io", "-r", "-f", "raw", "-c", "read -P 7 0 64M", d.uri(s.Ref()))
		}
	}
	d.checkPool()
}

func TestAdoptedBlockDevice(t *testing.T) {
	needDevices(t)
	t.Parallel()
	dir := scratch(t)
	image := filepath.Join(dir, "image")
	run(t, "truncate", "-s", "64M", image)
	device, hold := loopDevice(t, image, false)
	defer hold.Close()
	run(t, "mkfs.ext4", "-q", "-F", device)
	m := mount(t, device, "ext4", "")
	must(t, os.WriteFile(filepath.Join(m.dir, "before"), []byte("before"), 0o600), "write a file")
	d := serve(t, filepath.Join(dir, "d"))
	d.refused(4, "busy", "volume", "adopt", "web", device)
	m.umount()

	v := ask[contract.Volume](d, "volume", "adopt", "web", device)
	if v.Size != 64<<20 || v.Path != device || v.ReadOnly {
		t.Fatalf("adopted: %+v", v)
	}
	d.refused(4, `volume "web" has it`, "volume", "adopt", "other", device)
	if o := execute("", "mount", "-t", "ext4", device, m.dir); o.status == 0 {
		t.Fatal("the device can be mounted while it is adopted")
	}
	d.varve("snapshot", "create", "web", "--name", "one")
	run(t, "qemu-io", "-f", "raw", "-c", "write -P 7 0 4M", "-c", "flush", d.uri("web"))
	d.varve("snapshot", "rollback", "web@one")
	d.awaitCopyBack("web")
	d.checkPool()
	d.deleteSnapshots("web")
	d.varve("volume", "delete", "web")

	m = mount(t, device, "ext4", "")
	content, err := os.ReadFile(filepath.Join(m.dir, "before"))
	if err != nil || string(content) != "before" {
		t.Fatalf("read %q, %v", content, err)
	}
	m.umount()
	run(t, "e2fsck", "-f", "-n", device)
	d.stop()
}

func TestReadOnlyFileIsAdoptedReadOnly(t *testing.T) {
	needDevices(t)
	t.Parallel()
	dir := scratch(t)
	images, view := filepath.Join(dir, "images"), filepath.Join(dir, "view")
	for _, name := range []string{images, view} {
		must(t, os.Mkdir(name, 0o700), "make a directory")
	}
	original := picture(t, images, 8<<20)
	t.Cleanup(func() { must(t, unmount(view, unix.MNT_DETACH), "unmount") })
	run(t, "mount", "--bind", images, view)
	run(t, "mount", "-o", "remount,bind,ro", view)
	raw := filepath.Join(view, filepath.Base(original))

	d := serve(t, filepath.Join(dir, "d"))
	o := d.try("volume", "adopt", "web", raw)
	if o.status != 0 || !strings.Contains(o.stderr, "volume web is read-only") {
		t.Fatalf("status %d, %s", o.status, o.stderr)
	}
	if v := ask[contract.Volume](d, "volume", "show", "web"); !v.ReadOnly {
		t.Fatalf("%+v", v)
	}
	sameDisk(t, original, d.uri("web"))
	if o := execute("", "nbdinfo", "--can", "write", d.uri("web")); o.status == 0 {
		t.Fatal("clients are told that they can write")
	}
	d.varve("snapshot", "create", "web", "--name", "one")
	sameDisk(t, original, d.uri("web@one"))
	d.refused(4, "read-only", "snapshot", "rollback", "web@one")
	d.varve("volume", "create", "copy", "--from", "web@one")
	run(t, "qemu-io", "-f", "raw", "-c", "write -P 7 0 64k", "-c", "read -P 7 0 64k", d.uri("copy"))
	d.checkPool()
	d.stop()
}

// Where the pool is full, a snapshot that was made for that goes, and its volume goes on; one that was not stays whole, and writes fail.
func TestFullPoolDropsOrFails(t *testing.T) {
	t.Parallel()
	dir := scratch(t)
	raw := filepath.Join(dir, "disk.raw")
	run(t, "truncate", "-s", "256M", raw)
	d := serve(t, filepath.Join(dir, "d"))
	d.varve("pool", "set", "--quota", "256M")
	d.varve("volume", "adopt", "web", raw)
	run(t, "qemu-io", "-f", "raw", "-c", "write -P 1 0 256M", "-c", "flush", d.uri("web"))

	d.varve("snapshot", "create", "web", "--name", "drop", "--on-full", "drop-snapshot")
	run(t, "qemu-io", "-f", "raw", "-c", "write -P 2 0 256M", "-c", "flush", d.uri("web"))
	if left := ask[[]contract.Snapshot](d, "snapshot", "list"); len(left) != 0 {
		t.Fatalf("left: %+v", left)
	}
	dropped := func(e contract.Event) bool { return e.Kind == "snapshot-dropped" && e.Object == "web@drop" }
	if events := ask[[]contract.Event](d, "event", "list"); !slices.ContainsFunc(events, dropped) {
		t.Fatalf("nobody is told: %+v", events)
	}
	run(t, "qemu-io", "-r", "-f", "raw", "-c", "read -P 2 0 256M", raw)
	d.varve("pool", "reclaim")

	d.varve("snapshot", "create", "web", "--name", "keep")
	if o := execute("", "qemu-io", "-f", "raw", "-c", "write -P 3 0 256M", d.uri("web")); o.status == 0 || !strings.Contains(o.stdout+o.stderr, "No space left") {
		t.Fatalf("status %d, %s%s", o.status, o.stdout, o.stderr)
	}
	run(t, "qemu-io", "-r", "-f", "raw", "-c", "read -P 2 0 256M", d.uri("web@keep"))
	d.varve("snapshot", "delete", "web@keep")
	d.varve("pool", "reclaim")
	run(t, "qemu-io", "-f", "raw", "-c", "write -P 3 0 256M", "-c", "flush", d.uri("web"))
	d.varve("status", "--check")
	d.checkPool()
	d.stop()
}
