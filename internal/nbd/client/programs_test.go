package client_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"varve/internal/block"
	"varve/internal/nbd"
	"varve/internal/nbd/client"
	"varve/internal/nbd/nbdtest"
)

// foreign runs a server of others on a unix socket until the test ends. args follow
// the socket's path, which replaces SOCKET in them.
func foreign(t testing.TB, debianPackage, program string, args ...string) (socket string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "nbd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket = filepath.Join(dir, "s")
	for i, a := range args {
		if a == "SOCKET" {
			args[i] = socket
		}
	}
	cmd := exec.Command(nbdtest.Program(t, debianPackage, program), args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s: %s", program, stderr.String())
		}
	})
	// The server says nowhere that it listens, but by letting us in.
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for ctx := nbdtest.Context(t); ; {
		if conn, err := net.Dial("unix", socket); err == nil {
			_ = conn.Close()
			return socket
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s does not listen", program)
		}
	}
}

const size = 1<<20 + 512

func rawFile(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestQemuNBD(t *testing.T) {
	path := rawFile(t)
	socket := foreign(t, "qemu-utils", "qemu-nbd", "--socket", "SOCKET", "--format", "raw", "--export-name", "disk",
		"--persistent", "--shared", "10", "--discard", "unmap", "--description", "of qemu", path)
	uri := nbdtest.UnixURI(socket, "disk")
	list, err := client.ListExports(nbdtest.Context(t), uri, client.Options{})
	if err != nil || len(list) != 1 || list[0].Name != "disk" {
		t.Error(list, err)
	}
	for name, o := range offers {
		t.Run(name, func(t *testing.T) {
			c := open(t, uri, o)
			if c.SizeBytes() != size {
				t.Fatal(c.SizeBytes())
			}
			checkDevice(t, c, 50)
		})
	}
	if _, err := client.Dial(nbdtest.Context(t), nbdtest.UnixURI(socket, "nosuch"), client.Options{}); !errors.Is(err, nbd.RepErrUnknown) {
		t.Error(err)
	}
}

func TestQemuNBDReadOnly(t *testing.T) {
	socket := foreign(t, "qemu-utils", "qemu-nbd", "--socket", "SOCKET", "--format", "raw", "--read-only", "--persistent", "--shared", "10", rawFile(t))
	c := open(t, nbdtest.UnixURI(socket, ""), client.Options{})
	op := &block.Op{Length: 1, Data: []byte{1}}
	c.Submit(context.Background(), []*block.Op{op})
	if !errors.Is(op.Err, block.ErrReadOnly) {
		t.Error(op.Err)
	}
}

// nbdkit shows what a server may lack, and what it may insist on.
func TestNbdkit(t *testing.T) {
	for name, args := range map[string][]string{
		"memory":                {"memory", "1049088"},
		"no structured replies": {"--no-sr", "memory", "1049088"},
		"no zeroing":            {"--filter=nozero", "memory", "1049088"},
		"one at a time":         {"--filter=noparallel", "memory", "1049088"},
		"blocks of 4096": {"--filter=blocksize-policy", "memory", "1M",
			"blocksize-minimum=4096", "blocksize-preferred=4096", "blocksize-maximum=64k", "blocksize-error-policy=error"},
	} {
		t.Run(name, func(t *testing.T) {
			socket := foreign(t, "nbdkit", "nbdkit", append([]string{"--foreground", "--unix", "SOCKET"}, args...)...)
			checkDevice(t, open(t, nbdtest.UnixURI(socket, ""), client.Options{}), 50)
		})
	}
}

// What the server answers with an error is an error of that kind here.
func TestNbdkitErrors(t *testing.T) {
	socket := foreign(t, "nbdkit", "nbdkit", "--foreground", "--unix", "SOCKET", "--filter=error", "memory", "1M", "error=ENOSPC", "error-rate=100%")
	c := open(t, nbdtest.UnixURI(socket, ""), client.Options{})
	op := &block.Op{Length: 512, Data: bytes.Repeat([]byte{1}, 512)}
	c.Submit(nbdtest.Context(t), []*block.Op{op})
	if !errors.Is(op.Err, block.ErrNoSpace) || !errors.Is(op.Err, nbd.ENOSPC) {
		t.Error(op.Err)
	}
	if err := c.ReadAt(nbdtest.Context(t), make([]byte, 1), 0); !errors.Is(err, block.ErrNoSpace) {
		t.Error(err)
	}
}

func TestOldstyleIsRefused(t *testing.T) {
	socket := foreign(t, "nbdkit", "nbdkit", "--foreground", "--oldstyle", "--unix", "SOCKET", "memory", "1M")
	if _, err := client.Dial(nbdtest.Context(t), nbdtest.UnixURI(socket, ""), client.Options{}); !errors.Is(err, client.ErrProtocol) {
		t.Error(err)
	}
}
