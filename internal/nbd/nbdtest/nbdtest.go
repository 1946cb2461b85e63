// Package nbdtest serves disks in memory to tests, and finds the programs that tests
// of NBD use.
package nbdtest

import (
	"context"
	"errors"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"varve/internal/block"
	"varve/internal/block/memdisk"
	"varve/internal/nbd/server"
)

// patience is how long tests wait for what must happen.
const patience = 20 * time.Second

// Exports is a set of exports by name. Set it up before it is served.
type Exports struct {
	// ByName makes the export of a name, each time with a device of its own.
	ByName map[string]func() *server.Export

	mu     sync.Mutex
	opened int
	closed int
}

// Single offers one disk as the default export.
func Single(d *memdisk.Disk) *Exports {
	return &Exports{ByName: map[string]func() *server.Export{
		"": func() *server.Export { return &server.Export{Device: d.Open(), Description: "a disk in memory"} },
	}}
}

// List implements server.Exports.
func (e *Exports) List(context.Context) ([]server.ExportInfo, error) {
	var list []server.ExportInfo
	for name, open := range e.ByName {
		x := open()
		list = append(list, server.ExportInfo{Name: name, Description: x.Description})
		_ = x.Device.Close()
	}
	slices.SortFunc(list, func(a, b server.ExportInfo) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	return list, nil
}

// Open implements server.Exports.
func (e *Exports) Open(_ context.Context, name string, _ *server.Session) (*server.Export, error) {
	open, ok := e.ByName[name]
	if !ok {
		return nil, server.ErrUnknownExport
	}
	x := open()
	e.mu.Lock()
	e.opened++
	e.mu.Unlock()
	if r, ok := x.Device.(block.ResidentReader); ok {
		x.Device = residentCounted{counted{x.Device, e}, r}
	} else {
		x.Device = counted{x.Device, e}
	}
	return x, nil
}

// StillOpen is how many devices are open.
func (e *Exports) StillOpen() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.opened - e.closed
}

type counted struct {
	block.Device
	exports *Exports
}

func (c counted) Close() error {
	c.exports.mu.Lock()
	c.exports.closed++
	c.exports.mu.Unlock()
	return c.Device.Close()
}

type residentCounted struct {
	counted
	block.ResidentReader
}

// Disk makes a disk in memory.
func Disk(t testing.TB, sizeBytes int64) *memdisk.Disk {
	t.Helper()
	d, err := memdisk.New(sizeBytes)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// Server is a server on a unix socket.
type Server struct {
	*server.Server
	Socket string // path
}

// Serve runs a server until the test ends, and checks then that it stops and has
// closed all devices.
func Serve(t testing.TB, cfg server.Config) *Server {
	t.Helper()
	s, err := server.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "nbd") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		if err := <-served; !errors.Is(err, server.ErrServerClosed) {
			t.Errorf("Serve returned %v", err)
		}
		if e, ok := cfg.Exports.(*Exports); ok && e.StillOpen() != 0 {
			t.Errorf("%d devices are still open", e.StillOpen())
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return &Server{Server: s, Socket: socket}
}

// URI leads to an export of s.
func (s *Server) URI(export string) string { return UnixURI(s.Socket, export) }

// UnixURI leads to an export of the server at a unix socket.
func UnixURI(socket, export string) string {
	return (&url.URL{Scheme: "nbd+unix", Path: "/" + export, RawQuery: "socket=" + socket}).String()
}

// Context ends with the test, or when it takes too long.
func Context(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// Run runs a program and returns what it printed on stdout. A program that is missing
// or fails, fails the test.
func Run(t testing.TB, debianPackage, program string, args ...string) string {
	t.Helper()
	out, err := Try(t, debianPackage, program, args...)
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", program, args, err, out)
	}
	return out
}

// Try is Run for programs that may fail; what they print on stderr is returned, too.
func Try(t testing.TB, debianPackage, program string, args ...string) (string, error) {
	t.Helper()
	path := Program(t, debianPackage, program)
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = t.TempDir() // fio leaves files where it runs
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// Program finds a program; if it is missing the test fails and names the package.
func Program(t testing.TB, debianPackage, program string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		t.Fatalf("%s is missing: install the Debian package %s", program, debianPackage)
	}
	return path
}
