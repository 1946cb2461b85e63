package repository

import (
	"fmt"
	"path"
	"strings"

	"varve/internal/repository/envelope"
)

// Understand checks the content of an object that is sealed in one piece against its name: ErrDamaged if it is not what
// such an object holds.
func Understand(kind envelope.Kind, name string, plain []byte) error {
	id := path.Base(name)
	var err error
	switch kind {
	case envelope.Record:
		_, err = decodeRecord(plain, id)
	case envelope.Candidate:
		record, _, _ := strings.Cut(id, ".")
		_, err = decodeCandidate(plain, record)
	case envelope.Tombstone, envelope.Fence:
		if string(plain) != id {
			err = fmt.Errorf("it names %.40q: %w", plain, ErrDamaged)
		}
	case envelope.Condemned:
		var w wireMark
		if err = decode(plain, &w); err == nil && (len(w.Chunks)%16 != 0 || len(w.Nodes)%16 != 0) {
			err = ErrDamaged
		}
	case envelope.Pin:
		err = decode(plain, &wirePin{})
	case envelope.Ledger:
		err = decode(plain, &wireLedger{})
	}
	return err
}
