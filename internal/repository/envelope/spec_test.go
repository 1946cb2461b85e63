package envelope

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"testing"
)

// The parity here is computed from what docs/format-repository.md says and by nothing else: matrices
// over GF(2^8), one byte after another.

func gfMul(a, b byte) (p byte) {
	for x := uint16(a); b > 0; b >>= 1 {
		if b&1 == 1 {
			p ^= byte(x)
		}
		if x <<= 1; x > 0xff {
			x ^= 0x11d
		}
	}
	return p
}

func gfInverse(a byte) byte {
	for b := 1; b < 256; b++ {
		if gfMul(a, byte(b)) == 1 {
			return byte(b)
		}
	}
	panic("0 has no inverse")
}

func gfProduct(a, b [][]byte) [][]byte {
	c := make([][]byte, len(a))
	for r := range a {
		c[r] = make([]byte, len(b[0]))
		for i, x := range a[r] {
			for j := range b[i] {
				c[r][j] ^= gfMul(x, b[i][j])
			}
		}
	}
	return c
}

// gfInvert inverts a square matrix by elimination.
func gfInvert(m [][]byte) [][]byte {
	n := len(m)
	a := make([][]byte, n) // m and beside it what becomes its inverse
	for r := range a {
		a[r] = append(bytes.Clone(m[r]), make([]byte, n)...)
		a[r][n+r] = 1
	}
	for c := range n {
		pivot := c
		for a[pivot][c] == 0 {
			pivot++
		}
		a[c], a[pivot] = a[pivot], a[c]
		for f, j := gfInverse(a[c][c]), 0; j < 2*n; j++ {
			a[c][j] = gfMul(a[c][j], f)
		}
		for r := range n {
			if f := a[r][c]; r != c && f != 0 {
				for j := range a[r] {
					a[r][j] ^= gfMul(f, a[c][j])
				}
			}
		}
	}
	for r := range a {
		a[r] = a[r][n:]
	}
	return a
}

// parityMatrix is the lower part, m rows of k, of the code's matrix.
func parityMatrix(k, m int) [][]byte {
	v := make([][]byte, k+m)
	for r := range v {
		v[r] = make([]byte, k)
		power := byte(1)
		for c := range v[r] {
			v[r][c] = power
			power = gfMul(power, byte(r))
		}
	}
	return gfProduct(v, gfInvert(v[:k]))[k:]
}

func TestParityIsWhatTheFormatSays(t *testing.T) {
	for _, tt := range []struct{ size, percent, n, g, m int }{
		{1, 3, 1, 1, 2}, {1, 100, 1, 1, 2}, {700, 3, 2, 1, 2}, {20_000, 10, 40, 1, 4},
		{51_000, 100, 100, 1, 100}, {51_201, 3, 51, 1, 2}, {6_600_000, 3, 101, 2, 2}, {13_300_000, 5, 203, 3, 4},
	} {
		t.Run(fmt.Sprint(tt), func(t *testing.T) {
			payload := content(tt.size, 6)
			b := mustBuild(t, headerOf(Pack, "packs/ab/abcd", tt.percent), payload)
			shard := int(binary.LittleEndian.Uint32(b[104:]))
			n := max(1, (tt.size+shard-1)/shard)
			tableBytes := 4*(tt.n+tt.g*tt.m) + 4
			if n != tt.n || len(b) != 2*(128+tableBytes)+tt.size+tt.g*tt.m*shard {
				t.Fatalf("%d shards of %d bytes, %d bytes in all", n, shard, len(b))
			}
			parity := b[128+tableBytes+tt.size:][:tt.g*tt.m*shard]
			filled := append(bytes.Clone(payload), make([]byte, n*shard-tt.size)...)
			// The bytes at a few places of the shards: of each place the code is the same.
			for at := 0; at < shard; at += 1 + shard/7 {
				group := make([][]byte, tt.g)
				for s := range n {
					group[s%tt.g] = append(group[s%tt.g], filled[s*shard+at])
				}
				for i, data := range group {
					matrix := parityMatrix(len(data), tt.m)
					for j, row := range matrix {
						var want byte
						for c, x := range data {
							want ^= gfMul(row[c], x)
						}
						s := i + (len(data)+j)*tt.g
						if got := parity[(s-n)*shard+at]; got != want {
							t.Fatalf("byte %d of shard %d, parity %d of group %d: %#x, not %#x", at, s, j, i, got, want)
						}
					}
				}
				if tt.g > 1 {
					break // a matrix of a hundred columns is slow to invert here
				}
			}
			// The table.
			crc := crc32.MakeTable(crc32.Castagnoli)
			table := b[128:][:tableBytes]
			for s := range n {
				if sum := crc32.Checksum(payload[s*shard:min(tt.size, (s+1)*shard)], crc); binary.LittleEndian.Uint32(table[4*s:]) != sum {
					t.Fatalf("entry of shard %d", s)
				}
			}
			for j := range tt.g * tt.m {
				if sum := crc32.Checksum(parity[j*shard:(j+1)*shard], crc); binary.LittleEndian.Uint32(table[4*(n+j):]) != sum {
					t.Fatalf("entry of parity shard %d", j)
				}
			}
			sum := crc32.Checksum(append(bytes.Clone(b[:124]), table[:tableBytes-4]...), crc)
			if binary.LittleEndian.Uint32(table[tableBytes-4:]) != sum {
				t.Fatal("checksum of the table")
			}
			if !bytes.Equal(b[len(b)-128:], b[:128]) || !bytes.Equal(b[len(b)-128-tableBytes:][:tableBytes], table) {
				t.Fatal("the end is not like the beginning")
			}
		})
	}
}

// testdata/object-v1 was made by another program, in another language, from the page of the format.
func TestObjectOfVersion1IsReadAndWritten(t *testing.T) {
	golden, err := os.ReadFile("testdata/object-v1")
	if err != nil {
		t.Fatal(err)
	}
	h, payload, err := Open(golden)
	if err != nil {
		t.Fatal(err)
	}
	want := Header{Version: 1, Kind: Pack, Cipher: AESGCM, Generation: 0x01020304, NameHash: NameHash("packs/ab/abcdefabcdefabcdefabcdefabcdefab-3"),
		PayloadBytes: 1300, ShardBytes: 512, ParityPercent: 3, DirectoryBytes: 77}
	for i := range 16 {
		want.Repository[i], want.Set[i] = byte(i), byte(0xf0+i)
	}
	for i := range want.Salt {
		want.Salt[i] = byte(0x40 + i)
	}
	if h != want {
		t.Fatalf("header %+v", h)
	}
	for i, b := range payload {
		if b != byte(i*i>>3) {
			t.Fatalf("byte %d of the payload is %#x", i, b)
		}
	}
	if b := mustBuild(t, want, payload); !bytes.Equal(b, golden) {
		t.Fatal("the same payload makes another object")
	}
}
