package seal

import (
	"testing"

	"github.com/google/uuid"

	"varve/internal/block"
	"varve/internal/repository/envelope"
)

const chunkBytes = 256 << 10

func BenchmarkChunkID(b *testing.B) {
	k, plain := NewKeys(repository), make([]byte, chunkBytes)
	b.SetBytes(chunkBytes)
	b.ReportAllocs()
	for b.Loop() {
		k.ChunkID(plain)
	}
}

func BenchmarkBlockHash(b *testing.B) {
	k, plain := NewKeys(repository), make([]byte, block.Size)
	b.SetBytes(block.Size)
	b.ReportAllocs()
	for b.Loop() {
		k.BlockHash(plain)
	}
}

func BenchmarkFrames(b *testing.B) {
	for _, k := range []*Keys{NewKeys(repository), PlainKeys(repository)} {
		f := mustFrames(b, k, k.NewHeader(envelope.Pack, "packs/ab/abcd", uuid.Nil, 3))
		name := map[envelope.Cipher]string{envelope.AESGCM: "encrypted", envelope.None: "plain"}[k.Cipher]
		plain, sealed := make([]byte, chunkBytes), make([]byte, 0, chunkBytes+Overhead)
		b.Run("seal "+name, func(b *testing.B) {
			b.SetBytes(chunkBytes)
			b.ReportAllocs()
			for b.Loop() {
				f.Seal(sealed, plain, 1)
			}
		})
		sealed = f.Seal(sealed, plain, 1)
		b.Run("open "+name, func(b *testing.B) {
			b.SetBytes(chunkBytes)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := f.Open(plain[:0], sealed, 1); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkNewObject(b *testing.B) {
	k := NewKeys(repository)
	b.ReportAllocs()
	for b.Loop() {
		mustFrames(b, k, k.NewHeader(envelope.Record, recordName, uuid.Nil, 3))
	}
}
