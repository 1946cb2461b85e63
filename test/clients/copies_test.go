package clients

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"varve/internal/contract"
)

// copying is what a snapshot says of its copying; nil when it is over.
func (d *daemon) copying(snapshot string) *float64 {
	d.t.Helper()
	return ask[contract.Snapshot](d, "snapshot", "show", snapshot).Copied
}

// copyJob is the id of the job that makes copies, of which there is one.
func (d *daemon) copyJob() (id string) {
	d.t.Helper()
	for _, j := range ask[[]contract.Job](d, "job", "list") {
		if j.Kind == contract.JobCopy {
			id = j.ID
		}
	}
	return id
}

// A cow-copy is paused, written over, and killed again and again in the middle; it goes on where it was, and is in the end what the volume was.
func TestCopySurvivesKills(t *testing.T) {
	for _, to := range []string{"the pool", "a file"} {
		t.Run(to, func(t *testing.T) {
			t.Parallel()
			dir := scratch(t)
			raw := picture(t, dir, 192<<20)
			run(t, "qemu-io", "-f", "raw", "-c", "write -P 3 0 192M", raw)
			original := copied(t, raw)
			data := filepath.Join(dir, "d")
			d := serve(t, data)
			d.varve("volume", "adopt", "web", raw)
			args := []string{"snapshot", "create", "web", "--name", "one", "--technique", "cow-copy"}
			file := filepath.Join(dir, "one.img")
			if to == "a file" {
				args = append(args, "--to", file)
			}
			d.varve(args...)
			paused := d.try("job", "pause", d.copyJob()).status == 0
			run(t, "qemu-io", "-f", "raw", "-c", "write -P 7 0 192M", "-c", "flush", d.uri("web"))
			if at := d.copying("web@one"); paused && at == nil {
				t.Fatal("a paused copy is whole")
			}
			sameDisk(t, original, d.uri("web@one"))
			for range 3 {
				d.kill()
				d = serve(t, data)
				sameDisk(t, original, d.uri("web@one"))
			}
			await(t, "the copy is whole", func() bool { return d.copying("web@one") == nil })
			d.varve("volume", "delete", "web")
			must(t, os.Remove(raw), "remove the volume's file")
			sameDisk(t, original, d.uri("web@one"))
			if to == "a file" {
				sameDisk(t, original, file)
			}
			d.checkPool()
			names, err := os.ReadDir(dir)
			must(t, err, "list")
			for _, n := range names {
				if strings.HasSuffix(n.Name(), "varve-part") {
					t.Errorf("%s is left", n.Name())
				}
			}
			d.stop()
		})
	}
}

// A block device takes a copy, zeros and all, if that is asked for with force.
func TestCopyToABlockDevice(t *testing.T) {
	needDevices(t)
	t.Parallel()
	dir := scratch(t)
	raw := picture(t, dir, 16<<20)
	d := serve(t, filepath.Join(dir, "d"))
	d.varve("volume", "create", "web", "--from", raw)
	image := filepath.Join(dir, "image")
	run(t, "truncate", "-s", "16M", image)
	run(t, "qemu-io", "-f", "raw", "-c", "write -P 9 0 16M", image)
	device, hold := loopDevice(t, image, false)
	defer hold.Close()
	d.refused(4, "exists", "snapshot", "create", "web", "--name", "one", "--technique", "clone", "--to", device)
	d.varve("snapshot", "create", "web", "--name", "one", "--technique", "clone", "--to", device, "--force")
	sameDisk(t, raw, device)
	sameDisk(t, raw, d.uri("web@one"))
	d.refused(4, "web@one", "volume", "adopt", "other", device)

	d.varve("volume", "resize", "web", "32M")
	small := filepath.Join(dir, "small")
	run(t, "truncate", "-s", "16M", small)
	other, held := loopDevice(t, small, false)
	defer held.Close()
	d.refused(2, "bytes", "snapshot", "create", "web", "--name", "two", "--technique", "clone", "--to", other, "--force")
	if n := len(ask[[]contract.Snapshot](d, "snapshot", "list", "web")); n != 1 {
		t.Errorf("%d snapshots", n)
	}
}
