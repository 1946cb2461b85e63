package demo

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"strings"
	"testing"
)

// TestDemoHoldsAndCleansUp runs the whole story.
func TestDemoHoldsAndCleansUp(t *testing.T) {
	t.Setenv("TMPDIR", shortTemp(t))
	var said bytes.Buffer
	if err := Run(t.Context(), &said); err != nil {
		t.Fatalf("%v\n%s", err, &said)
	}
	if steps := strings.Count(said.String(), "  ok "); steps != 14 {
		t.Errorf("%d steps:\n%s", steps, &said)
	}
	if left, err := os.ReadDir(os.Getenv("TMPDIR")); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestInterruptedDemoCleansUp(t *testing.T) {
	t.Setenv("TMPDIR", shortTemp(t))
	ctx, cancel := context.WithCancel(t.Context())
	out := writer(func(p []byte) {
		if bytes.Contains(p, []byte("import")) {
			cancel()
		}
	})
	if err := Run(ctx, out); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(os.Getenv("TMPDIR")); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

type writer func([]byte)

func (w writer) Write(p []byte) (int, error) { w(p); return len(p), nil }

// shortTemp is a directory whose path leaves room for sockets.
func shortTemp(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "v")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// TestPictureIsAPartitionedDisk: sector numbers of the one partition lie within the disk.
func TestPictureIsAPartitionedDisk(t *testing.T) {
	disk := picture()
	first, count := binary.LittleEndian.Uint32(disk[454:]), binary.LittleEndian.Uint32(disk[458:])
	if disk[450] != 0x83 || disk[510] != 0x55 || disk[511] != 0xaa || (int(first)+int(count))*512 != len(disk) {
		t.Errorf("partition of type %#x from %d, %d sectors", disk[450], first, count)
	}
	if at := binary.LittleEndian.Uint64(disk[first*512:]); at != uint64(first)*512 {
		t.Errorf("the pattern begins with %d", at)
	}
}
