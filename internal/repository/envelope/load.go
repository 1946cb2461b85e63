package envelope

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"

	"varve/internal/objects"
)

// Load returns the header and the payload of the object of that name: of NAME
// itself, mended in memory if need be, else of the copies that repairs have made
// of it, NAME-1, NAME-2, ..., the newest first. Of a repository of which nothing
// is known yet any will do: uuid.Nil.
//
// It fails with objects.ErrNotFound if there is neither the object nor a copy;
// with ErrNewer; with ErrLost if none can be mended, and then with ErrForeign
// too if one is whole but is of another repository, kind or name; with the
// store's error if the store fails.
func Load(ctx context.Context, st objects.Store, name string, repository uuid.UUID, kind Kind) (Header, []byte, error) {
	h, payload, err := load(ctx, st, name, name, repository, kind)
	if !errors.Is(err, objects.ErrNotFound) && !errors.Is(err, ErrLost) {
		return h, payload, err
	}
	repairs, listErr := Repairs(ctx, st, name)
	if listErr != nil {
		return Header{}, nil, fmt.Errorf("look for copies of %s: %w", name, listErr)
	}
	for _, repaired := range repairs {
		h, payload, copyErr := load(ctx, st, repaired, name, repository, kind)
		switch {
		case errors.Is(copyErr, objects.ErrNotFound): // deleted since it was listed
		case errors.Is(copyErr, ErrLost):
			if !errors.Is(err, ErrForeign) {
				err = copyErr
			}
		default:
			return h, payload, copyErr
		}
	}
	return Header{}, nil, err
}

// Repairs returns the names of the copies that repairs have made of an object, the newest first.
func Repairs(ctx context.Context, st objects.Store, name string) ([]string, error) {
	var names []string
	err := st.List(ctx, name+"-", func(info objects.Info) error {
		if original, _ := splitNumber(info.Name); original == name {
			names = append(names, info.Name)
		}
		return nil
	})
	// Numbers have no leading zeros: the longer is the greater.
	slices.SortFunc(names, func(a, b string) int {
		if len(a) != len(b) {
			return len(b) - len(a)
		}
		return strings.Compare(b, a)
	})
	return names, err
}

// load loads the object stored under one name, which must be that of the other.
func load(ctx context.Context, st objects.Store, stored, name string, repository uuid.UUID, kind Kind) (Header, []byte, error) {
	object, err := st.Get(ctx, stored)
	if err != nil {
		return Header{}, nil, fmt.Errorf("load %s: %w", stored, err)
	}
	h, payload, err := Open(object)
	if errors.Is(err, ErrDamaged) {
		if object, _, err = Mend(object); err == nil {
			h, payload, err = Open(object)
		}
	}
	if err == nil {
		if foreign := h.Belongs(name, repository, kind); foreign != nil {
			err = fmt.Errorf("%w: %w", ErrLost, foreign)
		}
	}
	if err != nil {
		return Header{}, nil, fmt.Errorf("load %s: %w", stored, err)
	}
	return h, payload, nil
}

// Belongs fails with ErrForeign unless the header is of the object of that name,
// repository (uuid.Nil: any) and kind. Load has looked; who reads parts of objects must.
func (h Header) Belongs(name string, repository uuid.UUID, kind Kind) error {
	switch {
	case repository != uuid.Nil && h.Repository != repository:
		return fmt.Errorf("%w: it is of repository %v, not %v", ErrForeign, h.Repository, repository)
	case h.Kind != kind:
		return fmt.Errorf("%w: it is a %v, not a %v", ErrForeign, h.Kind, kind)
	case h.NameHash != NameHash(name):
		return fmt.Errorf("%w: it was written under another name", ErrForeign)
	}
	return nil
}
