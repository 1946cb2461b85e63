package memdisk_test

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"pgregory.net/rapid"

	"varve/internal/block"
	"varve/internal/block/memdisk"
)

func newDisk(t testing.TB, size int64) *memdisk.Disk {
	t.Helper()
	d, err := memdisk.New(size)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// Random operations behave like a byte array, and extents never call a byte
// zero that is not.
func TestDiskBehavesLikeBytes(t *testing.T) {
	const size = 300*1024 + 512
	ctx := context.Background()
	rapid.Check(t, func(t *rapid.T) {
		d, err := memdisk.New(size)
		if err != nil {
			t.Fatal(err)
		}
		model := make([]byte, size)
		for range rapid.IntRange(1, 30).Draw(t, "operations") {
			off := rapid.Int64Range(0, size-1).Draw(t, "offset")
			n := rapid.Int64Range(0, size-off).Draw(t, "length")
			op := &block.Op{Kind: block.OpKind(rapid.IntRange(0, 3).Draw(t, "kind")), Offset: off, Length: n}
			area := model[off : off+n]
			switch op.Kind {
			case block.OpWrite:
				op.Data = bytes.Repeat([]byte{rapid.Byte().Draw(t, "fill")}, int(n))
				copy(area, op.Data)
			case block.OpDiscard:
				first, end := (off+block.Size-1)/block.Size*block.Size, (off+n)/block.Size*block.Size
				if off+n == size {
					end = size
				}
				if first < end {
					clear(model[first:end])
				}
			default:
				clear(area)
			}
			d.Submit(ctx, []*block.Op{op})
			if op.Err != nil {
				t.Fatal(op.Err)
			}
		}
		got := make([]byte, size)
		if err := d.ReadAt(ctx, got, 0); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, model) {
			t.Fatal("content differs from the model")
		}
		runs, err := d.Extents(ctx, 0, size, 1000)
		if err != nil {
			t.Fatal(err)
		}
		var off int64
		for i, r := range runs {
			if r.Offset != off || r.Length <= 0 {
				t.Fatalf("run %d: %+v should begin at %d", i, r, off)
			}
			if i > 0 && r.Hole == runs[i-1].Hole && r.Zero == runs[i-1].Zero {
				t.Fatalf("runs %d and %d are not merged", i-1, i)
			}
			if r.Zero && len(bytes.Trim(model[off:off+r.Length], "\x00")) > 0 {
				t.Fatalf("run %+v is said to be zeros", r)
			}
			off += r.Length
		}
		if off != size {
			t.Fatalf("runs end at %d", off)
		}
	})
}

func TestHugeSparseDisk(t *testing.T) {
	d, ctx := newDisk(t, block.MaxDeviceBytes), context.Background()
	op := &block.Op{Offset: block.MaxDeviceBytes - 512, Length: 512, Data: bytes.Repeat([]byte{7}, 512)}
	zero := &block.Op{Kind: block.OpZero, Offset: 0, Length: block.MaxDeviceBytes - 4096}
	d.Submit(ctx, []*block.Op{op, zero})
	if op.Err != nil || zero.Err != nil {
		t.Fatal(op.Err, zero.Err)
	}
	runs, err := d.Extents(ctx, 0, block.MaxDeviceBytes, 10)
	if err != nil || len(runs) != 2 || runs[0].Length != block.MaxDeviceBytes-4096 || !runs[0].Hole || runs[1].Hole {
		t.Fatalf("%+v, %v", runs, err)
	}
}

func TestErrors(t *testing.T) {
	ctx := context.Background()
	for _, size := range []int64{0, -512, 511, block.MaxDeviceBytes + 512} {
		if _, err := memdisk.New(size); err == nil {
			t.Errorf("size %d accepted", size)
		}
	}
	d := newDisk(t, 4096)
	other := d.Open()
	op := &block.Op{Offset: 4000, Length: 200, Data: make([]byte, 200)}
	d.Submit(ctx, []*block.Op{op})
	if !errors.Is(op.Err, block.ErrOutOfRange) {
		t.Error("write beyond the end:", op.Err)
	}
	if err := d.ReadAt(ctx, make([]byte, 2), 4095); !errors.Is(err, block.ErrOutOfRange) {
		t.Error("read beyond the end:", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := d.Flush(ctx); !errors.Is(err, block.ErrClosed) {
		t.Error("flush after close:", err)
	}
	if err := other.Flush(ctx); err != nil || other.FlushCount() != 1 {
		t.Error("the other handle is closed too:", err)
	}
}
