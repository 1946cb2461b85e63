package seglog

import (
	"container/list"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"
	"sync"

	"varve/internal/vfs"
)

// segment is an open segment file. While refs > 0 it stays open.
type segment struct {
	id      uint64 // with packBit, the number of a pack
	file    vfs.File
	index   index  // nil: as it was written
	lastSeq uint64 // newest batch in it, while it is being written
	refs    int
	retired bool // another file has its name, or none
	taken   bool // the file has become a spare
	idle    *list.Element
}

// segments keeps segment files open, at most limit of them while nobody uses them.
type segments struct {
	fs    vfs.FS
	dir   string
	limit int
	parse func(id uint64, f vfs.File) (index, error) // the header of a rewritten one, or of a pack

	lastPack uint64   // number
	loaded   []uint64 // packs that were found when the log was opened

	mu      sync.Mutex
	open    map[uint64]*segment // by segment.id
	idle    *list.List          // of *segment with refs == 0, least recently used first
	packed  []packed            // by segment
	retired uint64              // counts files that another took the place of
}

func newSegments(fs vfs.FS, dir string, limit int) *segments {
	return &segments{fs: fs, dir: dir, limit: limit, open: map[uint64]*segment{}, idle: list.New()}
}

const (
	segmentSuffix = ".seg"  // as it was written
	denseSuffix   = ".dns"  // rewritten
	packSuffix    = ".pak"  // of several
	maxSegments   = 1 << 40 // what an Addr has room for
	packBit       = 1 << 63 // marks the id of a pack's file
)

func (t *segments) name(id uint64) string {
	return path.Join(t.dir, fmt.Sprintf("%016x%s", id, segmentSuffix))
}

func (t *segments) denseName(id uint64) string {
	return path.Join(t.dir, fmt.Sprintf("%016x%s", id, denseSuffix))
}

func (t *segments) packName(n uint64) string {
	return path.Join(t.dir, fmt.Sprintf("%016x%s", n, packSuffix))
}

// path is the name of an open segment's file.
func (t *segments) path(s *segment) string {
	switch {
	case s.id&packBit != 0:
		return t.packName(s.id &^ packBit)
	case s.index != nil:
		return t.denseName(s.id)
	}
	return t.name(s.id)
}

func (s *segment) String() string {
	if s.id&packBit != 0 {
		return fmt.Sprintf("pack %016x", s.id&^packBit)
	}
	return fmt.Sprintf("segment %016x", s.id)
}

// packNumbers lists the packs that exist, ascending.
func (t *segments) packNumbers() ([]uint64, error) {
	names, err := t.fs.List(t.dir)
	if err != nil {
		return nil, fmt.Errorf("list segments: %w", err)
	}
	var packs []uint64
	for _, n := range names {
		if hex, ok := strings.CutSuffix(n, packSuffix); ok {
			number, err := strconv.ParseUint(hex, 16, 64)
			if err != nil || number == 0 || number&packBit != 0 || t.packName(number) != path.Join(t.dir, n) {
				return nil, fmt.Errorf("%w: %s is not the name of a pack that this pool wrote; move it away", ErrDamaged, path.Join(t.dir, n))
			}
			packs = append(packs, number)
		}
	}
	return packs, nil
}

// numbers lists the segments that exist, ascending.
func (t *segments) numbers() ([]uint64, error) {
	names, err := t.fs.List(t.dir)
	if err != nil {
		return nil, fmt.Errorf("list segments: %w", err)
	}
	var ids []uint64
	for _, n := range names { // sorted, and fixed-width hexadecimal sorts as numbers do
		hex, ok := strings.CutSuffix(n, segmentSuffix)
		if !ok {
			if hex, ok = strings.CutSuffix(n, denseSuffix); !ok {
				continue
			}
		}
		id, err := strconv.ParseUint(hex, 16, 64)
		if len(ids) > 0 && ids[len(ids)-1] == id && err == nil {
			continue // rewritten, and the old file not removed yet
		}
		if err != nil || id == 0 || id >= maxSegments || t.name(id) != path.Join(t.dir, hex+segmentSuffix) {
			return nil, fmt.Errorf("%w: %s is not the name of a segment that this pool wrote; move it away", ErrDamaged, path.Join(t.dir, n))
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// acquire returns the open file that has the segment, for release.
func (t *segments) acquire(id uint64) (*segment, error) {
	for {
		t.mu.Lock()
		key, retired := id, t.retired
		if n := t.packOf(id); n != 0 {
			key = n | packBit
		}
		if s := t.open[key]; s != nil {
			t.use(s)
			t.mu.Unlock()
			return s, nil
		}
		t.mu.Unlock()
		f, x, err := t.openFile(key)
		t.mu.Lock()
		// What was opened may have lost its name meanwhile, and even be written again as another segment.
		if t.retired != retired {
			t.mu.Unlock()
			if err == nil {
				_ = f.Close() // only read
			}
			continue
		}
		if err != nil {
			t.mu.Unlock()
			return nil, fmt.Errorf("open segment %016x: %w", id, err)
		}
		s := t.open[key]
		if s == nil {
			s = &segment{id: key, file: f, index: x}
			t.open[key] = s
		} else {
			_ = f.Close() // only read
		}
		t.use(s)
		t.mu.Unlock()
		return s, nil
	}
}

// openFile opens what a segment, or a pack, is now.
func (t *segments) openFile(key uint64) (f vfs.File, x index, err error) {
	name := t.denseName(key)
	if key&packBit != 0 {
		name = t.packName(key &^ packBit)
	}
	f, err = t.fs.Open(name)
	if errors.Is(err, fs.ErrNotExist) && key&packBit == 0 {
		f, err = t.fs.Open(t.name(key))
		return f, nil, err
	}
	if err == nil {
		if x, err = t.parse(key, f); err != nil {
			_ = f.Close() // only read
			return nil, nil, err
		}
	}
	return f, x, err
}

// insert adds the file of a new segment.
func (t *segments) insert(id uint64, f vfs.File) *segment {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := &segment{id: id, file: f}
	t.open[id] = s
	t.use(s)
	return s
}

func (t *segments) use(s *segment) {
	if s.refs++; s.idle != nil {
		t.idle.Remove(s.idle)
		s.idle = nil
	}
}

// retain keeps open what the caller already holds by other means.
func (t *segments) retain(held []*segment) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range held {
		t.use(s)
	}
}

func (t *segments) releaseAll(held []*segment) {
	for _, s := range held {
		t.release(s)
	}
}

func (t *segments) release(s *segment) {
	var closing *segment
	t.mu.Lock()
	if s.refs--; s.refs == 0 && s.retired {
		if !s.taken {
			closing = s
		}
	} else if s.refs == 0 {
		s.idle = t.idle.PushBack(s)
		if t.idle.Len() > t.limit {
			closing = t.idle.Remove(t.idle.Front()).(*segment)
			closing.idle = nil
			delete(t.open, closing.id)
		}
	}
	t.mu.Unlock()
	if closing != nil {
		_ = closing.file.Close() // synced or never written: nothing to lose
	}
}

// retire lets a file go that no longer has its segment's name: who holds it reads on,
// others open what is there now.
func (t *segments) retire(s *segment) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s.retired = true
	t.retired++
	delete(t.open, s.id)
}

// take lets the only holder of a retired segment have its file. False if others read it.
func (t *segments) take(s *segment) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	s.taken = s.retired && s.refs == 1
	return s.taken
}

// giveBack undoes take.
func (t *segments) giveBack(s *segment) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s.taken = false
}

// closeAll closes every file; nobody uses them any more.
func (t *segments) closeAll() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.open {
		_ = s.file.Close() // what had to be durable was synced before
	}
	t.open = map[uint64]*segment{}
	t.idle.Init()
}

// forget closes a segment that nobody uses, because it is about to be removed.
func (t *segments) forget(id uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.open[id]; s != nil && s.refs == 0 {
		t.idle.Remove(s.idle)
		delete(t.open, id)
		_ = s.file.Close()
	}
}
