package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

const (
	startTime = 30 * time.Second // that a server has until it answers
	stopTime  = 60 * time.Second // that it has to end
)

// kind is a server to compare.
type kind struct {
	name string
	// start serves a disk of size bytes, whose content lies in dir, on dir/sock.
	start func(ctx context.Context, s settings, dir string) (*server, error)
}

// The one that is measured comes last, the yardstick first.
var kinds = []kind{
	{"qemu-nbd", startQemu},
	{"nbdkit", startNbdkit},
	{"varve", startVarve},
}

// server is a running server.
type server struct {
	cmd *exec.Cmd
	uri string
	dir string
}

func startQemu(ctx context.Context, s settings, dir string) (*server, error) {
	disk, err := rawDisk(dir, s.size)
	if err != nil {
		return nil, err
	}
	socket, ready := filepath.Join(dir, "sock"), filepath.Join(dir, "pid")
	return start(ctx, dir, rawURI(socket), ready, "qemu-nbd",
		"--persistent", "--shared=8", "--format=raw", "--cache=writeback", "--socket="+socket, "--pid-file="+ready, disk)
}

func startNbdkit(ctx context.Context, s settings, dir string) (*server, error) {
	disk, err := rawDisk(dir, s.size)
	if err != nil {
		return nil, err
	}
	socket, ready := filepath.Join(dir, "sock"), filepath.Join(dir, "pid")
	return start(ctx, dir, rawURI(socket), ready, "nbdkit", "--foreground", "--unix="+socket, "--pidfile="+ready, "file", disk)
}

func startVarve(ctx context.Context, s settings, dir string) (*server, error) {
	v, err := serveVarve(ctx, s, dir)
	if err != nil {
		return nil, err
	}
	v.uri = varveURI(dir, "bench")
	if _, err := varve(ctx, s, dir, "volume", "create", "bench", "--size", strconv.FormatInt(s.size, 10)); err != nil {
		return nil, errors.Join(err, v.stop())
	}
	return v, nil
}

func rawURI(socket string) string { return "nbd+unix:///?socket=" + socket }

// serveVarve starts a daemon whose data directory is dir/data.
func serveVarve(ctx context.Context, s settings, dir string) (*server, error) {
	data := filepath.Join(dir, "data")
	// The API's socket appears when NBD is served.
	return start(ctx, dir, "", filepath.Join(data, "api.sock"), s.varve, "serve", "--quiet", "--data", data)
}

func varveURI(dir, export string) string {
	return "nbd+unix:///" + export + "?socket=" + filepath.Join(dir, "data", "nbd.sock")
}

// varve runs a command of varve and returns its result as JSON.
func varve(ctx context.Context, s settings, dir string, args ...string) ([]byte, error) {
	return output(ctx, s.varve, append([]string{"--data", filepath.Join(dir, "data"), "-o", "json"}, args...)...)
}

// output runs a program and returns what it prints.
func output(ctx context.Context, name string, args ...string) ([]byte, error) {
	out, err := exec.CommandContext(ctx, name, args...).Output()
	var ended *exec.ExitError
	if errors.As(err, &ended) {
		return nil, fmt.Errorf("%s %q: %w: %s", name, args, err, ended.Stderr)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return out, nil
}

// rawDisk makes an empty raw image.
func rawDisk(dir string, size int64) (string, error) {
	name := filepath.Join(dir, "disk.raw")
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		return "", err
	}
	return name, os.Truncate(name, size)
}

// start runs a server and returns when it has made the file ready.
func start(ctx context.Context, dir, uri, ready, name string, args ...string) (*server, error) {
	v := &server{cmd: exec.Command(name, args...), uri: uri, dir: dir}
	v.cmd.Stderr = os.Stderr
	v.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := v.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	deadline, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for {
		if _, err := os.Stat(ready); err == nil {
			return v, nil
		}
		select {
		case <-again.C:
		case <-deadline.Done():
			return nil, errors.Join(fmt.Errorf("%s does not get ready: %w", name, deadline.Err()), v.stop())
		}
	}
}

// stop ends the server and removes its disk.
func (v *server) stop() error {
	kill := time.AfterFunc(stopTime, func() { _ = v.cmd.Process.Kill() }) // it has not ended by itself
	defer kill.Stop()
	if err := v.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	// Some end with the signal, and that is no failure.
	if err := v.cmd.Wait(); v.cmd.ProcessState == nil {
		return err
	}
	return os.RemoveAll(v.dir)
}
