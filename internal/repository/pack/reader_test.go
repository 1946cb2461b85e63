package pack_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"

	"varve/internal/objects"
	"varve/internal/objects/faulty"
	"varve/internal/repository/chunk"
	"varve/internal/repository/envelope"
	"varve/internal/repository/pack"
	"varve/internal/repository/seal"
)

// requests counts what a store is asked for.
func requests(st *faulty.Store) *atomic.Int64 {
	var n atomic.Int64
	st.SetHook(func(_ context.Context, c faulty.Call) error {
		if !c.After {
			n.Add(1)
		}
		return nil
	})
	return &n
}

func TestWrongHints(t *testing.T) {
	ctx := context.Background()
	s := large(t, 3)
	reader := s.reader()
	for name, place := range map[string]chunk.Place{
		"another frame": s.place(1),
		"no such frame": s.place(len(s.ids)),
		"no such pack":  {Pack: chunk.PackID{1}},
		"no frame ever": {Pack: s.ID, Frame: 1 << 31},
	} {
		if _, err := reader.Frame(ctx, envelope.Pack, place, s.ids[0], nil); !errors.Is(err, pack.ErrElsewhere) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := reader.Frame(ctx, envelope.Nodes, s.place(0), s.ids[0], nil); !errors.Is(err, pack.ErrElsewhere) {
		t.Errorf("another kind: %v", err)
	}
	if err := reader.Frames(ctx, envelope.Pack, s.ID, []uint32{0, uint32(len(s.ids))}, nil); !errors.Is(err, pack.ErrElsewhere) {
		t.Errorf("no such frame: %v", err)
	}
	if err := reader.Frames(ctx, envelope.Pack, s.ID, []uint32{1, 1}, nil); err == nil {
		t.Error("one frame twice")
	}
	if _, err := reader.Directory(ctx, envelope.Pack, chunk.PackID{1}); !errors.Is(err, objects.ErrNotFound) {
		t.Errorf("directory of no pack: %v", err)
	}
}

func TestPackThatGoesWhileItIsRead(t *testing.T) {
	ctx := context.Background()
	s := large(t, 3)
	reader := s.reader()
	if _, err := reader.Directory(ctx, envelope.Pack, s.ID); err != nil {
		t.Fatal(err)
	}
	s.st.Lose(s.Name)
	if _, err := reader.Frame(ctx, envelope.Pack, s.place(3), s.ids[3], nil); !errors.Is(err, pack.ErrElsewhere) {
		t.Error(err)
	}
	if err := reader.Frames(ctx, envelope.Pack, s.ID, s.frames(), nil); !errors.Is(err, pack.ErrElsewhere) {
		t.Error(err)
	}
	if _, err := reader.Directory(ctx, envelope.Pack, s.ID); !errors.Is(err, objects.ErrNotFound) {
		t.Errorf("the directory is still known: %v", err)
	}
}

func TestRequests(t *testing.T) {
	ctx := context.Background()
	r := rand.New(rand.NewPCG(9, 9))
	var contents [][]byte
	for range 100 {
		contents = append(contents, noise(r, 100<<10))
	}
	s := newStored(t, 3, contents...)
	asked := requests(s.st)
	expect := func(what string, most int64, f func() error) {
		t.Helper()
		asked.Store(0)
		if err := f(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if n := asked.Load(); n > most {
			t.Errorf("%s takes %d requests, at most %d", what, n, most)
		}
	}
	reader := s.reader()
	ignore := func(int, []byte) error { return nil }
	expect("a directory", 1, func() error { _, err := reader.Directory(ctx, envelope.Pack, s.ID); return err })
	expect("a directory again", 0, func() error { _, err := reader.Directory(ctx, envelope.Pack, s.ID); return err })
	expect("a frame", 1, func() error { _, err := reader.Frame(ctx, envelope.Pack, s.place(7), s.ids[7], nil); return err })
	expect("all frames", 3, func() error { return reader.Frames(ctx, envelope.Pack, s.ID, s.frames(), ignore) })
	expect("frames far from each other", 3, func() error { return reader.Frames(ctx, envelope.Pack, s.ID, []uint32{1, 4, 9}, ignore) })

	small := newStored(t, 3, content(r, 8<<10), noise(r, 8<<10), noise(r, 8<<10))
	asked, reader = requests(small.st), small.reader()
	expect("a small pack", 2, func() error { return reader.Frames(ctx, envelope.Pack, small.ID, small.frames(), ignore) })
	expect("a frame of a small pack", 0, func() error {
		_, err := reader.Frame(ctx, envelope.Pack, small.place(1), small.ids[1], nil)
		return err
	})

	fresh := pack.NewReader(small.st, small.keys, 1<<20)
	fresh.Add(small.Packed)
	expect("the directory of a pack that was just built", 0, func() error {
		d, err := fresh.Directory(ctx, envelope.Pack, small.ID)
		if err == nil && d.Entry(2).ID != small.ids[2] {
			err = errors.New("another directory")
		}
		return err
	})
	expect("its frame", 1, func() error {
		plain, err := fresh.Frame(ctx, envelope.Pack, small.place(2), small.ids[2], nil)
		if err == nil && !bytes.Equal(plain, small.contents[2]) {
			err = errors.New("another content")
		}
		return err
	})
}

// A directory longer than what is read at first is read to its end.
func TestLongDirectory(t *testing.T) {
	ctx := context.Background()
	st, keys := faulty.New(), seal.NewKeys(repository)
	b := pack.NewBuilder(keys, envelope.Nodes, uuid.Nil, 3)
	r := rand.New(rand.NewPCG(2, 2))
	var ids []chunk.ID
	var contents [][]byte
	for range 9000 {
		contents = append(contents, noise(r, 30+r.IntN(50)))
	}
	ids = fill(b, keys, contents...)
	p := store(t, st, b)
	reader := pack.NewReader(st, keys, 1<<20)
	for _, i := range []int{0, 1, 4500, 8999} {
		plain, err := reader.Frame(ctx, envelope.Nodes, chunk.Place{Pack: p.ID, Frame: uint32(i)}, ids[i], nil)
		if err != nil || !bytes.Equal(plain, contents[i]) {
			t.Errorf("frame %d: %v", i, err)
		}
	}
}

func TestErrorsOfTheStoreAreNotTakenForDamage(t *testing.T) {
	ctx := context.Background()
	for _, failure := range []error{objects.ErrUnavailable, objects.ErrDenied, context.Canceled} {
		s := large(t, 3)
		reader := s.reader()
		check := func(err error) {
			t.Helper()
			if !errors.Is(err, failure) || errors.Is(err, envelope.ErrLost) || errors.Is(err, pack.ErrElsewhere) {
				t.Errorf("%v for %v", err, failure)
			}
		}
		remove := s.st.Inject(faulty.Fault{Err: failure})
		_, err := reader.Directory(ctx, envelope.Pack, s.ID)
		check(err)
		remove()
		if _, err := reader.Directory(ctx, envelope.Pack, s.ID); err != nil {
			t.Fatal(err)
		}
		defer s.st.Inject(faulty.Fault{Err: failure})()
		_, err = reader.Frame(ctx, envelope.Pack, s.place(0), s.ids[0], nil)
		check(err)
		check(reader.Frames(ctx, envelope.Pack, s.ID, s.frames(), nil))

		// Damage that would have to be mended, and the store fails just then.
		s = large(t, 3)
		s.st.Change(s.Name, func(b []byte) []byte { b[100] ^= 1; return b })
		defer s.st.Inject(faulty.Fault{Op: faulty.Get, Err: failure})()
		_, err = s.reader().Directory(ctx, envelope.Pack, s.ID)
		check(err)
	}
}

func TestVisitEndsTheReading(t *testing.T) {
	s := large(t, 3)
	enough := errors.New("enough")
	visited := 0
	err := s.reader().Frames(context.Background(), envelope.Pack, s.ID, s.frames(), func(i int, _ []byte) error {
		if visited++; i == 2 {
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) || visited != 3 {
		t.Error(err, visited)
	}
}

func TestKeyThatIsMissing(t *testing.T) {
	s := large(t, 3)
	other := seal.NewKeys(repository)
	delete(other.Generations, 1)
	if _, err := pack.NewReader(s.st, other, 1<<20).Directory(context.Background(), envelope.Pack, s.ID); !errors.Is(err, seal.ErrNoKey) {
		t.Error(err)
	}
}

// Many ask for one directory: the store is asked once. Who asked first and is cancelled takes nobody with him.
func TestCancelledReaderLeavesTheOthersAlone(t *testing.T) {
	s := large(t, 3)
	reader := s.reader()
	stop := s.st.StopAt(func(c faulty.Call) bool { return !c.After && c.Op == faulty.Read })
	first, cancel := context.WithCancel(context.Background())
	failed := make(chan error, 1)
	go func() {
		_, err := reader.Directory(first, envelope.Pack, s.ID)
		failed <- err
	}()
	<-stop.Reached()
	var others sync.WaitGroup
	for range 8 {
		others.Go(func() {
			if _, err := reader.Directory(context.Background(), envelope.Pack, s.ID); err != nil {
				t.Errorf("another reader: %v", err)
			}
		})
	}
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("the cancelled reader: %v", err)
	}
	others.Wait()
}

func TestConcurrentReaders(t *testing.T) {
	ctx := context.Background()
	keys, st := seal.NewKeys(repository), faulty.New()
	r := rand.New(rand.NewPCG(11, 12))
	var all []*stored
	for range 6 {
		s := &stored{st: st, keys: keys}
		for range 12 {
			s.contents = append(s.contents, content(r, 40<<10))
		}
		b := pack.NewBuilder(keys, envelope.Pack, uuid.Nil, 5)
		s.ids = fill(b, keys, s.contents...)
		s.Packed = store(t, st, b)
		all = append(all, s)
	}
	for _, s := range all[:3] { // three of them are damaged
		st.Change(s.Name, func(b []byte) []byte { b[r.IntN(len(b))] ^= 0x10; b[len(b)/2] ^= 1; return b })
	}
	reader := pack.NewReader(st, keys, 4<<10) // some two directories
	var g sync.WaitGroup
	for i := range 8 {
		g.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 0))
			for range 30 {
				s := all[r.IntN(len(all))]
				if r.IntN(4) == 0 {
					frames := slices.DeleteFunc(s.frames(), func(uint32) bool { return r.IntN(3) == 0 })
					err := reader.Frames(ctx, envelope.Pack, s.ID, frames, func(i int, plain []byte) error {
						if !bytes.Equal(plain, s.contents[frames[i]]) {
							t.Error("wrong content")
						}
						return nil
					})
					if err != nil {
						t.Error(err)
					}
					continue
				}
				frame := r.IntN(len(s.ids))
				plain, err := reader.Frame(ctx, envelope.Pack, s.place(frame), s.ids[frame], nil)
				if err != nil || !bytes.Equal(plain, s.contents[frame]) {
					t.Errorf("frame %d: %v", frame, err)
				}
			}
		})
	}
	g.Wait()
}

// What is read into memory of the caller's stays there, and is what was stored, whatever lies behind it.
func TestFramesIntoMemoryOfTheCaller(t *testing.T) {
	ctx := t.Context()
	r := rand.New(rand.NewPCG(3, 3))
	var contents [][]byte
	for n := range 40 {
		contents = append(contents, content(r, 1+n*5000), noise(r, 1+n*700))
	}
	s := newStored(t, 3, contents...)
	for _, slack := range []int{0, pack.Slack} {
		var memory []byte
		got := make([][]byte, len(contents))
		err := s.reader().FramesInto(ctx, envelope.Pack, s.ID, s.frames(), func(bytes int) []byte {
			memory = make([]byte, bytes, bytes+slack)
			return memory
		}, func(i int, plain []byte) error {
			if &plain[0] != &memory[0] {
				return fmt.Errorf("frame %d is elsewhere", i)
			}
			got[i] = plain
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for i := range contents {
			if !bytes.Equal(got[i], contents[i]) {
				t.Errorf("slack %d: frame %d is not what was stored", slack, i)
			}
		}
	}
}
