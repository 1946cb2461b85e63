// Package target holds what an export writes into: a file that appears under
// its name only once it is complete and durable.
//
// Until then it is called .NAME.*.varve-part, beside the target. A process that
// dies leaves such a file; the next export to the same name removes it. Each
// holds a lock (flock) on its own, so files in work are told from leftovers.
package target

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"varve/internal/image/transfer"
)

// ErrNotFile means that the target is something that cannot be replaced by a file, such
// as a directory or a device.
var ErrNotFile = errors.New("not a regular file")

// Options say how an export treats its target.
type Options struct {
	// Replace allows to take the place of an existing file. Without it an existing
	// file is fs.ErrExist, found at the beginning and once more at the end.
	Replace bool
	// Progress may be nil.
	Progress transfer.Progress
}

const suffix = ".varve-part"

// writebackBytes is how much is written before the kernel is asked to begin to
// write it out, so that the sync at the end is short.
const writebackBytes = 8 << 20

// File is a target in the making. It is used by one goroutine.
type File struct {
	f       *os.File
	path    string // the final name, symbolic links resolved
	replace bool
	unasked int64 // bytes written since writeback was last asked for
	done    bool  // committed or aborted
}

// Create begins a file that will be called path; the mode is 0600. A symbolic
// link stays, and what it points to is replaced.
func Create(path string, replace bool) (*File, error) {
	info, err := os.Stat(path)
	switch {
	case err == nil && !info.Mode().IsRegular():
		return nil, fmt.Errorf("create %s: %w", path, ErrNotFile)
	case err == nil && !replace:
		return nil, fmt.Errorf("create %s: %w", path, fs.ErrExist)
	case err == nil:
		if path, err = filepath.EvalSymlinks(path); err != nil {
			return nil, fmt.Errorf("create %s: %w", path, err)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("create %s: %w", path, err)
	}
	removeLeftovers(path)
	f, err := createLocked(path)
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", path, err)
	}
	return &File{f: f, path: path, replace: replace}, nil
}

// createLocked makes the temporary file and locks it.
func createLocked(path string) (*os.File, error) {
	for {
		f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*"+suffix)
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			// Another export may have taken the new file for a leftover before it was locked.
			var st unix.Stat_t
			if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Nlink > 0 {
				return f, err
			}
		}
		f.Close()
		os.Remove(f.Name())
	}
}

// removeLeftovers deletes the temporary files of exports to path that died. It
// is a courtesy: what it cannot delete does not stand in the way.
func removeLeftovers(path string) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return
	}
	prefix := "." + filepath.Base(path) + "."
	for _, e := range entries {
		name := e.Name()
		rest, ours := strings.CutPrefix(name, prefix)
		number, part := strings.CutSuffix(rest, suffix)
		if !ours || !part || number == "" || strings.Trim(number, "0123456789") != "" || !e.Type().IsRegular() {
			continue // also what is to be called TARGET.something
		}
		f, err := os.Open(filepath.Join(filepath.Dir(path), name))
		if err != nil {
			continue
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			os.Remove(f.Name())
		}
		f.Close()
	}
}

// Truncate sets the size in bytes; what was not written reads as zeros.
func (t *File) Truncate(sizeBytes int64) error {
	err := t.f.Truncate(sizeBytes)
	if errors.Is(err, unix.EFBIG) || errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("write %s: %d bytes are more than its file system allows a file; choose another file system, or the format qcow2: %w",
			t.path, sizeBytes, unix.EFBIG)
	}
	return t.wrap("write", err)
}

// WriteAt writes all of p at off.
func (t *File) WriteAt(p []byte, off int64) error {
	if _, err := t.f.WriteAt(p, off); err != nil {
		return t.wrap("write", err)
	}
	t.unasked += int64(len(p))
	if t.unasked >= writebackBytes {
		t.unasked = 0
		// A hint: where it fails, the sync does all the work.
		_ = unix.SyncFileRange(int(t.f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WRITE)
	}
	return nil
}

// Commit makes the file durable and gives it its name, at once or not at all.
// After an error, Abort removes what there is.
func (t *File) Commit() error {
	if err := t.f.Sync(); err != nil {
		return t.wrap("sync", err)
	}
	if err := t.rename(); err != nil {
		return t.wrap("rename", err)
	}
	t.done = true
	t.f.Close()
	dir, err := os.Open(filepath.Dir(t.path))
	if err != nil {
		return t.wrap("sync directory of", err)
	}
	defer dir.Close()
	return t.wrap("sync directory of", dir.Sync())
}

func (t *File) rename() error {
	if t.replace {
		return os.Rename(t.f.Name(), t.path)
	}
	err := unix.Renameat2(unix.AT_FDCWD, t.f.Name(), unix.AT_FDCWD, t.path, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		// The file system lacks the operation; a link does not replace either.
		if err = os.Link(t.f.Name(), t.path); err == nil {
			os.Remove(t.f.Name())
		}
	}
	return err
}

// Abort removes the file, unless it was committed. It is meant to be deferred.
func (t *File) Abort() {
	if t.done {
		return
	}
	t.done = true
	os.Remove(t.f.Name())
	t.f.Close()
}

// wrap names the target instead of the temporary file in the error of an operation.
func (t *File) wrap(operation string, err error) error {
	if err == nil {
		return nil
	}
	var pathErr *fs.PathError
	var linkErr *os.LinkError
	switch {
	case errors.As(err, &pathErr):
		err = pathErr.Err
	case errors.As(err, &linkErr):
		err = linkErr.Err
	}
	return fmt.Errorf("%s %s: %w", operation, t.path, err)
}
