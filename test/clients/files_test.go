package clients

import (
	"bytes"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// fileContent is what the file of a number holds: up to 128 KiB.
func fileContent(n int) []byte {
	h := fnv.New64()
	fmt.Fprintf(h, "file %d", n)
	random := rand.New(rand.NewPCG(h.Sum64(), uint64(n)))
	p := make([]byte, 1+random.IntN(128<<10))
	for i := range p {
		p[i] = byte(random.Uint32())
	}
	return p
}

func fileName(dir string, n int) string { return filepath.Join(dir, fmt.Sprintf("file-%05d", n)) }

// writeFile makes a file and returns when it and its name are durable.
func writeFile(dir string, n int) error {
	f, err := os.Create(fileName(dir, n))
	if err != nil {
		return err
	}
	_, err = f.Write(fileContent(n))
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// wantFiles wants the first n files to be there as they were written.
func wantFiles(t *testing.T, dir string, n int) {
	t.Helper()
	for i := range n {
		got, err := os.ReadFile(fileName(dir, i))
		if err != nil {
			t.Fatalf("of %d files that were durable: %v", n, err)
		}
		if !bytes.Equal(got, fileContent(i)) {
			t.Fatalf("file %d of %d that were durable differs from what was written", i, n)
		}
	}
}

// filesWriter writes one durable file after the other.
type filesWriter struct {
	t       *testing.T
	durable atomic.Int64 // so many files are durable
	stop    chan struct{}
	once    sync.Once
	done    chan struct{} // closed when it writes no more
	err     error         // why, unless it was told to stop; read after done
}

// startFiles begins with file number from.
func startFiles(t *testing.T, dir string, from int) *filesWriter {
	w := &filesWriter{t: t, stop: make(chan struct{}), done: make(chan struct{})}
	w.durable.Store(int64(from))
	go func() {
		defer close(w.done)
		for n := from; ; n++ {
			select {
			case <-w.stop:
				return
			default:
			}
			if w.err = writeFile(dir, n); w.err != nil {
				return
			}
			w.durable.Add(1)
		}
	}()
	t.Cleanup(func() { w.finish() })
	return w
}

// await returns when n files are durable, with the number that are by then.
func (w *filesWriter) await(n int) int {
	w.t.Helper()
	await(w.t, "files are written", func() bool { return w.durable.Load() >= int64(n) })
	return int(w.durable.Load())
}

// finish stops the writer, if it has not failed yet, and returns how many files are durable.
func (w *filesWriter) finish() int {
	w.t.Helper()
	w.once.Do(func() { close(w.stop) })
	return w.awaitEnd()
}

// awaitEnd returns how many files were durable when the writer ended.
func (w *filesWriter) awaitEnd() int {
	w.t.Helper()
	select {
	case <-w.done:
	case <-time.After(patience):
		w.t.Error("a write to the file system hangs")
	}
	return int(w.durable.Load())
}
