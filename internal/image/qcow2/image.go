// Package qcow2 reads and writes disk images of QEMU's format qcow2, versions 2
// and 3, after its specification (QEMU, docs/interop/qcow2.txt; "spec" below).
//
// Vocabulary, as in the spec: a cluster is the file's unit of allocation; an L2
// table, one cluster long, maps guest clusters to host clusters (places in the
// file); the L1 table points to the L2 tables. An image is an overlay if what it
// does not hold is read from a backing file, which may be an overlay too: a chain
// of layers. With extended L2 entries a cluster has 32 subclusters that are
// allocated one by one.
//
// An Image is read-only and trusts nothing that it reads. Whatever a file
// contains, opening and reading it ends in content or an error, in bounded
// memory: per chain 4 MiB of mapping tables and 8 MiB of decompressed clusters,
// per read of a compressed cluster two clusters of input and a zstd window of up
// to 8 MiB. No work is in proportion to the virtual size alone, with one exception
// that has a limit of its own: an L1 table, 32 MiB at most, is looked through once
// when it is opened.
//
// Left out: writing into existing images, encryption, external data files, and
// the content of internal snapshots and bitmaps (warnings tell of these two).
// Reference counts are not read: they say nothing about content.
package qcow2

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"varve/internal/block"
	"varve/internal/image/raw"
)

// Image is an open image with its chain of backing files. It implements
// block.Device and is read-only.
type Image struct {
	header
	path    string
	file    *raw.Device
	layer   int          // its place in the chain, the top being 0
	backing block.Device // nil: none
	shared  *shared

	warnings []string
}

// Open opens the image at path and the backing files that it names. It reads
// files that the image's content chooses: use it only where whoever named path
// answers for that.
func Open(path string) (*Image, error) {
	return openLayer(path, nil, newShared())
}

// openLayer opens the image at path with what is behind it. The files in front
// of it, from the top of the chain on, are in front.
func openLayer(path string, front []os.FileInfo, sh *shared) (*Image, error) {
	file, err := raw.Open(path)
	if err != nil {
		return nil, err
	}
	im := &Image{path: path, file: file, layer: len(front), shared: sh}
	if err := im.load(front); err != nil {
		im.Close()
		return nil, err
	}
	return im, nil
}

func (im *Image) load(front []os.FileInfo) error {
	ctx := context.Background()
	head, err := im.head(ctx)
	if err != nil {
		return err
	}
	h, err := parseHeader(head)
	if err == nil {
		im.header = *h
		err = im.checkL1(ctx)
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", im.path, err)
	}
	if im.snapshots > 0 {
		im.warn("%d internal snapshots are ignored; only the current content is read", im.snapshots)
	}
	if im.bitmaps > 0 {
		im.warn("%d bitmaps are ignored", im.bitmaps)
	}
	if im.backingName == "" {
		return nil
	}
	return im.openBacking(front)
}

// head reads the first cluster, or all of a file that is shorter.
func (im *Image) head(ctx context.Context) ([]byte, error) {
	head := make([]byte, min(im.file.SizeBytes(), 1<<minClusterBits))
	if err := im.file.ReadAt(ctx, head, 0); err != nil || len(head) < headerBytesV2 {
		return head, err
	}
	// Nonsense is left to parseHeader to find.
	bits := min(binary.BigEndian.Uint32(head[20:]), maxClusterBits)
	if n := min(im.file.SizeBytes(), 1<<bits); n > int64(len(head)) {
		head = make([]byte, n)
	}
	return head, im.file.ReadAt(ctx, head, 0)
}

func (im *Image) warn(format string, args ...any) {
	im.warnings = append(im.warnings, im.path+": "+fmt.Sprintf(format, args...))
}

// checkL1 looks at all L1 entries in use. Each L2 table has a cluster of its
// own; an image with more tables than clusters was made to keep its reader busy.
func (im *Image) checkL1(ctx context.Context) error {
	fileBytes := im.file.SizeBytes()
	needed := im.neededL1Entries()
	if im.l1Offset > fileBytes || needed*8 > fileBytes-im.l1Offset {
		return corrupt("the L1 table at %d+%d lies beyond the end of the file", im.l1Offset, needed*8)
	}
	tables, buf := int64(0), make([]byte, min(64<<10, needed*8))
	for i := int64(0); i < needed; {
		part := buf[:min(int64(len(buf)), (needed-i)*8)]
		if err := im.file.ReadAt(ctx, part, im.l1Offset+i*8); err != nil {
			return err
		}
		for ; len(part) > 0; part, i = part[8:], i+1 {
			entry := binary.BigEndian.Uint64(part)
			if entry == 0 {
				continue
			}
			table, err := im.l2Table(entry)
			if err != nil {
				return fmt.Errorf("L1 entry %d: %w", i, err)
			}
			if table != 0 {
				tables++
			}
		}
	}
	if clusters := fileBytes>>im.clusterBits + 1; tables > clusters {
		return corrupt("%d L2 tables in a file of %d clusters", tables, clusters)
	}
	return nil
}

// Files are the names of the files that the disk is read from: the image's own, and those of its backing files.
func (im *Image) Files() []string {
	files := []string{im.path}
	if b, ok := im.backing.(interface{ Files() []string }); ok {
		files = append(files, b.Files()...)
	}
	return files
}

// Warnings says what a user should know about the images of the chain.
func (im *Image) Warnings() []string {
	list := append([]string(nil), im.warnings...)
	if b, ok := im.backing.(interface{ Warnings() []string }); ok {
		list = append(list, b.Warnings()...)
	}
	return list
}

// SizeBytes is the virtual size.
func (im *Image) SizeBytes() int64 { return im.sizeBytes }

// Submit implements block.Device: it fails with block.ErrReadOnly.
func (im *Image) Submit(_ context.Context, ops []*block.Op) {
	for _, op := range ops {
		op.Err = fmt.Errorf("write %s: %w", im.path, block.ErrReadOnly)
	}
}

// Flush implements block.Device; there is nothing to flush.
func (im *Image) Flush(context.Context) error { return nil }

// Close closes all files of the chain.
func (im *Image) Close() error {
	err := im.file.Close()
	if im.backing != nil {
		err = errors.Join(err, im.backing.Close())
	}
	return err
}
