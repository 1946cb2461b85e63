package repository

import (
	"context"
	"errors"
	"fmt"
	"time"

	"varve/internal/objects"
	"varve/internal/repository/envelope"
)

// Census is what decides which content is needed: who prunes takes it. See Repo.Census.
type Census struct {
	Deleted    map[string]Stored // tombstones, by backup; of a record that cannot be read by record
	Pins       map[string]bool   // backups that somebody reads
	Expired    []Stored          // pins that hold no more
	Candidates []CandidatePart
	Records    []*Record
	PutAt      map[string]Stored // the objects of records, by record, also of those that cannot be read and are deleted
	Fenced     map[string]bool   // by record
}

// Gone tells whether a backup of a record is deleted.
func (c *Census) Gone(rec *Record, backup string) bool {
	l := listing{deleted: c.Deleted}
	return l.gone(rec, backup)
}

// Census lists all that says what is needed, in an order in which nothing that becomes needed meanwhile escapes it:
//
//   - Tombstones first. A reader pins a backup and then looks whether it is deleted: if the tombstone was seen here, either
//     he fails, or his pin is seen. So does a session that builds on a backup, with its candidate.
//   - Candidates before records: a session deletes its candidate when its record is there.
//
// A record, candidate or pin that cannot be read, or is of a newer version, is an error: who does not know what is
// needed deletes nothing. now is the time by the store's clock, or before.
func (r *Repo) Census(ctx context.Context, now time.Time) (*Census, error) {
	c := &Census{Fenced: map[string]bool{}}
	var err error
	if c.Deleted, err = r.byID(ctx, deletedPrefix); err != nil {
		return nil, err
	}
	if c.Pins, c.Expired, err = r.Pinned(ctx, now); err != nil {
		return nil, err
	}
	err = r.Candidates(ctx, func(p CandidatePart) error {
		c.Candidates = append(c.Candidates, p)
		return nil
	})
	if err != nil {
		return nil, err
	}
	if c.PutAt, err = r.byID(ctx, recordPrefix); err != nil {
		return nil, err
	}
	fences, err := r.byID(ctx, fencePrefix)
	if err != nil {
		return nil, err
	}
	for id := range fences {
		c.Fenced[id] = true
	}
	records, unreadable, err := r.load(ctx, listing{records: c.PutAt})
	if err != nil {
		return nil, err
	}
	for _, u := range unreadable {
		if _, gone := c.Deleted[u.Record]; !gone {
			return nil, fmt.Errorf("%w; repair it, or delete backup %s for good", &u, u.Record)
		}
	}
	c.Records = records
	return c, nil
}

// Fence gives up a candidate: its session, should it wake up, fails. It tells whether the record is there by now, which then is
// doubtful.
func (r *Repo) Fence(ctx context.Context, record string) (there bool, err error) {
	fenced, err := r.There(ctx, fencePrefix+record)
	if err != nil {
		return false, err
	}
	if !fenced {
		// ErrExists: another pruner was faster.
		if _, err := r.putSmall(ctx, envelope.Fence, fencePrefix+record, []byte(record)); err != nil && !errors.Is(err, objects.ErrExists) {
			return false, err
		}
	}
	return r.There(ctx, recordPrefix+record)
}

// Unfence makes a doubtful record one like others: it was found whole.
func (r *Repo) Unfence(ctx context.Context, record string) error {
	fences, err := r.Stored(ctx, fencePrefix+record)
	for _, f := range fences {
		if err == nil {
			err = r.Remove(ctx, f)
		}
	}
	return err
}

// Bury deletes all backups of a doubtful record, which was found not to be whole.
func (r *Repo) Bury(ctx context.Context, rec *Record) error { return r.bury(ctx, rec) }
