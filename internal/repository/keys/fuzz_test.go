package keys

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Decoders are given anything. They may not panic, nor allocate more than in proportion; what they accept they write again as it was.

func FuzzSlot(f *testing.F) {
	_, s := fixture(f)
	f.Add(s.encode())
	f.Fuzz(func(t *testing.T, p []byte) {
		s, err := decodeSlot(p)
		if err != nil {
			return
		}
		if err := s.cost.check(); err != nil {
			t.Fatal(err)
		}
		again, err := decodeSlot(s.encode())
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(s.Method, again.Method); d != "" || !bytes.Equal(s.sealed, again.sealed) {
			t.Fatal(d)
		}
		if s.cost == cheap {
			_, _ = s.open([]byte("fixture"))
		}
	})
}

func FuzzRing(f *testing.F) {
	r, s := fixture(f)
	payload, err := r.encode()
	if err != nil {
		f.Fatal(err)
	}
	ids, err := s.open([]byte("fixture"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(payload)
	f.Fuzz(func(t *testing.T, p []byte) {
		w, err := decodeWrapped(p)
		if err != nil {
			return
		}
		if got, err := w.open(repository, ids...); err == nil {
			sameKeys(t, got.Keys, r.Keys)
		}
	})
}

func FuzzContent(f *testing.F) {
	r, _ := fixture(f)
	for _, methods := range []bool{false, true} {
		p, err := r.content(methods)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		r, err := decodeContent(p)
		if err != nil {
			return
		}
		p, err = r.content(true)
		if err != nil {
			t.Fatal(err)
		}
		again, err := decodeContent(p)
		if err != nil {
			t.Fatal(err)
		}
		sameKeys(t, again.Keys, r.Keys)
		if d := cmp.Diff(r.Methods, again.Methods); d != "" {
			t.Fatal(d)
		}
	})
}

func FuzzExport(f *testing.F) {
	r, _ := fixture(f)
	f.Add(export(f, r))
	f.Fuzz(func(t *testing.T, p []byte) {
		r, err := decodeExport(p)
		if err != nil {
			return
		}
		again, err := decodeExport(export(t, r))
		if err != nil {
			t.Fatal(err)
		}
		sameKeys(t, again.Keys, r.Keys)
	})
}
