package pool_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"varve/internal/block"
	"varve/internal/pool"
)

// unchanged fails if a rewrite has left anything.
func (d *inplace) unchanged(present []byte) {
	d.tb.Helper()
	d.same("v", present)
	snapshots, err := d.p.Snapshots("v")
	d.must(err)
	if len(snapshots) != 1 || len(d.p.Volumes()) != 1 {
		d.tb.Fatalf("left: %v, %v", snapshots, d.p.Volumes())
	}
	d.must(d.p.Cycle(ctx))
	d.must(d.p.CheckOwners())
}

// TestRewriteByMany: several write at once, pieces of all sizes, up to the volume's end; nobody sees anything of it before it is done, and then all.
func TestRewriteByMany(t *testing.T) {
	layouts(t, func(t *testing.T, d *inplace) {
		present := d.read("v")
		want := make([]byte, putBackBytes)
		for i := range want {
			want[i] = byte(i/block.Size) | 1
		}
		clear(want[32*block.Size : 64*block.Size])
		done, _, err := d.p.Rewrite(ctx, "v", putBackBytes, "auto-before-test", func(ctx context.Context, target block.Device) error {
			seen := make([]byte, putBackBytes)
			d.must(target.ReadAt(ctx, seen, 0))
			if !bytes.Equal(seen, present) {
				t.Error("the target is not the volume")
			}
			var g errgroup.Group
			for from := int64(0); from < putBackBytes; from += 32 * block.Size {
				g.Go(func() error {
					op := &block.Op{Kind: block.OpWrite, Offset: from, Length: min(32*block.Size, putBackBytes-from)}
					if op.Data = want[from : from+op.Length]; from == 32*block.Size {
						op = &block.Op{Kind: block.OpZero, Offset: from, Length: op.Length}
					}
					target.Submit(ctx, []*block.Op{op})
					return op.Err
				})
			}
			d.must(g.Wait())
			d.must(target.ReadAt(ctx, seen, 0))
			if !bytes.Equal(seen, want) {
				t.Error("the target is not what was written")
			}
			d.same("v", present)
			return nil
		})
		d.must(err)
		if !strings.HasPrefix(done.Kept.Name, "auto-before-test-") || done.Bytes != putBackBytes {
			t.Errorf("done: %+v", done)
		}
		d.same("v", want)
		d.same("v@"+done.Kept.Name, present)
		d.must(d.p.CopyBack(ctx, "v", nil))
		d.must(d.p.Cycle(ctx))
		d.must(d.p.CheckOwners())
		d.same("v", want)
	})
}

// TestRewriteThatFails leaves nothing: who writes gives up, or writes what is none of the volume's blocks.
func TestRewriteThatFails(t *testing.T) {
	layouts(t, func(t *testing.T, d *inplace) {
		present := d.read("v")
		gaveUp := errors.New("gave up")
		_, _, err := d.p.Rewrite(ctx, "v", putBackBytes, "auto-before-test", func(ctx context.Context, target block.Device) error {
			ops := []*block.Op{
				{Kind: block.OpWrite, Length: block.Size, Data: make([]byte, block.Size)},
				{Kind: block.OpWrite, Offset: 512, Length: block.Size, Data: make([]byte, block.Size)},
				{Kind: block.OpWrite, Length: 512, Data: make([]byte, 512)},
				{Kind: block.OpZero, Offset: putBackBytes - 512, Length: block.Size},
				{Kind: block.OpDiscard, Length: block.Size},
			}
			target.Submit(ctx, ops)
			for i, op := range ops {
				if (op.Err == nil) != (i == 0) {
					t.Errorf("op %d: %v", i, op.Err)
				}
			}
			return gaveUp
		})
		if !errors.Is(err, gaveUp) {
			t.Fatal(err)
		}
		d.unchanged(present)
	})
}

// TestRewriteThatIsCutShort by a full pool, or by whoever asked for it, leaves nothing but what there was.
func TestRewriteThatIsCutShort(t *testing.T) {
	for name, how := range map[string]func(d *inplace, cancel func()){
		"full":      func(d *inplace, _ func()) { d.must(d.p.SetQuota(ctx, d.p.Info().LogSizeBytes+1<<18, 0)) },
		"cancelled": func(_ *inplace, cancel func()) { cancel() },
	} {
		t.Run(name, func(t *testing.T) {
			layouts(t, func(t *testing.T, d *inplace) {
				d.must(d.p.Close(ctx))
				d.opts.OnEvent = func(e pool.Event) {
					if !strings.HasPrefix(e.Kind, "space-") {
						t.Errorf("event %+v", e)
					}
				}
				d.open()
				present := d.read("v")
				ctx, cancel := context.WithCancel(ctx)
				defer cancel()
				noise := make([]byte, putBackBytes)
				rand.NewChaCha8([32]byte{1}).Read(noise)
				_, _, err := d.p.Rewrite(ctx, "v", putBackBytes, "auto-before-test", func(ctx context.Context, target block.Device) error {
					for off := int64(0); off < putBackBytes; off += 64 * block.Size {
						op := &block.Op{Kind: block.OpWrite, Offset: off, Length: min(64*block.Size, putBackBytes-off)}
						op.Data = noise[off : off+op.Length]
						target.Submit(ctx, []*block.Op{op})
						if op.Err != nil {
							return op.Err
						}
						if off == 0 {
							how(d, cancel)
						}
					}
					return nil
				})
				if !errors.Is(err, block.ErrNoSpace) && !errors.Is(err, context.Canceled) {
					t.Fatal(err)
				}
				d.must(d.p.SetQuota(context.Background(), 0, 0))
				d.unchanged(present)
			})
		})
	}
}

// TestRewriteIsRefused where it could not be done, or somebody would not notice.
func TestRewriteIsRefused(t *testing.T) {
	layouts(t, func(t *testing.T, d *inplace) {
		present := d.read("v")
		refuse := func(name string, size int64, want error) {
			t.Helper()
			_, _, err := d.p.Rewrite(ctx, name, size, "auto-before-test", func(context.Context, block.Device) error {
				t.Error("it is written to")
				return nil
			})
			if !errors.Is(err, want) {
				t.Errorf("rewrite %s to %d bytes: %v, want %v", name, size, err, want)
			}
			if checked := d.p.CheckRewrite(name, size); !errors.Is(want, pool.ErrInUse) && !errors.Is(checked, want) {
				t.Errorf("check: %v, want %v", checked, want)
			}
		}
		refuse("none", putBackBytes, pool.ErrNotFound)
		refuse("v", 100, pool.ErrInvalid)
		if info, _ := d.p.Volume("v"); info.Path != "" {
			refuse("v", putBackBytes/2/512*512, pool.ErrInvalid)
		}
		write := func(data byte) *pool.Device {
			dev, err := d.p.OpenVolume("v")
			d.must(err)
			op := &block.Op{Kind: block.OpWrite, Length: block.Size, Data: bytes.Repeat([]byte{data}, block.Size)}
			dev.Submit(ctx, []*block.Op{op})
			d.must(op.Err)
			return dev
		}
		dev := write(present[0])
		refuse("v", putBackBytes, pool.ErrInUse)
		d.must(dev.Close())
		written := d.read("v")
		_, _, err := d.p.Rewrite(ctx, "v", putBackBytes, "auto-before-test", func(context.Context, block.Device) error {
			refuse("v", putBackBytes, pool.ErrInUse)
			d.must(write(7).Close())
			return nil
		})
		if !errors.Is(err, pool.ErrInUse) {
			t.Fatalf("it was changed meanwhile: %v", err)
		}
		copy(written, bytes.Repeat([]byte{7}, block.Size))
		d.unchanged(written)
	})
}

// TestRewriteToAnotherSize: a volume of the pool is as large as what is written; what was cut off is gone.
func TestRewriteToAnotherSize(t *testing.T) {
	for _, size := range []int64{block.Size, putBackBytes - 4608, 2 * putBackBytes} {
		d := putBackStory(t, "redirect")
		present := d.read("v")
		want := make([]byte, size)
		copy(want, present)
		done, _, err := d.p.Rewrite(ctx, "v", size, "auto-before-test", func(ctx context.Context, target block.Device) error {
			if target.SizeBytes() != size {
				t.Errorf("the target has %d bytes, want %d", target.SizeBytes(), size)
			}
			return nil
		})
		d.must(err)
		d.same("v", want)
		d.same("v@"+done.Kept.Name, present)
		d.must(d.p.Close(ctx))
	}
}
