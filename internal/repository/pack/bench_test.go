package pack_test

import (
	"context"
	"math/rand/v2"
	"testing"

	"github.com/google/uuid"

	"varve/internal/repository/chunk"
	"varve/internal/repository/envelope"
	"varve/internal/repository/pack"
	"varve/internal/repository/seal"
)

const chunkBytes = 256 << 10

// Packs of chunks of which half is compressed away, to the finished object.
func BenchmarkBuild(b *testing.B) {
	keys := seal.NewKeys(repository)
	plain := content(rand.New(rand.NewPCG(1, 1)), chunkBytes)
	hashes := make([]uint64, chunkBytes/4096)
	var buf []byte
	build := pack.NewBuilder(keys, envelope.Pack, uuid.Nil, 3)
	b.SetBytes(chunkBytes)
	b.ReportAllocs()
	for b.Loop() {
		encoded, enc := pack.Encode(buf, plain)
		buf = encoded
		build.Append(chunk.ID{}, encoded, enc, len(plain), hashes)
		if build.Full() {
			finish(b, build).Release()
			build = pack.NewBuilder(keys, envelope.Pack, uuid.Nil, 3)
		}
	}
}

// The same without compression: what sealing, parity and checksums cost.
func BenchmarkBuildRaw(b *testing.B) {
	keys := seal.NewKeys(repository)
	plain := noise(rand.New(rand.NewPCG(1, 1)), chunkBytes)
	hashes := make([]uint64, chunkBytes/4096)
	build := pack.NewBuilder(keys, envelope.Pack, uuid.Nil, 3)
	b.SetBytes(chunkBytes)
	b.ReportAllocs()
	for b.Loop() {
		build.Append(chunk.ID{}, plain, pack.Raw, len(plain), hashes)
		if build.Full() {
			finish(b, build).Release()
			build = pack.NewBuilder(keys, envelope.Pack, uuid.Nil, 3)
		}
	}
}

func finish(b *testing.B, build *pack.Builder) pack.Packed {
	p, err := build.Finish()
	if err != nil {
		b.Fatal(err)
	}
	return p
}

func BenchmarkFrames(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 1))
	var contents [][]byte
	for range 64 {
		contents = append(contents, content(r, chunkBytes))
	}
	s := newStored(b, 3, contents...)
	reader := s.reader()
	b.SetBytes(64 * chunkBytes)
	b.ReportAllocs()
	for b.Loop() {
		err := reader.Frames(context.Background(), envelope.Pack, s.ID, s.frames(), func(int, []byte) error { return nil })
		if err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkFrame(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 1))
	var contents [][]byte
	for range 64 {
		contents = append(contents, content(r, chunkBytes))
	}
	s := newStored(b, 3, contents...)
	reader := s.reader()
	dst := make([]byte, 0, chunkBytes)
	b.SetBytes(chunkBytes)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		frame := i % 64
		if _, err := reader.Frame(context.Background(), envelope.Pack, s.place(frame), s.ids[frame], dst); err != nil {
			b.Fatal(err)
		}
	}
}
