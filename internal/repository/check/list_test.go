package check

import (
	"slices"
	"strings"
	"testing"
	"time"

	"varve/internal/objects"
	"varve/internal/objects/faulty"
	"varve/internal/repository"
)

// With a budget those come first that were never looked at, then those whose last time was longest ago; before them the small ones
// that do not stay, and those that were ever lost.
func TestTheLeastRecentlyVerifiedComeFirst(t *testing.T) {
	st := faulty.New()
	repo, err := repository.Create(t.Context(), st, repository.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	name := func(digit string) string { return "packs/" + digit + digit + "/" + strings.Repeat(digit, 32) }
	for _, digit := range []string{"a", "b", "c", "d", "e"} {
		if err := st.Put(t.Context(), name(digit), nil, objects.PutOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	for _, v := range []struct {
		digit     string
		hour      int
		condition repository.Condition
	}{{"a", 1, repository.Good}, {"a", 3, repository.Good}, {"b", 2, repository.Mended}, {"d", 1, repository.Good}, {"e", 1, repository.Lost}, {"e", 5, repository.Good}} {
		found := []repository.Verdict{{Object: name(v.digit), Condition: v.condition}}
		if err := repo.PutLedger(t.Context(), faulty.Epoch.Add(time.Duration(v.hour)*time.Hour), found); err != nil {
			t.Fatal(err)
		}
	}
	c := newChecker(st, Options{Budget: time.Hour, Dir: t.TempDir()})
	c.repo = repo
	items := c.newItems()
	defer items.Close()
	if _, err := c.list(t.Context(), items); err != nil {
		t.Fatal(err)
	}
	var order []string
	for i, err := range items.Sorted() {
		if err != nil {
			t.Fatal(err)
		}
		if isPack(i.kind) {
			order = append(order, i.name)
		} else if i.class != always {
			t.Fatalf("%s may be left out", i.name)
		}
	}
	if want := []string{name("e"), name("c"), name("d"), name("b"), name("a")}; !slices.Equal(order, want) {
		t.Fatalf("%v, not %v", order, want)
	}
	if c.now.Before(faulty.Epoch.Add(5 * time.Hour)) {
		t.Fatalf("what is found at %v would not count", c.now)
	}
}
