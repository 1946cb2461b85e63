package keys

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"filippo.io/age"
	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"varve/internal/objects"
	"varve/internal/objects/faulty"
	"varve/internal/repository/envelope"
	"varve/internal/repository/seal"
)

// cheap is a cost that tests can pay many times.
var cheap = Cost{Passes: 1, MemoryKiB: 8, Lanes: 1}

var noOptions objects.PutOptions

var repository = uuid.MustParse("6f2d3c1e-8a4b-4c5d-9e7f-102030405060")

func passphrase(text string) Add {
	return Add{Label: text, Passphrase: []byte(text), Cost: cheap}
}

func with(text string) Unlock { return Unlock{Passphrase: []byte(text)} }

// create makes a ring that the passphrases open.
func create(t testing.TB, st *faulty.Store, passphrases ...string) *Ring {
	t.Helper()
	var add []Add
	for _, p := range passphrases {
		add = append(add, passphrase(p))
	}
	r, err := Create(t.Context(), st, seal.NewKeys(repository), add)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func open(t testing.TB, st *faulty.Store, u Unlock) *Ring {
	t.Helper()
	r, err := Open(t.Context(), st, repository, u)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func wantErr(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got error %v, want %v", err, want)
	}
}

// sameKeys fails unless both have the same secrets.
func sameKeys(t testing.TB, got, want *seal.Keys) {
	t.Helper()
	if d := diffKeys(got, want); d != "" {
		t.Fatal(d)
	}
}

func diffKeys(got, want *seal.Keys) string {
	type secrets struct {
		R    uuid.UUID
		C    envelope.Cipher
		N    uint32
		G    map[uint32][32]byte
		I, H [32]byte
	}
	of := func(k *seal.Keys) secrets {
		return secrets{k.Repository, k.Cipher, k.Newest, k.Generations, k.Identity, k.Hash}
	}
	return cmp.Diff(of(want), of(got))
}

func classic(t testing.TB) *age.X25519Identity {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestEachMethodOpensTheSameKeys(t *testing.T) {
	st := faulty.New()
	alice := classic(t)
	k := seal.NewKeys(repository)
	k.Rotate()
	made, err := Create(t.Context(), st, k, []Add{passphrase("one"), {Label: "alice", Recipient: alice.Recipient().String()}, passphrase("two")})
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range []Unlock{with("one"), with("two"), {Identities: []age.Identity{classic(t), alice}}, {Passphrase: []byte("no"), Identities: []age.Identity{alice}}} {
		r := open(t, st, u)
		sameKeys(t, r.Keys, k)
		if d := cmp.Diff(made.Methods, r.Methods); d != "" {
			t.Fatal(d)
		}
		if r.Revision != 1 || len(r.Unreadable) != 0 {
			t.Fatalf("revision %d, unreadable %v", r.Revision, r.Unreadable)
		}
	}
	kinds := []string{made.Methods[0].Kind, made.Methods[1].Kind, made.Methods[2].Kind}
	if d := cmp.Diff([]string{KindPassphrase, KindAge, KindPassphrase}, kinds); d != "" {
		t.Fatal(d)
	}
	for _, name := range st.Names() {
		for _, secret := range [][]byte{k.Identity[:], k.Hash[:], []byte("AGE-SECRET-KEY")} {
			if bytes.Contains(st.Bytes(name), secret) {
				t.Fatalf("%s tells a secret", name)
			}
		}
		if strings.Contains(string(st.Bytes(name)), alice.Recipient().String()) {
			t.Fatalf("%s names a recipient", name)
		}
	}
}

func TestWrongKeysSayWhatThereIs(t *testing.T) {
	st := faulty.New()
	create(t, st, "office", "home")
	for _, u := range []Unlock{{}, with("Office"), with("office "), {Identities: []age.Identity{classic(t)}}, {Passphrase: []byte("x"), Identities: []age.Identity{classic(t)}}} {
		_, err := Open(t.Context(), st, repository, u)
		wantErr(t, err, ErrWrongKey)
		for _, label := range []string{`passphrase "office"`, `passphrase "home"`} {
			if !strings.Contains(err.Error(), label) {
				t.Errorf("%v does not name %s", err, label)
			}
		}
	}
	known, err := List(t.Context(), st, repository)
	if err != nil || len(known) != 2 || known[0].Recipient != "" || known[0].Kind != KindPassphrase {
		t.Fatalf("known without a key: %v, %v", known, err)
	}
}

func TestNoKeysAtAll(t *testing.T) {
	_, err := Open(t.Context(), faulty.New(), repository, with("x"))
	wantErr(t, err, envelope.ErrLost)
}

func TestKeysOfAnotherRepositoryAreNotOpened(t *testing.T) {
	st := faulty.New()
	create(t, st, "x")
	_, err := Open(t.Context(), st, uuid.New(), with("x"))
	wantErr(t, err, envelope.ErrLost)
}

func TestPostQuantumRecipients(t *testing.T) {
	st := faulty.New()
	id, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	r, err := Create(t.Context(), st, seal.NewKeys(repository), []Add{passphrase("x"), {Recipient: id.Recipient().String()}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.AddMethod(t.Context(), st, passphrase("y")); err != nil {
		t.Fatal(err)
	}
	for _, u := range []Unlock{with("x"), with("y"), {Identities: []age.Identity{id}}} {
		sameKeys(t, open(t, st, u).Keys, r.Keys)
	}
	if _, err := r.AddMethod(t.Context(), st, Add{Recipient: classic(t).Recipient().String()}); err == nil {
		t.Fatal("a classic recipient beside a post-quantum one")
	}
	sameKeys(t, open(t, st, with("y")).Keys, r.Keys)
}

func TestWhatCannotBeAdded(t *testing.T) {
	alice := classic(t)
	recipient := alice.Recipient().String()
	for name, add := range map[string][]Add{
		"nothing":       {},
		"neither":       {{Label: "x"}},
		"both":          {{Passphrase: []byte("x"), Recipient: recipient}},
		"secret":        {{Recipient: alice.String()}},
		"mistyped":      {{Recipient: recipient[:len(recipient)-1] + "b"}},
		"long label":    {{Recipient: recipient, Label: strings.Repeat("x", MaxLabelBytes+1)}},
		"line in label": {{Recipient: recipient, Label: "x\ny"}},
		"bad label":     {{Recipient: recipient, Label: "\xff"}},
		"too cheap":     {{Passphrase: []byte("x"), Cost: Cost{1, 7, 1}}},
		"too costly":    {{Passphrase: []byte("x"), Cost: Cost{1, MaxCost.MemoryKiB + 1, 1}}},
		"too many":      slices.Repeat([]Add{passphrase("x")}, MaxMethods+1),
	} {
		t.Run(name, func(t *testing.T) {
			st := faulty.New()
			_, err := Create(t.Context(), st, seal.NewKeys(repository), add)
			wantErr(t, err, ErrInvalid)
			if strings.Contains(err.Error(), alice.String()) {
				t.Fatal("the error tells the secret")
			}
			if len(st.Names()) > 0 {
				t.Fatal("wrote", st.Names())
			}
		})
	}
	st := faulty.New()
	_, err := Create(t.Context(), st, seal.NewKeys(repository), []Add{{Recipient: recipient}, {Recipient: " " + strings.ToUpper(recipient)}})
	wantErr(t, err, ErrExists)
}

func TestRemovedMethodReadsNothingNew(t *testing.T) {
	ctx := t.Context()
	st := faulty.New()
	bob := classic(t)
	r := create(t, st, "boss", "guest")
	m, err := r.AddMethod(ctx, st, Add{Label: "bob", Recipient: bob.Recipient().String()})
	if err != nil {
		t.Fatal(err)
	}
	kept := st.Clone() // what the two may have copied
	if err := r.RemoveMethod(ctx, st, m.ID); err != nil {
		t.Fatal(err)
	}
	if err := r.RemoveMethod(ctx, st, r.Methods[1].ID); err != nil {
		t.Fatal(err)
	}
	if err := r.Rotate(ctx, st); err != nil {
		t.Fatal(err)
	}
	h := r.Keys.NewHeader(envelope.Record, "backups/x", uuid.Nil, 0)
	object, err := r.Keys.SealObject(h, []byte("new"))
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Put(ctx, "backups/x", object, noOptions); err != nil {
		t.Fatal(err)
	}

	for _, u := range []Unlock{with("guest"), {Identities: []age.Identity{bob}}} {
		_, err := Open(ctx, st, repository, u)
		wantErr(t, err, ErrWrongKey)
		old := open(t, kept, u)
		_, _, err = old.Keys.LoadObject(ctx, st, "backups/x", envelope.Record)
		wantErr(t, err, seal.ErrNoKey)
	}
	_, content, err := open(t, st, with("boss")).Keys.LoadObject(ctx, st, "backups/x", envelope.Record)
	if err != nil || string(content) != "new" {
		t.Fatalf("%q, %v", content, err)
	}
	// The slot that was copied, put back, is of no use.
	for _, name := range kept.Names() {
		if strings.HasPrefix(name, "keys/slot-") && st.Bytes(name) == nil {
			st.Plant(name, kept.Bytes(name))
		}
	}
	_, err = Open(ctx, st, repository, with("guest"))
	wantErr(t, err, ErrWrongKey)
	if !strings.Contains(err.Error(), `"guest"`) {
		t.Fatalf("does not name the slot: %v", err)
	}
	// Nor is the ring that was copied: it is told apart from a key that was never one.
	for _, name := range kept.Names() {
		if strings.HasPrefix(name, "keys/ring-") {
			st.Plant(name, kept.Bytes(name))
		}
	}
	_, err = Open(ctx, st, repository, with("guest"))
	wantErr(t, err, ErrWrongKey)
	if !strings.Contains(err.Error(), "opens the keys of revision 2, but has been removed") {
		t.Fatalf("does not say why: %v", err)
	}
	sameKeys(t, open(t, st, with("boss")).Keys, r.Keys)
}

func TestChangesLeaveOneRingAndNoUnusedSlot(t *testing.T) {
	ctx := t.Context()
	st := faulty.New()
	r := create(t, st, "a")
	steps := []func() error{
		func() error { _, err := r.AddMethod(ctx, st, passphrase("b")); return err },
		func() error { return r.Rotate(ctx, st) },
		func() error { return r.RemoveMethod(ctx, st, r.Methods[0].ID) },
		func() error { return r.Rotate(ctx, st) },
	}
	for i, step := range steps {
		before := r.Keys
		if err := step(); err != nil {
			t.Fatal(err)
		}
		var want []string
		for n := range 3 {
			want = append(want, fmt.Sprintf("keys/ring-%08d.%d", i+2, n))
		}
		for _, m := range r.Methods {
			for n := range 3 {
				want = append(want, fmt.Sprintf("keys/slot-%s.%d", m.ID, n))
			}
		}
		slices.Sort(want)
		if d := cmp.Diff(want, st.Names()); d != "" {
			t.Fatalf("step %d: %s", i, d)
		}
		if r.Keys.Identity != before.Identity || r.Keys.Hash != before.Hash || r.Keys.Generations[1] != before.Generations[1] {
			t.Fatal("keys that must stay have changed")
		}
	}
	if r.Keys.Newest != 3 || len(r.Keys.Generations) != 3 {
		t.Fatalf("generation %d of %d after two rotations", r.Keys.Newest, len(r.Keys.Generations))
	}
	wantErr(t, r.RemoveMethod(ctx, st, r.Methods[0].ID), ErrLastMethod)
	wantErr(t, r.RemoveMethod(ctx, st, "nobody"), ErrNoMethod)
	sameKeys(t, open(t, st, with("b")).Keys, r.Keys)
}

func TestRotateLeavesOpenKeysAlone(t *testing.T) {
	st := faulty.New()
	r := create(t, st, "a")
	before := r.Keys
	if err := r.Rotate(context.Background(), st); err != nil {
		t.Fatal(err)
	}
	if before.Newest != 1 || len(before.Generations) != 1 {
		t.Fatal("keys in use were changed")
	}
}

func TestReadingSecrets(t *testing.T) {
	for text, want := range map[string]string{"x": "x", "x\n": "x", " x y \r\nz": " x y ", "\xff\n": "\xff"} {
		got, err := ReadPassphrase(strings.NewReader(text))
		if err != nil || string(got) != want {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "\n", "\r\n", "\nx", strings.Repeat("x", maxPassphraseBytes+1)} {
		_, err := ReadPassphrase(strings.NewReader(text))
		wantErr(t, err, ErrInvalid)
	}
	id := classic(t)
	ids, err := ReadIdentities(strings.NewReader("# made today\n" + id.String() + "\n"))
	if err != nil || len(ids) != 1 {
		t.Fatal(ids, err)
	}
	_, err = ReadIdentities(strings.NewReader(id.String()[:40] + "\n"))
	wantErr(t, err, ErrInvalid)
	if strings.Contains(err.Error(), id.String()[20:40]) {
		t.Fatal("the error tells the secret")
	}
}

// Under a retention older keys stay, which is no reason for a change to fail, unless somebody was removed whom they still let in.
func TestKeysUnderARetention(t *testing.T) {
	ctx := t.Context()
	st := faulty.New()
	st.SetLockable(true)
	r := create(t, st, "boss", "guest")
	for _, name := range st.Names() {
		if err := st.Retain(ctx, name, st.Now().Add(day)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := r.AddMethod(ctx, st, passphrase("another")); err != nil {
		t.Error(err)
	}
	if err := r.Rotate(ctx, st); err != nil {
		t.Error(err)
	}
	err := r.RemoveMethod(ctx, st, r.Methods[1].ID)
	wantErr(t, err, ErrLeftover)
	wantErr(t, err, objects.ErrLocked)
	_, err = Open(ctx, st, repository, with("guest"))
	wantErr(t, err, ErrWrongKey)
	st.Advance(2 * day)
	if err := r.Rotate(ctx, st); err != nil {
		t.Error(err)
	}
	p, err := look(ctx, st)
	if err != nil || len(p.rings) != 1 || len(p.slots) != 2 {
		t.Errorf("there are %d rings and %d slots, %v", len(p.rings), len(p.slots), err)
	}
	sameKeys(t, open(t, st, with("another")).Keys, r.Keys)
}
