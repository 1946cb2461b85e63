package pack_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"pgregory.net/rapid"

	"varve/internal/objects/faulty"
	"varve/internal/repository/chunk"
	"varve/internal/repository/envelope"
	"varve/internal/repository/pack"
	"varve/internal/repository/seal"
)

func TestWhatIsPackedIsRead(t *testing.T) {
	ctx := context.Background()
	rapid.Check(t, func(rt *rapid.T) {
		keys := rapid.SampledFrom([]*seal.Keys{seal.NewKeys(repository), seal.PlainKeys(repository)}).Draw(rt, "keys")
		kind := rapid.SampledFrom([]envelope.Kind{envelope.Pack, envelope.Nodes}).Draw(rt, "kind")
		set := uuid.UUID(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(rt, "set"))
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 0))
		var contents [][]byte
		for range rapid.IntRange(1, 40).Draw(rt, "frames") {
			make := rapid.SampledFrom([]func(*rand.Rand, int) []byte{content, noise}).Draw(rt, "content")
			contents = append(contents, make(r, rapid.IntRange(1, 100_000).Draw(rt, "bytes")))
		}

		st := faulty.New()
		b := pack.NewBuilder(keys, kind, set, rapid.IntRange(0, 10).Draw(rt, "parity"))
		ids := fill(b, keys, contents...)
		payload := b.Bytes()
		p := store(t, st, b)
		h, stored, err := envelope.Load(ctx, st, p.Name, repository, kind)
		if err != nil || len(stored) != payload || h.ObjectBytes() != p.Bytes || h.Set != set || p.Set != set {
			rt.Fatalf("payload of %d bytes, said to be %d; %v, %v", len(stored), payload, h, err)
		}

		reader := pack.NewReader(st, keys, 1<<20)
		d, err := reader.Directory(ctx, kind, p.ID)
		if err != nil {
			rt.Fatal(err)
		}
		if diff := cmp.Diff(p.Entries, d.Entries(), cmp.Transformer("hashes", func(h []uint64) []uint64 { return append([]uint64{}, h...) })); diff != "" || d.Set() != set {
			rt.Fatal(diff)
		}
		for i, id := range ids {
			plain, err := reader.Frame(ctx, kind, chunk.Place{Pack: p.ID, Frame: uint32(i)}, id, []byte("before"))
			if err != nil || !bytes.Equal(plain, append([]byte("before"), contents[i]...)) {
				rt.Fatalf("frame %d: %v", i, err)
			}
			if frame, ok := d.Find(id); !ok || d.Entry(frame).ID != id || int(frame) > i {
				rt.Fatalf("%v found in frame %d, %v", id, frame, ok)
			}
		}
		var some []uint32
		for i := range ids {
			if r.IntN(2) == 0 {
				some = append(some, uint32(i))
			}
		}
		visited := 0
		err = reader.Frames(ctx, kind, p.ID, some, func(i int, plain []byte) error {
			if i != visited || !bytes.Equal(plain, contents[some[i]]) {
				rt.Fatalf("frame %d, visited after %d, is not what was packed", some[i], visited)
			}
			visited++
			return nil
		})
		if err != nil || visited != len(some) {
			rt.Fatalf("visited %d of %d: %v", visited, len(some), err)
		}
	})
}

func TestNamesOfPacks(t *testing.T) {
	id := chunk.PackID{0xab, 0xcd, 15: 1}
	for kind, name := range map[envelope.Kind]string{
		envelope.Pack:  "packs/ab/abcd0000000000000000000000000001",
		envelope.Nodes: "nodes/ab/abcd0000000000000000000000000001",
		envelope.Index: "index/abcd0000000000000000000000000001",
	} {
		if got := pack.Name(kind, id); got != name {
			t.Errorf("%v: %s, not %s", kind, got, name)
		}
		for _, name := range []string{name, name + "-1", name + "-23"} {
			if k, i, ok := pack.ParseName(name); k != kind || i != id || !ok {
				t.Errorf("%s is %v %v %v", name, k, i, ok)
			}
		}
		if got := pack.Prefix(kind); name[:6] != got {
			t.Errorf("prefix of %s is %s", name, got)
		}
	}
	for _, name := range []string{"packs/ab/abcd", "packs/00/abcd0000000000000000000000000001", "backups/abcd000000000000", "index/ABCD0000000000000000000000000001", ""} {
		if kind, id, ok := pack.ParseName(name); ok {
			t.Errorf("%q is %v %v", name, kind, id)
		}
	}
}

func TestBuilderFindsWhatItHolds(t *testing.T) {
	keys := seal.NewKeys(repository)
	b := pack.NewBuilder(keys, envelope.Pack, uuid.Nil, 3)
	r := rand.New(rand.NewPCG(1, 1))
	one, two := content(r, 5000), content(r, 6000)
	ids := fill(b, keys, one, two, one)
	if p, ok := b.Find(ids[1]); !ok || p != (chunk.Place{Pack: b.ID(), Frame: 1}) {
		t.Error(p, ok)
	}
	if p, ok := b.Find(ids[2]); !ok || p.Frame != 0 {
		t.Error("the first of two places is told", p, ok)
	}
	if _, ok := b.Find(chunk.ID{1}); ok {
		t.Error("found what is not there")
	}
}

func TestPackIsFull(t *testing.T) {
	keys := seal.PlainKeys(repository)
	b := pack.NewBuilder(keys, envelope.Pack, uuid.Nil, 0)
	plain := noise(rand.New(rand.NewPCG(1, 1)), 1<<20)
	for !b.Full() {
		fill(b, keys, plain)
	}
	if b.Bytes() < pack.TargetBytes || b.Bytes() > pack.TargetBytes+2<<20 {
		t.Errorf("full at %d bytes", b.Bytes())
	}
	b = pack.NewBuilder(keys, envelope.Nodes, uuid.Nil, 0)
	for i := 0; !b.Full(); i++ {
		b.Append(chunk.ID{byte(i), byte(i >> 8)}, plain[:1], pack.Raw, 1, nil)
	}
	if b.Count() != pack.MaxFrames {
		t.Errorf("full at %d frames", b.Count())
	}
	b.Append(chunk.ID{}, plain[:1], pack.Raw, 1, nil)
	if _, err := b.Finish(); err == nil {
		t.Error("a pack of more frames than there may be")
	}
}

func TestPacksThatCannotBe(t *testing.T) {
	keys := seal.NewKeys(repository)
	for name, b := range map[string]*pack.Builder{
		"empty":               pack.NewBuilder(keys, envelope.Pack, uuid.Nil, 3),
		"content too long":    pack.NewBuilder(keys, envelope.Pack, uuid.Nil, 3),
		"lengths that differ": pack.NewBuilder(keys, envelope.Pack, uuid.Nil, 3),
	} {
		switch name {
		case "content too long":
			b.Append(chunk.ID{}, make([]byte, pack.MaxPlainBytes+1), pack.Raw, pack.MaxPlainBytes+1, nil)
		case "lengths that differ":
			b.Append(chunk.ID{}, make([]byte, 10), pack.Raw, 11, nil)
		}
		if _, err := b.Finish(); err == nil {
			t.Errorf("%s: finished", name)
		}
	}
	keys.Newest++ // no such generation
	b := pack.NewBuilder(keys, envelope.Pack, uuid.Nil, 3)
	fill(b, keys, []byte("content"))
	if _, err := b.Finish(); err == nil {
		t.Error("sealed without a key")
	}
}

// Packs are built in memory that others were built in.
func TestReleasedMemoryIsUsedAgain(t *testing.T) {
	ctx := context.Background()
	st, keys := faulty.New(), seal.NewKeys(repository)
	r := rand.New(rand.NewPCG(3, 4))
	type one struct {
		p        pack.Packed
		ids      []chunk.ID
		contents [][]byte
	}
	var packs []one
	for i := range 4 {
		contents := [][]byte{noise(r, 700_000+i), content(r, 900_000), noise(r, 800_000), content(r, 100)}
		b := pack.NewBuilder(keys, envelope.Pack, uuid.Nil, 3)
		ids := fill(b, keys, contents...)
		p := store(t, st, b)
		p.Release()
		p.Release() // twice does no harm
		packs = append(packs, one{p, ids, contents})
	}
	reader := pack.NewReader(st, keys, 1<<20)
	for _, o := range packs {
		for i, id := range o.ids {
			plain, err := reader.Frame(ctx, envelope.Pack, chunk.Place{Pack: o.p.ID, Frame: uint32(i)}, id, nil)
			if err != nil || !bytes.Equal(plain, o.contents[i]) {
				t.Fatalf("pack %v frame %d: %v", o.p.ID, i, err)
			}
		}
	}
}

func TestBuilderHoldsThePackAndLittleMore(t *testing.T) {
	keys := seal.NewKeys(repository)
	plain := noise(rand.New(rand.NewPCG(1, 1)), 256<<10)
	hashes := make([]uint64, 64)
	heap := func() int64 {
		runtime.GC()
		runtime.GC() // twice empties pools
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	b := pack.NewBuilder(keys, envelope.Pack, uuid.Nil, 3)
	for i := 0; !b.Full(); i++ {
		b.Append(chunk.ID{byte(i)}, plain, pack.Raw, len(plain), hashes)
	}
	if held := heap() - before; held > 34<<20 {
		t.Errorf("%d bytes for a pack of %d", held, b.Bytes())
	}
	if _, err := b.Finish(); err != nil {
		t.Fatal(err)
	}
}

func TestEncoding(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for _, n := range []int{0, 1, 100, 4096, 65536, 262144, 1 << 20, pack.MaxPlainBytes} {
		for name, plain := range map[string][]byte{"content": content(r, n), "noise": noise(r, n), "zeros": make([]byte, n)} {
			encoded, enc := pack.Encode(nil, plain)
			if len(encoded) > len(plain) {
				t.Errorf("%d bytes of %s take %d", n, name, len(encoded))
			}
			if name != "noise" && n >= 4096 && (enc != pack.Zstd || len(encoded) > n*3/4) {
				t.Errorf("%d bytes of %s are encoded as %v in %d", n, name, enc, len(encoded))
			}
			if name == "noise" && n > 0 && (enc != pack.Raw || &encoded[0] != &plain[0]) {
				t.Errorf("%d bytes of %s are encoded as %v", n, name, enc)
			}
			decoded, err := pack.Decode([]byte("before"), encoded, enc, n)
			if err != nil || !bytes.Equal(decoded, append([]byte("before"), plain...)) {
				t.Errorf("%d bytes of %s: %v", n, name, err)
			}
			for _, wrong := range []int{n - 1, n + 1, n + 17} {
				if wrong < 0 {
					continue
				}
				if decoded, err := pack.Decode(nil, encoded, enc, wrong); err == nil {
					t.Errorf("%d bytes of %s decode to %d", n, name, len(decoded))
				}
			}
		}
	}
	if _, err := pack.Decode(nil, nil, 7, 0); err == nil {
		t.Error("decoded an unknown encoding")
	}
}

// Noise at the beginning must not keep the rest from being compressed.
func TestContentOfTwoKinds(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	plain := slices.Concat(noise(r, 100<<10), make([]byte, 156<<10))
	if encoded, enc := pack.Encode(nil, plain); enc != pack.Zstd || len(encoded) > 102<<10 {
		t.Errorf("%v, %d bytes", enc, len(encoded))
	}
}
