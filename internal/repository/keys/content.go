package keys

import (
	"bytes"
	"fmt"
	"time"

	"filippo.io/age"
	"github.com/fxamacker/cbor/v2"
	"github.com/google/uuid"

	"varve/internal/repository/envelope"
	"varve/internal/repository/seal"
)

const ringTitle = "varve ring "

// content is what a ring keeps secret, and an export tells.
type content struct {
	Repository  uuid.UUID         `cbor:"1,keyasint"`
	Revision    uint32            `cbor:"2,keyasint"`
	Cipher      uint8             `cbor:"3,keyasint"`
	Newest      uint32            `cbor:"4,keyasint"`
	Generations map[uint32][]byte `cbor:"5,keyasint"`
	Identity    []byte            `cbor:"6,keyasint"`
	Hash        []byte            `cbor:"7,keyasint"`
	Methods     []contentMethod   `cbor:"8,keyasint,omitempty"` // an export has none
}

type contentMethod struct {
	ID        string `cbor:"1,keyasint"`
	Kind      string `cbor:"2,keyasint"`
	Label     string `cbor:"3,keyasint"`
	Recipient string `cbor:"4,keyasint"`
	CreatedAt int64  `cbor:"5,keyasint"` // Unix time in nanoseconds
}

var (
	encoding, _ = cbor.CoreDetEncOptions().EncMode()
	decoding, _ = cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden,
		MaxArrayElements: 1 << 10, MaxMapPairs: 1 << 16, MaxNestedLevels: 8,
	}.DecMode()
)

func (r *Ring) content(methods bool) ([]byte, error) {
	c := content{
		Repository: r.Keys.Repository, Revision: uint32(r.Revision), Cipher: uint8(r.Keys.Cipher), Newest: r.Keys.Newest,
		Generations: make(map[uint32][]byte), Identity: r.Keys.Identity[:], Hash: r.Keys.Hash[:],
	}
	for g, key := range r.Keys.Generations {
		c.Generations[g] = key[:]
	}
	for _, m := range r.Methods {
		if methods {
			c.Methods = append(c.Methods, contentMethod{m.ID, m.Kind, m.Label, m.Recipient, m.CreatedAt.UnixNano()})
		}
	}
	return encoding.Marshal(c)
}

// decodeContent reads what content wrote: envelope.ErrDamaged.
func decodeContent(p []byte) (*Ring, error) {
	var c content
	if err := decoding.Unmarshal(p, &c); err != nil {
		return nil, fmt.Errorf("%w: %w", envelope.ErrDamaged, err)
	}
	k := &seal.Keys{Repository: c.Repository, Cipher: envelope.Cipher(c.Cipher), Newest: c.Newest, Generations: make(map[uint32][32]byte)}
	sound := c.Revision > 0 && k.Cipher == envelope.AESGCM && len(c.Identity) == 32 && len(c.Hash) == 32
	copy(k.Identity[:], c.Identity)
	copy(k.Hash[:], c.Hash)
	for g, bytes := range c.Generations {
		sound = sound && g > 0 && g <= c.Newest && len(bytes) == 32
		var key [32]byte
		copy(key[:], bytes)
		k.Generations[g] = key
	}
	if _, ok := k.Generations[c.Newest]; !sound || !ok {
		return nil, fmt.Errorf("%w: the keys are not whole", envelope.ErrDamaged)
	}
	r := &Ring{Revision: int(c.Revision), Keys: k}
	for _, m := range c.Methods {
		r.Methods = append(r.Methods, Method{m.ID, m.Kind, m.Label, m.Recipient, time.Unix(0, m.CreatedAt).UTC()})
	}
	return r, nil
}

// encode returns the ring's payload, an age file for all its methods and lines before it.
func (r *Ring) encode() ([]byte, error) {
	plain, err := r.content(true)
	if err != nil {
		return nil, err
	}
	var to []age.Recipient
	for _, m := range r.Methods {
		recipient, _, err := parseRecipient(m.Recipient)
		if err != nil {
			return nil, fmt.Errorf("key %s: %w", m.ID, err)
		}
		to = append(to, recipient)
	}
	file, err := encrypt(plain, to...)
	if err != nil {
		return nil, fmt.Errorf("wrap the keys: %w", err)
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s1\nrevision %d\ngeneration %d\n", ringTitle, r.Revision, r.Keys.Newest)
	b.Write(file)
	return b.Bytes(), nil
}

// wrapped is a ring that is not open. Its revision and generation are what anybody may have written.
type wrapped struct {
	revision   uint32
	generation uint32
	file       []byte // armoured age file
}

// decodeWrapped reads a ring's payload: envelope.ErrDamaged, ErrNewer.
func decodeWrapped(p []byte) (*wrapped, error) {
	h := newHead(p, maxRingBytes)
	h.title(ringTitle)
	w := &wrapped{revision: h.number("revision "), generation: h.number("generation ")}
	w.file = h.age()
	if h.err != nil {
		return nil, h.err
	}
	return w, nil
}

// open returns the ring if one of the identities opens it: ErrWrongKey, envelope.ErrDamaged, ErrForeign.
func (w *wrapped) open(repository uuid.UUID, ids ...age.Identity) (*Ring, error) {
	plain, err := decrypt(w.file, ids...)
	if err != nil {
		return nil, err
	}
	r, err := decodeContent(plain)
	if err != nil {
		return nil, err
	}
	if r.Keys.Repository != repository {
		return nil, fmt.Errorf("%w: the keys are those of repository %s", envelope.ErrForeign, r.Keys.Repository)
	}
	if r.Revision != int(w.revision) || r.Keys.Newest != w.generation || len(r.Methods) == 0 {
		return nil, fmt.Errorf("%w: head and content of the ring differ", envelope.ErrDamaged)
	}
	return r, nil
}
