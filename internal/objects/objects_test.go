package objects_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"varve/internal/objects"
	"varve/internal/objects/faulty"
)

func FuzzCheckName(f *testing.F) {
	for _, name := range []string{"a/b", "../a", "config.0", "a//b", "packs/ab/" + strings.Repeat("0", 32)} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if objects.CheckName(name) != nil {
			return
		}
		if strings.Contains("/"+name+"/", "/../") || strings.Contains("/"+name+"/", "/./") || strings.Contains("/"+name+"/", "//") ||
			len(name) > objects.MaxNameBytes || strings.ContainsAny(name, "\x00\\%?# ") {
			t.Fatalf("%q is taken for a name", name)
		}
		for i := range name {
			if err := objects.CheckPrefix(name[:i]); err != nil && i < len(name)-1 {
				t.Fatalf("%q is a prefix of a name: %v", name[:i], err)
			}
		}
	})
}

func TestCountedTellsWhatWasAsked(t *testing.T) {
	c := objects.Counted(faulty.New())
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range 3 {
		must(c.Put(ctx, fmt.Sprintf("packs/%d", i), [][]byte{[]byte("12"), []byte("345")}, objects.PutOptions{}))
	}
	if err := c.Put(ctx, "packs/0", [][]byte{[]byte("12")}, objects.PutOptions{}); !errors.Is(err, objects.ErrExists) {
		t.Fatal(err)
	}
	before := c.Counts()
	_, err := c.Get(ctx, "packs/1")
	must(err)
	must(c.Read(ctx, "packs/1", make([]byte, 3), 1))
	_, err = c.Stat(ctx, "packs/1")
	must(err)
	must(c.List(ctx, "packs/", func(objects.Info) error { return nil }))
	must(c.Delete(ctx, "packs/1"))
	if err := c.Retain(ctx, "packs/0", time.Now()); !errors.Is(err, errors.ErrUnsupported) {
		t.Fatal(err)
	}
	want := objects.Counts{Puts: 4, Gets: 1, Reads: 1, Stats: 1, Lists: 1, Deletes: 1, Retains: 1, Listed: 3, UploadBytes: 15, DownloadBytes: 8}
	if got := c.Counts(); got != want {
		t.Fatalf("got %+v, want %+v", got, want)
	}
	since := objects.Counts{Gets: 1, Reads: 1, Stats: 1, Lists: 1, Deletes: 1, Retains: 1, Listed: 3, DownloadBytes: 8}
	if got := c.Counts().Minus(before); got != since || got.Requests() != 6 {
		t.Fatalf("since then %+v, %d requests", got, got.Requests())
	}
}

// A job's limit and the daemon's hold together.
func TestLimitsOfWrappersHoldTogether(t *testing.T) {
	st := objects.Limited(objects.Limited(faulty.New(), 32<<10, 0), 1<<30, 16<<10)
	begun := time.Now()
	if err := st.Put(t.Context(), "a", [][]byte{make([]byte, 32<<10)}, objects.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	put := time.Since(begun)
	if _, err := st.Get(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if got := time.Since(begun) - put; put < 700*time.Millisecond || got < 1700*time.Millisecond {
		t.Fatalf("32 KiB went up at 32 KiB/s in %v, down at 16 KiB/s in %v", put, got)
	}
}
