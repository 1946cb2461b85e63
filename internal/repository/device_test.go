package repository_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	"varve/internal/backup"
	"varve/internal/block"
	"varve/internal/objects"
	"varve/internal/objects/faulty"
	"varve/internal/repository"
)

func TestDeviceIsReadAnywhereAndNeverWritten(t *testing.T) {
	st := faulty.New()
	repo := create(t, st)
	b := backUp(t, repo, nil, backup.Options{}, 1, 0, 2, 0, 0).Backups[0]
	d, err := open(t, st).OpenDevice(t.Context(), b.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if d.SizeBytes() != 5*64<<10 || d.Backup().ID != b.ID {
		t.Fatalf("%d bytes of %s", d.SizeBytes(), d.Backup().ID)
	}
	want := slicesOf(64<<10, 1, 0, 2, 0, 0)
	for _, r := range [][2]int{{0, 5 * 64 << 10}, {64<<10 - 1, 2}, {64<<10 - 1, 64<<10 + 2}, {2*64<<10 + 4095, 5000}, {5 * 64 << 10, 0}} {
		p := bytes.Repeat([]byte{9}, r[1])
		if err := d.ReadAt(t.Context(), p, int64(r[0])); err != nil || !bytes.Equal(p, want[r[0]:r[0]+r[1]]) {
			t.Errorf("%d bytes at %d: %v", r[1], r[0], err)
		}
	}
	for _, r := range [][2]int64{{-1, 1}, {5 * 64 << 10, 1}, {1, 5 * 64 << 10}} {
		if err := d.ReadAt(t.Context(), make([]byte, r[1]), r[0]); !errors.Is(err, block.ErrOutOfRange) {
			t.Errorf("%d bytes at %d: %v", r[1], r[0], err)
		}
		if _, err := d.Extents(t.Context(), r[0], r[1], 9); !errors.Is(err, block.ErrOutOfRange) {
			t.Errorf("extents of %d bytes at %d: %v", r[1], r[0], err)
		}
	}
	for _, c := range []struct {
		off, length int64
		limit       int
		want        string
	}{
		{0, 5 * 64 << 10, 9, "[{0 65536 false false} {65536 65536 true true} {131072 65536 false false} {196608 131072 true true}]"},
		{0, 5 * 64 << 10, 2, "[{0 65536 false false} {65536 65536 true true}]"},
		{65000, 1000, 9, "[{65000 536 false false} {65536 464 true true}]"},
		{200000, 100000, 1, "[{200000 100000 true true}]"},
	} {
		if got, err := d.Extents(t.Context(), c.off, c.length, c.limit); err != nil || fmt.Sprint(got) != c.want {
			t.Errorf("%+v: %v, %v", c, got, err)
		}
	}
	op := &block.Op{Kind: block.OpWrite, Data: []byte{1}, Length: 1}
	if d.Submit(t.Context(), []*block.Op{op}); !errors.Is(op.Err, block.ErrReadOnly) {
		t.Error(op.Err)
	}
	if err := d.Flush(t.Context()); err != nil {
		t.Error(err)
	}
}

func slicesOf(n int, numbers ...byte) (b []byte) {
	for _, i := range numbers {
		b = append(b, bytes.Repeat([]byte{i}, n)...)
	}
	return b
}

// A connection that ends is an error, and not the end of what there is.
func TestExtentsOfAMapThatIsCutOffAreAnError(t *testing.T) {
	st := faulty.New()
	b := backUp(t, create(t, st), nil, backup.Options{}, 1).Backups[0]
	d, err := open(t, st).OpenDevice(t.Context(), b.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	st.Inject(faulty.Fault{Pattern: "nodes/*/*", Err: fmt.Errorf("%w: %w", objects.ErrUnavailable, io.EOF)})
	if got, err := d.Extents(t.Context(), 0, 64<<10, 9); !errors.Is(err, objects.ErrUnavailable) {
		t.Fatalf("%v, %v", got, err)
	}
}

// Who gives up a read does not wait for a store that does not answer, and who waits for the same chunk is not harmed.
func TestReadIsGivenUpAtOnce(t *testing.T) {
	st := faulty.New()
	b := backUp(t, create(t, st), nil, backup.Options{}, 1).Backups[0]
	client := st.Client()
	repo := open(t, client)
	d, err := repo.OpenDevice(t.Context(), b.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	stalled, release := make(chan struct{}, 9), make(chan struct{})
	client.SetHook(func(_ context.Context, c faulty.Call) error {
		if !c.After && len(c.Name) > 6 && c.Name[:6] == "packs/" {
			stalled <- struct{}{}
			<-release
		}
		return nil
	})
	ctx, cancel := context.WithCancel(t.Context())
	first, second := make(chan error, 1), make(chan error, 1)
	go func() { first <- d.ReadAt(ctx, make([]byte, 4096), 0) }()
	<-stalled
	go func() { second <- d.ReadAt(t.Context(), make([]byte, 4096), 0) }()
	cancel()
	select {
	case err := <-first:
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("a cancelled read waits for the store")
	}
	close(release)
	if err := <-second; err != nil {
		t.Error(err)
	}
}

// Regions are passed on in order, wherever their chunks lie, and what nobody wants is not read.
func TestScanReadsWhatIsWanted(t *testing.T) {
	st := faulty.New()
	repo := create(t, st)
	b := backUp(t, repo, nil, backup.Options{}, 1, 2, 0, 1).Backups[0]
	b = backUp(t, repo, &b, backup.Options{}, 1, 3, 0, 1).Backups[0]
	repo = open(t, st)
	var seen []string
	err := repo.Scan(t.Context(), repo.Tree(b.Root), 0, 4, nil, 1, func(s *repository.Scanned) error {
		p, err := s.Block(15)
		seen = append(seen, fmt.Sprint(s.Index, p[:1], err))
		return nil
	})
	if err != nil || fmt.Sprint(seen) != "[0 [1] <nil> 1 [3] <nil> 3 [1] <nil>]" {
		t.Fatalf("%v, %v", seen, err)
	}
	for _, n := range st.Names() {
		if n[:5] == "packs" {
			st.Lose(n)
		}
	}
	repo = open(t, st)
	lost, err := 0, repo.Scan(t.Context(), repo.Tree(b.Root), 0, 4, nil, 3, func(s *repository.Scanned) error { return nil })
	if err != nil {
		t.Fatal(err) // of each chunk alone
	}
	err = repo.Scan(t.Context(), repo.Tree(b.Root), 1, 4, nil, 1, func(s *repository.Scanned) error {
		if _, err := s.Block(0); errors.Is(err, repository.ErrDamaged) {
			lost++
		}
		return nil
	})
	if err != nil || lost != 2 {
		t.Fatal(lost, err)
	}
	stop := errors.New("stop")
	if err := repo.Scan(t.Context(), repo.Tree(b.Root), 0, 4, nil, 2, func(*repository.Scanned) error { return stop }); !errors.Is(err, stop) {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	err = repo.Scan(ctx, repo.Tree(b.Root), 0, 4, nil, 1, func(*repository.Scanned) error { cancel(); return nil })
	if err != nil && !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}
