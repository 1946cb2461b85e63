package pool

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path"
	"slices"

	"github.com/google/uuid"

	"varve/internal/block"
	"varve/internal/pool/seglog"
)

const newSuperblockName = "superblock.new"

// maxSegmentBytes leaves room for the batch that a segment may exceed its length by.
const maxSegmentBytes = seglog.MaxSegmentBytes - 16<<20

// Create makes a new pool in o.Dir, which does not exist, is empty, or is what an
// interrupted Create left. The pool exists when its superblock does, which comes last.
func Create(_ context.Context, o Options) error {
	o.setDefaults()
	if err := create(o); err != nil {
		return fmt.Errorf("create pool %s: %w", o.Dir, err)
	}
	return nil
}

func create(o Options) error {
	if o.SegmentBytes < slotBytes || o.SegmentBytes > maxSegmentBytes || o.SegmentBytes%slotBytes != 0 {
		return fmt.Errorf("%w segment size %d: a multiple of %d, at most %d", ErrInvalid, o.SegmentBytes, slotBytes, maxSegmentBytes)
	}
	if err := o.FS.Mkdir(o.Dir); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if _, err := ownNames(o); err != nil { // before a lock is put into a foreign directory
		return err
	}
	lock, err := o.FS.Lock(path.Join(o.Dir, lockName), "its creation")
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }() // goes with its file whatever Close says
	names, err := ownNames(o)
	if err != nil {
		return err
	}
	if err := layOut(o, names); err != nil {
		return err
	}
	if err := o.FS.SyncDir(o.Dir); err != nil {
		return err
	}
	return o.FS.SyncDir(path.Dir(o.Dir))
}

// ownNames lists the directory, in which there may be nothing but what an interrupted creation leaves.
func ownNames(o Options) ([]string, error) {
	names, err := o.FS.List(o.Dir)
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		switch n {
		case lockName, logDirName, newSuperblockName, reserveName:
		case superblockName:
			return nil, fmt.Errorf("%w: there is a pool already", ErrExists)
		default:
			return nil, fmt.Errorf("%w: the directory holds %q, which is not of a pool; choose an empty one", ErrNotPool, n)
		}
	}
	return names, nil
}

func layOut(o Options, names []string) error {
	if slices.Contains(names, newSuperblockName) {
		if err := o.FS.Remove(path.Join(o.Dir, newSuperblockName)); err != nil {
			return err
		}
	}
	if logDir := path.Join(o.Dir, logDirName); !slices.Contains(names, logDirName) {
		if err := o.FS.Mkdir(logDir); err != nil {
			return err
		}
	} else if segments, err := o.FS.List(logDir); err != nil {
		return err
	} else if len(segments) > 0 {
		return fmt.Errorf("%w: its log holds segments and the superblock is missing; restore the superblock rather than create a pool here", ErrDamagedLog)
	}
	s := superblock{pool: uuid.New(), salt: rand.Uint64(), createdAt: o.Clock().UTC(), segmentBytes: o.SegmentBytes}
	return placeSuperblock(o, &s)
}

// placeSuperblock makes s the only superblock, durably, at once or not at all. There is no superblock.new.
func placeSuperblock(o Options, s *superblock) error {
	f, err := o.FS.Create(path.Join(o.Dir, newSuperblockName))
	if err != nil {
		return err
	}
	slots := [][]byte{make([]byte, slotBytes), make([]byte, slotBytes)}
	slots[s.generation%2] = s.encode()
	err = f.WriteAt(slots, 0)
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = o.FS.SyncDir(o.Dir) // no superblock without its log, whatever order names reach the disk in
	}
	if err != nil {
		return err
	}
	return o.FS.Rename(path.Join(o.Dir, newSuperblockName), path.Join(o.Dir, superblockName))
}

// notPool says what a directory without a superblock is.
func notPool(o *Options) error {
	names, err := o.FS.List(o.Dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: no such directory", ErrNotPool)
	case err != nil:
		return fmt.Errorf("%w: %w", ErrNotPool, err)
	case slices.Contains(names, logDirName):
		return fmt.Errorf("%w: there is a log and no superblock; its creation was cut short, or the superblock was removed", ErrNotPool)
	}
	return fmt.Errorf("%w: there is no superblock in it", ErrNotPool)
}

// reserveBytes is kept aside in a file of its own, so that on a full disk there is room to
// record deletions (one takes a block), and to open the pool.
const reserveBytes = 8 << 20

// keepReserve sees to it that the reserve is there, as large as there is room for.
func keepReserve(o *Options) {
	name := path.Join(o.Dir, reserveName)
	f, err := o.FS.Create(name)
	if errors.Is(err, fs.ErrExist) {
		f, err = o.FS.Open(name) // a power cut may have left it empty
	}
	if err != nil {
		return // there is no room for it now
	}
	for n := int64(reserveBytes); n >= 16*block.Size; n /= 2 {
		if err = f.Allocate(0, n); err == nil {
			break
		}
	}
	if e := f.Close(); err != nil || e != nil {
		_ = o.FS.Remove(name) // a part of a reserve only takes room
	}
}

// releaseReserve gives the reserve's room back; false if there was none.
func releaseReserve(o *Options) bool {
	return o.FS.Remove(path.Join(o.Dir, reserveName)) == nil
}
