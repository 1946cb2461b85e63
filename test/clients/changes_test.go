package clients

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"varve/internal/block"
	"varve/internal/contract"
	"varve/internal/nbd/client"
)

// changedSince returns what nbdinfo shows of a context as having bit 0 set.
func changedSince(t *testing.T, uri, name string) []contract.Extent {
	t.Helper()
	var found []struct {
		Offset, Length int64
		Type           int
	}
	must(t, json.Unmarshal([]byte(run(t, "nbdinfo", "--map="+name, "--json", uri)), &found), "nbdinfo --map=%s", name)
	list := []contract.Extent{}
	at := int64(0)
	for _, e := range found {
		if e.Offset != at || e.Type > 1 {
			t.Fatalf("nbdinfo --map=%s: %+v after %d", name, e, at)
		}
		if at += e.Length; e.Type == 1 {
			list = append(list, contract.Extent{Offset: e.Offset, Length: e.Length})
		}
	}
	return list
}

// Everybody who asks is told the same, whether the answer has 32 or 64 bits: the command line, nbdinfo and qemu-img;
// of a volume as it is, of a snapshot, and since a snapshot and a bookmark.
func TestChangesOf64TiB(t *testing.T) {
	t.Parallel()
	d := serve(t, filepath.Join(scratch(t), "d"))
	d.varve("volume", "create", "web", "--size", "64T")
	run(t, "qemu-io", "-f", "raw", "-c", "write -q -P 1 0 1M", "-c", "write -q -P 1 40T 64k", d.uri("web"))
	d.varve("snapshot", "create", "web", "--name", "one")
	d.varve("bookmark", "create", "web@one", "mark")
	run(t, "qemu-io", "-f", "raw", "-c", "write -q -P 2 8k 4k", "-c", "write -q -P 2 63T 4k", "-c", "discard 40T 8k", d.uri("web"))
	d.varve("snapshot", "create", "web", "--name", "two")
	d.varve("snapshot", "delete", "web@one")
	want := []contract.Extent{{Offset: 8192, Length: 4096}, {Offset: 40 << 40, Length: 8192}, {Offset: 63 << 40, Length: 4096}}
	told := func(what string, got []contract.Extent) {
		t.Helper()
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	for _, export := range []string{"web@two", "web"} {
		told("varve", ask[[]contract.Extent](d, "snapshot", "diff", "web#mark", export))
		for _, name := range []string{"qemu:dirty-bitmap:mark", "varve:changed:mark"} {
			told(export+" "+name, changedSince(t, d.uri(export), name))
		}
		var found []struct {
			Start, Length int64
			Data          bool
		}
		options := fmt.Sprintf("driver=nbd,export=%s,server.type=unix,server.path=%s,x-dirty-bitmap=qemu:dirty-bitmap:mark", export, d.socket())
		must(t, json.Unmarshal([]byte(run(t, "qemu-img", "map", "--output=json", "--image-opts", options)), &found), "qemu-img map")
		var dirty []contract.Extent
		for _, e := range found {
			if !e.Data { // which is how it shows a dirty bit
				dirty = append(dirty, contract.Extent{Offset: e.Start, Length: e.Length})
			}
		}
		told(export+" to qemu-img", dirty)
	}
	// The present goes on, the snapshot does not.
	run(t, "qemu-io", "-f", "raw", "-c", "write -q -P 3 12k 4k", d.uri("web"))
	told("web@two", changedSince(t, d.uri("web@two"), "qemu:dirty-bitmap:mark"))
	want[0].Length = 8192
	told("web", changedSince(t, d.uri("web"), "qemu:dirty-bitmap:mark"))
	if o := execute("", "nbdinfo", "--map=qemu:dirty-bitmap:two", d.uri("web@two")); o.status == 0 {
		t.Errorf("a snapshot was compared with itself: %s", o.stdout)
	}
}

// With many snapshots a list of exports and of their contexts stays short, and every one can be asked for.
func TestContextsOfManySnapshots(t *testing.T) {
	t.Parallel()
	d := serve(t, filepath.Join(scratch(t), "d"))
	d.varve("volume", "create", "web", "--size", "1M")
	const snapshots = 70
	for n := range snapshots {
		d.varve("snapshot", "create", "web", "--name", fmt.Sprintf("s%d", n))
	}
	var described struct {
		Exports []struct {
			Contexts []string `json:"contexts"`
		}
	}
	must(t, json.Unmarshal([]byte(run(t, "nbdinfo", "--json", d.uri("web"))), &described), "nbdinfo")
	listed := described.Exports[0].Contexts
	if len(listed) != 1+2*64 || listed[0] != "base:allocation" || listed[1] != "varve:changed:s69" || listed[128] != "qemu:dirty-bitmap:s6" {
		t.Errorf("%d contexts: %v", len(listed), listed)
	}
	if got := changedSince(t, d.uri("web"), "qemu:dirty-bitmap:s0"); len(got) > 0 {
		t.Errorf("changed since the oldest: %v", got)
	}
	all := run(t, "nbdinfo", "--list", d.uri(""))
	if strings.Count(all, "export=") != snapshots+1 {
		t.Error("not all exports are listed")
	}
}

// A bookmark or snapshot that a client compares with is not deleted under it.
func TestWhatIsComparedWithStays(t *testing.T) {
	t.Parallel()
	d := serve(t, filepath.Join(scratch(t), "d"))
	d.varve("volume", "create", "web", "--size", "1M")
	d.varve("snapshot", "create", "web", "--name", "one")
	d.varve("bookmark", "create", "web@one", "mark")
	compare := func(export, name string) *client.Client {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		c, err := client.Dial(ctx, d.uri(export), client.Options{Contexts: []string{"varve:changed:" + name}})
		must(t, err, "connect to %s", export)
		t.Cleanup(func() { c.Close() })
		return c
	}
	first, second := compare("web", "mark"), compare("web", "one")
	d.refused(4, "in use", "bookmark", "delete", "web#mark")
	d.refused(4, "in use", "snapshot", "delete", "web@one")
	must(t, write(first, make([]byte, 4096), 8192), "write")
	runs, err := second.BlockStatus(context.Background(), "varve:changed:one", 0, 1<<20, 10)
	if err != nil || len(runs) != 3 || runs[1] != (client.Status{Length: 4096, Flags: 1}) {
		t.Errorf("changed: %v, %v", runs, err)
	}
	must(t, first.Close(), "close")
	must(t, second.Close(), "close")
	d.varve("bookmark", "delete", "web#mark")
	d.varve("snapshot", "delete", "web@one")
}

// The way in which QEMU's tools take incremental backups: a qcow2 file over the last one, into which the changed extents
// are read, and nothing else is.
func TestQEMUTakesIncrementalBackups(t *testing.T) {
	t.Parallel()
	dir := scratch(t)
	d := serve(t, filepath.Join(dir, "d"))
	d.varve("volume", "create", "web", "--size", "64M")
	base := filepath.Join(dir, "0.qcow2")
	run(t, "qemu-io", "-f", "raw", "-c", "write -q -P 1 0 8M", "-c", "write -q -P 2 40M 1M", d.uri("web"))
	d.varve("snapshot", "create", "web", "--name", "s0")
	run(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", d.uri("web@s0"), base)
	for n := 1; n <= 3; n++ {
		before, now := fmt.Sprintf("s%d", n-1), fmt.Sprintf("s%d", n)
		d.varve("bookmark", "create", "web@"+before, "k")
		d.varve("snapshot", "delete", "web@"+before)
		run(t, "qemu-io", "-f", "raw", "-c", fmt.Sprintf("write -q -P %d %dM 100k", n+10, n), "-c", fmt.Sprintf("write -q -P %d %dM 64k", n+20, 20*n),
			"-c", fmt.Sprintf("write -q -z -u %dM 128k", 4+n), d.uri("web"))
		d.varve("snapshot", "create", "web", "--name", now)
		backup := filepath.Join(dir, fmt.Sprintf("%d.qcow2", n))
		run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", d.uri("web@"+now), backup)
		changed := changedSince(t, d.uri("web@"+now), "qemu:dirty-bitmap:k")
		reads := []string{"-C", "-f", "qcow2"} // what is read through it is copied into it
		sum := int64(0)
		for _, e := range changed {
			reads = append(reads, "-c", fmt.Sprintf("read -q %d %d", e.Offset, e.Length))
			sum += e.Length
		}
		if want := int64(100<<10 + 64<<10 + 128<<10); sum != want {
			t.Errorf("backup %d: %d bytes changed, want %d: %v", n, sum, want, changed)
		}
		run(t, "qemu-io", append(reads, backup)...)
		run(t, "qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", base, backup)
		run(t, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", backup, d.uri("web@"+now))
		d.varve("bookmark", "delete", "web#k")
		base = backup
	}
	d.checkPool()
}

// A copy to which the changed extents of each snapshot are written equals it, while clients write and discard.
func TestChangesAddUpWhileClientsWrite(t *testing.T) {
	t.Parallel()
	const size = 64 << 20
	dir := scratch(t)
	d := serve(t, filepath.Join(dir, "d"))
	d.varve("volume", "create", "web", "--size", "64M")
	d.varve("volume", "create", "copy", "--size", "64M")
	running, stop := context.WithCancel(context.Background())
	var load sync.WaitGroup
	defer func() { stop(); load.Wait() }()
	for job := range 2 {
		load.Go(func() {
			for n := 0; running.Err() == nil; n++ {
				o := execute(dir, "fio", "--name=load", "--ioengine=nbd", "--uri="+d.uri("web"), "--rw=randtrimwrite", "--bsrange=4k-64k", "--iodepth=8",
					"--size=64M", "--io_size=4M", fmt.Sprintf("--randseed=%d", 100*n+job))
				if o.status != 0 && running.Err() == nil {
					t.Errorf("fio: status %d %v\n%s%s", o.status, o.err, o.stdout, o.stderr)
					return
				}
			}
		})
	}
	copied := d.connect("copy")
	d.varve("snapshot", "create", "web", "--name", "s0")
	apply := func(export string, extents []contract.Extent) {
		t.Helper()
		from := d.connect(export)
		defer from.Close()
		for _, e := range extents {
			p, err := read(from, e.Offset, e.Length)
			must(t, err, "read %s", export)
			must(t, write(copied, p, e.Offset), "write the copy")
		}
	}
	var whole []contract.Extent
	for off := int64(0); off < size; off += 8 << 20 {
		whole = append(whole, contract.Extent{Offset: off, Length: 8 << 20})
	}
	apply("web@s0", whole)
	changed := int64(0)
	for n := range 6 {
		before, now := fmt.Sprintf("web@s%d", n), fmt.Sprintf("web@s%d", n+1)
		d.varve("snapshot", "create", "web", "--name", strings.TrimPrefix(now, "web@"))
		extents := ask[[]contract.Extent](d, "snapshot", "diff", before, now)
		if shown := changedSince(t, d.uri(now), fmt.Sprintf("varve:changed:s%d", n)); !slices.Equal(shown, extents) {
			t.Errorf("%s: the command line tells %d extents, NBD %d", now, len(extents), len(shown))
		}
		apply(now, extents)
		for _, e := range extents {
			changed += e.Length
		}
		run(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", d.uri(now), d.uri("copy"))
		d.varve("snapshot", "delete", before)
	}
	if changed < 6*block.Size {
		t.Errorf("only %d bytes changed", changed)
	}
	stop()
	load.Wait()
	d.checkPool()
}
