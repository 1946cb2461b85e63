package envelope

import (
	"bytes"
	"errors"
	"testing"
)

func FuzzDecodeHeader(f *testing.F) {
	f.Add(object(f, 700, 3)[:HeaderBytes])
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, b []byte) {
		for range 2 { // as it is, and so that its checksum matches
			h, err := DecodeHeader(b)
			switch {
			case err == nil:
				if h.PayloadOffset() < HeaderBytes || h.ObjectBytes() <= h.PayloadBytes || h.ObjectBytes() > 128<<20 {
					t.Fatalf("%+v: an object of %d bytes, payload at %d", h, h.ObjectBytes(), h.PayloadOffset())
				}
				again := h.encode()
				if g, err := DecodeHeader(again[:]); err != nil || g != h {
					t.Fatalf("%+v is decoded to %+v, %v", h, g, err)
				}
				if !bytes.Equal(h.AssociatedData(), b[boundFrom:boundTo]) {
					t.Fatal("frames would be bound to something else than the header")
				}
			case !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewer):
				t.Fatal(err)
			}
			if len(b) < HeaderBytes {
				return
			}
			b = bytes.Clone(b)
			copy(b, magic)
			reseal(b)
		}
	})
}

func FuzzOpenAndMend(f *testing.F) {
	for _, size := range []int{0, 1, 700, 2000} {
		for _, percent := range []int{0, 3, 100} {
			b := object(f, size, percent)
			f.Add(b)
			f.Add(b[:len(b)-HeaderBytes])
			b = bytes.Clone(b)
			b[len(b)/2] ^= 1
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for range 2 { // as it is, and so that the checksums of headers match
			h, payload, openErr := Open(b)
			mended, rep, err := Mend(b)
			switch {
			case err == nil:
				g, again, err := Open(mended)
				if err != nil || rep.Header != g {
					t.Fatalf("what was mended does not open: %v", err)
				}
				if openErr == nil && (h != g || !bytes.Equal(payload, again)) {
					t.Fatal("what was sound is mended to something else")
				}
			case openErr == nil:
				t.Fatalf("opens and cannot be mended: %v", err)
			case !errors.Is(err, ErrLost) && !errors.Is(err, ErrNewer):
				t.Fatal(err)
			}
			if h, left, rep, err := Salvage(b); err == nil && int64(len(left)) != h.PayloadBytes {
				t.Fatalf("%d bytes are left of %d: %v", len(left), h.PayloadBytes, rep)
			}
			if len(b) < HeaderBytes {
				return
			}
			b = bytes.Clone(b)
			for _, header := range [][]byte{b[:HeaderBytes], b[len(b)-HeaderBytes:]} {
				copy(header, magic)
				reseal(header)
			}
		}
	})
}
