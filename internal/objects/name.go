package objects

import (
	"fmt"
	"strings"
)

// What a name may have at most. Every file system and every S3 store takes that, with a prefix before it.
const (
	MaxNameBytes = 512
	MaxPartBytes = 128 // of what stands between two slashes
	MaxParts     = 8
)

// CheckName returns ErrName, with the reason, unless name is one that an object can have.
func CheckName(name string) error {
	if len(name) > MaxNameBytes {
		return fmt.Errorf("%w: %.40q…: longer than %d bytes", ErrName, name, MaxNameBytes)
	}
	parts := strings.Split(name, "/")
	if len(parts) > MaxParts {
		return fmt.Errorf("%w: %q: more than %d parts", ErrName, name, MaxParts)
	}
	for _, part := range parts {
		if !IsPart(part) {
			return fmt.Errorf("%w: %q", ErrName, name)
		}
	}
	return nil
}

// CheckPrefix returns ErrName unless some name begins with prefix, which may be empty.
func CheckPrefix(prefix string) error {
	if prefix == "" {
		return nil
	}
	return CheckName(prefix + "a")
}

// IsPart tells whether s can stand between two slashes of a name.
func IsPart(s string) bool {
	if s == "" || s == "." || s == ".." || len(s) > MaxPartBytes {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '.', c == '_', c == '-':
		default:
			return false
		}
	}
	return true
}

// Size is how many bytes an object of these pieces has; ErrTooLarge if that is more than MaxObjectBytes.
func Size(data [][]byte) (int64, error) {
	var size int64
	for _, piece := range data {
		size += int64(len(piece))
	}
	if size > MaxObjectBytes {
		return size, fmt.Errorf("%w: %d bytes", ErrTooLarge, size)
	}
	return size, nil
}
