package blockmap

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"varve/internal/pool/seglog"
)

// Store loads nodes from the log and keeps clean ones in a cache of bounded size.
type Store struct {
	read       func(addr seglog.Addr, p []byte) error
	cacheBytes int64
	limit      atomic.Int64 // of each shard, in bytes
	shards     [16]shard
}

type shard struct {
	mu    sync.Mutex
	lru   *simplelru.LRU[Ptr, *node]
	bytes int64
}

// NewStore returns a store that reads the log with read, whose errors say ErrDamaged
// where bytes are lost, and caches about cacheBytes of nodes.
func NewStore(cacheBytes int64, read func(addr seglog.Addr, p []byte) error) *Store {
	s := &Store{read: read, cacheBytes: cacheBytes}
	s.Reserve(0)
	for i := range s.shards {
		sh := &s.shards[i]
		sh.lru, _ = simplelru.NewLRU(1<<30, func(_ Ptr, n *node) { sh.bytes -= n.memory() + cachedBytes }) // bounded by bytes, see put
	}
	return s
}

// Reserve tells the store how many bytes dirty nodes take, so that they and the clean ones together
// take no more than the cache may. A quarter is left to clean nodes in any case.
func (s *Store) Reserve(dirtyBytes int64) {
	s.limit.Store(max(s.cacheBytes-dirtyBytes, s.cacheBytes/4) / int64(len(s.shards)))
}

func (s *Store) shard(a seglog.Addr) *shard {
	return &s.shards[(uint64(a)*0x9e3779b97f4a7c15)>>60]
}

func (s *Store) cached(p Ptr) *node {
	sh := s.shard(p.Addr)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	n, _ := sh.lru.Get(p)
	return n
}

func (s *Store) put(p Ptr, n *node) {
	sh := s.shard(p.Addr)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.lru.Contains(p) {
		return
	}
	sh.lru.Add(p, n)
	for sh.bytes += n.memory() + cachedBytes; sh.bytes > s.limit.Load() && sh.lru.Len() > 1; {
		sh.lru.RemoveOldest()
	}
}

// CachedBytes is what the cached nodes take, approximately.
func (s *Store) CachedBytes() int64 {
	var sum int64
	for i := range s.shards {
		s.shards[i].mu.Lock()
		sum += s.shards[i].bytes
		s.shards[i].mu.Unlock()
	}
	return sum
}

// load reads the node at p from the log, past the cache. Damage is a *NodeError.
func (s *Store) load(p Ptr, level int, first uint64) (*node, error) {
	n, err := s.loadPiece(p, level, first, func(base Ptr) (*node, error) {
		return s.loadPiece(base, level, first, func(Ptr) (*node, error) {
			return nil, fmt.Errorf("%w: the base at %s of a difference is itself one", ErrDamaged, base.Addr)
		})
	})
	if errors.Is(err, ErrDamaged) {
		err = &NodeError{Ptr: p, Level: level, First: first, Err: err}
	}
	return n, err
}

func (s *Store) loadPiece(p Ptr, level int, first uint64, base func(Ptr) (*node, error)) (*node, error) {
	if p.Length > maxNodeLen {
		return nil, fmt.Errorf("%w: length %d of the node at %s", ErrDamaged, p.Length, p.Addr)
	}
	buf := make([]byte, p.Length)
	if err := s.read(p.Addr, buf); err != nil {
		return nil, err
	}
	return decode(buf, p, level, first, base)
}

// maxNodeLen is the length of the longest node: a leaf of 256 runs.
const maxNodeLen = nodeHeaderLen + leafSlots*(runLen+4)

// Pins keeps the nodes that one request needs in memory, so that it makes
// progress however small the cache is. It is for one goroutine. The zero Pins is ready.
type Pins struct {
	store *Store
	nodes map[Ptr]*node
}

// NewPins returns empty pins.
func (s *Store) NewPins() *Pins { return &Pins{store: s} }

// Miss is the error of a look-up that would have to wait for the log. Pins.Load
// fetches what is missing; then the look-up is tried again.
type Miss struct {
	ptr   Ptr
	level int
	first uint64
}

func (m *Miss) Error() string { return fmt.Sprintf("map node at %s is not in memory", m.ptr.Addr) }

// Load fetches what a look-up missed.
func (p *Pins) Load(m *Miss) error {
	n, err := p.store.load(m.ptr, m.level, m.first)
	if err != nil {
		return err
	}
	p.store.put(m.ptr, n)
	if p.nodes == nil {
		p.nodes = map[Ptr]*node{}
	}
	p.nodes[m.ptr] = n
	return nil
}

// Forget lets go of everything.
func (p *Pins) Forget() { clear(p.nodes) }

// ForgetBeyond lets go of everything if that is more than n nodes.
func (p *Pins) ForgetBeyond(n int) {
	if len(p.nodes) > n {
		clear(p.nodes)
	}
}

// find returns a clean node from memory, or a *Miss.
func (p *Pins) find(c *child, level int, first uint64) (*node, error) {
	if n := p.nodes[c.ptr]; n != nil {
		return n, nil
	}
	n := p.store.cached(c.ptr)
	if n == nil {
		return nil, &Miss{ptr: c.ptr, level: level, first: first}
	}
	if n.level != level || n.first != first {
		return nil, &NodeError{c.ptr, level, first, fmt.Errorf("%w: level or range of the node at %s", ErrDamaged, c.ptr.Addr)}
	}
	return n, nil
}

// fetch is find, but waits for the log.
func (p *Pins) fetch(c *child, level int, first uint64) (*node, error) {
	for {
		n, err := p.find(c, level, first)
		m, miss := err.(*Miss)
		if !miss {
			return n, err
		}
		if err := p.Load(m); err != nil {
			return nil, err
		}
	}
}
