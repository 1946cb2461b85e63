package keys

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"filippo.io/age"
	"golang.org/x/crypto/argon2"

	"varve/internal/repository/envelope"
)

// Cost is what argon2id (RFC 9106) spends on each guess of a passphrase.
type Cost struct {
	Passes    uint32
	MemoryKiB uint32
	Lanes     uint8
}

// DefaultCost is that of new slots.
var DefaultCost = Cost{Passes: 3, MemoryKiB: 64 << 10, Lanes: 4}

// MaxCost bounds what a slot may ask for: who can write to the store can write slots.
var MaxCost = Cost{Passes: 16, MemoryKiB: 1 << 20, Lanes: 16}

func (c Cost) check() error {
	if c.Passes < 1 || c.Lanes < 1 || c.MemoryKiB < 8*uint32(c.Lanes) {
		return fmt.Errorf("argon2id with %d passes, %d KiB, %d lanes: too little", c.Passes, c.MemoryKiB, c.Lanes)
	}
	if c.Passes > MaxCost.Passes || c.MemoryKiB > MaxCost.MemoryKiB || c.Lanes > MaxCost.Lanes {
		return fmt.Errorf("argon2id with %d passes, %d KiB, %d lanes: more than %d, %d, %d",
			c.Passes, c.MemoryKiB, c.Lanes, MaxCost.Passes, MaxCost.MemoryKiB, MaxCost.Lanes)
	}
	return nil
}

// String is the cost as a slot has it.
func (c Cost) String() string { return fmt.Sprintf("%d %d %d", c.Passes, c.MemoryKiB, c.Lanes) }

func (c Cost) less(d Cost) bool {
	return uint64(c.Passes)*uint64(c.MemoryKiB) < uint64(d.Passes)*uint64(d.MemoryKiB)
}

const (
	slotTitle = "varve slot "
	saltBytes = 16
	// The passphrase of a slot's age file is argon2id's output, 256 bits that nobody guesses: scrypt, which age
	// always applies, need not slow down anybody.
	scryptLogN = 1
)

// slot keeps an age identity under a passphrase. All but the identity is for everybody to read, and to change.
type slot struct {
	Method
	cost   Cost
	salt   string // 32 hexadecimal digits; their ASCII is argon2id's salt, so that a command line can take it
	sealed []byte // an armoured age file for the one passphrase that argon2id makes
}

func newSlot(m Method, passphrase []byte, cost Cost, identity string) (*slot, error) {
	salt := make([]byte, saltBytes)
	_, _ = rand.Read(salt)
	s := &slot{Method: m, cost: cost, salt: hex.EncodeToString(salt)}
	recipient, err := age.NewScryptRecipient(s.stretch(passphrase))
	if err != nil {
		return nil, err
	}
	recipient.SetWorkFactor(scryptLogN)
	s.sealed, err = encrypt([]byte(identity+"\n"), recipient)
	return s, err
}

// stretch makes of a passphrase the one that the slot's age file has.
func (s *slot) stretch(passphrase []byte) string {
	return hex.EncodeToString(argon2.IDKey(passphrase, []byte(s.salt), s.cost.Passes, s.cost.MemoryKiB, s.cost.Lanes, 32))
}

// open returns the identities that the slot holds: ErrWrongKey, envelope.ErrDamaged.
func (s *slot) open(passphrase []byte) ([]age.Identity, error) {
	id, err := age.NewScryptIdentity(s.stretch(passphrase))
	if err != nil {
		return nil, err
	}
	id.SetMaxWorkFactor(scryptLogN)
	plain, err := decrypt(s.sealed, id)
	if err != nil {
		return nil, fmt.Errorf("slot %s: %w", s.ID, err)
	}
	ids, err := age.ParseIdentities(bytes.NewReader(plain))
	if err != nil {
		return nil, fmt.Errorf("slot %s: %w: %w", s.ID, envelope.ErrDamaged, err)
	}
	return ids, nil
}

func (s *slot) encode() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s1\nid %s\nlabel %s\ncreated %s\n", slotTitle, s.ID, s.Label, s.CreatedAt.UTC().Format(time.RFC3339Nano))
	fmt.Fprintf(&b, "argon2id %v\nsalt %s\n", s.cost, s.salt)
	b.Write(s.sealed)
	return b.Bytes()
}

// decodeSlot reads a slot, of which nothing may be believed but that its cost is within bounds: envelope.ErrDamaged, ErrNewer.
func decodeSlot(p []byte) (*slot, error) {
	s := &slot{Method: Method{Kind: KindPassphrase}}
	h := newHead(p, maxSlotBytes)
	h.title(slotTitle)
	s.ID = h.line("id ")
	s.Label = h.line("label ")
	created := h.line("created ")
	cost := h.line("argon2id ")
	s.salt = h.line("salt ")
	s.sealed = h.age()
	if h.err != nil {
		return nil, h.err
	}
	var err error
	if s.CreatedAt, err = time.Parse(time.RFC3339Nano, created); err != nil {
		return nil, fmt.Errorf("%w: %w", envelope.ErrDamaged, err)
	}
	_, _ = fmt.Sscan(cost, &s.cost.Passes, &s.cost.MemoryKiB, &s.cost.Lanes)
	if s.cost.String() != cost {
		return nil, fmt.Errorf("%w: argon2id %q", envelope.ErrDamaged, cost)
	}
	if err := errors.Join(s.cost.check(), checkID(s.ID), checkID(s.salt), checkLabel(s.Label)); err != nil {
		return nil, fmt.Errorf("%w: %w", envelope.ErrDamaged, err)
	}
	return s, nil
}
