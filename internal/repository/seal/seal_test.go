package seal

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"varve/internal/block"
	"varve/internal/objects"
	"varve/internal/repository/envelope"
)

// count returns n bytes that count up from first.
func count(first byte, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = first + byte(i)
	}
	return b
}

var repository = uuid.UUID(count(0, 16))

// fixedKeys are those of the known answers.
func fixedKeys() *Keys {
	return &Keys{
		Repository:  repository,
		Cipher:      envelope.AESGCM,
		Newest:      3,
		Generations: map[uint32][32]byte{1: {1}, 3: [32]byte(count(0x80, 32))},
		Identity:    [32]byte(count(0x20, 32)),
		Hash:        [32]byte(count(0x60, 32)),
	}
}

const recordName = "backups/0011223344556677"

func fixedHeader(k *Keys) envelope.Header {
	h := k.NewHeader(envelope.Record, recordName, uuid.UUID(count(0xf0, 16)), 3)
	copy(h.Salt[:], count(0x40, 32))
	return h
}

func mustFrames(t testing.TB, k *Keys, h envelope.Header) *Frames {
	t.Helper()
	f, err := k.Frames(h)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// The answers were computed by another program, in another language, from
// docs/format-repository.md and the specifications of BLAKE3, AES-GCM and
// HighwayHash.
func TestKnownAnswers(t *testing.T) {
	k, plain := fixedKeys(), PlainKeys(repository)
	record := []byte("a record, and what is in it")
	b := make([]byte, block.Size)
	for i := range b {
		b[i] = byte(i * i >> 3)
	}
	var hash [8]byte
	binary.BigEndian.PutUint64(hash[:], k.BlockHash(b))
	id := func(b []byte) []byte { id := k.ChunkID(b); return id[:] }
	fingerprint, generation := k.Fingerprint(), plain.Generations[0]
	sealed, tagged := mustFrames(t, k, fixedHeader(k)), mustFrames(t, plain, fixedHeader(plain))

	for _, tt := range []struct {
		what string
		got  []byte
		want string
	}{
		{"frame 0", sealed.Seal(nil, record, 0), "f663e9def0f50bfd484064d581a8cacb0aa1e0b43caaa5b548eb6dcc7fdde72cf70fd515e3859e9d18dbf0"},
		{"frame 1", sealed.Seal(nil, record, 1), "46ca58fdd64f090f9ee135bcb7a518b1cec07d4d23a8e3661573e2fc2206641409d032d355c27ff8f4e6e6"},
		{"frame of a large number", sealed.Seal(nil, record, 0x0102030405060708), "6fcd3d28f1df27c56d5348cd3a956df41aca091d46e97f19b41bfa6955f2413afe8ff0b28b2fd23253c1a3"},
		{"empty frame", sealed.Seal(nil, nil, 0), "749fc52e9905d191f894668cfc08f903"},
		{"id of a block", id(b), "4e3702b655868e89f87992879c8d605eaa9f7c7a30d31df941a56e147f2326a4"},
		{"id of nothing", id(nil), "4b57adcaf21ce6ec2187b5732f8e7537feffdd7951cf299f222e55172e33c881"},
		{"id of 256 KiB", id(bytes.Repeat(b, 64)), "4c2f016b817273404ad78adb032d2484bf9dbf9846bb6eca96ca3fd6540cbcfa"},
		{"hash of a block", hash[:], "4519a66fab255600"},
		{"fingerprint", fingerprint[:], "aebefa0e158d1d5674ca0fa58c7815aa"},
		{"generation key without encryption", generation[:], "3d1bb8684bac0b4ab5a71da832f75f79c0c9818254cfa8ec0598dcbade4e926d"},
		{"identity key without encryption", plain.Identity[:], "02562d57b1cf7a424869d996703ca596f14305533ae657550e247b900314165f"},
		{"hash key without encryption", plain.Hash[:], "1911467fd4abc1eeecb7ee2295e43e858eef998b56c123b5df47ca3d1aeadc24"},
		{"frame 0 without encryption", tagged.Seal(nil, record, 0), hex.EncodeToString(record) + "a21d7d09e0b70f436f0763b52781433f"},
		{"frame 7 without encryption", tagged.Seal(nil, record, 7), hex.EncodeToString(record) + "419f5d9c11b94bacda625edc7e020c1e"},
	} {
		if got := hex.EncodeToString(tt.got); got != tt.want {
			t.Errorf("%s: %s, not %s", tt.what, got, tt.want)
		}
	}
}

// both runs a test with encryption and without.
func both(t *testing.T, test func(t *testing.T, k *Keys)) {
	t.Run("encrypted", func(t *testing.T) { test(t, NewKeys(repository)) })
	t.Run("plain", func(t *testing.T) { test(t, PlainKeys(repository)) })
}

func TestFramesOpenAsTheyWereSealed(t *testing.T) {
	both(t, func(t *testing.T, k *Keys) {
		f := mustFrames(t, k, k.NewHeader(envelope.Pack, "packs/ab/abcd", uuid.Nil, 3))
		for number, size := range []int{0, 1, 15, 16, 17, 1023, 4096, 300_000} {
			plain := count(byte(size), size)
			sealed := f.Seal([]byte("before"), plain, uint64(number))
			if !bytes.HasPrefix(sealed, []byte("before")) || len(sealed) != 6+size+Overhead {
				t.Fatalf("%d bytes are sealed in %d", size, len(sealed)-6)
			}
			if k.Cipher == envelope.AESGCM && size > 15 && bytes.Contains(sealed, plain) {
				t.Fatal("the content can be read")
			}
			got, err := f.Open([]byte("prefix"), sealed[6:], uint64(number))
			if err != nil || !bytes.Equal(got, append([]byte("prefix"), plain...)) {
				t.Fatalf("%d bytes: %v", size, err)
			}
			// In place.
			room := append(bytes.Clone(plain), make([]byte, Overhead)...)
			if again := f.Seal(room[:0], room[:size], uint64(number)); !bytes.Equal(again, sealed[6:]) || &again[0] != &room[0] {
				t.Fatalf("%d bytes sealed in place are others", size)
			}
			if got, err := f.Open(room[:0], room, uint64(number)); err != nil || !bytes.Equal(got, plain) {
				t.Fatalf("%d bytes in place: %v", size, err)
			}
		}
	})
}

func TestEveryFlippedBitOfAFrameIsFound(t *testing.T) {
	both(t, func(t *testing.T, k *Keys) {
		f := mustFrames(t, k, k.NewHeader(envelope.Pack, "packs/ab/abcd", uuid.Nil, 3))
		sealed := f.Seal(nil, count(3, 100), 5)
		for bit := range 8 * len(sealed) {
			forged := bytes.Clone(sealed)
			forged[bit/8] ^= 1 << (bit % 8)
			if got, err := f.Open([]byte("kept"), forged, 5); !errors.Is(err, ErrForged) || string(got) != "kept" {
				t.Fatalf("bit %d: %q, %v", bit, got, err)
			}
		}
		for n := range sealed {
			if _, err := f.Open(nil, sealed[:n], 5); !errors.Is(err, ErrForged) {
				t.Fatalf("the first %d bytes: %v", n, err)
			}
		}
		if _, err := f.Open(nil, append(bytes.Clone(sealed), 0), 5); !errors.Is(err, ErrForged) {
			t.Fatal(err)
		}
	})
}

// A frame opens in its place of its object and nowhere else.
func TestFramesAreBoundToTheirPlace(t *testing.T) {
	both(t, func(t *testing.T, k *Keys) {
		k.Rotate()
		h := k.NewHeader(envelope.Pack, "packs/ab/abcd", uuid.UUID{7}, 3)
		sealed := mustFrames(t, k, h).Seal(nil, count(3, 100), 5)
		for _, number := range []uint64{0, 4, 6, 5 << 8, 5 | 1<<32, 5 | 1<<63} {
			if _, err := mustFrames(t, k, h).Open(nil, sealed, number); !errors.Is(err, ErrForged) {
				t.Fatalf("opened as frame %d: %v", number, err)
			}
		}
		for what, change := range map[string]func(h *envelope.Header){
			"version":    func(h *envelope.Header) { h.Version++ },
			"kind":       func(h *envelope.Header) { h.Kind = envelope.Nodes },
			"name":       func(h *envelope.Header) { h.NameHash = envelope.NameHash("packs/ab/abce") },
			"salt":       func(h *envelope.Header) { h.Salt[31] ^= 1 },
			"set":        func(h *envelope.Header) { h.Set = uuid.Nil },
			"generation": func(h *envelope.Header) { h.Generation = min(h.Generation, 1) },
			"repository": func(h *envelope.Header) { h.Repository[15] ^= 1 },
		} {
			other := h
			change(&other)
			if other == h {
				continue // without encryption there is one generation
			}
			keys := k
			if what == "repository" { // whoever forges the header may have another's name for the keys
				keys = &Keys{Repository: other.Repository, Cipher: k.Cipher, Newest: k.Newest, Generations: k.Generations}
			}
			if _, err := mustFrames(t, keys, other).Open(nil, sealed, 5); !errors.Is(err, ErrForged) {
				t.Errorf("opened under another %s: %v", what, err)
			}
		}
		// What is known only when the payload is may change.
		h.PayloadBytes, h.ShardBytes, h.DirectoryBytes, h.ParityPercent = 1000, 512, 10, 50
		if _, err := mustFrames(t, k, h).Open(nil, sealed, 5); err != nil {
			t.Fatal(err)
		}
	})
}

// Each header has a salt and with it a key of its own, and each number of it a nonce.
func TestNoKeyAndNonceComeTwice(t *testing.T) {
	both(t, func(t *testing.T, k *Keys) {
		seen := map[string]string{}
		for object := range 50 {
			h := k.NewHeader(envelope.Pack, "packs/ab/abcd", uuid.Nil, 3)
			f := mustFrames(t, k, h)
			for _, number := range []uint64{0, 1, 2, 255, 256, 1 << 31, 1 << 32, 1<<32 + 1, 1 << 63, 1<<64 - 1} {
				tag := string(f.Seal(nil, nil, number))
				what := fmt.Sprintf("frame %d of object %d", number, object)
				if other, ok := seen[tag]; ok {
					t.Fatalf("%s is sealed as %s was", what, other)
				}
				seen[tag] = what
			}
		}
	})
}

func TestKeysThatAreMissing(t *testing.T) {
	k := NewKeys(repository)
	old := k.NewHeader(envelope.Record, recordName, uuid.Nil, 3)
	k.Rotate()
	recent := k.NewHeader(envelope.Record, recordName, uuid.Nil, 3)
	if old.Generation != 1 || recent.Generation != 2 || k.Newest != 2 {
		t.Fatal(old.Generation, recent.Generation)
	}
	mustFrames(t, k, old)
	mustFrames(t, k, recent)
	delete(k.Generations, 1)
	for what, h := range map[string]envelope.Header{"a generation that is gone": old, "none": {Repository: repository, Kind: envelope.Record, Cipher: envelope.AESGCM}} {
		if _, err := k.Frames(h); !errors.Is(err, ErrNoKey) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := PlainKeys(repository).Frames(recent); !errors.Is(err, ErrNoKey) {
		t.Errorf("an encrypted object without keys: %v", err)
	}
	if _, err := NewKeys(uuid.UUID{5}).Frames(recent); !errors.Is(err, ErrForged) {
		t.Errorf("an object of another repository: %v", err)
	}
}

// Anybody can make an object of a repository without encryption; in one that is encrypted it must not be taken for its own.
func TestObjectThatIsNotEncryptedIsRefusedWhereAllAre(t *testing.T) {
	public := PlainKeys(repository)
	h := public.NewHeader(envelope.Record, recordName, uuid.Nil, 3)
	object, err := public.SealObject(h, []byte("forged"))
	if err != nil {
		t.Fatal(err)
	}
	k := NewKeys(repository)
	st := shelf{objects: map[string][]byte{recordName: bytes.Join(object, nil)}}
	if _, _, err := k.LoadObject(t.Context(), st, recordName, envelope.Record); !errors.Is(err, ErrForged) {
		t.Fatal(err)
	}
	h.Cipher = envelope.AESGCM // and it has no generation 0 either
	if _, err := k.Frames(h); !errors.Is(err, ErrNoKey) {
		t.Fatal(err)
	}
}

func TestWhatIsReadBeforeThereIsAKeyIsNotSealed(t *testing.T) {
	both(t, func(t *testing.T, k *Keys) {
		for kind := envelope.Config; kind <= envelope.Ledger; kind++ {
			h := k.NewHeader(kind, "config.0", uuid.Nil, 3)
			if h.Salt == [32]byte{} || h.Repository != repository || h.ParityPercent != 3 || h.NameHash != envelope.NameHash("config") {
				t.Errorf("%v: %+v", kind, h)
			}
			_, err := k.Frames(h)
			if kind > envelope.Slot {
				if err != nil || h.Cipher != k.Cipher || h.Generation != k.Newest {
					t.Errorf("%v: %+v, %v", kind, h, err)
				}
			} else if err == nil || h.Cipher != envelope.None || h.Generation != 0 {
				t.Errorf("%v: %+v, %v", kind, h, err)
			}
		}
	})
}

func TestIdentities(t *testing.T) {
	k, other := NewKeys(repository), NewKeys(repository)
	b := count(0, block.Size)
	id, hash, fingerprint := k.ChunkID(b), k.BlockHash(b), k.Fingerprint()
	if other.ChunkID(b) == id || other.BlockHash(b) == hash || other.Fingerprint() == fingerprint {
		t.Error("two repositories have the same identities")
	}
	k.Rotate()
	if k.ChunkID(b) != id || k.BlockHash(b) != hash || k.Fingerprint() != fingerprint {
		t.Error("identities change with a rotation")
	}
	if PlainKeys(uuid.UUID{1}).ChunkID(b) == PlainKeys(uuid.UUID{2}).ChunkID(b) {
		t.Error("two repositories without encryption have the same identities")
	}
	for bit := 0; bit < 8*len(b); bit += 37 {
		b[bit/8] ^= 1 << (bit % 8)
		if k.ChunkID(b) == id || k.BlockHash(b) == hash {
			t.Fatalf("bit %d changes nothing", bit)
		}
		b[bit/8] ^= 1 << (bit % 8)
	}
	plain := PlainKeys(repository)
	plain.Rotate()
	if plain.Newest != 0 || len(plain.Generations) != 1 {
		t.Error("keys without encryption were rotated")
	}
}

func TestIdentitiesConcurrently(t *testing.T) {
	both(t, func(t *testing.T, k *Keys) {
		f := mustFrames(t, k, k.NewHeader(envelope.Pack, "packs/ab/abcd", uuid.Nil, 3))
		done := make(chan error)
		const workers = 8
		for w := range workers {
			plain := bytes.Repeat([]byte{byte(w)}, 20_000)
			id := k.ChunkID(plain)
			go func() {
				for range 50 {
					if k.ChunkID(plain) != id {
						done <- errors.New("another id")
						return
					}
					got, err := f.Open(nil, f.Seal(nil, plain, uint64(w)), uint64(w))
					if err != nil || !bytes.Equal(got, plain) {
						done <- fmt.Errorf("another frame: %w", err)
						return
					}
				}
				done <- nil
			}()
		}
		for range workers {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	})
}

// shelf is a store in memory: what loading needs of one.
type shelf struct {
	objects.Store
	objects map[string][]byte
}

func (s shelf) Get(_ context.Context, name string) ([]byte, error) {
	b, ok := s.objects[name]
	if !ok {
		return nil, objects.ErrNotFound
	}
	return bytes.Clone(b), nil
}

func (s shelf) List(_ context.Context, prefix string, visit func(objects.Info) error) error {
	for _, name := range slices.Sorted(maps.Keys(s.objects)) {
		if strings.HasPrefix(name, prefix) {
			if err := visit(objects.Info{Name: name}); err != nil {
				return err
			}
		}
	}
	return nil
}

func TestObjects(t *testing.T) {
	both(t, func(t *testing.T, k *Keys) {
		st := shelf{objects: map[string][]byte{}}
		const other = "backups/8899aabbccddeeff"
		for i, name := range []string{recordName, other} {
			for _, size := range []int{0, 20, 5000} {
				object, err := k.SealObject(k.NewHeader(envelope.Record, name, uuid.Nil, 3), count(byte(i), size))
				if err != nil {
					t.Fatal(err)
				}
				st.objects[name] = bytes.Join(object, nil)
				h, got, err := k.LoadObject(t.Context(), st, name, envelope.Record)
				if err != nil || h.NameHash != envelope.NameHash(name) || !bytes.Equal(got, count(byte(i), size)) {
					t.Fatal(err)
				}
			}
		}

		// Damage is mended, a swap is found, and so is one with a header that fits.
		sound := st.objects[recordName]
		st.objects[recordName] = bytes.Clone(sound)
		clear(st.objects[recordName][:600])
		if _, got, err := k.LoadObject(t.Context(), st, recordName, envelope.Record); err != nil || !bytes.Equal(got, count(0, 5000)) {
			t.Fatal(err)
		}
		st.objects[recordName] = st.objects[other]
		if _, _, err := k.LoadObject(t.Context(), st, recordName, envelope.Record); !errors.Is(err, envelope.ErrForeign) {
			t.Fatalf("swapped: %v", err)
		}
		h, payload, err := envelope.Open(st.objects[other])
		if err != nil {
			t.Fatal(err)
		}
		h.NameHash = envelope.NameHash(recordName)
		st.objects[recordName] = build(t, h, payload)
		if _, _, err := k.LoadObject(t.Context(), st, recordName, envelope.Record); !errors.Is(err, ErrForged) {
			t.Fatalf("swapped, with its name forged: %v", err)
		}
		h, _, _ = envelope.Open(sound)
		st.objects[recordName] = build(t, h, payload)
		if _, _, err := k.LoadObject(t.Context(), st, recordName, envelope.Record); !errors.Is(err, ErrForged) {
			t.Fatalf("another's payload under its header: %v", err)
		}
		if _, _, err := k.LoadObject(t.Context(), st, "backups/none", envelope.Record); !errors.Is(err, objects.ErrNotFound) {
			t.Fatal(err)
		}
		if _, err := k.SealObject(k.NewHeader(envelope.Config, "config.0", uuid.Nil, 3), nil); err == nil {
			t.Fatal("a config was sealed")
		}
	})
}

func build(t *testing.T, h envelope.Header, payload []byte) []byte {
	t.Helper()
	object, err := envelope.Build(h, payload)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Join(object, nil)
}

func FuzzFramesOpen(f *testing.F) {
	k := fixedKeys()
	for _, keys := range []*Keys{k, PlainKeys(repository)} {
		f.Add(mustFrames(f, keys, fixedHeader(keys)).Seal(nil, []byte("a record, and what is in it"), 3), uint64(4))
	}
	f.Fuzz(func(t *testing.T, sealed []byte, number uint64) {
		for _, keys := range []*Keys{k, PlainKeys(repository)} {
			h := fixedHeader(keys)
			h.Salt[0]++ // nothing was sealed for this object
			if _, err := mustFrames(t, keys, h).Open(nil, sealed, number); !errors.Is(err, ErrForged) {
				t.Fatalf("opened: %v", err)
			}
		}
	})
}
