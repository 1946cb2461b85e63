package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"varve/internal/block"
	"varve/internal/contract"
	"varve/internal/image"
	"varve/internal/image/format"
	"varve/internal/pool"
	"varve/internal/vfs"
)

// AdoptVolume makes an inplace volume of a raw file or block device where it lies. Nothing of it is changed. What begins like an
// image of another format is refused unless force: clients would see the container, not the disk in it, and overwrite it.
func (d *Daemon) AdoptVolume(ctx context.Context, r contract.AdoptVolume) (contract.Volume, error) {
	wrap := func(err error) error { return fmt.Errorf("adopt %s as volume %q: %w", r.Path, r.Name, err) }
	if err := d.placeable(r.Path); err != nil {
		return contract.Volume{}, err
	}
	info, err := os.Stat(r.Path)
	if err != nil {
		return contract.Volume{}, wrap(err)
	}
	// A pipe or a terminal would only be found out by opening it, which may wait for ever.
	if kind := info.Mode().Type(); kind != 0 && kind != fs.ModeDevice {
		return contract.Volume{}, contract.Errorf(contract.CodeUsage, "adopt %s as volume %q: it is no raw file or block device, but %s", r.Path, r.Name, kindOf(kind))
	}
	found, err := image.Detect(r.Path)
	if err != nil && !errors.Is(err, image.ErrEmpty) { // which the pool refuses, as a size
		return contract.Volume{}, wrap(err)
	}
	if found != "" && found != format.Raw && !r.Force {
		return contract.Volume{}, contract.Errorf(contract.CodeRefused, "adopt %s as volume %q: it looks like an image of format %s, and would be served as the raw file it is", r.Path, r.Name, found).
			WithHint("to have the disk in it: varve volume create %s --from FILE; to serve it as it is all the same: --force", r.Name)
	}
	_, err = d.pool.AdoptVolume(ctx, pool.PlaceSpec{Name: r.Name, Path: filepath.Clean(r.Path), Labels: r.Labels})
	if err != nil {
		if size := info.Size(); info.Mode().IsRegular() && size%block.SectorSize != 0 {
			err = hinted(err, pool.ErrInvalid, "lengthen it with zeros: truncate -s %%%d FILE; or import a copy: varve volume create %s --from FILE", block.Size, r.Name)
		}
		return contract.Volume{}, hinted(err, pool.ErrInUse, "a file is one volume's, and no other program's meanwhile: varve volume list, or stop the program")
	}
	return d.Volume(ctx, r.Name)
}

func kindOf(mode fs.FileMode) string {
	switch {
	case mode&fs.ModeDir != 0:
		return "a directory"
	case mode&fs.ModeCharDevice != 0:
		return "a character device"
	case mode&fs.ModeNamedPipe != 0:
		return "a pipe"
	case mode&fs.ModeSocket != 0:
		return "a socket"
	}
	return "something else"
}

// createInplace makes a volume in a new raw file, as large as the volume and all holes.
func (d *Daemon) createInplace(ctx context.Context, r contract.CreateVolume) (contract.Volume, error) {
	switch {
	case r.From != "":
		return contract.Volume{}, contract.Errorf(contract.CodeUsage, "create volume %s: a clone lies in the pool, never in a file of its own", r.Name).
			WithHint("write the snapshot to a file, then adopt that: varve volume export, varve volume adopt")
	case r.Size == 0:
		return contract.Volume{}, contract.Errorf(contract.CodeUsage, "create volume %s in %s: a size is needed, larger than 0", r.Name, r.Inplace)
	}
	if err := d.placeable(r.Inplace); err != nil {
		return contract.Volume{}, err
	}
	_, err := d.pool.AdoptVolume(ctx, pool.PlaceSpec{Name: r.Name, Path: filepath.Clean(r.Inplace), Labels: r.Labels, SizeBytes: r.Size})
	if err != nil {
		return contract.Volume{}, hinted(err, fs.ErrExist, "name a file that does not exist yet; to have this one as it is: varve volume adopt %s FILE", r.Name)
	}
	return d.Volume(ctx, r.Name)
}

// placeable tells why a volume may not lie at a path: a relative one, or one in the data directory, by whatever links.
func (d *Daemon) placeable(path string) error {
	if !filepath.IsAbs(path) {
		return contract.Errorf(contract.CodeUsage, "%q: the path is not absolute", path)
	}
	if vfs.Within(vfs.Resolved(d.dir), vfs.Resolved(path)) {
		return contract.Errorf(contract.CodeUsage, "%s lies in the data directory %s, where only Varve's own files are", path, d.dir).
			WithHint("have it elsewhere, on the same file system if you like")
	}
	return nil
}

// volumeIn names the inplace volume that lies in a file, by whatever path; empty if none does.
func (d *Daemon) volumeIn(path string) string {
	file, err := os.Stat(path)
	for _, info := range d.pool.Volumes() {
		if info.Path == "" {
			continue
		}
		its, lost := os.Stat(info.Path)
		if vfs.Resolved(info.Path) == vfs.Resolved(path) || err == nil && lost == nil && os.SameFile(file, its) {
			return info.Name
		}
	}
	return ""
}

// detachable tells why an inplace volume may not be deleted now, before anybody is cut off for it.
func (d *Daemon) detachable(info pool.VolumeInfo) error {
	if info.Path == "" {
		return nil
	}
	for _, other := range d.pool.Volumes() {
		if other.Base == info.Name {
			return contract.Errorf(contract.CodeRefused, "delete volume %q: its clone %q reads blocks from its file", info.Name, other.Name).
				WithHint("delete the clone first: varve volume delete %s", other.Name)
		}
	}
	if info.CopyingBack {
		return contract.Errorf(contract.CodeRefused, "delete volume %q: a rollback is not wholly copied back into its file yet", info.Name).
			WithHint("wait for that: varve job list; if no job does it, varve volume copy-back %s", info.Name)
	}
	if info.Broken != "" && info.Behind {
		return contract.Errorf(contract.CodeRefused, "delete volume %q: what was written to it last lies in the pool alone, and its file cannot take it: %s", info.Name, info.Broken).
			WithHint("start the daemon again when the file can be used; if it is gone for good, with another of %d bytes in its place", info.SizeBytes)
	}
	return nil
}
