package pool_test

import (
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/vfs"
)

// BenchmarkOverwrite overwrites a full volume of 1 GiB at random, 32 blocks at a time: how fast that
// goes when space must be given back all the time, how long single requests take, and what it costs. Run it for long enough:
// go test -run '^$' -bench Overwrite -benchtime 30s ./internal/pool
func BenchmarkOverwrite(b *testing.B) {
	const size, depth = 1 << 30, 32
	o := pool.Options{FS: vfs.OS(), Dir: filepath.Join(b.TempDir(), "pool"), OnEvent: func(e pool.Event) { b.Error(e) }}
	if err := pool.Create(ctx, o); err != nil {
		b.Fatal(err)
	}
	p, err := pool.Open(ctx, o)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = p.Close(ctx) }()
	if _, err := p.CreateVolume(ctx, pool.VolumeSpec{Name: "v", SizeBytes: size}); err != nil {
		b.Fatal(err)
	}
	d, err := p.OpenVolume("v")
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	buf := stamp(1 << 20)
	for off := int64(0); off < size; off += 1 << 20 {
		submitOne(b, d, &block.Op{Offset: off, Length: 1 << 20, Data: buf})
	}
	var most int64 // bytes of the pool
	var stop atomic.Bool
	var sampling sync.WaitGroup
	sampling.Go(func() {
		for ; !stop.Load(); time.Sleep(20 * time.Millisecond) {
			most = max(most, p.Info().PhysicalBytes)
		}
	})
	var took []time.Duration
	ops := make([]*block.Op, depth)
	b.SetBytes(depth * block.Size)
	start, before := time.Now(), p.Info()
	for b.Loop() {
		for i := range ops {
			ops[i] = &block.Op{Offset: rand.Int64N(size/block.Size) * block.Size, Length: block.Size, Data: buf[:block.Size]}
		}
		t := time.Now()
		submitOne(b, d, ops...)
		took = append(took, time.Since(t))
	}
	elapsed, after := time.Since(start), p.Info()
	stop.Store(true)
	sampling.Wait()
	b.ReportMetric(float64(most)/(1<<20), "most-MiB")
	slices.Sort(took)
	at := func(q float64) float64 { return float64(took[int(q*float64(len(took)-1))].Microseconds()) / 1000 }
	b.ReportMetric(at(0.5), "p50-ms")
	b.ReportMetric(at(0.99), "p99-ms")
	b.ReportMetric(at(0.999), "p99.9-ms")
	b.ReportMetric(at(1), "max-ms")
	client := float64(after.ClientBytes - before.ClientBytes)
	b.ReportMetric(client/(1<<20)/elapsed.Seconds(), "MiB/s")
	b.ReportMetric(float64(after.CopiedBytes-before.CopiedBytes)/client, "copied/byte")
	b.ReportMetric(float64(after.LogBytes-before.LogBytes)/client, "logged/byte")
}
