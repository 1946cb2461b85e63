package pool_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"varve/internal/block"
	"varve/internal/pool"
)

func (d *overBase) count(kind string) (n int) {
	for _, e := range d.events {
		if e.Kind == kind {
			n++
		}
	}
	return n
}

// damaged is an error of a base that has lost content.
var errBaseDamaged = errors.Join(block.ErrDamaged, errors.New("chunk 17 is gone"))

// TestBaseCannotBeOpened: what is not filled cannot be read, which is told, once, and everything else goes on; it is tried again, not too often, and
// works again when the base does.
func TestBaseCannotBeOpened(t *testing.T) {
	d := newOverBase(t, 40*block.Size, 20*block.Size)
	d.must(d.write("v", writeOp(3*block.Size, 2*block.Size), writeOp(7*block.Size, 100)))
	want := contentOf(t, d.p, "v")
	d.must(d.p.Close(ctx))
	d.base.set(func(c *baseContent) { c.cannot = errBase })
	d.open()
	before, _ := d.base.counts()
	for range 5 {
		if _, err := d.read("v", 0, 10); !errors.Is(err, errBase) || !strings.Contains(err.Error(), `"repo/0"`) {
			t.Fatalf("what is not filled: %v", err)
		}
	}
	if now, _ := d.base.counts(); now != before+1 {
		t.Errorf("it was opened %d times at once", now-before)
	}
	for _, r := range []struct{ off, n int64 }{{3 * block.Size, 2 * block.Size}, {7*block.Size + 5, 10}, {20 * block.Size, 20 * block.Size}} {
		if got, err := d.read("v", r.off, r.n); err != nil || !bytes.Equal(got, want[r.off:r.off+r.n]) {
			t.Fatalf("what the pool has at %d: %v", r.off, err)
		}
	}
	if f := d.need("v"); f == nil || !strings.Contains(f.Problem, "says no") {
		t.Errorf("it says that it needs %+v", f)
	}
	if n := d.count(pool.EventBaseLost); n != 1 || !strings.Contains(d.events[len(d.events)-1].Message, "says no") {
		t.Errorf("%d events: %+v", n, d.events)
	}
	// Of a batch what needs the base fails, and the rest is done.
	ops := []*block.Op{writeOp(0, block.Size), writeOp(10*block.Size, 100), op(block.OpDiscard, 15*block.Size, 2*block.Size), op(block.OpZero, 16*block.Size+1, 2*block.Size), writeOp(3*block.Size+1, 3)}
	if err := d.write("v", ops...); !errors.Is(err, errBase) {
		t.Fatalf("a batch: %v", err)
	}
	for i, failed := range []bool{false, true, false, true, false} {
		if (ops[i].Err != nil) != failed {
			t.Errorf("op %d: %v", i, ops[i].Err)
		}
	}
	copy(want, ops[0].Data)
	clear(want[15*block.Size : 17*block.Size])
	copy(want[3*block.Size+1:], ops[4].Data)
	if err := d.p.Fill(ctx, "v", nil); !errors.Is(err, errBase) {
		t.Errorf("fill: %v", err)
	}
	if err := d.p.ResizeVolume(ctx, "v", 9*block.Size+512, true); !errors.Is(err, errBase) {
		t.Errorf("shrink within a block of it: %v", err)
	}
	d.base.set(func(c *baseContent) { c.cannot = nil })
	if _, err := d.read("v", block.Size, 10); !errors.Is(err, errBase) {
		t.Errorf("within a second: %v", err)
	}
	d.clock.now = d.clock.now.Add(time.Second)
	d.holds("v", want)
	if f := d.need("v"); f == nil || f.Problem != "" {
		t.Errorf("it says that it needs %+v", f)
	}
	d.fill()
	d.holds("v", want)
	d.sound()
}

// TestBaseFailsInPart: what cannot be read is refused and nothing else, and the base is opened anew for it, now and then.
func TestBaseFailsInPart(t *testing.T) {
	d := newOverBase(t, 20*block.Size, 20*block.Size)
	d.base.set(func(c *baseContent) {
		c.fails = func(off, n int64) error {
			if off < 8*block.Size && off+n > 7*block.Size {
				return errBase
			}
			return nil
		}
	})
	for round := range 3 {
		for lba := range int64(20) {
			got, err := d.read("v", lba*block.Size, block.Size)
			if (err != nil) != (lba == 7) || err == nil && !bytes.Equal(got, d.data[lba*block.Size:(lba+1)*block.Size]) {
				t.Fatalf("block %d: %v", lba, err)
			}
		}
		if opened, open := d.base.counts(); opened != round+1 || open != 1 {
			t.Errorf("round %d: it was opened %d times, and %d are open", round, opened, open)
		}
		d.clock.now = d.clock.now.Add(time.Second)
	}
	if n := d.count(pool.EventBaseLost); n != 1 {
		t.Errorf("%d events", n)
	}
	if err := d.p.Fill(ctx, "v", nil); !errors.Is(err, errBase) {
		t.Errorf("fill: %v", err)
	}
	d.base.set(func(c *baseContent) { c.fails = nil })
	d.fill()
	d.holds("v", d.data)
}

// TestBaseComesBack: a device that has failed, as of a connection that is lost, is replaced, and nobody notices.
func TestBaseComesBack(t *testing.T) {
	d := newOverBase(t, 20*block.Size, 20*block.Size)
	d.holds("v", d.data)
	fails := true
	d.base.set(func(c *baseContent) {
		c.refuses = func(context.Context) error {
			if opened, _ := c.counts(); fails && opened == 1 {
				return errBase
			}
			return nil
		}
	})
	d.clock.now = d.clock.now.Add(time.Second)
	d.holds("v", d.data)
	if opened, open := d.base.counts(); opened != 2 || open != 1 || len(d.events) > 0 {
		t.Errorf("it was opened %d times, %d are open, %+v", opened, open, d.events)
	}
}

// TestDamagedBase: damage is refused block by block and told as damage; the rest is filled; and what is damaged can be given up.
func TestDamagedBase(t *testing.T) {
	d := newOverBase(t, 20*block.Size, 20*block.Size)
	bad := map[int64]bool{3: true, 7: true, 12: true}
	d.base.set(func(c *baseContent) {
		c.fails = func(off, n int64) error {
			for lba := off / block.Size; lba*block.Size < off+n; lba++ {
				if bad[lba] {
					return errBaseDamaged
				}
			}
			return nil
		}
	})
	d.snapshot("s")
	err := d.p.Fill(ctx, "v", nil)
	if !errors.Is(err, block.ErrDamaged) || !strings.Contains(err.Error(), "12288 bytes") || !strings.Contains(err.Error(), "chunk 17") {
		t.Fatalf("fill: %v", err)
	}
	if n := d.count(pool.EventDamage); n != len(bad) {
		t.Errorf("%d events", n)
	}
	if f := d.need("v"); f == nil || f.FilledBytes > 3*block.Size {
		t.Errorf("it needs %+v", f)
	}
	d.must(d.p.Close(ctx))
	d.open()
	for lba := range int64(20) {
		got, err := d.read("v", lba*block.Size, block.Size)
		if errors.Is(err, block.ErrDamaged) != bad[lba] || err == nil && !bytes.Equal(got, d.data[lba*block.Size:(lba+1)*block.Size]) {
			t.Errorf("block %d: %v", lba, err)
		}
	}
	if opened, _ := d.base.counts(); opened > 2 {
		t.Errorf("it was opened %d times", opened)
	}
	want := bytes.Clone(d.data)
	for lba := range bad {
		op := writeOp(lba*block.Size, block.Size)
		d.must(d.write("v", op))
		copy(want[op.Offset:], op.Data)
	}
	if err := d.p.Fill(ctx, "v", nil); !errors.Is(err, block.ErrDamaged) {
		t.Errorf("a snapshot has it: %v", err)
	}
	d.must(d.p.DeleteSnapshots(ctx, []pool.SnapshotRef{{Volume: "v", Name: "s"}}))
	d.fill()
	if d.need("v") != nil {
		t.Error("it still needs the base")
	}
	d.holds("v", want)
	d.sound()
}

// TestAnotherBase: what has another size than the base had is refused, and so is any where nobody can open one.
func TestAnotherBase(t *testing.T) {
	d := newOverBase(t, 20*block.Size, 20*block.Size)
	d.base.set(func(c *baseContent) { c.size = 21 * block.Size })
	if _, err := d.read("v", 0, 10); !errors.Is(err, pool.ErrInvalid) || !strings.Contains(err.Error(), "86016 bytes") {
		t.Errorf("another size: %v", err)
	}
	if _, open := d.base.counts(); open != 0 {
		t.Errorf("%d devices are open", open)
	}
	d.must(d.p.Close(ctx))
	d.opts.OpenBase = nil
	d.open()
	if _, err := d.read("v", 0, 10); !errors.Is(err, pool.ErrInvalid) {
		t.Errorf("nobody can open it: %v", err)
	}
	dev, err := d.p.OpenVolume("v")
	d.must(err)
	defer func() { _ = dev.Close() }()
	found, err := dev.Extents(ctx, 0, 20*block.Size, 10)
	if err != nil || len(found) != 1 || found[0].Zero {
		t.Errorf("extents of what cannot be asked: %+v %v", found, err)
	}
}

// TestBaseHangs: who waits for a base can go, and the pool can be closed.
func TestBaseHangs(t *testing.T) {
	d := newOverBase(t, 20*block.Size, 20*block.Size)
	entered := make(chan struct{})
	d.base.set(func(c *baseContent) {
		c.refuses = func(ctx context.Context) error {
			entered <- struct{}{}
			<-ctx.Done()
			return ctx.Err()
		}
	})
	dev, err := d.p.OpenVolume("v")
	d.must(err)
	for name, ask := range map[string]func(context.Context) error{
		"read":    func(ctx context.Context) error { return dev.ReadAt(ctx, make([]byte, 10), 0) },
		"extents": func(ctx context.Context) error { _, err := dev.Extents(ctx, 0, block.Size, 1); return err },
		"write": func(ctx context.Context) error {
			writer, err := d.p.OpenVolume("v")
			if err != nil {
				return err
			}
			op := writeOp(1, 1)
			writer.Submit(ctx, []*block.Op{op})
			return errors.Join(op.Err, writer.Close())
		},
		"fill":   func(ctx context.Context) error { return d.p.Fill(ctx, "v", nil) },
		"shrink": func(ctx context.Context) error { return d.p.ResizeVolume(ctx, "v", 8*block.Size+512, true) },
	} {
		work, cancel := context.WithCancel(ctx)
		got := make(chan error, 1)
		go func() { got <- ask(work) }()
		<-entered
		cancel()
		if err := <-got; !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Nobody who does not need the base waits for it.
	got := make(chan error, 1)
	go func() { got <- dev.ReadAt(ctx, make([]byte, 10), 0) }()
	<-entered
	d.must(d.write("v", writeOp(5*block.Size, block.Size)))
	d.snapshot("s")
	if _, _, err := d.p.Rollback(ctx, pool.SnapshotRef{Volume: "v", Name: "s"}); err != nil {
		t.Errorf("rollback: %v", err)
	}
	d.must(d.p.Close(ctx))
	if err := <-got; !errors.Is(err, block.ErrClosed) {
		t.Errorf("when the pool is closed: %v", err)
	}
	if len(d.events) > 0 {
		t.Errorf("events %+v", d.events)
	}
}
