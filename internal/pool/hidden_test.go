package pool_test

import (
	"fmt"
	"runtime"
	"testing"
)

// chain makes a volume of which so many snapshots were cloned and then deleted: each hidden state is the only thing that
// the next one descends from.
func (d *driver) chain(n int) {
	d.tb.Helper()
	d.createVolume("v", 16<<10)
	for i := range n {
		d.submit("v", writeOp(int64(i%4)*4096, 4096))
		s := fmt.Sprintf("s%d", i)
		d.snapshot(s, "v")
		d.cloneVolume("v", s, fmt.Sprintf("c%d", i))
	}
	for i := range n {
		d.deleteSnapshot("v", fmt.Sprintf("s%d", i))
	}
}

// What a checkpoint remembers of a chain of hidden states, each with a clone, grows as the chain does; reclaim and check agree on
// what of it is live.
func TestChainOfHiddenStates(t *testing.T) {
	allocated := func(n int) uint64 {
		d := newDriver(t)
		defer d.p.Abandon()
		d.chain(n)
		if got := d.p.Info().HiddenStates; got != n {
			t.Fatalf("%d of %d states are hidden", got, n)
		}
		for i := 0; i < n; i += 3 { // so that some blocks are had only further down
			d.submit(fmt.Sprintf("c%d", i), writeOp(0, 16<<10))
		}
		d.reclaim()
		d.verify()
		rep, err := d.p.Check(ctx, nil)
		if live := d.p.Info().LiveBytes; err != nil || len(rep.Damage) > 0 || rep.LiveBytes != live {
			t.Errorf("check finds %d live bytes, reclaim %d; %v, %v", rep.LiveBytes, live, rep.Damage, err)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		d.checkpoint()
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	if short, long := allocated(100), allocated(400); long > 6*short {
		t.Errorf("for a chain of four times the length a checkpoint allocates %d bytes instead of %d", long, short)
	}
}
