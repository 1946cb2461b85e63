package dir

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path"

	"varve/internal/objects"
	"varve/internal/vfs"
)

// temporary begins the names of files that are being written. No object can be called so.
const temporary = "put~"

// Put implements objects.Store.
func (s *Store) Put(ctx context.Context, name string, data [][]byte, o objects.PutOptions) error {
	if err := s.check(ctx, name); err != nil {
		return err
	}
	if _, err := objects.Size(data); err != nil {
		return s.wrap("put", name, err)
	}
	if !o.LockUntil.IsZero() {
		return s.wrap("put", name, noLocks())
	}
	err := s.put(ctx, name, data)
	if errors.Is(err, errChanged) {
		s.forget(path.Dir(s.path(name)))
		err = s.put(ctx, name, data)
	}
	return s.wrap("put", name, err)
}

// errChanged: somebody removed the directory, or took the file that was being written for one that a crash had left.
var errChanged = fmt.Errorf("%w: somebody changed the directory meanwhile", objects.ErrUnavailable)

func (s *Store) put(ctx context.Context, name string, data [][]byte) error {
	if err := s.present(); err != nil {
		return err
	}
	file := s.path(name)
	parent := path.Dir(file)
	if err := s.makeDurable(parent); err != nil {
		return err
	}
	if _, err := s.fs.Stat(file); err == nil {
		return s.exists(parent)
	}
	draft := path.Join(parent, temporary+randomHex())
	err := s.write(ctx, draft, data)
	if err == nil {
		err = s.fs.RenameNew(draft, file)
	}
	if err != nil {
		_ = s.fs.Remove(draft) // a later List does it
		if errors.Is(err, fs.ErrExist) {
			return s.exists(parent)
		}
		return classify(err, errChanged)
	}
	if err := s.fs.SyncDir(parent); err != nil {
		// It may never be durable, whatever later syncs say: nobody is to rely on it.
		_ = s.fs.Remove(file)
		return classify(err, errChanged)
	}
	return nil
}

// exists is the answer where the name is taken. Who gets it may rely on the object, so it has to be durable.
func (s *Store) exists(parent string) error {
	if err := s.fs.SyncDir(parent); err != nil {
		return classify(err, errChanged)
	}
	return objects.ErrExists
}

// write makes a file of data, and its content durable.
func (s *Store) write(ctx context.Context, name string, data [][]byte) error {
	f, err := s.fs.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := writePieces(ctx, f, data); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return ctx.Err()
}

// writePieces writes data at the pace that ctx asks for. The disk begins with each piece at once, which leaves little for Sync.
func writePieces(ctx context.Context, f vfs.File, data [][]byte) error {
	pace := objects.UploadPace(ctx)
	var off int64
	piece, room := [][]byte(nil), pace.Piece()
	flush := func() error {
		length := pace.Piece() - room
		if length == 0 {
			return nil
		}
		if err := pace.Wait(ctx, length); err != nil {
			return err
		}
		if err := f.WriteAt(piece, off); err != nil {
			return err
		}
		f.StartWriteback(off, int64(length))
		off += int64(length)
		piece, room = piece[:0], pace.Piece()
		return nil
	}
	for _, d := range data {
		for len(d) > 0 {
			n := min(len(d), room)
			piece, d = append(piece, d[:n]), d[n:]
			if room -= n; room == 0 {
				if err := flush(); err != nil {
					return err
				}
			}
		}
	}
	return flush()
}

// makeDurable sees to it that a directory below the root is there, and will be after a crash. Each is looked after once by
// every Store: who finds it made by somebody else cannot know whether that one has synced it.
func (s *Store) makeDurable(dir string) error {
	if s.isDurable(dir) {
		return nil
	}
	parent := path.Dir(dir)
	if err := s.makeDurable(parent); err != nil {
		return err
	}
	err := s.fs.Mkdir(dir)
	made := err == nil
	if made || errors.Is(err, fs.ErrExist) {
		err = s.fs.SyncDir(parent)
		if err != nil && made {
			_ = s.fs.Remove(dir) // as with an object in put; fails if somebody else uses it already
		}
	}
	if err != nil {
		return classify(err, errChanged)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.durable[dir] = struct{}{}
	return nil
}

func (s *Store) isDurable(dir string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, known := s.durable[dir]
	return known
}

// forget has a directory, and those above it, looked after again.
func (s *Store) forget(dir string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ; dir != s.root; dir = path.Dir(dir) {
		delete(s.durable, dir)
	}
}

func randomHex() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}
