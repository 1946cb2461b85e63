package envelope

import (
	"bytes"
	"errors"
	"hash/crc32"
	"testing"

	"pgregory.net/rapid"
)

// must tells whether the damage to an object of the right length is within what the format promises to mend.
func must(h Header, original, damaged []byte) bool {
	if len(damaged) != len(original) {
		return false
	}
	was, is := layoutOf(original, h.geometry()), layoutOf(damaged, h.geometry())
	bad := make([]int, was.groups)
	for s := range was.shards() {
		if !bytes.Equal(was.bytesOf(s), is.bytesOf(s)) {
			bad[s%was.groups]++
		}
	}
	for _, n := range bad {
		if n > was.perGroup {
			return false
		}
	}
	sound := func(was, is [2][]byte) bool {
		return bytes.Equal(was[0], is[0]) || bytes.Equal(was[1], is[1])
	}
	return sound(was.headers, is.headers) && sound(was.tables, is.tables)
}

// Whatever happens to an object, Mend returns it as it was or says that it is lost.
func TestRandomDamage(t *testing.T) {
	type key struct{ size, percent int }
	built := map[key][]byte{}
	rapid.Check(t, func(r *rapid.T) {
		k := key{
			rapid.OneOf(rapid.IntRange(0, 2000), rapid.SampledFrom([]int{51_200, 51_201, 100_000, 300_000, 6_553_700})).Draw(r, "size"),
			rapid.SampledFrom([]int{0, 1, 3, 20, 100}).Draw(r, "percent"),
		}
		original := built[k]
		if original == nil {
			original = object(t, k.size, k.percent)
			built[k] = original
		}
		h, err := DecodeHeader(original)
		if err != nil {
			t.Fatal(err)
		}
		damaged := bytes.Clone(original)
		// Damage comes where it hurts as often as where there is most room for it.
		place := func(name string) int {
			front := int(h.PayloadOffset())
			return rapid.OneOf(
				rapid.IntRange(0, len(damaged)),
				rapid.IntRange(0, min(front, len(damaged))),
				rapid.IntRange(max(0, len(damaged)-front), len(damaged)),
			).Draw(r, name)
		}
		stretch := func() (from, to int) {
			from = place("from")
			return from, min(len(damaged), from+rapid.OneOf(rapid.IntRange(1, 20), rapid.IntRange(1, 3*h.ShardBytes), rapid.IntRange(1, 1+len(original)/10)).Draw(r, "length"))
		}
		for range rapid.IntRange(1, 6).Draw(r, "times") {
			switch rapid.IntRange(0, 5).Draw(r, "how") {
			case 0: // bits
				if at := place("at"); at < len(damaged) {
					damaged[at] ^= 1 << rapid.IntRange(0, 7).Draw(r, "bit")
				}
			case 1: // noise
				from, to := stretch()
				copy(damaged[from:to], content(to-from, rapid.Uint64().Draw(r, "seed")))
			case 2: // a hole
				from, to := stretch()
				clear(damaged[from:to])
			case 3: // a stretch of it comes a second time
				from, to := stretch()
				copy(damaged[place("to"):], bytes.Clone(damaged[from:to]))
			case 4: // the end is missing
				if rapid.IntRange(0, 3).Draw(r, "cut") == 0 {
					damaged = damaged[:place("length")]
				}
			case 5: // bytes went missing in the middle, or came in
				if rapid.IntRange(0, 3).Draw(r, "shift") == 0 {
					from, to := stretch()
					damaged = append(bytes.Clone(damaged[:from]), damaged[to:]...)
				}
			}
		}
		mended, rep, err := Mend(damaged)
		switch {
		case err == nil && !bytes.Equal(mended, original):
			r.Fatalf("mended to something else: %v", rep)
		case err == nil && rep.Sound() != bytes.Equal(damaged, original):
			r.Fatalf("the report says %v", rep)
		case err != nil && !errors.Is(err, ErrLost):
			r.Fatal(err)
		case err != nil && must(h, original, damaged):
			r.Fatalf("lost: %v", err)
		}
		if _, _, err := Open(damaged); (err == nil) != bytes.Equal(damaged, original) {
			r.Fatalf("opened: %v", err)
		}
	})
}

// A shard that is damaged so that its checksum still matches misleads the restoring of others; what
// comes out is not passed for good.
func TestShardThatOnlySeemsSoundIsNotBelieved(t *testing.T) {
	original := object(t, 5000, 3)
	h, _ := DecodeHeader(original)
	damaged := bytes.Clone(original)
	l := layoutOf(damaged, h.geometry())
	forge(l.bytesOf(2))
	if _, _, err := Open(damaged); err != nil {
		t.Fatalf("the checksum is not the same: %v", err)
	}
	l.bytesOf(4)[17] ^= 1
	if mended, rep, err := Mend(damaged); !errors.Is(err, ErrLost) || len(rep.Lost) != 1 {
		t.Fatalf("mended %v, %v: %v", mended != nil, rep, err)
	}
}

// forge changes the first bytes of b, and the four after them so that its CRC32C stays the same.
func forge(b []byte) {
	before := crc32.Checksum(b[:12], castagnoli)
	b[0] ^= 0xff
	// The checksum is linear over GF(2): which of the 32 bits must be flipped is a system of equations.
	base := crc32.Checksum(b[:12], castagnoli) ^ before
	var columns [32]uint32
	for bit := range columns {
		b[8+bit/8] ^= 1 << (bit % 8)
		columns[bit] = crc32.Checksum(b[:12], castagnoli) ^ before ^ base
		b[8+bit/8] ^= 1 << (bit % 8)
	}
	var used [32]uint32 // the bits whose columns were added up
	var flips uint32
	for bit := range columns {
		used[bit] = 1 << bit
	}
	for row := range 32 {
		pivot := row
		for columns[pivot]>>row&1 == 0 {
			pivot++
		}
		columns[row], columns[pivot] = columns[pivot], columns[row]
		used[row], used[pivot] = used[pivot], used[row]
		for c := range columns {
			if c != row && columns[c]>>row&1 == 1 {
				columns[c] ^= columns[row]
				used[c] ^= used[row]
			}
		}
	}
	for row := range 32 {
		if base>>row&1 == 1 {
			flips ^= used[row]
		}
	}
	for bit := range 32 {
		b[8+bit/8] ^= byte(flips>>bit&1) << (bit % 8)
	}
}
