// Package copies keeps what a repository cannot do without three times: its
// configuration, its rings of keys, its slots. The copies STEM.0, STEM.1 and
// STEM.2 are one object byte for byte, so that any of them does, and a missing
// one can be put again by somebody who has no key.
//
// STEM.0 decides: what is put under that name counts from then on, the others
// follow. Who finds the name taken has put nothing.
package copies

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/google/uuid"

	"varve/internal/objects"
	"varve/internal/repository/envelope"
)

// Count is how many copies there are.
const Count = 3

// parityPercent is that of the copies, whatever the repository's: they are small, and half of each may be damaged.
const parityPercent = 100

// maxRepairs bounds the names that are tried for a repaired copy.
const maxRepairs = 100

// ErrTaken is that of a name that another object has; nothing of ours counts.
var ErrTaken = errors.New("name is taken")

// Name is that of copy n of stem.
func Name(stem string, n int) string { return stem + "." + strconv.Itoa(n) }

// Put stores payload under the stem's names. If it fails with ErrTaken what was there counts; any other error
// leaves it open whether the new object does.
//
// On a store that is not exclusive two who put at once may both believe for a moment to be first. Both look again
// at the end: what is STEM.0 then is made all three copies, and the other one gets ErrTaken.
func Put(ctx context.Context, st objects.Store, stem string, kind envelope.Kind, repository uuid.UUID, payload []byte) error {
	h := envelope.Header{
		Version: envelope.Version, Kind: kind, Repository: repository,
		NameHash: envelope.NameHash(Name(stem, 0)), ParityPercent: parityPercent,
	}
	_, _ = rand.Read(h.Salt[:])
	object, err := envelope.Build(h, payload)
	if err != nil {
		return fmt.Errorf("put %s: %w", stem, err)
	}
	if err := free(ctx, st, stem); err != nil {
		return err
	}
	own := slices.Concat(object...)
	for n := range Count {
		name := Name(stem, n)
		err := st.Put(ctx, name, object, objects.PutOptions{})
		if errors.Is(err, objects.ErrExists) {
			// Perhaps it is our own, and only the answer was lost.
			err = same(ctx, st, name, own)
		}
		if n > 0 && errors.Is(err, ErrTaken) {
			continue // forged: STEM.0 is ours, which decides
		}
		if err != nil {
			return err
		}
	}
	if st.Exclusive() {
		return nil
	}
	return settle(ctx, st, stem, own)
}

// free fails with ErrTaken if any copy is there.
func free(ctx context.Context, st objects.Store, stem string) error {
	return st.List(ctx, stem+".", func(o objects.Info) error {
		return fmt.Errorf("put %s: %w by %s", stem, ErrTaken, o.Name)
	})
}

func same(ctx context.Context, st objects.Store, name string, own []byte) error {
	got, err := st.Get(ctx, name)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, own) {
		return fmt.Errorf("put %s: %w", name, ErrTaken)
	}
	return nil
}

// settle makes all copies what STEM.0 is, and looks at that again after each time it has put something.
func settle(ctx context.Context, st objects.Store, stem string, own []byte) error {
	for {
		first, err := st.Get(ctx, Name(stem, 0))
		if err != nil {
			return err
		}
		settled := true
		for n := 1; n < Count; n++ {
			if same(ctx, st, Name(stem, n), first) == nil {
				continue
			}
			settled = false
			if err := st.Put(ctx, Name(stem, n), [][]byte{first}, objects.PutOptions{}); err != nil {
				return err
			}
		}
		switch {
		case settled && bytes.Equal(first, own):
			return nil
		case settled:
			return fmt.Errorf("put %s: %w", stem, ErrTaken)
		}
	}
}

// Load hands the payload of one sound copy after the other to use, until use returns nil. If none is accepted the
// error is that of use, or else envelope.ErrLost, ErrForeign or objects.ErrNotFound. envelope.ErrNewer, and trouble with the
// store, end it at once.
func Load(ctx context.Context, st objects.Store, stem string, kind envelope.Kind, repository uuid.UUID, use func(h envelope.Header, payload []byte) error) error {
	var refused, lost, foreign, missing error
	var before []byte
	for n := range Count {
		h, payload, err := envelope.Load(ctx, st, Name(stem, n), repository, kind)
		switch {
		case err == nil:
			if refused != nil && bytes.Equal(payload, before) {
				continue
			}
			if err := use(h, payload); err == nil {
				return nil
			} else if refused == nil {
				refused = err
			}
			before = payload
		case errors.Is(err, objects.ErrNotFound):
			missing = err
		case errors.Is(err, envelope.ErrForeign):
			foreign = err
		case errors.Is(err, envelope.ErrLost):
			lost = err
		default:
			return err
		}
	}
	for _, err := range []error{refused, lost, foreign} {
		if err != nil {
			return err
		}
	}
	return missing
}

// Complete puts the copies that are missing or lost, from one that is sound, and returns the names it wrote. A
// lost copy is put beside, as NAME-1 or the next that is free, and then deleted.
func Complete(ctx context.Context, st objects.Store, stem string, kind envelope.Kind, repository uuid.UUID) (written []string, err error) {
	var object [][]byte
	err = Load(ctx, st, stem, kind, repository, func(h envelope.Header, payload []byte) (err error) {
		object, err = envelope.Build(h, payload)
		return err
	})
	if err != nil {
		return nil, err
	}
	for n := range Count {
		name := Name(stem, n)
		_, _, err := envelope.Load(ctx, st, name, repository, kind)
		switch {
		case err == nil:
			continue
		case errors.Is(err, objects.ErrNotFound):
			err = st.Put(ctx, name, object, objects.PutOptions{})
		case errors.Is(err, envelope.ErrLost):
			var beside string
			if beside, err = putBeside(ctx, st, name, object); err == nil {
				err = st.Delete(ctx, name)
				name = beside
			}
		}
		if err != nil && !errors.Is(err, objects.ErrExists) {
			return written, fmt.Errorf("complete the copies of %s: %w", stem, err)
		}
		written = append(written, name)
	}
	return written, nil
}

func putBeside(ctx context.Context, st objects.Store, name string, object [][]byte) (string, error) {
	for i := 1; i <= maxRepairs; i++ {
		beside := fmt.Sprintf("%s-%d", name, i)
		_, err := st.Stat(ctx, beside)
		if err == nil {
			continue
		}
		if errors.Is(err, objects.ErrNotFound) {
			err = st.Put(ctx, beside, object, objects.PutOptions{})
		}
		if errors.Is(err, objects.ErrExists) {
			continue
		}
		return beside, err
	}
	return "", fmt.Errorf("%s has %d repaired copies already", name, maxRepairs)
}
