package envelope

import (
	"bytes"
	"fmt"
	"testing"
)

const benchBytes = 32 << 20

// A pack as it is built: frames of some 100 KB, each a slice of its own.
func BenchmarkBuild(b *testing.B) {
	for _, percent := range []int{0, 3, 10} {
		b.Run(fmt.Sprintf("%d%%", percent), func(b *testing.B) {
			payload := content(benchBytes, 1)
			var frames [][]byte
			for rest := payload; len(rest) > 0; {
				n := min(len(rest), 100_003)
				frames = append(frames, rest[:n:n])
				rest = rest[n:]
			}
			h := headerOf(Pack, "packs/ab/abcd", percent)
			b.SetBytes(benchBytes)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Build(h, frames...); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkBuildSmall(b *testing.B) {
	payload := content(2000, 1)
	h := headerOf(Record, "backups/abcd", 3)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Build(h, payload); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	object := object(b, benchBytes, 3)
	b.SetBytes(benchBytes)
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := Open(object); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMend(b *testing.B) {
	object := bytes.Clone(object(b, benchBytes, 3))
	clear(object[10<<20 : 11<<20])
	b.SetBytes(benchBytes)
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := Mend(object); err != nil {
			b.Fatal(err)
		}
	}
}
