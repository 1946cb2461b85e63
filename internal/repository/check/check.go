// Package check looks for damage in a repository, and mends what can be. It may
// run anywhere, beside sessions, pruners and other checks, and be killed at any request.
//
// Vocabulary: an object is what was put under a name; the copies NAME-1, NAME-2
// that repairs made of it are the same object. It is sound, mended (its parity
// or a copy sufficed, and a sound copy is there now), harmed (it can be read
// only with the help of its parity, since no copy could be written), or lost. A
// backup is harmed by an object if something that it needs was in that object and is
// nowhere else; where in the backup is told in ranges.
//
// Invariants: nothing is deleted before a sound copy of it was put and read
// again, or unless nothing can be had of it and its absence says the same. What was lost,
// and what is there again, is written into the ledger before Run returns. An
// object that is gone is no damage if nothing needs it.
//
// Left out: what is in backups as a whole (backup.Verify reads them as a
// restore does), and storing lost content again, which the next backup does.
package check

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/google/uuid"

	"varve/internal/objects"
	"varve/internal/repository"
	"varve/internal/repository/config"
	"varve/internal/repository/envelope"
	"varve/internal/repository/extsort"
	"varve/internal/repository/index"
	"varve/internal/repository/pack"
	"varve/internal/repository/seal"
	"varve/internal/vfs"
)

// DefaultMemoryBytes is what sorting takes, about, unless told otherwise.
const DefaultMemoryBytes = 64 << 20

// Options say what is looked at. Without anything said, all is.
type Options struct {
	// SamplePercent of the packs, of chunks, nodes and index, are looked at, chosen at random, and all small objects; 0: all.
	SamplePercent float64
	// Budget is how long objects are looked at, those first of which the ledger knows nothing, or the oldest; 0: no limit.
	Budget time.Duration
	// Progress is told how many bytes have been looked at, of how many. May be nil.
	Progress func(done, total int64)

	FS          vfs.FS // nil: the operating system's
	Dir         string // for temporary files, which have no names: some 110 bytes for each chunk that backups need
	MemoryBytes int    // what sorting takes, about; 0: DefaultMemoryBytes
}

// State is what was found of an object, if it was not sound.
type State uint8

// The states.
const (
	Mended State = iota // a sound copy is there
	Harmed              // its parity suffices, but no sound copy could be put
	Lost                // missing, or damaged beyond what parity and copies give back
)

func (s State) String() string { return [...]string{"mended", "harmed", "lost"}[s] }

// Damaged is an object that is not what was put.
type Damaged struct {
	Object  string
	State   State
	Message string
	Backups []string // ids of those that it harms, at most MaxBackups
}

// Range is a run of bytes of a backup.
type Range struct{ Offset, Length int64 }

// HarmedBackup is a backup of which something is lost.
type HarmedBackup struct {
	ID     string
	Volume string
	Whole  bool    // its record is lost; then its volume is not known
	Ranges []Range // in order, at most MaxRanges
	Bytes  int64   // in all of them
}

// What lists of a report hold at most.
const (
	MaxDamage  = 10000
	MaxBackups = 1000
	MaxRanges  = 1000
	maxNotes   = 100
)

// Report tells what was found.
type Report struct {
	Objects int64 // that were looked at
	Bytes   int64 // of these
	Left    int64 // objects that were not looked at
	Damage  []Damaged
	// MoreDamage is how many damaged objects there were beyond MaxDamage.
	MoreDamage int64
	Harmed     []HarmedBackup // the oldest first
	// Notes say what deserves to be known and is no damage: what was not looked at, what is unknown.
	Notes []string
}

// Lost tells whether anything is lost.
func (r *Report) Lost() bool {
	for _, d := range r.Damage {
		if d.State == Lost {
			return true
		}
	}
	return r.MoreDamage > 0 || len(r.Harmed) > 0
}

// checker is one check.
type checker struct {
	o     Options
	st    objects.Store
	space extsort.Space
	began time.Time

	repo       *repository.Repo // nil: without a key, as are the next three
	keys       *seal.Keys
	packs      *pack.Reader // its caches know nothing from before
	index      *index.Index
	repository uuid.UUID // zero: not known
	encrypted  bool      // there is a ring of keys

	now    time.Time // by the store's clock when it began, and later than all that the ledger knew
	there  table
	damage damage
	write  access
	lost   lost
	ledger pages

	notes  sync.Mutex // guards the report's
	report Report
}

// flushTime is what writing down may take once nobody waits for the check any more.
const flushTime = 10 * time.Second

// Run checks a repository with its keys. Damage is no error: an error says that the check could not go on, and
// the report then tells what it had found. With credentials that may not write it mends nothing and says so.
func Run(ctx context.Context, repo *repository.Repo, o Options) (Report, error) {
	c := newChecker(repo.Store(), o)
	c.repo, c.keys, c.repository = repo, repo.Keys(), repo.ID()
	conf := repo.Config()
	c.encrypted = conf.Encryption != config.Plain
	err := c.write.refused(conf.Allows(config.Write))
	c.packs = pack.NewReader(c.st, c.keys, 16<<20)
	c.index = index.New(c.packs)
	if err == nil {
		err = c.run(ctx)
	}
	// What was found is written down also if it could not go on; the store may be why.
	flushing, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(flushTime, end) })()
	if werr := c.ledger.flush(flushing, c); err == nil {
		err = werr
	}
	return c.finish(), wrap(err, c.st)
}

// Sealed checks envelopes, without a key: damage is found and mended as by Run, but what is missing, what is in the
// objects, and what backups are harmed is not known.
func Sealed(ctx context.Context, st objects.Store, o Options) (Report, error) {
	c := newChecker(st, o)
	err := c.run(ctx)
	return c.finish(), wrap(err, st)
}

func wrap(err error, st objects.Store) error {
	if err != nil {
		err = fmt.Errorf("check %s: %w", st.URL(), err)
	}
	return err
}

func newChecker(st objects.Store, o Options) *checker {
	if o.FS == nil {
		o.FS = vfs.OS()
	}
	if o.MemoryBytes == 0 {
		o.MemoryBytes = DefaultMemoryBytes
	}
	c := &checker{o: o, st: st, began: time.Now(), space: extsort.Space{FS: o.FS, Dir: o.Dir, MemoryBytes: o.MemoryBytes / 8}} // some are filled at the same time
	c.lost.init()
	c.damage.init()
	return c
}

// identify finds out which repository it is: what most of the copies of its configuration say. If none can be read, objects are not
// compared with it.
func (c *checker) identify(ctx context.Context) error {
	all, err := config.Copies(ctx, c.st)
	var most *config.Config
	votes := map[uuid.UUID]int{}
	for _, read := range all {
		votes[read.Repository]++
		if most == nil || votes[read.Repository] > votes[most.Repository] {
			most = read
		}
	}
	switch {
	case errors.Is(err, objects.ErrNotFound):
		return repository.ErrNoRepository
	case err != nil:
		return err
	case most == nil:
		return nil
	case c.repo != nil && votes[most.Repository] > votes[c.repository]:
		return fmt.Errorf("most copies of its configuration are of repository %s, not of %s (a check without a key mends that): %w",
			most.Repository, c.repository, repository.ErrOther)
	case c.repo != nil:
		return nil
	}
	c.repository, c.encrypted = most.Repository, most.Encryption != config.Plain
	return c.write.refused(most.Allows(config.Write))
}

func (c *checker) run(ctx context.Context) error {
	if err := c.identify(ctx); err != nil {
		return err
	}
	if c.repo != nil {
		if err := c.clock(ctx); err != nil {
			return err
		}
	}
	items := c.newItems()
	defer items.Close()
	total, err := c.list(ctx, items)
	if err != nil {
		return err
	}
	if err := c.look(ctx, items, total); err != nil {
		return err
	}
	if err := c.complete(ctx); err != nil {
		return err
	}
	if c.repo == nil {
		return nil
	}
	return c.needs(ctx)
}

// clock reads the store's. A store that takes no probe tells a time by its newest object: see list.
func (c *checker) clock(ctx context.Context) (err error) {
	if c.write.why() == nil {
		c.now, err = c.repo.Now(ctx)
	}
	return c.write.refused(err)
}

// at is the time by the store's clock.
func (c *checker) at() time.Time { return c.now.Add(time.Since(c.began)) }

// overdue tells that the time for looking at objects is over.
func (c *checker) overdue() bool { return c.o.Budget > 0 && time.Since(c.began) >= c.o.Budget }

// part tells that not all is looked at.
func (c *checker) part() bool { return c.o.Budget > 0 || c.o.SamplePercent > 0 }

func (c *checker) note(format string, args ...any) {
	c.notes.Lock()
	defer c.notes.Unlock()
	if len(c.report.Notes) < maxNotes {
		c.report.Notes = append(c.report.Notes, fmt.Sprintf(format, args...))
	}
}

// unknownHere tells errors of objects that a later version wrote, or somebody who has later keys.
func unknownHere(err error) bool {
	return errors.Is(err, envelope.ErrNewer) || errors.Is(err, seal.ErrNoKey)
}

// access is whether the store may be written.
type access struct {
	mu  sync.Mutex
	not error
}

// why nothing may be written; nil if it may.
func (a *access) why() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.not
}

// refused takes in what came of writing. Errors which say that it is not possible are no reason to end a check: from then on it
// only reads.
func (a *access) refused(err error) error {
	for _, is := range []error{objects.ErrDenied, objects.ErrFull, config.ErrUnknownFeature, syscall.EROFS} {
		if errors.Is(err, is) {
			a.mu.Lock()
			defer a.mu.Unlock()
			if a.not == nil {
				a.not = err
			}
			return nil
		}
	}
	return err
}

func (c *checker) finish() Report {
	if err := c.write.why(); err != nil {
		c.note("the store takes no changes, so not all was mended or written down: %v", err)
	}
	c.report.Damage, c.report.MoreDamage = c.damage.sorted()
	return c.report
}
