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

// Writer tells who may be writing to a file or a block device; empty if nobody is found.
func Writer(path string) (who string, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", cause(err)
	}
	defer f.Close() // and with it a lease
	info, err := f.Stat()
	if err != nil {
		return "", cause(err)
	}
	if !info.Mode().IsRegular() {
		return used(f)
	}
	_, who = lease(f)
	return who, nil
}

// writers names a process that has a file open for writing which is one of those meant, as far as those of others can be seen; empty if
// none has.
func writers(meant func(os.FileInfo) bool) string {
	links, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return ""
	}
	for _, link := range links {
		info, err := os.Stat(link)
		if err != nil || !meant(info) {
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
		return fmt.Sprintf("%s (process %s) has it open for writing", strings.TrimSpace(string(name)), filepath.Base(process))
	}
	return ""
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
