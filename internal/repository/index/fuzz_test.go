package index

import (
	"bytes"
	"testing"

	"varve/internal/repository/chunk"
	"varve/internal/repository/envelope"
)

func FuzzEntries(f *testing.F) {
	f.Add([]byte{})
	f.Add(appendEntries(nil, []Entry{
		{ID: chunk.ID{1}, Place: chunk.Place{Pack: chunk.PackID{7}, Frame: 3}, SealedBytes: 100, PlainBytes: 200, Kind: envelope.Pack},
		{ID: chunk.ID{2}, Place: chunk.Place{Pack: chunk.PackID{7}, Frame: 4}, SealedBytes: 50, PlainBytes: 60, Kind: envelope.Nodes},
	}))
	f.Fuzz(func(t *testing.T, b []byte) {
		entries, err := decodeEntries(b)
		if err != nil {
			return
		}
		for i := 1; i < len(entries); i++ {
			if entries[i-1].Compare(entries[i]) >= 0 {
				t.Fatalf("entry %d is out of order", i)
			}
		}
		if !bytes.Equal(appendEntries(nil, entries), b) {
			t.Fatal("encodes to something else")
		}
	})
}
