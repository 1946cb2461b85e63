package index

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"

	"varve/internal/repository/chunk"
	"varve/internal/repository/envelope"
	"varve/internal/repository/pack"
	"varve/internal/repository/seal"
)

const (
	entryBytes   = 61
	frameEntries = 1000
	// runEntries is how many entries a Writer gathers for a run: 16 MiB of memory, 64 GiB in chunks of 256 KiB.
	runEntries = 256 * frameEntries
)

// Writer sorts entries into runs, and writes a run whenever it has gathered many. It is used by one goroutine at a time.
type Writer struct {
	keys          *seal.Keys
	set           uuid.UUID
	parityPercent int
	put           func(pack.Packed) error
	entries       []Entry
}

// NewWriter returns a writer of runs of a set, zero in repositories that have none. Each run is given to put, which
// stores and releases it.
func NewWriter(k *seal.Keys, set uuid.UUID, parityPercent int, put func(pack.Packed) error) *Writer {
	return &Writer{keys: k, set: set, parityPercent: parityPercent, put: put}
}

// Add adds all that a pack of chunks or nodes holds, from its directory.
func (w *Writer) Add(kind envelope.Kind, id chunk.PackID, d *pack.Directory) error {
	for i, e := range d.Entries() {
		err := w.AddEntry(Entry{
			ID:          e.ID,
			Place:       chunk.Place{Pack: id, Frame: uint32(i)},
			SealedBytes: e.SealedBytes,
			PlainBytes:  e.PlainBytes,
			Kind:        kind,
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// AddEntry adds an entry.
func (w *Writer) AddEntry(e Entry) error {
	w.entries = append(w.entries, e)
	if len(w.entries) < runEntries {
		return nil
	}
	return w.Flush()
}

// Flush writes what was added as a run, if there is anything.
func (w *Writer) Flush() error {
	if len(w.entries) == 0 {
		return nil
	}
	slices.SortFunc(w.entries, Entry.Compare)
	b := pack.NewBuilder(w.keys, envelope.Index, w.set, w.parityPercent)
	var plain, encoded []byte
	for frame := range slices.Chunk(slices.Compact(w.entries), frameEntries) {
		plain = appendEntries(plain[:0], frame)
		var data []byte
		var enc pack.Encoding
		if data, enc = pack.Encode(encoded, plain); enc != pack.Raw {
			encoded = data
		}
		b.Append(frame[0].ID, data, enc, len(plain), []uint64{prefix(frame[len(frame)-1].ID)})
	}
	w.entries = w.entries[:0]
	p, err := b.Finish()
	if err != nil {
		return err
	}
	return w.put(p)
}

func appendEntries(b []byte, entries []Entry) []byte {
	for i := range entries {
		e := &entries[i]
		b = append(b, e.ID[:]...)
		b = append(b, e.Place.Pack[:]...)
		b = binary.LittleEndian.AppendUint32(b, e.Place.Frame)
		b = binary.LittleEndian.AppendUint32(b, e.SealedBytes)
		b = binary.LittleEndian.AppendUint32(b, e.PlainBytes)
		b = append(b, byte(e.Kind))
	}
	return b
}

var errEntries = errors.New("no entries of an index")

func decodeEntries(b []byte) ([]Entry, error) {
	if len(b)%entryBytes != 0 {
		return nil, fmt.Errorf("%w: %d bytes", errEntries, len(b))
	}
	entries := make([]Entry, len(b)/entryBytes)
	for i := range entries {
		p := b[i*entryBytes:][:entryBytes]
		e := &entries[i]
		*e = Entry{
			ID:          chunk.ID(p),
			Place:       chunk.Place{Pack: chunk.PackID(p[32:]), Frame: binary.LittleEndian.Uint32(p[48:])},
			SealedBytes: binary.LittleEndian.Uint32(p[52:]),
			PlainBytes:  binary.LittleEndian.Uint32(p[56:]),
			Kind:        envelope.Kind(p[60]),
		}
		if e.Kind != envelope.Pack && e.Kind != envelope.Nodes {
			return nil, fmt.Errorf("%w: entry %d is of kind %d", errEntries, i, e.Kind)
		}
		if i > 0 && entries[i-1].Compare(*e) >= 0 {
			return nil, fmt.Errorf("%w: entry %d is out of order", errEntries, i)
		}
	}
	return entries, nil
}
