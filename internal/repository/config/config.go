// Package config is what a repository says of itself: its identity, and what it was made with, once and for all. It is read
// before any key is known, so that the key can be found, and is authenticated once it is: a store whose configuration was
// tampered with, so that nothing is kept for a grace or sets share what they must not, is refused.
package config

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"varve/internal/objects"
	"varve/internal/repository/copies"
	"varve/internal/repository/envelope"
	"varve/internal/repository/seal"
)

// Version of repositories that are made, and the newest that is read.
const Version = 1

// Errors of this package, wrapped with the reason. Those of packages envelope and objects come as they are.
var (
	// ErrExists: there is a repository already.
	ErrExists = errors.New("repository exists")
	// ErrForged: the configuration was not written by somebody who has the repository's key.
	ErrForged = errors.New("configuration does not authenticate")
	// ErrUnknownFeature: the repository needs a newer version for what was asked.
	ErrUnknownFeature = errors.New("repository has features unknown to this version")
	// ErrInvalid: no repository can have such a configuration.
	ErrInvalid = errors.New("invalid configuration")
)

// Scope is what shares chunks.
type Scope uint8

// The scopes of deduplication.
const (
	ScopeRepository Scope = iota // all backups
	ScopeSet                     // a full and those that depend on it
)

// Encryption is how the keys are kept.
type Encryption uint8

// The ways to keep keys.
const (
	Plain Encryption = iota // there are none: they follow from the repository's UUID
	Age                     // a ring, wrapped for age recipients
)

// Bounds of a configuration.
const (
	MinChunkBytes = 64 << 10
	MaxChunkBytes = 1 << 20

	maxFeatures     = 256 // in each set
	maxFeatureBytes = 64
)

// Features are flags, [a-z0-9-], for what later versions add. Whoever does not know one of Refuse leaves the repository alone, of
// ReadOnly writes nothing, of NoPrune deletes nothing that may be in use.
type Features struct {
	Refuse, ReadOnly, NoPrune []string
}

// Config is what a repository was made with. It never changes.
type Config struct {
	Version    int
	Features   Features
	Repository uuid.UUID
	CreatedAt  time.Time
	ChunkBytes int // power of two
	Scope      Scope
	Parity     int           // percent
	Grace      time.Duration // what is not needed is kept so long
	Encryption Encryption

	encoded []byte // as it was read
	tag     [tagBytes]byte
}

// Access is what a repository is opened for. Each includes those before.
type Access uint8

// The ways to open a repository.
const (
	Read Access = iota
	Write
	Prune
)

// Allows tells whether this version knows enough for a kind of access: ErrUnknownFeature. It knows no feature yet.
func (c *Config) Allows(a Access) error {
	for _, set := range []struct {
		from  Access
		flags []string
		what  string
	}{{Read, c.Features.Refuse, "open it"}, {Write, c.Features.ReadOnly, "write to it"}, {Prune, c.Features.NoPrune, "prune it"}} {
		if a >= set.from && len(set.flags) > 0 {
			return fmt.Errorf("%w: %s: a newer version is needed to %s", ErrUnknownFeature, strings.Join(set.flags, ", "), set.what)
		}
	}
	return nil
}

func (c *Config) check() error {
	var what string
	switch {
	case c.Repository == uuid.Nil:
		what = "no UUID"
	case c.ChunkBytes < MinChunkBytes || c.ChunkBytes > MaxChunkBytes || bits.OnesCount(uint(c.ChunkBytes)) != 1:
		what = fmt.Sprintf("chunks of %d bytes, not a power of two from %d to %d", c.ChunkBytes, MinChunkBytes, MaxChunkBytes)
	case c.Scope > ScopeSet:
		what = fmt.Sprintf("deduplication scope %d", c.Scope)
	case c.Parity < 0 || c.Parity > 100:
		what = fmt.Sprintf("parity of %d percent, not 0 to 100", c.Parity)
	case c.Grace < 0:
		what = fmt.Sprintf("a grace of %s", c.Grace)
	case c.Encryption > Age:
		what = fmt.Sprintf("encryption %d", c.Encryption)
	}
	if what != "" {
		return fmt.Errorf("%w: %s", ErrInvalid, what)
	}
	for _, set := range [][]string{c.Features.Refuse, c.Features.ReadOnly, c.Features.NoPrune} {
		if len(set) > maxFeatures || slices.ContainsFunc(set, func(f string) bool { return !isFeature(f) }) {
			return fmt.Errorf("%w: a feature is named by at most %d of [a-z0-9-]", ErrInvalid, maxFeatureBytes)
		}
	}
	return nil
}

func isFeature(f string) bool {
	return f != "" && len(f) <= maxFeatureBytes && strings.Trim(f, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

const stem = "config"

// Create makes a repository be, under keys that are in its ring already: ErrExists, ErrInvalid. Any other error leaves it open
// whether it came about.
func Create(ctx context.Context, st objects.Store, c Config, k *seal.Keys) (*Config, error) {
	c.Version = Version
	c.CreatedAt = c.CreatedAt.UTC()
	if err := c.check(); err != nil {
		return nil, err
	}
	if k.Repository != c.Repository || (k.Cipher == envelope.None) != (c.Encryption == Plain) {
		return nil, fmt.Errorf("%w: these are not the repository's keys", ErrInvalid)
	}
	var err error
	if c.encoded, err = c.encode(); err != nil {
		return nil, err
	}
	c.tag = tag(k, c.encoded)
	err = copies.Put(ctx, st, stem, envelope.Config, c.Repository, slices.Concat(c.tag[:], c.encoded))
	if errors.Is(err, copies.ErrTaken) {
		return nil, fmt.Errorf("create a repository at %s: %w", st.URL(), ErrExists)
	}
	if err != nil {
		return nil, fmt.Errorf("create a repository at %s: %w", st.URL(), err)
	}
	return &c, nil
}

// Load reads the configuration: objects.ErrNotFound where there is no repository, envelope.ErrLost, ErrNewer. Until Verify
// it is only what whoever can write to the store says.
func Load(ctx context.Context, st objects.Store) (*Config, error) {
	c, err := load(ctx, st, uuid.Nil, func(*Config) error { return nil })
	if errors.Is(err, objects.ErrNotFound) {
		return nil, fmt.Errorf("no repository at %s: %w", st.URL(), err)
	}
	return c, err
}

// Verify returns the configuration that the keys authenticate, which is another one if the copy that was loaded
// was forged and not all are: ErrForged.
func (c *Config) Verify(ctx context.Context, st objects.Store, k *seal.Keys) (*Config, error) {
	if c.authentic(k) == nil {
		return c, nil
	}
	return load(ctx, st, k.Repository, func(c *Config) error { return c.authentic(k) })
}

// Complete puts the copies that are missing, as after a crash, or lost, and returns the names it wrote. It needs no key.
func Complete(ctx context.Context, st objects.Store, repository uuid.UUID) (written []string, err error) {
	return copies.Complete(ctx, st, stem, envelope.Config, repository)
}

func load(ctx context.Context, st objects.Store, repository uuid.UUID, accept func(*Config) error) (c *Config, err error) {
	err = copies.Load(ctx, st, stem, envelope.Config, repository, func(h envelope.Header, payload []byte) error {
		read, err := decode(payload)
		if err == nil && read.Repository != h.Repository {
			err = fmt.Errorf("%w: header and content are of different repositories", envelope.ErrDamaged)
		}
		if err == nil {
			err = accept(read)
		}
		c = read
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	return c, nil
}

// Copies returns what each copy says that can be read, for somebody who wants to know whether they agree: objects.ErrNotFound
// if there is none, readable or not; envelope.ErrNewer if none can be read and one is of a later version.
func Copies(ctx context.Context, st objects.Store) (all []*Config, err error) {
	missing := 0
	var newer error
	for n := range copies.Count {
		h, payload, err := envelope.Load(ctx, st, copies.Name(stem, n), uuid.Nil, envelope.Config)
		if err == nil {
			var read *Config
			if read, err = decode(payload); err == nil && read.Repository == h.Repository {
				all = append(all, read)
			}
		}
		switch {
		case errors.Is(err, objects.ErrNotFound):
			missing++
		case errors.Is(err, envelope.ErrNewer):
			newer = err
		case err != nil && !errors.Is(err, envelope.ErrLost) && !errors.Is(err, envelope.ErrDamaged) && !errors.Is(err, ErrInvalid):
			return nil, fmt.Errorf("read the configuration: %w", err)
		}
	}
	switch {
	case missing == copies.Count:
		return nil, fmt.Errorf("no repository at %s: %w", st.URL(), objects.ErrNotFound)
	case len(all) == 0 && newer != nil:
		return nil, fmt.Errorf("read the configuration: %w", newer)
	}
	return all, nil
}
