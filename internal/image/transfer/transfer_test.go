package transfer_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"varve/internal/block"
	"varve/internal/block/memdisk"
	"varve/internal/block/zeros"
	"varve/internal/image/transfer"
)

func newDisk(t testing.TB, size int64) *memdisk.Disk {
	t.Helper()
	d, err := memdisk.New(size)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func write(t testing.TB, d block.Device, off int64, data []byte) {
	t.Helper()
	op := &block.Op{Kind: block.OpWrite, Offset: off, Length: int64(len(data)), Data: data}
	if d.Submit(context.Background(), []*block.Op{op}); op.Err != nil {
		t.Fatal(op.Err)
	}
}

// Whatever is on the device, the runs tile it, hold its content, lie on the
// grain, and no grain of zeros is in a run of data.
func TestRunsTileTheDevice(t *testing.T) {
	defer goleak.VerifyNone(t)
	rapid.Check(t, func(rt *rapid.T) {
		size := rapid.Int64Range(1, 3<<20/512).Draw(rt, "sectors") * 512
		grain := int64(1) << rapid.IntRange(9, 20).Draw(rt, "grain bits")
		disk, model := newDisk(t, size), make([]byte, size)
		for range rapid.IntRange(0, 20).Draw(rt, "writes") {
			off := rapid.Int64Range(0, size-1).Draw(rt, "offset")
			n := rapid.Int64Range(1, min(size-off, 300_000)).Draw(rt, "length")
			data := bytes.Repeat([]byte{rapid.Byte().Draw(rt, "fill")}, int(n))
			write(t, disk, off, data)
			copy(model[off:], data)
		}
		at, reported := int64(0), int64(0)
		progress := func(done, total int64) {
			if done <= reported || total != size || done != at {
				rt.Fatalf("progress %d of %d after %d, at %d", done, total, reported, at)
			}
			reported = done
		}
		err := transfer.Read(context.Background(), disk, grain, progress, func(runs []transfer.Run) error {
			for _, r := range runs {
				if r.Offset != at || r.Length <= 0 || r.Offset%grain != 0 || (r.Offset+r.Length)%grain != 0 && r.Offset+r.Length != size {
					rt.Fatalf("run %d+%d at %d", r.Offset, r.Length, at)
				}
				at += r.Length
				want := model[r.Offset:at]
				if r.Data == nil {
					if !zeros.All(want) {
						rt.Fatalf("run %d+%d is not zeros", r.Offset, r.Length)
					}
					continue
				}
				if !bytes.Equal(r.Data, want) {
					rt.Fatalf("run %d+%d has other content", r.Offset, r.Length)
				}
				if r.Offset/transfer.ChunkBytes != (at-1)/transfer.ChunkBytes {
					rt.Fatalf("run %d+%d crosses a chunk", r.Offset, r.Length)
				}
				for ; len(want) > 0; want = want[min(grain, int64(len(want))):] {
					if zeros.All(want[:min(grain, int64(len(want)))]) {
						rt.Fatalf("run %d+%d has a grain of zeros", r.Offset, r.Length)
					}
				}
			}
			return nil
		})
		if err != nil || at != size {
			rt.Fatalf("ended at %d of %d: %v", at, size, err)
		}
	})
}

// full returns a disk of random bytes.
func full(t testing.TB, size int) *memdisk.Disk {
	t.Helper()
	disk, data := newDisk(t, int64(size)), make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(data) // never fails
	write(t, disk, 0, data)
	return disk
}

func TestErrorsEndTheTransfer(t *testing.T) {
	defer goleak.VerifyNone(t)
	disk := full(t, 12<<20)
	stop := errors.New("enough")
	calls := 0
	err := transfer.Read(context.Background(), disk, block.Size, nil, func([]transfer.Run) error {
		if calls++; calls == 3 {
			return stop
		}
		return nil
	})
	if !errors.Is(err, stop) || calls != 3 {
		t.Errorf("emit: %v after %d calls", err, calls)
	}

	ctx, cancel := context.WithCancel(context.Background())
	err = transfer.Read(ctx, disk, block.Size, nil, func([]transfer.Run) error {
		cancel()
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}

	err = transfer.Read(context.Background(), broken{Disk: disk, at: 10 << 20}, block.Size, nil, func([]transfer.Run) error { return nil })
	if !errors.Is(err, block.ErrDamaged) {
		t.Errorf("read: %v", err)
	}
	err = transfer.Read(context.Background(), mute{disk}, block.Size, nil, func([]transfer.Run) error { return nil })
	if err == nil {
		t.Error("a device that describes nothing was read")
	}
}

// Cancelling when the last chunk is read but not yet handed over is an error, never a short success.
func TestCancellationAtTheEndIsSeen(t *testing.T) {
	disk := full(t, 3<<20)
	for range 50 {
		ctx, cancel := context.WithCancel(context.Background())
		got := int64(0)
		err := transfer.Read(ctx, disk, block.Size, nil, func(runs []transfer.Run) error {
			for _, r := range runs {
				got += r.Length
			}
			if got == 2<<20 {
				cancel()
			}
			return nil
		})
		cancel()
		if err == nil && got != disk.SizeBytes() {
			t.Fatalf("%d of %d bytes and no error", got, disk.SizeBytes())
		}
	}
}

func TestReadingAheadIsBounded(t *testing.T) {
	disk := counting{Disk: full(t, 12<<20), reads: new(atomic.Int64)}
	emitted := int64(0)
	err := transfer.Read(context.Background(), disk, block.Size, nil, func([]transfer.Run) error {
		// The emitted one included, no more than all buffers can have been asked for.
		if reads := disk.reads.Load(); reads > emitted+transfer.Ahead {
			t.Errorf("%d chunks were read when %d were done", reads, emitted)
		}
		emitted++
		return nil
	})
	if err != nil || emitted != 12 {
		t.Errorf("%d chunks, %v", emitted, err)
	}
}

// broken is a disk with a damaged block.
type broken struct {
	*memdisk.Disk
	at int64
}

func (b broken) ReadAt(ctx context.Context, p []byte, off int64) error {
	if off <= b.at && b.at < off+int64(len(p)) {
		return block.ErrDamaged
	}
	return b.Disk.ReadAt(ctx, p, off)
}

// mute is a disk that breaks the contract of Extents.
type mute struct{ *memdisk.Disk }

func (mute) Extents(context.Context, int64, int64, int) ([]block.Extent, error) { return nil, nil }

// counting is a disk that counts reads.
type counting struct {
	*memdisk.Disk
	reads *atomic.Int64
}

func (c counting) ReadAt(ctx context.Context, p []byte, off int64) error {
	c.reads.Add(1)
	return c.Disk.ReadAt(ctx, p, off)
}
