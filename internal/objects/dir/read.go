package dir

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"syscall"
	"time"

	"varve/internal/objects"
	"varve/internal/vfs"
)

// stat describes an object; ErrNotFound also if something else has its name.
func (s *Store) stat(name string) (objects.Info, error) {
	info, err := s.fs.Stat(s.path(name))
	if err != nil {
		return objects.Info{}, classify(err, objects.ErrNotFound)
	}
	if !info.Mode().IsRegular() {
		return objects.Info{}, fmt.Errorf("%w: not a regular file", objects.ErrNotFound)
	}
	return objects.Info{Name: name, Size: info.Size(), Modified: info.ModTime()}, nil
}

// Stat implements objects.Store.
func (s *Store) Stat(ctx context.Context, name string) (objects.Info, error) {
	if err := s.check(ctx, name); err != nil {
		return objects.Info{}, err
	}
	info, err := s.stat(name)
	return info, s.wrap("stat", name, err)
}

// open opens an object. It is looked at first: to open a pipe would wait.
func (s *Store) open(ctx context.Context, name string) (f vfs.File, size int64, err error) {
	if err := s.check(ctx, name); err != nil {
		return nil, 0, err
	}
	info, err := s.stat(name)
	if err != nil {
		return nil, 0, err
	}
	f, err = s.fs.OpenReadOnly(s.path(name))
	return f, info.Size, classify(err, objects.ErrNotFound)
}

// Read implements objects.Store.
func (s *Store) Read(ctx context.Context, name string, p []byte, off int64) error {
	f, size, err := s.open(ctx, name)
	if err != nil {
		return s.wrap("read", name, err)
	}
	defer f.Close()
	if off < 0 || off > size || int64(len(p)) > size-off {
		return s.wrap("read", name, short(size, off, len(p)))
	}
	return s.wrap("read", name, readPieces(ctx, f, p, off))
}

func short(size, off int64, length int) error {
	return fmt.Errorf("%w: %d bytes at %d, of %d", objects.ErrShort, length, off, size)
}

// readPieces fills p at the pace that ctx asks for.
func readPieces(ctx context.Context, f vfs.File, p []byte, off int64) error {
	pace := objects.DownloadPace(ctx)
	for len(p) > 0 {
		n := min(len(p), pace.Piece())
		if err := pace.Wait(ctx, n); err != nil {
			return err
		}
		err := f.ReadVector([][]byte{p[:n]}, off, true)
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("%w: nothing at %d", objects.ErrShort, off)
		}
		if err != nil {
			return classify(err, objects.ErrNotFound)
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// Get implements objects.Store.
func (s *Store) Get(ctx context.Context, name string) ([]byte, error) {
	f, size, err := s.open(ctx, name)
	if err != nil {
		return nil, s.wrap("get", name, err)
	}
	defer f.Close()
	if size > objects.MaxObjectBytes {
		return nil, s.wrap("get", name, fmt.Errorf("%w: %d bytes", objects.ErrTooLarge, size))
	}
	p := make([]byte, size)
	if err := readPieces(ctx, f, p, 0); err != nil {
		return nil, s.wrap("get", name, err)
	}
	return p, nil
}

// List implements objects.Store. It removes what crashes have left in the directories that it comes by.
func (s *Store) List(ctx context.Context, prefix string, visit func(objects.Info) error) error {
	if err := objects.CheckPrefix(prefix); err != nil {
		return err
	}
	if err := s.present(); err != nil {
		return s.wrap("list", prefix, err)
	}
	w := walk{Store: s, ctx: ctx, prefix: prefix, visit: visit}
	err := w.dir(prefix[:strings.LastIndexByte(prefix, '/')+1])
	if w.stopped {
		return err
	}
	if err == nil {
		err = s.present() // what was not there may have been taken away with the medium
	}
	if err == nil {
		w.sweep()
	}
	return s.wrap("list", prefix, err)
}

// walk is one List.
type walk struct {
	*Store
	ctx     context.Context
	prefix  string
	visit   func(objects.Info) error
	stopped bool // by visit, whose error is returned

	newest time.Time // when the youngest file was written, of those that were looked at
	drafts []draft
}

// draft is a file with a temporary name.
type draft struct {
	path     string
	modified time.Time
}

// entry is an object, or a directory if its name ends with a slash, so that entries sort as the objects in them do.
type entry = objects.Info

// dir visits what is below a directory, whose name is empty or ends with a slash.
func (w *walk) dir(name string) error {
	entries, err := w.entries(name)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		if strings.HasSuffix(e.Name, "/") {
			err = w.dir(e.Name)
		} else if err = w.visit(e); err != nil {
			w.stopped = true
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// entries returns what a directory has that matters to the prefix, in order.
func (w *walk) entries(name string) ([]entry, error) {
	files, err := w.fs.List(w.path(name))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, classify(err, objects.ErrNotFound)
	}
	var entries []entry
	for _, base := range files {
		full := name + base
		isDraft := strings.HasPrefix(base, temporary)
		if !isDraft && (objects.CheckName(full) != nil ||
			!strings.HasPrefix(full, w.prefix) && !strings.HasPrefix(w.prefix, full+"/")) {
			continue
		}
		info, err := w.fs.Stat(w.path(full))
		if errors.Is(err, fs.ErrNotExist) { // deleted since, or a link to nothing
			continue
		}
		if err != nil {
			return nil, classify(err, objects.ErrNotFound)
		}
		if info.Mode().IsRegular() && info.ModTime().After(w.newest) {
			w.newest = info.ModTime()
		}
		switch {
		case isDraft:
			w.drafts = append(w.drafts, draft{w.path(full), info.ModTime()})
		case info.IsDir():
			entries = append(entries, entry{Name: full + "/"})
		case info.Mode().IsRegular():
			entries = append(entries, entry{Name: full, Size: info.Size(), Modified: info.ModTime()})
		}
	}
	slices.SortFunc(entries, func(a, b entry) int { return cmp.Compare(a.Name, b.Name) })
	return entries, nil
}

// abandoned is the age from which nobody is writing a file any more.
const abandoned = 24 * time.Hour

// sweep removes the files that crashes left. Where it may not, they stay; where somebody was still writing one after all, his
// Put begins again.
func (w *walk) sweep() {
	for _, d := range w.drafts {
		if w.newest.Sub(d.modified) > abandoned {
			_ = w.fs.Remove(d.path)
		}
	}
}
