package keys

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"

	"filippo.io/age"

	"varve/internal/objects"
	"varve/internal/objects/faulty"
	"varve/internal/repository/copies"
	"varve/internal/repository/envelope"
	"varve/internal/repository/seal"
)

// damages are what may happen to a copy.
var damages = map[string]func(st *faulty.Store, name string){
	"lost":      func(st *faulty.Store, name string) { st.Lose(name) },
	"empty":     func(st *faulty.Store, name string) { st.Plant(name, nil) },
	"truncated": func(st *faulty.Store, name string) { st.Plant(name, st.Bytes(name)[:len(st.Bytes(name))/3]) },
	"zeroed":    func(st *faulty.Store, name string) { st.Plant(name, make([]byte, len(st.Bytes(name)))) },
	"foreign": func(st *faulty.Store, name string) {
		for _, other := range st.Names() {
			if name[:10] != other[:10] {
				st.Plant(name, st.Bytes(other))
			}
		}
	},
	"of another kind of text": func(st *faulty.Store, name string) {
		h, _, err := envelope.Open(st.Bytes(name))
		if err != nil {
			panic(err)
		}
		object, err := envelope.Build(h, []byte("varve nothing 1\n"))
		if err != nil {
			panic(err)
		}
		st.Plant(name, slices.Concat(object...))
	},
}

// stems are those of a place with one ring and one slot.
func stems(st *faulty.Store) (all []string) {
	for _, name := range st.Names() {
		if stem, ok := strings.CutSuffix(name, ".0"); ok {
			all = append(all, stem)
		}
	}
	return all
}

func TestAnyCopyWillDo(t *testing.T) {
	whole := faulty.New()
	r := create(t, whole, "x")
	for kind, damage := range damages {
		for _, stem := range stems(whole) {
			for survivor := range copies.Count {
				t.Run(fmt.Sprintf("%s,%.9s,%d", kind, stem, survivor), func(t *testing.T) {
					st := whole.Clone()
					for n := range copies.Count {
						if n != survivor {
							damage(st, copies.Name(stem, n))
						}
						sameKeys(t, open(t, st, with("x")).Keys, r.Keys)
					}
					if kind == "of another kind of text" {
						return // sound, seen from outside: nobody can tell without the key which copy is genuine
					}
					written, err := Complete(t.Context(), st, repository)
					if err != nil || len(written) != 2 {
						t.Fatalf("wrote %v, %v", written, err)
					}
					for n := range copies.Count {
						_, _, err := envelope.Load(t.Context(), st, copies.Name(stem, n), repository, map[bool]envelope.Kind{true: envelope.Ring, false: envelope.Slot}[strings.Contains(stem, "ring")])
						if err != nil {
							t.Fatal(err)
						}
					}
				})
			}
		}
	}
}

func TestAllCopiesLost(t *testing.T) {
	whole := faulty.New()
	r := create(t, whole, "x")
	alice := classic(t)
	if _, err := r.AddMethod(t.Context(), whole, Add{Recipient: alice.Recipient().String()}); err != nil {
		t.Fatal(err)
	}
	for kind, damage := range damages {
		for _, stem := range stems(whole) {
			t.Run(kind+","+stem, func(t *testing.T) {
				st := whole.Clone()
				for n := range copies.Count {
					damage(st, copies.Name(stem, n))
				}
				_, err := Open(t.Context(), st, repository, with("x"))
				if strings.Contains(stem, "slot") {
					wantErr(t, err, ErrWrongKey)
					if kind == "truncated" {
						wantErr(t, err, envelope.ErrLost)
					}
					sameKeys(t, open(t, st, Unlock{Identities: []age.Identity{alice}}).Keys, r.Keys)
				} else if !errors.Is(err, envelope.ErrLost) && !errors.Is(err, envelope.ErrDamaged) {
					t.Fatal(err)
				}
			})
		}
	}
}

// TestEveryTruncation cuts all copies at every length: what opens is right, what does not says so.
func TestEveryTruncation(t *testing.T) {
	whole := faulty.New()
	alice := classic(t)
	r, err := Create(t.Context(), whole, seal.NewKeys(repository), []Add{passphrase("x"), {Recipient: alice.Recipient().String()}})
	if err != nil {
		t.Fatal(err)
	}
	for _, stem := range stems(whole) {
		u := with("x")
		if strings.Contains(stem, "ring") {
			u = Unlock{Identities: []age.Identity{alice}}
		}
		size := len(whole.Bytes(stem + ".0"))
		opened := 0
		for length := range size {
			st := whole.Clone()
			for n := range copies.Count {
				st.Plant(copies.Name(stem, n), whole.Bytes(stem + ".0")[:length])
			}
			got, err := Open(t.Context(), st, repository, u)
			switch {
			case err == nil:
				opened++
				sameKeys(t, got.Keys, r.Keys)
			case !errors.Is(err, envelope.ErrLost):
				t.Fatalf("%s cut to %d bytes: %v", stem, length, err)
			}
		}
		if opened == 0 {
			t.Fatalf("%s: parity mended none of %d truncations", stem, size)
		}
	}
}

func TestDecodersRefuseEveryTruncation(t *testing.T) {
	r, s := fixture(t)
	wrapped, err := r.encode()
	if err != nil {
		t.Fatal(err)
	}
	content, err := r.content(true)
	if err != nil {
		t.Fatal(err)
	}
	export, err := r.Export()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		whole  []byte
		decode func([]byte) error
	}{
		"slot":    {s.encode(), func(p []byte) error { _, err := decodeSlot(p); return err }},
		"ring":    {wrapped, func(p []byte) error { _, err := decodeWrapped(p); return err }},
		"content": {content, func(p []byte) error { _, err := decodeContent(p); return err }},
		"export":  {bytes.TrimRight(export, "\n"), func(p []byte) error { _, err := decodeExport(p); return err }},
	} {
		if err := c.decode(c.whole); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for n := range c.whole {
			if c.decode(c.whole[:n]) == nil {
				t.Fatalf("%s: cut to %d of %d bytes it is taken for whole", name, n, len(c.whole))
			}
		}
	}
}

// TestRingChecksItsContent has an age file that opens and is not what it should be.
func TestRingChecksItsContent(t *testing.T) {
	r, _ := fixture(t)
	id := classic(t)
	r.Methods = append(r.Methods, Method{ID: newID(), Kind: KindAge, Recipient: id.Recipient().String()})
	payload, err := r.encode()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		old, new string
		err      error
	}{
		"untouched":  {"", "", nil},
		"revision":   {"revision 7\n", "revision 8\n", envelope.ErrDamaged},
		"generation": {"generation 2\n", "generation 3\n", envelope.ErrDamaged},
		"newer":      {"ring 1\n", "ring 2\n", envelope.ErrNewer},
	} {
		w, err := decodeWrapped(bytes.Replace(payload, []byte(c.old), []byte(c.new), 1))
		if err == nil {
			_, err = w.open(repository, id)
		}
		if !errors.Is(err, c.err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	w, err := decodeWrapped(payload)
	if err != nil {
		t.Fatal(err)
	}
	other := repository
	other[3]++
	_, err = w.open(other, id)
	wantErr(t, err, envelope.ErrForeign)
}

// TestIncompleteKeysAreRefused leaves out each thing that a ring must have.
func TestIncompleteKeysAreRefused(t *testing.T) {
	for name, spoil := range map[string]func(r *Ring){
		"newest":     func(r *Ring) { r.Keys.Newest = 3 },
		"none":       func(r *Ring) { clear(r.Keys.Generations) },
		"beyond":     func(r *Ring) { r.Keys.Generations[9] = [32]byte{1} },
		"generation": func(r *Ring) { r.Keys.Generations[0] = [32]byte{1} },
		"cipher":     func(r *Ring) { r.Keys.Cipher = envelope.None },
		"revision":   func(r *Ring) { r.Revision = 0 },
	} {
		r, _ := fixture(t)
		spoil(r)
		p, err := r.content(true)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeContent(p); !errors.Is(err, envelope.ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// forge puts a slot as whoever can write to the store may.
func forge(t testing.TB, st *faulty.Store, payload []byte, id string) {
	t.Helper()
	if err := copies.Put(t.Context(), st, slotStem(id), envelope.Slot, repository, payload); err != nil {
		t.Fatal(err)
	}
}

func TestForgedSlotsCostLittle(t *testing.T) {
	st := faulty.New()
	r := create(t, st, "x")
	_, s := fixture(t)
	for _, cost := range []string{
		"3 67108864 4", "17 65536 4", "3 1048577 4", "3 65536 17", "0 65536 4", "3 0 4", "3 65536 0", "3 7 1",
		"4294967295 4294967295 255", "4294967296 65536 4", "-1 65536 4", "3 65536", "3 65536 4 4", "03 65536 4", "",
	} {
		s.ID = newID()
		forge(t, st, bytes.Replace(s.encode(), []byte("argon2id 1 8 1"), []byte("argon2id "+cost), 1), s.ID)
	}
	for range 200 {
		s.ID = newID()
		forge(t, st, s.encode(), s.ID)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	sameKeys(t, open(t, st, with("x")).Keys, r.Keys)
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 64<<20 {
		t.Fatalf("%d bytes allocated", grown)
	}
	// A file that asks scrypt for more than slots ever do.
	dear, err := age.NewScryptRecipient(s.stretch([]byte("x")))
	if err != nil {
		t.Fatal(err)
	}
	dear.SetWorkFactor(scryptLogN + 1)
	if s.sealed, err = encrypt([]byte(classic(t).String()+"\n"), dear); err != nil {
		t.Fatal(err)
	}
	_, err = s.open([]byte("x"))
	wantErr(t, err, envelope.ErrDamaged)
}

// TestSlotsMakeNoRecipients has an intruder write slots of his own, whole in every way: no change wraps the ring for them.
func TestSlotsMakeNoRecipients(t *testing.T) {
	ctx := t.Context()
	st := faulty.New()
	r := create(t, st, "x")
	_, intruder := fixture(t) // its passphrase is "fixture"
	forge(t, st, intruder.encode(), intruder.ID)
	genuine := r.Methods[0]
	for _, c := range changes {
		if err := c.do(ctx, st, r); err != nil && !errors.Is(err, ErrNoMethod) {
			t.Fatal(err)
		}
		_, err := Open(ctx, st, repository, with("fixture"))
		wantErr(t, err, ErrWrongKey)
	}
	// Nor does a genuine slot that he puts his own identity into.
	intruder.ID = genuine.ID
	for n := range copies.Count {
		st.Lose(copies.Name(slotStem(genuine.ID), n))
	}
	forge(t, st, intruder.encode(), genuine.ID)
	if err := r.Rotate(ctx, st); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"fixture", "x"} {
		_, err := Open(ctx, st, repository, with(p))
		wantErr(t, err, ErrWrongKey)
	}
	sameKeys(t, open(t, st, with("new")).Keys, r.Keys)
}

// TestForgedRingIsNotTheRepositorys has an intruder, who knows a recipient, wrap keys of his own for it.
func TestForgedRingIsNotTheRepositorys(t *testing.T) {
	st := faulty.New()
	alice := classic(t)
	r, err := Create(t.Context(), st, seal.NewKeys(repository), []Add{{Recipient: alice.Recipient().String()}})
	if err != nil {
		t.Fatal(err)
	}
	forged := &Ring{Revision: 2, Keys: seal.NewKeys(repository), Methods: r.Methods}
	payload, err := forged.encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := copies.Put(t.Context(), st, ringStem(2), envelope.Ring, repository, payload); err != nil {
		t.Fatal(err)
	}
	got := open(t, st, Unlock{Identities: []age.Identity{alice}})
	if got.Keys.Fingerprint() == r.Keys.Fingerprint() {
		t.Fatal("the fingerprint does not tell")
	}
}

func TestStoreTroubleIsNotMistaken(t *testing.T) {
	st := faulty.New()
	create(t, st, "x")
	for _, op := range []faulty.Op{faulty.List, faulty.Get} {
		for skip := range 2 {
			client := st.Client()
			client.Inject(faulty.Fault{Op: op, Skip: skip, Err: objects.ErrUnavailable})
			_, err := Open(t.Context(), client, repository, with("x"))
			if op == faulty.List && skip > 0 {
				continue // one is enough
			}
			wantErr(t, err, objects.ErrUnavailable)
		}
	}
}

// fixture is a ring of revision 7 and generation 2, and the slot of its passphrase "fixture".
func fixture(t testing.TB) (*Ring, *slot) {
	t.Helper()
	r := &Ring{Revision: 7, Keys: seal.NewKeys(repository)}
	r.Keys.Rotate()
	slots, err := r.add([]Add{{Label: "desk, 2nd drawer", Passphrase: []byte("fixture"), Cost: cheap}})
	if err != nil {
		t.Fatal(err)
	}
	return r, slots[0]
}

// TestNewestRingLost has a change interrupted after its first copy, which is then lost: the ring before opens, says so, and can be changed.
func TestNewestRingLost(t *testing.T) {
	st := faulty.New()
	r := create(t, st, "x")
	client := st.Client()
	client.Inject(faulty.Fault{Op: faulty.Put, Pattern: "keys/ring-*", Skip: 1, Err: objects.ErrUnavailable})
	wantErr(t, r.Rotate(t.Context(), client), objects.ErrUnavailable)
	if got := open(t, st, with("x")); got.Revision != 2 || got.Unreadable != nil {
		t.Fatalf("revision %d, unreadable %v", got.Revision, got.Unreadable)
	}
	st.Plant("keys/ring-00000002.0", st.Bytes("keys/ring-00000002.0")[:100])
	got := open(t, st, with("x"))
	if got.Revision != 1 || !slices.Equal(got.Unreadable, []int{2}) {
		t.Fatalf("revision %d, unreadable %v", got.Revision, got.Unreadable)
	}
	if err := got.Rotate(t.Context(), st); err != nil {
		t.Fatal(err)
	}
	if got = open(t, st, with("x")); got.Revision != 3 || got.Unreadable != nil {
		t.Fatalf("revision %d, unreadable %v", got.Revision, got.Unreadable)
	}
}

// TestForgedNewerRing has an intruder put a ring that opens for nobody, and one with the last of all revisions.
func TestForgedNewerRing(t *testing.T) {
	st := faulty.New()
	r := create(t, st, "x")
	forged := &Ring{Revision: maxRevision, Keys: seal.NewKeys(repository), Methods: []Method{{Recipient: classic(t).Recipient().String()}}}
	payload, err := forged.encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := copies.Put(t.Context(), st, ringStem(maxRevision), envelope.Ring, repository, payload); err != nil {
		t.Fatal(err)
	}
	wantErr(t, r.Rotate(t.Context(), st), ErrChanged)
	_, err = Open(t.Context(), st, repository, with("x"))
	wantErr(t, err, ErrWrongKey)
	if !strings.Contains(err.Error(), "revision 1") || !strings.Contains(err.Error(), "keys/ring-99999999.0") {
		t.Fatalf("does not say what to look at: %v", err)
	}
	for n := range copies.Count {
		st.Plant(copies.Name(ringStem(maxRevision), n), nil)
	}
	r = open(t, st, with("x"))
	if err := r.Rotate(t.Context(), st); err == nil || !strings.Contains(err.Error(), "delete it") {
		t.Fatal(err)
	}
	for n := range copies.Count {
		st.Lose(copies.Name(ringStem(maxRevision), n))
	}
	if err := open(t, st, with("x")).Rotate(t.Context(), st); err != nil {
		t.Fatal(err)
	}
}
