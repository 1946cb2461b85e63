package envelope

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"varve/internal/objects"
)

// shelf is a store in memory: what Load needs of one. err is what every call fails with.
type shelf struct {
	objects.Store
	objects map[string][]byte
	err     error
}

func (s *shelf) Get(_ context.Context, name string) ([]byte, error) {
	b, ok := s.objects[name]
	switch {
	case s.err != nil:
		return nil, s.err
	case !ok:
		return nil, fmt.Errorf("%s: %w", name, objects.ErrNotFound)
	}
	return bytes.Clone(b), nil
}

func (s *shelf) List(_ context.Context, prefix string, visit func(objects.Info) error) error {
	for _, name := range slices.Sorted(maps.Keys(s.objects)) {
		if strings.HasPrefix(name, prefix) {
			if err := visit(objects.Info{Name: name}); err != nil {
				return err
			}
		}
	}
	return s.err
}

func TestLoad(t *testing.T) {
	const name = "backups/0011223344556677"
	sound := mustBuild(t, headerOf(Record, name, 3), content(3000, 1))
	mendable := bytes.Clone(sound)
	clear(mendable[:400])
	lost := bytes.Clone(sound)
	clear(lost[:2000])
	newer := bytes.Clone(sound)
	newer[8] = 2
	reseal(newer)
	otherName := mustBuild(t, headerOf(Record, "backups/7766554433221100", 3), content(3000, 2))
	otherKind := mustBuild(t, headerOf(Candidate, name, 3), content(3000, 3))
	elsewhere := headerOf(Record, name, 3)
	elsewhere.Repository[0]++
	otherRepository := mustBuild(t, elsewhere, content(3000, 4))
	otherDamaged := bytes.Clone(otherRepository)
	otherDamaged[700] ^= 1

	for _, tt := range []struct {
		what   string
		there  map[string][]byte // by what is appended to the name
		errors []error           // that the failure is; none: the payload is got
	}{
		{"sound", map[string][]byte{"": sound}, nil},
		{"mended", map[string][]byte{"": mendable}, nil},
		{"lost", map[string][]byte{"": lost}, []error{ErrLost}},
		{"empty", map[string][]byte{"": {}}, []error{ErrLost}},
		{"nothing", nil, []error{objects.ErrNotFound}},
		{"newer", map[string][]byte{"": newer, "-1": sound}, []error{ErrNewer}},
		{"of another name", map[string][]byte{"": otherName}, []error{ErrForeign, ErrLost}},
		{"of another kind", map[string][]byte{"": otherKind}, []error{ErrForeign, ErrLost}},
		{"of another repository", map[string][]byte{"": otherRepository}, []error{ErrForeign, ErrLost}},
		{"of another repository and damaged", map[string][]byte{"": otherDamaged, "-1": lost}, []error{ErrForeign, ErrLost}},
		{"a copy", map[string][]byte{"-1": sound}, nil},
		{"a copy beside what is lost", map[string][]byte{"": lost, "-1": sound}, nil},
		{"a copy beside another's", map[string][]byte{"": otherName, "-1": sound}, nil},
		{"a damaged copy", map[string][]byte{"": lost, "-2": mendable}, nil},
		{"the third copy", map[string][]byte{"": lost, "-1": lost, "-2": otherKind, "-10": lost, "-3": sound}, nil},
		{"lost copies", map[string][]byte{"-1": lost, "-2": lost}, []error{ErrLost}},
		{"a copy that is newer", map[string][]byte{"": lost, "-1": newer}, []error{ErrNewer}},
		{"names that are no copies", map[string][]byte{"-0": sound, "-x": sound, "-01": sound, "-1x": sound, "-1-1": sound, "1": sound}, []error{objects.ErrNotFound}},
	} {
		t.Run(tt.what, func(t *testing.T) {
			st := &shelf{objects: map[string][]byte{}}
			for suffix, b := range tt.there {
				st.objects[name+suffix] = b
			}
			for _, repository := range []uuid.UUID{{1, 2, 3}, uuid.Nil} {
				if repository == uuid.Nil && strings.Contains(tt.what, "repository") {
					continue
				}
				h, payload, err := Load(t.Context(), st, name, repository, Record)
				for _, want := range tt.errors {
					if !errors.Is(err, want) || !strings.Contains(err.Error(), name) {
						t.Fatalf("%v, not %v", err, want)
					}
				}
				if len(tt.errors) == 0 && (err != nil || h.Kind != Record || !bytes.Equal(payload, content(3000, 1))) {
					t.Fatal(h, err)
				}
				if len(tt.errors) > 0 && payload != nil {
					t.Fatal("a payload beside the error")
				}
			}
		})
	}

	t.Run("any repository", func(t *testing.T) {
		st := &shelf{objects: map[string][]byte{name: otherRepository}}
		if h, _, err := Load(t.Context(), st, name, uuid.Nil, Record); err != nil || h.Repository != elsewhere.Repository {
			t.Fatal(h, err)
		}
	})
	t.Run("a store that fails", func(t *testing.T) {
		st := &shelf{objects: map[string][]byte{name: sound}, err: objects.ErrUnavailable}
		if _, _, err := Load(t.Context(), st, name, uuid.Nil, Record); !errors.Is(err, objects.ErrUnavailable) || errors.Is(err, ErrLost) {
			t.Fatal(err)
		}
	})
	t.Run("the newest copy first", func(t *testing.T) {
		st := &shelf{objects: map[string][]byte{}}
		for _, suffix := range []string{"", "-1", "-2", "-9", "-10", "-11", "-100", "-x"} {
			st.objects[name+suffix] = nil
		}
		names, err := Repairs(t.Context(), st, name)
		if err != nil || fmt.Sprint(names) != fmt.Sprint([]string{name + "-100", name + "-11", name + "-10", name + "-9", name + "-2", name + "-1"}) {
			t.Fatal(names, err)
		}
	})
}
