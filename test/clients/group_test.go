package clients

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"

	"varve/internal/block"
	"varve/internal/contract"
	"varve/internal/nbd/client"
)

// One writer stamps two volumes in turn, each stamp after the one before was
// acknowledged. What both hold at one instant never lacks the earlier of two stamps:
// in snapshots of the group, and after the daemon was killed.
func TestGroupSnapshotIsOneInstant(t *testing.T) {
	t.Parallel()
	data := filepath.Join(scratch(t), "d")
	d := serve(t, data)
	d.varve("volume", "create", "log", "--size", "64K")
	d.varve("volume", "create", "table", "--size", "64K")

	var written atomic.Int64
	ended := make(chan error, 1)
	first, second := d.connect("log"), d.connect("table")
	go func() {
		p := make([]byte, block.Size)
		for s := stamp(1); ; s++ {
			fill(p, 0, s)
			if err := errors.Join(write(first, p, 0), write(second, p, 0)); err != nil {
				ended <- err
				return
			}
			written.Store(int64(s))
		}
	}()

	const groups = 20
	for n := range groups {
		before := written.Load()
		await(t, "the writer goes on", func() bool { return written.Load() > before })
		made := ask[[]contract.Snapshot](d, "snapshot", "create", "log", "table", "--name", fmt.Sprintf("g%d", n))
		if len(made) != 2 || made[0].GroupID == "" || made[0].GroupID != made[1].GroupID || !made[0].CreatedAt.Equal(made[1].CreatedAt.Time) {
			t.Fatalf("not one group: %+v", made)
		}
	}
	d.kill()
	if err := <-ended; !errors.Is(err, client.ErrDisconnected) {
		t.Fatalf("the writer ended with %v", err)
	}

	d = serve(t, data)
	at := func(export string) stamp {
		t.Helper()
		c := d.connect(export)
		defer c.Close()
		p, err := read(c, 0, block.Size)
		must(t, err, "read %s", export)
		s, err := stamped(p, 0)
		must(t, err, "%s", export)
		return s
	}
	last := stamp(0)
	for n := range groups {
		earlier, later := at(fmt.Sprintf("log@g%d", n)), at(fmt.Sprintf("table@g%d", n))
		if later > earlier || earlier > later+1 {
			t.Fatalf("group %d has stamps %d and %d", n, earlier, later)
		}
		if earlier <= last {
			t.Fatalf("group %d has stamp %d and the one before it %d", n, earlier, last)
		}
		last = earlier
	}
	earlier, later := at("log"), at("table")
	if later > earlier || earlier > later+1 || later < stamp(written.Load()) {
		t.Fatalf("after the kill the volumes have stamps %d and %d of %d", earlier, later, written.Load())
	}
}
