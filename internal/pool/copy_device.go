package pool

import (
	"errors"
	"fmt"
	"io"

	"varve/internal/block"
	"varve/internal/pool/catalogue"
	"varve/internal/vfs"
)

// copyFile is the file of a copy while somebody reads it.
type copyFile struct {
	path string
	file vfs.File
}

// openCopyFile opens the file of a copy, if it is what it was when the copy was made.
func (p *Pool) openCopyFile(content *catalogue.Content) (*copyFile, error) {
	file, err := p.opts.FS.OpenDisk(content.Path, false)
	if err != nil {
		return nil, fmt.Errorf("file %s: %w", content.Path, err)
	}
	if err := changedSince(p.opts.FS, content.Path, file, &content.Seal); err != nil {
		_ = file.Close() // nothing was written
		return nil, fmt.Errorf("%w: %w", block.ErrDamaged, err)
	}
	return &copyFile{content.Path, file}, nil
}

// read fills b from off on.
func (f *copyFile) read(b []byte, off int64, wait bool) error {
	err := f.file.ReadVector([][]byte{b}, off, wait)
	if errors.Is(err, io.EOF) {
		return f.cutOff()
	}
	return err
}

func (f *copyFile) cutOff() error {
	return fmt.Errorf("%w: file %s was cut off by somebody else", block.ErrDamaged, f.path)
}

// extents describes the file from off on, in at most limit runs.
func (f *copyFile) extents(off, length int64, limit int) ([]block.Extent, error) {
	size, err := f.file.Size()
	if err != nil {
		return nil, err
	}
	if size < off+length { // what is not there must not be taken for zeros
		return nil, f.cutOff()
	}
	return fileExtents(f.file, off, length, limit)
}

// fileExtents describes a raw file from off on, in at most limit runs, which end where blocks do, also where those of the file
// system are smaller: its holes are zeros.
func fileExtents(file vfs.File, off, length int64, limit int) ([]block.Extent, error) {
	var out []block.Extent
	for end := off + length; off < end && len(out) < limit; {
		from, to, err := file.NextData(off)
		if err != nil {
			return nil, err
		}
		if from < to {
			from, to = max(from&^(block.Size-1), off), (to+block.Size-1)&^(block.Size-1)
		}
		if from > off || from == to {
			n := min(from, end) - off
			if from == to {
				n = end - off
			}
			out = append(out, block.Extent{Offset: off, Length: n, Hole: true, Zero: true})
			off += n
			continue
		}
		n := min(to, end) - off
		out = append(out, block.Extent{Offset: off, Length: n})
		off += n
	}
	return out, nil
}
