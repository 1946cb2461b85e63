package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/api/client"
)

const (
	startTime = time.Minute // that a server has until it answers
	stopTime  = time.Minute // that it has to end
)

// server is a running server.
type server struct {
	cmd   *exec.Cmd
	ended chan struct{} // closed when the process has
	uri   string        // of its disk
	dir   string        // its own, removed with it
	api   *client.Client
	dirty bool // written to since it last settled

	filled figures // of the run that filled its disk, if that began empty
}

// start runs a server, whose directory dir becomes its own, and returns when it has made the file ready.
func start(ctx context.Context, dir, uri, ready, name string, args ...string) (_ *server, err error) {
	v := &server{cmd: exec.Command(name, args...), ended: make(chan struct{}), uri: uri, dir: dir, dirty: true}
	said := new(bytes.Buffer)
	v.cmd.Stdout, v.cmd.Stderr = said, said
	v.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := v.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", filepath.Base(name), err)
	}
	go func() {
		defer close(v.ended)
		_ = v.cmd.Wait() // some end with the signal, and that is no failure
	}()
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
			continue
		case <-v.ended:
			err = fmt.Errorf("%s has ended: %s", filepath.Base(name), bytes.TrimSpace(said.Bytes()))
		case <-deadline.Done():
			err = fmt.Errorf("%s does not get ready: %w", filepath.Base(name), deadline.Err())
		}
		return nil, errors.Join(err, v.stop())
	}
}

// stop ends the server and removes its files.
func (v *server) stop() error {
	if err := v.end(); err != nil {
		return err
	}
	return os.RemoveAll(v.dir)
}

// end ends the server and leaves its files.
func (v *server) end() error {
	if v.api != nil {
		v.api.Close()
	}
	if err := v.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	kill := time.AfterFunc(stopTime, func() { _ = v.cmd.Process.Kill() }) // it does not end by itself
	defer kill.Stop()
	<-v.ended
	return nil
}

// fleet are servers that live at the same time.
type fleet []*server

func (f fleet) stop() (err error) {
	for _, v := range f {
		err = errors.Join(err, v.stop())
	}
	return err
}

// settle writes out what earlier runs left in the page cache, and lets pools give back what nothing
// holds any more, so that neither is in the next run's way.
func (f fleet) settle(ctx context.Context) error {
	for _, v := range f {
		if v.api != nil && v.dirty {
			if err := v.reclaim(ctx); err != nil {
				return err
			}
		}
		v.dirty = false
	}
	return f.sync()
}

// sync writes out the file system that all servers' files lie on.
func (f fleet) sync() error {
	if len(f) == 0 {
		return nil
	}
	return syncFileSystem(f[0].dir)
}

// syncFileSystem writes out the file system that a directory lies on.
func syncFileSystem(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return unix.Syncfs(int(d.Fd()))
}

// cpuTime is what the server's process has used so far, user and system time.
func (v *server) cpuTime() (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", v.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	return parseStat(stat)
}

// parseStat adds utime and stime of proc_pid_stat(5), fields 14 and 15. The second, the
// program's name in parentheses, may hold anything.
func parseStat(stat []byte) (time.Duration, error) {
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 13 {
		return 0, fmt.Errorf("too short for a process's stat: %q", stat)
	}
	user, err := strconv.ParseInt(string(fields[11]), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("user time: %w", err)
	}
	system, err := strconv.ParseInt(string(fields[12]), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("system time: %w", err)
	}
	const tick = time.Second / 100 // USER_HZ, which is 100 wherever Linux runs Go
	return time.Duration(user+system) * tick, nil
}

// peakRSS is the most memory in bytes that the server's process had.
func (v *server) peakRSS() (int64, error) {
	return v.procField("status", "VmHWM")
}

// dirtied is how many bytes of page cache the server's process has made dirty.
func (v *server) dirtied() (int64, error) {
	return v.procField("io", "write_bytes")
}

func (v *server) procField(file, name string) (int64, error) {
	value, err := field(filepath.Join("/proc", strconv.Itoa(v.cmd.Process.Pid), file), name)
	if err != nil {
		return 0, err
	}
	number, kib := strings.CutSuffix(value, " kB")
	n, err := strconv.ParseInt(number, 10, 64)
	if kib {
		n *= 1024
	}
	return n, err
}
