package s3_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"varve/internal/objects"
	"varve/internal/objects/s3"
)

// oldStore is a store of the time before conditional writes, which keeps objects by their paths; answer, if not nil, may
// answer in its place.
type oldStore struct {
	mu      sync.Mutex
	objects map[string][]byte
	answer  func(w http.ResponseWriter, r *http.Request) bool
}

func (s *oldStore) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.answer != nil && s.answer(w, r) {
		return
	}
	switch {
	case r.URL.Query().Has("versioning"):
		_, _ = io.WriteString(w, `<VersioningConfiguration/>`)
	case r.Method == http.MethodPut:
		s.objects[r.URL.Path] = body
	case r.Method == http.MethodDelete:
		delete(s.objects, r.URL.Path)
		w.WriteHeader(http.StatusNoContent)
	case s.objects[r.URL.Path] == nil:
		refuse(w, http.StatusNotFound, "NoSuchKey")
	default:
		w.Header().Set("Last-Modified", time.Now().UTC().Format(http.TimeFormat))
		_, _ = w.Write(s.objects[r.URL.Path])
	}
}

func refuse(w http.ResponseWriter, status int, code string) {
	w.WriteHeader(status)
	fmt.Fprintf(w, "<Error><Code>%s</Code><Message>no</Message></Error>", code)
}

func serveOld(t *testing.T) (*oldStore, *s3.Store) {
	t.Helper()
	old := &oldStore{objects: make(map[string][]byte)}
	server := httptest.NewServer(old)
	t.Cleanup(server.Close)
	return old, open(t, "s3://"+strings.TrimPrefix(server.URL, "http://")+"/bucket",
		s3.Options{AccessKey: "a", SecretKey: "b", Region: "r", PlainHTTP: true, Pause: time.Millisecond, Attempts: 4})
}

func (s *oldStore) setAnswer(answer func(w http.ResponseWriter, r *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = answer
}

func TestAStoreThatIgnoresTheConditionIsNotExclusive(t *testing.T) {
	old, st := serveOld(t)
	if st.Exclusive() {
		t.Fatal("is said to be exclusive")
	}
	if len(old.objects) != 0 {
		t.Fatalf("the probe left %v", old.objects)
	}
	put(t, st, "a", []byte("1"))
	put(t, st, "a", []byte("2"))
	wantContent(t, st, "a", []byte("2"))
}

func TestAStoreThatRefusesTheConditionIsPutToWithout(t *testing.T) {
	old, st := serveOld(t)
	refused := 0
	old.setAnswer(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("If-None-Match") == "" {
			return false
		}
		refused++
		refuse(w, http.StatusNotImplemented, "NotImplemented")
		return true
	})
	put(t, st, "a", []byte("1"))
	put(t, st, "b", []byte("2"))
	if st.Exclusive() || refused != 1 {
		t.Fatalf("exclusive, or asked %d times", refused)
	}
	wantContent(t, st, "b", []byte("2"))
}

func TestWhatTheStoreAnswers(t *testing.T) {
	for _, c := range []struct {
		status int
		code   string
		kind   error
		times  int // that it is asked
		hint   string
	}{
		{http.StatusServiceUnavailable, "SlowDown", objects.ErrUnavailable, 4, "SlowDown"},
		{http.StatusInternalServerError, "InternalError", objects.ErrUnavailable, 4, ""},
		{http.StatusTooManyRequests, "TooManyRequests", objects.ErrUnavailable, 4, ""},
		{http.StatusConflict, "ConditionalRequestConflict", objects.ErrUnavailable, 4, ""},
		{http.StatusInsufficientStorage, "InsufficientStorage", objects.ErrFull, 1, ""},
		{http.StatusForbidden, "QuotaExceeded", objects.ErrFull, 1, ""},
		{http.StatusForbidden, "AccessDenied", objects.ErrDenied, 1, "rights"},
		{http.StatusForbidden, "RequestTimeTooSkewed", objects.ErrDenied, 1, "clock"},
		{http.StatusForbidden, "ExpiredToken", objects.ErrDenied, 1, "token"},
		{http.StatusNotFound, "NoSuchBucket", objects.ErrNoStore, 1, `"bucket"`},
		{http.StatusPreconditionFailed, "PreconditionFailed", objects.ErrExists, 1, ""},
	} {
		t.Run(c.code, func(t *testing.T) {
			old, st := serveOld(t)
			asked := 0
			old.setAnswer(func(w http.ResponseWriter, r *http.Request) bool {
				if r.Method == http.MethodHead { // whether an earlier attempt has put it
					return false
				}
				asked++
				refuse(w, c.status, c.code)
				return true
			})
			err := st.Put(t.Context(), "packs/1", [][]byte{[]byte("x")}, objects.PutOptions{})
			want(t, err, c.kind, "packs/1", c.hint)
			if asked != c.times {
				t.Fatalf("asked %d times, want %d", asked, c.times)
			}
		})
	}
}

func TestWhatPassesIsNoFailure(t *testing.T) {
	old, st := serveOld(t)
	asked := 0
	old.setAnswer(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodHead {
			return false
		}
		if asked++; asked%3 == 0 {
			return false
		}
		refuse(w, http.StatusServiceUnavailable, "SlowDown")
		return true
	})
	put(t, st, "a", []byte("x"))
	wantContent(t, st, "a", []byte("x"))
	must(t, st.Delete(t.Context(), "a"))
	if asked != 9 {
		t.Fatalf("asked %d times", asked)
	}
}

// A store that answers a part with the whole would have the wrong bytes read.
func TestAStoreThatIgnoresRangesIsRefused(t *testing.T) {
	_, st := serveOld(t)
	put(t, st, "a", []byte("0123456789"))
	want(t, st.Read(t.Context(), "a", make([]byte, 3), 4), objects.ErrUnavailable, "range")
}
