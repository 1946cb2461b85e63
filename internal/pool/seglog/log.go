package seglog

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"varve/internal/block"
	"varve/internal/vfs"
)

// Log is an open log. Its methods may be called concurrently, but for Recover, which
// comes before all that write, and Close, which comes last.
//
// Lock order: syncMu, then mu, then segments.mu.
type Log struct {
	cfg      Config
	segments *segments
	spares   spares

	// mu guards the append state. It is held across the write of a batch, never
	// across a sync.
	mu        sync.Mutex
	active    *segment // nil: the next batch begins a new segment
	end       int64    // where the next batch goes in active, in bytes
	length    int64    // of active's file; more than end if it was a spare
	next      uint64   // number of the next segment
	seq       uint64
	prevCRC   uint32
	unsynced  []*segment // written since their last sync, oldest first, each acquired
	rolling   bool       // active is full, whatever its length
	writeback writeback
	newNames  bool     // segments were created since the last sync of the directory
	header    []byte   // scratch
	bufs      [][]byte // scratch

	syncMu   sync.Mutex // held across a sync, so that concurrent flushes share one
	appended atomic.Uint64
	durable  atomic.Uint64
	written  atomic.Uint64 // bytes appended since the log was opened
	failure  atomic.Pointer[error]
	noHoles  atomic.Bool // making holes gives nothing back here
}

// New returns the log in cfg.Dir, which exists. It can be read at once, and appended
// to after Recover.
func New(cfg Config) *Log {
	if cfg.OpenFiles == 0 {
		cfg.OpenFiles = 256
	}
	l := &Log{cfg: cfg, segments: newSegments(cfg.FS, cfg.Dir, cfg.OpenFiles)}
	l.segments.parse = func(id uint64, f vfs.File) (index, error) {
		if id&packBit != 0 {
			return l.readPack(id&^packBit, f)
		}
		return l.readDense(id, f)
	}
	return l
}

// Append writes entries as one batch and sets their addresses. When it returns
// without error the batch is in the log (and survives the end of the process); after an error
// it is not, and the log can be appended to again unless the error is ErrStopped.
//
// The entries' payload blocks must not exceed MaxPayloadBlocks and their CRCs
// must be set. Errors: block.ErrNoSpace, ErrStopped, I/O errors.
func (l *Log) Append(entries []Entry) (seq uint64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.append(entries)
}

// AppendHolding is Append; it tells for how long nobody else could append.
func (l *Log) AppendHolding(entries []Entry) (seq uint64, held time.Duration, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	start := time.Now()
	seq, err = l.append(entries)
	return seq, time.Since(start), err
}

func (l *Log) append(entries []Entry) (seq uint64, err error) {
	if err := l.Failure(); err != nil {
		return 0, err
	}
	h := header{pool: l.cfg.Pool, seq: l.seq + 1, durableSeq: l.durable.Load(), prevCRC: l.prevCRC, entries: len(entries)}
	for i := range entries {
		h.entriesLen += entries[i].encodedLen()
		h.payloadBlocks += entries[i].payloadBlocks()
	}
	h.headerBlocks = headerBlocksFor(h.entriesLen)
	if h.payloadBlocks > MaxPayloadBlocks || h.headerBlocks > MaxHeaderBlocks {
		return 0, fmt.Errorf("append to log: batch of %d header and %d payload blocks is too large", h.headerBlocks, h.payloadBlocks)
	}
	if err := l.makeRoom(h.bytes()); err != nil {
		return 0, err
	}
	h.segment, h.blockIndex = l.active.id, uint32(l.end/block.Size)

	if n := h.headerBlocks * block.Size; cap(l.header) < n {
		l.header = make([]byte, n)
	} else {
		l.header = l.header[:n]
	}
	encodeHeader(l.header, &h, entries, l.cfg.Salt)
	l.bufs = append(l.bufs[:0], l.header)
	addr := MakeAddr(h.segment, h.offset()+int64(h.headerBlocks)*block.Size)
	for i := range entries {
		e := &entries[i]
		if n := e.payloadBlocks(); n > 0 {
			e.Addr = addr
			addr = addr.Plus(int64(n) * block.Size)
			l.bufs = append(l.bufs, e.Payload...)
		}
	}
	err = l.active.file.WriteAt(l.bufs, l.end)
	clear(l.bufs)
	if err != nil {
		return 0, l.abandon(err)
	}
	l.end += h.bytes()
	l.writeback.appended(l, l.end, false)
	l.seq, l.prevCRC = h.seq, h.crc
	l.active.lastSeq = h.seq
	l.written.Add(uint64(h.bytes()))
	l.appended.Store(h.seq)
	return h.seq, nil
}

// makeRoom sees to it that active has room for n bytes.
func (l *Log) makeRoom(n int64) error {
	if l.active != nil && !l.rolling && (l.end == 0 || l.end+n <= l.cfg.SegmentBytes) {
		return nil
	}
	if l.active != nil && l.length > l.end {
		if err := l.active.file.Truncate(l.end); err != nil {
			return l.stop(fmt.Errorf("cut segment %016x to what was written: %w", l.active.id, err))
		}
	}
	if l.active != nil {
		l.writeback.appended(l, l.end, true)
	}
	l.active = nil // it stays in unsynced until a sync
	l.writeback.from = 0
	id := l.next
	l.next++
	f, length, err := l.create(l.segments.name(id))
	if err != nil {
		return fmt.Errorf("create segment %016x: %w", id, NoSpace(err))
	}
	l.active, l.end, l.length, l.rolling = l.segments.insert(id, f), 0, length, false
	l.unsynced = append(l.unsynced, l.active)
	l.newNames = true
	return nil
}

// Roll lets the log go on in a new segment if that which it is in is longer than so many bytes, so that
// the old one can be compacted.
func (l *Log) Roll(longer int64) error {
	l.mu.Lock()
	l.rolling = l.active != nil && l.end > longer
	rolling := l.rolling
	l.mu.Unlock()
	if !rolling {
		return nil
	}
	_, err := l.Append([]Entry{{Kind: KindOpen}})
	return err
}

// TakeSpare lets the next batch begin a new segment, in a spare file, if there is one and little was written to a new file
// so far: a sync of a spare has no size and no extents to make durable.
func (l *Log) TakeSpare() {
	spare := l.SpareBytes() > 0
	l.mu.Lock()
	defer l.mu.Unlock()
	if spare && l.active != nil && l.length == 0 && l.end < l.cfg.SegmentBytes/4 {
		l.rolling = true
	}
}

// abandon undoes a batch whose write failed: what is left of it is cut off and the
// segment is not written again, so that no later batch can follow a torn one.
func (l *Log) abandon(cause error) error {
	cause = NoSpace(cause)
	failed := l.active
	l.active = nil
	if err := failed.file.Truncate(l.end); err != nil {
		return l.stop(fmt.Errorf("write segment %016x: %w; and cutting off the rest failed: %w", failed.id, cause, err))
	}
	if failed.lastSeq == 0 { // nothing in it: do not leave an empty file per attempt
		l.unsynced = l.unsynced[:len(l.unsynced)-1]
		l.segments.release(failed)
		l.segments.forget(failed.id)
		if err := l.cfg.FS.Remove(l.segments.name(failed.id)); err != nil {
			return l.stop(fmt.Errorf("write segment %016x: %w; and removing it failed: %w", failed.id, cause, err))
		}
	}
	return fmt.Errorf("write segment %016x: %w", failed.id, cause)
}

// NoSpace marks errors of a full disk or quota as block.ErrNoSpace.
func NoSpace(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", block.ErrNoSpace, err)
	}
	return err
}

// Stop ends all writing for good, because of something that went wrong outside the log.
func (l *Log) Stop(cause error) { _ = l.stop(cause) }

func (l *Log) stop(cause error) error {
	err := fmt.Errorf("%w until the pool is opened again: %w", ErrStopped, cause)
	if l.failure.CompareAndSwap(nil, &err) && l.cfg.OnStop != nil {
		l.cfg.OnStop(err)
	}
	return *l.failure.Load()
}

// Failure returns why the log accepts no more writes, or nil.
func (l *Log) Failure() error {
	if p := l.failure.Load(); p != nil {
		return *p
	}
	return nil
}

// Flush returns once every batch up to seq is durable. Concurrent calls share a sync.
func (l *Log) Flush(seq uint64) error {
	if l.durable.Load() >= seq {
		return nil
	}
	l.syncMu.Lock()
	defer l.syncMu.Unlock()
	if l.durable.Load() >= seq {
		return nil
	}
	if err := l.Failure(); err != nil {
		return err
	}
	l.mu.Lock()
	target := l.seq
	todo := append([]*segment(nil), l.unsynced...)
	l.segments.retain(todo)
	defer l.segments.releaseAll(todo)
	newNames := l.newNames
	l.newNames = false
	l.mu.Unlock()

	for _, s := range todo {
		if err := s.file.Sync(); err != nil {
			return l.stop(fmt.Errorf("sync segment %016x: %w", s.id, err))
		}
	}
	if newNames {
		if err := l.cfg.FS.SyncDir(l.cfg.Dir); err != nil {
			return l.stop(fmt.Errorf("sync directory of segments: %w", err))
		}
	}

	l.mu.Lock()
	defer l.mu.Unlock()
	kept := l.unsynced[:0]
	for _, s := range l.unsynced {
		if s == l.active || s.lastSeq > target {
			kept = append(kept, s)
		} else {
			l.segments.release(s)
		}
	}
	clear(l.unsynced[len(kept):])
	l.unsynced = kept
	l.durable.Store(target)
	return nil
}

// ReadAt fills p with what is stored at addr. It verifies nothing.
func (l *Log) ReadAt(addr Addr, p []byte) error {
	s, err := l.segments.acquire(addr.Segment())
	if err != nil {
		return err
	}
	defer l.segments.release(s)
	if err := s.readAt(addr.Segment(), addr.Offset(), p); err != nil {
		return fmt.Errorf("read %d bytes at %s: %w", len(p), addr, err)
	}
	return nil
}

// Position is the end of the log.
func (l *Log) Position() Position {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := Position{Seq: l.seq, CRC: l.prevCRC, Segment: l.next - 1, Offset: l.cfg.SegmentBytes}
	if l.active != nil {
		p.Segment, p.Offset = l.active.id, l.end
	}
	return p
}

// LastSeq is the newest batch in the log, DurableSeq the newest known durable.
func (l *Log) LastSeq() uint64 { return l.appended.Load() }

// DurableSeq is the newest batch known to be durable.
func (l *Log) DurableSeq() uint64 { return l.durable.Load() }

// BytesWritten counts the bytes appended since the log was opened.
func (l *Log) BytesWritten() uint64 { return l.written.Load() }

// DropCaches makes later reads of what is durable come from the disk.
func (l *Log) DropCaches() error {
	files, err := l.Files()
	if err != nil {
		return err
	}
	for _, f := range files {
		if len(f.Segments) == 0 {
			continue
		}
		s, err := l.segments.acquire(f.Segments[0])
		if isGone(err) {
			continue
		} else if err != nil {
			return err
		}
		err = s.file.DropCache()
		l.segments.release(s)
		if err != nil {
			return fmt.Errorf("drop cache of %s: %w", s, err)
		}
	}
	return nil
}

// isGone tells that a file is no more, or cannot be made sense of: whoever reads what it has finds that out.
func isGone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, io.EOF) }

// Files lists the files of the log. A pack that cannot be read has no segments.
func (l *Log) Files() ([]File, error) {
	t := l.segments
	numbers, err := t.numbers()
	if err != nil {
		return nil, err
	}
	packs, err := t.packNumbers()
	if err != nil {
		return nil, err
	}
	contents := t.contents()
	elsewhere := map[uint64]bool{}
	for _, ids := range contents {
		for _, id := range ids {
			elsewhere[id] = true
		}
	}
	var files []File
	for _, id := range numbers {
		if elsewhere[id] {
			continue // packed, and the old file not removed yet
		}
		_, bytes, err := l.stat(t.denseName(id))
		if errors.Is(err, fs.ErrNotExist) {
			_, bytes, err = l.stat(t.name(id))
		}
		if errors.Is(err, fs.ErrNotExist) {
			continue // it went meanwhile
		} else if err != nil {
			return nil, fmt.Errorf("segment %016x: %w", id, err)
		}
		files = append(files, File{Segments: []uint64{id}, Bytes: bytes})
	}
	for _, n := range packs {
		_, bytes, err := l.stat(t.packName(n))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("pack %016x: %w", n, err)
		}
		files = append(files, File{Segments: contents[n], Bytes: bytes, Pack: n})
	}
	return files, nil
}

// Segments lists the segments that exist, ascending.
func (l *Log) Segments() ([]uint64, error) { return l.segments.numbers() }

// Close closes the files. It does not flush.
func (l *Log) Close() {
	l.writeback.under.Wait()
	l.spares.close()
	l.segments.closeAll()
}
