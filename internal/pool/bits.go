package pool

import "math/bits"

// bitset is a set of small numbers. A nil one is empty, and takes nothing.
type bitset []uint64

func newBitset(n uint64) bitset { return make(bitset, (n+63)/64) }

func (b bitset) has(n uint64) bool { return b[n/64]&(1<<(n%64)) != 0 }

func (b bitset) set(n uint64) { b[n/64] |= 1 << (n % 64) }

func (b bitset) clear(n uint64) {
	if b != nil {
		b[n/64] &^= 1 << (n % 64)
	}
}

// without returns what is in b and not in other.
func (b bitset) without(other bitset) bitset {
	out := make(bitset, len(b))
	for i := range b {
		out[i] = b[i] &^ other[i]
	}
	return out
}

func (b bitset) count() (n int) {
	for _, w := range b {
		n += bits.OnesCount64(w)
	}
	return n
}

// countBelow counts the numbers below limit.
func (b bitset) countBelow(limit uint64) int {
	n := b[:limit/64].count()
	if in := limit % 64; in != 0 {
		n += bits.OnesCount64(b[limit/64] & (1<<in - 1))
	}
	return n
}

// from returns the first number in b at or behind at; false if there is none.
func (b bitset) from(at uint64) (uint64, bool) {
	for i := at / 64; i < uint64(len(b)); i++ {
		w := b[i]
		if i == at/64 {
			w &= ^uint64(0) << (at % 64)
		}
		if w != 0 {
			return i*64 + uint64(bits.TrailingZeros64(w)), true
		}
	}
	return 0, false
}

// run returns the first run of numbers in b at or behind at; empty if there is none.
func (b bitset) run(at uint64) (lo, hi uint64) {
	lo, ok := b.from(at)
	if !ok {
		return 0, 0
	}
	hi = lo + 1
	for hi < uint64(len(b))*64 && b.has(hi) {
		hi++
	}
	return lo, hi
}
