package clients

import (
	"context"
	"slices"
	"testing"

	"varve/internal/block"
	"varve/internal/contract"
)

// A quota refuses what would exceed it and nothing else: clients read, discard, delete and go on.
func TestQuota(t *testing.T) {
	t.Parallel()
	d := serve(t, scratch(t))
	d.varve("pool", "set", "--quota", "256M")
	d.varve("volume", "create", "web", "--size", "320M")
	d.varve("volume", "create", "other", "--size", "1M")
	c := d.connect("web")
	defer c.Close()
	head := fillUp(t, c, 2)
	if n := int64(len(head) - countOf(head, 0)); n*block.Size < 192<<20 {
		t.Errorf("of a quota of 256 MiB only %d MiB could be written", n*block.Size>>20)
	}
	must(t, flush(c), "flush")
	got, err := readImage(c)
	must(t, err, "read at the quota")
	if !slices.Equal(got, head) {
		t.Fatal("the volume does not hold what was acknowledged")
	}
	if pool := ask[contract.Pool](d, "pool", "show"); pool.PhysicalBytes > 256<<20 || pool.FullPercent < 95 {
		t.Errorf("at its quota the pool is %d%% full and takes %d MiB", pool.FullPercent, pool.PhysicalBytes>>20)
	}
	d.refused(1, "full", "status", "--check")
	for _, kind := range []string{"space-low", "space-full"} {
		if !slices.ContainsFunc(ask[[]contract.Event](d, "event", "list"), func(e contract.Event) bool { return e.Kind == kind }) {
			t.Errorf("no event %s", kind)
		}
	}

	// What gives space back can be done, and then writes go on.
	d.varve("volume", "delete", "other")
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	const half = 96 << 20
	must(t, c.Trim(ctx, 0, half), "discard at the quota")
	for i := range half / block.Size {
		head[i] = 0
	}
	p := make([]byte, 1<<20)
	fill(p, 0, 9)
	for off := int64(0); off < 32<<20; off += int64(len(p)) {
		fill(p, off/block.Size, 9)
		must(t, write(c, p, off), "write after a discard")
		for i := range int64(len(p)) / block.Size {
			head[off/block.Size+i] = 9
		}
	}
	got, err = readImage(c)
	must(t, err, "read")
	if !slices.Equal(got, head) {
		t.Fatal("the volume does not hold what was acknowledged")
	}
	d.varve("status", "--check")
	d.varve("pool", "set", "--quota", "none")
	must(t, write(c, p, 300<<20), "write without a quota")
	d.checkPool()
	d.stop()
}

func countOf(im image, s stamp) (n int) {
	for _, x := range im {
		if x == s {
			n++
		}
	}
	return n
}
