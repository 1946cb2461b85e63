package daemon

import (
	"context"
	"errors"
	"maps"
	"sync"
	"time"
)

// A volume that is filled from a backup needs it until it is filled, also while its daemon is away and others delete backups and prune. So the
// backup has a hold in its repository (repository.Hold), whose name is part of what the pool calls the base: it is made before the
// volume is, renewed every day, and given back when no volume needs the base any more.

// holdEvery is how often a hold is renewed; it lasts for repository.HoldFor.
const holdEvery = 24 * time.Hour

// holds are the holds of backups that volumes are filled from.
type holds struct {
	turn  sync.Mutex // one looks after them at a time
	mu    sync.Mutex
	known map[baseRef]held
}

// held is when a hold was renewed last, and when something of it failed since, by the wall clock, which goes on while the machine sleeps.
type held struct{ renewed, failed time.Time }

func (h *holds) set(base baseRef, is held) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.known[base] = is
}

func (h *holds) forget(base baseRef) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.known, base)
}

func (h *holds) all() map[baseRef]held {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.known)
}

// knowHolds has those looked after that daemons before this one have made.
func (d *Daemon) knowHolds() {
	for _, f := range d.filling() {
		d.holds.set(f.base, held{})
	}
}

// within tells whether less than d has passed since then; a clock that was set back tells nothing.
func within(d time.Duration, then, now time.Time) bool {
	age := now.Sub(then)
	return age >= 0 && age < d
}

// keepHolds renews the holds of what is being filled, where that is due, and gives the others back.
func (d *Daemon) keepHolds(ctx context.Context) {
	d.holds.turn.Lock()
	defer d.holds.turn.Unlock()
	all := d.holds.all() // before it is looked what is needed: these had their volumes by then
	if len(all) == 0 {
		return
	}
	needed := map[baseRef]bool{}
	for _, f := range d.filling() {
		needed[f.base] = true
	}
	for base, is := range all {
		now := d.now().Round(0)
		if within(fillPatience, is.failed, now) || needed[base] && within(holdEvery, is.renewed, now) {
			continue
		}
		if err := d.keepHold(ctx, base, needed[base]); err != nil {
			is.failed = now
			d.holds.set(base, is)
			d.log.Warn("a backup that a volume is filled from", "backup", base.backup, "needed", needed[base], "error", err)
		} else if needed[base] {
			d.holds.set(base, held{renewed: now})
		} else {
			d.holds.forget(base)
		}
	}
}

// keepHold renews a hold, or gives it back.
func (d *Daemon) keepHold(ctx context.Context, base baseRef, needed bool) error {
	k := d.repositories.byID(base.repository)
	if k == nil && !needed {
		return nil // it was forgotten, and the hold expires
	}
	if k == nil {
		return errors.New("its repository is not known here")
	}
	ctx, cancel := context.WithTimeout(ctx, listPatience)
	defer cancel()
	u, err := d.repositories.use(ctx, k)
	if err != nil {
		return err
	}
	defer u.done()
	if needed {
		return u.Repo().Hold(ctx, base.hold, base.backup)
	}
	return u.Repo().Unhold(ctx, base.hold)
}
