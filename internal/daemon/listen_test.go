package daemon

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// abandon leaves a socket at path that nobody listens on, as a killed process does.
func abandon(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Fatal(err)
	}
}

func TestListenReplacesDeadSocket(t *testing.T) {
	path := filepath.Join(scratch(t), "s")
	abandon(t, path)
	abandon(t, path+"."+"1") // what a start that was killed at the worst moment leaves is in nobody's way
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if got := l.Addr().String(); got != path {
		t.Errorf("address %q", got)
	}
	info, err := os.Lstat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	accepted := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			c.Close()
		}
		accepted <- err
	}()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if err := <-accepted; err != nil {
		t.Fatal(err)
	}
}

func TestListenRefusesServedAddresses(t *testing.T) {
	for _, addr := range []string{filepath.Join(scratch(t), "s"), "127.0.0.1:0"} {
		l, err := Listen(addr)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if second, err := Listen(l.Addr().String()); !errors.Is(err, ErrServed) {
			t.Errorf("%s twice: %v, %v", addr, second, err)
		}
	}
}

func TestListenLeavesOtherThingsAlone(t *testing.T) {
	dir := scratch(t)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, dir} {
		if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), "no socket") {
			t.Errorf("%s: %v", path, err)
		}
	}
	if got, err := os.ReadFile(file); err != nil || string(got) != "mine" {
		t.Errorf("the file holds %q, %v", got, err)
	}
}

func TestListenSaysWhenAPathIsTooLong(t *testing.T) {
	_, err := Listen(filepath.Join(scratch(t), strings.Repeat("x", maxSocketPath)))
	if err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("%v", err)
	}
}

// TestCloseLeavesSuccessorsSocket: the path may belong to the next daemon already.
func TestCloseLeavesSuccessorsSocket(t *testing.T) {
	path := filepath.Join(scratch(t), "s")
	first, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	second, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Fatalf("the successor's socket is gone: %v", err)
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); err == nil {
		t.Fatal("the last one left its socket")
	}
}
