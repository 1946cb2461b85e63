package pool

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	iofs "io/fs"
	"strings"

	"varve/internal/block"
	"varve/internal/pool/catalogue"
	"varve/internal/vfs"
)

// sampled is how many blocks of a file a seal has the checksum of.
const sampled = 64

// sealOf describes a file of which nobody else should change anything from now on.
func sealOf(fs vfs.FS, name string, file vfs.File) (catalogue.Seal, error) {
	seal := catalogue.Seal{Closed: true}
	var err error
	if seal.SizeBytes, err = file.Size(); err != nil {
		return seal, err
	}
	info, err := fs.Stat(name)
	if err != nil {
		return seal, err
	}
	if info.Mode()&iofs.ModeDevice == 0 { // whose node is made anew when the machine starts
		seal.ModTime = info.ModTime().UnixNano()
	}
	sum := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	b := make([]byte, block.Size)
	for i := range int64(sampled) {
		off := (seal.SizeBytes / sampled * i) &^ (block.Size - 1)
		n, err := file.ReadAt(b, off)
		if err != nil && !errors.Is(err, io.EOF) {
			return seal, fmt.Errorf("read file %s: %w", name, err)
		}
		clear(b[n:])
		sum.Write(b)
	}
	seal.Sample = sum.Sum32()
	return seal, nil
}

// changedSince tells what of a file is different from when it was sealed; nil if nothing is.
func changedSince(fs vfs.FS, name string, file vfs.File, then *catalogue.Seal) error {
	now, err := sealOf(fs, name, file)
	if err != nil {
		return fmt.Errorf("file %s: %w", name, err)
	}
	var what []string
	if now.SizeBytes != then.SizeBytes {
		what = append(what, fmt.Sprintf("its size was %d and is %d", then.SizeBytes, now.SizeBytes))
	}
	if now.ModTime != then.ModTime {
		what = append(what, "its time of modification is another")
	}
	if then.Sample != 0 && now.Sample != then.Sample {
		what = append(what, "its content is another")
	}
	if len(what) == 0 {
		return nil
	}
	return fmt.Errorf("file %s was changed while nobody served it: %s", name, strings.Join(what, ", "))
}
