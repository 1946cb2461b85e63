package pool

import (
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"reflect"
	"testing"

	"varve/internal/block"
	"varve/internal/pool/seglog"
	"varve/internal/vfs/crashfs"
)

// FuzzSuperblock: no bytes in a slot make a pool panic or hang; what is decoded means the same
// when it is written again.
func FuzzSuperblock(f *testing.F) {
	ctx := context.Background()
	template := crashfs.New()
	options := func(fs *crashfs.FS) Options {
		return Options{FS: fs, Dir: "/pool", Manual: true, SegmentBytes: 64 << 10, MapCacheBytes: 64 << 10}
	}
	p, err := createAndOpen(options(template))
	if err != nil {
		f.Fatal(err)
	}
	for range 3 {
		first := p.super.Load().encode()
		f.Add(first)
		dev, err := p.OpenVolume("a")
		if err != nil {
			f.Fatal(err)
		}
		op := &block.Op{Kind: block.OpWrite, Length: 8192, Data: make([]byte, 8192)}
		dev.Submit(ctx, []*block.Op{op})
		if err := errors.Join(op.Err, dev.Close(), p.Checkpoint(ctx)); err != nil {
			f.Fatal(err)
		}
	}
	if err := p.Close(ctx); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, slot []byte) {
		slot = append(make([]byte, 0, slotBytes), slot[:min(len(slot), slotBytes)]...)[:slotBytes]
		binary.LittleEndian.PutUint32(slot[12:], 0)
		binary.LittleEndian.PutUint32(slot[12:], seglog.Checksum(slot)) // so that the fuzzer gets behind it
		s, err := decodeSuperblock(slot)
		if err == nil {
			again, err := decodeSuperblock(s.encode())
			if err != nil || !reflect.DeepEqual(s, again) {
				t.Fatalf("%+v became %+v, %v", s, again, err)
			}
		}
		image := template.CrashImage(crashfs.KeepAll)
		file, err := image.Open("/pool/superblock")
		if err == nil {
			err = errors.Join(file.WriteAt([][]byte{slot, slot}, 0), file.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
		p, err := Open(ctx, options(image))
		if err != nil {
			if !errors.Is(err, ErrDamagedLog) && !errors.Is(err, ErrNewerFormat) && !errors.Is(err, ErrNotPool) {
				t.Fatalf("refused without a reason: %v", err)
			}
			return
		}
		if _, err := p.Check(ctx, nil); err != nil {
			t.Fatal(err)
		}
		if err := p.Close(ctx); err != nil && !errors.Is(err, fs.ErrExist) {
			t.Fatal(err)
		}
	})
}

// createAndOpen makes a pool with a volume "a".
func createAndOpen(o Options) (*Pool, error) {
	ctx := context.Background()
	if err := Create(ctx, o); err != nil {
		return nil, err
	}
	p, err := Open(ctx, o)
	if err == nil {
		_, err = p.CreateVolume(ctx, VolumeSpec{Name: "a", SizeBytes: 1 << 20})
	}
	return p, err
}
