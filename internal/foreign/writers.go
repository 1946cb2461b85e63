package foreign

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Writer tells who may be writing to a file or a block device; empty if nobody is found. Of a file that is a process that has it
// open for writing.
func Writer(path string) (who string, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", cause(err)
	}
	if !info.Mode().IsRegular() {
		return used(path)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", cause(err)
	}
	defer f.Close()
	if who = writers(f); who != "" {
		who += " has it open for writing"
	}
	return who, nil
}

// writers names a process that has the same file or device open for writing, as far as those of others can be seen; empty if none has.
func writers(f *os.File) string {
	info, err := f.Stat()
	if err != nil {
		return ""
	}
	links, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return ""
	}
	for _, link := range links {
		other, err := os.Stat(link)
		if err != nil || !sameDisk(info, other) {
			continue
		}
		dir, fd := filepath.Split(link)
		process := filepath.Dir(filepath.Clean(dir))
		if !opensForWriting(filepath.Join(process, "fdinfo", fd)) {
			continue
		}
		name, err := os.ReadFile(filepath.Join(process, "comm"))
		if err != nil {
			continue // it has ended
		}
		return fmt.Sprintf("%s (process %s)", strings.TrimSpace(string(name)), filepath.Base(process))
	}
	return ""
}

// sameDisk tells whether two are one file, or one block device, whatever the names.
func sameDisk(a, b os.FileInfo) bool {
	if os.SameFile(a, b) {
		return true
	}
	as, ok1 := a.Sys().(*syscall.Stat_t)
	bs, ok2 := b.Sys().(*syscall.Stat_t)
	return ok1 && ok2 && as.Mode&syscall.S_IFMT == syscall.S_IFBLK && bs.Mode&syscall.S_IFMT == syscall.S_IFBLK && as.Rdev == bs.Rdev
}

// opensForWriting reads the flags of an open file: octal, the lowest two bits are the access mode.
func opensForWriting(fdinfo string) bool {
	b, err := os.ReadFile(fdinfo)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		value, ok := strings.CutPrefix(line, "flags:")
		if !ok {
			continue
		}
		flags, err := strconv.ParseUint(strings.TrimSpace(value), 8, 64)
		return err == nil && flags&syscall.O_ACCMODE != syscall.O_RDONLY
	}
	return false
}
