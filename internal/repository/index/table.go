package index

import (
	"context"
	"errors"
	"math/bits"
	"sync"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"varve/internal/objects"
	"varve/internal/repository/chunk"
	"varve/internal/repository/envelope"
	"varve/internal/repository/pack"
)

const (
	slotBytes  = 16
	shardCount = 256
	firstSlots = 16 // of a shard
	// The table is full where two of three slots are taken: 24 bytes an entry.
	fullNumerator, fullDenominator = 2, 3
	// Runs are loaded side by side: so many bytes of them, and so many runs at most.
	loadBytes, maxLoads = 32 << 20, 32
	// packBytes is what the name of a pack takes in memory, about; names may take an eighth of what slots take.
	packBytes = 64
)

// Table remembers where content lies, for deduplication: by 8 bytes of its id, in bounded memory. What it finds is
// a hint, and what it does not find may be there. It may be used concurrently.
type Table struct {
	set      uuid.UUID
	maxSlots int // of a shard
	maxPacks int

	mu     sync.RWMutex
	shards [shardCount]shard // by the first bits of keys
	packs  []packKey
	byPack map[packKey]uint32
	count  int
	loaded map[chunk.PackID]bool // runs that were taken in
	missed bool                  // something was not taken in for want of memory
}

type packKey struct {
	kind envelope.Kind
	id   chunk.PackID
}

// shard is a hash table with open addressing. Keys are hashes already, so their order is that of the slots.
type shard struct {
	slots []slot
	used  int
}

type slot struct {
	key   uint64
	pack  uint32 // plus 1; 0: the slot is free
	frame uint32
}

// NewTable returns an empty table of about memoryBytes at most for what belongs to a set, zero in repositories that have none.
func NewTable(memoryBytes int64, set uuid.UUID) *Table {
	return &Table{
		set:      set,
		maxSlots: int(max(memoryBytes/slotBytes/shardCount, 1)),
		maxPacks: int(max(memoryBytes/8/packBytes, 1)),
		byPack:   make(map[packKey]uint32),
		loaded:   make(map[chunk.PackID]bool),
	}
}

// key mixes the kind into the prefix: a node and a chunk may have the same content.
func key(kind envelope.Kind, id chunk.ID) uint64 { return prefix(id) ^ uint64(kind) }

// Len is the number of places that the table knows.
func (t *Table) Len() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.count
}

// Missed tells that the table was full at some time, and does not know all that it was told.
func (t *Table) Missed() bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.missed
}

// Lookup returns where content of that id may lie, as chunks or as nodes.
func (t *Table) Lookup(kind envelope.Kind, id chunk.ID) (chunk.Place, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	k := key(kind, id)
	s := t.shards[k>>56].find(k)
	if s == nil || s.pack == 0 {
		return chunk.Place{}, false
	}
	p := t.packs[s.pack-1]
	if p.kind != kind {
		return chunk.Place{}, false
	}
	return chunk.Place{Pack: p.id, Frame: s.frame}, true
}

// Locate returns where content of that id lies, after a look into the pack's directory. What is there may
// still be damaged, or condemned. An error is one of the store.
func (t *Table) Locate(ctx context.Context, packs *pack.Reader, kind envelope.Kind, id chunk.ID) (chunk.Place, bool, error) {
	p, ok := t.Lookup(kind, id)
	if !ok {
		return p, false, nil
	}
	d, err := packs.Directory(ctx, kind, p.Pack)
	if errors.Is(err, objects.ErrNotFound) || errors.Is(err, envelope.ErrLost) {
		return chunk.Place{}, false, nil
	}
	if err != nil {
		return chunk.Place{}, false, err
	}
	if int(p.Frame) < d.Len() && d.Entry(p.Frame).ID == id && d.Set() == t.set {
		return p, true, nil
	}
	return chunk.Place{}, false, nil
}

// Add takes in what a pack holds, instead of what was known of these ids. Packs of other sets are passed over.
func (t *Table) Add(p pack.Packed) {
	if p.Set != t.set {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range p.Entries {
		t.insert(Entry{ID: p.Entries[i].ID, Place: chunk.Place{Pack: p.ID, Frame: uint32(i)}, Kind: p.Kind}, true)
	}
}

// unloaded are the runs that were not taken in before. If one that was is gone a pruner has made others of it, and moved
// content: then all is forgotten, and every run is one of them.
func (t *Table) unloaded(runs []Run) []Run {
	t.mu.Lock()
	defer t.mu.Unlock()
	there := make(map[chunk.PackID]bool, len(runs))
	for _, run := range runs {
		there[run.ID] = true
	}
	for id := range t.loaded {
		if !there[id] {
			t.forget()
			break
		}
	}
	var out []Run
	for _, run := range runs {
		if !t.loaded[run.ID] {
			out = append(out, run)
		}
	}
	return out
}

func (t *Table) forget() {
	t.shards = [shardCount]shard{}
	t.packs, t.count, t.missed = nil, 0, false
	clear(t.byPack)
	clear(t.loaded)
}

// Load takes in what the runs of the table's set say, the newest first, until it is full, and nothing that is
// known: neither ids nor runs that it loaded before, unless one of those is gone. Runs that are gone are passed over; so are those that are lost, in whole or in part, which are returned.
func (t *Table) Load(ctx context.Context, x *Index) (lost []chunk.PackID, err error) {
	var mu sync.Mutex
	room := semaphore.NewWeighted(loadBytes)
	g, loading := errgroup.WithContext(ctx)
	for _, run := range t.unloaded(x.Runs()) {
		bytes := max(min(run.Bytes, loadBytes/8), loadBytes/maxLoads)
		if t.Missed() || room.Acquire(loading, bytes) != nil {
			break
		}
		g.Go(func() error {
			defer room.Release(bytes)
			err := t.loadRun(loading, x.packs, run.ID)
			if errors.Is(err, envelope.ErrLost) {
				mu.Lock()
				defer mu.Unlock()
				lost = append(lost, run.ID)
				return nil
			}
			if err == nil {
				t.mu.Lock()
				defer t.mu.Unlock()
				t.loaded[run.ID] = true
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return lost, err
	}
	return lost, ctx.Err()
}

func (t *Table) loadRun(ctx context.Context, packs *pack.Reader, run chunk.PackID) error {
	d, err := packs.Directory(ctx, envelope.Index, run)
	if errors.Is(err, objects.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if d.Set() != t.set {
		return nil
	}
	frames := make([]uint32, d.Len())
	for i := range frames {
		frames[i] = uint32(i)
	}
	err = packs.Frames(ctx, envelope.Index, run, frames, func(_ int, plain []byte) error {
		entries, err := decodeEntries(plain)
		if err != nil {
			return runError(run, err)
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		for _, e := range entries {
			t.insert(e, false)
		}
		return nil
	})
	if errors.Is(err, pack.ErrElsewhere) {
		return nil
	}
	return err
}

// insert takes in an entry. What is known of its id is replaced, or not.
func (t *Table) insert(e Entry, replace bool) {
	k := key(e.Kind, e.ID)
	s := &t.shards[k>>56]
	at := s.find(k)
	if at != nil && at.pack != 0 && !replace {
		return
	}
	if at == nil || at.pack == 0 {
		if (s.used+1)*fullDenominator > len(s.slots)*fullNumerator {
			if !s.grow(t.maxSlots) {
				t.missed = true
				return
			}
			at = s.find(k)
		}
	}
	number, ok := t.intern(packKey{e.Kind, e.Place.Pack})
	if !ok {
		t.missed = true
		return
	}
	if at.pack == 0 {
		s.used++
		t.count++
	}
	*at = slot{key: k, pack: number + 1, frame: e.Place.Frame}
}

// intern returns the number of a pack: not ok if there are too many.
func (t *Table) intern(p packKey) (uint32, bool) {
	number, ok := t.byPack[p]
	if !ok {
		if len(t.packs) >= t.maxPacks {
			return 0, false
		}
		number = uint32(len(t.packs))
		t.packs = append(t.packs, p)
		t.byPack[p] = number
	}
	return number, true
}

// find returns the slot of a key, or the free one where it belongs; nil if there are no slots.
func (s *shard) find(key uint64) *slot {
	if len(s.slots) == 0 {
		return nil
	}
	at, _ := bits.Mul64(key<<8, uint64(len(s.slots)))
	for {
		found := &s.slots[at]
		if found.pack == 0 || found.key == key {
			return found
		}
		if at++; at == uint64(len(s.slots)) {
			at = 0
		}
	}
}

// grow doubles the slots, up to a limit: false if there is no room for one more.
func (s *shard) grow(limit int) bool {
	n := min(max(2*len(s.slots), firstSlots), limit)
	if (s.used+1)*fullDenominator > n*fullNumerator {
		return false
	}
	old := s.slots
	s.slots = make([]slot, n)
	for _, o := range old {
		if o.pack != 0 {
			*s.find(o.key) = o
		}
	}
	return true
}
