package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// imageFound says what is backed up.
type imageFound struct {
	SizeBytes    int64 `json:"size_bytes"`
	ContentBytes int64 `json:"content_bytes"` // of the files in it
	Files        int   `json:"files"`
}

// imageSources are directories whose files become the content of the image, until there is enough of it: programs and libraries first.
var imageSources = []string{"/usr/bin", "/usr/sbin", "/usr/libexec", "/usr/lib", "/usr/local", "/usr/share"}

// enough is how much may be missing: hardly any file is that small.
const enough = 16 << 10

// makeImage makes the raw image of an ext4 file system that holds files of this machine with so many bytes of content, or all there are; a
// third as much is free. On one machine the choice is always the same.
func makeImage(ctx context.Context, dir, image string, content int64) (found imageFound, err error) {
	stage, err := os.MkdirTemp(dir, "varve-bench")
	if err != nil {
		return found, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(stage)) }()
	if err := found.stage(ctx, stage, content); err != nil {
		return found, err
	}
	if found.ContentBytes < content/2 {
		return found, fmt.Errorf("%s hold %d MiB that can be read: too little for an image of %d MiB", strings.Join(imageSources, ", "), found.ContentBytes>>20, content>>20)
	}
	const mib = 1 << 20
	found.SizeBytes = (max(found.ContentBytes*10/7, found.ContentBytes+32*mib) + mib - 1) / mib * mib
	const id = "8d1c1a3e-5f0b-4c7e-9a52-1f2e3d4c5b6a" // any will do, so that there is nothing random in it
	_, err = output(ctx, systemProgram("mke2fs"), "-q", "-F", "-t", "ext4", "-m", "0", "-U", id, "-E", "hash_seed="+id, "-d", stage, image, fmt.Sprintf("%dM", found.SizeBytes/mib))
	return found, err
}

// stage links or copies files to a directory, in the order of their names.
func (f *imageFound) stage(ctx context.Context, stage string, content int64) error {
	known := map[[2]uint64]bool{} // by device and inode: of several names one is taken
	for _, source := range imageSources {
		err := filepath.WalkDir(source, func(path string, e fs.DirEntry, err error) error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if content-f.ContentBytes < enough {
				return filepath.SkipAll
			}
			if err != nil || !e.Type().IsRegular() {
				return nil // what cannot be read is left out
			}
			info, err := e.Info()
			if err != nil || f.ContentBytes+info.Size() > content {
				return nil
			}
			if stat, ok := info.Sys().(*syscall.Stat_t); ok {
				inode := [2]uint64{stat.Dev, stat.Ino}
				if known[inode] {
					return nil
				}
				known[inode] = true
			}
			target := filepath.Join(stage, path)
			if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
				return err
			}
			if err := linkOrCopy(path, target); err != nil {
				if errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) {
					return nil
				}
				return err
			}
			f.ContentBytes += info.Size()
			f.Files++
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// linkOrCopy gives a file a second name or, where that cannot be, copies it.
func linkOrCopy(from, to string) error {
	if os.Link(from, to) == nil {
		return nil
	}
	_, err := copyFile(from, to, -1)
	return err
}

// copyFile copies the first n bytes of a file, or all if n is negative, and leaves holes where 64 KiB are zeros. It returns how many there were.
func copyFile(from, to string, n int64) (_ int64, err error) {
	source, err := os.Open(from)
	if err != nil {
		return 0, err
	}
	defer source.Close()
	target, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, target.Close()) }()
	p := make([]byte, 64<<10)
	at := int64(0)
	for n < 0 || at < n {
		want := p
		if n >= 0 {
			want = p[:min(int64(len(p)), n-at)]
		}
		got, err := io.ReadFull(source, want)
		if slices.ContainsFunc(want[:got], func(b byte) bool { return b != 0 }) {
			if _, err := target.WriteAt(want[:got], at); err != nil {
				return at, err
			}
		}
		at += int64(got)
		if err != nil {
			if ended(err) == nil {
				break
			}
			return at, err
		}
	}
	return at, target.Truncate(at)
}

// systemProgram finds one that may lie where only root looks.
func systemProgram(name string) string {
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	return filepath.Join("/usr/sbin", name)
}
