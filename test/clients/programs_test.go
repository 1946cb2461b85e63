package clients

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// patience is how long tests wait for anything that must happen.
const patience = time.Minute

// scratch makes a directory whose path is short enough for sockets in it.
func scratch(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(root, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove scratch directory: %v", err)
		}
	})
	return dir
}

// await returns when condition holds, which it tries again and again.
func await(t *testing.T, what string, condition func() bool) {
	t.Helper()
	if !holdsInTime(condition) {
		t.Fatalf("still not so after %v: %s", patience, what)
	}
}

func holdsInTime(condition func() bool) bool {
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for !condition() {
		select {
		case <-again.C:
		case <-deadline.C:
			return false
		}
	}
	return true
}

// command is a program that is killed when patience or the test process ends.
func command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = time.Second
	return cmd
}

// outcome is how a program ended.
type outcome struct {
	stdout, stderr string
	status         int
	err            error // it did not run, or was killed
}

// execute runs a program to its end in dir; it may be called from any goroutine.
func execute(dir, name string, args ...string) outcome {
	return executeWithin(patience, dir, name, args...)
}

// executeWithin is execute with another patience.
func executeWithin(limit time.Duration, dir, name string, args ...string) outcome {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := command(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), quickExit)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	o := outcome{stdout: stdout.String(), stderr: stderr.String()}
	var ended *exec.ExitError
	switch {
	case errors.As(err, &ended) && ended.ExitCode() >= 0:
		o.status = ended.ExitCode()
	case err != nil:
		o.status, o.err = -1, errors.Join(err, ctx.Err())
	}
	return o
}

// run runs a program that must succeed and returns its standard output.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	o := execute("", name, args...)
	if o.status != 0 {
		t.Fatalf("%s %q: status %d, %v\n%s%s", name, args, o.status, o.err, o.stdout, o.stderr)
	}
	return o.stdout
}
