package extsort_test

import (
	"cmp"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"varve/internal/repository/extsort"
	"varve/internal/vfs"
)

var numbers = extsort.Form[uint64]{
	Bytes:   8,
	Put:     binary.BigEndian.PutUint64,
	Get:     binary.BigEndian.Uint64,
	Compare: cmp.Compare[uint64],
}

func sorted(t *testing.T, s *extsort.Sorter[uint64]) (out []uint64) {
	t.Helper()
	for v, err := range s.Sorted() {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, v)
	}
	return out
}

func TestSortsEachOnceWhateverTheMemory(t *testing.T) {
	for _, memory := range []int{1, 100, 4 << 10, 1 << 20} {
		dir := t.TempDir()
		s := extsort.New(numbers, extsort.Space{FS: vfs.OS(), Dir: dir, MemoryBytes: memory})
		r := rand.New(rand.NewPCG(1, uint64(memory)))
		var want []uint64
		add := func(n int) {
			for range n {
				v := r.Uint64N(40_000)
				want = append(want, v)
				if err := s.Add(v); err != nil {
					t.Fatal(err)
				}
			}
			slices.Sort(want)
			want = slices.Compact(want)
		}
		for _, n := range []int{0, 1, 9_000, 2_000} { // with 2 at a time there are runs of three levels
			add(n)
			for range 2 {
				if got := sorted(t, s); !slices.Equal(got, want) {
					t.Fatalf("memory %d: %d records of %d", memory, len(got), len(want))
				}
			}
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Fatalf("%d files have names, %v", len(left), err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestMergesTwoSequences(t *testing.T) {
	space := extsort.Space{FS: vfs.OS(), Dir: t.TempDir(), MemoryBytes: 64}
	a, b := extsort.New(numbers, space), extsort.New(numbers, space)
	defer a.Close()
	defer b.Close()
	for i := range uint64(100) {
		if err := errors.Join(a.Add(2*i), b.Add(3*i)); err != nil {
			t.Fatal(err)
		}
	}
	last, n := uint64(0), 0
	for v, err := range extsort.Merge(cmp.Compare[uint64], a.Sorted(), b.Sorted()) {
		if err != nil || n > 0 && v <= last {
			t.Fatal(v, last, err)
		}
		last = v
		n++
	}
	if want := 100 + 100 - 34; n != want {
		t.Fatalf("%d records, not %d", n, want)
	}
	for range extsort.Merge(cmp.Compare[uint64], a.Sorted(), b.Sorted()) {
		break // must not leave anything that runs
	}
}

// rotten is a file system that reads one byte of one file wrong.
type rotten struct {
	vfs.FS
	at int64
}

type rottenFile struct {
	vfs.File
	at int64
}

func (r *rotten) Create(name string) (vfs.File, error) {
	f, err := r.FS.Create(name)
	return &rottenFile{f, r.at}, err
}

func (f *rottenFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.File.ReadAt(p, off)
	if i := f.at - off; i >= 0 && i < int64(n) {
		p[i] ^= 4
	}
	return n, err
}

func TestWhatIsReadWrongIsAnError(t *testing.T) {
	for _, at := range []int64{0, 77, 8003} {
		s := extsort.New(numbers, extsort.Space{FS: &rotten{vfs.OS(), at}, Dir: t.TempDir(), MemoryBytes: 16 << 10})
		for i := range uint64(1500) {
			if err := s.Add(i); err != nil {
				t.Fatal(err)
			}
		}
		var failed error
		for _, err := range s.Sorted() {
			failed = err
		}
		if !errors.Is(failed, extsort.ErrDamaged) {
			t.Fatalf("byte %d is wrong: %v", at, failed)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	s := extsort.New(numbers, extsort.Space{FS: vfs.OS(), Dir: "/no/such/directory", MemoryBytes: 16})
	err := errors.Join(s.Add(1), s.Add(2), s.Add(3))
	if err == nil {
		t.Fatal("sorts without a place to")
	}
}
