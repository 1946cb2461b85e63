package cli

import (
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"

	"github.com/alecthomas/kong"
)

// size is a number of bytes on the command line: digits and a suffix, of powers of 1024.
type size int64

const suffixes = "KMGTPE"

// parseSize reads 4096, 512M, 10G, 10GiB. Signs and fractions are errors.
func parseSize(s string) (size, error) {
	digits := strings.TrimRight(s, "KMGTPEkmgtpeiBb")
	unit := strings.ToUpper(s[len(digits):])
	shift := 0
	if unit != "" {
		shift = 10 * (1 + strings.IndexByte(suffixes, unit[0]))
		if rest := unit[1:]; rest != "" && rest != "IB" || shift == 0 {
			return 0, fmt.Errorf("size %q: the unit is none of K, M, G, T, P, E", s)
		}
	}
	n, err := strconv.ParseUint(digits, 10, 63)
	if err != nil {
		return 0, fmt.Errorf("size %q: want bytes, or a whole number with K, M, G or T, as in 10G", s)
	}
	if n > math.MaxInt64>>shift {
		return 0, fmt.Errorf("size %q is larger than any disk", s)
	}
	return size(n << shift), nil
}

func decodeSize(ctx *kong.DecodeContext, target reflect.Value) error {
	var s string
	if err := ctx.Scan.PopValueInto("size", &s); err != nil {
		return err
	}
	n, err := parseSize(s)
	if err != nil {
		return err
	}
	target.SetInt(int64(n))
	return nil
}

// humanSize is n to three digits or so: 10 GiB, 1.5 MiB, 512 B.
func humanSize(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, unit := float64(n), -1
	for v >= 1024 && unit < len(suffixes)-1 {
		v /= 1024
		unit++
	}
	text := strconv.FormatFloat(v, 'f', 1, 64)
	return strings.TrimSuffix(text, ".0") + " " + suffixes[unit:unit+1] + "iB"
}
