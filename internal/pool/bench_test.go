package pool_test

import (
	"math/rand/v2"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/vfs"
)

// benchDevice is a volume of 1 GiB on the real file system, written in order.
func benchDevice(b *testing.B) block.Device {
	b.Helper()
	_, d := benchPool(b)
	return d
}

func benchPool(b *testing.B) (*pool.Pool, block.Device) {
	b.Helper()
	o := pool.Options{FS: vfs.OS(), Dir: filepath.Join(b.TempDir(), "pool")}
	if err := pool.Create(ctx, o); err != nil {
		b.Fatal(err)
	}
	p, err := pool.Open(ctx, o)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = p.Close(ctx) })
	if _, err := p.CreateVolume(ctx, pool.VolumeSpec{Name: "v", SizeBytes: 1 << 30}); err != nil {
		b.Fatal(err)
	}
	d, err := p.OpenVolume("v")
	if err != nil {
		b.Fatal(err)
	}
	buf := stamp(1 << 20)
	for off := int64(0); off < 1<<30; off += 1 << 20 {
		submitOne(b, d, &block.Op{Offset: off, Length: 1 << 20, Data: buf})
	}
	return p, d
}

func submitOne(b *testing.B, d block.Device, ops ...*block.Op) {
	d.Submit(ctx, ops)
	for _, op := range ops {
		if op.Err != nil {
			b.Fatal(op.Err)
		}
	}
}

func BenchmarkReadSequential1M(b *testing.B) {
	benchmarkReads(b, benchDevice(b), 1<<20, false)
}

func BenchmarkReadRandom4K(b *testing.B) {
	benchmarkReads(b, benchDevice(b), block.Size, true)
}

// cpuTime is what the process has used, which says more than the clock does on a busy machine.
func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func benchmarkReads(b *testing.B, d block.Device, length int64, random bool) {
	buf := make([]byte, length)
	b.SetBytes(length)
	before := cpuTime()
	defer func() { b.ReportMetric(float64(cpuTime()-before)/float64(b.N), "cpu-ns/op") }()
	n := 1 << 30 / length
	i := int64(0)
	for b.Loop() {
		if i++; random {
			i = rand.Int64N(n)
		}
		if err := d.ReadAt(ctx, buf, i%n*length); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkAged reads a volume of which every block was overwritten, in random order, before and after a relayout.
func BenchmarkAged(b *testing.B) {
	p, d := benchPool(b)
	buf := stamp(block.Size)
	order := rand.Perm(1 << 18)
	for i := 0; i < len(order); i += 32 {
		ops := make([]*block.Op, 32)
		for k, lba := range order[i : i+32] {
			ops[k] = &block.Op{Offset: int64(lba) * block.Size, Length: block.Size, Data: buf}
		}
		submitOne(b, d, ops...)
	}
	reads := func(state string) {
		b.Run(state+"/sequential1M", func(b *testing.B) { benchmarkReads(b, d, 1<<20, false) })
		b.Run(state+"/random64K", func(b *testing.B) { benchmarkReads(b, d, 64<<10, true) })
	}
	reads("before")
	b.Run("relayout", func(b *testing.B) { // the first one moves, others find everything in order
		b.SetBytes(1 << 30)
		for b.Loop() {
			if _, err := p.Relayout(ctx, "v", pool.RelayoutOptions{}); err != nil {
				b.Fatal(err)
			}
		}
	})
	reads("after")
}

// BenchmarkSmall reads a volume that was written in order in blocks, each a batch of its own.
func BenchmarkSmall(b *testing.B) {
	_, d := benchPool(b)
	buf := stamp(block.Size)
	for off := int64(0); off < 1<<30; off += block.Size {
		submitOne(b, d, &block.Op{Offset: off, Length: block.Size, Data: buf})
	}
	b.Run("sequential1M", func(b *testing.B) { benchmarkReads(b, d, 1<<20, false) })
	b.Run("random64K", func(b *testing.B) { benchmarkReads(b, d, 64<<10, true) })
}

func benchmarkWrites(b *testing.B, depth int, length int64) {
	d := benchDevice(b)
	buf := stamp(length)
	ops := make([]*block.Op, depth)
	b.SetBytes(int64(depth) * length)
	for b.Loop() {
		for i := range ops {
			ops[i] = &block.Op{Offset: rand.Int64N(1<<30/length) * length, Length: length, Data: buf}
		}
		submitOne(b, d, ops...)
	}
}

func BenchmarkWriteRandom4KDepth1(b *testing.B)  { benchmarkWrites(b, 1, block.Size) }
func BenchmarkWriteRandom4KDepth32(b *testing.B) { benchmarkWrites(b, 32, block.Size) }
func BenchmarkWrite1M(b *testing.B)              { benchmarkWrites(b, 1, 1<<20) }
