package repository

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/google/uuid"

	"varve/internal/repository/chunk"
	"varve/internal/repository/envelope"
	"varve/internal/repository/index"
	"varve/internal/repository/pack"
)

// Against says what the chunks of a session are compared with before they are stored.
type Against uint8

const (
	// AgainstAll is everything that the dedup scope allows: the repository, or the session's set.
	AgainstAll Against = iota
	// AgainstOwn is what the session itself has stored: a differential, which depends on its full and on nothing else.
	AgainstOwn
)

// SessionOptions say what is written.
type SessionOptions struct {
	ID      string    // of the record, which no session had before; empty: a new one
	Set     uuid.UUID // the set it belongs to, in scope set
	Against Against
	Volumes []uuid.UUID // told in progress candidates, so that the next attempt finds this one
	// LockUntil is the retention that everything is put under; zero: none.
	LockUntil time.Time
}

// Session writes one record and what it needs. Chunks and nodes may come from
// several goroutines. End it with Commit or Abort.
type Session struct {
	repo    *Repo
	o       SessionOptions
	started time.Time
	before  int64 // requests of the store
	ctx     context.Context
	fail    context.CancelCauseFunc

	buffers sync.Pool
	work    chan *Pending // to the workers
	order   chan *Pending // to the sequencer, as they were handed in
	workers sync.WaitGroup
	done    chan struct{} // the sequencer has ended

	uploads  chan struct{} // a slot for each pack under way
	uploaded sync.WaitGroup

	table *index.Table // what may be shared
	own   *index.Table // what this session has stored, if it is compared with nothing else

	mu       sync.Mutex
	open     *pack.Builder                        // being filled with chunks; the sequencer's alone
	fresh    map[chunk.PackID]map[chunk.ID]uint32 // chunks of packs that are not in the store yet
	nodes    *pack.Builder
	nodeAt   map[chunk.ID]chunk.Place       // nodes of this session, as many as fit
	relied   map[chunk.PackID]envelope.Kind // packs that the maps name: of others, where chunks were found, and its own
	retained map[chunk.PackID]bool          // packs that are under the session's retention
	packed   []index.Entry                  // of packs that were put and are not in an index run yet
	unmarked []chunk.PackID                 // put and named by no candidate yet
	put      int64                          // bytes of packs
	since    int64                          // of these, since the last progress candidate
	lastPart time.Time                      // of the last progress candidate
	parts    int                            // candidates put
	stats    Stats
}

const (
	packsUnderWay = 3
	// A candidate tells what there is when so many bytes were put since the last, or a sixteenth of all if that is more,
	// so that there are not as many candidates and index runs as a volume is large.
	minProgressBytes, maxProgressBytes, progressPart = 128 << 20, 8 << 30, 16
	// So many entries of the index wait for their run, about.
	maxPacked = 1 << 17
	// What was put is known in time also where next to nothing is: see progress.
	minProgressTime = time.Minute
	maxNodeAt       = 1 << 16
)

// Begin starts a session.
func (r *Repo) Begin(ctx context.Context, o SessionOptions) (*Session, error) {
	if r.noWrite != nil {
		return nil, fmt.Errorf("write to %s: %w", r.URL(), r.noWrite)
	}
	if o.ID == "" {
		o.ID = NewID()
	}
	if !ValidID(o.ID) {
		return nil, fmt.Errorf("write to %s: %q is no id of a record", r.URL(), o.ID)
	}
	table, err := r.refresh(ctx, o.Set)
	if err != nil {
		return nil, err
	}
	s := &Session{
		repo: r, o: o, table: table, started: time.Now(), before: r.Counts().Requests(),
		work: make(chan *Pending, 4), order: make(chan *Pending, 16), done: make(chan struct{}),
		uploads: make(chan struct{}, packsUnderWay),
		fresh:   map[chunk.PackID]map[chunk.ID]uint32{}, nodeAt: map[chunk.ID]chunk.Place{}, relied: map[chunk.PackID]envelope.Kind{},
		retained: map[chunk.PackID]bool{}, lastPart: time.Now(),
	}
	size := r.ChunkBytes()
	s.buffers.New = func() any { b := make([]byte, size); return &b }
	if o.Against == AgainstOwn {
		s.own = index.NewTable(tableBytes/2, o.Set)
	}
	s.ctx, s.fail = context.WithCancelCause(ctx)
	for range runtime.GOMAXPROCS(0) {
		s.workers.Go(s.encode)
	}
	go s.sequence()
	return s, nil
}

// ID is the record's.
func (s *Session) ID() string { return s.o.ID }

// Pending is a chunk on its way into a pack.
type Pending struct {
	plain    []byte
	buffer   *[]byte
	hashes   []uint64
	id       chunk.ID
	place    chunk.Place
	found    bool // it is at place already
	encoded  []byte
	enc      pack.Encoding
	unworked error         // why no worker got it
	ready    chan struct{} // hashed, and found or encoded; or unworked
	done     chan struct{}
	err      error // the sequencer's
}

// Wait returns the chunk's id and place once it has them: it may be in the store only after Commit.
func (p *Pending) Wait(ctx context.Context) (chunk.ID, chunk.Place, error) {
	select {
	case <-p.done:
		if p.err != nil { // a worker may have it still
			return chunk.ID{}, chunk.Place{}, p.err
		}
		return p.id, p.place, nil
	case <-ctx.Done():
		return chunk.ID{}, chunk.Place{}, context.Cause(ctx)
	}
}

// Buffer is room for a chunk of the largest size, to be handed to Store.
func (s *Session) Buffer() *[]byte { return s.buffers.Get().(*[]byte) }

// Release gives a buffer back that was not handed to Store.
func (s *Session) Release(b *[]byte) { s.buffers.Put(b) }

// Store takes the first length bytes of a buffer as a chunk, whole blocks. It waits when too much is under way.
func (s *Session) Store(ctx context.Context, buffer *[]byte, length int) (*Pending, error) {
	p := &Pending{plain: (*buffer)[:length], buffer: buffer, ready: make(chan struct{}), done: make(chan struct{})}
	if err := s.hand(ctx, s.order, p); err != nil {
		return nil, err
	}
	if err := s.hand(ctx, s.work, p); err != nil {
		p.unworked = err // the sequencer has it
		close(p.ready)
		return nil, err
	}
	return p, nil
}

func (s *Session) hand(ctx context.Context, to chan<- *Pending, p *Pending) error {
	select {
	case to <- p:
		return nil
	case <-s.ctx.Done():
		return context.Cause(s.ctx)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// encode is a worker: it names chunks, looks whether they are there, and compresses those that are not.
func (s *Session) encode() {
	keys := s.repo.keys
	for p := range s.work {
		p.hashes = keys.BlockHashes(p.plain)
		p.id = keys.ChunkID(p.plain)
		p.place, p.found = s.find(p.id)
		if !p.found {
			p.encoded, p.enc = pack.Encode(nil, p.plain)
		}
		close(p.ready)
	}
}

// find looks for a chunk among those it may be shared with.
func (s *Session) find(id chunk.ID) (chunk.Place, bool) {
	s.mu.Lock()
	for p, chunks := range s.fresh {
		if frame, ok := chunks[id]; ok {
			s.mu.Unlock()
			return chunk.Place{Pack: p, Frame: frame}, true
		}
	}
	s.mu.Unlock()
	table := s.own
	if table == nil {
		table = s.table
	}
	hint, ok := table.Lookup(envelope.Pack, id)
	if !ok || s.repo.unusable(hint) {
		return chunk.Place{}, false
	}
	// If the store does not answer, the chunk is stored again: if that does not work either, it will be told.
	place, ok, err := table.Locate(s.ctx, s.repo.packs, envelope.Pack, id)
	if !ok || err != nil || s.repo.unusable(place) {
		if err == nil {
			s.repo.doom(hint.Pack) // it is gone: nothing else of it has to be looked for
		}
		return chunk.Place{}, false
	}
	s.mu.Lock()
	s.relied[place.Pack] = envelope.Pack
	s.mu.Unlock()
	return place, true
}

// sequence puts chunks into packs in the order in which they were handed in, so that a restore reads on.
func (s *Session) sequence() {
	defer close(s.done)
	for p := range s.order {
		select {
		case <-p.ready:
			if p.err = p.unworked; p.err == nil {
				s.place(p)
			}
		case <-s.ctx.Done():
			p.err = context.Cause(s.ctx)
		}
		close(p.done)
	}
}

func (s *Session) place(p *Pending) {
	if !p.found {
		p.place, p.found = s.find(p.id) // its twin came just before
	}
	s.mu.Lock()
	if p.found {
		s.stats.DuplicateBytes += int64(len(p.plain))
		s.mu.Unlock()
		if err := s.progress(0); err != nil {
			s.fail(err)
		}
	} else {
		s.stats.NewBytes += int64(len(p.plain))
		s.stats.CompressedBytes += int64(len(p.encoded))
		s.mu.Unlock()
		if s.open == nil {
			s.open = pack.NewBuilder(s.repo.keys, envelope.Pack, s.o.Set, s.repo.config.Parity)
			s.mu.Lock()
			s.fresh[s.open.ID()] = map[chunk.ID]uint32{}
			s.mu.Unlock()
		}
		p.place = s.open.Append(p.id, p.encoded, p.enc, len(p.plain), p.hashes)
		s.mu.Lock()
		s.fresh[p.place.Pack][p.id] = p.place.Frame
		s.mu.Unlock()
		if s.open.Full() {
			full := s.open
			s.open = nil
			s.upload(full)
		}
	}
	s.buffers.Put(p.buffer)
	p.plain, p.encoded, p.buffer = nil, nil, nil
}

// WriteNode implements maptree.NodeWriter.
func (s *Session) WriteNode(_ context.Context, plain []byte) (chunk.ID, chunk.Place, error) {
	id := s.repo.keys.ChunkID(plain)
	s.mu.Lock()
	if place, ok := s.nodeAt[id]; ok {
		s.mu.Unlock()
		return id, place, nil
	}
	if s.nodes == nil {
		s.nodes = pack.NewBuilder(s.repo.keys, envelope.Nodes, s.o.Set, s.repo.config.Parity)
	}
	encoded, enc := pack.Encode(nil, plain)
	place := s.nodes.Append(id, encoded, enc, len(plain), nil)
	s.stats.NodeBytes += int64(len(encoded))
	if len(s.nodeAt) >= maxNodeAt {
		clear(s.nodeAt)
	}
	s.nodeAt[id] = place
	var full *pack.Builder
	if s.nodes.Full() {
		full, s.nodes = s.nodes, nil
	}
	s.mu.Unlock()
	if full != nil {
		s.upload(full)
	}
	return id, place, context.Cause(s.ctx)
}

// upload puts a pack into the store while the next is filled.
func (s *Session) upload(b *pack.Builder) {
	s.uploads <- struct{}{}
	s.uploaded.Go(func() {
		defer func() { <-s.uploads }()
		if err := s.finish(b); err != nil {
			s.fail(err)
		}
	})
}

func (s *Session) finish(b *pack.Builder) error {
	p, err := b.Finish()
	if err != nil {
		return err
	}
	defer p.Release()
	if err := s.ctx.Err(); err != nil {
		return context.Cause(s.ctx)
	}
	if err := s.repo.put(s.ctx, p.Name, p.Object, s.o.LockUntil); err != nil {
		return err
	}
	if p.Kind == envelope.Pack {
		if s.own != nil {
			s.own.Add(p)
		}
		s.table.Add(p)
	}
	s.repo.packs.Add(p)
	s.mu.Lock()
	delete(s.fresh, p.ID)
	s.stats.StoredBytes += p.Bytes
	s.stats.ParityBytes += parityBytes(p.Object)
	s.stats.Objects++
	for i, e := range p.Entries {
		at := chunk.Place{Pack: p.ID, Frame: uint32(i)}
		s.packed = append(s.packed, index.Entry{ID: e.ID, Place: at, SealedBytes: e.SealedBytes, PlainBytes: e.PlainBytes, Kind: p.Kind})
	}
	s.unmarked = append(s.unmarked, p.ID)
	s.relied[p.ID] = p.Kind
	if !s.o.LockUntil.IsZero() {
		s.retained[p.ID] = true
	}
	s.mu.Unlock()
	return s.progress(p.Bytes)
}

// progress tells what there is when it is time, given what was put; or nothing was, as it was there already: a session
// whose candidate is old is given up.
func (s *Session) progress(put int64) error {
	s.mu.Lock()
	s.put += put
	s.since += put
	enough := min(max(minProgressBytes, s.put/progressPart), maxProgressBytes)
	wait := s.repo.config.Grace / 4
	if put == 0 {
		wait = max(wait, minProgressTime)
	}
	due := s.since >= enough || len(s.packed) >= maxPacked || time.Since(s.lastPart) > wait && s.put > 0
	if due {
		s.since, s.lastPart = 0, time.Now()
	}
	s.mu.Unlock()
	if !due {
		return nil
	}
	return s.tell(s.ctx, nil)
}

// flush waits until all that was handed in is in the store and in an index run.
func (s *Session) flush(ctx context.Context) error {
	close(s.work)
	close(s.order)
	s.workers.Wait()
	<-s.done
	for _, b := range []*pack.Builder{s.open, s.nodes} {
		if b != nil {
			s.upload(b)
		}
	}
	s.open, s.nodes = nil, nil
	s.uploaded.Wait()
	if err := context.Cause(s.ctx); err != nil {
		return err
	}
	return s.writeRun(ctx)
}

// writeRun puts an index run of what has been packed since the last. If that fails it can be tried again.
func (s *Session) writeRun(ctx context.Context) error {
	s.mu.Lock()
	packed := s.packed
	s.packed = nil
	s.mu.Unlock()
	err := s.writeEntries(ctx, packed)
	if err != nil {
		s.mu.Lock()
		s.packed = append(s.packed, packed...)
		s.mu.Unlock()
	}
	return err
}

func (s *Session) writeEntries(ctx context.Context, entries []index.Entry) error {
	w := index.NewWriter(s.repo.keys, s.o.Set, s.repo.config.Parity, func(run pack.Packed) error {
		defer run.Release()
		if err := s.repo.put(ctx, run.Name, run.Object, s.o.LockUntil); err != nil {
			return err
		}
		s.mu.Lock()
		s.stats.StoredBytes += run.Bytes
		s.stats.ParityBytes += parityBytes(run.Object)
		s.stats.Objects++
		s.mu.Unlock()
		return nil
	})
	for _, e := range entries {
		if err := w.AddEntry(e); err != nil {
			return err
		}
	}
	return w.Flush()
}

// Abort ends a session that is not committed. What it stored stays, and is found by the next one; in time it is pruned.
func (s *Session) Abort() {
	s.fail(errAborted)
	s.stop()
	s.leave()
}

// leaveTime is what telling the next session what there is, or finding out whether there is a record, may take: the store may be why this one ends.
const leaveTime = 10 * time.Second

// leave tells the next session of packs that no candidate and no run of the index names yet.
func (s *Session) leave() {
	if len(s.packed)+len(s.unmarked) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), leaveTime)
	defer cancel()
	_ = s.tell(ctx, nil) // without, they are stored again
}

var errAborted = errors.New("session aborted")

// stop ends the session's goroutines, however far it came.
func (s *Session) stop() {
	select {
	case <-s.done:
	default:
		close(s.work)
		close(s.order)
		s.workers.Wait()
		<-s.done
	}
	s.uploaded.Wait()
}
