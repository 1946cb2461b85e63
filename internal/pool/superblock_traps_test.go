package pool_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path"
	"slices"
	"strings"
	"testing"

	"varve/internal/block"
	"varve/internal/pool"
	"varve/internal/vfs"
	"varve/internal/vfs/crashfs"
)

// superblocks on the disk: two slots of a block each.
const superblockPath = "/pool/superblock"

// slotOf is where the superblock of a checkpoint lies.
func slotOf(checkpoint uint64) int64 { return int64(checkpoint%2) * block.Size }

// The newest checkpoint's catalogue or superblock rots: the one before leads to the same state, and
// the operator is told.
func TestOlderSuperblockIsUsed(t *testing.T) {
	for name, hurt := range map[string]func(d *driver, fs *crashfs.FS){
		"catalogue": func(d *driver, fs *crashfs.FS) {
			segment, off := d.p.CatalogueAt()
			rot(t, fs, fmt.Sprintf("/pool/log/%016x.seg", segment), off+10)
		},
		"superblock": func(d *driver, fs *crashfs.FS) {
			rot(t, fs, superblockPath, slotOf(d.p.Info().Checkpoints)+200)
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := crashSetup(t)
			d.checkpoint()
			d.submit("a", writeOp(0, 9000))
			d.snapshot("between", "a")
			d.checkpoint()
			d.submit("a", writeOp(512, 9000))
			d.flush("a")
			image := d.fs.CrashImage(crashfs.DropAll)
			hurt(d, image)
			d.p.Abandon()
			var events []pool.Event
			d.opts.OnEvent = func(e pool.Event) { events = append(events, e) }
			d.fs, d.opts.FS = image, image
			d.open()
			if got, want := d.dump(d.p), d.present().String(); got != want {
				t.Fatalf("the pool holds\n%s\nthe model\n%s", got, want)
			}
			if rep, err := d.p.Check(ctx, nil); err != nil || len(rep.Damage) != 1 {
				t.Errorf("check finds %+v, %v", rep.Damage, err)
			}
			if !slices.ContainsFunc(events, func(e pool.Event) bool { return e.Kind == "damage" }) {
				t.Errorf("nobody is told: %v", events)
			}
			d.reopen() // the next checkpoint mends it
			d.verify()
			d.p.Abandon()
		})
	}
}

// Neither slot is sound: the pool is refused and left as it is.
func TestBothSuperblocksDamaged(t *testing.T) {
	d := crashSetup(t)
	d.checkpoint()
	d.p.Abandon()
	image := d.fs.CrashImage(crashfs.DropAll)
	rot(t, image, superblockPath, 20)
	rot(t, image, superblockPath, block.Size+20)
	d.demandRefused(image, pool.ErrDamagedLog, "superblock")
	image = d.fs.CrashImage(crashfs.DropAll)
	f, err := image.Open(superblockPath)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(0), f.Close()); err != nil {
		t.Fatal(err)
	}
	d.demandRefused(image, pool.ErrDamagedLog, "superblock")
}

// A pool of a newer format is refused, in words that say so, and left as it is.
func TestNewerFormatIsRefused(t *testing.T) {
	d := crashSetup(t)
	d.checkpoint()
	newest := d.p.Info().Checkpoints
	d.p.Abandon()
	image := d.fs.CrashImage(crashfs.DropAll)
	b := readAll(t, image, superblockPath, nil)[slotOf(newest):][:block.Size]
	le := binary.LittleEndian
	le.PutUint32(b[8:], le.Uint32(b[8:])+1)
	le.PutUint32(b[12:], 0)
	le.PutUint32(b[12:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	f, err := image.Open(superblockPath)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.WriteAt([][]byte{b}, slotOf(newest)), f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
	d.demandRefused(image, pool.ErrNewerFormat)
}

// A second process is refused and told who has the pool.
func TestSecondProcessIsRefused(t *testing.T) {
	o := pool.Options{FS: vfs.OS(), Dir: path.Join(t.TempDir(), "pool")}
	if err := pool.Create(ctx, o); err != nil {
		t.Fatal(err)
	}
	p, err := pool.Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Open(ctx, o); !errors.Is(err, vfs.ErrLocked) || !strings.Contains(err.Error(), fmt.Sprintf("process %d", os.Getpid())) {
		t.Errorf("the second ends with %v", err)
	}
	if err := p.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if err := reopen(o); err != nil {
		t.Errorf("after the first has closed it: %v", err)
	}
}
