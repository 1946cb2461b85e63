package pool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"varve/internal/block"
	"varve/internal/pool/blockmap"
	"varve/internal/pool/catalogue"
	"varve/internal/pool/seglog"
	"varve/internal/vfs"
)

// place is the file of an inplace volume while the pool is open: see docs/design/inplace.md.
//
// Lock order: a reservation of ranges; gate; leadership of the committer; mu.
type place struct {
	origin   // what is not in the file any more is kept
	volume   *volume
	path     string
	readOnly bool

	next    atomic.Uint64 // version
	pending atomic.Bool   // a rollback is not copied back yet
	turn    atomic.Uint64 // counts rollbacks; changes while all blocks are reserved
	overlay *overlay
	ranges  ranges
	// gate is held shared from when a writer has looked at the epoch until it is in the file or the log, and alone while the epoch changes.
	gate sync.RWMutex

	mu     sync.Mutex
	file   vfs.File
	lock   io.Closer
	broken error // why there is no file, or none that can be relied on
	inUse  atomic.Bool

	written atomic.Uint64 // counts what clients did to the file
	synced  atomic.Uint64 // one more than that was when all of it had been synced: after opening, nothing has
	syncing sync.Mutex    // held across a sync for clients, so that many share one

	stop context.CancelFunc // ends what destages; nil: nothing does
}

// newPlace describes the file of a volume, and opens nothing.
func (p *Pool) newPlace(v *catalogue.Volume) *place {
	pl := &place{origin: origin{pool: p, number: v.Number}, path: v.Place.Path, readOnly: v.Place.ReadOnly, broken: errNotOpen, overlay: newOverlay(p.opts.OverlayBytes)}
	pl.rest = pl
	pl.next.Store(v.Place.Next)
	pl.pending.Store(len(v.Place.Bases) > 0)
	return pl
}

var errNotOpen = errors.New("it has not been opened")

// openPlaces opens the files of all inplace volumes. One that cannot be opened, or that is not what it was, costs its volume
// alone, and is told.
func (p *Pool) openPlaces() {
	for _, v := range p.cat.Volumes() {
		if v.Place == nil {
			continue
		}
		pl := p.volumes[v.Number].place
		if v.Place.Seal.Closed || pl.readOnly || pl.keepsNothing() {
			pl.overlay.all() // and none is left, or was ever there
		}
		if err := pl.open(p.volumes[v.Number].size.Load()); err != nil {
			p.event(EventPlaceLost, v.Name, err.Error())
			continue
		}
		if seal := v.Place.Seal; seal.Closed {
			if err := pl.compare(&seal); err != nil {
				p.suspect(v, err)
			}
		} else {
			pl.inUse.Store(true)
		}
	}
}

// suspect records that somebody else has changed a volume's file.
func (p *Pool) suspect(v *catalogue.Volume, cause error) {
	p.event(EventPlaceChanged, v.Name, cause.Error()+"; what its snapshots have in the file is not to be relied on, and is not served")
	if _, err := p.changeNow(func(*catalogue.Catalogue) (proposal, error) {
		return proposal{op: &catalogue.Op{SetPlace: &catalogue.SetPlace{Number: v.Number, Changed: true}}, urgent: true}, nil
	}); err != nil {
		p.event(EventPlaceChanged, v.Name, err.Error())
	}
	p.volumes[v.Number].place.inUse.Store(true)
}

// open opens the file and takes its lock.
func (pl *place) open(sizeBytes int64) error {
	fs := pl.pool.opts.FS
	lock, err := fs.LockDisk(pl.path)
	if err != nil {
		return pl.fail(err)
	}
	file, err := fs.OpenDisk(pl.path, !pl.readOnly)
	if err != nil {
		_ = lock.Close()
		return pl.fail(err)
	}
	size, err := file.Size()
	if err == nil && size < sizeBytes {
		err = fmt.Errorf("it has %d bytes, and the volume %d", size, sizeBytes)
	}
	if err != nil {
		_ = file.Close() // nothing was written
		_ = lock.Close()
		return pl.fail(err)
	}
	pl.mu.Lock()
	defer pl.mu.Unlock()
	pl.file, pl.lock, pl.broken = file, lock, nil
	return nil
}

// keepsNothing tells that nothing of the volume lies in the log at all.
func (pl *place) keepsNothing() bool {
	pl.kept.mu.RLock()
	defer pl.kept.mu.RUnlock()
	return pl.kept.tree.View().Empty()
}

// whole tells whether the file has all that the head has.
func (pl *place) whole() bool { return pl.overlay.empty.Load() && !pl.pending.Load() }

// versioned is a change that gives blocks new versions.
func (pl *place) versioned(kind seglog.Kind, of span, first uint64, pins *blockmap.Pins) change {
	return change{volume: pl.volume, pins: pins, entry: seglog.Entry{Kind: kind, Volume: pl.volume.number, LBA: of.lo, Count: of.hi - of.lo, Version: first}}
}

func (pl *place) fail(err error) error {
	err = fmt.Errorf("file %s: %w", pl.path, err)
	pl.mu.Lock()
	defer pl.mu.Unlock()
	pl.broken = err
	return err
}

// get returns the file, or why there is none.
func (pl *place) get() (vfs.File, error) {
	pl.mu.Lock()
	defer pl.mu.Unlock()
	return pl.file, pl.broken
}

// failed tells of an error of the file, once, and returns it.
func (pl *place) failed(what string, err error) error {
	err = fmt.Errorf("%s file %s: %w", what, pl.path, err)
	if first, _ := pl.pool.told.first(what + " " + pl.path); first {
		pl.pool.event(EventPlaceLost, pl.volume.name(), err.Error())
	}
	return err
}

// sync makes what clients wrote to the file durable.
func (pl *place) sync() error {
	if _, err := pl.get(); err != nil || pl.readOnly {
		return err
	}
	if pl.synced.Load() > pl.written.Load() {
		return nil
	}
	pl.syncing.Lock()
	defer pl.syncing.Unlock()
	now := pl.written.Load()
	if pl.synced.Load() > now {
		return nil
	}
	if err := pl.syncFile(); err != nil {
		return err
	}
	pl.synced.Store(now + 1)
	return nil
}

// syncFile makes all of the file durable. After a failure nobody knows what is: nothing more is written.
func (pl *place) syncFile() error {
	file, err := pl.get()
	if err != nil {
		return err
	}
	if err := file.Sync(); err != nil {
		return pl.fail(pl.failed("sync", fmt.Errorf("%w; nothing more is written to it until the pool is opened again", err)))
	}
	return nil
}

// read fills b from off on; what lies beyond the end of the file is zeros. Without wait it is vfs.ErrWouldBlock if it is not in memory.
func (pl *place) read(b []byte, off int64, wait bool) error {
	file, err := pl.get()
	if err != nil {
		return err
	}
	if !wait {
		return file.ReadVector([][]byte{b}, off, false)
	}
	n, err := file.ReadAt(b, off)
	if errors.Is(err, io.EOF) {
		clear(b[n:])
		return nil
	}
	if err != nil {
		return pl.failed("read", err)
	}
	return nil
}

// seal describes the file as it is.
func (pl *place) seal() (catalogue.Seal, error) {
	file, err := pl.get()
	if err != nil {
		return catalogue.Seal{}, err
	}
	return sealOf(pl.pool.opts.FS, pl.path, file)
}

// compare tells what is different from when the file was closed.
func (pl *place) compare(then *catalogue.Seal) error {
	file, err := pl.get()
	if err != nil {
		return err
	}
	return changedSince(pl.pool.opts.FS, pl.path, file, then)
}

// use records, before the first write, that the file is in use, and so may differ from its seal.
func (pl *place) use() error {
	if pl.inUse.Load() {
		return nil
	}
	p := pl.pool
	_, err := p.changeNow(func(c *catalogue.Catalogue) (proposal, error) {
		v := c.Volume(pl.volume.number)
		if v == nil {
			return proposal{}, ErrNotFound
		}
		return proposal{op: &catalogue.Op{SetPlace: &catalogue.SetPlace{Number: v.Number}}, urgent: true}, nil
	})
	if err == nil {
		pl.inUse.Store(true)
	}
	return err
}

// closePlaces brings into the files what lies in the log alone, makes them durable and seals them. What cannot be sealed counts as in use.
func (p *Pool) closePlaces() error {
	var failed error
	for _, v := range p.cat.Volumes() {
		if v.Place == nil {
			continue
		}
		pl := p.volumes[v.Number].place
		if !pl.inUse.Load() {
			continue
		}
		if _, err := pl.get(); err != nil { // which was told
			continue
		}
		err := pl.destage(context.Background())
		if err == nil {
			err = pl.sync()
		}
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("volume %q: %w", v.Name, err))
			continue
		}
		if !pl.overlay.empty.Load() { // there was a crash before a rollback was copied back: what is behind is not known yet
			continue
		}
		seal, err := pl.seal()
		if err != nil {
			p.event(EventPlaceLost, v.Name, err.Error())
			continue
		}
		if _, err := p.changeNow(func(*catalogue.Catalogue) (proposal, error) {
			return proposal{op: &catalogue.Op{SetPlace: &catalogue.SetPlace{Number: v.Number, Seal: seal}}, urgent: true}, nil
		}); err != nil {
			failed = errors.Join(failed, fmt.Errorf("volume %q: %w", v.Name, err))
		}
	}
	return failed
}

func (pl *place) close() {
	if pl.stop != nil {
		pl.stop()
	}
	pl.mu.Lock()
	defer pl.mu.Unlock()
	if pl.file != nil {
		_ = pl.file.Close() // synced, or its volume was not closed in order
		_ = pl.lock.Close() // an advisory lock goes with its file whatever Close says
	}
	pl.file, pl.broken = nil, fmt.Errorf("file %s: %w", pl.path, block.ErrClosed)
}

// PlaceSpec says what file to make a volume of.
type PlaceSpec struct {
	Name   string
	Path   string // absolute
	Labels map[string]string
	// SizeBytes, if not 0, has a new file made of that size, which must not exist.
	SizeBytes int64
}

// AdoptVolume makes an inplace volume of a raw file or block device where it lies, of which nothing is changed; or, with a
// size, of a new file. A file that cannot be written is adopted read-only. ErrInvalid, ErrExists, ErrInUse.
func (p *Pool) AdoptVolume(ctx context.Context, spec PlaceSpec) (VolumeInfo, error) {
	info, err := p.adopt(ctx, spec)
	if err != nil {
		return VolumeInfo{}, fmt.Errorf("volume %q in %s: %w", spec.Name, spec.Path, err)
	}
	return info, nil
}

func (p *Pool) adopt(ctx context.Context, spec PlaceSpec) (VolumeInfo, error) {
	fs := p.opts.FS
	if !path.IsAbs(spec.Path) {
		return VolumeInfo{}, fmt.Errorf("%w path: it is not absolute", ErrInvalid)
	}
	if inside(p.opts.Dir, spec.Path) {
		return VolumeInfo{}, fmt.Errorf("%w path: it lies in the pool's own directory", ErrInvalid)
	}
	if err := checkName("volume", spec.Name); err != nil {
		return VolumeInfo{}, err
	}
	p.adopting.Lock() // two that adopt one file would not see each other
	defer p.adopting.Unlock()
	made := spec.SizeBytes != 0
	if made {
		if err := checkSize(spec.SizeBytes); err != nil {
			return VolumeInfo{}, err
		}
		if err := makeFile(fs, spec.Path, spec.SizeBytes); err != nil {
			return VolumeInfo{}, err
		}
	}
	info, err := p.adoptFile(ctx, spec)
	if err != nil && made {
		err = errors.Join(err, fs.Remove(spec.Path))
	}
	return info, err
}

// inside tells whether a path lies in a directory.
func inside(dir, name string) bool {
	dir = path.Clean(dir)
	return path.Clean(name) == dir || strings.HasPrefix(path.Clean(name), dir+"/")
}

func makeFile(fs vfs.FS, name string, sizeBytes int64) error {
	f, err := fs.Create(name)
	if err != nil {
		return err
	}
	err = f.Truncate(sizeBytes)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = fs.SyncDir(path.Dir(name))
	}
	if err != nil {
		return errors.Join(err, fs.Remove(name))
	}
	return nil
}

func (p *Pool) adoptFile(ctx context.Context, spec PlaceSpec) (VolumeInfo, error) {
	fs := p.opts.FS
	info, err := fs.Stat(spec.Path)
	if err != nil {
		return VolumeInfo{}, err
	}
	if info.IsDir() {
		return VolumeInfo{}, fmt.Errorf("%w: it is a directory, and a raw file or block device is wanted", ErrInvalid)
	}
	if user := p.UsedBy(spec.Path); user != "" {
		return VolumeInfo{}, fmt.Errorf("%w: %s has it", ErrInUse, user)
	}
	readOnly := false
	file, err := fs.OpenDisk(spec.Path, true)
	if errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EROFS) || errors.Is(err, syscall.EPERM) {
		readOnly = true
		file, err = fs.OpenDisk(spec.Path, false)
	}
	if err != nil {
		return VolumeInfo{}, err
	}
	size, err := file.Size()
	_ = file.Close() // nothing was written
	if err == nil {
		err = checkSize(size)
	}
	if err != nil {
		return VolumeInfo{}, err
	}
	lock, err := fs.LockDisk(spec.Path)
	if err != nil {
		return VolumeInfo{}, fmt.Errorf("%w: %w", ErrInUse, err)
	}
	_ = lock.Close() // taken again below, by the volume
	var number uint64
	_, _, err = p.createVolume(VolumeSpec{Name: spec.Name, SizeBytes: size, Labels: spec.Labels}, func(c *catalogue.Catalogue, op *catalogue.CreateVolume) error {
		number = op.Number
		op.Base = op.Number
		op.Place = &catalogue.NewPlace{Path: spec.Path, ReadOnly: readOnly, Kept: op.Number + 1, KeptHead: op.HeadID + 1}
		return nil
	})
	if err != nil {
		return VolumeInfo{}, err
	}
	p.mu.RLock()
	v := p.volumes[number]
	p.mu.RUnlock()
	if v == nil {
		return VolumeInfo{}, ErrNotFound
	}
	if err := v.place.open(size); err != nil {
		return VolumeInfo{}, errors.Join(err, p.deleteVolume(ctx, spec.Name, false))
	}
	v.place.overlay.all()
	v.place.startDestaging()
	return p.Volume(spec.Name)
}

// version says where a block of an inplace lineage is: by its version, or, if it has none, nowhere.
func version(e blockmap.Entry) (uint64, bool) {
	v, ok := e.Version()
	return uint64(v), ok
}
