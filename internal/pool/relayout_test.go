package pool_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/pool/blockmap"
	"varve/internal/pool/seglog"
	"varve/internal/vfs/crashfs"
)

// pieces counts in how many pieces the entries newer than an epoch lie, of all regions of 1 MiB.
func pieces(entries []blockmap.Entry, since uint64) int {
	n := 0
	var behind seglog.Addr
	for lba, e := range entries {
		if lba%256 == 0 {
			behind = 0
		}
		if e.Mapped() && e.Epoch > since {
			if e.Addr != behind {
				n++
			}
			behind = e.Addr.Plus(block.Size)
		}
	}
	return n
}

// relayouted relayouts volume "a" and compares what it did with what is wanted.
func (d *driver) relayouted(want pool.Relayouted) {
	d.tb.Helper()
	got, err := d.p.Relayout(ctx, "a", pool.RelayoutOptions{})
	if err != nil || got != want {
		d.tb.Fatalf("relayout: %+v, want %+v; %v", got, want, err)
	}
	d.verify()
}

func TestRelayoutPutsAVolumeInOrder(t *testing.T) {
	const size = 3 << 20
	d := newDriver(t)
	d.createVolume("a", size)
	for range 2 {
		d.scatter("a")
	}
	d.submit("a", op(block.OpDiscard, 64<<10, 8<<10)) // holes do not part a piece
	before := d.p.Entries("a")
	if n := pieces(before, 0); n != size/block.Size-2 {
		t.Fatalf("%d pieces", n)
	}
	mapped := int64(size - 8<<10)
	live := d.p.Info().LiveBytes
	d.relayouted(pool.Relayouted{Moved: mapped})
	ordered := func() {
		t.Helper()
		after := d.p.Entries("a")
		if n := pieces(after, 0); n != 3 {
			t.Errorf("%d pieces", n)
		}
		for lba, e := range after {
			if e.Epoch != before[lba].Epoch || e.CRC != before[lba].CRC || e.Mapped() != before[lba].Mapped() {
				t.Fatalf("block %d was %+v and is %+v", lba, before[lba], e)
			}
		}
	}
	ordered()
	if got := d.p.Info().LiveBytes; got != live {
		t.Errorf("live were %d bytes, now %d", live, got)
	}
	d.relayouted(pool.Relayouted{Ordered: mapped})

	d.crash(crashfs.DropAll) // what is done is durable, and replayed
	ordered()
	d.relayouted(pool.Relayouted{Ordered: mapped})
	done, err := d.p.Reclaim(ctx)
	if err != nil || done.FreedBytes < mapped {
		t.Errorf("the old places are given back: %+v, %v", done, err)
	}
	d.reopen()
	ordered()

	d.submit("a", writeOp(1<<20+40<<10, 4096), writeOp(1<<20+80<<10, 4096)) // leaves five pieces
	d.relayouted(pool.Relayouted{Ordered: mapped - 1<<20, Moved: 1 << 20})
}

// What a volume shares with snapshots and clones stays where it is, also while the volume has blocks
// of its own among it.
func TestRelayoutLeavesWhatIsShared(t *testing.T) {
	const size = 2 << 20
	d := newDriver(t)
	d.createVolume("a", size)
	d.scatter("a")
	d.snapshot("s", "a")
	d.cloneVolume("a", "s", "c")
	shared := d.p.SnapshotEntries(pool.SnapshotRef{Volume: "a", Name: "s"})
	d.relayouted(pool.Relayouted{Shared: size})

	for lba := int64(254); lba >= 0; lba -= 2 {
		d.submit("a", writeOp(lba*block.Size, block.Size))
	}
	since := shared[0].Epoch
	if n := pieces(d.p.Entries("a"), since); n != 128 {
		t.Fatalf("%d pieces", n)
	}
	usage := func() (u [2]pool.Usage) {
		for i, name := range []string{"a", "c"} {
			var err error
			if u[i], err = d.p.VolumeUsage(ctx, name); err != nil {
				t.Fatal(err)
			}
		}
		return u
	}
	held := usage()
	d.relayouted(pool.Relayouted{Moved: 512 << 10, Shared: size - 512<<10})
	if n := pieces(d.p.Entries("a"), since); n != 1 {
		t.Errorf("%d pieces", n)
	}
	if now := usage(); now != held {
		t.Errorf("usage was %+v and is %+v", held, now)
	}
	unchanged := func() {
		t.Helper()
		now := d.p.SnapshotEntries(pool.SnapshotRef{Volume: "a", Name: "s"})
		clone := d.p.Entries("c")
		for lba, e := range shared {
			if now[lba] != e || clone[lba] != e {
				t.Fatalf("block %d of the snapshot was %+v and is %+v, of the clone %+v", lba, e, now[lba], clone[lba])
			}
		}
	}
	unchanged()
	d.reclaim()
	d.verify()

	// Once the snapshot and the clone are gone everything is the volume's own, with its older epochs.
	d.snapshot("t", "a")
	d.submit("a", writeOp(0, 4096))
	d.deleteVolume("c")
	d.deleteSnapshots("a", "s", "t")
	d.relayouted(pool.Relayouted{Moved: size})
	d.reclaim()
	d.snapshot("u", "a")
	d.scatter("a")
	d.reopen()
	d.verify()
	d.rollback("a", "u")
	d.relayouted(pool.Relayouted{Shared: size})
	d.reclaim()
	d.verify()
}

// aBlock tells reads of data.
func aBlock(op crashfs.Op) bool {
	return op.Kind == crashfs.Read && inLog(op) && op.Length%block.Size == 0
}

// A client's write that comes between reading and moving is not lost, nor taken back.
func TestRelayoutLosesNoWrite(t *testing.T) {
	d := newDriver(t)
	d.createVolume("a", 1<<20)
	d.scatter("a")
	k := d.putOn()
	h := k.hold(aBlock)
	result := make(chan pool.Relayouted)
	go func() {
		got, err := d.p.Relayout(ctx, "a", pool.RelayoutOptions{})
		if err != nil {
			t.Error(err)
		}
		result <- got
	}()
	<-h.reached
	d.submit("a", writeOp(8<<10, 6<<10), op(block.OpDiscard, 40<<10, 4<<10))
	d.submit("a", writeOp(40<<10, 4<<10)) // and what was discarded is there again
	d.submit("a", op(block.OpDiscard, 80<<10, 4<<10))
	close(h.released)
	if got, want := <-result, (pool.Relayouted{Moved: 1<<20 - 16<<10, Changed: 16 << 10}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	d.verify()
	d.flush("a")
	d.crash(crashfs.DropAll)
	d.verify()

	// A snapshot in between makes everything shared.
	d.scatter("a")
	k = d.putOn()
	h = k.hold(aBlock)
	go func() {
		got, err := d.p.Relayout(ctx, "a", pool.RelayoutOptions{})
		if err != nil {
			t.Error(err)
		}
		result <- got
	}()
	<-h.reached
	d.snapshot("s", "a")
	close(h.released)
	if got := <-result; got.Moved != 0 {
		t.Errorf("moved what a snapshot holds: %+v", got)
	}
	d.verify()
}

// A block that cannot be read stays damaged, where it is; all others are moved.
func TestRelayoutMovesNoDamage(t *testing.T) {
	d := newDriver(t)
	var events []pool.Event
	d.opts.OnEvent = func(e pool.Event) { events = append(events, e) }
	d.reopen()
	d.createVolume("a", 1<<20)
	d.scatter("a")
	d.flush("a")
	bad := d.p.Entries("a")[77]
	rot(t, d.fs, segmentPath(bad.Addr.Segment()), bad.Addr.Offset()+100)
	got, err := d.p.Relayout(ctx, "a", pool.RelayoutOptions{})
	if !errors.Is(err, block.ErrDamaged) || got != (pool.Relayouted{Moved: 1<<20 - block.Size, Damaged: block.Size}) {
		t.Errorf("%+v, %v", got, err)
	}
	if now := d.p.Entries("a")[77]; now != bad {
		t.Errorf("the damaged block was %+v and is %+v", bad, now)
	}
	if len(events) != 1 || events[0].Kind != pool.EventDamage {
		t.Errorf("events %+v", events)
	}
	rot(t, d.fs, segmentPath(bad.Addr.Segment()), bad.Addr.Offset()+100) // back again
	d.verify()
}

// What a repair has recorded as lost is not moved; what was moved before it and is replayed behind it is there again.
func TestRelayoutMovesNothingLost(t *testing.T) {
	d := newDriver(t)
	d.createVolume("a", 40<<10)
	d.scatter("a")
	before := d.p.Entries("a")
	if err := d.p.LoseLeaf("a"); err != nil {
		t.Fatal(err)
	}
	got, err := d.p.Relayout(ctx, "a", pool.RelayoutOptions{})
	if !errors.Is(err, block.ErrDamaged) || got != (pool.Relayouted{Damaged: 40 << 10}) {
		t.Errorf("%+v, %v", got, err)
	}
	move := seglog.Entry{Kind: seglog.KindMove, Volume: 1, Count: 10, Epoch: before[0].Epoch, Addr: before[9].Addr}
	for i := range before { // the last block was written first, so that they lie in the opposite order
		move.CRCs = append(move.CRCs, before[9-i].CRC)
	}
	if err := d.p.Replay(move); err != nil {
		t.Fatal(err)
	}
	want := d.present().volumes["a"].blocks
	b := make([]byte, block.Size)
	dev, err := d.p.OpenVolume("a")
	if err != nil {
		t.Fatal(err)
	}
	for i := range int64(10) {
		if err := dev.ReadAt(ctx, b, i*block.Size); err != nil || !bytes.Equal(b, want[9-i]) {
			t.Errorf("block %d: %v", i, err)
		}
	}
	if err := dev.Close(); err != nil {
		t.Fatal(err)
	}
}

// What a log says was moved must be what is there.
func TestMoveOfOtherBlocksIsDamage(t *testing.T) {
	d := newDriver(t)
	d.createVolume("a", 1<<20)
	d.submit("a", writeOp(0, 8192))
	e := d.p.Entries("a")[:3]
	move := seglog.Entry{Kind: seglog.KindMove, Volume: 1, Count: 1, Epoch: e[0].Epoch, Addr: e[1].Addr}
	for name, change := range map[string]func(*seglog.Entry){
		"another checksum": func(m *seglog.Entry) { m.CRCs[0]++ },
		"a hole":           func(m *seglog.Entry) { m.LBA = 2 },
		"another epoch":    func(m *seglog.Entry) { m.Epoch++ },
		"no such volume":   func(m *seglog.Entry) { m.Volume = 9 },
		"beyond all":       func(m *seglog.Entry) { m.LBA = blockmap.MaxBlocks },
	} {
		m := move
		m.CRCs = []uint32{e[0].CRC}
		change(&m)
		if err := d.p.Replay(m); !errors.Is(err, pool.ErrDamagedLog) {
			t.Errorf("%s: %v", name, err)
		}
		d.verify()
	}
	move.CRCs = []uint32{e[0].CRC}
	if err := d.p.Replay(move); err != nil || d.p.Entries("a")[0].Addr != e[1].Addr {
		t.Errorf("a sound one: %v", err)
	}
}

func TestRelayoutRefusals(t *testing.T) {
	d := newDriver(t)
	d.createVolume("a", 2<<20)
	d.scatter("a")
	if _, err := d.p.Relayout(ctx, "b", pool.RelayoutOptions{}); !errors.Is(err, pool.ErrNotFound) {
		t.Errorf("no such volume: %v", err)
	}
	ended, end := context.WithCancel(ctx)
	end()
	if _, err := d.p.Relayout(ended, "a", pool.RelayoutOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	stop := errors.New("stop")
	steps := 0
	var inner error
	got, err := d.p.Relayout(ctx, "a", pool.RelayoutOptions{Progress: func(done, total int64) error {
		if steps++; total != 2<<20 || done != int64(steps-1)<<20 {
			t.Errorf("step %d: %d of %d", steps, done, total)
		}
		if steps == 2 {
			return stop
		}
		_, inner = d.p.Relayout(ctx, "a", pool.RelayoutOptions{})
		return nil
	}})
	if !errors.Is(err, stop) || got.Moved+got.Ordered != 1<<20 {
		t.Errorf("stopped in the middle: %+v, %v", got, err)
	}
	if !errors.Is(inner, pool.ErrInUse) {
		t.Errorf("twice at once: %v", inner)
	}
	if _, err = d.p.Relayout(ctx, "a", pool.RelayoutOptions{Progress: func(int64, int64) error {
		d.deleteVolume("a")
		return nil
	}}); !errors.Is(err, pool.ErrNotFound) {
		t.Errorf("deleted meanwhile: %v", err)
	}
	d.verify()
	d.createVolume("a", 1<<20)
	d.scatter("a")
	if _, err = d.p.Relayout(ctx, "a", pool.RelayoutOptions{Progress: func(int64, int64) error { return d.p.Close(ctx) }}); !errors.Is(err, block.ErrClosed) {
		t.Errorf("closed meanwhile: %v", err)
	}
}

// Where the disk has no room to spare nothing is moved, after reclaim was asked to make some.
func TestRelayoutLeavesRoomToClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDriver(t)
		d.createVolume("a", 1<<20)
		d.scatter("a")
		d.scatter("a")
		before := d.p.Entries("a")
		d.fs.SetCapacity(200 << 20)
		got, err := d.p.Relayout(ctx, "a", pool.RelayoutOptions{})
		if !errors.Is(err, block.ErrNoSpace) || got != (pool.Relayouted{}) {
			t.Errorf("%+v, %v", got, err)
		}
		if d.p.Info().ReclaimedBytes == 0 {
			t.Error("nothing was given back")
		}
		for lba, e := range d.p.Entries("a") {
			if e != before[lba] {
				t.Fatalf("block %d moved", lba)
			}
		}
		d.verify()
		go func() { // room comes while it waits
			time.Sleep(5 * time.Second)
			d.fs.SetCapacity(400 << 20)
		}()
		if got, err := d.p.Relayout(ctx, "a", pool.RelayoutOptions{}); err != nil || got.Moved != 1<<20 {
			t.Errorf("%+v, %v", got, err)
		}
		d.verify()
	})
}

// A batch that the disk has no room for leaves everything as it was.
func TestRelayoutOnAFullDisk(t *testing.T) {
	d := newDriver(t)
	d.createVolume("a", 1<<20)
	d.scatter("a")
	remove := d.fs.Inject(crashfs.Fault{Err: errNoSpace, Times: 1, Prefix: 5000, Match: func(op crashfs.Op) bool { return op.Kind == crashfs.Write }})
	got, err := d.p.Relayout(ctx, "a", pool.RelayoutOptions{})
	remove()
	if !errors.Is(err, block.ErrNoSpace) || got != (pool.Relayouted{}) {
		t.Errorf("%+v, %v", got, err)
	}
	d.verify()
	d.relayouted(pool.Relayouted{Moved: 1 << 20})
	if !bytes.Contains([]byte(err.Error()), []byte(`relayout volume "a"`)) {
		t.Errorf("the error does not say what failed: %v", err)
	}
}

// A volume that is deleted while its relayout waits, and whose space is given back, is gone: nothing of it is damaged.
func TestRelayoutOfADeletedVolumeTellsNoDamage(t *testing.T) {
	d := newDriver(t)
	var events []pool.Event
	d.opts.OnEvent = func(e pool.Event) { events = append(events, e) }
	d.reopen()
	reclaimed := func() {
		d.deleteVolume("a")
		if _, err := d.p.Reclaim(ctx); err != nil {
			t.Error(err)
		}
	}
	// While it rests between two steps, and then within one, before the first block is read.
	for _, within := range []bool{false, true} {
		d.createVolume("a", 2<<20)
		d.scatter("a")
		steps := 0
		o := pool.RelayoutOptions{Progress: func(int64, int64) error {
			if steps++; steps == 2 && !within {
				reclaimed()
			}
			return nil
		}}
		var got pool.Relayouted
		var err error
		if within {
			h := d.putOn().hold(aBlock)
			ended := make(chan struct{})
			go func() {
				got, err = d.p.Relayout(ctx, "a", o)
				close(ended)
			}()
			<-h.reached
			reclaimed()
			close(h.released)
			<-ended
		} else {
			got, err = d.p.Relayout(ctx, "a", o)
		}
		if !errors.Is(err, pool.ErrNotFound) || got.Damaged > 0 {
			t.Errorf("within a step %t: %+v, %v", within, got, err)
		}
	}
	if len(events) > 0 {
		t.Errorf("%d events, the first %+v", len(events), events[0])
	}
	d.p.Abandon()
}

// A block that a client has met as damaged, or an earlier relayout, is not told again.
func TestRelayoutTellsDamageOnce(t *testing.T) {
	d := newDriver(t)
	var events []pool.Event
	d.opts.OnEvent = func(e pool.Event) { events = append(events, e) }
	d.reopen()
	d.createVolume("a", 1<<20)
	d.scatter("a")
	d.flush("a")
	for _, lba := range []int64{7, 77} {
		bad := d.p.Entries("a")[lba].Addr
		rot(t, d.fs, segmentPath(bad.Segment()), bad.Offset()+100)
	}
	dev := openVolume(t, d.p, "a")
	if err := dev.ReadAt(ctx, make([]byte, block.Size), 7*block.Size); !errors.Is(err, block.ErrDamaged) {
		t.Fatal(err)
	}
	if err := dev.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		d.submit("a", writeOp(40<<10, 4096), writeOp(80<<10, 4096), writeOp(120<<10, 4096))
		if _, err := d.p.Relayout(ctx, "a", pool.RelayoutOptions{}); !errors.Is(err, block.ErrDamaged) {
			t.Error(err)
		}
	}
	if len(events) != 2 || events[1].Kind != pool.EventDamage || !strings.Contains(events[1].Message, "moving 4096 bytes at 315392") {
		t.Errorf("%+v", events)
	}
	d.p.Abandon()
}
