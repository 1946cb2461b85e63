//go:build !race

package vfs

import (
	"errors"
	"testing"
)

// The race detector makes sync.Pool forget at random, so it is off here.
func TestHotPathDoesNotAllocate(t *testing.T) {
	f := newOSFile(t)
	bufs := make([][]byte, 1500)
	for i := range bufs {
		bufs[i] = make([]byte, 512)
	}
	if err := f.WriteAt(bufs, 0); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 4096)
	for name, call := range map[string]func() error{
		"WriteAt": func() error { return f.WriteAt(bufs, 0) },
		"ReadAt":  func() error { _, err := f.ReadAt(p, 0); return err },
		"try":     func() error { return f.ReadVector(bufs[:8], 0, false) },
		"read":    func() error { return f.ReadVector(bufs, 0, true) },
	} {
		var err error
		allocs := testing.AllocsPerRun(50, func() { err = call() })
		if err != nil && !errors.Is(err, ErrWouldBlock) {
			t.Fatal(err)
		}
		if allocs >= 1 {
			t.Errorf("%s allocates %v times", name, allocs)
		}
	}
}
