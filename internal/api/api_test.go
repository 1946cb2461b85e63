package api_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"varve/internal/api"
	"varve/internal/api/client"
	"varve/internal/contract"
	"varve/internal/daemon"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// served is a daemon with its API on a socket.
type served struct {
	dir, socket string
	daemon      *daemon.Daemon
	client      *client.Client
	raw         *http.Client
}

func serve(t *testing.T) served {
	t.Helper()
	return serveWith(t, func(h http.Handler) http.Handler { return h })
}

// serveWith serves what wrap makes of the API.
func serveWith(t *testing.T, wrap func(http.Handler) http.Handler) served {
	t.Helper()
	dir, err := os.MkdirTemp("", "varve")
	if err != nil {
		t.Fatal(err)
	}
	d, err := daemon.Start(t.Context(), daemon.Config{DataDir: filepath.Join(dir, "data")})
	if err != nil {
		t.Fatal(err)
	}
	s := served{dir: dir, daemon: d, socket: filepath.Join(dir, "api.sock")}
	l, err := daemon.Listen(s.socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- api.Serve(ctx, context.Background(), l, wrap(api.New(d, "v0-test"))) }()
	s.client = client.New(s.socket, 0)
	s.raw = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", s.socket)
	}}}
	t.Cleanup(func() {
		s.client.Close()
		s.raw.CloseIdleConnections()
		stop()
		if err := errors.Join(<-ended, d.Stop(context.Background()), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	return s
}

// ask sends a request as a stranger would and returns the status and the JSON of the answer.
func (s served) ask(t *testing.T, method, path, body string) (int, any) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, "http://varve"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := s.raw.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	var answer any
	if len(text) > 0 {
		if err := json.Unmarshal(text, &answer); err != nil {
			t.Fatalf("%s %s: %v in %s", method, path, err, text)
		}
	}
	return response.StatusCode, answer
}

// TestEveryOperationIsDescribed: the OpenAPI document has what the client calls, and describes times as times.
func TestEveryOperationIsDescribed(t *testing.T) {
	s := serve(t)
	_, answer := s.ask(t, "GET", "/openapi.json", "")
	var document struct {
		OpenAPI    string
		Paths      map[string]map[string]any
		Components struct {
			Schemas map[string]struct {
				Properties map[string]struct{ Format string }
			}
		}
	}
	text, _ := json.Marshal(answer)
	if err := json.Unmarshal(text, &document); err != nil {
		t.Fatal(err)
	}
	got := []string{}
	for path, methods := range document.Paths {
		for method := range methods {
			got = append(got, method+" "+path)
		}
	}
	slices.Sort(got)
	want := []string{
		"delete /v1/bookmarks/{bookmark}", "delete /v1/repositories/{repository}", "delete /v1/repositories/{repository}/keys/{key}",
		"delete /v1/volumes/{volume}", "delete /v1/volumes/{volume}/mirror", "get /v1/backup-diff", "get /v1/backups", "get /v1/backups/{backup}",
		"get /v1/bookmarks", "get /v1/diff", "get /v1/events", "get /v1/jobs", "get /v1/jobs/{job}", "get /v1/pool", "get /v1/repositories",
		"get /v1/repositories/{repository}", "get /v1/repositories/{repository}/keys", "get /v1/snapshots", "get /v1/snapshots/{snapshot}",
		"get /v1/status", "get /v1/volumes", "get /v1/volumes/{volume}", "get /v1/volumes/{volume}/mirror", "patch /v1/pool",
		"patch /v1/repositories/{repository}", "patch /v1/snapshots/{snapshot}", "patch /v1/volumes/{volume}", "post /v1/adoptions",
		"post /v1/backup-deletions", "post /v1/backup-restores", "post /v1/backup-verifications", "post /v1/backups", "post /v1/bookmarks",
		"post /v1/checks", "post /v1/exports", "post /v1/imports", "post /v1/jobs/{job}/cancel", "post /v1/jobs/{job}/pause", "post /v1/jobs/{job}/resume",
		"post /v1/reclaims", "post /v1/repairs", "post /v1/repositories", "post /v1/repositories/{repository}/check",
		"post /v1/repositories/{repository}/copy", "post /v1/repositories/{repository}/export-keys", "post /v1/repositories/{repository}/keys",
		"post /v1/repositories/{repository}/prune", "post /v1/repositories/{repository}/rotate-keys", "post /v1/repository-additions",
		"post /v1/snapshots", "post /v1/snapshots/delete", "post /v1/snapshots/{snapshot}/copy", "post /v1/snapshots/{snapshot}/resync",
		"post /v1/snapshots/{snapshot}/rollback", "post /v1/snapshots/{snapshot}/rollback-ranges", "post /v1/volumes",
		"post /v1/volumes/{volume}/copy-back", "post /v1/volumes/{volume}/fill", "post /v1/volumes/{volume}/mirror",
		"post /v1/volumes/{volume}/mirror/split", "post /v1/volumes/{volume}/relayout",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("operations: %s", diff)
	}
	if document.OpenAPI == "" || document.Components.Schemas["Volume"].Properties["created_at"].Format != "date-time" {
		t.Errorf("the document says of a volume %+v", document.Components.Schemas["Volume"])
	}
}

// TestObjectsHaveTheirFields pins the names that scripts use. Adding one means adding it here.
func TestObjectsHaveTheirFields(t *testing.T) {
	s := serve(t)
	s.ask(t, "POST", "/v1/volumes", `{"name":"web","size":1048576}`)
	s.ask(t, "POST", "/v1/snapshots", `{"volumes":["web"],"name":"one"}`)
	s.ask(t, "POST", "/v1/bookmarks", `{"snapshot":"web@one","name":"mark"}`)
	s.ask(t, "POST", "/v1/checks", "")
	for path, want := range map[string]string{
		"/v1/volumes": "bookmarks clients created_at depends_on exclusive_bytes id labels layout mapped_bytes name origin parent read_only shared_bytes size snapshots",
		"/v1/snapshots": "automatic class clones consistency content created_at depends_on durable_ms exclusive_bytes expires_at group_id head id labels " +
			"mapped_bytes name parent pause_ms protected shared_bytes size steps technique volume volume_id",
		"/v1/bookmarks": "created_at id name size snapshot snapshot_created_at snapshot_id volume volume_id",
		"/v1/jobs":      "created_at finished_at id kind object progress reason started_at state",
	} {
		status, answer := s.ask(t, "GET", path, "")
		list, ok := answer.([]any)
		if status != http.StatusOK || !ok || len(list) != 1 {
			t.Fatalf("%s: %d %v", path, status, answer)
		}
		object := list[0].(map[string]any)
		delete(object, "result") // of the check, if that is over already
		if got := strings.Join(slices.Sorted(maps.Keys(object)), " "); got != want {
			t.Errorf("%s:\n got %s\nwant %s", path, got, want)
		}
	}
}

func TestErrorsCarryCodeAndStatus(t *testing.T) {
	s := serve(t)
	s.ask(t, "POST", "/v1/volumes", `{"name":"web","size":1048576}`)
	s.ask(t, "POST", "/v1/snapshots", `{"volumes":["web"],"name":"was"}`)
	for _, c := range []struct {
		method, path, body string
		status             int
		code               string
	}{
		{"GET", "/v1/volumes/nope", "", 404, "not_found"},
		{"GET", "/v1/snapshots/web@nope", "", 404, "not_found"},
		{"GET", "/v1/snapshots/web", "", 400, "usage"},
		{"POST", "/v1/volumes", `{"name":"web","size":1048576}`, 409, "refused"},
		{"POST", "/v1/volumes", `{"name":"WEB","size":1048576}`, 400, "usage"},
		{"POST", "/v1/volumes", `{"name":"new","size":-4096}`, 400, "usage"},
		{"POST", "/v1/volumes", `{"name":"new","size":"big"}`, 400, "usage"},
		{"POST", "/v1/volumes", `{"name":"new","sizee":4096}`, 400, "usage"},
		{"POST", "/v1/volumes", `{"name":`, 400, "usage"},
		{"POST", "/v1/volumes", ``, 400, "usage"},
		{"POST", "/v1/volumes", strings.Repeat(" ", 5<<20), 400, "usage"},
		{"POST", "/v1/snapshots", `{"volumes":[],"name":"one"}`, 400, "usage"},
		{"PATCH", "/v1/pool", `{}`, 400, "usage"},
		{"PATCH", "/v1/pool", `{"quota_bytes":-1}`, 400, "usage"},
		{"PATCH", "/v1/pool", `{"quota_bytes":4096}`, 400, "usage"},
		{"PATCH", "/v1/pool", `{"quota_bytes":0,"reserve_bytes":4096}`, 400, "usage"},
		{"GET", "/v1/pool?top=101", "", 400, "usage"},
		{"POST", "/v1/snapshots", `{"volumes":["web"],"name":"one","keep_for_seconds":-1}`, 400, "usage"},
		{"POST", "/v1/snapshots", `{"volumes":["web"],"name":"one","keep_for_seconds":1e300}`, 400, "usage"},
		{"POST", "/v1/snapshots", `{"volumes":["web"],"name":"one","technique":"cow"}`, 400, "usage"},
		{"POST", "/v1/snapshots", `{"volumes":["web"],"name":"one","to":"/x.img"}`, 400, "usage"},
		{"POST", "/v1/snapshots", `{"volumes":["web"],"name":"one","technique":"best"}`, 400, "usage"},
		{"POST", "/v1/snapshots", `{"volumes":["web"],"name":"one","on_full":"drop-snapshot"}`, 400, "usage"},
		{"POST", "/v1/snapshots", `{"volumes":["web"],"name":"one","on_full":"panic"}`, 400, "usage"},
		{"POST", "/v1/adoptions", `{"name":"new","path":"relative"}`, 400, "usage"},
		{"POST", "/v1/adoptions", `{"name":"new","path":"/"}`, 400, "usage"},
		{"POST", "/v1/adoptions", `{"name":"new","path":"/nothere"}`, 404, "not_found"},
		{"POST", "/v1/adoptions", `{"name":"new"}`, 400, "usage"},
		{"POST", "/v1/volumes", `{"name":"new","size":4096,"inplace":"relative"}`, 400, "usage"},
		{"POST", "/v1/volumes", `{"name":"new","inplace":"/nodir/new"}`, 400, "usage"},
		{"POST", "/v1/volumes", `{"name":"new","size":4096,"inplace":"/nodir/new"}`, 404, "not_found"},
		{"POST", "/v1/volumes", `{"name":"new","from":"web@one","inplace":"/nodir/new"}`, 400, "usage"},
		{"POST", "/v1/volumes/web/copy-back", "", 400, "usage"},
		{"POST", "/v1/snapshots/web@was/rollback-ranges", `{}`, 400, "usage"},
		{"POST", "/v1/snapshots/web@was/rollback-ranges", `{"ranges":[]}`, 400, "usage"},
		{"POST", "/v1/snapshots/web@was/rollback-ranges", `{"ranges":[{"offset":1,"length":4096}]}`, 400, "usage"},
		{"POST", "/v1/snapshots/web@was/rollback-ranges", `{"ranges":[{"offset":0,"length":0}]}`, 400, "usage"},
		{"POST", "/v1/snapshots/web@was/rollback-ranges", `{"ranges":[{"offset":0,"length":9223372036854775807}]}`, 400, "usage"},
		{"POST", "/v1/snapshots/web/rollback-ranges", `{"ranges":[{"offset":0,"length":4096}]}`, 400, "usage"},
		{"POST", "/v1/snapshots/web@nope/rollback-ranges", `{"ranges":[{"offset":0,"length":4096}]}`, 404, "not_found"},
		{"POST", "/v1/volumes/nope/copy-back", "", 404, "not_found"},
		{"POST", "/v1/imports", `{"name":"new","file":"relative"}`, 400, "usage"},
		{"POST", "/v1/exports", `{"source":"web","file":"relative"}`, 400, "usage"},
		{"POST", "/v1/exports", `{"source":"web","file":"/x","format":"vmdk"}`, 400, "usage"},
		{"GET", "/v1/bookmarks?volume=nope", "", 404, "not_found"},
		{"POST", "/v1/bookmarks", `{"snapshot":"web@nope","name":"k"}`, 404, "not_found"},
		{"POST", "/v1/bookmarks", `{"snapshot":"web","name":"k"}`, 400, "usage"},
		{"DELETE", "/v1/bookmarks/web%23nope", "", 404, "not_found"},
		{"DELETE", "/v1/bookmarks/web@nope", "", 400, "usage"},
		{"GET", "/v1/diff", "", 400, "usage"},
		{"GET", "/v1/diff?from=web", "", 400, "usage"},
		{"GET", "/v1/diff?from=web@nope", "", 404, "not_found"},
		{"GET", "/v1/diff?from=web%23nope", "", 404, "not_found"},
		{"GET", "/v1/jobs/nope?wait_seconds=1000", "", 400, "usage"},
		{"GET", "/v1/jobs/nope?wait_seconds=1", "", 404, "not_found"},
		{"GET", "/v1/nope", "", 404, "not_found"},
		{"GET", `/v1/"\`, "", 404, "not_found"},
		{"PUT", "/v1/volumes", "", 404, "not_found"},
	} {
		status, answer := s.ask(t, c.method, c.path, c.body)
		object, ok := answer.(map[string]any)
		if status != c.status || !ok || object["code"] != c.code || object["message"] == "" {
			t.Errorf("%s %s %.60s: %d %v", c.method, c.path, c.body, status, answer)
		}
	}
	if volumes, err := s.client.Volumes(t.Context()); err != nil || len(volumes) != 1 {
		t.Errorf("left: %+v, %v", volumes, err)
	}
}

// TestWaitingForAJobEndsWithTheJob, and not with the time that was given.
func TestWaitingForAJobEndsWithTheJob(t *testing.T) {
	s := serve(t)
	job, err := s.client.Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	job, err = s.client.Job(t.Context(), job.ID, time.Minute)
	if err != nil || job.State != contract.JobDone || job.Result.Check == nil {
		t.Fatalf("%+v, %v", job, err)
	}
}

// TestClientWaitsForADaemonThatStarts: the first request may come before the socket is there.
func TestClientWaitsForADaemonThatStarts(t *testing.T) {
	s := serve(t)
	later := s.socket + ".later"
	c := client.New(later, time.Minute)
	defer c.Close()
	answered := make(chan error, 1)
	go func() {
		_, err := c.Status(t.Context())
		answered <- err
	}()
	if err := os.Rename(s.socket, later); err != nil {
		t.Fatal(err)
	}
	if err := <-answered; err != nil {
		t.Fatal(err)
	}
}

// TestClientSaysThatNobodyAnswers, for a socket that is not there and for a dead one.
func TestClientSaysThatNobodyAnswers(t *testing.T) {
	dir := t.TempDir()
	dead := filepath.Join(dir, "dead")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	for _, socket := range []string{dead, filepath.Join(dir, "nothing")} {
		c := client.New(socket, 0)
		if _, err := c.Status(t.Context()); !errors.Is(err, client.ErrNoDaemon) || !strings.Contains(err.Error(), socket) {
			t.Errorf("%s: %v", socket, err)
		}
		c.Close()
	}
}
