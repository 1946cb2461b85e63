package keys

import (
	"bytes"
	"context"
	"encoding/base32"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/google/uuid"
	"github.com/zeebo/blake3"

	"varve/internal/objects"
	"varve/internal/repository/envelope"
)

// An export is typed by people. Its alphabet is Crockford's: case does not matter, nor whether 0 is taken for O and 1 for I or L.
const alphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

var crockford = base32.NewEncoding(alphabet).WithPadding(base32.NoPadding)

const (
	exportTitle = "VARVE-KEYS-"
	lineBytes   = 20 // of content in a line, 32 characters
	checkChars  = 4  // at the end of each line
	totalBytes  = 8  // of the checksum over all
	groupChars  = 4
)

// Export returns the ring as a text to print and to keep in a safe: with it alone the repository opens, whatever becomes of
// passphrases, identities and slots. Whoever has it can read all that is written until the next Rotate.
func (r *Ring) Export() ([]byte, error) {
	plain, err := r.content(false)
	if err != nil {
		return nil, err
	}
	sum := blake3.Sum256(plain)
	plain = append(plain, sum[:totalBytes]...)
	var b bytes.Buffer
	fmt.Fprintf(&b, "# The keys of Varve repository %s, revision %d, generation %d.\n", r.Keys.Repository, r.Revision, r.Keys.Newest)
	b.WriteString("# Whoever has this page can read its backups. Keep it in a safe, away from the repository.\n")
	b.WriteString("# To use it type all lines that do not begin with # into a file. Case and spaces do not matter.\n")
	fmt.Fprintf(&b, "%s%d\n", exportTitle, version)
	for number := 1; len(plain) > 0; number++ {
		line := plain[:min(len(plain), lineBytes)]
		plain = plain[len(line):]
		text := crockford.EncodeToString(line) + check(number, line)
		fmt.Fprintf(&b, "%02d:", number)
		for len(text) > 0 {
			group := text[:min(len(text), groupChars)]
			text = text[len(group):]
			b.WriteString(" " + group)
		}
		b.WriteString("\n")
	}
	return b.Bytes(), nil
}

// check is that of a line: 20 bits of the hash of its number and content.
func check(number int, content []byte) string {
	sum := blake3.Sum256(append([]byte{byte(number >> 8), byte(number)}, content...))
	return crockford.EncodeToString(sum[:5])[:checkChars]
}

// decodeExport reads what Export wrote, or what somebody typed from it: ErrInvalid, which names the line; envelope.ErrNewer.
func decodeExport(text []byte) (*Ring, error) {
	if len(text) > maxRingBytes {
		return nil, fmt.Errorf("%w: an export of more than %d bytes", ErrInvalid, maxRingBytes)
	}
	var content []byte
	number := 0
	titled := false
	for raw := range strings.Lines(string(text)) {
		line := strings.ToUpper(strings.TrimSpace(raw))
		if line == "" || line[0] == '#' {
			continue
		}
		if !titled {
			v, ok := strings.CutPrefix(line, exportTitle)
			n, err := strconv.Atoi(v)
			if !ok || err != nil || n < 1 {
				return nil, fmt.Errorf("%w: an export begins with %s%d", ErrInvalid, exportTitle, version)
			}
			if n > version {
				return nil, fmt.Errorf("%w: an export of version %d", envelope.ErrNewer, n)
			}
			titled = true
			continue
		}
		number++
		bytes, err := decodeLine(number, line)
		if err != nil {
			return nil, fmt.Errorf("%w: line %02d: %w", ErrInvalid, number, err)
		}
		content = append(content, bytes...)
	}
	split := len(content) - totalBytes
	if split < 0 {
		return nil, fmt.Errorf("%w: the export is not whole", ErrInvalid)
	}
	if sum := blake3.Sum256(content[:split]); !bytes.Equal(sum[:totalBytes], content[split:]) {
		return nil, fmt.Errorf("%w: the export is not whole: lines are missing at its end", ErrInvalid)
	}
	r, err := decodeContent(content[:split])
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return r, nil
}

func decodeLine(number int, line string) ([]byte, error) {
	tag, text, ok := strings.Cut(line, ":")
	if n, err := strconv.Atoi(strings.TrimSpace(tag)); !ok || err != nil || n != number {
		return nil, errors.New("it is missing, or does not begin with its number and a colon")
	}
	text = strings.NewReplacer(" ", "", "\t", "", "-", "", "O", "0", "I", "1", "L", "1").Replace(text)
	if len(text) <= checkChars {
		return nil, errors.New("it is too short")
	}
	split := len(text) - checkChars
	content, err := crockford.DecodeString(text[:split])
	if err != nil {
		return nil, errors.New("it has a character that does not occur, or too many or too few")
	}
	if check(number, content) != text[split:] {
		return nil, errors.New("it is mistyped: its last group does not match")
	}
	return content, nil
}

// Import opens a repository with an export: ErrInvalid, envelope.ErrForeign, ErrNewer. The ring has no methods, as those of the export's
// day may have been removed since: AddMethod makes a new one, and the only one.
func Import(ctx context.Context, st objects.Store, repository uuid.UUID, text []byte) (*Ring, error) {
	r, err := decodeExport(text)
	if err != nil {
		return nil, err
	}
	if r.Keys.Repository != repository {
		return nil, fmt.Errorf("%w: the export is of repository %s", envelope.ErrForeign, r.Keys.Repository)
	}
	p, rings, unreadable, err := settled(ctx, st, repository)
	switch {
	case err == nil:
		r.stale = rings[0].generation > r.Keys.Newest
	case !errors.Is(err, envelope.ErrLost) && !errors.Is(err, envelope.ErrDamaged):
		return nil, err
	}
	r.seen, r.Unreadable = p.newest(), unreadable
	return r, nil
}
