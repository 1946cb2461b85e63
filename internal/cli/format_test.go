package cli

import (
	"math"
	"strings"
	"testing"
	"time"

	"varve/internal/contract"
)

func TestParseSize(t *testing.T) {
	for in, want := range map[string]size{
		"0": 0, "4096": 4096, "1k": 1 << 10, "512M": 512 << 20, "10G": 10 << 30, "10GiB": 10 << 30, "64T": 64 << 40, "7E": 7 << 60,
		"9223372036854775807": math.MaxInt64,
	} {
		if got, err := parseSize(in); err != nil || got != want {
			t.Errorf("%q: %d, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "G", "-1", "+1", "1.5G", "1 G", "10X", "10GG", "10B", "10GB", "1iB", "8E", "9223372036854775808", "0x10", "1_000", "١"} {
		if got, err := parseSize(in); err == nil {
			t.Errorf("%q is read as %d", in, got)
		}
	}
}

func TestHumanSize(t *testing.T) {
	for in, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1 KiB", 1536: "1.5 KiB", 10 << 30: "10 GiB", 64 << 40: "64 TiB", math.MaxInt64: "8 EiB",
	} {
		if got := humanSize(in); got != want {
			t.Errorf("%d: %q, want %q", in, got, want)
		}
	}
}

func TestKeepFor(t *testing.T) {
	for in, want := range map[string]time.Duration{"90m": 90 * time.Minute, "7d": 7 * 24 * time.Hour, "2w": 14 * 24 * time.Hour, "1h30m": 90 * time.Minute} {
		var k keepFor
		if err := k.UnmarshalText([]byte(in)); err != nil || time.Duration(k) != want {
			t.Errorf("%q: %s, %v", in, time.Duration(k), err)
		}
	}
	for _, in := range []string{"", "d", "7", "0d", "0s", "-1h", "-7d", "1.5d", "7dd", "7 d", "99999999999d", "soon"} {
		var k keepFor
		if err := k.UnmarshalText([]byte(in)); err == nil {
			t.Errorf("%q is read as %s", in, time.Duration(k))
		}
	}
}

// TestTree: a line of descent stays in one column, branches are drawn, and what
// descends from something that is not listed is a root.
func TestTree(t *testing.T) {
	var list []contract.Snapshot
	for _, pair := range []string{"a", "b a", "c b", "d c", "e b", "f e", "g b", "x missing"} {
		name, parent, _ := strings.Cut(pair, " ")
		s := contract.Snapshot{Volume: "v", Name: name}
		if parent != "" {
			s.Parent = "v@" + parent
		}
		list = append(list, s)
	}
	for unicode, want := range map[bool]string{
		false: "v@a\nv@b\n|- v@c\n|  v@d\n|- v@e\n|  v@f\n`- v@g\nv@x\n",
		true:  "v@a\nv@b\n├─ v@c\n│  v@d\n├─ v@e\n│  v@f\n└─ v@g\nv@x\n",
	} {
		var got strings.Builder
		for _, b := range tree(list, unicode) {
			got.WriteString(b.lead + b.snapshot.Ref() + "\n")
		}
		if got.String() != want {
			t.Errorf("drawn as\n%swant\n%s", &got, want)
		}
	}
}
