// Package keys says who may open a repository.
//
// The *ring* holds the repository's keys and is an age file: each *method* to open it is one of its recipients. A method
// is either an age recipient of somebody who keeps the identity himself, or a passphrase. A passphrase has a *slot*,
// which holds an age identity of its own, sealed under what argon2id makes of the passphrase. So methods are added and
// removed, and keys rotated, knowing nothing but public keys; and those are taken from the ring alone, whose content nobody can
// read or write who does not know the repository's keys. What lies beside it, slots and the ring's head, is
// believed only where nothing depends on it.
//
// Each change writes a ring of the next *revision*, and deletes what came before. A change counts when the first of
// its objects that matters does, the ring's first copy: before that the old ring opens, after that the new one.
package keys

import (
	"errors"
	"time"

	"filippo.io/age"

	"varve/internal/repository/seal"
)

// Errors of this package, wrapped with what was asked. Those of packages envelope and objects come as they are.
var (
	// ErrWrongKey: no passphrase or identity that was given opens the repository.
	ErrWrongKey = errors.New("wrong key")
	// ErrChanged: somebody else has changed the ring meanwhile. Open it again, and see whether the change is still wanted.
	ErrChanged = errors.New("keys have been changed by somebody else")
	// ErrNoMethod: the ring has no method of that id.
	ErrNoMethod = errors.New("no such key")
	// ErrLastMethod: with this method gone nobody could open the repository.
	ErrLastMethod = errors.New("last key")
	// ErrExists: that recipient can open the repository already.
	ErrExists = errors.New("key exists")
	// ErrInvalid: what was given is no passphrase, recipient, identity, label or export.
	ErrInvalid = errors.New("invalid key")
	// ErrStale: the export is older than the keys that the repository uses now. It opens what is older too, and changes nothing.
	ErrStale = errors.New("export is out of date")
	// ErrLeftover: the change is made, but what it replaces could not be deleted: who has a key that was removed may
	// still open what was written until now.
	ErrLeftover = errors.New("old keys could not be deleted")
)

// The kinds of methods.
const (
	KindPassphrase = "passphrase"
	KindAge        = "age"
)

// Method is one way to open a repository.
type Method struct {
	ID        string // 32 hexadecimal digits; that of a passphrase's slot
	Kind      string // KindPassphrase or KindAge
	Label     string // what people call it; may be empty
	Recipient string // the age recipient, that of a slot's identity too; empty where only slots are known
	CreatedAt time.Time
}

// Add is a method to be added: either a passphrase or an age recipient (age1…, age1pq1…).
type Add struct {
	Label      string // at most MaxLabelBytes printable characters
	Passphrase []byte
	Recipient  string
	Cost       Cost // of guessing the passphrase; zero: DefaultCost
}

// Bounds of a ring.
const (
	MaxLabelBytes = 100
	MaxMethods    = 64

	maxRingBytes = 8 << 20 // of the payload; an export too
	maxSlotBytes = 4 << 10
)

// Unlock is what a caller has to open a repository with. All of it is tried, identities first.
type Unlock struct {
	Passphrase []byte
	Identities []age.Identity
}

// Ring is an open ring of keys. It is not safe for concurrent use; the Keys that it had at any time are.
type Ring struct {
	Revision int
	Keys     *seal.Keys // Rotate puts another in its place
	Methods  []Method   // in the order they were added; none after Import

	// Unreadable are newer revisions of which no copy can be read: perhaps their keys are lost.
	Unreadable []int

	seen  int  // the newest revision that was there when this was opened
	stale bool // from an export, and the repository has newer keys
}
