package api_test

import (
	"bytes"
	"io"
	"net/http"
	"testing"

	"varve/internal/api"
)

// fetch returns the status and the body of an answer that need not be JSON.
func (s served) fetch(t *testing.T, path string) (int, []byte) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://varve"+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := s.raw.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, body
}

func TestProfilesAreOffUnlessAskedFor(t *testing.T) {
	s := serve(t)
	for _, path := range []string{"/debug/pprof/", "/debug/pprof/heap", "/debug/pprof/profile?seconds=1", "/debug/pprof/cmdline"} {
		if status, body := s.fetch(t, path); status != http.StatusNotFound {
			t.Errorf("%s: %d %.60s", path, status, body)
		}
	}
}

func TestProfilesBesideTheAPI(t *testing.T) {
	s := serveWith(t, api.WithProfiles)
	for _, path := range []string{"/debug/pprof/heap", "/debug/pprof/profile?seconds=1"} {
		// A profile is a gzipped protobuf.
		if status, body := s.fetch(t, path); status != http.StatusOK || !bytes.HasPrefix(body, []byte{0x1f, 0x8b}) {
			t.Errorf("%s: %d %.60q", path, status, body)
		}
	}
	if status, body := s.fetch(t, "/debug/pprof/goroutine?debug=1"); status != http.StatusOK || !bytes.Contains(body, []byte("api.Serve")) {
		t.Errorf("goroutines: %d %.200s", status, body)
	}
	if status, _ := s.ask(t, "GET", "/v1/status", ""); status != http.StatusOK {
		t.Errorf("the API itself: %d", status)
	}
	if status, answer := s.ask(t, "GET", "/nothing", ""); status != http.StatusNotFound || answer.(map[string]any)["code"] != "not_found" {
		t.Errorf("what is not there: %d %v", status, answer)
	}
}
