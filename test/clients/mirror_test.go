package clients

import (
	"os"
	"path/filepath"
	"testing"

	"varve/internal/contract"
)

// inSync waits until a volume's mirror is.
func (d *daemon) inSync(volume string) {
	d.t.Helper()
	await(d.t, "the mirror of "+volume+" is in sync", func() bool {
		return ask[contract.Mirror](d, "mirror", "status", volume).State == contract.MirrorInSync
	})
}

// TestMirrorUnderClients: fio and qemu-io write while a leg is attached, copied to and split off. What is split off when they have stopped is what a
// snapshot of the pool is; and so is what is split off after a kill, a restart and a resync.
func TestMirrorUnderClients(t *testing.T) {
	for _, layout := range []string{contract.LayoutRedirect, contract.LayoutInplace} {
		t.Run(layout, func(t *testing.T) {
			t.Parallel()
			dir := scratch(t)
			d := serve(t, filepath.Join(dir, "d"))
			create := []string{"volume", "create", "web", "--size", "64M"}
			if layout == contract.LayoutInplace {
				create = append(create, "--inplace", filepath.Join(dir, "disk.img"))
			}
			d.varve(create...)
			run(t, "qemu-io", "-f", "raw", "-c", "write -P 7 0 16M", "-c", "flush", d.uri("web"))
			fio := func(seed string) chan outcome {
				ended := make(chan outcome, 1)
				go func() {
					ended <- execute(dir, "fio", "--name=load", "--ioengine=nbd", "--uri="+d.uri("web"), "--rw=randwrite", "--bsrange=512-64k", "--bs_unaligned",
						"--numjobs=3", "--size=16M", "--offset_increment=20M", "--iodepth=16", "--fsync=64", "--randseed="+seed)
				}()
				return ended
			}
			finish := func(ended chan outcome) {
				t.Helper()
				if o := <-ended; o.status != 0 {
					t.Fatalf("fio: status %d %v\n%s%s", o.status, o.err, o.stdout, o.stderr)
				}
			}
			leg := filepath.Join(dir, "leg.img")
			load := fio("1")
			d.varve("mirror", "attach", "web", "--to", leg)
			finish(load)
			run(t, "qemu-io", "-f", "raw", "-d", "unmap", "-c", "write -z 1M 128k", "-c", "discard 3M 512k", "-c", "write -P 9 40M 1M", "-c", "flush", d.uri("web"))
			d.inSync("web")
			d.varve("snapshot", "create", "web", "--name", "pool")
			d.varve("mirror", "split", "web", "--name", "one")
			sameDisk(t, d.uri("web@pool"), d.uri("web@one"))
			sameDisk(t, d.uri("web@pool"), leg)

			// Under load: whatever instant it is, it stays that, and the diff from it to the present has all that changed since.
			d.varve("mirror", "resync", "web@one")
			load = fio("2")
			d.inSync("web")
			split := ask[contract.Snapshot](d, "mirror", "split", "web", "--name", "two")
			t.Logf("writers waited %.2f ms for the split", *split.PauseMS)
			was := copied(t, leg)
			finish(load)
			sameDisk(t, was, d.uri("web@two"))
			now := filepath.Join(dir, "now.img")
			d.varve("volume", "export", "web", now)
			d.patch(was, now, "web@two")
			sameDisk(t, was, now)

			// Killed while it is mirrored.
			d.varve("mirror", "resync", "web@two")
			load = fio("3")
			d.inSync("web")
			d.kill()
			<-load
			d = serve(t, d.data)
			d.inSync("web")
			d.varve("snapshot", "create", "web", "--name", "after")
			d.varve("mirror", "split", "web", "--name", "three")
			sameDisk(t, d.uri("web@after"), d.uri("web@three"))
			sameDisk(t, d.uri("web@after"), leg)
			d.checkPool()
			d.stop()
		})
	}
}

// patch writes to a file what has changed of a volume since a snapshot, as another file has it.
func (d *daemon) patch(file, from, since string) {
	d.t.Helper()
	to, err := os.OpenFile(file, os.O_RDWR, 0)
	must(d.t, err, "open")
	defer to.Close()
	content, err := os.ReadFile(from)
	must(d.t, err, "read")
	for _, e := range ask[[]contract.Extent](d, "snapshot", "diff", since) {
		_, err := to.WriteAt(content[e.Offset:e.Offset+e.Length], e.Offset)
		must(d.t, err, "write")
	}
}
