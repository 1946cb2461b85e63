package clients

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"varve/internal/block"
	"varve/internal/contract"
	"varve/internal/nbd/client"
)

// quickExit spares the second for which a process under the race detector lingers at its end.
const quickExit = "GORACE=atexit_sleep_ms=0"

// daemon is a running `varve serve`.
type daemon struct {
	t     *testing.T
	data  string // its data directory
	cmd   *exec.Cmd
	log   string        // file of what it writes to stderr
	ended chan struct{} // closed when the process is gone
	err   error         // how it ended; read after ended
}

// serve starts a daemon and returns when it says that it is ready.
func serve(t *testing.T, data string, flags ...string) *daemon {
	t.Helper()
	return serveProgram(t, program, data, flags...)
}

// serveProgram is serve with another binary.
func serveProgram(t *testing.T, program, data string, flags ...string) *daemon {
	t.Helper()
	beside := scratch(t)
	ready, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(beside, "notify"), Net: "unixgram"})
	must(t, err, "listen for the daemon")
	d := &daemon{t: t, data: data, log: filepath.Join(beside, "log"), ended: make(chan struct{})}
	log, err := os.Create(d.log)
	must(t, err, "make the daemon's log")
	defer log.Close()
	d.cmd = command(context.Background(), program, append([]string{"serve", "--data", data}, flags...)...)
	d.cmd.Env = append(os.Environ(), quickExit, "NOTIFY_SOCKET="+filepath.Join(beside, "notify"))
	d.cmd.Stderr = log
	must(t, d.cmd.Start(), "start the daemon")
	go func() {
		d.err = d.cmd.Wait()
		ready.Close()
		close(d.ended)
	}()
	t.Cleanup(d.cleanUp)
	if err := ready.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	state := make([]byte, 100)
	if n, err := ready.Read(state); err != nil || string(state[:n]) != "READY=1" {
		t.Fatalf("the daemon is not ready: %q %v\n%s", state[:n], err, d.said())
	}
	return d
}

func (d *daemon) said() string {
	said, err := os.ReadFile(d.log)
	if err != nil {
		return err.Error()
	}
	return string(said)
}

func (d *daemon) cleanUp() {
	d.kill()
	said := d.said()
	if strings.Contains(said, "DATA RACE") || strings.Contains(said, "panic") {
		d.t.Errorf("the daemon complained:\n%s", said)
	} else if d.t.Failed() {
		d.t.Logf("daemon:\n%s", said)
	}
}

// kill ends the daemon as SIGKILL does, without its doing anything about it.
func (d *daemon) kill() {
	_ = d.cmd.Process.Kill() // it may be gone already
	<-d.ended
}

// stop ends the daemon as systemd does.
func (d *daemon) stop() {
	d.t.Helper()
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		d.t.Fatal(err)
	}
	select {
	case <-d.ended:
	case <-time.After(patience):
		d.t.Fatalf("the daemon does not stop:\n%s", d.said())
	}
	if d.err != nil {
		d.t.Fatalf("the daemon ended with %v:\n%s", d.err, d.said())
	}
}

// try runs a command of varve against the daemon; it may be called from any goroutine.
func (d *daemon) try(args ...string) outcome {
	return execute("", program, append([]string{"--data", d.data}, args...)...)
}

// varve runs a command of varve that must succeed.
func (d *daemon) varve(args ...string) {
	d.t.Helper()
	run(d.t, program, append([]string{"--data", d.data}, args...)...)
}

// ask runs a command of varve that must succeed and decodes its result.
func ask[T any](d *daemon, args ...string) (result T) {
	d.t.Helper()
	out := run(d.t, program, append([]string{"--data", d.data, "-o", "json"}, args...)...)
	if err := json.Unmarshal([]byte(out), &result); err != nil {
		d.t.Fatalf("varve %q: %v\n%s", args, err, out)
	}
	return result
}

// refused runs a command of varve that must fail with this status and these words.
func (d *daemon) refused(status int, words string, args ...string) {
	d.t.Helper()
	wantRefusal(d.t, d.try(args...), status, words)
}

func wantRefusal(t *testing.T, o outcome, status int, words string) {
	t.Helper()
	first, _, _ := strings.Cut(o.stderr, "\n")
	if o.status != status || !strings.HasPrefix(first, "varve: ") || !strings.Contains(first, words) {
		t.Fatalf("status %d (%v), want %d and %q, not %q", o.status, o.err, status, words, o.stderr)
	}
}

// checkpoints counts those of the pool since it was made.
func (d *daemon) checkpoints() uint64 {
	d.t.Helper()
	return ask[contract.Pool](d, "pool", "show").Checkpoints
}

func (d *daemon) socket() string { return filepath.Join(d.data, "nbd.sock") }

// uri is where an export is served.
func (d *daemon) uri(export string) string {
	return "nbd+unix:///" + export + "?socket=" + d.socket()
}

// connect opens an export with a client of our own.
func (d *daemon) connect(export string) *client.Client {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := client.Dial(ctx, d.uri(export), client.Options{})
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { c.Close() })
	return c
}

// write stores p at off.
func write(c *client.Client, p []byte, off int64) error {
	return submit(c, []*block.Op{{Kind: block.OpWrite, Offset: off, Length: int64(len(p)), Data: p}})
}

// submit performs ops and returns the errors of those that failed.
func submit(c *client.Client, ops []*block.Op) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c.Submit(ctx, ops)
	var errs []error
	for _, op := range ops {
		errs = append(errs, op.Err)
	}
	return errors.Join(errs...)
}

// read returns length bytes at off.
func read(c *client.Client, off, length int64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	p := make([]byte, length)
	err := c.ReadAt(ctx, p, off)
	return p, err
}

func flush(c *client.Client) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return c.Flush(ctx)
}

// checkPool has the pool verified, by the daemon.
func (d *daemon) checkPool() {
	d.t.Helper()
	if found := ask[contract.Check](d, "pool", "check"); len(found.Damage) > 0 {
		d.t.Fatalf("the pool is damaged: %+v", found.Damage)
	}
}

// wantDisconnected wants the server to have cut a connection off.
func wantDisconnected(t *testing.T, c *client.Client) {
	t.Helper()
	if _, err := read(c, 0, block.Size); !errors.Is(err, client.ErrDisconnected) {
		t.Fatalf("the connection still answers: %v", err)
	}
}

// must fails the test if err is not nil.
func must(t *testing.T, err error, format string, args ...any) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", fmt.Sprintf(format, args...), err)
	}
}
