package keys

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"strings"

	"filippo.io/age"
)

// maxPassphraseBytes bounds a file that has a passphrase in its first line.
const maxPassphraseBytes = 64 << 10

// ReadPassphrase returns the first line of a file, without its end: ErrInvalid if that is nothing.
func ReadPassphrase(r io.Reader) ([]byte, error) {
	all, err := io.ReadAll(io.LimitReader(r, maxPassphraseBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read the passphrase: %w", err)
	}
	line, _, _ := bytes.Cut(all, []byte("\n"))
	line = bytes.TrimSuffix(line, []byte("\r"))
	switch {
	case len(line) == 0:
		return nil, fmt.Errorf("%w: the passphrase is empty", ErrInvalid)
	case len(line) > maxPassphraseBytes:
		return nil, fmt.Errorf("%w: the passphrase has more than %d bytes", ErrInvalid, maxPassphraseBytes)
	}
	return line, nil
}

// ReadIdentities returns those of an age identity file, as age-keygen writes it: ErrInvalid.
func ReadIdentities(r io.Reader) ([]age.Identity, error) {
	ids, err := age.ParseIdentities(r)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return ids, nil
}

// postQuantum begins the recipients that age does not mix with others.
const postQuantum = "age1pq1"

// parseRecipient returns the recipient, and its text in the one form that it is compared in.
func parseRecipient(text string) (age.Recipient, string, error) {
	text = strings.ToLower(strings.TrimSpace(text))
	if strings.HasPrefix(text, postQuantum) {
		r, err := age.ParseHybridRecipient(text)
		if err != nil {
			return nil, "", fmt.Errorf("%w: recipient %q: %w", ErrInvalid, text, err)
		}
		return r, r.String(), nil
	}
	r, err := age.ParseX25519Recipient(text)
	if err != nil {
		// What does not even begin like a recipient may be a secret that was mixed up with one.
		if !strings.HasPrefix(text, "age1") {
			return nil, "", fmt.Errorf("%w: a recipient begins with age1", ErrInvalid)
		}
		return nil, "", fmt.Errorf("%w: recipient %q: %w", ErrInvalid, text, err)
	}
	return r, r.String(), nil
}

// newIdentity returns one for a slot, as text, and its recipient.
func newIdentity(hybrid bool) (identity, recipient string, err error) {
	if hybrid {
		id, err := age.GenerateHybridIdentity()
		if err != nil {
			return "", "", err
		}
		return id.String(), id.Recipient().String(), nil
	}
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return "", "", err
	}
	return id.String(), id.Recipient().String(), nil
}

func newID() string {
	id := make([]byte, 16)
	_, _ = rand.Read(id)
	return hex.EncodeToString(id)
}
