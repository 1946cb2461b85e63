// Package seal makes payloads private.
package seal

import (
	"context"
	"errors"

	"github.com/google/uuid"

	"varve/internal/objects"
	"varve/internal/repository/chunk"
	"varve/internal/repository/envelope"
)

// Errors of this package, wrapped with what was opened.
var (
	// ErrForged: a frame is not what was sealed there.
	ErrForged = errors.New("content does not authenticate")
	// ErrNoKey: the key that an object needs is not there.
	ErrNoKey = errors.New("no key")
)

// Overhead is how many bytes a sealed frame is longer than what it holds.
const Overhead = 16

// Keys are the secrets of a repository.
type Keys struct {
	Repository     uuid.UUID
	Cipher         envelope.Cipher
	Newest         uint32
	Generations    map[uint32][32]byte
	Identity, Hash [32]byte
}

// Frames seals and opens the frames of one object.
type Frames struct{}

// NewKeys returns random keys, of generation 1.
func NewKeys(repository uuid.UUID) *Keys { return nil }

// PlainKeys returns the keys of a repository without encryption.
func PlainKeys(repository uuid.UUID) *Keys { return nil }

// Rotate adds a generation.
func (k *Keys) Rotate() {}

// Fingerprint identifies the keys and tells nothing of them.
func (k *Keys) Fingerprint() [16]byte { return [16]byte{} }

// ChunkID is the identity of content.
func (k *Keys) ChunkID(plain []byte) chunk.ID { return chunk.ID{} }

// BlockHash is the hash of a block of 4096 bytes.
func (k *Keys) BlockHash(block []byte) uint64 { return 0 }

// NewHeader returns the header of a new object.
func (k *Keys) NewHeader(kind envelope.Kind, name string, set uuid.UUID, parityPercent int) envelope.Header {
	return envelope.Header{}
}

// Frames returns what seals and opens the frames of the object with that header: ErrNoKey, ErrForged.
func (k *Keys) Frames(h envelope.Header) (*Frames, error) { return nil, ErrNoKey }

// Seal appends the sealed frame to dst. It may be called concurrently.
func (f *Frames) Seal(dst, plain []byte, number uint64) []byte { return dst }

// Open appends what the frame holds to dst: ErrForged.
func (f *Frames) Open(dst, sealed []byte, number uint64) ([]byte, error) { return dst, ErrForged }

// SealObject returns the object that holds plain as its only frame.
func (k *Keys) SealObject(h envelope.Header, plain []byte) ([][]byte, error) {
	return nil, errors.ErrUnsupported
}

// LoadObject loads an object of one frame and opens it.
func (k *Keys) LoadObject(ctx context.Context, st objects.Store, name string, kind envelope.Kind) (envelope.Header, []byte, error) {
	return envelope.Header{}, nil, ErrNoKey
}
