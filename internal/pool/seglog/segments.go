package seglog

import (
	"container/list"
	"fmt"
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
	lastSeq uint64 // newest batch in it, while it is being written
	refs    int
	idle    *list.Element
}

// segments keeps segment files open, at most limit of them while nobody uses them.
type segments struct {
	fs    vfs.FS
	dir   string
	limit int

	mu   sync.Mutex
	open map[uint64]*segment
	idle *list.List // of *segment with refs == 0, least recently used first
}

func newSegments(fs vfs.FS, dir string, limit int) *segments {
	return &segments{fs: fs, dir: dir, limit: limit, open: map[uint64]*segment{}, idle: list.New()}
}

const (
	segmentSuffix = ".seg"
	maxSegments   = 1 << 40 // what an Addr has room for
)

func (t *segments) name(id uint64) string {
	return path.Join(t.dir, fmt.Sprintf("%016x%s", id, segmentSuffix))
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
			continue
		}
		id, err := strconv.ParseUint(hex, 16, 64)
		if err != nil || id == 0 || id >= maxSegments || t.name(id) != path.Join(t.dir, n) {
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
	f, err := t.fs.Open(t.name(id))
	if err != nil {
		return nil, fmt.Errorf("open segment %016x: %w", id, err)
	}
	return t.insert(id, f), nil
}

// insert adds an open file, or drops it where another has been added meanwhile.
func (t *segments) insert(id uint64, f vfs.File) *segment {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.open[id]
	if s != nil {
		_ = f.Close() // a second handle that nothing was written through
	} else {
		s = &segment{id: id, file: f}
		t.open[id] = s
	}
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
	if s.refs--; s.refs == 0 {
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
