package envelope

import (
	"strings"

	"github.com/zeebo/blake3"
)

// Stem returns what all copies of an object have in common of their names: a
// name without what a repair appended (-1, -2, ...) and, for config and keys,
// without the number of the copy (.0, .1, .2).
func Stem(name string) string {
	original, _ := Original(name)
	if (strings.HasPrefix(original, "config.") || strings.HasPrefix(original, "keys/")) && numbered(original) {
		return original[:len(original)-len(".0")]
	}
	return original
}

// NameHash returns the first 16 bytes of the BLAKE3 hash of the name's stem.
func NameHash(name string) [16]byte {
	sum := blake3.Sum256([]byte(Stem(name)))
	return [16]byte(sum[:16])
}

// Original returns the name that an object was first written under, and the
// number that a repair appended to it, 0 if none did.
func Original(name string) (original string, repair int) {
	original, repair = splitNumber(name)
	// The names of keys may end in a hyphen and digits of their own; there the copy's number is between.
	if strings.HasPrefix(name, "keys/") && !numbered(original) {
		return name, 0
	}
	return original, repair
}

func numbered(name string) bool {
	return strings.HasSuffix(name, ".0") || strings.HasSuffix(name, ".1") || strings.HasSuffix(name, ".2")
}

// splitNumber cuts a hyphen and a number without leading zeros off the name's end.
func splitNumber(name string) (before string, number int) {
	at := strings.LastIndexByte(name, '-')
	digits := name[at+1:]
	if at < 0 || len(digits) == 0 || len(digits) > 9 || digits[0] == '0' {
		return name, 0
	}
	for _, c := range []byte(digits) {
		if c < '0' || c > '9' {
			return name, 0
		}
		number = number*10 + int(c-'0')
	}
	return name[:at], number
}
