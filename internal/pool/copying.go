package pool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"time"

	"github.com/google/uuid"

	"varve/internal/block"
	"varve/internal/pool/catalogue"
	"varve/internal/vfs"
)

const (
	// copyBytes is what is copied at a time.
	copyBytes = 1 << 20
	// copyRecorded is how much is copied between two records of that.
	copyRecorded = 64 << 20
	// copyWriteback is how much is written to a file before the kernel is asked to begin to write it out.
	copyWriteback = 8 << 20
	// finishPause is between two looks whether somebody still reads the snapshot that is to become a copy.
	finishPause = 100 * time.Millisecond
)

// CopyOptions of Copy.
type CopyOptions struct {
	// Progress is told how many bytes of how many are behind. It may wait for as long as its context lives; its error ends the work.
	Progress func(ctx context.Context, done, total int64) error
}

// Copy makes a copy of a snapshot that was created to become one, or goes on with that. Clients go on meanwhile, and are given way. When all is
// copied it waits until nobody has the snapshot open, and then the copy takes its place. An error leaves what was
// done, for another Copy, or CancelCopy.
//
// Errors: ErrNotFound (also when it was cancelled), ErrInUse (it is being copied already), fs.ErrExist (a file of that name has come meanwhile),
// block.ErrNoSpace, block.ErrDamaged, block.ErrClosed, ctx's, and those of the file.
func (p *Pool) Copy(ctx context.Context, id uuid.UUID, o CopyOptions) (SnapshotInfo, error) {
	p.mu.RLock()
	s, err := p.findCopying(id)
	var name SnapshotRef
	if err == nil {
		name = SnapshotRef{p.cat.Volume(s.Volume).Name, s.Name}
	}
	p.mu.RUnlock()
	if err != nil {
		return SnapshotInfo{}, err
	}
	work, free := p.startCopy(ctx, s.ID)
	if !free {
		return SnapshotInfo{}, fmt.Errorf("copy snapshot %q: %w: that is being done already", name, ErrInUse)
	}
	defer p.endCopy(s.ID)
	c := copier{pool: p, options: o, state: s, copying: *s.Copying}
	copied, err := c.all(work)
	if err != nil {
		if cause := context.Cause(work); errors.Is(cause, errDropped) && ctx.Err() == nil {
			err = cause
		}
		return SnapshotInfo{}, fmt.Errorf("copy snapshot %q: %w", name, err)
	}
	return p.describe([]uint64{copied})[0], nil
}

// copier is a copy under way.
type copier struct {
	pool    *Pool
	options CopyOptions
	state   *catalogue.State // the snapshot, as it was at first
	copying catalogue.Copying
	to      sink
	unsaved int64 // bytes written since the last record
	clients int64 // what clients had written before the last step
	owed    time.Duration
	buf     []byte
}

// sink takes the content of a copy, in order.
type sink interface {
	write(ctx context.Context, b []byte, off int64) error
	// zero is told of what is not written; it is nothing where that reads as zeros of itself.
	zero(off, length int64) error
	sync() error
	// finish makes it what the copy will be read from, and says that it still is when it is called again, after a crash too.
	finish(c *copier) (catalogue.Seal, error)
	close()
}

func (c *copier) all(ctx context.Context) (copied uint64, err error) {
	if err := c.open(); err != nil {
		return 0, err
	}
	defer c.to.close()
	if c.copying.DoneBytes < c.state.SizeBytes {
		if err := c.content(ctx); err != nil {
			return 0, err
		}
	}
	for {
		seal, err := c.to.finish(c)
		if err != nil {
			return 0, err
		}
		copied, err := c.record(seal)
		if !errors.Is(err, ErrInUse) {
			return copied, err
		}
		if err := c.report(ctx, c.state.SizeBytes); err != nil {
			return 0, err
		}
		if err := sleep(ctx, finishPause); err != nil {
			return 0, err
		}
	}
}

// open opens what takes the content, where an earlier one has left it.
func (c *copier) open() error {
	p := c.pool
	if c.copying.Path == "" {
		p.mu.RLock()
		defer p.mu.RUnlock()
		v := p.volumes[c.copying.Volume]
		if v == nil {
			return ErrNotFound
		}
		c.to = &poolSink{v}
		return nil
	}
	kind, err := p.kindOf(c.copying.Path)
	if err != nil {
		return err
	}
	switch {
	case c.copying.Device && kind == missing:
		return fmt.Errorf("block device %s: %w", c.copying.Path, fs.ErrNotExist)
	case c.copying.Device != (kind == aDevice):
		return fmt.Errorf("file %s: %w: when the copy was asked for it was a block device and is none now, or the other way round", c.copying.Path, ErrInvalid)
	}
	c.to, err = openFileSink(c)
	return err
}

// content copies what is not copied yet.
func (c *copier) content(ctx context.Context) error {
	p := c.pool
	device, err := p.openState(c.state.Name, func(cat *catalogue.Catalogue) (*catalogue.State, error) { return cat.State(c.state.ID), nil })
	if err != nil {
		return err
	}
	defer device.Close()
	c.buf, c.clients = make([]byte, copyBytes), p.clientBytes.Load()
	for off := c.copying.DoneBytes; off < c.state.SizeBytes; {
		extents, err := device.Extents(ctx, off, c.state.SizeBytes-off, 512)
		if err != nil {
			return err
		}
		for _, e := range extents {
			for end := e.Offset + e.Length; off < end; {
				if err := c.report(ctx, off); err != nil {
					return err
				}
				n := end - off
				if e.Zero {
					err = c.to.zero(off, n)
				} else {
					n = min(n, copyBytes-off%copyBytes)
					err = c.step(ctx, device, off, n)
				}
				if err != nil {
					return err
				}
				if off += n; c.unsaved >= copyRecorded {
					if err := c.save(off, catalogue.Seal{}); err != nil {
						return err
					}
				}
			}
		}
	}
	return c.report(ctx, c.state.SizeBytes)
}

func (c *copier) report(ctx context.Context, done int64) error {
	if c.options.Progress == nil {
		return ctx.Err()
	}
	return c.options.Progress(ctx, done, c.state.SizeBytes)
}

// step copies up to copyBytes of data, and rests where clients write.
func (c *copier) step(ctx context.Context, from *Device, off, n int64) error {
	start, clients := time.Now(), c.pool.clientBytes.Load()
	b := c.buf[:n]
	if err := from.ReadAt(ctx, b, off); err != nil {
		return err
	}
	for at := int64(0); at < n; {
		run, zero := int64(0), false
		for at+run < n {
			blk := b[at+run : min(at+run+block.Size, n)]
			z := bytes.Equal(blk, zeroBlock[:len(blk)])
			if run > 0 && z != zero {
				break
			}
			zero = z
			run += int64(len(blk))
		}
		var err error
		if zero {
			err = c.to.zero(off+at, run)
		} else {
			err = c.to.write(ctx, b[at:at+run], off+at)
			c.unsaved += run
		}
		if err != nil {
			return err
		}
		at += run
	}
	if c.pool.clientBytes.Load() != clients || clients != c.clients {
		c.owed += busyShare * time.Since(start)
	}
	c.clients = clients
	if c.owed < shortestPause {
		return ctx.Err()
	}
	owed := c.owed
	c.owed = 0
	return sleep(ctx, owed)
}

// save makes durable what is copied, and records how far that is.
func (c *copier) save(done int64, seal catalogue.Seal) error {
	if err := c.to.sync(); err != nil {
		return err
	}
	c.unsaved = 0
	return c.note(done, seal)
}

// note records how far the copy is.
func (c *copier) note(done int64, seal catalogue.Seal) error {
	_, err := c.pool.change(func(cat *catalogue.Catalogue) (proposal, error) {
		if s := cat.State(c.state.ID); s == nil || s.Copying == nil {
			return proposal{}, ErrNotFound
		}
		return proposal{op: &catalogue.Op{CopyProgress: &catalogue.CopyProgress{ID: c.state.ID, DoneBytes: done, Seal: seal}}, urgent: true}, nil
	})
	return err
}

// record makes the copy of the snapshot.
func (c *copier) record(seal catalogue.Seal) (copied uint64, err error) {
	_, err = c.pool.change(func(cat *catalogue.Catalogue) (proposal, error) {
		s := cat.State(c.state.ID)
		if s == nil || s.Copying == nil {
			return proposal{}, ErrNotFound
		}
		op := &catalogue.FinishCopy{Of: s.ID, ID: cat.LastState + 1, Seal: seal}
		if s.Copying.Volume != 0 {
			op.Kept = op.ID + 1
		}
		copied = op.ID
		return proposal{op: &catalogue.Op{FinishCopy: op}, urgent: true, deletes: []uint64{s.ID}}, nil
	})
	return copied, err
}

// poolSink is the internal volume that takes the content of a copy.
type poolSink struct{ volume *volume }

func (s *poolSink) write(ctx context.Context, b []byte, off int64) error {
	p := s.volume.pool
	if !p.begin() {
		return fmt.Errorf("pool: %w", block.ErrClosed)
	}
	defer p.end()
	op := &block.Op{Kind: block.OpWrite, Offset: off, Length: int64(len(b)), Data: b}
	s.volume.submit(ctx, []*block.Op{op})
	return op.Err
}

func (s *poolSink) zero(int64, int64) error { return nil }

func (s *poolSink) sync() error { return nil } // the record is in the same log, behind it

func (s *poolSink) finish(*copier) (catalogue.Seal, error) {
	return catalogue.Seal{}, nil
}

func (s *poolSink) close() {}

// fileSink is a raw file or block device that takes the content of a copy.
type fileSink struct {
	fs     vfs.FS
	path   string // as it is called in the end
	part   string // as it is called until it is whole; of a device, its path
	file   vfs.File
	lock   io.Closer
	device bool  // what is not written has to be zeroed
	asked  int64 // the kernel was asked to write out what lies before
}

// openFileSink opens a file where it was left, or begins again if it is not there any more.
func openFileSink(c *copier) (*fileSink, error) {
	p := c.pool
	s := &fileSink{fs: p.opts.FS, path: c.copying.Path, part: partName(c.copying.Path), device: c.copying.Device}
	var err error
	if s.device {
		s.part = s.path
		if s.lock, err = s.fs.LockDisk(s.path); err != nil {
			return nil, fmt.Errorf("file %s: %w: %w", s.path, ErrInUse, err)
		}
		s.file, err = s.fs.OpenDisk(s.path, true)
	} else {
		s.file, err = s.fs.Open(s.part)
		if errors.Is(err, fs.ErrNotExist) && c.copying.Seal.Closed { // it has its name already
			s.part = s.path
			s.file, err = s.fs.Open(s.path)
			if err == nil && changedSince(s.fs, s.path, s.file, &c.copying.Seal) != nil {
				_ = s.file.Close() // nothing was written
				err = fs.ErrNotExist
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			s.part = partName(s.path)
			if c.copying.DoneBytes > 0 { // what is recorded was of a file that is not there any more
				c.copying.DoneBytes, c.copying.Seal = 0, catalogue.Seal{}
				err = c.note(0, catalogue.Seal{})
			} else {
				err = nil
			}
			if err == nil {
				err = makeFile(s.fs, s.part, c.state.SizeBytes)
			}
			if err == nil {
				s.file, err = s.fs.Open(s.part)
			}
		}
		if err == nil && s.part != s.path {
			err = s.file.Truncate(c.state.SizeBytes) // grown only, but for what a crash may have left of an attempt before
		}
	}
	var size int64
	if err == nil {
		size, err = s.file.Size()
	}
	if err == nil && size < c.state.SizeBytes {
		err = fmt.Errorf("file %s: %w: it has %d bytes, and the snapshot %d", s.path, ErrInvalid, size, c.state.SizeBytes)
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *fileSink) write(_ context.Context, b []byte, off int64) error {
	if err := s.file.WriteAt([][]byte{b}, off); err != nil {
		return err
	}
	if end := off + int64(len(b)); end-s.asked >= copyWriteback { // so that a sync finds little left to do
		s.file.StartWriteback(s.asked, end-s.asked)
		s.asked = end
	}
	return nil
}

func (s *fileSink) zero(off, length int64) error {
	if !s.device {
		return nil
	}
	return zeroFile(s.file, off, length)
}

func (s *fileSink) sync() error { return s.file.Sync() }

// finish records the seal before the file gets its name, so that it is known for what it is after a crash.
func (s *fileSink) finish(c *copier) (catalogue.Seal, error) {
	if s.part == s.path && c.copying.Seal.Closed { // it waits for readers of the snapshot; meanwhile everybody can see the file
		return c.copying.Seal, changedSince(s.fs, s.path, s.file, &c.copying.Seal)
	}
	if err := s.file.Sync(); err != nil {
		return catalogue.Seal{}, err
	}
	seal, err := sealOf(s.fs, s.part, s.file)
	if err != nil {
		return seal, err
	}
	c.copying.Seal = seal
	if s.device {
		return seal, nil
	}
	if err := c.save(c.state.SizeBytes, seal); err != nil {
		return seal, err
	}
	rename := s.fs.RenameNew
	if c.copying.Replace {
		rename = s.fs.Rename
	}
	if err := rename(s.part, s.path); err != nil {
		return seal, fmt.Errorf("file %s: %w", s.path, err)
	}
	s.part = s.path
	return seal, s.fs.SyncDir(path.Dir(s.path))
}

func (s *fileSink) close() {
	if s.file != nil {
		_ = s.file.Close() // synced, or never to be relied on
	}
	if s.lock != nil {
		_ = s.lock.Close() // an advisory lock goes with its file whatever Close says
	}
}
