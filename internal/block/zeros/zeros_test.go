package zeros_test

import (
	"testing"

	"varve/internal/block/zeros"
)

func TestAllFindsEveryByte(t *testing.T) {
	for _, n := range []int{0, 1, 7, 512, 4095, 4096, 4097, 8192, 10_000} {
		p := make([]byte, n+1)[1:] // not aligned
		if !zeros.All(p) {
			t.Fatalf("%d zeros are not all zeros", n)
		}
		for i := range p {
			p[i] = 1
			if zeros.All(p) {
				t.Fatalf("byte %d of %d is overlooked", i, n)
			}
			p[i] = 0
		}
	}
}

func BenchmarkAll(b *testing.B) {
	p := make([]byte, 1<<20)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		if !zeros.All(p) {
			b.Fatal("wrong")
		}
	}
}
