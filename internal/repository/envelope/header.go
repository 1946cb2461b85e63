package envelope

import (
	"crypto/sha256"

	"github.com/google/uuid"
)

// Kind says what an object is.
type Kind uint8

// The kinds of objects of a repository.
const (
	Config Kind = 1 + iota
	Ring
	Slot
	Pack
	Nodes
	Index
	Candidate
	Record
	Tombstone
	Fence
	Condemned
	Pin
	Ledger
)

// Cipher says how the frames of an object are sealed.
type Cipher uint8

// The ciphers of frames.
const (
	None   Cipher = iota // tags only
	AESGCM               // AES-256-GCM
)

// Version of the format that is written, and the newest that is read.
const Version = 1

// HeaderBytes is the length of a header.
const HeaderBytes = 128

// Header is what an object says of itself.
type Header struct {
	Version        uint16
	Kind           Kind
	Cipher         Cipher
	Generation     uint32
	Repository     uuid.UUID
	NameHash       [16]byte
	Salt           [32]byte
	Set            uuid.UUID
	PayloadBytes   int64
	ShardBytes     int
	ParityPercent  int
	DirectoryBytes uint32
}

// Stem is the name without what a repair appended, and for config and keys without the number of the copy.
func Stem(name string) string { return name }

// NameHash is the hash of the name's stem.
func NameHash(name string) [16]byte {
	sum := sha256.Sum256([]byte(Stem(name)))
	return [16]byte(sum[:16])
}

// AssociatedData is bytes 8 to 95 of the header.
func (h Header) AssociatedData() []byte { return nil }

// PayloadOffset is where the payload begins in the object.
func (h Header) PayloadOffset() int64 { return 0 }

// ObjectBytes is the length of the whole object.
func (h Header) ObjectBytes() int64 { return 0 }

// DecodeHeader decodes the header with which b begins: ErrDamaged, ErrNewer.
func DecodeHeader(b []byte) (Header, error) { return Header{}, ErrDamaged }
