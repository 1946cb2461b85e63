package backup

import (
	"context"
	"encoding/binary"
	"runtime"
	"testing"

	"github.com/google/uuid"

	"varve/internal/block"
	"varve/internal/block/memdisk"
	"varve/internal/objects/faulty"
	"varve/internal/repository"
)

// vast is a device of 64 TiB with some blocks, stride blocks apart.
type vast struct {
	block.Device
	blocks, stride int64
	version        uint64
}

func newVast(t *testing.T, blocks int64) *vast {
	t.Helper()
	d, err := memdisk.New(block.Size)
	if err != nil {
		t.Fatal(err)
	}
	return &vast{Device: d, blocks: blocks, stride: block.MaxDeviceBytes / block.Size / blocks}
}

func (d *vast) SizeBytes() int64 { return block.MaxDeviceBytes }

func (d *vast) ReadAt(_ context.Context, p []byte, off int64) error {
	clear(p)
	for at := off / block.Size * block.Size; at < off+int64(len(p)); at += block.Size {
		if lba := at / block.Size; lba%d.stride == 0 && lba/d.stride < d.blocks && at >= off {
			binary.LittleEndian.PutUint64(p[at-off:], uint64(lba)+1)
			binary.LittleEndian.PutUint64(p[at-off+8:], d.version)
		}
	}
	return nil
}

func (d *vast) Extents(_ context.Context, off, length int64, limit int) (out []block.Extent, _ error) {
	step := d.stride * block.Size
	for at, end := off, off+length; at < end && len(out) < limit; {
		e := block.Extent{Offset: at}
		if n := at / step; at-n*step < block.Size && n < d.blocks {
			e.Length = min(n*step+block.Size, end) - at
		} else {
			next := (n + 1) * step
			if n+1 >= d.blocks {
				next = end
			}
			e.Length, e.Hole, e.Zero = min(next, end)-at, true, true
		}
		out = append(out, e)
		at += e.Length
	}
	return out, nil
}

// A device of 64 TiB with blocks far apart, each of them changed, takes the memory of a small one.
func TestMemoryDoesNotGrowWithTheVolume(t *testing.T) {
	peak := func(blocks int64) uint64 {
		repo := newRepo(t, faulty.New(), 64<<10)
		var highest uint64
		look := func(int64, int64) {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			highest = max(highest, m.HeapInuse)
		}
		d := newVast(t, blocks)
		var base *repository.Backup
		for _, typ := range []repository.Type{repository.Full, repository.Incremental, repository.Incremental} {
			s := &Source{Device: d, Volume: "v", VolumeID: uuid.UUID{1}, Name: "v", Type: typ, Base: base}
			if base != nil {
				d.version++
				if d.version == 1 { // the other compares everything
					s.Changes = func(ctx context.Context, visit func(off, length int64) error) error {
						for i := range d.blocks {
							if err := visit(i*d.stride*block.Size, block.Size); err != nil {
								return err
							}
						}
						return nil
					}
				}
			}
			rec, err := Create(t.Context(), repo, []*Source{s}, Options{Progress: func(done, total int64) {
				if done>>16%64 == 0 {
					look(done, total)
				}
			}})
			if err != nil {
				t.Fatal(err)
			}
			base = &rec.Backups[0]
			if base.MappedBytes != blocks*block.Size || base.Mismatched > 0 {
				t.Fatalf("%+v", base)
			}
		}
		if v, err := Verify(t.Context(), repo, *base, look); err != nil || v.Bytes != blocks*block.Size || len(v.Lost) > 0 {
			t.Fatal(v, err)
		}
		return highest
	}
	few, many := peak(500), peak(5000)
	if many > few+64<<20 {
		t.Errorf("%d MiB with 500 blocks, %d MiB with 5000", few>>20, many>>20)
	}
}

// What a backup of no change asks of the store is a handful, whatever the volume and its history.
func TestBackupOfNoChangeAsksLittle(t *testing.T) {
	requests := func(backups int) int64 {
		st := faulty.New()
		repo := newRepo(t, st, 64<<10)
		content := noise(8 << 20)
		none := func(context.Context, func(off, length int64) error) error { return nil }
		base := &one(t, repo, content, nil, nil).Backups[0]
		for range backups {
			base = &one(t, repo, content, base, none).Backups[0]
		}
		rec := one(t, repo, content, base, none)
		return rec.Stats.Requests
	}
	if few, many := requests(1), requests(30); many > few || many > 20 {
		t.Errorf("%d requests after a backup, %d after 30", few, many)
	}
}
