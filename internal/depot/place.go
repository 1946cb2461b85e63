package depot

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"varve/internal/contract"
	"varve/internal/objects/open"
	"varve/internal/vfs"
)

// Place looks where a repository lies, or is to lie, seen from a daemon's data directory. In it a backup would go with what it is a backup of,
// which is refused; on the same device it would too if that fails, which is a warning, else empty. A data directory
// that does not exist is nowhere.
func Place(url, data string) (warning string, err error) {
	l, err := open.Parse(url)
	if err != nil || l.Dir == "" {
		return "", err
	}
	pool, err := filepath.EvalSymlinks(data)
	if err != nil {
		return "", nil
	}
	dir := vfs.Resolved(l.Dir)
	if vfs.Within(pool, dir) {
		return "", contract.Errorf(contract.CodeRefused, "repository %s: it would lie in the data directory %s, and be lost with what it is there for", l.Dir, data).
			WithHint("have it on another disk, or in a bucket")
	}
	there, err1 := device(dir)
	here, err2 := device(pool)
	if err1 == nil && err2 == nil && there == here {
		return fmt.Sprintf("repository %s lies on the same device as the data directory %s: if that fails, both are gone", l.Dir, data), nil
	}
	return "", nil
}

// Directory is the one that a repository of that URL lies in; empty if it is in a bucket.
func Directory(url string) string {
	l, err := open.Parse(url)
	if err != nil {
		return ""
	}
	return l.Dir
}

// device is that of a path, or of the first directory above it that exists.
func device(path string) (uint64, error) {
	for {
		info, err := os.Stat(path)
		if err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				return st.Dev, nil
			}
			return 0, fmt.Errorf("%s: its device is not known", path)
		}
		if parent := filepath.Dir(path); parent != path {
			path = parent
			continue
		}
		return 0, err
	}
}
