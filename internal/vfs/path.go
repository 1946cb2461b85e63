package vfs

import (
	"path/filepath"
	"strings"
)

// Resolved is a path of the operating system without symbolic links, as far as it exists.
func Resolved(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	dir := filepath.Dir(path)
	if dir == path {
		return path
	}
	return filepath.Join(Resolved(dir), filepath.Base(path))
}

// Within tells whether a path is a directory or lies in it; both are clean.
func Within(dir, path string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}
