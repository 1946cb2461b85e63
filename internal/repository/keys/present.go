package keys

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"

	"varve/internal/objects"
	"varve/internal/repository/copies"
	"varve/internal/repository/envelope"
)

// maxSlots bounds how many slots are tried with a passphrase. Who can write to the store can write slots, but then what he has tried
// before the genuine one costs no more than that each, or is older.
const maxSlots = 4096

var (
	ringName = regexp.MustCompile(`^keys/ring-([0-9]{8})\.[0-9](-[0-9]+)?$`)
	slotName = regexp.MustCompile(`^keys/slot-([0-9a-f]{32})\.[0-9](-[0-9]+)?$`)
)

// maxRevision is what eight digits hold.
const maxRevision = 99_999_999

func ringStem(revision int) string { return fmt.Sprintf("keys/ring-%08d", revision) }
func slotStem(id string) string    { return "keys/slot-" + id }

// present is what lies under keys/: the objects of each revision and slot, whether or not they can be read.
type present struct {
	rings map[int][]string
	slots map[string][]objects.Info
}

func look(ctx context.Context, st objects.Store) (*present, error) {
	p := &present{rings: make(map[int][]string), slots: make(map[string][]objects.Info)}
	err := st.List(ctx, "keys/", func(o objects.Info) error {
		if m := ringName.FindStringSubmatch(o.Name); m != nil {
			revision, err := strconv.Atoi(m[1])
			if err != nil {
				return err
			}
			p.rings[revision] = append(p.rings[revision], o.Name)
		} else if m := slotName.FindStringSubmatch(o.Name); m != nil {
			p.slots[m[1]] = append(p.slots[m[1]], o)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list keys: %w", err)
	}
	return p, nil
}

// settled looks until the rings that there were are still there once one is read, and returns what newestReadable does.
func settled(ctx context.Context, st objects.Store, repository uuid.UUID) (p *present, rings []*wrapped, unreadable []int, err error) {
	if p, err = look(ctx, st); err != nil {
		return nil, nil, nil, err
	}
	for {
		rings, unreadable, err = p.newestReadable(ctx, st, repository, maxRevision)
		if err == nil && int(rings[0].revision) == p.newest() {
			return p, rings, unreadable, nil
		}
		again, lookErr := look(ctx, st)
		if lookErr != nil {
			return nil, nil, nil, lookErr
		}
		if again.newest() == p.newest() {
			return p, rings, unreadable, err
		}
		p = again
	}
}

// revisions are those of the rings, newest first.
func (p *present) revisions() []int {
	var all []int
	for r := range p.rings {
		all = append(all, r)
	}
	slices.Sort(all)
	slices.Reverse(all)
	return all
}

// newest is the highest revision, 0 if there is none.
func (p *present) newest() int {
	if all := p.revisions(); len(all) > 0 {
		return all[0]
	}
	return 0
}

// loadSlots returns the slots that can be read, those that cost least first, and what is wrong with the others.
func (p *present) loadSlots(ctx context.Context, st objects.Store, repository uuid.UUID) (sound []*slot, wrong, err error) {
	for id := range p.slots {
		var s *slot
		err := copies.Load(ctx, st, slotStem(id), envelope.Slot, repository, func(_ envelope.Header, payload []byte) (err error) {
			s, err = decodeSlot(payload)
			if err == nil && s.ID != id {
				err = fmt.Errorf("%w: it says it is %s", envelope.ErrDamaged, s.ID)
			}
			return err
		})
		switch {
		case err == nil:
			sound = append(sound, s)
		case errors.Is(err, envelope.ErrForeign) || errors.Is(err, objects.ErrNotFound):
			// left by somebody who began to make another repository here; or deleted a moment ago
		case errors.Is(err, envelope.ErrDamaged) || errors.Is(err, envelope.ErrLost) || errors.Is(err, envelope.ErrNewer):
			wrong = errors.Join(wrong, fmt.Errorf("slot %s: %w", id, err))
		default:
			return nil, nil, fmt.Errorf("read the slots of passphrases: %w", err)
		}
	}
	slices.SortFunc(sound, func(a, b *slot) int {
		switch {
		case a.cost.less(b.cost):
			return -1
		case b.cost.less(a.cost):
			return 1
		}
		return p.slots[a.ID][0].Modified.Compare(p.slots[b.ID][0].Modified)
	})
	return sound[:min(len(sound), maxSlots)], wrong, nil
}

// newestReadable returns the wrapped copies of the highest revision up to a limit of which there is one, and the revisions
// above it of which no copy can be read: envelope.ErrLost if there is none at all.
func (p *present) newestReadable(ctx context.Context, st objects.Store, repository uuid.UUID, limit int) (found []*wrapped, unreadable []int, err error) {
	var wrong error
	refused := errors.New("see all copies")
	for _, revision := range p.revisions() {
		if revision > limit {
			continue
		}
		err := copies.Load(ctx, st, ringStem(revision), envelope.Ring, repository, func(_ envelope.Header, payload []byte) error {
			w, err := decodeWrapped(payload)
			if err == nil && int(w.revision) != revision {
				err = fmt.Errorf("%w: it says it is revision %d", envelope.ErrDamaged, w.revision)
			}
			if err != nil {
				return err
			}
			found = append(found, w)
			return refused
		})
		switch {
		case len(found) > 0:
			return found, unreadable, nil
		case errors.Is(err, envelope.ErrForeign) || errors.Is(err, objects.ErrNotFound):
			continue
		case errors.Is(err, envelope.ErrDamaged) || errors.Is(err, envelope.ErrLost):
			unreadable = append(unreadable, revision)
			wrong = errors.Join(wrong, fmt.Errorf("keys of revision %d: %w", revision, err))
		default:
			return nil, nil, fmt.Errorf("read the keys of revision %d: %w", revision, err)
		}
	}
	if wrong == nil {
		wrong = fmt.Errorf("the repository has no keys, but if they were exported the export opens it: %w", envelope.ErrLost)
	}
	return nil, unreadable, wrong
}

// day is how old a slot must be, by the store's clock, that is in no ring and may be of somebody who is adding it.
const day = 24 * time.Hour
