package config

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"

	"varve/internal/repository/envelope"
	"varve/internal/repository/seal"
)

// payload is that of a configuration with some of everything.
func payload(t testing.TB) ([]byte, *seal.Keys) {
	t.Helper()
	c := Config{
		Version: Version, Features: Features{NoPrune: []string{"x"}}, Repository: uuid.New(), CreatedAt: time.Unix(1, 2), ChunkBytes: 1 << 18,
		Scope: ScopeSet, Parity: 3, Grace: 24 * time.Hour, Encryption: Age,
	}
	encoded, err := c.encode()
	if err != nil {
		t.Fatal(err)
	}
	k := seal.NewKeys(c.Repository)
	mac := tag(k, encoded)
	return append(mac[:], encoded...), k
}

func TestDecodeRefusesEveryTruncation(t *testing.T) {
	p, _ := payload(t)
	for n := range p {
		if _, err := decode(p[:n]); !errors.Is(err, envelope.ErrDamaged) {
			t.Fatalf("cut to %d of %d bytes: %v", n, len(p), err)
		}
	}
	if _, err := decode(append(p, 0)); !errors.Is(err, envelope.ErrDamaged) {
		t.Fatal("with a byte too many:", err)
	}
}

func TestEveryBitIsAuthenticated(t *testing.T) {
	p, k := payload(t)
	for i := range len(p) * 8 {
		wrong := bytes.Clone(p)
		wrong[i/8] ^= 1 << (i % 8)
		if c, err := decode(wrong); err == nil && c.authentic(k) == nil {
			t.Fatalf("bit %d does not matter", i)
		}
	}
}

func TestKeysOfAnotherRepositoryDoNotVerify(t *testing.T) {
	p, k := payload(t)
	c, err := decode(p)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.authentic(k); err != nil {
		t.Fatal(err)
	}
	if err := c.authentic(&seal.Keys{Repository: uuid.New(), Identity: k.Identity}); !errors.Is(err, ErrForged) {
		t.Fatal(err)
	}
}

func TestNewerVersionIsRefused(t *testing.T) {
	for _, version := range []uint32{0, Version + 1, 1 << 31} {
		// Newer ones may have made anything of what follows.
		p, err := encoding.Marshal(map[int]any{1: version, 7: "four pages"})
		if err != nil {
			t.Fatal(err)
		}
		want := envelope.ErrNewer
		if version == 0 {
			want = envelope.ErrDamaged
		}
		if _, err := decode(append(make([]byte, tagBytes), p...)); !errors.Is(err, want) {
			t.Errorf("version %d: %v", version, err)
		}
	}
}

func FuzzConfig(f *testing.F) {
	p, k := payload(f)
	f.Add(p)
	f.Fuzz(func(t *testing.T, p []byte) {
		c, err := decode(p)
		if err != nil {
			return
		}
		if err := c.check(); err != nil {
			t.Fatal(err)
		}
		encoded, err := c.encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decode(append(make([]byte, tagBytes), encoded...)); err != nil {
			t.Fatal(err)
		}
		_ = c.authentic(k)
	})
}
