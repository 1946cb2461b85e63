package check

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"varve/internal/objects"
	"varve/internal/repository"
	"varve/internal/repository/chunk"
	"varve/internal/repository/envelope"
	"varve/internal/repository/extsort"
	"varve/internal/repository/index"
	"varve/internal/repository/pack"
)

// inForm sorts by packs, each of which is then opened once.
var inForm = extsort.Form[at]{Bytes: atForm.Bytes, Put: atForm.Put, Get: atForm.Get, Compare: func(a, b at) int {
	return cmp.Or(cmp.Compare(a.kind, b.kind), bytes.Compare(a.place.Pack[:], b.place.Pack[:]), cmp.Compare(a.place.Frame, b.place.Frame))
}}

// cursor goes through sorted places, content by content.
type cursor struct {
	next func() (at, error, bool)
	stop func()
	last at
	some bool
	err  error
	held []at
}

func newCursor(s *extsort.Sorter[at]) *cursor {
	c := &cursor{}
	c.next, c.stop = iter.Pull2(s.Sorted())
	c.advance()
	return c
}

func (c *cursor) advance() { c.last, c.err, c.some = c.next() }

// of are the places of some content. It is asked for in ascending order.
func (c *cursor) of(want content) ([]at, error) {
	c.held = c.held[:0]
	for c.some && c.err == nil {
		order := cmp.Or(c.last.id.Compare(want.id), cmp.Compare(c.last.kind, want.kind))
		if order > 0 {
			break
		}
		if order == 0 {
			c.held = append(c.held, c.last)
		}
		c.advance()
	}
	return c.held, c.err
}

// search looks for what is bad in the directories of all packs: runs of the index may be lost that would tell where it is.
func (s *survey) search(ctx context.Context) (found bool, err error) {
	c := s.c
	var mu sync.Mutex // guards found, bad and unnamed
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(lookers)
	for _, kind := range []envelope.Kind{envelope.Nodes, envelope.Pack} {
		last := packKey{}
		err := c.st.List(ctx, pack.Prefix(kind), func(o objects.Info) error {
			p, ok := packOf(o.Name)
			if !ok || p == last || gctx.Err() != nil {
				return gctx.Err()
			}
			last = p
			g.Go(func() error {
				d, err := c.packs.Directory(gctx, p.kind, p.id)
				if err != nil {
					if repository.IsLost(err) {
						err = nil
					}
					return err
				}
				for n, e := range d.Entries() {
					a := at{content{kind, e.ID}, chunk.Place{Pack: p.id, Frame: uint32(n)}}
					mu.Lock()
					_, wanted := s.bad[a.content]
					mu.Unlock()
					if !wanted || c.lost.has(a.in()) {
						continue
					}
					if _, err := c.packs.Frame(gctx, kind, a.place, a.id, nil); err != nil {
						if repository.IsLost(err) {
							continue
						}
						return err
					}
					mu.Lock()
					delete(s.bad, a.content)
					found = true
					err := s.unnamed.Add(a)
					mu.Unlock()
					if err != nil {
						return err
					}
				}
				return nil
			})
			return nil
		})
		if err := join(err, g.Wait()); err != nil {
			return false, err
		}
		g, gctx = errgroup.WithContext(ctx)
		g.SetLimit(lookers)
	}
	return found, nil
}

// nameAgain puts runs of the index that name what backups need and no run names, and then deletes the runs that are lost.
func (s *survey) nameAgain(ctx context.Context) error {
	c := s.c
	if c.write.why() != nil {
		return nil
	}
	lost := c.damage.lostOfKind(envelope.Index)
	var runs []string
	parity := c.repo.Config().Parity
	put := func(run pack.Packed) error {
		defer run.Release()
		runs = append(runs, run.Name)
		return c.st.Put(ctx, run.Name, run.Object, objects.PutOptions{})
	}
	places := 0
	var w *index.Writer
	var set uuid.UUID
	for a, err := range s.unnamed.Sorted() {
		if err != nil {
			return err
		}
		d, err := c.packs.Directory(ctx, a.kind, a.place.Pack)
		if repository.IsLost(err) || err == nil && int(a.place.Frame) >= d.Len() {
			continue
		}
		if err != nil {
			return err
		}
		if w == nil || set != d.Set() {
			if w != nil {
				if err := w.Flush(); err != nil {
					return c.write.refused(err)
				}
			}
			set = d.Set()
			w = index.NewWriter(c.keys, set, parity, put)
		}
		e := d.Entry(a.place.Frame)
		places++
		err = w.AddEntry(index.Entry{ID: a.id, Place: a.place, SealedBytes: e.SealedBytes, PlainBytes: e.PlainBytes, Kind: a.kind})
		if err != nil {
			return c.write.refused(err)
		}
	}
	if w != nil {
		if err := w.Flush(); err != nil {
			return c.write.refused(err)
		}
	}
	if len(lost) == 0 {
		for _, name := range runs {
			c.damage.add(name, Mended, fmt.Sprintf("the index did not name %d places of what backups need: now it does", places))
		}
		return nil
	}
	for _, name := range lost {
		stored, err := c.repo.Stored(ctx, name)
		for _, o := range stored {
			if err == nil {
				err = c.repo.Remove(ctx, o)
			}
		}
		why := "what backups need of it is in another run now"
		if errors.Is(err, objects.ErrLocked) {
			why, err = why+"; it is locked, and stays", nil
		}
		if err != nil {
			return c.write.refused(err)
		}
		c.damage.settle(name, Mended, why)
		c.ledger.find(name)
	}
	return nil
}
