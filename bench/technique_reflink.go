package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// reflinkDisk is a raw file on a file system of its own, in an image that is mounted through a loop device. qemu-nbd
// serves it, so that clients go the same way as to the others. Its snapshots are reflinks of the file.
type reflinkDisk struct {
	*server
	mounted string // directory
	device  string // name of the loop device, as /sys/block has it
}

// roomFor is how many times the disk the file system has room for: snapshots and their maps.
const roomFor = 6

func startReflink(kind string) func(context.Context, settings) (frozen, error) {
	return func(ctx context.Context, s settings) (_ frozen, err error) {
		if os.Geteuid() != 0 {
			return nil, fmt.Errorf("%w: mounting a file system through a loop device needs root", errAbsent)
		}
		dir, err := os.MkdirTemp(s.dir, "varve-bench")
		if err != nil {
			return nil, err
		}
		d := &reflinkDisk{mounted: filepath.Join(dir, "mounted")}
		defer func() {
			if err != nil {
				err = errors.Join(err, unmount(d.mounted), os.RemoveAll(dir))
			}
		}()
		if d.device, err = mountImage(ctx, kind, filepath.Join(dir, "image"), d.mounted, roomFor*s.Size); err != nil {
			return nil, err
		}
		if err := rawDisk(d.file("disk"), s.Size); err != nil {
			return nil, err
		}
		if d.server, err = startQemu(ctx, dir, "raw", d.file("disk")); err != nil {
			return nil, err
		}
		if err := errors.Join(fill(ctx, d.server, s.Size), d.settle(ctx)); err != nil {
			return nil, errors.Join(err, d.stop())
		}
		return d, nil
	}
}

// mountImage makes a file system in a file and mounts it. It returns the loop device's name.
func mountImage(ctx context.Context, kind, image, at string, size int64) (device string, err error) {
	if err := rawDisk(image, size); err != nil {
		return "", err
	}
	if _, err := output(ctx, "mkfs."+kind, "-q", image); err != nil {
		return "", err
	}
	if err := os.Mkdir(at, 0o700); err != nil {
		return "", err
	}
	if _, err := output(ctx, "mount", "-o", "loop", "-t", kind, image, at); err != nil {
		if ctx.Err() == nil { // no loop device, or no such file system in the kernel
			err = fmt.Errorf("%w: %w", errAbsent, err)
		}
		return "", err
	}
	source, err := output(ctx, "findmnt", "--noheadings", "--output", "SOURCE", "--mountpoint", at)
	if err != nil {
		return "", err
	}
	return filepath.Base(strings.TrimSpace(string(source))), nil
}

// unmount also gives back the loop device. What is not mounted is left alone.
func unmount(at string) error {
	err := unix.Unmount(at, 0)
	if errors.Is(err, unix.EBUSY) {
		err = unix.Unmount(at, unix.MNT_DETACH)
	}
	if err == nil || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return fmt.Errorf("unmount %s: %w", at, err)
}

func (d *reflinkDisk) file(name string) string { return filepath.Join(d.mounted, name) }

func (d *reflinkDisk) disk() *server { return d.server }

func (d *reflinkDisk) create(_ context.Context, name string) (creation, error) {
	began := time.Now()
	err := reflink(d.file("disk"), d.file(name))
	return creation{Usable: sinceMS(began)}, err
}

// reflink has one file share all blocks of another, and returns when that is durable.
func reflink(from, to string) error {
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer source.Close()
	target, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	err = unix.IoctlFileClone(int(target.Fd()), int(source.Fd()))
	if err == nil {
		err = target.Sync()
	}
	return errors.Join(err, target.Close())
}

func (d *reflinkDisk) whole(context.Context, string) error { return nil }

func (d *reflinkDisk) open(ctx context.Context, name string) (*server, func() error, error) {
	dir, err := os.MkdirTemp(filepath.Dir(d.dir), "varve-bench")
	if err != nil {
		return nil, nil, err
	}
	v, err := startQemu(ctx, dir, "raw", d.file(name))
	if err != nil {
		return nil, nil, errors.Join(err, os.RemoveAll(dir))
	}
	return v, v.stop, nil
}

// rollback has the disk share the snapshot's blocks, while no client is there. The present is kept, as varve does.
func (d *reflinkDisk) rollback(_ context.Context, name string) (usable, copied time.Duration, err error) {
	began := time.Now()
	err = errors.Join(reflink(d.file("disk"), d.file("before-rollback")), reflink(d.file(name), d.file("disk")))
	took := time.Since(began)
	return took, took, err
}

func (d *reflinkDisk) remove(_ context.Context, name string) error {
	return errors.Join(os.Remove(d.file(name)), syncFileSystem(d.mounted))
}

func (d *reflinkDisk) settle(ctx context.Context) error {
	return errors.Join(syncFileSystem(d.mounted), (fleet{d.server}).settle(ctx))
}

// written is what the file system wrote to its own device, maps and journal included.
func (d *reflinkDisk) written() (int64, error) {
	return sectorsWritten(filepath.Join("/sys/block", d.device, "stat"))
}

func (d *reflinkDisk) used(context.Context) (int64, error) {
	var stat unix.Statfs_t
	if err := unix.Statfs(d.mounted, &stat); err != nil {
		return 0, fmt.Errorf("statfs %s: %w", d.mounted, err)
	}
	return int64(stat.Blocks-stat.Bfree) * stat.Bsize, nil
}

func (d *reflinkDisk) stop() error {
	dir := d.dir
	return errors.Join(d.end(), unmount(d.mounted), os.RemoveAll(dir))
}
