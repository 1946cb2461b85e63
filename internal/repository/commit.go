package repository

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"varve/internal/repository/chunk"
	"varve/internal/repository/envelope"
	"varve/internal/repository/maptree"
)

// Source gives the content of one chunk of a new backup once more: of the
// region at index of the record's member-th backup, the blocks of its c-th
// chunk, dense. It is asked where a chunk was found in a pack that has been given
// up meanwhile.
type Source func(ctx context.Context, member int, index uint64, r maptree.Region, c int) ([]byte, error)

// rounds bound how often a commit begins anew because packs were condemned under it.
const rounds = 10

// Commit makes what was stored a backup: when it returns without error, the
// record is there and everything that it needs. The steps and why they suffice
// are in docs/design/repository.md. ErrBaseGone: a backup that the maps were made
// from was deleted meanwhile; ErrFenced: the session took so long that it was
// given up. In both cases nothing is visible and a new session succeeds.
func (s *Session) Commit(ctx context.Context, rec *Record, source Source) error {
	err := s.commit(ctx, rec, source)
	s.fail(errAborted)
	s.stop()
	if err != nil {
		s.leave()
	}
	return err
}

func (s *Session) commit(ctx context.Context, rec *Record, source Source) error {
	stored := time.Now()
	rec.ID, rec.StartedAt = s.o.ID, s.started
	if err := rec.check(); err != nil {
		return fmt.Errorf("commit backup %s: %w", s.o.ID, err)
	}
	if err := s.flush(ctx); err != nil {
		return err
	}
	s.stage("store", stored.Sub(s.started)+time.Since(stored))
	committing := time.Now()
	if err := s.tell(ctx, rec); err != nil {
		return err
	}
	err := s.secure(ctx, rec, source)
	if err == nil {
		err = s.retain(ctx, rec)
	}
	if IsLost(err) {
		// What is not there may have been swept, once the session was given up.
		if fenced := s.unfenced(ctx); fenced != nil {
			err = fenced
		}
	}
	if err != nil {
		return err
	}
	s.stage("commit", time.Since(committing))
	rec.FinishedAt = time.Now()
	s.mu.Lock()
	s.stats.Requests = s.repo.Counts().Requests() - s.before + 1
	rec.Stats = s.stats
	s.mu.Unlock()
	plain, err := rec.encode()
	if err != nil {
		return err
	}
	name := recordPrefix + s.o.ID
	object, err := s.repo.keys.SealObject(s.repo.keys.NewHeader(envelope.Record, name, uuid.Nil, smallParity), plain)
	if err != nil {
		return err
	}
	rec.Stats.StoredBytes += length(object)
	rec.Stats.Objects++
	err = s.repo.put(ctx, name, object, s.o.LockUntil)
	if err != nil {
		err = s.became(ctx, fmt.Errorf("commit backup %s: %w", s.o.ID, err))
	} else if err = s.unfenced(ctx); err != nil && !errors.Is(err, ErrFenced) {
		err = s.became(ctx, err)
	}
	if errors.Is(err, ErrFenced) {
		err = errors.Join(err, s.repo.bury(ctx, rec))
	}
	if err != nil {
		return err
	}
	s.repo.recordKnown(rec)
	for part := range s.parts {
		// What is left behind costs a pruner a look: the backup exists.
		_ = s.repo.store.Delete(ctx, candidateName(s.o.ID, part))
	}
	return nil
}

// became tells what became of a record of which something failed when it was put, or right after: if only an answer was lost, or nobody
// waited for it any more, it is a backup as others are. Else it returns what failed, or ErrFenced.
func (s *Session) became(ctx context.Context, failed error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTime)
	defer cancel()
	there, err := s.repo.There(ctx, recordPrefix+s.o.ID)
	if err == nil && !there {
		return failed
	}
	if err == nil {
		err = s.unfenced(ctx)
	}
	if err != nil && !errors.Is(err, ErrFenced) {
		return fmt.Errorf("%w; the store does not tell whether it was done all the same", failed)
	}
	return err
}

// unfenced is ErrFenced if a pruner has given the session up.
func (s *Session) unfenced(ctx context.Context) error {
	fenced, err := s.repo.There(ctx, fencePrefix+s.o.ID)
	if err == nil && fenced {
		err = ErrFenced
	}
	if err != nil {
		return fmt.Errorf("commit backup %s: %w", s.o.ID, err)
	}
	return nil
}

func (s *Session) stage(name string, took time.Duration) {
	s.mu.Lock()
	s.stats.Stages = append(s.stats.Stages, Step{Name: name, Took: took})
	s.mu.Unlock()
}

// secure sees to it that everything the candidate needs is there and will stay: it must be put before.
func (s *Session) secure(ctx context.Context, rec *Record, source Source) error {
	for range rounds {
		doomed, err := s.doomed(ctx)
		if err != nil {
			return err
		}
		if err := s.basesStay(ctx, rec); err != nil {
			return err
		}
		if len(doomed) == 0 {
			return s.unfenced(ctx)
		}
		if err := s.storeAgain(ctx, rec, doomed, source); err != nil {
			return err
		}
	}
	return fmt.Errorf("commit backup %s: packs were condemned under it %d times: %w", s.o.ID, rounds, ErrFenced)
}

// doomed are the packs that the maps name and that are condemned, or gone: of others, and of its own, if it slept for
// longer than the grace. Marks are listed first: a pruner deletes its mark after the packs.
func (s *Session) doomed(ctx context.Context) (map[chunk.PackID]envelope.Kind, error) {
	s.mu.Lock()
	relied := maps.Clone(s.relied)
	s.mu.Unlock()
	condemned, err := s.repo.Condemned(ctx)
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	doomed := map[chunk.PackID]envelope.Kind{}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for p, kind := range relied {
		g.Go(func() error {
			if !condemned[p] {
				if there, err := s.repo.packThere(gctx, kind, p); there || err != nil {
					return err
				}
			}
			mu.Lock()
			doomed[p] = kind
			mu.Unlock()
			return nil
		})
	}
	return doomed, g.Wait()
}

// basesStay looks whether the backups whose maps the new ones share are still there: then so is all that they need.
func (s *Session) basesStay(ctx context.Context, rec *Record) error {
	members := map[string]bool{}
	for _, b := range rec.Backups {
		members[b.ID] = true
	}
	bases := map[string]bool{}
	for _, b := range rec.Backups {
		if b.Base != "" && !members[b.Base] {
			bases[b.Base] = true
		}
	}
	if len(bases) == 0 {
		return nil
	}
	all, _, err := s.repo.Backups(ctx)
	if err != nil {
		return err
	}
	for _, b := range all {
		if !b.Doubtful {
			delete(bases, b.ID)
		}
	}
	for id := range bases {
		return fmt.Errorf("commit backup %s: backup %s: %w", s.o.ID, id, ErrBaseGone)
	}
	return nil
}

// storeAgain puts what lies in doomed packs into new ones: the session's nodes and the chunks of the new backups. An index run
// tells where they are: maps keep their hints, which are wrong from then on.
func (s *Session) storeAgain(ctx context.Context, rec *Record, doomed map[chunk.PackID]envelope.Kind, source Source) error {
	for p, kind := range doomed {
		if kind == envelope.Nodes {
			if err := s.nodesAgain(ctx, p); err != nil {
				return err
			}
		}
	}
	if err := s.writeRun(ctx); err != nil {
		return err
	}
	b := &again{s: s, done: map[chunk.ID]bool{}}
	for member, m := range rec.Backups {
		tree := s.repo.Tree(m.Root)
		err := tree.Walk(ctx, 0, s.repo.Regions(m.SizeBytes), func(index uint64, r maptree.Region) error {
			for c, ch := range r.Chunks {
				if _, is := doomed[ch.Place.Pack]; !is || b.done[ch.ID] {
					continue
				}
				plain, err := s.repo.ReadChunk(ctx, ch.ID, ch.Place)
				if err != nil {
					if plain, err = source(ctx, member, index, r, c); err != nil {
						return err
					}
				}
				if s.repo.keys.ChunkID(plain) != ch.ID {
					return fmt.Errorf("store chunk %s again: the source has other content now: %w", ch.ID, ErrBaseGone)
				}
				if err := b.add(ch.ID, plain); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	if err := b.flush(); err != nil {
		return err
	}
	s.mu.Lock()
	for p := range doomed {
		delete(s.relied, p)
	}
	s.mu.Unlock()
	return s.tell(ctx, rec)
}
