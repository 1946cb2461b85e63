package pack_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/uuid"

	"varve/internal/repository/envelope"
	"varve/internal/repository/pack"
	"varve/internal/repository/seal"
)

// readAll reads every frame in both ways, with a new reader. What is read must be what was stored; it returns
// which frames were lost, and whether the whole pack was.
func (s *stored) readAll(t *testing.T, what string) (lost []uint32, all bool) {
	t.Helper()
	ctx := context.Background()
	reader := s.reader()
	visited := make(map[int]bool)
	err := reader.Frames(ctx, envelope.Pack, s.ID, s.frames(), func(i int, plain []byte) error {
		visited[i] = true
		if !bytes.Equal(plain, s.contents[i]) {
			t.Fatalf("%s: frame %d is read wrong", what, i)
		}
		return nil
	})
	var some *pack.LostFrames
	switch {
	case errors.As(err, &some):
		lost = some.Frames
	case errors.Is(err, envelope.ErrLost):
		lost, all = s.frames(), true
	case err != nil:
		t.Fatalf("%s: %v", what, err)
	}
	for i, id := range s.ids {
		missing := slices.Contains(lost, uint32(i))
		if visited[i] == missing {
			t.Fatalf("%s: frame %d is visited %v and lost %v", what, i, visited[i], missing)
		}
		plain, err := reader.Frame(ctx, envelope.Pack, s.place(i), id, nil)
		if missing && !errors.Is(err, envelope.ErrLost) || !missing && (err != nil || !bytes.Equal(plain, s.contents[i])) {
			t.Fatalf("%s: frame %d alone: %v, together lost %v", what, i, err, missing)
		}
	}
	return lost, all
}

// damaged runs f with the pack's object changed.
func (s *stored) damaged(change func(b []byte) []byte, f func()) {
	sound := s.st.Bytes(s.Name)
	s.st.Change(s.Name, change)
	f()
	s.st.Plant(s.Name, sound)
}

func TestParityHealsReads(t *testing.T) {
	s := large(t, 3)
	size := len(s.st.Bytes(s.Name))
	r := rand.New(rand.NewPCG(1, 1))
	places := []int{0, 9, 100, 127, 128, 131, size - 1, size - 127, size - 130}
	for i := range 60 {
		places = append(places, i*size/60+r.IntN(size/60))
	}
	for _, at := range places {
		s.damaged(func(b []byte) []byte { b[at] ^= 1 << r.IntN(8); return b }, func() {
			if lost, all := s.readAll(t, "one bit"); lost != nil || all {
				t.Errorf("a bit at %d of %d: lost %v", at, size, lost)
			}
		})
	}
	for _, at := range []int{0, 50, 1000, size / 2, size - 8000} { // less than two shards of each group
		s.damaged(func(b []byte) []byte { clear(b[at : at+8000]); return b }, func() {
			if lost, all := s.readAll(t, "a hole"); lost != nil || all {
				t.Errorf("a hole at %d of %d: lost %v", at, size, lost)
			}
		})
	}
	for _, cut := range []int{1, 100, 300, 8000} {
		s.damaged(func(b []byte) []byte { return b[:len(b)-cut] }, func() {
			if lost, all := s.readAll(t, "cut off"); lost != nil || all {
				t.Errorf("%d bytes cut off of %d: lost %v", cut, size, lost)
			}
		})
	}
}

func TestDamageBeyondParityTakesOnlyWhatItHits(t *testing.T) {
	for _, parityPercent := range []int{0, 3} {
		s := large(t, parityPercent)
		size := len(s.st.Bytes(s.Name))
		hole := size / 5
		for at := hole; at+hole <= size; at += hole {
			s.damaged(func(b []byte) []byte { clear(b[at : at+hole]); return b }, func() {
				lost, all := s.readAll(t, "a large hole")
				if len(lost) == 0 && at < 4*hole || all || len(lost) > len(s.ids)/5+4 {
					t.Errorf("parity %d, a hole of %d at %d of %d: lost %v, all %v", parityPercent, hole, at, size, lost, all)
				}
			})
		}
		s.damaged(func(b []byte) []byte { return b[:size/2] }, func() {
			lost, all := s.readAll(t, "cut off")
			if len(lost) == 0 || all || len(lost) > len(s.ids)/2+2 {
				t.Errorf("parity %d, half cut off: lost %v, all %v", parityPercent, lost, all)
			}
		})
		s.damaged(func(b []byte) []byte { clear(b[:hole]); return b }, func() {
			if _, all := s.readAll(t, "no directory"); !all {
				t.Errorf("parity %d, no directory: not all is lost", parityPercent)
			}
		})
		s.damaged(func(b []byte) []byte { return nil }, func() {
			if _, all := s.readAll(t, "nothing left"); !all {
				t.Errorf("parity %d, an empty object: not all is lost", parityPercent)
			}
		})
	}
	// Without parity one bit is enough, but in what is there twice.
	s := large(t, 0)
	s.damaged(func(b []byte) []byte { b[len(b)/2] ^= 1; return b }, func() {
		if lost, _ := s.readAll(t, "one bit"); len(lost) != 1 {
			t.Errorf("one bit without parity: lost %v", lost)
		}
	})
	s.damaged(func(b []byte) []byte { b[20] ^= 1; b[130] ^= 1; return b }, func() {
		if lost, _ := s.readAll(t, "the front"); lost != nil {
			t.Errorf("header and table in front without parity: lost %v", lost)
		}
	})
}

func TestSmallPackIsHealed(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	s := newStored(t, 3, content(r, 5000), noise(r, 3000), content(r, 50), noise(r, 1))
	for at := range s.st.Bytes(s.Name) {
		s.damaged(func(b []byte) []byte { b[at] ^= 0x40; return b }, func() {
			if lost, all := s.readAll(t, "one bit"); lost != nil || all {
				t.Errorf("a bit at %d: lost %v", at, lost)
			}
		})
	}
}

func TestCopiesOfRepairsAreRead(t *testing.T) {
	s := large(t, 3)
	sound := s.st.Bytes(s.Name)
	ruin := func(b []byte) []byte { clear(b[:len(b)*2/3]); return b }

	s.st.Plant(s.Name+"-1", sound)
	s.st.Change(s.Name, ruin)
	if lost, all := s.readAll(t, "beside a lost one"); lost != nil || all {
		t.Errorf("a copy beside a lost pack: lost %v", lost)
	}
	s.st.Lose(s.Name)
	asked := requests(s.st)
	if lost, all := s.readAll(t, "alone"); lost != nil || all {
		t.Errorf("a copy alone: lost %v", lost)
	}
	if n := asked.Load(); n > int64(len(s.ids))+5 {
		t.Errorf("%d requests for a pack whose copy is there", n)
	}
	s.st.Change(s.Name+"-1", ruin)
	s.st.Plant(s.Name+"-2", sound)
	if lost, all := s.readAll(t, "the second"); lost != nil || all {
		t.Errorf("a second copy: lost %v", lost)
	}
	s.st.Change(s.Name+"-2", func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
	if lost, all := s.readAll(t, "damaged"); lost != nil || all {
		t.Errorf("a damaged second copy: lost %v", lost)
	}
}

func TestPackThatIsNotItself(t *testing.T) {
	s := large(t, 3)
	b := pack.NewBuilder(s.keys, envelope.Pack, uuid.Nil, 3)
	fill(b, s.keys, s.contents...)
	other := store(t, s.st, b)
	foreign := seal.NewKeys(uuid.New())
	b = pack.NewBuilder(foreign, envelope.Pack, uuid.Nil, 3)
	fill(b, foreign, s.contents...)
	strange := store(t, s.st, b)
	for name, from := range map[string]string{"another pack": other.Name, "another repository's": strange.Name} {
		object := s.st.Bytes(from)
		s.damaged(func([]byte) []byte { return object }, func() {
			if _, all := s.readAll(t, name); !all {
				t.Errorf("%s under this name is read", name)
			}
		})
	}
}

func TestContentThatWasStoredWrongIsNotRead(t *testing.T) {
	s := large(t, 3)
	b := pack.NewBuilder(s.keys, envelope.Pack, uuid.Nil, 3)
	id := s.keys.ChunkID([]byte("this"))
	b.Append(id, []byte("that"), pack.Raw, 4, nil)
	b.Append(s.keys.ChunkID(make([]byte, 100)), []byte("no zstd"), pack.Zstd, 100, nil)
	fill(b, s.keys, []byte("right"))
	p := store(t, s.st, b)
	var read []string
	err := s.reader().Frames(context.Background(), envelope.Pack, p.ID, []uint32{0, 1, 2}, func(_ int, plain []byte) error {
		read = append(read, string(plain))
		return nil
	})
	var lost *pack.LostFrames
	if !errors.As(err, &lost) || !slices.Equal(lost.Frames, []uint32{0, 1}) || !slices.Equal(read, []string{"right"}) {
		t.Errorf("read %q, %v", read, err)
	}
	if err != nil && err.Error() != p.Name+": frames 0-1: object is lost" {
		t.Error(err)
	}
}

func TestNewerPackIsNotTakenForDamage(t *testing.T) {
	s := large(t, 3)
	h, err := envelope.DecodeHeader(s.st.Bytes(s.Name))
	if err != nil {
		t.Fatal(err)
	}
	h.Version = envelope.Version + 1
	object, err := envelope.Build(h, make([]byte, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	s.st.Plant(s.Name, bytes.Join(object, nil))
	if _, err := s.reader().Directory(context.Background(), envelope.Pack, s.ID); !errors.Is(err, envelope.ErrNewer) {
		t.Error(err)
	}
}
