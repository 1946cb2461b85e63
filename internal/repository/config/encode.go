package config

import (
	"crypto/subtle"
	"fmt"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/google/uuid"
	"github.com/zeebo/blake3"

	"varve/internal/repository/envelope"
	"varve/internal/repository/seal"
)

// content is what the tag authenticates.
type content struct {
	Version    uint32    `cbor:"1,keyasint"`
	Refuse     []string  `cbor:"2,keyasint"`
	ReadOnly   []string  `cbor:"3,keyasint"`
	NoPrune    []string  `cbor:"4,keyasint"`
	Repository uuid.UUID `cbor:"5,keyasint"`
	CreatedAt  int64     `cbor:"6,keyasint"` // Unix time in nanoseconds
	ChunkBytes uint32    `cbor:"7,keyasint"`
	Scope      Scope     `cbor:"8,keyasint"`
	Parity     uint8     `cbor:"9,keyasint"`
	Grace      int64     `cbor:"10,keyasint"` // nanoseconds
	Encryption uint8     `cbor:"11,keyasint"`
}

const (
	tagBytes   = 32
	tagContext = "varve repository v1 config"
	maxBytes   = 128 << 10 // of the payload
)

var (
	encoding, _ = cbor.EncOptions{
		Sort: cbor.SortBytewiseLexical, IndefLength: cbor.IndefLengthForbidden, NilContainers: cbor.NilContainerAsEmpty,
	}.EncMode()
	decoding, _ = cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden,
		MaxArrayElements: maxFeatures, MaxMapPairs: maxFeatures, MaxNestedLevels: 8,
	}.DecMode()
)

func (c *Config) encode() ([]byte, error) {
	return encoding.Marshal(content{
		Version: uint32(c.Version), Refuse: c.Features.Refuse, ReadOnly: c.Features.ReadOnly, NoPrune: c.Features.NoPrune,
		Repository: c.Repository, CreatedAt: c.CreatedAt.UnixNano(), ChunkBytes: uint32(c.ChunkBytes),
		Scope: c.Scope, Parity: uint8(c.Parity), Grace: int64(c.Grace), Encryption: uint8(c.Encryption),
	})
}

// decode reads a payload, a tag and what it is of: envelope.ErrDamaged, ErrNewer, ErrUnknownFeature.
func decode(p []byte) (*Config, error) {
	if len(p) < tagBytes || len(p) > maxBytes {
		return nil, fmt.Errorf("%w: a configuration of %d bytes", envelope.ErrDamaged, len(p))
	}
	// What a newer version has beside its number is not for this one to judge.
	var v struct {
		Version uint32 `cbor:"1,keyasint"`
	}
	if err := decoding.Unmarshal(p[tagBytes:], &v); err != nil {
		return nil, fmt.Errorf("%w: %w", envelope.ErrDamaged, err)
	}
	if v.Version == 0 {
		return nil, fmt.Errorf("%w: no version", envelope.ErrDamaged)
	}
	if v.Version > Version {
		return nil, fmt.Errorf("%w: the repository is of version %d, this one reads %d", envelope.ErrNewer, v.Version, Version)
	}
	var r content
	if err := decoding.Unmarshal(p[tagBytes:], &r); err != nil {
		return nil, fmt.Errorf("%w: %w", envelope.ErrDamaged, err)
	}
	c := &Config{
		Version: int(r.Version), Features: Features{r.Refuse, r.ReadOnly, r.NoPrune},
		Repository: r.Repository, CreatedAt: time.Unix(0, r.CreatedAt).UTC(), ChunkBytes: int(r.ChunkBytes),
		Scope: r.Scope, Parity: int(r.Parity), Grace: time.Duration(r.Grace), Encryption: Encryption(r.Encryption),
		encoded: p[tagBytes:], tag: [tagBytes]byte(p),
	}
	if err := c.Allows(Read); err != nil {
		return nil, err // a scope or cipher of its own perhaps: nothing else is judged
	}
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("%w: %w", envelope.ErrDamaged, err)
	}
	return c, nil
}

// tag is the keyed BLAKE3 of what was encoded, under a key of its own that follows from the identity key.
func tag(k *seal.Keys, encoded []byte) (t [tagBytes]byte) {
	var key [32]byte
	blake3.DeriveKey(tagContext, k.Identity[:], key[:])
	h, err := blake3.NewKeyed(key[:])
	if err != nil {
		panic(err) // of keys that are not 32 bytes long
	}
	_, _ = h.Write(encoded)
	copy(t[:], h.Sum(nil))
	return t
}

func (c *Config) authentic(k *seal.Keys) error {
	want := tag(k, c.encoded)
	if k.Repository != c.Repository || subtle.ConstantTimeCompare(want[:], c.tag[:]) != 1 {
		return fmt.Errorf("%w: it is not what the repository was made with", ErrForged)
	}
	return nil
}
