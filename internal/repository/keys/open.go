package keys

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/google/uuid"

	"varve/internal/objects"
	"varve/internal/repository/copies"
	"varve/internal/repository/envelope"
)

// Open opens the newest ring that can be read: ErrWrongKey, which says what keys there are as far as that is known;
// envelope.ErrLost if no copy of any ring can be read; envelope.ErrDamaged, ErrNewer.
func Open(ctx context.Context, st objects.Store, repository uuid.UUID, u Unlock) (*Ring, error) {
	p, rings, unreadable, err := settled(ctx, st, repository)
	if err != nil {
		return nil, err
	}
	ids := slices.Clone(u.Identities)
	r, failed := openAny(rings, repository, ids)
	var slots []*slot
	var lost error
	if r == nil {
		if slots, lost, err = p.loadSlots(ctx, st, repository); err != nil {
			return nil, err
		}
	}
	for i := 0; r == nil && i < len(slots) && len(u.Passphrase) > 0; i++ {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		own, slotErr := slots[i].open(u.Passphrase)
		if slotErr != nil {
			if !errors.Is(slotErr, ErrWrongKey) {
				lost = errors.Join(lost, slotErr)
			}
			continue
		}
		ids = append(ids, own...)
		r, failed = openAny(rings, repository, own)
	}
	if r != nil {
		r.Unreadable, r.seen = unreadable, p.newest()
		return r, nil
	}
	if !errors.Is(failed, ErrWrongKey) {
		return nil, fmt.Errorf("keys of revision %d: %w", rings[0].revision, failed)
	}
	why := p.opensOlder(ctx, st, repository, int(rings[0].revision), ids)
	return nil, wrongKey(u, why, slots, lost)
}

// openAny opens the first copy that one of the identities opens. The error is ErrWrongKey only if that is all that is wrong.
func openAny(rings []*wrapped, repository uuid.UUID, ids []age.Identity) (*Ring, error) {
	failed := ErrWrongKey
	if len(ids) == 0 {
		return nil, failed
	}
	for _, w := range rings {
		r, err := w.open(repository, ids...)
		if err == nil {
			return r, nil
		}
		if !errors.Is(err, ErrWrongKey) {
			failed = err
		}
	}
	return nil, failed
}

// opensOlder says so if the identities open a ring below a revision, which then is not for them: whoever opened
// that instead would seal what he writes for somebody who was removed.
func (p *present) opensOlder(ctx context.Context, st objects.Store, repository uuid.UUID, revision int, ids []age.Identity) string {
	for newest := revision; ; {
		rings, _, err := p.newestReadable(ctx, st, repository, revision-1)
		if err != nil {
			return ""
		}
		revision = int(rings[0].revision)
		if r, err := openAny(rings, repository, ids); err == nil {
			return fmt.Sprintf("it opens the keys of revision %d, but has been removed in a later one; "+
				"or %s was put there by somebody who wants that to be believed", r.Revision, copies.Name(ringStem(newest), 0))
		}
	}
}

// wrongKey says what was tried, and what there is.
func wrongKey(u Unlock, why string, slots []*slot, lost error) error {
	const maxNames = 8
	var b strings.Builder
	switch {
	case why != "":
		b.WriteString(why)
	case len(u.Passphrase) > 0 && len(u.Identities) > 0:
		b.WriteString("neither the passphrase nor an identity opens the repository")
	case len(u.Passphrase) > 0:
		b.WriteString("the passphrase does not open the repository")
	case len(u.Identities) > 0:
		b.WriteString("no identity given opens the repository")
	default:
		b.WriteString("a passphrase or an age identity is needed")
	}
	if len(slots) == 0 {
		b.WriteString("; it has no passphrases, only age recipients")
	} else {
		b.WriteString("; it has ")
	}
	for _, s := range slots[:min(len(slots), maxNames)] {
		b.WriteString(name(s.Method) + ", ")
	}
	if more := len(slots) - maxNames; more > 0 {
		fmt.Fprintf(&b, "%d more, ", more)
	}
	if len(slots) > 0 {
		b.WriteString("and perhaps age recipients")
	}
	err := fmt.Errorf("%w: %s", ErrWrongKey, b.String())
	if lost != nil {
		err = fmt.Errorf("%w; %w", err, lost)
	}
	return err
}

// name is what people know a method by.
func name(m Method) string {
	if m.Label == "" {
		return fmt.Sprintf("%s %.8s of %s", m.Kind, m.ID, m.CreatedAt.Format(time.DateOnly))
	}
	return fmt.Sprintf("%s %q of %s", m.Kind, m.Label, m.CreatedAt.Format(time.DateOnly))
}

// List returns the methods that are known without a key: the passphrases. Their labels and times are what whoever can
// write to the store says, and some may no longer be in use.
func List(ctx context.Context, st objects.Store, repository uuid.UUID) ([]Method, error) {
	p, err := look(ctx, st)
	if err != nil {
		return nil, err
	}
	slots, _, err := p.loadSlots(ctx, st, repository)
	var all []Method
	for _, s := range slots {
		all = append(all, s.Method)
	}
	return all, err
}

// Complete puts the copies of the newest ring and of the slots that are missing, as after a crash, or lost, and returns the names
// it wrote. It needs no key. A slot that is lost altogether is in the error, envelope.ErrLost.
func Complete(ctx context.Context, st objects.Store, repository uuid.UUID) (written []string, err error) {
	p, rings, _, err := settled(ctx, st, repository)
	if err != nil {
		return nil, err
	}
	written, err = copies.Complete(ctx, st, ringStem(int(rings[0].revision)), envelope.Ring, repository)
	for id := range p.slots {
		names, slotErr := copies.Complete(ctx, st, slotStem(id), envelope.Slot, repository)
		written = append(written, names...)
		if !errors.Is(slotErr, envelope.ErrForeign) && !errors.Is(slotErr, objects.ErrNotFound) {
			err = errors.Join(err, slotErr)
		}
	}
	return written, err
}
