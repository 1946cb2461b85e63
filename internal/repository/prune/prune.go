// Package prune gives back the space of what no backup needs any more. It may
// run anywhere, at any time, several at once, and be killed at any request: what
// it leaves half done the next one finishes.
//
// Vocabulary: roots are what is needed by itself, backups, sessions and readers;
// a survey finds out what they need and in which pack each of it counts. Packs
// are condemned by a mark, and deleted when the mark is ripe, older than the
// grace; before that, what is needed of them and lies nowhere else is rescued
// into new packs. A pack is waste as far as nothing in it counts.
//
// Invariants: see docs/design/repository.md, "Garbage collection". Whatever else
// changes, these orders must not: index runs and marks are listed before packs, packs
// before roots, and the roots in the order of repository.Census; what is rescued
// is in an index run before anything is deleted, and a mark goes when its packs
// are gone.
//
// Memory is bounded by sorting outside of it, but for some 70 bytes a pack, which
// is 2 MB a terabyte.
package prune

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"varve/internal/objects"
	"varve/internal/repository"
	"varve/internal/repository/config"
	"varve/internal/repository/extsort"
	"varve/internal/vfs"
)

// DefaultMemoryBytes is what sorting takes, about, unless told otherwise.
const DefaultMemoryBytes = 96 << 20

// Options say how a repository is pruned.
type Options struct {
	FS  vfs.FS // nil: the operating system's
	Dir string // for temporary files, which have no names; up to 200 bytes for each chunk that is needed
	// MemoryBytes is about what sorting takes; 0: DefaultMemoryBytes.
	MemoryBytes int
	// DryRun changes nothing: the report tells what would be done.
	DryRun bool
	// IgnoreLost goes on although nodes of a backup's map are lost. What these alone told to be needed is not kept: if they
	// were found later, the backup would be lost all the same.
	IgnoreLost bool
	// Stage is told what is being done. May be nil.
	Stage func(name string)
}

// ErrMapLost means that a node of a backup's map cannot be read, so that nobody knows what the backup needs.
var ErrMapLost = errors.New("a map is lost in part")

// Report tells what was found and done. Bytes are those of whole objects.
type Report struct {
	Now time.Time // by the store's clock, when it began

	Packs      Amount // found
	NeededPart int64  // bytes of these that count
	Condemned  Amount // newly
	Waiting    Amount // condemned, also newly, and not deleted yet
	// WaitingUntil is when the last of them may be deleted; zero if none wait.
	WaitingUntil time.Time
	Young        Amount // packs of which nothing is needed, or hardly anything, but that are younger than the grace
	YoungUntil   time.Time

	Deleted Amount // packs
	Rescued Amount // chunks and nodes that were copied into new packs
	Locked  Amount // objects that the store does not let be deleted yet
	Kept    Amount // packs that are not deleted since what is needed of them cannot be read

	Records    int      // deleted for good, of deleted backups
	Tombstones int      // deleted, whose records have gone
	GivenUp    []string // records of candidates that were given up
	Candidates int      // parts deleted, with those that sessions left behind
	Whole      []string // doubtful records that were found whole, and are visible now
	Buried     []string // doubtful records that were not, and are deleted
	Doubtful   []string // records that remain doubtful: something in them cannot be read
	Pins       int      // expired, deleted
	RunsMerged int      // index runs
	RunsMade   int
	Pages      int // of the ledger: fewer than before

	LostChunks int64 // needed, and nowhere
	LostMaps   []string
}

// Amount is a number of objects, or of chunks and nodes, and their bytes.
type Amount struct {
	Count int64
	Bytes int64
}

func (a *Amount) add(bytes int64) {
	a.Count++
	a.Bytes += bytes
}

type pruner struct {
	repo   *repository.Repo
	st     objects.Store
	o      Options
	space  extsort.Space
	grace  time.Duration
	now    time.Time
	report Report
}

// Run prunes a repository. After an error the report tells what was done before it; another run goes on. An error
// that names a record, candidate, pin or mark means that it cannot be read: then nothing was deleted.
func Run(ctx context.Context, repo *repository.Repo, o Options) (Report, error) {
	if o.FS == nil {
		o.FS = vfs.OS()
	}
	if o.MemoryBytes == 0 {
		o.MemoryBytes = DefaultMemoryBytes
	}
	c := repo.Config()
	p := &pruner{
		repo: repo, st: repo.Store(), o: o, grace: c.Grace,
		space: extsort.Space{FS: o.FS, Dir: o.Dir, MemoryBytes: o.MemoryBytes / 4}, // of what is sorted at the same time
	}
	err := c.Allows(config.Prune)
	if err == nil {
		err = p.run(ctx)
	}
	if err != nil {
		return p.report, fmt.Errorf("prune %s: %w", repo.URL(), err)
	}
	return p.report, nil
}

func (p *pruner) run(ctx context.Context) error {
	var err error
	if p.now, err = p.clock(ctx); err != nil {
		return err
	}
	p.report.Now = p.now
	if err := p.repo.RefreshLost(ctx); err != nil {
		return err
	}
	p.stage("find interrupted sessions")
	if err := p.settle(ctx); err != nil {
		return err
	}
	p.stage("list packs")
	inv, err := p.inventory(ctx)
	if err != nil {
		return err
	}
	census, err := p.repo.Census(ctx, p.now)
	if err != nil {
		return err
	}
	s := newSurvey(p, inv)
	defer s.close()
	roots, named := rootsOf(census)
	for _, id := range named {
		inv.table.name(id)
	}
	p.stage("walk maps")
	if err := s.walk(ctx, roots); err != nil {
		return err
	}
	p.stage("find out where what is needed lies")
	if err := s.locate(ctx); err != nil {
		return err
	}
	p.count(inv, s)
	p.stage("delete")
	if err := p.sweepPacks(ctx, inv, s); err != nil {
		return err
	}
	if err := p.sweepRest(ctx, census); err != nil {
		return err
	}
	p.stage("condemn")
	if err := p.condemn(ctx, inv); err != nil {
		return err
	}
	p.stage("merge the index")
	if err := p.mergeIndex(ctx, inv, s); err != nil {
		return err
	}
	return p.compactLedger(ctx, inv, census)
}

func (p *pruner) stage(name string) {
	if p.o.Stage != nil {
		p.o.Stage(name)
	}
}

// clock is the time by the store's clock. A store that is full takes no probe: then the newest object tells a time before.
func (p *pruner) clock(ctx context.Context) (time.Time, error) {
	now, err := p.repo.Now(ctx)
	if !errors.Is(err, objects.ErrFull) {
		return now, err
	}
	newest := time.Time{}
	err = p.st.List(ctx, "", func(i objects.Info) error {
		if i.Modified.After(newest) {
			newest = i.Modified
		}
		return nil
	})
	return newest, err
}

// old tells whether something of that age is older than a time by the store's clock.
func (p *pruner) old(put time.Time, than time.Duration) bool { return p.now.Sub(put) > than }

// rootsOf are the maps that are needed, and the packs that are, whatever is in them.
func rootsOf(c *repository.Census) (roots []root, named []packKey) {
	for _, rec := range c.Records {
		for _, b := range rec.Backups {
			if !c.Gone(rec, b.ID) || c.Pins[b.ID] {
				roots = append(roots, root{Backup: b, required: true})
			}
		}
	}
	for _, part := range c.Candidates {
		if _, committed := c.PutAt[part.Record]; committed {
			continue // the record is what counts
		}
		for _, id := range part.Packs {
			named = append(named, packKey{id: id}, packKey{id: id, nodes: true})
		}
		if part.Final != nil {
			for _, b := range part.Final.Backups {
				roots = append(roots, root{Backup: b})
			}
		}
	}
	// What must be read comes first: it decides whether a node that is lost stops everything.
	slices.SortStableFunc(roots, func(a, b root) int {
		switch {
		case a.required == b.required:
			return 0
		case a.required:
			return -1
		}
		return 1
	})
	return roots, named
}

// root is a map that is needed. If it is not required, its session fails anyway when a node of it is gone.
type root struct {
	repository.Backup
	required bool
}
