package raw_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"varve/internal/block"
	"varve/internal/image/imagetest"
	"varve/internal/image/raw"
)

func open(t testing.TB, path string) *raw.Device {
	t.Helper()
	d, err := raw.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func TestContentAndExtents(t *testing.T) {
	for _, size := range []int{512, 1 << 20, 5<<20 + 512} {
		path := filepath.Join(t.TempDir(), "disk")
		want := imagetest.RandomFile(t, path, size, uint64(size))
		d := open(t, path)
		if len(d.Warnings()) != 0 {
			t.Errorf("warnings %q", d.Warnings())
		}
		imagetest.CheckContent(t, d, want)
		imagetest.CheckExtents(t, d, want)
	}
}

func TestOddSizeGoesOnWithZeros(t *testing.T) {
	for _, hole := range []bool{false, true} {
		path := filepath.Join(t.TempDir(), "disk")
		content := make([]byte, 70_001)
		if !hole {
			content[70_000] = 1
		}
		if err := os.WriteFile(path, content[70_000:], 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, 0); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, 70_001); err != nil {
			t.Fatal(err)
		}
		if !hole {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt([]byte{1}, 70_000); err != nil {
				t.Fatal(err)
			}
			f.Close()
		}
		d := open(t, path)
		want := append(content, make([]byte, 70_144-70_001)...)
		imagetest.CheckContent(t, d, want)
		imagetest.CheckExtents(t, d, want)
		if w := d.Warnings(); len(w) != 1 || !strings.Contains(w[0], "143 zero bytes") {
			t.Errorf("warnings %q", w)
		}
	}
}

func TestSparseFileHasHoles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	const size = 8 << 40 // within the limits of all file systems in use
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	extents, err := open(t, path).Extents(context.Background(), 0, size, 10)
	if err != nil || len(extents) != 2 || extents[0].Hole || !extents[1].Hole || extents[0].Length > 1<<20 {
		t.Errorf("extents %+v, %v", extents, err)
	}
}

func TestWhatIsNoImageIsRefused(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path string
		want error
	}{
		{dir, raw.ErrNotImage},
		{pipe, raw.ErrNotImage},
		{"/dev/zero", raw.ErrNotImage},
		{filepath.Join(dir, "missing"), os.ErrNotExist},
	} {
		if _, err := raw.Open(c.path); !errors.Is(err, c.want) || strings.Count(err.Error(), c.path) != 1 {
			t.Errorf("%s: %v, want %v", c.path, err, c.want)
		}
	}
}

func TestRequestsOutOfRangeAndWritesAreRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	imagetest.RandomFile(t, path, 4096, 1)
	d, ctx := open(t, path), context.Background()
	if err := d.ReadAt(ctx, make([]byte, 2), 4095); !errors.Is(err, block.ErrOutOfRange) {
		t.Errorf("read: %v", err)
	}
	if _, err := d.Extents(ctx, -1, 1, 1); !errors.Is(err, block.ErrOutOfRange) {
		t.Errorf("extents: %v", err)
	}
	op := &block.Op{Kind: block.OpWrite, Length: 1, Data: []byte{1}}
	d.Submit(ctx, []*block.Op{op})
	if !errors.Is(op.Err, block.ErrReadOnly) {
		t.Errorf("write: %v", op.Err)
	}
	if err := os.Truncate(path, 100); err != nil {
		t.Fatal(err)
	}
	if err := d.ReadAt(ctx, make([]byte, 512), 0); !errors.Is(err, raw.ErrShrunk) {
		t.Errorf("read of a file that shrank: %v", err)
	}
}

// An image that a running QEMU may write to is refused, like qemu-img does.
func TestImageInUseByQemuIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	imagetest.RandomFile(t, path, 1<<20, 1)
	cmd := exec.Command(imagetest.Program(t, "qemu-io"), "-f", "raw", path)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		stdin.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("qemu-io: %v", err)
		}
	}()
	// Once it answers, it has opened the image.
	if _, err := io.WriteString(stdin, "length\n"); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		if strings.Contains(lines.Text(), "1 MiB") {
			break
		}
	}
	if _, err := raw.Open(path); !errors.Is(err, raw.ErrInUse) {
		t.Errorf("error %v, want %v", err, raw.ErrInUse)
	}
}
