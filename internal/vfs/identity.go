package vfs

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

func (osFS) Identity(name string) (string, error) {
	var st unix.Statx_t
	err := retry(func() error {
		return unix.Statx(unix.AT_FDCWD, name, 0, unix.STATX_TYPE|unix.STATX_INO|unix.STATX_BTIME, &st)
	})
	switch {
	case err != nil:
		return "", &fs.PathError{Op: "identify", Path: name, Err: err}
	case st.Mode&unix.S_IFMT == unix.S_IFBLK:
		return deviceIdentity("/sys", st.Rdev_major, st.Rdev_minor), nil
	case st.Mask&unix.STATX_BTIME == 0:
		return fmt.Sprintf("inode %d", st.Ino), nil
	}
	return fmt.Sprintf("inode %d born %d.%09d", st.Ino, st.Btime.Sec, st.Btime.Nsec), nil // the number may be given again
}

// identities are the files of a block device in sysfs that tell it from others, the surest first: of device mapper (LVM), RAID, SCSI and NVMe,
// virtio, NVMe, MMC, and loop devices.
var identities = []string{"dm/uuid", "md/uuid", "wwid", "device/wwid", "serial", "device/serial", "device/cid", "loop/backing_file"}

// deviceIdentity is Identity of a block device, told by sysfs.
func deviceIdentity(sys string, major, minor uint32) string {
	dir, err := filepath.EvalSymlinks(filepath.Join(sys, "dev/block", fmt.Sprintf("%d:%d", major, minor)))
	if err != nil {
		return ""
	}
	if part := attribute(dir, "partition"); part != "" {
		if disk := diskIdentity(filepath.Dir(dir)); disk != "" {
			return fmt.Sprintf("%s, partition %s from sector %s", disk, part, attribute(dir, "start"))
		}
		for line := range strings.Lines(attribute(dir, "uevent")) {
			if id, ok := strings.CutPrefix(strings.TrimSpace(line), "PARTUUID="); ok {
				return "partition " + id
			}
		}
		return ""
	}
	return diskIdentity(dir)
}

func diskIdentity(dir string) string {
	for _, name := range identities {
		if value := strings.Join(strings.Fields(attribute(dir, name)), " "); value != "" {
			if name == "loop/backing_file" {
				return fmt.Sprintf("loop device of %s from byte %s", value, attribute(dir, "loop/offset"))
			}
			return name + " " + value
		}
	}
	return ""
}

// attribute is what a file of sysfs says; empty if there is none.
func attribute(dir, name string) string {
	text, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}
