// Package extsort sorts more records than fit in memory: it sorts what does,
// writes it to a temporary file as a run, and merges the runs.
//
// Records of one Sorter are of one width on disk. Blocks of a run carry a
// CRC32C: what is decided by sorted records may be what gets deleted. Files
// have no name while they are used, so that nothing is left behind by whatever
// end the process finds. An order with equal records keeps one of them.
//
// Left out: records of different widths, durability, several processes.
package extsort

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"iter"
	"math/rand/v2"
	"path"
	"slices"

	"varve/internal/vfs"
)

const (
	// blockBytes is what of a run is in memory while it is merged.
	blockBytes = 64 << 10
	// fanIn is how many runs are merged at once.
	fanIn = 64
	// bufferBytes is what is gathered before it is written.
	bufferBytes = 1 << 20
)

// ErrDamaged means that a temporary file is not read as it was written.
var ErrDamaged = errors.New("temporary file is damaged")

// Form is what records are like.
type Form[T any] struct {
	Bytes   int                 // of a record on disk
	Put     func(b []byte, v T) // fills Bytes bytes
	Get     func(b []byte) T
	Compare func(a, b T) int // of equal ones one is kept
}

// Space is where sorters put what does not fit in memory.
type Space struct {
	FS  vfs.FS
	Dir string
	// MemoryBytes is what one sorter takes, about, before it writes a run.
	MemoryBytes int
}

// Sorter sorts records. It is used by one goroutine at a time.
type Sorter[T any] struct {
	form   Form[T]
	space  Space
	limit  int // records in memory
	held   []T
	tidy   bool    // held is sorted, each once
	levels [][]run // runs of a level were merged from fanIn of the one below
}

// run is a sorted file.
type run struct {
	file    vfs.File
	records int64
}

// New returns a sorter; Close it.
func New[T any](form Form[T], space Space) *Sorter[T] {
	return &Sorter[T]{form: form, space: space, limit: max(space.MemoryBytes/form.Bytes/2, 2)}
}

// Add adds a record.
func (s *Sorter[T]) Add(v T) error {
	if len(s.held) >= s.limit {
		if err := s.spill(); err != nil {
			return err
		}
	}
	s.held = append(s.held, v)
	s.tidy = false
	return nil
}

// Sorted yields all records that were added so far, in order and each once. It may be called again, and more may be added
// afterwards. It ends after an error.
func (s *Sorter[T]) Sorted() iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		s.tidyUp()
		sources := []source[T]{&inMemory[T]{rest: s.held}}
		for _, level := range s.levels {
			for _, r := range level {
				sources = append(sources, s.read(r))
			}
		}
		merge(s.form.Compare, sources, yield)
	}
}

// Close gives memory and disk back.
func (s *Sorter[T]) Close() error {
	var errs []error
	for _, level := range s.levels {
		for _, r := range level {
			errs = append(errs, r.file.Close())
		}
	}
	s.levels, s.held = nil, nil
	return errors.Join(errs...)
}

func (s *Sorter[T]) tidyUp() {
	if s.tidy {
		return
	}
	slices.SortFunc(s.held, s.form.Compare)
	s.held = slices.CompactFunc(s.held, func(a, b T) bool { return s.form.Compare(a, b) == 0 })
	s.tidy = true
}

// spill writes what is in memory as a run, and merges runs where there are many.
func (s *Sorter[T]) spill() error {
	s.tidyUp()
	sorted := func(yield func(T, error) bool) {
		for _, v := range s.held {
			if !yield(v, nil) {
				return
			}
		}
	}
	if err := s.write(0, sorted); err != nil {
		return err
	}
	s.held = s.held[:0]
	for l := 0; l < len(s.levels) && len(s.levels[l]) >= fanIn; l++ {
		runs := s.levels[l]
		sources := make([]source[T], 0, len(runs))
		for _, r := range runs {
			sources = append(sources, s.read(r))
		}
		err := s.write(l+1, func(yield func(T, error) bool) { merge(s.form.Compare, sources, yield) })
		if err != nil {
			return err
		}
		s.levels[l] = nil
		for _, r := range runs {
			if err := r.file.Close(); err != nil {
				return err
			}
		}
	}
	return nil
}

// write makes a run of sorted records.
func (s *Sorter[T]) write(level int, sorted iter.Seq2[T, error]) error {
	name := path.Join(s.space.Dir, fmt.Sprintf("varve-sort-%016x", rand.Uint64()))
	file, err := s.space.FS.Create(name)
	if err != nil {
		return err
	}
	w := writer{file: file}
	err = s.space.FS.Remove(name)
	block := make([]byte, 0, blockBytes)
	records := int64(0)
	for v, verr := range sorted {
		if err = errors.Join(err, verr); err != nil {
			break
		}
		if len(block)+s.form.Bytes+4 > blockBytes {
			if err = w.block(block); err != nil {
				break
			}
			block = block[:0]
		}
		block = block[:len(block)+s.form.Bytes]
		s.form.Put(block[len(block)-s.form.Bytes:], v)
		records++
	}
	if err == nil {
		err = errors.Join(w.block(block), w.flush())
	}
	if err != nil {
		return errors.Join(fmt.Errorf("sort in %s: %w", s.space.Dir, err), file.Close())
	}
	for len(s.levels) <= level {
		s.levels = append(s.levels, nil)
	}
	s.levels[level] = append(s.levels[level], run{file, records})
	return nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// writer gathers blocks, each of which is followed by its checksum.
type writer struct {
	file vfs.File
	at   int64
	held []byte
}

func (w *writer) block(b []byte) error {
	w.held = append(w.held, b...)
	w.held = binary.LittleEndian.AppendUint32(w.held, crc32.Checksum(b, castagnoli))
	if len(w.held) >= bufferBytes {
		return w.flush()
	}
	return nil
}

func (w *writer) flush() error {
	err := w.file.WriteAt([][]byte{w.held}, w.at)
	w.at += int64(len(w.held))
	w.held = w.held[:0]
	return err
}

// reader reads a run block by block.
type reader[T any] struct {
	form  *Form[T]
	file  vfs.File
	at    int64
	left  int64 // records
	block []byte
	rest  []byte
}

func (s *Sorter[T]) read(r run) *reader[T] {
	return &reader[T]{form: &s.form, file: r.file, left: r.records}
}

func (r *reader[T]) next() (v T, ok bool, err error) {
	if len(r.rest) == 0 {
		if r.left == 0 {
			return v, false, nil
		}
		n := min(r.left, int64((blockBytes-4)/r.form.Bytes)) * int64(r.form.Bytes)
		if r.block == nil {
			r.block = make([]byte, n+4)
		}
		b := r.block[:n+4]
		if _, err := r.file.ReadAt(b, r.at); err != nil {
			if errors.Is(err, io.EOF) {
				err = ErrDamaged
			}
			return v, false, err
		}
		if crc32.Checksum(b[:n], castagnoli) != binary.LittleEndian.Uint32(b[n:]) {
			return v, false, ErrDamaged
		}
		r.at += n + 4
		r.rest = b[:n]
	}
	v = r.form.Get(r.rest[:r.form.Bytes])
	r.rest = r.rest[r.form.Bytes:]
	r.left--
	return v, true, nil
}
