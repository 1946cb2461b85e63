package keys

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"varve/internal/objects"
	"varve/internal/repository/copies"
	"varve/internal/repository/envelope"
	"varve/internal/repository/seal"
)

// Create writes the first ring of new keys, with at least one method: ErrInvalid, ErrExists for one that is given twice. It belongs
// before the configuration, with which the repository begins to be.
func Create(ctx context.Context, st objects.Store, k *seal.Keys, add []Add) (*Ring, error) {
	p, err := look(ctx, st)
	if err != nil {
		return nil, err
	}
	if len(add) == 0 {
		return nil, fmt.Errorf("%w: a repository needs a passphrase or an age recipient", ErrInvalid)
	}
	r := &Ring{Keys: k, seen: p.newest()}
	next := r.next()
	if !st.Exclusive() {
		// Two who make different repositories here at once must not write one ring over the other's: the configuration,
		// which comes later, decides whose stays.
		next.Revision += rand.IntN(1_000_000)
		next.seen = next.Revision
	}
	slots, err := next.add(add)
	if err != nil {
		return nil, err
	}
	if err := r.replace(ctx, st, next, slots); err != nil {
		return nil, err
	}
	return r, nil
}

// Discard deletes what Create wrote, for somebody whose repository did not come about.
func (r *Ring) Discard(ctx context.Context, st objects.Store) error {
	p, err := look(ctx, st)
	if err != nil {
		return err
	}
	err = remove(ctx, st, p.rings[r.Revision])
	for _, m := range r.Methods {
		err = errors.Join(err, remove(ctx, st, names(p.slots[m.ID])))
	}
	return err
}

// AddMethod lets one more passphrase or recipient open the repository, with all it holds: ErrExists, ErrInvalid, ErrChanged,
// ErrLeftover. After Import it becomes the only one; ErrStale.
func (r *Ring) AddMethod(ctx context.Context, st objects.Store, a Add) (Method, error) {
	next := r.next()
	slots, err := next.add([]Add{a})
	if err != nil {
		return Method{}, err
	}
	err = r.replace(ctx, st, next, slots)
	if err != nil && !errors.Is(err, ErrLeftover) {
		return Method{}, err
	}
	return r.Methods[len(r.Methods)-1], err
}

// RemoveMethod has a passphrase or recipient open the repository no longer: ErrNoMethod, ErrLastMethod, ErrChanged, ErrLeftover.
// Who had it may have kept the keys; what is written after Rotate he cannot read.
func (r *Ring) RemoveMethod(ctx context.Context, st objects.Store, id string) error {
	next := r.next()
	next.Methods = slices.DeleteFunc(next.Methods, func(m Method) bool { return m.ID == id })
	switch {
	case len(next.Methods) == len(r.Methods):
		return fmt.Errorf("remove key %q: %w", id, ErrNoMethod)
	case len(next.Methods) == 0:
		return fmt.Errorf("remove key %q: %w: add another one first", id, ErrLastMethod)
	}
	return r.replace(ctx, st, next, nil)
}

// Rotate adds a generation of keys, with which all is sealed that is written from now on: ErrChanged, ErrLeftover, ErrStale. Export
// the ring again. Keys is another value afterwards.
func (r *Ring) Rotate(ctx context.Context, st objects.Store) error {
	next := r.next()
	k := r.Keys
	next.Keys = &seal.Keys{
		Repository: k.Repository, Cipher: k.Cipher, Newest: k.Newest,
		Generations: maps.Clone(k.Generations), Identity: k.Identity, Hash: k.Hash,
	}
	next.Keys.Rotate()
	return r.replace(ctx, st, next, nil)
}

// errOvertaken: others have changed the ring meanwhile, before or after this change.
var errOvertaken = fmt.Errorf("change the keys: %w at the same time: open them to see whether this change is made", ErrChanged)

// next is the ring as the next revision begins.
func (r *Ring) next() *Ring {
	return &Ring{Revision: r.seen + 1, seen: r.seen + 1, Keys: r.Keys, Methods: slices.Clone(r.Methods)}
}

// add appends methods, and returns the slots that their passphrases need.
func (r *Ring) add(all []Add) (slots []*slot, err error) {
	hybrid := false
	for _, m := range r.Methods {
		hybrid = hybrid || strings.HasPrefix(m.Recipient, postQuantum)
	}
	for _, a := range all {
		hybrid = hybrid || strings.HasPrefix(a.Recipient, postQuantum)
	}
	for _, a := range all {
		m := Method{ID: newID(), Kind: KindAge, Label: a.Label, CreatedAt: time.Now().UTC()}
		if err := checkLabel(a.Label); err != nil {
			return nil, err
		}
		if (len(a.Passphrase) == 0) == (a.Recipient == "") {
			return nil, fmt.Errorf("%w: add either a passphrase or a recipient", ErrInvalid)
		}
		if a.Recipient != "" {
			if _, m.Recipient, err = parseRecipient(a.Recipient); err != nil {
				return nil, err
			}
			for _, other := range r.Methods {
				if other.Recipient == m.Recipient {
					return nil, fmt.Errorf("add %s: %w as %s", m.Recipient, ErrExists, name(other))
				}
			}
		} else {
			s, err := r.seal(&m, a, hybrid)
			if err != nil {
				return nil, err
			}
			slots = append(slots, s)
		}
		r.Methods = append(r.Methods, m)
	}
	if len(r.Methods) > MaxMethods {
		return nil, fmt.Errorf("%w: a repository has at most %d keys", ErrInvalid, MaxMethods)
	}
	return slots, nil
}

// seal makes m one for a passphrase, and returns its slot.
func (r *Ring) seal(m *Method, a Add, hybrid bool) (*slot, error) {
	if a.Cost == (Cost{}) {
		a.Cost = DefaultCost
	}
	if err := a.Cost.check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	m.Kind = KindPassphrase
	var identity string
	var err error
	if identity, m.Recipient, err = newIdentity(hybrid); err != nil {
		return nil, err
	}
	return newSlot(*m, a.Passphrase, a.Cost, identity)
}

// replace puts next in the place of r, which then is what next was, and deletes what next does without.
func (r *Ring) replace(ctx context.Context, st objects.Store, next *Ring, slots []*slot) error {
	if r.stale {
		return fmt.Errorf("change the keys: %w: the repository has generations that it lacks", ErrStale)
	}
	if len(next.Methods) == 0 {
		return fmt.Errorf("change the keys: %w: they come from an export; add a passphrase or recipient first", ErrNoMethod)
	}
	if next.Revision > maxRevision {
		return fmt.Errorf("change the keys: there is a ring of revision %d, which nobody can have meant: delete it if it does not open", r.seen)
	}
	p, err := look(ctx, st)
	if err != nil {
		return err
	}
	if p.newest() != r.seen {
		return fmt.Errorf("change the keys: %w: revision %d was the newest, now it is %d", ErrChanged, r.seen, p.newest())
	}
	payload, err := next.encode()
	if err != nil {
		return err
	}
	repository := next.Keys.Repository
	for _, s := range slots {
		if err := copies.Put(ctx, st, slotStem(s.ID), envelope.Slot, repository, s.encode()); err != nil {
			return fmt.Errorf("add %s: %w", name(s.Method), err)
		}
	}
	err = copies.Put(ctx, st, ringStem(next.Revision), envelope.Ring, repository, payload)
	if errors.Is(err, copies.ErrTaken) {
		for _, s := range slots {
			for n := range copies.Count {
				_ = st.Delete(ctx, copies.Name(slotStem(s.ID), n)) // a later change does it otherwise
			}
		}
		return fmt.Errorf("change the keys: %w: %w", ErrChanged, err)
	}
	if errors.Is(err, objects.ErrNotFound) {
		return errOvertaken // what was put was deleted by whoever put a later one
	}
	if err != nil {
		return fmt.Errorf("change the keys: %w: open them again to see whether the change is made", err)
	}
	if p, err = look(ctx, st); err != nil {
		return fmt.Errorf("change the keys: %w: the change is made", err)
	}
	first := r.Revision == 0
	if p.newest() > next.Revision && !first {
		// Either others have built on this ring already; or its name was free only because they have changed the ring
		// more than once, and have deleted what came between.
		return errOvertaken
	}
	removed := make(map[string]bool)
	for _, m := range r.Methods {
		removed[m.ID] = true
	}
	*r = *next
	if first {
		return nil // what else lies there is of others who are at the same
	}
	if err := r.clean(ctx, st, p, removed); err != nil {
		return fmt.Errorf("the keys are changed, but %w: %w", ErrLeftover, err)
	}
	return nil
}

// clean deletes older rings, the slots of removed methods, and slots that came to nothing. What is under a retention stays for a later change
// to delete; that fails if a method was removed, which still opens the older ring.
func (r *Ring) clean(ctx context.Context, st objects.Store, p *present, removed map[string]bool) error {
	for _, m := range r.Methods {
		delete(removed, m.ID)
	}
	ring, err := st.Stat(ctx, copies.Name(ringStem(r.Revision), 0))
	if errors.Is(err, objects.ErrNotFound) {
		return nil // somebody has put the next one already, and cleans
	}
	if err != nil {
		return err
	}
	inUse := func(id string) bool {
		return slices.ContainsFunc(r.Methods, func(m Method) bool { return m.ID == id })
	}
	var failed error
	drop := func(names []string) {
		err := remove(ctx, st, names)
		if len(removed) == 0 && errors.Is(err, objects.ErrLocked) {
			err = nil
		}
		failed = errors.Join(failed, err)
	}
	for id, slot := range p.slots {
		old := slot[0].Modified.Before(ring.Modified.Add(-day))
		if removed[id] || old && !inUse(id) {
			drop(names(slot))
		}
	}
	for revision, older := range p.rings {
		if revision < r.Revision {
			drop(older)
		}
	}
	return failed
}

func names(infos []objects.Info) (all []string) {
	for _, o := range infos {
		all = append(all, o.Name)
	}
	return all
}

func remove(ctx context.Context, st objects.Store, names []string) error {
	for _, name := range names {
		if err := st.Delete(ctx, name); err != nil {
			return err
		}
	}
	return nil
}
