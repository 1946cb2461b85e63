package api_test

import (
	"errors"
	"net/http"
	"path/filepath"
	"testing"

	"varve/internal/block"
	"varve/internal/contract"
	"varve/internal/daemon"
	"varve/internal/nbd/client"
)

// scatter makes a volume with a snapshot, since which every second of some blocks has changed.
func (s served) scatter(t *testing.T, blocks int64) {
	t.Helper()
	s.ask(t, "POST", "/v1/volumes", `{"name":"web","size":1099511627776}`)
	s.ask(t, "POST", "/v1/snapshots", `{"volumes":["web"],"name":"one"}`)
	c, err := client.Dial(t.Context(), "nbd+unix:///web?socket="+daemon.NBDSocket(filepath.Join(s.dir, "data")), client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, block.Size)
	var ops []*block.Op
	for i := range blocks {
		ops = append(ops, &block.Op{Offset: 2 * i * block.Size, Length: block.Size, Data: data})
	}
	c.Submit(t.Context(), ops)
	for _, op := range ops {
		if op.Err != nil {
			t.Fatal(op.Err)
		}
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestDiffIsAListOfExtents(t *testing.T) {
	s := serve(t)
	s.scatter(t, 3)
	for path, want := range map[string]int{
		"/v1/diff?from=web@one":            3,
		"/v1/diff?from=web@one&to=web":     3,
		"/v1/diff?from=web@one&to=web@one": 0,
	} {
		status, answer := s.ask(t, "GET", path, "")
		list, ok := answer.([]any)
		if status != http.StatusOK || !ok || len(list) != want {
			t.Errorf("%s: %d %v", path, status, answer)
		}
	}
	var got []contract.Extent
	err := s.client.Diff(t.Context(), "web@one", "", func(e contract.Extent) error {
		got = append(got, e)
		return nil
	})
	if err != nil || len(got) != 3 || got[2] != (contract.Extent{Offset: 16384, Length: 4096}) {
		t.Errorf("%v, %v", got, err)
	}
}

// A diff that fails on the way is an error to whoever reads it, with its cause, and not a shorter list.
func TestDiffThatFailsOnTheWay(t *testing.T) {
	s := serve(t)
	const blocks = 50_000 // more than is written ahead of the reader
	s.scatter(t, blocks)
	enough := errors.New("enough")
	if err := s.client.Diff(t.Context(), "web@one", "web", func(contract.Extent) error { return enough }); !errors.Is(err, enough) {
		t.Error(err)
	}
	n := 0
	err := s.client.Diff(t.Context(), "web@one", "web", func(contract.Extent) error {
		if n++; n == 1 {
			return s.daemon.Stop(t.Context())
		}
		return nil
	})
	var told *contract.Error
	if !errors.As(err, &told) || told.Code != contract.CodeFailed || n == blocks {
		t.Errorf("after %d extents: %v", n, err)
	}
}
