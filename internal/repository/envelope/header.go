package envelope

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/google/uuid"

	"varve/internal/objects"
)

// Kind says what an object is; the names are in docs/design/repository.md.
type Kind uint8

// The kinds of objects of a repository.
const (
	Config    Kind = 1 + iota // what the repository is
	Ring                      // its keys, wrapped
	Slot                      // an identity under a passphrase
	Pack                      // chunks
	Nodes                     // map nodes
	Index                     // where chunks lie
	Candidate                 // a backup in the making
	Record                    // a backup
	Tombstone                 // a backup that is deleted
	Fence                     // a candidate that was given up
	Condemned                 // packs that will be deleted
	Pin                       // a backup that a reader needs
	Ledger                    // what was verified
)

var kindNames = [...]string{Config: "config", Ring: "key ring", Slot: "key slot", Pack: "pack", Nodes: "node pack", Index: "index",
	Candidate: "candidate", Record: "record", Tombstone: "tombstone", Fence: "fence", Condemned: "condemned mark", Pin: "pin", Ledger: "ledger"}

func (k Kind) String() string {
	if k < Config || k > Ledger {
		return fmt.Sprintf("kind %d", uint8(k))
	}
	return kindNames[k]
}

// Cipher says how the frames of an object are sealed.
type Cipher uint8

// The ciphers of frames.
const (
	None   Cipher = iota // readable by anybody, with tags
	AESGCM               // AES-256-GCM
)

// Version of the format that is written, and the newest that is read.
const Version = 1

// HeaderBytes is the length of a header.
const HeaderBytes = 128

const magic = "VARVEOBJ"

// The part of a header that frames are bound to: all that is known before the payload is.
const (
	boundFrom = 8
	boundTo   = 96
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Header is what an object says of itself.
type Header struct {
	Version        uint16 // 0 is taken as Version where a header is written
	Kind           Kind
	Cipher         Cipher
	Generation     uint32 // of the key; 0 where nothing is encrypted
	Repository     uuid.UUID
	NameHash       [16]byte // see the function of that name
	Salt           [32]byte // random
	Set            uuid.UUID
	PayloadBytes   int64 // set by Build, as is the next
	ShardBytes     int
	ParityPercent  int    // 0 to 100, of the payload
	DirectoryBytes uint32 // of kinds that have a directory: with so many bytes of it the payload begins
}

// AssociatedData returns what of the header every frame of the payload is bound to, 88 bytes.
func (h Header) AssociatedData() []byte {
	b := h.encode()
	return bytes.Clone(b[boundFrom:boundTo])
}

// PayloadOffset returns where in the object the payload begins, in bytes.
func (h Header) PayloadOffset() int64 { return h.geometry().payloadOffset() }

// ObjectBytes returns the length of the whole object.
func (h Header) ObjectBytes() int64 { return h.geometry().objectBytes() }

func (h Header) geometry() geometry { return geometryOf(h.PayloadBytes, h.ParityPercent) }

func (h Header) encode() [HeaderBytes]byte {
	var b [HeaderBytes]byte
	le := binary.LittleEndian
	copy(b[0:], magic)
	le.PutUint16(b[8:], max(h.Version, Version))
	b[10] = byte(h.Kind)
	b[11] = byte(h.Cipher)
	le.PutUint32(b[12:], h.Generation)
	copy(b[16:], h.Repository[:])
	copy(b[32:], h.NameHash[:])
	copy(b[48:], h.Salt[:])
	copy(b[80:], h.Set[:])
	le.PutUint64(b[96:], uint64(h.PayloadBytes))
	le.PutUint32(b[104:], uint32(h.ShardBytes))
	le.PutUint16(b[108:], uint16(h.ParityPercent))
	le.PutUint32(b[112:], h.DirectoryBytes)
	le.PutUint32(b[124:], crc32.Checksum(b[:124], castagnoli))
	return b
}

// DecodeHeader decodes the header with which b begins: ErrDamaged, ErrNewer.
// What it says of lengths is within bounds and fits together.
func DecodeHeader(b []byte) (Header, error) {
	if len(b) < HeaderBytes {
		return Header{}, fmt.Errorf("%w: %d bytes are no header", ErrDamaged, len(b))
	}
	b = b[:HeaderBytes]
	le := binary.LittleEndian
	if string(b[:8]) != magic {
		return Header{}, fmt.Errorf("%w: the header does not begin with %s", ErrDamaged, magic)
	}
	if le.Uint32(b[124:]) != crc32.Checksum(b[:124], castagnoli) {
		return Header{}, fmt.Errorf("%w: the header's checksum does not match", ErrDamaged)
	}
	h := Header{
		Version:        le.Uint16(b[8:]),
		Kind:           Kind(b[10]),
		Cipher:         Cipher(b[11]),
		Generation:     le.Uint32(b[12:]),
		Repository:     uuid.UUID(b[16:32]),
		NameHash:       [16]byte(b[32:48]),
		Salt:           [32]byte(b[48:80]),
		Set:            uuid.UUID(b[80:96]),
		ParityPercent:  int(le.Uint16(b[108:])),
		DirectoryBytes: le.Uint32(b[112:]),
	}
	payload, shard := le.Uint64(b[96:]), le.Uint32(b[104:])
	switch {
	case h.Version > Version:
		return Header{}, fmt.Errorf("%w: it has %d, this program knows %d", ErrNewer, h.Version, Version)
	case h.Version == 0:
		return Header{}, fmt.Errorf("%w: the header has version 0", ErrDamaged)
	case payload > objects.MaxObjectBytes:
		return Header{}, fmt.Errorf("%w: the header has a payload of %d bytes", ErrDamaged, payload)
	}
	h.PayloadBytes = int64(payload)
	if err := h.check(); err != nil {
		return Header{}, fmt.Errorf("%w: the header has %w", ErrDamaged, err)
	}
	h.ShardBytes = h.geometry().shardBytes
	if uint32(h.ShardBytes) != shard {
		return Header{}, fmt.Errorf("%w: the header has shards of %d bytes for a payload of %d", ErrDamaged, shard, payload)
	}
	return h, nil
}

// check says which field of the header has a value that it cannot have. PayloadBytes is not negative.
func (h Header) check() error {
	directory := h.Kind == Pack || h.Kind == Nodes || h.Kind == Index
	switch {
	case h.Kind < Config || h.Kind > Ledger:
		return fmt.Errorf("kind %d", h.Kind)
	case h.Cipher > AESGCM:
		return fmt.Errorf("cipher %d", h.Cipher)
	case h.ParityPercent < 0 || h.ParityPercent > 100:
		return fmt.Errorf("a parity of %d percent", h.ParityPercent)
	case h.DirectoryBytes > 0 && !directory:
		return fmt.Errorf("a directory in a %v", h.Kind)
	case int64(h.DirectoryBytes) > h.PayloadBytes:
		return fmt.Errorf("a directory of %d bytes in a payload of %d", h.DirectoryBytes, h.PayloadBytes)
	case h.PayloadBytes > objects.MaxObjectBytes || h.ObjectBytes() > objects.MaxObjectBytes:
		return fmt.Errorf("a payload of %d bytes with a parity of %d percent, more than an object may have", h.PayloadBytes, h.ParityPercent)
	}
	return nil
}
