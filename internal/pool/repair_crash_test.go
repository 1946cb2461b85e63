package pool_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"varve/internal/pool"
	"varve/internal/vfs/crashfs"
)

// TestEveryCrashPointOfRepair cuts the power at each operation that a repair does. What is left is as before, and repairing
// it again makes of it what the first would have, or repaired.
func TestEveryCrashPointOfRepair(t *testing.T) {
	t.Parallel()
	points, distinct := 0, 0
	for _, h := range hurts {
		if len(h.leaks) > 0 || h.name == "nothing" {
			continue
		}
		t.Run(h.name, func(t *testing.T) {
			d := damagedPool(t, h.whole)
			want := d.history[len(d.history)-1-h.past]
			d.p.Abandon()
			d.fs = d.fs.CrashImage(crashfs.KeepAll)
			d.opts.FS = d.fs
			h.do(d, t, d.fs)
			d.fs = d.fs.CrashImage(crashfs.KeepAll)
			d.opts.FS = d.fs
			rep, err := pool.CheckOffline(ctx, d.opts, nil)
			if err != nil {
				t.Fatal(err)
			}
			lost := listed(&rep.After).String()

			images := map[uint64]bool{}
			look := func(where string, fs *crashfs.FS) {
				points++
				if key := digest(t, fs); images[key] {
					return
				} else {
					images[key] = true
				}
				distinct++
				e := *d
				e.tb, e.fs, e.opts.FS = located{t, &where}, fs, fs
				p, err := pool.Open(ctx, e.opts)
				if err != nil {
					if h.refused == "" || !errors.Is(err, pool.ErrDamagedLog) && !errors.Is(err, pool.ErrNotPool) {
						e.tb.Fatalf("cannot be opened: %v", err)
					}
					again, err := pool.RepairOffline(ctx, e.opts, h.force, nil)
					if err != nil || listed(&again.After).String() != lost || len(own(&again.After)) > 0 {
						e.tb.Fatalf("repaired again: %+v, %v; want %s", again.After.Damage, err, lost)
					}
					if p, err = pool.Open(ctx, e.opts); err != nil {
						e.tb.Fatal(err)
					}
				}
				if got := e.unreadable(p, want).String(); got != lost {
					e.tb.Fatalf("unreadable: %s, want %s", got, lost)
				}
				p.Abandon()
			}
			d.fs.OnOp(func(n int, op crashfs.Op, _ error) {
				if n%thin(4) != 0 {
					return
				}
				policies := []crashfs.Policy{crashfs.DropAll, crashfs.Torn, crashfs.ProcessCrash}
				if *crashFull {
					policies = append(crashfs.Policies(len(d.fs.Pending())), crashfs.ProcessCrash, crashfs.Random(uint64(n)))
				}
				for _, p := range policies {
					look(fmt.Sprintf("crash after operation %d (%v), %v", n, op, p), d.fs.CrashImage(p))
				}
			})
			rep, err = pool.RepairOffline(ctx, d.opts, h.force, nil)
			d.fs.OnOp(nil)
			if err != nil || listed(&rep.After).String() != lost {
				t.Fatalf("%+v, %v", rep.After.Damage, err)
			}
			look("after the repair", d.fs.CrashImage(crashfs.DropAll))
		})
	}
	t.Logf("%d crashes, %d different images", points, distinct)
}

// Every operation of a repair fails once: it says so, and the next one mends what is left.
func TestEveryErrorPointOfRepair(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"leaves that replay needs", "both superblock slots", "flushed header"} {
		h := hurts[slices.IndexFunc(hurts, func(h hurt) bool { return h.name == name })]
		t.Run(name, func(t *testing.T) {
			d := damagedPool(t, false)
			want := d.history[len(d.history)-1-h.past]
			d.p.Abandon()
			d.fs = d.fs.CrashImage(crashfs.KeepAll)
			h.do(d, t, d.fs)
			for n := 0; ; n += thin(4) {
				e := *d
				e.fs = d.fs.CrashImage(crashfs.KeepAll)
				e.opts.FS = e.fs
				count := 0
				remove := e.fs.Inject(crashfs.Fault{Err: errIO, Times: 1, Match: func(op crashfs.Op) bool {
					if op.Kind >= crashfs.Create { // those before read
						count++
					}
					return count == n+1
				}})
				_, _ = pool.RepairOffline(ctx, e.opts, h.force, nil) // it says so, or it did not matter
				remove()
				e.fs = e.fs.CrashImage(crashfs.ProcessCrash)
				e.opts.FS = e.fs
				rep, err := pool.RepairOffline(ctx, e.opts, h.force, nil)
				if err != nil {
					t.Fatalf("with operation %d failing at first: %v", n, err)
				}
				e.open()
				if got, listed := e.unreadable(e.p, want).String(), listed(&rep.After).String(); got != listed {
					t.Fatalf("with operation %d failing at first: unreadable %s, listed %s", n, got, listed)
				}
				e.p.Abandon()
				if count <= n {
					t.Logf("%d operations", n)
					return
				}
			}
		})
	}
}
