package pack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/google/uuid"

	"varve/internal/repository/chunk"
	"varve/internal/repository/seal"
)

// Entry is what a directory says of a frame.
type Entry struct {
	ID          chunk.ID // of the content; of an index frame the first id in it
	Offset      uint32   // of the sealed frame, from the end of the directory
	SealedBytes uint32
	PlainBytes  uint32 // of the content, before compression
	Encoding    Encoding
	Hashes      []uint64 // of the content's blocks of 4096 bytes, of an index frame see package index, of nodes none
}

// Directory lists the frames of a pack. It does not change, and may be used concurrently.
type Directory struct {
	entries []Entry
	hashes  int // of all entries
	set     uuid.UUID

	byID sync.Once
	ids  []uint32 // frames in the order of their ids
}

// Entries returns all entries in the order of frames; they must not be changed.
func (d *Directory) Entries() []Entry { return d.entries }

// Entry returns the entry of a frame, which is less than Len.
func (d *Directory) Entry(frame uint32) Entry { return d.entries[frame] }

// Len is the number of frames.
func (d *Directory) Len() int { return len(d.entries) }

// Set is the set that the pack belongs to, zero in repositories that have none.
func (d *Directory) Set() uuid.UUID { return d.set }

// Find returns the first frame with that id.
func (d *Directory) Find(id chunk.ID) (frame uint32, ok bool) {
	d.byID.Do(func() {
		d.ids = make([]uint32, len(d.entries))
		for i := range d.ids {
			d.ids[i] = uint32(i)
		}
		slices.SortStableFunc(d.ids, func(a, b uint32) int { return d.entries[a].ID.Compare(d.entries[b].ID) })
	})
	i, ok := slices.BinarySearchFunc(d.ids, id, func(frame uint32, id chunk.ID) int { return d.entries[frame].ID.Compare(id) })
	if !ok {
		return 0, false
	}
	return d.ids[i], true
}

// memory is what the directory takes, in bytes, approximately.
func (d *Directory) memory() int { return 128 + len(d.entries)*(72+4) + d.hashes*8 }

const (
	countBytes = 4
	entryBytes = 44
	hashBytes  = 8
)

var errDirectory = errors.New("no directory of a pack")

func directoryBytes(entries, hashes int) int {
	return countBytes + entries*entryBytes + hashes*hashBytes
}

func encodeDirectory(entries []Entry, hashes int) []byte {
	b := make([]byte, 0, directoryBytes(len(entries), hashes))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(entries)))
	for i := range entries {
		e := &entries[i]
		b = append(b, e.ID[:]...)
		b = binary.LittleEndian.AppendUint32(b, e.SealedBytes)
		b = binary.LittleEndian.AppendUint32(b, e.PlainBytes)
		b = append(b, byte(e.Encoding), 0)
		b = binary.LittleEndian.AppendUint16(b, uint16(len(e.Hashes)))
	}
	for i := range entries {
		for _, h := range entries[i].Hashes {
			b = binary.LittleEndian.AppendUint64(b, h)
		}
	}
	return b
}

// decodeDirectory decodes a directory that is followed by framesBytes of frames.
func decodeDirectory(b []byte, framesBytes int64) (*Directory, error) {
	if len(b) < countBytes {
		return nil, errDirectory
	}
	count := binary.LittleEndian.Uint32(b)
	b = b[countBytes:]
	if count > MaxFrames || len(b) < int(count)*entryBytes {
		return nil, fmt.Errorf("%w: %d entries in %d bytes", errDirectory, count, len(b))
	}
	packed, rest := b[:count*entryBytes], b[count*entryBytes:]
	hashes := make([]uint64, len(rest)/hashBytes)
	for i := range hashes {
		hashes[i] = binary.LittleEndian.Uint64(rest[i*hashBytes:])
	}
	d := &Directory{entries: make([]Entry, count), hashes: len(hashes)}
	offset := int64(0)
	for i := range d.entries {
		p := packed[i*entryBytes:][:entryBytes]
		e := Entry{
			ID:          chunk.ID(p[:32]),
			Offset:      uint32(offset),
			SealedBytes: binary.LittleEndian.Uint32(p[32:]),
			PlainBytes:  binary.LittleEndian.Uint32(p[36:]),
			Encoding:    Encoding(p[40]),
		}
		own := int(binary.LittleEndian.Uint16(p[42:]))
		if err := e.check(); err != nil {
			return nil, fmt.Errorf("%w: frame %d: %w", errDirectory, i, err)
		}
		if own > len(hashes) {
			return nil, fmt.Errorf("%w: frame %d has more hashes than there are", errDirectory, i)
		}
		if own > 0 {
			e.Hashes, hashes = hashes[:own:own], hashes[own:]
		}
		offset += int64(e.SealedBytes)
		d.entries[i] = e
	}
	if len(hashes) > 0 || len(rest)%hashBytes != 0 || offset != framesBytes {
		return nil, fmt.Errorf("%w: %d hashes too many, %d bytes of frames where %d are", errDirectory, len(hashes), offset, framesBytes)
	}
	return d, nil
}

// check tells whether the lengths fit each other, so that what is allocated for the frame is bounded.
func (e *Entry) check() error {
	switch {
	case e.PlainBytes > MaxPlainBytes:
		return fmt.Errorf("content of %d bytes, at most %d", e.PlainBytes, MaxPlainBytes)
	case e.Encoding > Zstd:
		return fmt.Errorf("unknown encoding %d", e.Encoding)
	case e.SealedBytes < seal.Overhead,
		e.SealedBytes > e.PlainBytes+seal.Overhead,
		e.Encoding == Raw && e.SealedBytes != e.PlainBytes+seal.Overhead:
		return fmt.Errorf("%d bytes sealed for %d of content", e.SealedBytes, e.PlainBytes)
	}
	return nil
}

// ranges writes ascending numbers, neighbours as a range: 3, 5-7.
func ranges(numbers []uint32) string {
	var b strings.Builder
	for i := 0; i < len(numbers); {
		j := i + 1
		for j < len(numbers) && numbers[j] == numbers[j-1]+1 {
			j++
		}
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(strconv.FormatUint(uint64(numbers[i]), 10))
		if j > i+1 {
			b.WriteString("-" + strconv.FormatUint(uint64(numbers[j-1]), 10))
		}
		i = j
	}
	return b.String()
}
