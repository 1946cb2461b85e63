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
	id      uint64
	file    vfs.File
	dense   *dense // nil: as it was written
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
	parse func(id uint64, f vfs.File) (*dense, error) // the header of a rewritten one

	mu   sync.Mutex
	open map[uint64]*segment
	idle *list.List // of *segment with refs == 0, least recently used first
}

func newSegments(fs vfs.FS, dir string, limit int) *segments {
	return &segments{fs: fs, dir: dir, limit: limit, open: map[uint64]*segment{}, idle: list.New()}
}

const (
	segmentSuffix = ".seg"  // as it was written
	denseSuffix   = ".dns"  // rewritten
	maxSegments   = 1 << 40 // what an Addr has room for
)

func (t *segments) name(id uint64) string {
	return path.Join(t.dir, fmt.Sprintf("%016x%s", id, segmentSuffix))
}

func (t *segments) denseName(id uint64) string {
	return path.Join(t.dir, fmt.Sprintf("%016x%s", id, denseSuffix))
}

// path is the name of an open segment's file.
func (t *segments) path(s *segment) string {
	if s.dense != nil {
		return t.denseName(s.id)
	}
	return t.name(s.id)
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

// acquire returns the segment's open file, for release.
func (t *segments) acquire(id uint64) (*segment, error) {
	t.mu.Lock()
	if s := t.open[id]; s != nil {
		t.use(s)
		t.mu.Unlock()
		return s, nil
	}
	t.mu.Unlock()
	f, d, err := t.openFile(id)
	if err != nil {
		return nil, fmt.Errorf("open segment %016x: %w", id, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.open[id]; s != nil {
		_ = f.Close() // only read
		t.use(s)
		return s, nil
	}
	s := &segment{id: id, file: f, dense: d}
	t.open[id] = s
	t.use(s)
	return s, nil
}

// openFile opens what a segment is now. It may be rewritten meanwhile: then the name that was not there
// at first is there at last.
func (t *segments) openFile(id uint64) (vfs.File, *dense, error) {
	for range 2 {
		f, err := t.fs.Open(t.denseName(id))
		if err == nil {
			d, err := t.parse(id, f)
			if err != nil {
				_ = f.Close() // only read
				return nil, nil, err
			}
			return f, d, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, nil, err
		}
		if f, err = t.fs.Open(t.name(id)); err == nil || !errors.Is(err, fs.ErrNotExist) {
			return f, nil, err
		}
	}
	return nil, nil, fs.ErrNotExist
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
