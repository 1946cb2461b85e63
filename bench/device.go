package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// deviceWritten is how many bytes went to the block device that a directory lies on, whoever wrote them: journal and
// maps of the file system, and what other processes write. What the kernel counts for a process is no measure of writes
// in place: each makes a whole folio of the page cache dirty, in its books, and of that one block goes to the disk.
func deviceWritten(dir string) (int64, error) {
	info, err := os.Stat(dir)
	if err != nil {
		return 0, err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, fmt.Errorf("%s: which device it lies on is not told", dir)
	}
	return sectorsWritten(fmt.Sprintf("/sys/dev/block/%d:%d/stat", unix.Major(stat.Dev), unix.Minor(stat.Dev)))
}

// sectorsWritten reads the statistics of a block device (Documentation/block/stat.rst of Linux); in bytes.
func sectorsWritten(file string) (int64, error) {
	p, err := os.ReadFile(file)
	if err != nil {
		return 0, fmt.Errorf("what is written to the disk cannot be counted: %w", err)
	}
	fields := strings.Fields(string(p))
	if len(fields) < 7 {
		return 0, fmt.Errorf("too short for a device's stat: %q", p)
	}
	sectors, err := strconv.ParseInt(fields[6], 10, 64)
	return sectors * 512, err
}
