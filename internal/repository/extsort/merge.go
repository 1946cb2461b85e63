package extsort

import (
	"container/heap"
	"iter"
)

// source is something sorted.
type source[T any] interface {
	next() (v T, ok bool, err error)
}

type inMemory[T any] struct{ rest []T }

func (m *inMemory[T]) next() (v T, ok bool, err error) {
	if len(m.rest) == 0 {
		return v, false, nil
	}
	v, m.rest = m.rest[0], m.rest[1:]
	return v, true, nil
}

// pulled is a sequence as a source.
type pulled[T any] struct{ pull func() (T, error, bool) }

func (p pulled[T]) next() (v T, ok bool, err error) {
	v, err, ok = p.pull()
	return v, ok && err == nil, err
}

// Merge yields the records of two sorted sequences in order, and each once. It ends after an error of either.
func Merge[T any](compare func(a, b T) int, a, b iter.Seq2[T, error]) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		pullA, stopA := iter.Pull2(a)
		defer stopA()
		pullB, stopB := iter.Pull2(b)
		defer stopB()
		merge(compare, []source[T]{pulled[T]{pullA}, pulled[T]{pullB}}, yield)
	}
}

// merge yields the records of all sources in order, and each once.
func merge[T any](compare func(a, b T) int, sources []source[T], yield func(T, error) bool) {
	var zero T
	h := &heads[T]{compare: compare}
	for _, s := range sources {
		v, ok, err := s.next()
		if err != nil {
			yield(zero, err)
			return
		}
		if ok {
			h.heads = append(h.heads, head[T]{v, s})
		}
	}
	heap.Init(h)
	var last T
	for first := true; len(h.heads) > 0; first = false {
		top := &h.heads[0]
		v := top.v
		if (first || compare(last, v) != 0) && !yield(v, nil) {
			return
		}
		last = v
		next, ok, err := top.source.next()
		switch {
		case err != nil:
			yield(zero, err)
			return
		case ok:
			top.v = next
			heap.Fix(h, 0)
		default:
			heap.Pop(h)
		}
	}
}

type head[T any] struct {
	v      T
	source source[T]
}

// heads are a heap, the least record first.
type heads[T any] struct {
	heads   []head[T]
	compare func(a, b T) int
}

func (h *heads[T]) Len() int           { return len(h.heads) }
func (h *heads[T]) Less(i, j int) bool { return h.compare(h.heads[i].v, h.heads[j].v) < 0 }
func (h *heads[T]) Swap(i, j int)      { h.heads[i], h.heads[j] = h.heads[j], h.heads[i] }
func (h *heads[T]) Push(x any)         { h.heads = append(h.heads, x.(head[T])) }
func (h *heads[T]) Pop() any {
	last := h.heads[len(h.heads)-1]
	h.heads = h.heads[:len(h.heads)-1]
	return last
}
