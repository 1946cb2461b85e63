package pool

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/google/uuid"

	"varve/internal/pool/blockmap"
	"varve/internal/pool/catalogue"
	"varve/internal/pool/seglog"
	"varve/internal/vfs"
)

const (
	superblockName = "superblock"
	logDirName     = "log"
	lockName       = "LOCK"
	reserveName    = "reserve"

	formatVersion   = 1
	superblockMagic = "VARVESUP"
	slotBytes       = 4096
	saltOffset      = 104
	chunksOffset    = 112
	maxChunks       = (slotBytes - chunksOffset) / 16
	// chunkBytes is how the catalogue's image is cut. 249 chunks hold it whole up to
	// 996 MiB, some 5 million snapshots.
	chunkBytes = 4 << 20
)

// superblock says where the newest checkpoint lies. Two slots alternate, so that a
// torn write leaves the one before. docs/format.md gives the bytes.
type superblock struct {
	pool         uuid.UUID
	salt         uint64 // under the checksums of batch headers
	createdAt    time.Time
	segmentBytes int64
	generation   uint64          // counts checkpoints; its parity is the slot
	durableSeq   uint64          // newest batch known durable
	position     seglog.Position // replay begins here
	catalogueLen int64
	chunks       []blockmap.Ptr // of the catalogue's image
}

func (s *superblock) encode() []byte {
	le := binary.LittleEndian
	b := make([]byte, slotBytes)
	copy(b, superblockMagic)
	le.PutUint32(b[8:], formatVersion)
	copy(b[16:], s.pool[:])
	le.PutUint64(b[32:], uint64(s.createdAt.UnixNano()))
	le.PutUint64(b[40:], uint64(s.segmentBytes))
	le.PutUint64(b[48:], s.generation)
	le.PutUint64(b[56:], s.durableSeq)
	le.PutUint64(b[64:], s.position.Seq)
	le.PutUint32(b[72:], s.position.CRC)
	le.PutUint32(b[76:], uint32(len(s.chunks)))
	le.PutUint64(b[80:], s.position.Segment)
	le.PutUint64(b[88:], uint64(s.position.Offset))
	le.PutUint64(b[96:], uint64(s.catalogueLen))
	le.PutUint64(b[saltOffset:], s.salt)
	for i, c := range s.chunks {
		p := b[chunksOffset+16*i:]
		le.PutUint64(p, uint64(c.Addr))
		le.PutUint32(p[8:], c.Length)
		le.PutUint32(p[12:], c.CRC)
	}
	le.PutUint32(b[12:], seglog.Checksum(b))
	return b
}

var errBadSlot = errors.New("superblock slot is not sound")

func decodeSuperblock(b []byte) (superblock, error) {
	le := binary.LittleEndian
	b = slices.Clone(b)
	crc := le.Uint32(b[12:])
	le.PutUint32(b[12:], 0)
	if string(b[:8]) != superblockMagic || seglog.Checksum(b) != crc {
		return superblock{}, errBadSlot
	}
	if v := le.Uint32(b[8:]); v == 0 {
		return superblock{}, errBadSlot
	} else if v > formatVersion {
		return superblock{}, fmt.Errorf("%w: its format is %d and this program knows up to %d; use the newer version", ErrNewerFormat, v, formatVersion)
	}
	s := superblock{
		salt:         le.Uint64(b[saltOffset:]),
		createdAt:    time.Unix(0, int64(le.Uint64(b[32:]))).UTC(),
		segmentBytes: int64(le.Uint64(b[40:])),
		generation:   le.Uint64(b[48:]),
		durableSeq:   le.Uint64(b[56:]),
		position: seglog.Position{
			Seq: le.Uint64(b[64:]), CRC: le.Uint32(b[72:]),
			Segment: le.Uint64(b[80:]), Offset: int64(le.Uint64(b[88:])),
		},
		catalogueLen: int64(le.Uint64(b[96:])),
	}
	copy(s.pool[:], b[16:32])
	n := int(le.Uint32(b[76:]))
	if n > maxChunks || s.segmentBytes <= 0 || s.segmentBytes > maxSegmentBytes || s.position.Offset < 0 {
		return superblock{}, errBadSlot
	}
	for i := range n {
		p := b[chunksOffset+16*i:]
		s.chunks = append(s.chunks, blockmap.Ptr{Addr: seglog.Addr(le.Uint64(p)), Length: le.Uint32(p[8:]), CRC: le.Uint32(p[12:])})
	}
	return s, nil
}

// readSuperblocks returns the sound slots, newest first. They are read from the disk: an
// earlier process may have been told that a slot could not be synced, while the cache shows it.
func readSuperblocks(f vfs.File) ([]superblock, error) {
	err := f.Sync()
	if err == nil {
		err = f.DropCache()
	}
	if err != nil {
		return nil, fmt.Errorf("read superblock: %w", err)
	}
	var found []superblock
	cause := errBadSlot
	for i := range int64(2) {
		b := make([]byte, slotBytes)
		n, err := f.ReadAt(b, i*slotBytes)
		if errors.Is(err, io.EOF) {
			clear(b[n:])
		} else if isLoss(err) { // as if it were not sound: that is what there are two for
			cause = err
			continue
		} else if err != nil {
			return nil, fmt.Errorf("read superblock: %w", err)
		}
		s, err := decodeSuperblock(b)
		if errors.Is(err, ErrNewerFormat) {
			return nil, err
		} else if err == nil {
			found = append(found, s)
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%w: neither slot of its superblock is sound: %w", ErrDamagedLog, cause)
	}
	slices.SortFunc(found, func(a, b superblock) int { return cmp.Compare(b.generation, a.generation) })
	return found, nil
}

// writeSuperblock makes s the newest superblock, durably.
func writeSuperblock(f vfs.File, s *superblock) error {
	err := f.WriteAt([][]byte{s.encode()}, int64(s.generation%2)*slotBytes)
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return fmt.Errorf("write superblock: %w", seglog.NoSpace(err))
	}
	return nil
}

// errDamagedCatalogue: what the superblock points to is not sound.
var errDamagedCatalogue = errors.New("the catalogue's image is damaged")

// loadCatalogue reads the catalogue that a superblock points to.
func (p *Pool) loadCatalogue(super *superblock) (*catalogue.Catalogue, error) {
	if len(super.chunks) == 0 {
		return catalogue.New(), nil
	}
	var image []byte
	for _, c := range super.chunks {
		if c.Length > chunkBytes {
			return nil, fmt.Errorf("%w: %w: a chunk of %d bytes", ErrDamagedLog, errDamagedCatalogue, c.Length)
		}
		chunk := make([]byte, c.Length)
		if err := p.log.ReadAt(c.Addr, chunk); err != nil {
			return nil, fmt.Errorf("%w: %w: %w", ErrDamagedLog, errDamagedCatalogue, err)
		}
		if seglog.Checksum(chunk) != c.CRC {
			return nil, fmt.Errorf("%w: %w: checksum of the chunk at %s", ErrDamagedLog, errDamagedCatalogue, c.Addr)
		}
		image = append(image, chunk...)
	}
	if int64(len(image)) != super.catalogueLen {
		return nil, fmt.Errorf("%w: %w: it has %d bytes of %d", ErrDamagedLog, errDamagedCatalogue, len(image), super.catalogueLen)
	}
	cat, err := catalogue.Decode(image)
	if err != nil {
		return nil, fmt.Errorf("%w: %w: %w", ErrDamagedLog, errDamagedCatalogue, err)
	}
	return cat, nil
}
