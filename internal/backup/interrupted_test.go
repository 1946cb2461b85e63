package backup

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/google/uuid"

	"varve/internal/block"
	"varve/internal/block/memdisk"
	"varve/internal/objects/faulty"
	"varve/internal/repository"
)

var errCut = errors.New("cut off")

// cutDevice fails from an offset on.
type cutDevice struct {
	block.Device
	from int64
}

func (d *cutDevice) ReadAt(ctx context.Context, p []byte, off int64) error {
	if off+int64(len(p)) > d.from {
		return errCut
	}
	return d.Device.ReadAt(ctx, p, off)
}

func TestWhatAnInterruptedBackupStoredIsFoundByTheNext(t *testing.T) {
	ctx := context.Background()
	repo, err := repository.Create(ctx, faulty.New(), repository.CreateOptions{ChunkBytes: 64 << 10})
	if err != nil {
		t.Fatal(err)
	}
	const size = 64 << 20
	disk, err := memdisk.New(size)
	if err != nil {
		t.Fatal(err)
	}
	content := make([]byte, size)
	rand.NewChaCha8([32]byte{}).Read(content)
	op := &block.Op{Kind: block.OpWrite, Data: content, Length: size}
	if disk.Submit(ctx, []*block.Op{op}); op.Err != nil {
		t.Fatal(op.Err)
	}
	source := func(d block.Device) []*Source {
		return []*Source{{Device: d, Volume: "v", VolumeID: uuid.UUID{1}, Name: "v", Type: repository.Full}}
	}
	if _, err := Create(ctx, repo, source(&cutDevice{disk, size * 3 / 4}), Options{}); !errors.Is(err, errCut) {
		t.Fatalf("the interrupted backup ends with %v", err)
	}
	if all, _, err := repo.Backups(ctx); err != nil || len(all) > 0 {
		t.Fatalf("%d backups are visible, %v", len(all), err)
	}
	rec, err := Create(ctx, repo, source(disk), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if found := rec.Stats.DuplicateBytes; found < 30<<20 { // a pack is put when it is full
		t.Errorf("%d bytes of the interrupted backup were found", found)
	}
}
