package envelope

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	"github.com/google/uuid"
)

// content returns bytes that look random and are the same for a seed each time.
func content(size int, seed uint64) []byte {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	b := make([]byte, size)
	rand.NewChaCha8(key).Read(b)
	return b
}

func headerOf(kind Kind, name string, percent int) Header {
	h := Header{Version: Version, Kind: kind, Cipher: AESGCM, Generation: 7, Repository: uuid.UUID{1, 2, 3}, NameHash: NameHash(name), Set: uuid.UUID{9}, ParityPercent: percent}
	copy(h.Salt[:], content(len(h.Salt), 1))
	return h
}

func mustBuild(t testing.TB, h Header, payload ...[]byte) []byte {
	t.Helper()
	object, err := Build(h, payload...)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Join(object, nil)
}

// object returns one of a payload of so many bytes.
func object(t testing.TB, size, percent int) []byte {
	return mustBuild(t, headerOf(Pack, "packs/ab/abcd", percent), content(size, uint64(size)))
}

// mustMend fails unless Mend makes the original of the damaged object and leaves that alone.
func mustMend(t testing.TB, damaged, original []byte, what string) Report {
	t.Helper()
	before := bytes.Clone(damaged)
	mended, rep, err := Mend(damaged)
	if err != nil {
		t.Fatalf("%s: %v (%v)", what, err, rep)
	}
	if !bytes.Equal(mended, original) {
		t.Fatalf("%s: mended to something else", what)
	}
	if rep.Sound() != bytes.Equal(damaged, original) {
		t.Fatalf("%s: the report says %v", what, rep)
	}
	if !bytes.Equal(damaged, before) {
		t.Fatalf("%s: the damaged object was changed", what)
	}
	return rep
}

var sizes = []int{0, 1, 2, 511, 512, 513, 4096, 5000, 51200, 51201, 200_000, 1 << 20, 6553600, 6553601}

func TestObjectComesBackAsItWasBuilt(t *testing.T) {
	for _, size := range sizes {
		for _, percent := range []int{0, 1, 3, 10, 100} {
			h := headerOf(Nodes, "nodes/ab/abcd", percent)
			h.DirectoryBytes = uint32(size / 3)
			payload := content(size, 5)
			b := mustBuild(t, h, payload)
			got, opened, err := Open(b)
			if err != nil {
				t.Fatalf("%d bytes, %d %%: %v", size, percent, err)
			}
			h.PayloadBytes, h.ShardBytes = int64(size), got.ShardBytes
			if got != h || !bytes.Equal(opened, payload) {
				t.Fatalf("%d bytes, %d %%: header %+v of %+v", size, percent, got, h)
			}
			if got.ObjectBytes() != int64(len(b)) || !bytes.Equal(b[got.PayloadOffset():][:size], payload) {
				t.Fatalf("%d bytes, %d %%: object of %d bytes, payload at %d", size, percent, len(b), got.PayloadOffset())
			}
			if again, rep, err := Mend(b); err != nil || !rep.Sound() || rep.Header != h || (size > 0 && &again[0] != &b[0]) {
				t.Fatalf("%d bytes, %d %%: mending what is sound: %v, %v", size, percent, rep, err)
			}
		}
	}
}

func TestPayloadInPiecesMakesTheSameObject(t *testing.T) {
	for _, size := range sizes {
		payload := content(size, 3)
		whole := mustBuild(t, headerOf(Pack, "packs/ab/abcd", 3), payload)
		random := rand.New(rand.NewPCG(1, uint64(size)))
		for range 5 {
			var pieces [][]byte
			for rest := payload; len(rest) > 0; {
				n := min(len(rest), random.IntN(2+random.IntN(1+size/2)))
				pieces = append(pieces, rest[:n:n])
				rest = rest[n:]
			}
			if b := mustBuild(t, headerOf(Pack, "packs/ab/abcd", 3), pieces...); !bytes.Equal(b, whole) {
				t.Fatalf("%d bytes in %d pieces make another object", size, len(pieces))
			}
		}
		if !bytes.Equal(payload, content(size, 3)) {
			t.Fatalf("%d bytes: the payload was changed", size)
		}
	}
}

func TestPayloadIsPartOfTheObject(t *testing.T) {
	a, b := content(100_000, 1), content(50, 2)
	object, err := Build(headerOf(Pack, "packs/ab/abcd", 3), a, b)
	if err != nil {
		t.Fatal(err)
	}
	if &object[1][0] != &a[0] || &object[2][0] != &b[0] {
		t.Fatal("the payload was copied")
	}
}

func TestEveryFlippedByteIsFoundAndMended(t *testing.T) {
	for _, size := range []int{1, 600, 3000} {
		for _, percent := range []int{0, 3} {
			original := object(t, size, percent)
			h, _ := DecodeHeader(original)
			offset := int(h.PayloadOffset())
			for at := range original {
				for _, flip := range []byte{0x01, 0x80, 0xff} {
					damaged := bytes.Clone(original)
					damaged[at] ^= flip
					what := fmt.Sprintf("%d bytes, %d %%, byte %d", size, percent, at)
					if _, _, err := Open(damaged); !errors.Is(err, ErrDamaged) {
						t.Fatalf("%s: opened: %v", what, err)
					}
					if percent == 0 && at >= offset && at < offset+size {
						if _, _, err := Mend(damaged); !errors.Is(err, ErrLost) {
							t.Fatalf("%s: mended without parity: %v", what, err)
						}
						continue
					}
					mustMend(t, damaged, original, what)
				}
			}
		}
	}
}

func TestTruncationAtEveryLength(t *testing.T) {
	for _, size := range []int{1, 600, 3000} {
		original := object(t, size, 3)
		h, _ := DecodeHeader(original)
		whole := int(h.PayloadOffset()) + size // all data, no parity
		for n := range original {
			what := fmt.Sprintf("%d bytes, the first %d left", size, n)
			if _, _, err := Open(original[:n]); !errors.Is(err, ErrDamaged) {
				t.Fatalf("%s: opened: %v", what, err)
			}
			if n >= whole {
				mustMend(t, original[:n], original, what)
			} else if _, _, err := Mend(original[:n]); !errors.Is(err, ErrLost) {
				t.Fatalf("%s: %v", what, err)
			}
			if front := len(original) - n; front <= int(h.PayloadOffset())+min(size, 2*minShardBytes) {
				mustMend(t, original[front:], original, fmt.Sprintf("%d bytes, the last %d left", size, n))
			}
		}
		mustMend(t, append(bytes.Clone(original), content(1000, 2)...), original, "with a tail")
		mustMend(t, append(content(1000, 2), original...), original, "with bytes in front")
	}
}

// A hole of as many shards as there is parity may lie anywhere; one more shard of a group is too many.
func TestHolesUpToTheParityAreMended(t *testing.T) {
	for _, size := range []int{1, 700, 5000, 60_000, 1 << 20, 33 << 20, 40 << 20} {
		original := object(t, size, 3)
		h, _ := DecodeHeader(original)
		g := h.geometry()
		random := rand.New(rand.NewPCG(2, uint64(size)))
		starts := []int{0, g.shards() - g.parity(), max(0, g.data-1), max(0, g.data-g.parity()/2)}
		for range 4 {
			starts = append(starts, random.IntN(g.data+1))
		}
		for _, first := range starts {
			from, _ := g.shard(first)
			_, to := g.shard(first + g.parity() - 1)
			damaged := bytes.Clone(original)
			copy(damaged[from:to], content(int(to-from), 8))
			rep := mustMend(t, damaged, original, fmt.Sprintf("%d bytes, a hole from %d to %d", size, from, to))
			if len(rep.Shards) > g.parity() || len(rep.Lost) > 0 {
				t.Fatalf("%d bytes: %v", size, rep)
			}
			if first+g.parity() == g.shards() {
				continue
			}
			_, to = g.shard(first + g.parity())
			copy(damaged[from:to], content(int(to-from), 8))
			if from == to-int64(g.shardBytes)*int64(g.parity()+1) { // none of the shards is empty
				mended, rep, err := Mend(damaged)
				if !errors.Is(err, ErrLost) || mended != nil || len(rep.Lost) != g.perGroup+1 {
					t.Fatalf("%d bytes, a hole from %d to %d: %v, %v", size, from, to, err, rep)
				}
			}
		}
	}
}

// A group that is lost takes no other with it.
func TestSalvageRestoresTheGroupsThatItCan(t *testing.T) {
	original := object(t, 20<<20, 3)
	h, payload, _ := Open(original)
	g := h.geometry()
	damaged := bytes.Clone(original)
	l := layoutOf(damaged, g)
	for j := range g.perGroup + 1 {
		l.bytesOf(j * g.groups)[3] ^= 1 // group 0: too many
		if j < g.perGroup {
			l.bytesOf(1 + j*g.groups)[3] ^= 1
		}
	}
	if _, _, err := Mend(damaged); !errors.Is(err, ErrLost) {
		t.Fatal(err)
	}
	got, left, rep, err := Salvage(damaged)
	if err != nil || got != h || len(left) != len(payload) {
		t.Fatal(got, len(left), err)
	}
	want := bytes.Clone(payload)
	for j := range g.perGroup + 1 {
		if s := j * g.groups; !slices.Contains(rep.Lost, s) {
			t.Fatalf("shard %d is not reported: %v", s, rep.Lost)
		}
		want[j*g.groups*g.shardBytes+3] ^= 1
	}
	if len(rep.Lost) != g.perGroup+1 || !bytes.Equal(left, want) {
		t.Fatalf("more is lost than need be: %v", rep)
	}
	if _, _, _, err := Salvage(content(5000, 1)); !errors.Is(err, ErrLost) {
		t.Fatalf("salvaged from noise: %v", err)
	}
}

func TestHeadersAndTablesAreMendedFromTheOther(t *testing.T) {
	original := object(t, 10_000, 3)
	h, _ := DecodeHeader(original)
	front, size := int(h.PayloadOffset()), len(original)
	for _, tt := range []struct {
		what            string
		from, to        int
		headers, tables int
	}{
		{"front header", 0, HeaderBytes, 1, 0},
		{"front table", HeaderBytes, front, 0, 1},
		{"front", 0, front, 1, 1},
		{"back header", size - HeaderBytes, size, 1, 0},
		{"back table", size - front, size - HeaderBytes, 0, 1},
		{"back", size - front, size, 1, 1},
	} {
		damaged := bytes.Clone(original)
		copy(damaged[tt.from:tt.to], content(tt.to-tt.from, 4))
		if rep := mustMend(t, damaged, original, tt.what); rep.Headers != tt.headers || rep.Tables != tt.tables {
			t.Errorf("%s: %v", tt.what, rep)
		}
	}

	// Different entries are bad in the two tables, and shards besides.
	damaged := bytes.Clone(original)
	for s := range h.geometry().perGroup + 1 {
		damaged[HeaderBytes+4*s+3] ^= 1
		damaged[size-front+4*s+41] ^= 1
	}
	damaged[front+2000] ^= 1
	if rep := mustMend(t, damaged, original, "both tables"); rep.Tables != 2 {
		t.Error(rep)
	}
	// One entry is bad in both.
	damaged[size-front+3] ^= 2
	mustMend(t, damaged, original, "one entry twice")
	damaged[size-HeaderBytes-1] ^= 2
	mustMend(t, damaged, original, "one checksum too")
	damaged[front-1] ^= 4
	if _, rep, err := Mend(damaged); !errors.Is(err, ErrLost) || len(rep.Lost) == 0 {
		t.Errorf("no checksum is left: %v", err)
	}

	damaged = bytes.Clone(original)
	damaged[20] ^= 1
	damaged[size-20] ^= 1
	if _, rep, err := Mend(damaged); !errors.Is(err, ErrLost) || rep.Headers != 2 {
		t.Errorf("no header is left: %v, %v", err, rep)
	}
}

// Parts of one object in place of another's, cut alike, never make a third.
func TestPartsOfTwoObjectsDoNotMix(t *testing.T) {
	a := mustBuild(t, headerOf(Record, "backups/aaaa", 3), content(5000, 1))
	b := mustBuild(t, headerOf(Record, "backups/bbbb", 3), content(5000, 2))
	h, _ := DecodeHeader(a)
	cuts := []int{0, HeaderBytes, int(h.PayloadOffset()), 2000, int(h.PayloadOffset()) + 5000, len(a) - int(h.PayloadOffset()), len(a) - HeaderBytes, len(a)}
	for mask := range 1 << (len(cuts) - 1) {
		mixed := make([]byte, 0, len(a))
		for i := range len(cuts) - 1 {
			from := a
			if mask>>i&1 == 1 {
				from = b
			}
			mixed = append(mixed, from[cuts[i]:cuts[i+1]]...)
		}
		mended, _, err := Mend(mixed)
		if err == nil && !bytes.Equal(mended, a) && !bytes.Equal(mended, b) {
			t.Fatalf("parts %b make a third object", mask)
		}
		if err != nil && !errors.Is(err, ErrLost) {
			t.Fatalf("parts %b: %v", mask, err)
		}
	}
}

func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

// reseal makes the checksum of a header right.
func reseal(header []byte) {
	binary.LittleEndian.PutUint32(header[124:], crc32.Checksum(header[:124], castagnoli))
}

func TestForgedHeadersAreRefusedWithoutMemory(t *testing.T) {
	original := object(t, 5000, 3)
	put64 := func(at int, v uint64) func([]byte) {
		return func(b []byte) { binary.LittleEndian.PutUint64(b[at:], v) }
	}
	put32 := func(at int, v uint32) func([]byte) {
		return func(b []byte) { binary.LittleEndian.PutUint32(b[at:], v) }
	}
	put16 := func(at int, v uint16) func([]byte) {
		return func(b []byte) { binary.LittleEndian.PutUint16(b[at:], v) }
	}
	for _, tt := range []struct {
		what  string
		forge func([]byte)
		want  error
	}{
		{"version 0", put16(8, 0), ErrDamaged},
		{"version 2", put16(8, 2), ErrNewer},
		{"version 65535", put16(8, 65535), ErrNewer},
		{"kind 0", func(b []byte) { b[10] = 0 }, ErrDamaged},
		{"kind 14", func(b []byte) { b[10] = 14 }, ErrDamaged},
		{"cipher 2", func(b []byte) { b[11] = 2 }, ErrDamaged},
		{"payload of 2^63", put64(96, 1<<63), ErrDamaged},
		{"payload of 2^27+1", put64(96, 1<<27+1), ErrDamaged},
		{"payload with which the object is too long", func(b []byte) { put64(96, 1<<27)(b); put32(104, 65536)(b) }, ErrDamaged},
		{"payload with which the parity is too long", func(b []byte) { put64(96, 100<<20)(b); put32(104, 65536)(b); put16(108, 100)(b) }, ErrDamaged},
		{"shards of 0", put32(104, 0), ErrDamaged},
		{"shards of 1024", put32(104, 1024), ErrDamaged},
		{"shards of 2^31", put32(104, 1<<31), ErrDamaged},
		{"parity of 101 %", put16(108, 101), ErrDamaged},
		{"parity of 65535 %", put16(108, 65535), ErrDamaged},
		{"directory longer than the payload", put32(112, 5001), ErrDamaged},
		{"directory in a record", func(b []byte) { b[10] = byte(Record); put32(112, 5)(b) }, ErrDamaged},
		// Well formed, and not what is there.
		{"payload of 60 MiB", func(b []byte) { put64(96, 60<<20)(b); put32(104, 65536)(b) }, nil},
		{"payload of 60 MiB and as much parity", func(b []byte) { put64(96, 60<<20)(b); put32(104, 65536)(b); put16(108, 100)(b) }, nil},
		{"no payload", put64(96, 0), nil},
		{"another salt", func(b []byte) { b[50]++ }, nil},
	} {
		damaged := bytes.Clone(original)
		tt.forge(damaged)
		reseal(damaged)
		copy(damaged[len(damaged)-HeaderBytes:], damaged[:HeaderBytes])
		if _, err := DecodeHeader(damaged); !errors.Is(err, tt.want) || (tt.want == nil) != (err == nil) {
			t.Errorf("%s: %v", tt.what, err)
		}
		if _, _, err := Open(damaged); err == nil || errors.Is(tt.want, ErrNewer) && !errors.Is(err, ErrNewer) {
			t.Errorf("%s: opened: %v", tt.what, err)
		}
		mendErr := ErrLost
		if errors.Is(tt.want, ErrNewer) {
			mendErr = ErrNewer
		}
		before := allocated()
		_, _, err := Mend(damaged)
		if !errors.Is(err, mendErr) {
			t.Errorf("%s: mended: %v", tt.what, err)
		}
		if grown := allocated() - before; grown > 1<<20 {
			t.Errorf("%s: %d bytes were allocated for an object of %d", tt.what, grown, len(damaged))
		}
	}
}

func TestBuildRefusesWhatDecodeWould(t *testing.T) {
	big := make([]byte, 1<<20)
	var over [][]byte
	for range 127 {
		over = append(over, big)
	}
	for _, tt := range []struct {
		what    string
		change  func(*Header)
		payload [][]byte
	}{
		{"kind", func(h *Header) { h.Kind = 0 }, nil},
		{"cipher", func(h *Header) { h.Cipher = 2 }, nil},
		{"negative parity", func(h *Header) { h.ParityPercent = -1 }, nil},
		{"parity", func(h *Header) { h.ParityPercent = 101 }, nil},
		{"directory", func(h *Header) { h.DirectoryBytes = 1 }, nil},
		{"length", func(*Header) {}, over},
	} {
		h := headerOf(Pack, "packs/ab/abcd", 3)
		tt.change(&h)
		if _, err := Build(h, tt.payload...); err == nil {
			t.Errorf("%s: built", tt.what)
		}
	}
}

func TestStems(t *testing.T) {
	for name, stem := range map[string]string{
		"config.0": "config", "config.2": "config", "config.1-12": "config", "config.3": "config.3",
		"keys/ring-5.0": "keys/ring-5", "keys/ring-5.2-1": "keys/ring-5", "keys/ring-5": "keys/ring-5",
		"keys/slot-00112233445566778899001122334455.1":   "keys/slot-00112233445566778899001122334455",
		"keys/slot-00112233445566778899001122334455.1-3": "keys/slot-00112233445566778899001122334455",
		"packs/ab/abcd":   "packs/ab/abcd",
		"packs/ab/abcd-1": "packs/ab/abcd", "packs/ab/abcd-10": "packs/ab/abcd", "packs/ab/abcd-01": "packs/ab/abcd-01",
		"packs/ab/abcd-": "packs/ab/abcd-", "packs/ab/abcd-x1": "packs/ab/abcd-x1", "packs/ab/abcd-1234567890": "packs/ab/abcd-1234567890",
		"candidates/00ff.1": "candidates/00ff.1", "candidates/00ff.1-2": "candidates/00ff.1", "pins/00ff.0": "pins/00ff.0",
		"": "",
	} {
		if got := Stem(name); got != stem {
			t.Errorf("the stem of %q is %q, not %q", name, got, stem)
		}
		if NameHash(name) != NameHash(stem) {
			t.Errorf("the hash of %q is not that of its stem", name)
		}
	}
	if NameHash("packs/ab/abcd") == NameHash("packs/ab/abce") {
		t.Error("two names have one hash")
	}
	if original, n := Original("packs/ab/abcd-12"); original != "packs/ab/abcd" || n != 12 {
		t.Error(original, n)
	}
}
