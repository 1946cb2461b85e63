package keys

import (
	"bytes"
	"encoding/hex"
	"io"
	"regexp"
	"testing"

	"filippo.io/age"
	"filippo.io/age/armor"
	"github.com/fxamacker/cbor/v2"
	"golang.org/x/crypto/argon2"

	"varve/internal/objects/faulty"
	"varve/internal/repository/seal"
)

// TestOpeningByHand does with the stored bytes what docs/format-repository.md tells people to do with sed, argon2 and age.
func TestOpeningByHand(t *testing.T) {
	st := faulty.New()
	r, err := Create(t.Context(), st, seal.NewKeys(repository), []Add{{Label: "office", Passphrase: []byte("correct horse")}})
	if err != nil {
		t.Fatal(err)
	}
	file := regexp.MustCompile(`(?s)-----BEGIN AGE ENCRYPTED FILE-----\n.*?-----END AGE ENCRYPTED FILE-----\n`)
	decrypt := func(object []byte, id age.Identity) []byte {
		t.Helper()
		plain, err := age.Decrypt(armor.NewReader(bytes.NewReader(file.Find(object))), id)
		if err != nil {
			t.Fatal(err)
		}
		all, err := io.ReadAll(plain)
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	slot := st.Bytes("keys/slot-" + r.Methods[0].ID + ".0")
	if !bytes.Contains(slot, []byte("\nlabel office\n")) || !bytes.Contains(slot, []byte("\nargon2id 3 65536 4\n")) {
		t.Fatalf("the slot does not say what it is: %q", slot)
	}
	salt := regexp.MustCompile(`\nsalt ([0-9a-f]{32})\n`).FindSubmatch(slot)[1]
	key := hex.EncodeToString(argon2.IDKey([]byte("correct horse"), salt, 3, 65536, 4, 32))
	id, err := age.NewScryptIdentity(key)
	if err != nil {
		t.Fatal(err)
	}
	ids, err := age.ParseIdentities(bytes.NewReader(decrypt(slot, id)))
	if err != nil {
		t.Fatal(err)
	}
	var ring map[int]any
	if err := cbor.Unmarshal(decrypt(st.Bytes("keys/ring-00000001.0"), ids[0]), &ring); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[int][]byte{1: repository[:], 6: r.Keys.Identity[:], 7: r.Keys.Hash[:]} {
		if got, _ := ring[key].([]byte); !bytes.Equal(got, want) {
			t.Errorf("key %d: %x, want %x", key, got, want)
		}
	}
	generation := r.Keys.Generations[1]
	if got, _ := ring[5].(map[any]any)[uint64(1)].([]byte); !bytes.Equal(got, generation[:]) {
		t.Errorf("generation 1: %x", got)
	}
}
