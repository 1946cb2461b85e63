package pool_test

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"slices"
	"testing"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/vfs/crashfs"
)

// listen collects the kinds of the events from the next opening on.
func (d *driver) listen() *[]string {
	kinds := new([]string)
	d.opts.OnEvent = func(e pool.Event) { *kinds = append(*kinds, e.Kind) }
	return kinds
}

// follow goes on with an image, which must hold what the model does.
func (d *driver) follow(image *crashfs.FS) {
	d.tb.Helper()
	d.fs, d.opts.FS = image, image
	d.open()
	if got, want := d.dump(d.p), d.present().String(); got != want {
		d.tb.Fatalf("the pool holds\n%s\nthe model\n%s", got, want)
	}
}

// A write comes while a checkpoint is being synced, and is flushed: no header in the log says that
// what lies before it is durable, only the new superblock does. When the checkpoint's catalogue
// rots, it is no torn tail, with which the write would go.
func TestFlushedWriteSurvivesRotOfTheCatalogueBeforeIt(t *testing.T) {
	d := newDriver(t)
	d.createVolume("v", 64<<10)
	d.submit("v", writeOp(0, 4096))
	d.checkpoint()
	events := d.listen()
	k := d.putOn()
	d.submit("v", writeOp(4096, 4096))
	sync := k.hold(func(op crashfs.Op) bool { return op.Kind == crashfs.Sync && inLog(op) })
	done := make(chan error)
	go func() { done <- d.p.Checkpoint(ctx) }()
	<-sync.reached
	d.submit("v", writeOp(8192, 4096))
	close(sync.released)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	d.flush("v")
	image := d.fs.CrashImage(crashfs.DropAll)
	segment, off := d.p.CatalogueAt()
	d.p.Abandon()
	rot(t, image, segmentPath(segment), off+10)
	d.follow(image)
	if !slices.Contains(*events, pool.EventDamage) {
		t.Errorf("nobody is told of the rot: %v", *events)
	}
	d.p.Abandon()
}

func segmentPath(id uint64) string { return fmt.Sprintf("/pool/log/%016x.seg", id) }

// The newest checkpoint's map cannot be read where replay must change it: the checkpoint before
// it leads to the same state.
func TestOlderCheckpointIsUsedForADamagedMap(t *testing.T) {
	d := newDriver(t)
	d.createVolume("v", 64<<10)
	d.submit("v", writeOp(0, 4096))
	d.checkpoint()
	d.submit("v", writeOp(4096, 4096))
	d.checkpoint()
	d.submit("v", writeOp(8192, 4096))
	d.flush("v")
	image := d.fs.CrashImage(crashfs.DropAll)
	d.p.Abandon()
	all := batches(t, image)
	i := len(all) - 1
	var at int64
	for ; ; i-- {
		at = all[i].offset + all[i].headerBlocks*block.Size
		if b := readAll(t, image, all[i].file, nil); all[i].payloadBlocks > 0 && string(b[at:at+4]) == "VNOD" {
			break
		}
	}
	rot(t, image, all[i].file, at+20)
	events := d.listen()
	d.follow(image)
	if !slices.Contains(*events, pool.EventDamage) {
		t.Errorf("nobody is told of the damage: %v", *events)
	}
	d.reopen() // which writes another checkpoint
	d.verify()
	d.p.Abandon()
}

// Headers are read with much of what follows them. A sector in that which cannot be read
// takes away its block, and nothing else.
func TestBadSectorInPayloadTakesThatBlockOnly(t *testing.T) {
	const bad = 9 // block of the volume
	d := newDriver(t)
	d.createVolume("v", 64<<10)
	d.submit("v", writeOp(0, 64<<10))
	d.flush("v")
	written := last(t, d.fs, 16)
	d.submit("v", writeOp(0, 4096))
	d.flush("v")
	d.submit("v", writeOp(4096, 4096)) // says that the others were durable
	d.p.Abandon()
	d.fs = d.fs.CrashImage(crashfs.ProcessCrash)
	d.opts.FS = &disk{FS: d.fs, bad: &crashfs.Op{Path: written.file, Offset: written.offset + (written.headerBlocks+bad)*block.Size + 512, Length: 512}}
	d.open()
	dev, err := d.p.OpenVolume("v")
	if err != nil {
		t.Fatal(err)
	}
	for lba := range int64(16) {
		got := make([]byte, block.Size)
		err := dev.ReadAt(ctx, got, lba*block.Size)
		switch {
		case lba == bad && (!errors.Is(err, block.ErrDamaged) || !errors.Is(err, errIO)):
			t.Errorf("reading the bad block ends with %v", err)
		case lba != bad && (err != nil || !bytes.Equal(got, d.present().volumes["v"].blocks[lba])):
			t.Errorf("block %d: %v, or other bytes", lba, err)
		}
	}
	if err := dev.Close(); err != nil {
		t.Fatal(err)
	}
	d.p.Abandon()
}

// A sector of one slot of the superblock cannot be read: the other slot leads to the same state,
// and the operator is told. Where neither can be read, the error says why.
func TestBadSectorInTheSuperblock(t *testing.T) {
	d := newDriver(t)
	d.createVolume("v", 64<<10)
	for range 2 {
		d.submit("v", writeOp(0, 4096))
		d.checkpoint()
	}
	d.submit("v", writeOp(4096, 4096))
	d.p.Abandon()
	for slot := range int64(2) {
		e := *d
		e.fs = d.fs.CrashImage(crashfs.KeepAll)
		events := e.listen()
		e.opts.FS = &disk{FS: e.fs, bad: &crashfs.Op{Path: superblockPath, Offset: slot*block.Size + 1024, Length: 512}}
		e.open()
		if got, want := e.dump(e.p), e.present().String(); got != want {
			t.Fatalf("the pool holds\n%s\nthe model\n%s", got, want)
		}
		if !slices.Contains(*events, pool.EventDamage) {
			t.Errorf("slot %d: nobody is told: %v", slot, *events)
		}
		e.p.Abandon()
	}
	o := d.opts
	o.FS = &disk{FS: d.fs, bad: &crashfs.Op{Path: superblockPath, Length: 2 * block.Size}}
	if _, err := pool.Open(ctx, o); !errors.Is(err, pool.ErrDamagedLog) || !errors.Is(err, errIO) {
		t.Errorf("without a superblock opening ends with %v", err)
	}
}

// The superblock's sync fails and the kernel goes on to show what was written. The pool is opened
// by what is on the disk: else the next checkpoint would overwrite the only slot that is there.
func TestSuperblockWhoseSyncFailedIsNotBelieved(t *testing.T) {
	d := newDriver(t)
	d.createVolume("v", 64<<10)
	d.submit("v", writeOp(0, 4096))
	d.checkpoint()
	on := d.p.Info().Checkpoints
	d.submit("v", writeOp(4096, 4096))
	d.fs.Inject(crashfs.Fault{Err: errIO, Times: 1, Match: func(op crashfs.Op) bool {
		return op.Kind == crashfs.Sync && op.Path == superblockPath
	}})
	if err := d.p.Checkpoint(ctx); !errors.Is(err, errIO) {
		t.Fatalf("the checkpoint ends with %v", err)
	}
	d.p.Abandon()
	d.open()
	d.verify()
	if n := d.p.Info().Checkpoints; n != on {
		t.Errorf("opened from checkpoint %d, while %d is on the disk", n, on)
	}
	d.checkpoint()
	d.p.Abandon()
	d.crash(crashfs.DropAll)
	if n := d.p.Info().Checkpoints; n != on+1 {
		t.Errorf("opened from checkpoint %d, while %d is on the disk", n, on+1)
	}
	d.verify()
	d.p.Abandon()
}

// A file that has a segment's suffix and not a segment's name is none of the pool's. It could get in
// the way of what the pool writes, so the pool is refused, and the file named.
func TestStraySegmentNamesAreRefused(t *testing.T) {
	d := newDriver(t)
	d.createVolume("v", 64<<10)
	d.submit("v", writeOp(0, 4096))
	d.flush("v")
	d.p.Abandon()
	for _, name := range []string{
		"0100000000000000.seg", // more than an address has room for
		"0000000000000000.seg", // begins at 1
		"2.seg", "00000000000000AB.seg", "+000000000000002.seg", "0000000000000001 (copy).seg", ".seg",
	} {
		image := d.fs.CrashImage(crashfs.KeepAll)
		addFile(t, image, path.Join("/pool/log", name))
		d.demandRefused(image, pool.ErrDamagedLog, name)
	}
	addFile(t, d.fs, "/pool/log/notes.txt")
	d.crash(crashfs.KeepAll)
	d.verify()
	d.p.Abandon()
}

func addFile(t *testing.T, fs *crashfs.FS, name string) {
	t.Helper()
	f, err := fs.Create(name)
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// The event says that the pool was not closed in order.
func TestRecoveredIsToldAfterACrashOnly(t *testing.T) {
	d := newDriver(t)
	d.createVolume("v", 64<<10)
	events := d.listen()
	d.reopen()
	d.submit("v", writeOp(0, 4096))
	d.reopen()
	d.reopen()
	if len(*events) > 0 {
		t.Errorf("after closing in order: %v", *events)
	}
	d.submit("v", writeOp(0, 4096))
	d.p.Abandon()
	d.open()
	if !slices.Equal(*events, []string{pool.EventRecovered}) {
		t.Errorf("after a crash: %v", *events)
	}
	d.p.Abandon()
}
