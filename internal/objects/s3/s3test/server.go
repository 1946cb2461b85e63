// Package s3test runs a real S3 server for tests: versitygw, a gateway to a directory, as a process of its own on loopback. It
// can be killed and started again on the same files. Proxy is a line to it that is slow, stalls, or breaks.
//
// The server is required by the module test/s3server, whose dependencies varve's own module does not need, and is built
// by the go command, which keeps the program in its cache.
package s3test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"golang.org/x/sys/unix"

	"varve/internal/objects/s3"
)

// patience is how long the server may take for anything but its building.
const patience = time.Minute

// Server is a running S3 server.
type Server struct {
	// Address is where it listens, host:port; as its proxies do, it answers there from start to end of the test, except
	// between Kill and Restart.
	Address string
	// AccessKey and SecretKey are its only user's, random.
	AccessKey, SecretKey string
	// CAFile has the certificate to trust; empty without TLS.
	CAFile string

	t     testing.TB
	dir   string
	args  []string
	cmd   *exec.Cmd
	ended chan struct{} // closed when the process is gone
}

// Options say what the server is like.
type Options struct {
	// TLS has it serve HTTPS alone, with a certificate of its own making.
	TLS bool
}

// Start starts a server without buckets, which ends with the test.
func Start(t testing.TB, o Options) *Server {
	t.Helper()
	program, err := build()
	if err != nil {
		t.Fatalf("build the S3 server: %v", err)
	}
	s := &Server{t: t, dir: t.TempDir(), AccessKey: randomHex(8), SecretKey: randomHex(20)}
	for _, name := range []string{"buckets", "versions", "attributes"} {
		if err := os.Mkdir(filepath.Join(s.dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(s.cleanUp)
	for attempt := 0; ; attempt++ {
		s.Address = freeAddress(t)
		s.args = s.commandLine(program, o)
		err := s.start()
		if err == nil {
			return s
		}
		if attempt == 3 || !strings.Contains(s.said(), "address already in use") {
			t.Fatalf("start the S3 server: %v\n%s", err, s.said())
		}
	}
}

func (s *Server) commandLine(program string, o Options) []string {
	args := []string{program, "--port", s.Address, "--access", s.AccessKey, "--secret", s.SecretKey, "--health", "/health", "--quiet"}
	if o.TLS {
		cert, key := certificate(s.t, s.dir)
		s.CAFile = cert
		args = append(args, "--cert", cert, "--key", key)
	}
	args = append(args, "posix", "--versioning-dir", filepath.Join(s.dir, "versions"))
	if !hasAttributes(s.dir) {
		args = append(args, "--sidecar", filepath.Join(s.dir, "attributes"))
	}
	return append(args, filepath.Join(s.dir, "buckets"))
}

// hasAttributes tells whether files below dir can have the extended attributes in which the server keeps what is no content.
func hasAttributes(dir string) bool {
	return unix.Setxattr(dir, "user.test", []byte("x"), 0) == nil
}

// freeAddress is one on which nobody listens now.
func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// start starts the process and returns when it answers.
func (s *Server) start() error {
	log, err := os.OpenFile(s.log(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(s.args[0], s.args[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.dir, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	s.cmd, s.ended = cmd, make(chan struct{})
	go func(ended chan struct{}) {
		_ = cmd.Wait()
		close(ended)
	}(s.ended)
	return s.answers()
}

// answers returns when the server does.
func (s *Server) answers() error {
	client := http.Client{Transport: s.transport(), Timeout: time.Second}
	defer client.CloseIdleConnections()
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	deadline := time.After(patience)
	for {
		response, err := client.Get(s.scheme() + "://" + s.Address + "/health")
		if err == nil {
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return nil
			}
			err = errors.New(response.Status)
		}
		select {
		case <-again.C:
		case <-s.ended:
			return errors.New("it ended")
		case <-deadline:
			return fmt.Errorf("no answer: %w", err)
		}
	}
}

func (s *Server) scheme() string {
	if s.CAFile != "" {
		return "https"
	}
	return "http"
}

func (s *Server) log() string { return filepath.Join(s.dir, "log") }

func (s *Server) said() string {
	said, err := os.ReadFile(s.log())
	if err != nil {
		return err.Error()
	}
	return string(said)
}

// Kill ends the server as SIGKILL does.
func (s *Server) Kill() {
	_ = s.cmd.Process.Kill() // it may be gone already
	<-s.ended
}

// Restart starts it again after Kill, with what it had.
func (s *Server) Restart() {
	s.t.Helper()
	if err := s.start(); err != nil {
		s.t.Fatalf("start the S3 server again: %v\n%s", err, s.said())
	}
}

func (s *Server) cleanUp() {
	if s.cmd != nil && s.cmd.Process != nil {
		s.Kill()
	}
	if s.t.Failed() {
		s.t.Logf("S3 server:\n%s", s.said())
	}
}

// Options are those with which a store reaches the server.
func (s *Server) Options() s3.Options {
	return s3.Options{AccessKey: s.AccessKey, SecretKey: s.SecretKey, Region: "us-east-1", CAFile: s.CAFile, PlainHTTP: s.CAFile == ""}
}

// Client is a client of another making, for what a store does not do.
func (s *Server) Client() *minio.Client {
	s.t.Helper()
	client, err := minio.New(s.Address, &minio.Options{
		Creds:  credentials.NewStaticV4(s.AccessKey, s.SecretKey, ""),
		Secure: s.CAFile != "", Transport: s.transport(), Region: "us-east-1", BucketLookup: minio.BucketLookupPath,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return client
}

// Kind is what a bucket keeps.
type Kind int

// Plain buckets keep the last put of a name, Versioned ones all, Locked ones also locks.
const (
	Plain Kind = iota
	Versioned
	Locked
)

// Bucket makes a bucket and returns its URL.
func (s *Server) Bucket(name string, kind Kind) string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	client := s.Client()
	err := client.MakeBucket(ctx, name, minio.MakeBucketOptions{ObjectLocking: kind == Locked})
	if err == nil && kind == Versioned {
		err = client.EnableVersioning(ctx, name)
	}
	if err != nil {
		s.t.Fatalf("make bucket %s: %v", name, err)
	}
	return "s3://" + s.Address + "/" + name
}

// build returns the path of the server's program.
var build = sync.OnceValues(func() (string, error) {
	module, err := goCommand("", "list", "-m", "-f", "{{.Dir}}", "varve")
	if err != nil {
		return "", err
	}
	return goCommand(filepath.Join(module, "test", "s3server"), "tool", "-n", "versitygw")
})

// goCommand runs the go command and returns what it prints.
func goCommand(dir string, args ...string) (string, error) {
	cmd := exec.Command("go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // as in the Makefile, so that the program is built once
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return strings.TrimSpace(stdout.String()), nil
}

func randomHex(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}
