package backup

import (
	"fmt"

	"github.com/google/uuid"

	"varve/internal/repository"
)

// Want is the type that was asked for.
type Want uint8

// What can be asked for.
const (
	WantAuto Want = iota
	WantFull
	WantIncremental
	WantDifferential
)

// ParseWant reads the name of a type.
func ParseWant(s string) (Want, error) {
	for w, name := range []string{"auto", "full", "incremental", "differential"} {
		if s == name {
			return Want(w), nil
		}
	}
	return 0, fmt.Errorf("backup type %q: it is auto, full, incremental or differential", s)
}

// Choice is a type, what it is based on, and why.
type Choice struct {
	Type   repository.Type
	Base   *repository.Listed // nil for a full
	Reason string
}

// Usable tells whether what changed since a backup is known, or can be found
// out; if not, why ("its bookmark is gone").
type Usable func(b repository.Listed) (why string, ok bool)

// Choose decides how to back a volume up, given all backups of the repository,
// the one that is preferred as a base last: oldest first. A type that was asked for and that has no valid base becomes a
// full, and the reason says so.
func Choose(want Want, volume uuid.UUID, all []repository.Listed, usable Usable) Choice {
	var last, full *repository.Listed
	why, whyFull := "no earlier backup here", "no full backup here"
	for i := range all {
		b := &all[i]
		if b.VolumeID != volume {
			continue
		}
		if b.Doubtful {
			why = fmt.Sprintf("backup %s was not committed in time", b.ID)
			continue
		}
		if w, ok := usable(*b); !ok {
			why = fmt.Sprintf("%s, of backup %s", w, b.ID)
			if b.Type == repository.Full {
				whyFull = why
			}
			continue
		}
		last = b
		if b.Type == repository.Full {
			full = b
		}
	}
	switch want {
	case WantFull:
		return Choice{Type: repository.Full, Reason: "asked for"}
	case WantDifferential:
		if full == nil {
			return Choice{Type: repository.Full, Reason: "instead of a differential: " + whyFull}
		}
		return Choice{Type: repository.Differential, Base: full, Reason: "asked for"}
	case WantIncremental:
		if last == nil {
			return Choice{Type: repository.Full, Reason: "instead of an incremental: " + why}
		}
		return Choice{Type: repository.Incremental, Base: last, Reason: "asked for"}
	}
	if last == nil {
		return Choice{Type: repository.Full, Reason: why}
	}
	return Choice{Type: repository.Incremental, Base: last, Reason: "changes since backup " + last.ID + " are known"}
}

// ChooseGroup decides for several volumes that are backed up as one record. In dedup scope set they belong to one
// set: if they cannot, all of them become fulls.
func ChooseGroup(want Want, volumes []uuid.UUID, all []repository.Listed, oneSet bool, usable func(volume int, b repository.Listed) (string, bool)) []Choice {
	choices := make([]Choice, len(volumes))
	sets := map[uuid.UUID]bool{}
	for i, v := range volumes {
		choices[i] = Choose(want, v, all, func(b repository.Listed) (string, bool) { return usable(i, b) })
		set := uuid.Nil
		if choices[i].Base != nil {
			set = choices[i].Base.Set
		}
		sets[set] = true
	}
	if oneSet && len(sets) > 1 {
		for i, c := range choices {
			if c.Base != nil {
				choices[i] = Choice{Type: repository.Full, Reason: "the group's volumes have no base in one common set"}
			}
		}
	}
	return choices
}
