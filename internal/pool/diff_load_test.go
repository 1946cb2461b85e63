package pool_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/vfs"
)

// A copy to which every diff is applied equals every snapshot, while clients write and discard, space is given back and blocks
// are moved: round after round, from snapshots and from bookmarks whose snapshot is gone.
func TestDiffsAddUpUnderLoad(t *testing.T) {
	const size, rounds = 32<<20 + 512, 24
	o := pool.Options{
		FS: vfs.OS(), Dir: filepath.Join(t.TempDir(), "pool"), SegmentBytes: 1 << 20, CheckpointBytes: 8 << 20, MapCacheBytes: 256 << 10,
		OnEvent: func(e pool.Event) { t.Error(e) },
	}
	if err := pool.Create(ctx, o); err != nil {
		t.Fatal(err)
	}
	p, err := pool.Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close(ctx) }()
	if _, err := p.CreateVolume(ctx, pool.VolumeSpec{Name: "v", SizeBytes: size}); err != nil {
		t.Fatal(err)
	}
	var load sync.WaitGroup
	running, stop := context.WithCancel(ctx)
	defer func() { stop(); load.Wait() }()
	writes := func(seed uint64) {
		dev, err := p.OpenVolume("v")
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = dev.Close() }()
		rnd := rand.New(rand.NewPCG(seed, 1))
		b := make([]byte, 64<<10)
		for n := byte(1); running.Err() == nil; n++ {
			var ops []*block.Op
			for range 8 {
				off := rnd.Int64N(size)
				o := &block.Op{Offset: off, Length: min([]int64{512, 4096, 4096, 64 << 10}[rnd.IntN(4)], size-off)}
				if o.Kind = []block.OpKind{block.OpWrite, block.OpWrite, block.OpWrite, block.OpDiscard, block.OpZero}[rnd.IntN(5)]; o.Kind == block.OpWrite {
					o.Data = bytes.Repeat([]byte{n | 1}, int(o.Length))
				}
				ops = append(ops, o)
			}
			dev.Submit(running, ops)
			for _, o := range ops {
				if o.Err != nil && running.Err() == nil {
					t.Error(o.Err)
				}
			}
			if err := dev.ReadAt(ctx, b[:512], 0); err != nil {
				t.Error(err)
			}
		}
	}
	for seed := range uint64(2) {
		load.Go(func() { writes(seed) })
	}
	load.Go(func() {
		for running.Err() == nil {
			if _, err := p.Reclaim(running); err != nil && running.Err() == nil {
				t.Error(err)
			}
			if _, err := p.Relayout(running, "v", pool.RelayoutOptions{}); err != nil && running.Err() == nil {
				t.Error(err)
			}
		}
	})

	replica := make([]byte, size)
	is := make([]byte, size)
	var from pool.PointRef
	changedBytes, whole := int64(0), 0
	for round := range rounds {
		name := fmt.Sprint("s", round)
		if _, _, err := p.CreateSnapshot(ctx, []string{"v"}, pool.SnapshotSpec{Name: name}); err != nil {
			t.Fatal(err)
		}
		dev, err := p.OpenSnapshot(pool.SnapshotRef{Volume: "v", Name: name})
		if err != nil {
			t.Fatal(err)
		}
		if err := dev.ReadAt(ctx, is, 0); err != nil {
			t.Fatal(err)
		}
		if round == 0 {
			copy(replica, is)
		} else {
			diff, err := p.OpenDiff(from, snap("v", name))
			if err != nil {
				t.Fatal(err)
			}
			sum := int64(0)
			err = diff.Each(ctx, func(off, n int64) error {
				sum += n
				return dev.ReadAt(ctx, replica[off:off+n], off)
			})
			diff.Close()
			if err != nil {
				t.Fatal(err)
			}
			if changedBytes += sum; sum == size {
				whole++
			}
		}
		if !bytes.Equal(replica, is) {
			t.Fatalf("round %d: the copy differs from the snapshot", round)
		}
		if err := dev.Close(); err != nil {
			t.Fatal(err)
		}
		if from.Bookmark {
			if err := p.DeleteBookmark(ctx, pool.BookmarkRef{Volume: "v", Name: from.Name}); err != nil {
				t.Fatal(err)
			}
		}
		if from = snap("v", name); round%2 == 0 {
			from = mark("v", fmt.Sprint("k", round))
			if _, err := p.CreateBookmark(ctx, pool.SnapshotRef{Volume: "v", Name: name}, from.Name); err != nil {
				t.Fatal(err)
			}
		}
		if round%2 == 0 || round > 4 {
			gone := name
			if !from.Bookmark {
				gone = fmt.Sprint("s", round-2)
			}
			if err := p.DeleteSnapshots(ctx, []pool.SnapshotRef{{Volume: "v", Name: gone}}); err != nil && !errors.Is(err, pool.ErrNotFound) {
				t.Fatal(err)
			}
		}
	}
	if changedBytes == 0 || whole == rounds-1 {
		t.Errorf("%d bytes changed; in %d rounds everything", changedBytes, whole)
	}
	stop()
	load.Wait()
	if rep, err := p.Check(ctx, nil); err != nil || len(rep.Damage) > 0 {
		t.Fatalf("%v %v", rep.Damage, err)
	}
}

// BenchmarkDiff: of a volume of 64 TiB with 100,000 blocks here and there, one block or many have changed. Nothing is cached.
func BenchmarkDiff(b *testing.B) {
	for _, changed := range []int{1, 1000, 1_000_000} {
		b.Run(fmt.Sprint(changed), func(b *testing.B) { benchmarkDiff(b, changed) })
	}
}

func benchmarkDiff(b *testing.B, changed int) {
	o := pool.Options{FS: vfs.OS(), Dir: filepath.Join(b.TempDir(), "pool")}
	if err := pool.Create(ctx, o); err != nil {
		b.Fatal(err)
	}
	open := func() *pool.Pool {
		p, err := pool.Open(ctx, o)
		if err != nil {
			b.Fatal(err)
		}
		return p
	}
	p := open()
	if _, err := p.CreateVolume(ctx, pool.VolumeSpec{Name: "v", SizeBytes: pool.MaxVolumeBytes}); err != nil {
		b.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	data := stamp(block.Size)
	write := func(n int) {
		dev, err := p.OpenVolume("v")
		if err != nil {
			b.Fatal(err)
		}
		for n > 0 {
			ops := make([]*block.Op, min(n, 256))
			for i := range ops {
				ops[i] = &block.Op{Offset: rnd.Int64N(pool.MaxVolumeBytes/block.Size) * block.Size, Length: block.Size, Data: data}
			}
			submitOne(b, dev, ops...)
			n -= len(ops)
		}
		if err := dev.Close(); err != nil {
			b.Fatal(err)
		}
	}
	write(100_000)
	if _, _, err := p.CreateSnapshot(ctx, []string{"v"}, pool.SnapshotSpec{Name: "s"}); err != nil {
		b.Fatal(err)
	}
	write(changed)
	if err := p.Close(ctx); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		b.StopTimer()
		p := open()
		b.StartTimer()
		diff, err := p.OpenDiff(snap("v", "s"), now("v"))
		if err != nil {
			b.Fatal(err)
		}
		found := int64(0)
		err = diff.Each(ctx, func(_, n int64) error { found += n / block.Size; return nil })
		diff.Close()
		b.StopTimer()
		if err != nil || found > int64(changed) || found < int64(changed)*99/100 {
			b.Fatalf("%d blocks, %v", found, err)
		}
		if err := p.Close(ctx); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
