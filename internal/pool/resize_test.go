package pool_test

import (
	"runtime"
	"sync"
	"testing"

	"varve/internal/block"
	"varve/internal/vfs/crashfs"
)

// A request is cut up by the size that the volume has when it comes. It is held up while it
// reads what it needs, its client goes away, and the size changes: the request is done
// before that. It leaves no bytes beyond the end, which would be seen when the volume grows again, and a
// discard up to the old end, which covers the rest of its last block, takes nothing that was written there since.
func TestRequestIsDoneBeforeTheSizeItWasPreparedForChanges(t *testing.T) {
	for name, c := range map[string]struct {
		setup  func(d *driver)
		op     *block.Op
		change func(d *driver)
		after  func(d *driver) // what others do when the size has changed
	}{
		"shrink": {
			setup:  func(d *driver) { d.createVolume("v", 12<<10) },
			op:     writeOp(8704, 1024),
			change: func(d *driver) { d.resize("v", 4096) },
		},
		"shrink within a block": {
			setup:  func(d *driver) { d.createVolume("v", 12<<10) },
			op:     writeOp(8704, 1024),
			change: func(d *driver) { d.resize("v", 9216) },
		},
		"roll back to a smaller one": {
			setup: func(d *driver) {
				d.createVolume("v", 4096)
				d.snapshot("small", "v")
				d.resize("v", 12<<10)
			},
			op:     writeOp(8704, 1024),
			change: func(d *driver) { d.rollback("v", "small") },
		},
		"grow": {
			setup:  func(d *driver) { d.createVolume("v", 8704) },
			op:     discardOp(8192, 512),
			change: func(d *driver) { d.resize("v", 12<<10) },
			after:  func(d *driver) { d.submit("v", writeOp(8704, 3584)) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDriver(t)
			c.setup(d)
			d.submit("v", writeOp(0, d.present().volumes["v"].size))
			k := d.putOn() // nothing is in memory
			read := k.hold(func(op crashfs.Op) bool { return op.Kind == crashfs.Read && inLog(op) })
			var wg sync.WaitGroup
			d.step("begin a request", false, func(m *model) error {
				if v := m.volumes["v"]; c.op.Kind == block.OpWrite {
					v.write(c.op.Offset, c.op.Data, c.op.Length)
				} else {
					v.discard(c.op.Offset, c.op.Length)
				}
				return nil
			}, func() error {
				dev, err := d.p.OpenVolume("v")
				if err != nil {
					return err
				}
				wg.Go(func() { dev.Submit(ctx, []*block.Op{c.op}) })
				<-read.reached
				return dev.Close()
			})
			changed := make(chan struct{})
			done := sync.OnceFunc(func() { close(changed) })
			defer done()
			wg.Go(func() {
				defer close(read.released)
				for !d.p.ResizeWaits("v") {
					select {
					case <-changed:
						return
					default:
						runtime.Gosched()
					}
				}
			})
			c.change(d)
			if c.after != nil {
				c.after(d)
			}
			done()
			if wg.Wait(); c.op.Err != nil {
				t.Fatal(c.op.Err)
			}
			d.verify()
			d.resize("v", 16<<10)
			d.verify()
			d.p.Abandon()
			d.crash(crashfs.ProcessCrash)
			d.verify()
			d.p.Abandon()
		})
	}
}
