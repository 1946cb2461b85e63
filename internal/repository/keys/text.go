package keys

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"unicode"
	"unicode/utf8"

	"filippo.io/age"
	"filippo.io/age/armor"

	"varve/internal/repository/envelope"
)

// version of rings and slots that is written, and the newest that is read.
const version = 1

// head reads the lines before an age file. The first error stays.
type head struct {
	rest []byte
	err  error
}

// newHead begins to read p, unless it is longer than anybody writes.
func newHead(p []byte, maxBytes int) head {
	if len(p) > maxBytes {
		return head{err: fmt.Errorf("%w: more than %d bytes", envelope.ErrDamaged, maxBytes)}
	}
	return head{rest: p}
}

// line returns what follows key on the next line.
func (h *head) line(key string) string {
	if h.err != nil {
		return ""
	}
	line, rest, ok := bytes.Cut(h.rest, []byte("\n"))
	value, has := bytes.CutPrefix(line, []byte(key))
	if !ok || !has {
		h.err = fmt.Errorf("%w: no line %q", envelope.ErrDamaged, key)
		return ""
	}
	h.rest = rest
	return string(value)
}

// title reads the first line, which ends with the version.
func (h *head) title(key string) {
	if n := h.number(key); h.err == nil && n > version {
		h.err = fmt.Errorf("%w: %s%d", envelope.ErrNewer, key, n)
	}
}

// number returns what follows key as a number of at least 1.
func (h *head) number(key string) uint32 {
	text := h.line(key)
	if h.err != nil {
		return 0
	}
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil || n == 0 {
		h.err = fmt.Errorf("%w: %s%q", envelope.ErrDamaged, key, text)
	}
	return uint32(n)
}

// age returns the rest, an armoured age file.
func (h *head) age() []byte {
	if h.err == nil && (!bytes.HasPrefix(h.rest, []byte(armor.Header+"\n")) || !bytes.HasSuffix(h.rest, []byte("\n"+armor.Footer+"\n"))) {
		h.err = fmt.Errorf("%w: no whole age file", envelope.ErrDamaged)
	}
	return h.rest
}

// encrypt returns an armoured age file.
func encrypt(plain []byte, to ...age.Recipient) ([]byte, error) {
	var b bytes.Buffer
	a := armor.NewWriter(&b)
	w, err := age.Encrypt(a, to...)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(plain); err != nil {
		return nil, err
	}
	if err := errors.Join(w.Close(), a.Close()); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// decrypt returns what an armoured age file holds: ErrWrongKey, envelope.ErrDamaged.
func decrypt(file []byte, with ...age.Identity) ([]byte, error) {
	r, err := age.Decrypt(armor.NewReader(bytes.NewReader(file)), with...)
	var none *age.NoIdentityMatchError
	if errors.As(err, &none) {
		return nil, ErrWrongKey
	}
	var plain []byte
	if err == nil {
		plain, err = io.ReadAll(r)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", envelope.ErrDamaged, err)
	}
	return plain, nil
}

func checkLabel(label string) error {
	if len(label) > MaxLabelBytes || !utf8.ValidString(label) {
		return fmt.Errorf("%w: a label has at most %d bytes of UTF-8", ErrInvalid, MaxLabelBytes)
	}
	for _, r := range label {
		if !unicode.IsPrint(r) {
			return fmt.Errorf("%w: label %q is not printable", ErrInvalid, label)
		}
	}
	return nil
}

// checkID checks 32 hexadecimal digits.
func checkID(id string) error {
	if len(id) != 32 {
		return fmt.Errorf("%w: %q is not 32 hexadecimal digits", ErrInvalid, id)
	}
	for _, c := range []byte(id) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return fmt.Errorf("%w: %q is not 32 hexadecimal digits", ErrInvalid, id)
		}
	}
	return nil
}
