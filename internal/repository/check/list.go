package check

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"iter"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"varve/internal/objects"
	"varve/internal/repository"
	"varve/internal/repository/chunk"
	"varve/internal/repository/envelope"
	"varve/internal/repository/extsort"
)

// item is an object to be looked at, with its copies.
type item struct {
	class  class
	order  uint64 // within the class: what of it comes first
	kind   envelope.Kind
	copies bool
	bytes  int64 // of the object and its copies
	name   string
}

// class says what is looked at before what.
type class uint8

const (
	always class = iota // whatever is asked for: small, or known to be lost
	chosen              // as the options have it
)

func (i item) compare(o item) int {
	return cmp.Or(cmp.Compare(i.class, o.class), cmp.Compare(i.order, o.order), cmp.Compare(i.kind, o.kind), strings.Compare(i.name, o.name))
}

var itemForm = extsort.Form[item]{
	Bytes: 19 + maxNameBytes,
	Put: func(b []byte, i item) {
		b[0], b[1], b[2] = byte(i.class), byte(i.kind), 0
		if i.copies {
			b[2] = 1
		}
		binary.LittleEndian.PutUint64(b[3:], i.order)
		binary.LittleEndian.PutUint64(b[11:], uint64(i.bytes))
		clear(b[19+copy(b[19:], i.name):])
	},
	Get: func(b []byte) item {
		name, _, _ := bytes.Cut(b[19:], []byte{0})
		return item{
			class: class(b[0]), kind: envelope.Kind(b[1]), copies: b[2] == 1,
			order: binary.LittleEndian.Uint64(b[3:]), bytes: int64(binary.LittleEndian.Uint64(b[11:])), name: string(name),
		}
	},
	Compare: item.compare,
}

func (c *checker) newItems() *extsort.Sorter[item] { return extsort.New(itemForm, c.space) }

// total is what there is to look at.
type total struct {
	objects, bytes int64 // to be looked at; with a budget, all
	packs          int64 // chosen: the sample
}

// list lists the store, in the order in which it is looked at.
func (c *checker) list(ctx context.Context, items *extsort.Sorter[item]) (total, error) {
	var t total
	seen := extsort.New(seenForm, c.space)
	defer seen.Close()
	suspect, err := c.readLedger(ctx, seen)
	if err != nil {
		return t, err
	}
	next, stop := iter.Pull2(seen.Sorted())
	defer stop()
	last, err, more := next()
	if err != nil {
		return t, err
	}
	var packs int64
	newest := time.Time{}
	var open item
	flush := func() error {
		if open.name == "" {
			return nil
		}
		i := open
		// The ledger is in the same order. Of an object's verdicts the newest comes first.
		for more && last.name < i.name {
			if last, err, more = next(); err != nil {
				return err
			}
		}
		switch {
		case !isPack(i.kind) && (c.o.Budget == 0 || isThrice(i.kind) || isPassing(i.kind)), suspect[i.name]:
			i.class = always
		case c.o.SamplePercent > 0:
			i.class, i.order = chosen, rand.Uint64()
		case c.o.Budget > 0 && c.repo == nil:
			i.class, i.order = chosen, rand.Uint64()
		case c.o.Budget > 0 && more && last.name == i.name:
			i.class, i.order = chosen, uint64(max(last.at, 0))
		default:
			i.class = chosen
		}
		if i.class == chosen {
			packs++
		}
		t.objects++
		t.bytes += i.bytes
		return items.Add(i)
	}
	err = c.st.List(ctx, "", func(o objects.Info) error {
		if o.Modified.After(newest) {
			newest = o.Modified
		}
		original, repair := envelope.Original(o.Name)
		kind, ok := kindOf(original)
		if !ok || len(original) >= maxNameBytes {
			c.note("%s is nothing that a repository has: left alone", o.Name)
			return nil
		}
		if original != open.name {
			if err := flush(); err != nil {
				return err
			}
			open = item{kind: kind, name: original}
			c.there.add(original)
		}
		open.bytes += o.Size
		open.copies = open.copies || repair > 0
		return nil
	})
	if err == nil {
		err = flush()
	}
	if newest.After(c.now) {
		c.now = newest // a store that took no probe; or whose clock was set back
	}
	t.packs = packs
	if p := c.o.SamplePercent; p > 0 && p < 100 {
		t.packs = min(packs, int64(float64(packs)*p/100)+1)
		t.bytes = int64(float64(t.bytes) * p / 100)
	}
	return t, err
}

// seen is when an object was looked at.
type seen struct {
	name string
	at   int64
}

var seenForm = extsort.Form[seen]{
	Bytes: 8 + maxNameBytes,
	Put: func(b []byte, s seen) {
		binary.LittleEndian.PutUint64(b, uint64(s.at))
		clear(b[8+copy(b[8:], s.name):])
	},
	Get: func(b []byte) seen {
		name, _, _ := bytes.Cut(b[8:], []byte{0})
		return seen{string(name), int64(binary.LittleEndian.Uint64(b))}
	},
	Compare: func(a, b seen) int { return cmp.Or(strings.Compare(a.name, b.name), -cmp.Compare(a.at, b.at)) },
}

// readLedger takes in when objects were looked at, if that decides what is now, and returns those that were ever lost.
func (c *checker) readLedger(ctx context.Context, to *extsort.Sorter[seen]) (suspect map[string]bool, err error) {
	suspect = map[string]bool{}
	if c.repo == nil {
		return suspect, nil
	}
	err = c.repo.Ledger(ctx, func(_ string, at time.Time, verdicts []repository.Verdict) error {
		if !at.Before(c.now) {
			c.now = at.Add(1) // what is found now is newer, whatever the clock says
		}
		for _, v := range verdicts {
			if v.Condition == repository.Lost {
				suspect[v.Object] = true
			}
			if c.o.Budget == 0 || len(v.Object) >= maxNameBytes {
				continue
			}
			if err := to.Add(seen{v.Object, at.UnixNano()}); err != nil {
				return err
			}
		}
		return nil
	})
	if unknownHere(err) {
		c.note("not all of the ledger can be read: %v", err)
		err = nil
	}
	return suspect, err
}

// table is the packs of chunks and nodes that are there: the first bytes of their names, which are random, in order.
type table struct{ ids [2][]uint64 }

func (t *table) add(name string) {
	p, ok := packOf(name)
	if i := tableOf(p.kind); ok && i >= 0 {
		t.ids[i] = append(t.ids[i], prefix(p.id))
	}
}

func tableOf(kind envelope.Kind) int {
	return slices.Index([]envelope.Kind{envelope.Pack, envelope.Nodes}, kind)
}

func prefix(id chunk.PackID) uint64 { return binary.BigEndian.Uint64(id[:]) }

func (t *table) has(p packKey) bool {
	_, ok := slices.BinarySearch(t.ids[tableOf(p.kind)], prefix(p.id))
	return ok
}
