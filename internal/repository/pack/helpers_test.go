package pack_test

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/google/uuid"

	"varve/internal/objects"
	"varve/internal/objects/faulty"
	"varve/internal/repository/chunk"
	"varve/internal/repository/envelope"
	"varve/internal/repository/pack"
	"varve/internal/repository/seal"
)

var repository = uuid.MustParse("0b9d4c1e-7f44-4c5a-9a55-1d6a2f7b8c90")

// content returns n bytes, of which about half can be compressed away.
func content(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := 0; i < n; i += 64 {
		for j := i; j < min(i+32, n); j++ {
			b[j] = byte(r.Uint32())
		}
	}
	return b
}

func noise(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// fill appends contents to a builder, each with as many hashes as it has blocks.
func fill(b *pack.Builder, k *seal.Keys, contents ...[]byte) []chunk.ID {
	var ids []chunk.ID
	for _, plain := range contents {
		id := k.ChunkID(plain)
		encoded, enc := pack.Encode(nil, plain)
		hashes := make([]uint64, len(plain)/4096)
		for i := range hashes {
			hashes[i] = binary.LittleEndian.Uint64(id[:]) + uint64(i)
		}
		b.Append(id, encoded, enc, len(plain), hashes)
		ids = append(ids, id)
	}
	return ids
}

// store finishes a pack and puts it.
func store(t testing.TB, st objects.Store, b *pack.Builder) pack.Packed {
	t.Helper()
	p, err := b.Finish()
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Put(context.Background(), p.Name, p.Object, objects.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	return p
}

// stored is a pack of chunks in a store of its own.
type stored struct {
	st       *faulty.Store
	keys     *seal.Keys
	contents [][]byte
	ids      []chunk.ID
	pack.Packed
}

func newStored(t testing.TB, parityPercent int, contents ...[]byte) *stored {
	t.Helper()
	s := &stored{st: faulty.New(), keys: seal.NewKeys(repository), contents: contents}
	b := pack.NewBuilder(s.keys, envelope.Pack, uuid.Nil, parityPercent)
	s.ids = fill(b, s.keys, contents...)
	s.Packed = store(t, s.st, b)
	return s
}

// large is a pack that is longer than what is read at once with its directory.
func large(t testing.TB, parityPercent int) *stored {
	r := rand.New(rand.NewPCG(1, 2))
	var contents [][]byte
	for range 24 {
		contents = append(contents, content(r, 64<<10))
	}
	for range 4 {
		contents = append(contents, noise(r, 16<<10))
	}
	return newStored(t, parityPercent, contents...)
}

func (s *stored) reader() *pack.Reader { return pack.NewReader(s.st, s.keys, 1<<20) }

func (s *stored) place(frame int) chunk.Place {
	return chunk.Place{Pack: s.ID, Frame: uint32(frame)}
}

func (s *stored) frames() []uint32 {
	frames := make([]uint32, len(s.ids))
	for i := range frames {
		frames[i] = uint32(i)
	}
	return frames
}
