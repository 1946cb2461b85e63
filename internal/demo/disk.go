package demo

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
)

// diskBytes is the size of the demo's disk: small enough to be kept in memory a few times.
const diskBytes = 64 * mib

// makeDisk writes a disk image and says what is on it: an ext4 file system
// with files of this machine, or where mke2fs is missing a disk with a partition
// table and a pattern.
func makeDisk(ctx context.Context, scratch, file string) (string, error) {
	mke2fs, err := findMke2fs()
	if err != nil {
		return "mke2fs is not here: a partition table and a pattern", os.WriteFile(file, picture(), 0o600)
	}
	root := filepath.Join(scratch, "root")
	files, err := gather(root)
	if err != nil {
		return "", err
	}
	said, err := exec.CommandContext(ctx, mke2fs, "-q", "-F", "-t", "ext4", "-L", "varve-demo", "-d", root,
		file, fmt.Sprintf("%dk", diskBytes>>10)).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", mke2fs, err, said)
	}
	return fmt.Sprintf("%d MiB, ext4 with %d files", diskBytes/mib, files), nil
}

// findMke2fs looks where users without privileges often do not.
func findMke2fs() (string, error) {
	for _, name := range []string{"mke2fs", "/usr/sbin/mke2fs", "/sbin/mke2fs"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", exec.ErrNotFound
}

// maxFile bounds how much of one file goes onto the disk.
const maxFile = 16 * mib

// gather copies this program and some files that most machines have.
func gather(root string) (files int, err error) {
	self, err := os.Executable()
	if err != nil {
		return 0, fmt.Errorf("find this program: %w", err)
	}
	if err := os.MkdirAll(root, 0o755); err != nil {
		return 0, err
	}
	for _, path := range []string{self, "/etc/os-release", "/etc/services", "/etc/protocols", "/etc/profile", "/bin/sh"} {
		in, err := os.Open(path)
		if err != nil {
			continue // not every machine has it, and not everybody may read it
		}
		err = copyTo(filepath.Join(root, filepath.Base(path)), in)
		in.Close()
		if err != nil {
			return 0, err
		}
		files++
	}
	return files, nil
}

func copyTo(path string, from io.Reader) error {
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	defer out.Close()
	if _, err := io.Copy(out, io.LimitReader(from, maxFile)); err != nil {
		return err
	}
	return out.Close()
}

// picture is a disk with one partition, whose every sixteenth MiB says where it is.
func picture() []byte {
	const sector, first = 512, 2048
	disk := make([]byte, diskBytes)
	entry := disk[446:] // of the master boot record's table
	entry[4] = 0x83     // Linux
	binary.LittleEndian.PutUint32(entry[8:], first)
	binary.LittleEndian.PutUint32(entry[12:], diskBytes/sector-first)
	disk[510], disk[511] = 0x55, 0xaa
	for start := first * sector; start < diskBytes; start += 16 * mib {
		for at := start; at < start+mib; at += 8 {
			binary.LittleEndian.PutUint64(disk[at:], uint64(at))
		}
	}
	return disk
}
