// Package index tells where a repository's packs hold what: chunks and nodes.
//
// An index is made of runs, objects of some 16 MiB, each with entries in the
// order of their ids. A session writes one or a few for what it stored, a
// pruner merges them, and any can be made again from the directories of packs.
// An id may have several places, in one run or in several.
//
// An Index finds all places of an id. A Table is for deduplication: in bounded
// memory, and with hints only, which are looked at in a pack before they count.
//
// A run is a pack of kind Index, see package pack. What a run says of a pack
// is true as long as the pack is there; runs may speak of packs that are gone.
package index

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"varve/internal/objects"
	"varve/internal/repository/chunk"
	"varve/internal/repository/envelope"
	"varve/internal/repository/pack"
)

// Entry says that a pack holds content.
type Entry struct {
	ID          chunk.ID
	Place       chunk.Place
	SealedBytes uint32
	PlainBytes  uint32
	Kind        envelope.Kind // of the pack: Pack or Nodes
}

// Compare orders entries by id, then by place. Runs are in this order.
func (e Entry) Compare(other Entry) int {
	return cmp.Or(
		e.ID.Compare(other.ID),
		cmp.Compare(e.Kind, other.Kind),
		bytes.Compare(e.Place.Pack[:], other.Place.Pack[:]),
		cmp.Compare(e.Place.Frame, other.Place.Frame),
	)
}

// Run is an object of the index.
type Run struct {
	ID       chunk.PackID
	Bytes    int64     // of the object
	Modified time.Time // by the store's clock
}

// lookups is how many runs are read at once.
const lookups = 16

// Index finds entries in the runs of a repository. It may be used concurrently.
type Index struct {
	packs *pack.Reader
	mu    sync.Mutex
	runs  []Run
}

// New returns the index of the repository that packs reads, with no runs until Refresh.
func New(packs *pack.Reader) *Index { return &Index{packs: packs} }

// Refresh lists the runs that are there now.
func (x *Index) Refresh(ctx context.Context) error {
	var runs []Run
	err := x.packs.Store().List(ctx, pack.Prefix(envelope.Index), func(i objects.Info) error {
		_, id, ok := pack.ParseName(i.Name)
		if ok && (len(runs) == 0 || runs[len(runs)-1].ID != id) { // copies follow their original
			runs = append(runs, Run{ID: id, Bytes: i.Size, Modified: i.Modified})
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("list the index: %w", err)
	}
	slices.SortStableFunc(runs, func(a, b Run) int { return b.Modified.Compare(a.Modified) })
	x.mu.Lock()
	defer x.mu.Unlock()
	x.runs = runs
	return nil
}

// Runs returns those that Refresh found, the newest first.
func (x *Index) Runs() []Run {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.runs
}

// Find returns all entries of an id, in their order. Where a run is lost, what the others tell is returned together
// with an error that wraps envelope.ErrLost. Runs that are gone meanwhile were merged into others, which are looked at.
func (x *Index) Find(ctx context.Context, id chunk.ID) ([]Entry, error) {
	runs := x.Runs()
	found, gone, err := x.findIn(ctx, runs, id)
	if gone {
		if err := x.Refresh(ctx); err != nil {
			return found, err
		}
		known := make(map[chunk.PackID]bool)
		for _, run := range runs {
			known[run.ID] = true
		}
		var more []Entry
		news := slices.DeleteFunc(slices.Clone(x.Runs()), func(run Run) bool { return known[run.ID] })
		more, _, again := x.findIn(ctx, news, id)
		found, err = append(found, more...), errors.Join(err, again)
	}
	slices.SortFunc(found, Entry.Compare)
	return slices.Compact(found), err
}

func (x *Index) findIn(ctx context.Context, runs []Run, id chunk.ID) (found []Entry, gone bool, err error) {
	var mu sync.Mutex
	var lost []error
	var g errgroup.Group
	g.SetLimit(lookups)
	for _, run := range runs {
		g.Go(func() error {
			entries, err := x.findOne(ctx, run.ID, id)
			mu.Lock()
			defer mu.Unlock()
			found = append(found, entries...)
			switch {
			case errors.Is(err, pack.ErrElsewhere):
				gone = true
			case errors.Is(err, envelope.ErrLost):
				lost = append(lost, err)
			default:
				return err
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, false, err
	}
	return found, gone, errors.Join(lost...)
}

// findOne returns the entries of an id in one run: pack.ErrElsewhere if the run is gone.
func (x *Index) findOne(ctx context.Context, run chunk.PackID, id chunk.ID) ([]Entry, error) {
	d, err := x.packs.Directory(ctx, envelope.Index, run)
	if err != nil {
		return nil, runError(run, err)
	}
	frames := framesOf(d.Entries(), id)
	if len(frames) == 0 {
		return nil, nil
	}
	var found []Entry
	err = x.packs.Frames(ctx, envelope.Index, run, frames, func(_ int, plain []byte) error {
		entries, err := decodeEntries(plain)
		if err != nil {
			return runError(run, err)
		}
		i, _ := slices.BinarySearchFunc(entries, id, func(e Entry, id chunk.ID) int { return e.ID.Compare(id) })
		for ; i < len(entries) && entries[i].ID == id; i++ {
			found = append(found, entries[i])
		}
		return nil
	})
	return found, err
}

// framesOf returns the frames of a run that may have entries of an id.
func framesOf(frames []pack.Entry, id chunk.ID) []uint32 {
	var may []uint32
	// The first frame that begins with this id or a greater one: entries may begin in the frame before.
	i, _ := slices.BinarySearchFunc(frames, id, func(e pack.Entry, id chunk.ID) int { return e.ID.Compare(id) })
	for i = max(i-1, 0); i < len(frames) && frames[i].ID.Compare(id) <= 0; i++ {
		if last := frames[i].Hashes; len(last) != 1 || last[0] >= prefix(id) {
			may = append(may, uint32(i))
		}
	}
	return may
}

// prefix is the first 8 bytes of an id, as a number in the order of ids.
func prefix(id chunk.ID) uint64 { return binary.BigEndian.Uint64(id[:]) }

// runError says of which run an error is.
func runError(run chunk.PackID, err error) error {
	if errors.Is(err, objects.ErrNotFound) {
		err = fmt.Errorf("%w: %w", pack.ErrElsewhere, err)
	}
	if errors.Is(err, errEntries) {
		err = fmt.Errorf("%w: %w", envelope.ErrLost, err)
	}
	return fmt.Errorf("index run %s: %w", run, err)
}
