package daemon

import (
	"context"
	"time"

	"varve/internal/pool"
)

// expiryPatience is the longest time between two looks at what has expired: a
// clock that was set, or a snapshot that was in use, is noticed after it.
const expiryPatience = time.Minute

// snapshotsChanged has the expiry loop look again.
func (d *Daemon) snapshotsChanged() {
	select {
	case d.expiryKick <- struct{}{}:
	default:
	}
}

// expireLoop deletes snapshots when their time is over, until ctx ends.
func (d *Daemon) expireLoop(ctx context.Context) {
	for {
		d.forgetDropped()
		d.dropKept(d.now())
		d.dropBegun(d.now())
		next := d.expire(ctx, d.now())
		timer := time.NewTimer(next)
		select {
		case <-timer.C:
		case <-d.expiryKick:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		timer.Stop()
	}
}

// expire deletes the snapshots whose time is over at now, unless they are
// protected or in use, and returns how long to wait before the next look.
func (d *Daemon) expire(ctx context.Context, now time.Time) time.Duration {
	next := expiryPatience
	for _, info := range d.pool.Expiring() {
		if wait := info.ExpiresAt.Sub(now); wait > 0 {
			next = min(next, wait)
			continue
		}
		ref := pool.SnapshotRef{Volume: info.Volume, Name: info.Name}
		if err := d.pool.DeleteSnapshots(ctx, []pool.SnapshotRef{ref}); err != nil {
			d.log.Warn("expiry: delete snapshot, will try again", "snapshot", ref.String(), "error", err)
			continue
		}
		d.timings.forget(info.ID.String())
		d.note("expired", ref.String(), "snapshot deleted: its time to live is over")
	}
	return next
}
