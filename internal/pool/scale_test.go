package pool_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/vfs"
)

var scaleFull = flag.Bool("scale.full", false, "10,000 snapshots, 1,000 volumes, 64 TiB with much in them; -v shows the figures")

// big is a pool on the real file system, and a stop-watch.
type big struct {
	t *testing.T
	p *pool.Pool
	o pool.Options
}

func newBig(t *testing.T) *big {
	t.Helper()
	b := &big{t: t, o: pool.Options{FS: vfs.OS(), Dir: filepath.Join(t.TempDir(), "pool"), OnEvent: func(e pool.Event) { t.Error(e) }}}
	if err := pool.Create(ctx, b.o); err != nil {
		t.Fatal(err)
	}
	b.open()
	t.Cleanup(func() { _ = b.p.Close(ctx) })
	return b
}

func (b *big) open() {
	b.t.Helper()
	p, err := pool.Open(ctx, b.o)
	if err != nil {
		b.t.Fatal(err)
	}
	b.p = p
}

func (b *big) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
}

// took does f and logs how long that took, in all and for each of n.
func (b *big) took(what string, n int, f func()) {
	b.t.Helper()
	start := time.Now()
	f()
	d := time.Since(start)
	b.t.Logf("%-44s %9.1f ms  %8.3f ms each", what, ms(d), ms(d)/float64(n))
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// spread logs the distribution of durations.
func (b *big) spread(what string, ds []time.Duration) {
	b.t.Helper()
	slices.Sort(ds)
	at := func(q float64) float64 { return ms(ds[min(int(q*float64(len(ds))), len(ds)-1)]) }
	b.t.Logf("%-44s p50 %.3f  p99 %.3f  p99.9 %.3f  max %.3f ms", what, at(0.5), at(0.99), at(0.999), at(1))
}

// memory logs the memory that the process has, without what the collector would free.
func (b *big) memory(what string) {
	b.t.Helper()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	b.t.Logf("%-44s heap %d MiB, RSS %d MiB, map cache %d MiB", what, m.HeapAlloc>>20, rss(b.t)>>20, b.p.Info().MapCacheBytes>>20)
}

func rss(t *testing.T) int64 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if kib, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, err := strconv.ParseInt(strings.Fields(kib)[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n << 10
		}
	}
	t.Fatal("no VmRSS")
	return 0
}

func (b *big) reopen() {
	b.t.Helper()
	b.took("close", 1, func() { b.must(b.p.Close(ctx)) })
	b.took("open", 1, b.open)
}

// scatter writes blocks at random places of a volume.
func (b *big) scatter(d block.Device, blocks int, buf []byte) {
	b.t.Helper()
	for blocks > 0 {
		ops := make([]*block.Op, min(blocks, 32))
		for i := range ops {
			ops[i] = &block.Op{Offset: rand.Int64N(d.SizeBytes()/block.Size) * block.Size, Length: block.Size, Data: buf}
		}
		d.Submit(ctx, ops)
		for _, op := range ops {
			b.must(op.Err)
		}
		blocks -= len(ops)
	}
}

// list lists all snapshots and what each holds.
func (b *big) list() (snapshots int, exclusive int64) {
	b.t.Helper()
	infos, err := b.p.Snapshots("")
	b.must(err)
	for _, s := range infos {
		u, err := b.p.SnapshotUsage(ctx, pool.SnapshotRef{Volume: s.Volume, Name: s.Name})
		b.must(err)
		exclusive += u.Exclusive
	}
	return len(infos), exclusive
}

// Many snapshots of a volume, each with changes scattered over it: all are there, each holds what it must, any can
// be deleted, and a pool that was opened again lists the same.
func TestManySnapshots(t *testing.T) {
	count, changes, size := 1000, 8, int64(16<<30)
	if *scaleFull {
		count, changes, size = 10_000, 16, 64<<40
	}
	b := newBig(t)
	_, err := b.p.CreateVolume(ctx, pool.VolumeSpec{Name: "v", SizeBytes: size})
	b.must(err)
	d, err := b.p.OpenVolume("v")
	b.must(err)
	buf := stamp(block.Size)
	var pauses, durables []time.Duration
	b.took("write and create snapshots", count, func() {
		for i := range count {
			b.scatter(d, changes, buf)
			_, took, err := b.p.CreateSnapshot(ctx, []string{"v"}, pool.SnapshotSpec{Name: fmt.Sprintf("s%05d", i)})
			b.must(err)
			pauses, durables = append(pauses, took.Pause), append(durables, took.Durable)
		}
	})
	b.spread("pause of writers at a snapshot", pauses)
	b.spread("until a snapshot is durable", durables)
	b.memory("with all snapshots")
	want := func(snapshots int) (exclusive int64) {
		t.Helper()
		n := 0
		b.took("list", snapshots, func() { n, exclusive = b.list() })
		if n != snapshots {
			t.Fatalf("%d snapshots are listed, not %d", n, snapshots)
		}
		return exclusive
	}
	first := want(count)
	if again := want(count); again != first {
		t.Errorf("they hold %d and then %d bytes", first, again)
	}
	b.scatter(d, changes, buf)
	b.took("list after some writes", count, func() { b.list() })
	b.took("checkpoint", 1, func() { b.must(b.p.Checkpoint(ctx)) })
	b.must(d.Close())
	_, first = b.list()
	b.reopen()
	b.memory("opened again")
	t.Logf("the catalogue's image takes %d bytes", b.p.CatalogueBytes())
	if again := want(count); again != first {
		t.Errorf("they hold %d bytes, and %d after opening", first, again)
	}
	want(count)
	ref := func(i int) pool.SnapshotRef { return pool.SnapshotRef{Volume: "v", Name: fmt.Sprintf("s%05d", i)} }
	b.took("delete one in the middle", 1, func() { b.must(b.p.DeleteSnapshots(ctx, []pool.SnapshotRef{ref(count / 2)})) })
	want(count - 1)
	b.took("delete every second, one by one", count/2-1, func() {
		for i := 1; i < count-1; i += 2 {
			b.must(b.p.DeleteSnapshots(ctx, []pool.SnapshotRef{ref(i)}))
		}
	})
	var rest []pool.SnapshotRef
	infos, err := b.p.Snapshots("v")
	b.must(err)
	for _, s := range infos {
		rest = append(rest, pool.SnapshotRef{Volume: s.Volume, Name: s.Name})
	}
	b.took("delete the rest at once", len(rest), func() { b.must(b.p.DeleteSnapshots(ctx, rest)) })
	want(0)
	b.took("reclaim", 1, func() {
		_, err := b.p.Reclaim(ctx)
		b.must(err)
	})
}

// Many volumes in a pool: all can be listed, snapshotted at one instant, and deleted.
func TestManyVolumes(t *testing.T) {
	count := 200
	if *scaleFull {
		count = 1000
	}
	b := newBig(t)
	var names []string
	buf := stamp(block.Size)
	for i := range count {
		names = append(names, fmt.Sprintf("v%04d", i))
	}
	b.took("create volumes", count, func() {
		for _, name := range names {
			_, err := b.p.CreateVolume(ctx, pool.VolumeSpec{Name: name, SizeBytes: 1 << 40})
			b.must(err)
		}
	})
	b.took("write 32 blocks to each", count, func() {
		for _, name := range names {
			d, err := b.p.OpenVolume(name)
			b.must(err)
			b.scatter(d, 32, buf)
			b.must(d.Close())
		}
	})
	list := func(what string) {
		t.Helper()
		b.took(what, count, func() {
			infos := b.p.Volumes()
			if len(infos) != count {
				t.Fatalf("%d volumes are listed, not %d", len(infos), count)
			}
			for _, info := range infos {
				u, err := b.p.VolumeUsage(ctx, info.Name)
				b.must(err)
				if u.Mapped == 0 || u.Exclusive != u.Mapped {
					t.Fatalf("volume %s holds %+v", info.Name, u)
				}
			}
		})
	}
	list("list volumes")
	list("list volumes again")
	var pause, durable time.Duration
	b.took("one snapshot of all", count, func() {
		made, took, err := b.p.CreateSnapshot(ctx, names, pool.SnapshotSpec{Name: "all"})
		b.must(err)
		pause, durable = took.Pause, took.Durable
		if len(made) != count {
			t.Fatalf("%d snapshots were made, not %d", len(made), count)
		}
	})
	t.Logf("writers waited %.3f ms, it was durable after %.3f ms", ms(pause), ms(durable))
	b.reopen()
	b.took("list snapshots", count, func() {
		if n, _ := b.list(); n != count {
			t.Fatalf("%d snapshots are listed, not %d", n, count)
		}
	})
	b.took("delete snapshots and volumes", count, func() {
		for _, name := range names {
			b.must(b.p.DeleteSnapshots(ctx, []pool.SnapshotRef{{Volume: name, Name: "all"}}))
			b.must(b.p.DeleteVolume(ctx, name))
		}
	})
	if n := len(b.p.Volumes()); n != 0 {
		t.Errorf("%d volumes are left", n)
	}
}
