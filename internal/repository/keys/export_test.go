package keys

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"varve/internal/objects/faulty"
	"varve/internal/repository/envelope"
)

func export(t testing.TB, r *Ring) []byte {
	t.Helper()
	text, err := r.Export()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestExportOpensWhenAllSlotsAreLost(t *testing.T) {
	ctx := t.Context()
	for _, lost := range []string{"keys/slot-", "keys/"} {
		st := faulty.New()
		r := create(t, st, "x")
		if err := r.Rotate(ctx, st); err != nil {
			t.Fatal(err)
		}
		text := export(t, r)
		for _, name := range st.Names() {
			if strings.HasPrefix(name, lost) {
				st.Lose(name)
			}
		}
		imported, err := Import(ctx, st, repository, text)
		if err != nil {
			t.Fatal(err)
		}
		sameKeys(t, imported.Keys, r.Keys)
		wantErr(t, imported.Rotate(ctx, st), ErrNoMethod)
		if _, err := imported.AddMethod(ctx, st, passphrase("y")); err != nil {
			t.Fatal(err)
		}
		again := open(t, st, with("y"))
		sameKeys(t, again.Keys, r.Keys)
		if len(again.Methods) != 1 {
			t.Fatalf("methods %v", again.Methods)
		}
	}
}

func TestStaleExportReadsWhatIsOlderAndChangesNothing(t *testing.T) {
	ctx := t.Context()
	st := faulty.New()
	r := create(t, st, "x")
	text := export(t, r)
	first := r.Keys // Rotate puts another in its place
	if err := r.Rotate(ctx, st); err != nil {
		t.Fatal(err)
	}
	imported, err := Import(ctx, st, repository, text)
	if err != nil {
		t.Fatal(err)
	}
	sameKeys(t, imported.Keys, first)
	_, err = imported.AddMethod(ctx, st, passphrase("y"))
	wantErr(t, err, ErrStale)
	sameKeys(t, open(t, st, with("x")).Keys, r.Keys)

	// One that was made before methods changed has all keys.
	text = export(t, r)
	if _, err := r.AddMethod(ctx, st, passphrase("z")); err != nil {
		t.Fatal(err)
	}
	imported, err = Import(ctx, st, repository, text)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := imported.AddMethod(ctx, st, passphrase("y")); err != nil {
		t.Fatal(err)
	}
}

func TestExportOfAnotherRepository(t *testing.T) {
	r, _ := fixture(t)
	other := repository
	other[0]++
	_, err := Import(t.Context(), faulty.New(), other, export(t, r))
	wantErr(t, err, envelope.ErrForeign)
}

func TestExportAsPeopleTypeIt(t *testing.T) {
	r, _ := fixture(t)
	text := string(export(t, r))
	lines := strings.Split(text, "\n")
	var data []string
	for _, line := range lines {
		if !strings.HasPrefix(line, "#") {
			data = append(data, line)
		}
		if len(line) > 110 {
			t.Fatalf("a line of %d characters", len(line))
		}
	}
	bare := strings.Join(data, "\n")
	for name, typed := range map[string]string{
		"as it is":        text,
		"no remarks":      bare,
		"lower case":      strings.ToLower(bare),
		"O and l":         strings.NewReplacer("VARVE-KEYS-1", "VARVE-KEYS-1", ": 0", ": O", " 1", " l").Replace(bare),
		"no spaces":       strings.ReplaceAll(bare, " ", ""),
		"dashes":          strings.ReplaceAll(bare, " ", "-"),
		"carriage return": strings.ReplaceAll(text, "\n", "\r\n"),
		"blank lines":     strings.ReplaceAll(text, "\n", "\n\n"),
		"short numbers":   strings.ReplaceAll(bare, "\n0", "\n"),
	} {
		got, err := decodeExport([]byte(typed))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		sameKeys(t, got.Keys, r.Keys)
		if got.Revision != 7 || len(got.Methods) != 0 {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// TestMistypedExportNamesTheLine changes each character to each other, and swaps, leaves out and doubles lines.
func TestMistypedExportNamesTheLine(t *testing.T) {
	r, _ := fixture(t)
	lines := bytes.SplitAfter(export(t, r), []byte("\n"))
	lines = slices.DeleteFunc(lines, func(l []byte) bool { return len(l) == 0 || l[0] == '#' })
	refused := func(what string, line int, text []byte) {
		t.Helper()
		_, err := decodeExport(text)
		wantErr(t, err, ErrInvalid)
		if line > 0 && !strings.Contains(err.Error(), fmt.Sprintf("line %02d:", line)) {
			t.Fatalf("%s: %v", what, err)
		}
	}
	for i := 1; i < len(lines); i++ {
		line := lines[i]
		for at := range bytes.TrimRight(line, "\n") {
			if line[at] == ' ' {
				continue
			}
			for _, c := range []byte(alphabet + "U:") {
				if c == line[at] {
					continue
				}
				wrong := bytes.Clone(line)
				wrong[at] = c
				refused(string(wrong), i, bytes.Join(append(append(slices.Clone(lines[:i]), wrong), lines[i+1:]...), nil))
			}
		}
		without := append(slices.Clone(lines[:i]), lines[i+1:]...)
		if i < len(lines)-1 {
			refused("missing", i, bytes.Join(without, nil))
			swapped := slices.Clone(lines)
			swapped[i], swapped[i+1] = swapped[i+1], swapped[i]
			refused("swapped", i, bytes.Join(swapped, nil))
			refused("doubled", i+1, bytes.Join(slices.Insert(slices.Clone(lines), i, line), nil))
		} else {
			refused("missing at the end", 0, bytes.Join(without, nil))
		}
	}
	refused("no title", 0, bytes.Join(lines[1:], nil))
	_, err := decodeExport(bytes.Replace(bytes.Join(lines, nil), []byte("KEYS-1"), []byte("KEYS-2"), 1))
	wantErr(t, err, envelope.ErrNewer)
}
