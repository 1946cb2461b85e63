package clients

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"varve/internal/block"
	"varve/internal/contract"
	"varve/internal/nbd/client"
)

// fillUp writes stamps to a volume from its beginning until there is no space left,
// and returns what it holds.
func fillUp(t *testing.T, c *client.Client, s stamp) image {
	t.Helper()
	got, err := readImage(c)
	must(t, err, "read the volume")
	const run = 64
	p := make([]byte, run*block.Size)
	for lba := 0; lba < len(got); lba += run {
		fill(p, int64(lba), s)
		err := write(c, p, int64(lba)*block.Size)
		if errors.Is(err, block.ErrNoSpace) {
			return got
		}
		must(t, err, "write to a disk that fills up")
		for i := range run {
			got[lba+i] = s
		}
	}
	t.Fatal("the disk does not fill up")
	return nil
}

// The data directory is on a file system of 48 MiB.
func TestFullDisk(t *testing.T) {
	needDevices(t)
	t.Parallel()
	dir := scratch(t)
	small := filepath.Join(dir, "small")
	must(t, os.WriteFile(small, nil, 0o600), "make a small disk")
	must(t, os.Truncate(small, 48<<20), "make a small disk")
	device, hold := loopDevice(t, small, false)
	t.Cleanup(func() { hold.Close() })
	run(t, "mkfs.ext4", "-q", "-m", "0", device)
	m := mount(t, device, "ext4", "")
	ballast := filepath.Join(m.dir, "lost+found", "ballast")
	run(t, "fallocate", "--length", "8M", ballast)

	d := serve(t, m.dir)
	d.varve("volume", "create", "web", "--size", "48M")
	d.varve("volume", "create", "other", "--size", "1M")
	d.varve("volume", "create", "third", "--size", "1M")
	c := d.connect("web")
	p := make([]byte, 1<<20)
	fill(p, 0, 1)
	must(t, write(c, p, 0), "write")
	must(t, flush(c), "flush")
	d.varve("snapshot", "create", "web", "--name", "early")
	d.varve("snapshot", "create", "web", "--name", "second")
	frozen, err := readImage(c)
	must(t, err, "read the volume")
	holds := func(export string, want image) {
		t.Helper()
		c := d.connect(export)
		defer c.Close()
		got, err := readImage(c)
		must(t, err, "read %s", export)
		if !slices.Equal(got, want) {
			t.Fatalf("%s does not hold what was acknowledged", export)
		}
	}

	head := fillUp(t, c, 2)
	if err := write(d.connect("other"), p[:block.Size], 0); err != nil && !errors.Is(err, block.ErrNoSpace) {
		t.Fatalf("write to the other volume: %v", err)
	}
	holds("web", head)
	holds("web@early", frozen)

	// What cannot be recorded is not done; what frees space can be.
	o := d.try("snapshot", "create", "web", "--name", "late")
	if o.status != 0 {
		wantRefusal(t, o, 1, "no space left")
	}
	late := false
	for _, s := range ask[[]contract.Snapshot](d, "snapshot", "list", "web") {
		late = late || s.Name == "late"
	}
	if late != (o.status == 0) {
		t.Fatalf("the command ended with status %d, and the snapshot is there: %v", o.status, late)
	}
	d.varve("snapshot", "delete", "web@second")
	d.varve("volume", "delete", "third")
	c.Close()

	for _, end := range []func(){d.stop, func() { d.kill() }} {
		end()
		d = serve(t, m.dir)
		holds("web", head)
		holds("web@early", frozen)
		d.refused(3, "not found", "snapshot", "show", "web@second")
		d.refused(3, "not found", "volume", "show", "third")
		c = d.connect("web")
		head = fillUp(t, c, 3)
		holds("web", head)
		c.Close()
	}

	// There is room again: nothing has to be restarted.
	must(t, os.Remove(ballast), "remove the ballast")
	c = d.connect("web")
	fill(p, 0, 9)
	must(t, write(c, p, 0), "write where there is room again")
	must(t, flush(c), "flush")
	copy(head, slices.Repeat(image{9}, len(p)/block.Size))
	d.varve("snapshot", "create", "web", "--name", "after")
	holds("web@after", head)
	holds("web@early", frozen)
	d.checkPool()
	d.stop()
	m.umount()
}
