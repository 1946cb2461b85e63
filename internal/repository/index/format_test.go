package index

import (
	"encoding/hex"
	"strings"
	"testing"

	"varve/internal/repository/chunk"
	"varve/internal/repository/envelope"
)

// The bytes of entries are those of docs/format-repository.md.
func TestEntriesAreAsSpecified(t *testing.T) {
	one := strings.Join([]string{
		"a1", strings.Repeat("00", 30), "a2", "c1", strings.Repeat("00", 14), "c2", "04030201", "08070605", "0c0b0a09", "04",
	}, "")
	two := strings.Join([]string{
		"a1", strings.Repeat("00", 30), "a2", "c1", strings.Repeat("00", 14), "c2", "05030201", "08070605", "0c0b0a09", "04",
	}, "")
	nodes := two[:len(two)-2] + "05"
	entries := []Entry{
		{ID: chunk.ID{0: 0xa1, 31: 0xa2}, Place: chunk.Place{Pack: chunk.PackID{0: 0xc1, 15: 0xc2}, Frame: 0x01020304}, SealedBytes: 0x05060708, PlainBytes: 0x090a0b0c, Kind: envelope.Pack},
	}
	entries = append(entries, entries[0], entries[0])
	entries[1].Place.Frame++
	entries[2].Place.Frame++
	entries[2].Kind = envelope.Nodes
	if got := hex.EncodeToString(appendEntries(nil, entries)); got != one+two+nodes {
		t.Errorf("%s\nis not\n%s", got, one+two+nodes)
	}
	for what, s := range map[string]string{
		"cut off":              one[:len(one)-2],
		"twice":                one + one,
		"frames out of order":  two + one,
		"kinds out of order":   nodes + one,
		"a kind of no content": one[:len(one)-2] + "06",
	} {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeEntries(b); err == nil {
			t.Errorf("%s: decoded", what)
		}
	}
}
