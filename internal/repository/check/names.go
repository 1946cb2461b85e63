package check

import (
	"regexp"
	"slices"

	"varve/internal/repository/envelope"
	"varve/internal/repository/pack"
)

// names are those of the objects that are no packs: see docs/design/repository.md.
var names = []struct {
	kind envelope.Kind
	is   *regexp.Regexp
}{
	{envelope.Config, regexp.MustCompile(`^config\.[0-2]$`)},
	{envelope.Ring, regexp.MustCompile(`^keys/ring-[0-9]{8}\.[0-2]$`)},
	{envelope.Slot, regexp.MustCompile(`^keys/slot-[0-9a-f]{32}\.[0-2]$`)},
	{envelope.Candidate, regexp.MustCompile(`^candidates/[0-9a-f]{16}\.[0-9]{1,9}$`)},
	{envelope.Record, regexp.MustCompile(`^backups/[0-9a-f]{16}$`)},
	{envelope.Tombstone, regexp.MustCompile(`^deleted/[0-9a-f]{16}$`)},
	{envelope.Fence, regexp.MustCompile(`^fenced/[0-9a-f]{16}$`)},
	{envelope.Condemned, regexp.MustCompile(`^condemned/[0-9a-f]{32}$`)},
	{envelope.Pin, regexp.MustCompile(`^pins/[0-9a-f]{32}\.[0-9]{1,9}$`)},
	{envelope.Ledger, regexp.MustCompile(`^ledger/([a-z]+-)?[0-9a-f]{32}$`)},
}

// maxNameBytes is the length of the longest of these names, and more.
const maxNameBytes = 56

// kindOf tells what an object is by its original name; ok is false if that is none that a repository has.
func kindOf(name string) (kind envelope.Kind, ok bool) {
	if kind, id, ok := pack.ParseName(name); ok {
		return kind, pack.Name(kind, id) == name
	}
	for _, n := range names {
		if n.is.MatchString(name) {
			return n.kind, true
		}
	}
	return 0, false
}

// packOf is the pack that an object's original name is of.
func packOf(name string) (packKey, bool) {
	kind, id, ok := pack.ParseName(name)
	return packKey{kind, id}, ok
}

func (p packKey) name() string { return pack.Name(p.kind, p.id) }

// isPack tells kinds whose objects are packs: there are many, and they are large.
func isPack(kind envelope.Kind) bool {
	return slices.Contains([]envelope.Kind{envelope.Pack, envelope.Nodes, envelope.Index}, kind)
}

// isThrice tells kinds that are kept three times.
func isThrice(kind envelope.Kind) bool {
	return slices.Contains([]envelope.Kind{envelope.Config, envelope.Ring, envelope.Slot}, kind)
}

// isPassing tells kinds whose objects do not stay, so that the ledger need not know them.
func isPassing(kind envelope.Kind) bool {
	return slices.Contains([]envelope.Kind{envelope.Candidate, envelope.Pin, envelope.Ledger}, kind)
}
