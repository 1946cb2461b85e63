package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/google/uuid"
	"github.com/zeebo/blake3"

	"varve/internal/repository/envelope"
)

// Overhead is how many bytes a frame is longer than what is sealed in it.
const Overhead = 16

const nonceBytes = 12

// NewHeader returns the header of a new object: with a random salt, which is used for no other, and the newest
// generation; kinds that are read before there is a key, config, rings and slots, are not sealed. set is
// uuid.Nil for all that belongs to none.
func (k *Keys) NewHeader(kind envelope.Kind, name string, set uuid.UUID, parityPercent int) envelope.Header {
	h := envelope.Header{
		Version:       envelope.Version,
		Kind:          kind,
		Repository:    k.Repository,
		NameHash:      envelope.NameHash(name),
		Salt:          random(),
		Set:           set,
		ParityPercent: parityPercent,
	}
	if sealed(kind) {
		h.Cipher, h.Generation = k.Cipher, k.Newest
	}
	return h
}

func sealed(kind envelope.Kind) bool { return kind > envelope.Slot }

// Frames seals and opens the frames of one object. All methods may be called concurrently.
type Frames struct {
	aead cipher.AEAD
	data []byte // associated with every frame
}

// Frames returns what seals and opens the frames of the object with that header.
// It fails with ErrNoKey if the keys lack its generation, or are those of no
// encryption; with ErrForged if the object can be none of this repository, though
// its header says so.
func (k *Keys) Frames(h envelope.Header) (*Frames, error) {
	switch {
	case h.Repository != k.Repository:
		return nil, fmt.Errorf("%w: it is of repository %v, the keys are of %v", ErrForged, h.Repository, k.Repository)
	case !sealed(h.Kind):
		return nil, fmt.Errorf("%w: a %v is not sealed", ErrForged, h.Kind)
	case h.Cipher != k.Cipher && k.Cipher == envelope.None:
		return nil, fmt.Errorf("%w: it is encrypted", ErrNoKey)
	case h.Cipher != k.Cipher:
		// Its key would be known to everybody.
		return nil, fmt.Errorf("%w: it is not encrypted, as all of this repository is", ErrForged)
	}
	generation, ok := k.Generations[h.Generation]
	if !ok {
		return nil, fmt.Errorf("%w: of generation %d, the newest known is %d", ErrNoKey, h.Generation, k.Newest)
	}
	f := &Frames{data: h.AssociatedData()}
	key := derive(contextObject, generation[:], h.Salt[:])
	if k.Cipher == envelope.None {
		f.aead = newTagger(key)
		return f, nil
	}
	b, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, err
	}
	f.aead, err = cipher.NewGCM(b)
	return f, err
}

// Seal appends the frame that holds plain to dst and returns it, Overhead bytes
// longer than plain. A number is used for one frame of the object, once. plain may
// be what follows dst in memory; other overlap is not allowed.
func (f *Frames) Seal(dst, plain []byte, number uint64) []byte {
	nonce := nonceOf(number)
	return f.aead.Seal(dst, nonce[:], plain, f.data)
}

// Open appends what the frame of that number holds to dst: ErrForged if it was not
// sealed with these keys, for this object, under this number. sealed may be what follows
// dst in memory; it is then overwritten even if it does not open.
func (f *Frames) Open(dst, sealed []byte, number uint64) ([]byte, error) {
	nonce := nonceOf(number)
	plain, err := f.aead.Open(dst, nonce[:], sealed, f.data)
	if err != nil {
		return dst, fmt.Errorf("open frame %d: %w", number, ErrForged)
	}
	return plain, nil
}

func nonceOf(number uint64) (nonce [nonceBytes]byte) {
	binary.LittleEndian.PutUint64(nonce[:], number)
	return nonce
}

// tagger is an AEAD that does not encrypt. Its tag is the keyed BLAKE3 of
// associated data, nonce and plain text; the lengths of the first two are fixed.
type tagger struct{ hashers sync.Pool }

func newTagger(key [32]byte) *tagger {
	return &tagger{sync.Pool{New: func() any { return newHasher(key) }}}
}

func (t *tagger) NonceSize() int { return nonceBytes }

func (t *tagger) Overhead() int { return Overhead }

func (t *tagger) Seal(dst, nonce, plain, data []byte) []byte {
	tag := t.tag(nonce, plain, data)
	return append(append(dst, plain...), tag[:]...)
}

func (t *tagger) Open(dst, nonce, sealed, data []byte) ([]byte, error) {
	if len(sealed) < Overhead {
		return nil, ErrForged
	}
	plain, tag := sealed[:len(sealed)-Overhead], sealed[len(sealed)-Overhead:]
	want := t.tag(nonce, plain, data)
	if subtle.ConstantTimeCompare(tag, want[:]) == 0 {
		return nil, ErrForged
	}
	return append(dst, plain...), nil
}

func (t *tagger) tag(nonce, plain, data []byte) (tag [Overhead]byte) {
	h := t.hashers.Get().(*blake3.Hasher)
	h.Reset()
	h.Write(data)
	h.Write(nonce)
	h.Write(plain)
	var sum [32]byte
	h.Sum(sum[:0])
	t.hashers.Put(h)
	copy(tag[:], sum[:])
	return tag
}
