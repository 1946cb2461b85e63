package daemon

import (
	"context"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"varve/internal/block"
	"varve/internal/contract"
	"varve/internal/nbd/client"
	"varve/internal/pool"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(victimIn); dir != "" {
		beKilled(dir)
	}
	goleak.VerifyTestMain(m)
}

// deadline bounds everything that a test waits for.
const deadline = time.Minute

// scratch is a directory whose path is short enough for sockets.
func scratch(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "varve")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func start(t *testing.T, dir string) *Daemon {
	t.Helper()
	d, err := Start(t.Context(), Config{DataDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Stop(context.Background()); err != nil && !errors.Is(err, block.ErrClosed) {
			t.Error(err)
		}
	})
	return d
}

func (d *Daemon) mustCreate(t *testing.T, name string) {
	t.Helper()
	if _, err := d.CreateVolume(t.Context(), contract.CreateVolume{Name: name, Size: 1 << 20}); err != nil {
		t.Fatal(err)
	}
}

func (d *Daemon) mustSnapshot(t *testing.T, r contract.CreateSnapshot) {
	t.Helper()
	if _, err := d.CreateSnapshots(t.Context(), r); err != nil {
		t.Fatal(err)
	}
}

// uri is where an export is served.
func (d *Daemon) uri(export string) string {
	return "nbd+unix:///" + url.PathEscape(export) + "?socket=" + url.QueryEscape(NBDSocket(d.dir))
}

func dial(t *testing.T, d *Daemon, export string) *client.Client {
	t.Helper()
	c, err := client.Dial(t.Context(), d.uri(export), client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func write(t *testing.T, c *client.Client, data []byte) error {
	t.Helper()
	op := &block.Op{Kind: block.OpWrite, Length: int64(len(data)), Data: data}
	c.Submit(t.Context(), []*block.Op{op})
	return op.Err
}

func wantCode(t *testing.T, err error, code contract.Code) {
	t.Helper()
	if told := Describe(err); told == nil || told.Code != code {
		t.Fatalf("error %v is not of code %s", err, code)
	}
}

// TestStopWithIdleClient: an idle client does not hold a stop up, and what it wrote is there afterwards.
func TestStopWithIdleClient(t *testing.T) {
	dir := scratch(t)
	d, err := Start(t.Context(), Config{DataDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	d.mustCreate(t, "web")
	c := dial(t, d, "web")
	if err := write(t, c, []byte("kept")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	if err := d.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if ctx.Err() != nil {
		t.Fatal("the client was waited for until the deadline")
	}
	d = start(t, dir)
	got := make([]byte, 4)
	if err := dial(t, d, "web").ReadAt(t.Context(), got, 0); err != nil || string(got) != "kept" {
		t.Fatalf("read %q, %v", got, err)
	}
}

// TestSessionsFollowRename: a client that wrote before a rename still stands in
// the way after it, and is found when it is to be disconnected.
func TestSessionsFollowRename(t *testing.T) {
	d := start(t, scratch(t))
	d.mustCreate(t, "old")
	d.mustSnapshot(t, contract.CreateSnapshot{Volumes: []string{"old"}, Name: "s"})
	c := dial(t, d, "old")
	if err := write(t, c, []byte("x")); err != nil {
		t.Fatal(err)
	}
	v, err := d.ChangeVolume(t.Context(), "old", contract.ChangeVolume{Name: "new"})
	if err != nil {
		t.Fatal(err)
	}
	if len(v.Clients) != 1 || v.Clients[0].Export != "new" || !v.Clients[0].Written {
		t.Fatalf("clients after the rename: %+v", v.Clients)
	}
	_, err = d.Rollback(t.Context(), "new@s", false)
	wantCode(t, err, contract.CodeRefused)
	if _, err := d.Rollback(t.Context(), "new@s", true); err != nil {
		t.Fatal(err)
	}
	if err := write(t, c, []byte("y")); !errors.Is(err, client.ErrDisconnected) {
		t.Fatalf("write after the rollback: %v", err)
	}
}

// TestForceReachesOnlyItsVolume: other volumes' clients stay connected.
func TestForceReachesOnlyItsVolume(t *testing.T) {
	d := start(t, scratch(t))
	d.mustCreate(t, "a")
	d.mustCreate(t, "b")
	d.mustSnapshot(t, contract.CreateSnapshot{Volumes: []string{"a"}, Name: "s"})
	on := map[string]*client.Client{}
	for _, export := range []string{"a", "b", "a@s"} {
		on[export] = dial(t, d, export)
	}
	for _, export := range []string{"a", "b"} {
		if err := write(t, on[export], []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := d.Rollback(t.Context(), "a@s", true); err != nil {
		t.Fatal(err)
	}
	for export, c := range on {
		err := c.ReadAt(t.Context(), make([]byte, 1), 0)
		if gone := errors.Is(err, client.ErrDisconnected); gone != (export == "a") {
			t.Errorf("%s: %v", export, err)
		}
	}
}

// TestRefusedStartReleasesThePool: a daemon that cannot listen leaves the pool to the next.
func TestRefusedStartReleasesThePool(t *testing.T) {
	dir := scratch(t)
	taken := filepath.Join(dir, "taken")
	if err := os.WriteFile(taken, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(dir, "data")
	if d, err := Start(t.Context(), Config{DataDir: data, NBD: []string{taken}}); err == nil {
		d.Stop(t.Context())
		t.Fatal("it listens on a file")
	}
	start(t, data)
}

// TestLeftoversOfAKilledDaemonGo: temporary snapshots do not outlive the job that made them.
func TestLeftoversOfAKilledDaemonGo(t *testing.T) {
	dir := scratch(t)
	d, err := Start(t.Context(), Config{DataDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	d.mustCreate(t, "web")
	d.mustSnapshot(t, contract.CreateSnapshot{Volumes: []string{"web"}, Name: "mine"})
	if _, err := d.temporarySnapshot(t.Context(), "web", "0123456789"); err != nil {
		t.Fatal(err)
	}
	if err := d.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	d = start(t, dir)
	left, err := d.Snapshots(t.Context(), "web")
	if err != nil || len(left) != 1 || left[0].Name != "mine" {
		t.Fatalf("left: %+v, %v", left, err)
	}
}

// TestDescribeNamesCodeAndHint: sentinels keep their code however often they are wrapped.
func TestDescribeNamesCodeAndHint(t *testing.T) {
	for _, c := range codes {
		err := errors.Join(errors.New("outer"), c.is)
		if got := Describe(err); got.Code != c.code || got.Hint != c.hint {
			t.Errorf("%v: %+v", c.is, got)
		}
	}
	if got := Describe(errors.New("something else")); got.Code != contract.CodeFailed {
		t.Errorf("unknown error: %+v", got)
	}
	if got := Describe(hinted(pool.ErrInUse, pool.ErrInUse, "look at %s", "it")); got.Code != contract.CodeRefused || got.Hint != "look at it" {
		t.Errorf("hinted: %+v", got)
	}
}
