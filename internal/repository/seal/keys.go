// Package seal is what makes a repository's payloads private, and what tells
// whether they are as they were sealed.
//
// A payload is made of *frames*, sealed one by one, each under a number that it
// has in its object. Each object has a key of its own, derived from the key of a
// *generation* and the random salt in the object's header; so a number is all the
// nonce there need be, and no nonce is used twice under a key, however much is
// written. A frame is bound to its number and to the header of its object, and so
// to the object's repository, kind and name: it opens nowhere else.
//
// Two more keys, which never change, make the identities of content: chunk ids and
// hashes of blocks. Without a key nobody can tell whether a repository holds a
// content that he knows.
//
// A repository without encryption has the same structure. Its keys follow from
// its UUID, frames carry tags and are legible; the tags find accidents, not
// forgeries.
package seal

import (
	"crypto/rand"
	"errors"
	"slices"
	"sync"

	"github.com/google/uuid"
	"github.com/minio/highwayhash"
	"github.com/zeebo/blake3"

	"varve/internal/block"
	"varve/internal/repository/chunk"
	"varve/internal/repository/envelope"
)

// Errors of this package, wrapped with what was to be opened.
var (
	// ErrForged: a frame is not what was sealed under that number in that object.
	ErrForged = errors.New("content does not authenticate")
	// ErrNoKey: the key that an object was sealed with is not among these.
	ErrNoKey = errors.New("key is missing")
)

// The contexts of BLAKE3's derive_key; they are part of the format.
const (
	contextObject      = "varve repository v1 object key"
	contextFingerprint = "varve repository v1 fingerprint of the identity key"
	contextPlainKey    = "varve repository v1 generation key without encryption"
	contextPlainIDs    = "varve repository v1 identity key without encryption"
	contextPlainHash   = "varve repository v1 hash key without encryption"
)

// Keys are all the secrets of a repository. They are used by pointer. Methods may
// be called concurrently, but for Rotate.
type Keys struct {
	Repository  uuid.UUID
	Cipher      envelope.Cipher
	Newest      uint32              // the generation of new objects
	Generations map[uint32][32]byte // from 1 on; 0 stands alone, for no encryption
	Identity    [32]byte            // of chunk ids
	Hash        [32]byte            // of hashes of blocks

	hashers sync.Pool // *blake3.Hasher with the identity key
}

// NewKeys returns new random keys, of generation 1.
func NewKeys(repository uuid.UUID) *Keys {
	k := &Keys{Repository: repository, Cipher: envelope.AESGCM, Generations: map[uint32][32]byte{}}
	k.Identity, k.Hash = random(), random()
	k.Rotate()
	return k
}

// PlainKeys returns the keys of a repository without encryption.
func PlainKeys(repository uuid.UUID) *Keys {
	k := &Keys{Repository: repository, Cipher: envelope.None}
	k.Generations = map[uint32][32]byte{0: derive(contextPlainKey, repository[:])}
	k.Identity = derive(contextPlainIDs, repository[:])
	k.Hash = derive(contextPlainHash, repository[:])
	return k
}

// Rotate adds a random generation, with which new objects are sealed from here on.
// Without encryption there is nothing to rotate. Nothing else may use the keys meanwhile.
func (k *Keys) Rotate() {
	if k.Cipher == envelope.None {
		return
	}
	k.Newest++
	k.Generations[k.Newest] = random()
}

// Fingerprint tells repositories' keys apart and nothing else of them. It stays the same when keys are rotated.
func (k *Keys) Fingerprint() [16]byte {
	print := derive(contextFingerprint, k.Identity[:])
	return [16]byte(print[:16])
}

// ChunkID returns the identity of content, of any length, as it is before compression.
func (k *Keys) ChunkID(plain []byte) chunk.ID {
	h, _ := k.hashers.Get().(*blake3.Hasher)
	if h == nil {
		h = newHasher(k.Identity)
	}
	h.Reset()
	h.Write(plain)
	var id chunk.ID
	h.Sum(id[:0])
	k.hashers.Put(h)
	return id
}

// BlockHash returns the hash of a block of block.Size bytes, with which another is compared when this one is far away.
func (k *Keys) BlockHash(b []byte) uint64 {
	return highwayhash.Sum64((*[block.Size]byte)(b)[:], k.Hash[:])
}

// BlockHashes returns the hashes of the blocks of plain, which is whole blocks.
func (k *Keys) BlockHashes(plain []byte) []uint64 {
	out := make([]uint64, 0, len(plain)/block.Size)
	for b := range slices.Chunk(plain, block.Size) {
		out = append(out, k.BlockHash(b))
	}
	return out
}

func newHasher(key [32]byte) *blake3.Hasher {
	h, err := blake3.NewKeyed(key[:])
	if err != nil {
		panic(err) // only of a length that is not 32
	}
	return h
}

func derive(context string, material ...[]byte) (key [32]byte) {
	h := blake3.NewDeriveKey(context)
	for _, m := range material {
		h.Write(m)
	}
	h.Sum(key[:0])
	return key
}

func random() (key [32]byte) {
	rand.Read(key[:]) // never fails
	return key
}
