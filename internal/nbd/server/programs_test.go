package server_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"varve/internal/block"
	"varve/internal/nbd/nbdtest"
	"varve/internal/nbd/server"
)

// Debian packages of the programs.
const (
	libnbd = "libnbd-bin"
	qemu   = "qemu-utils"
)

// image makes a sparse file of 20 MiB and returns its path and content.
func image(t testing.TB) (string, []byte) {
	t.Helper()
	content := make([]byte, 20<<20)
	copy(content[1<<20:], pattern(3<<20, 1))
	copy(content[9<<20+512:], pattern(5000, 2))
	copy(content[len(content)-100:], pattern(100, 3))
	path := filepath.Join(t.TempDir(), "image.raw")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path, content
}

func TestNbdinfo(t *testing.T) {
	s := serveTwo(t)
	var list struct{ Exports []map[string]any }
	if err := json.Unmarshal([]byte(nbdtest.Run(t, libnbd, "nbdinfo", "--json", "--list", s.URI(""))), &list); err != nil {
		t.Fatal(err)
	}
	if len(list.Exports) != 3 || list.Exports[1]["export-name"] != "BIG" || list.Exports[1]["description"] != "a big one" {
		t.Errorf("%v", list.Exports)
	}
	var one struct{ Exports []map[string]any }
	if err := json.Unmarshal([]byte(nbdtest.Run(t, libnbd, "nbdinfo", "--json", s.URI("frozen"))), &one); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]any{
		"export-size": float64(1 << 20), "is_read_only": true, "can_multi_conn": true, "can_flush": true, "can_fua": true,
		"can_df": true, "can_cache": true, "can_trim": false, "can_zero": false, "block_size_minimum": 1.0,
		"block_size_preferred": 4096.0, "block_size_maximum": float64(32 << 20),
	} {
		if one.Exports[0][key] != want {
			t.Errorf("%s: %v, want %v", key, one.Exports[0][key], want)
		}
	}
	if out, err := nbdtest.Try(t, libnbd, "nbdinfo", s.URI("nosuch")); err == nil || !strings.Contains(out, "nosuch") {
		t.Errorf("unknown export: %v, %s", err, out)
	}
}

// nbdcopy brings an image here and back, nbdinfo shows its holes.
func TestNbdcopy(t *testing.T) {
	path, content := image(t)
	d := nbdtest.Disk(t, int64(len(content)))
	s := nbdtest.Serve(t, server.Config{Exports: nbdtest.Single(d)})
	nbdtest.Run(t, libnbd, "nbdcopy", "--flush", path, s.URI(""))
	got := make([]byte, len(content))
	if err := d.ReadAt(context.Background(), got, 0); err != nil || !bytes.Equal(got, content) {
		t.Fatal("content differs after nbdcopy to us", err)
	}
	var runs []struct {
		Offset, Length int64
		Type           int
	}
	if err := json.Unmarshal([]byte(nbdtest.Run(t, libnbd, "nbdinfo", "--map", "--json", s.URI(""))), &runs); err != nil {
		t.Fatal(err)
	}
	if len(runs) < 4 || runs[0].Type != 3 || runs[0].Length != 1<<20 || runs[1].Type != 0 {
		t.Errorf("%+v", runs)
	}
	back := filepath.Join(t.TempDir(), "back.raw")
	nbdtest.Run(t, libnbd, "nbdcopy", s.URI(""), back)
	if got, err := os.ReadFile(back); err != nil || !bytes.Equal(got, content) {
		t.Fatal("content differs after nbdcopy from us", err)
	}
	// From one export of ours to another, several connections at once.
	other := nbdtest.Disk(t, int64(len(content)))
	s2 := nbdtest.Serve(t, server.Config{Exports: nbdtest.Single(other)})
	nbdtest.Run(t, libnbd, "nbdcopy", "--connections=4", s.URI(""), s2.URI(""))
	if err := other.ReadAt(context.Background(), got, 0); err != nil || !bytes.Equal(got, content) {
		t.Fatal("content differs after nbdcopy from us to us", err)
	}
}

func TestQemuImg(t *testing.T) {
	path, content := image(t)
	d := nbdtest.Disk(t, int64(len(content)))
	s := nbdtest.Serve(t, server.Config{Exports: nbdtest.Single(d)})
	uri := s.URI("")
	nbdtest.Run(t, qemu, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", path, uri)
	got := make([]byte, len(content))
	if err := d.ReadAt(context.Background(), got, 0); err != nil || !bytes.Equal(got, content) {
		t.Fatal("content differs after convert to us", err)
	}
	if out := nbdtest.Run(t, qemu, "qemu-img", "info", "--output=json", uri); !strings.Contains(out, fmt.Sprintf(`"virtual-size": %d`, len(content))) {
		t.Error(out)
	}
	if out := nbdtest.Run(t, qemu, "qemu-img", "compare", "-f", "raw", "-F", "raw", path, uri); !strings.Contains(out, "identical") {
		t.Error(out)
	}
	var runs []struct {
		Start, Length int64
		Zero, Data    bool
	}
	if err := json.Unmarshal([]byte(nbdtest.Run(t, qemu, "qemu-img", "map", "--output=json", "-f", "raw", uri)), &runs); err != nil {
		t.Fatal(err)
	}
	if len(runs) < 4 || !runs[0].Zero || runs[0].Length != 1<<20 || !runs[1].Data {
		t.Errorf("%+v", runs)
	}
	qcow2 := filepath.Join(t.TempDir(), "copy.qcow2")
	nbdtest.Run(t, qemu, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri, qcow2)
	if out := nbdtest.Run(t, qemu, "qemu-img", "compare", path, "-f", "raw", "-F", "qcow2", qcow2); !strings.Contains(out, "identical") {
		t.Error(out)
	}
}

func TestQemuIO(t *testing.T) {
	s, d := serveDisk(t)
	flushes := d.FlushCount()
	out := nbdtest.Run(t, qemu, "qemu-io", "-f", "raw",
		"-c", "write -P 0x11 0 1M", "-c", "read -P 0x11 0 1M",
		"-c", "write -f -P 0x22 4096 4096", "-c", "read -P 0x22 4096 4096", "-c", "read -P 0x11 8192 4096",
		"-c", "discard 16k 16k", "-c", "read -P 0 16k 16k",
		"-c", "write -z 64k 8k", "-c", "read -P 0 64k 8k", "-c", "write -z -u 128k 64k", "-c", "read -P 0 128k 64k",
		"-c", "aio_write -P 0x33 2M 64k", "-c", "aio_write -P 0x44 3M 64k", "-c", "aio_flush",
		"-c", "aio_read -P 0x33 2M 64k", "-c", "aio_read -P 0x44 3M 64k", "-c", "aio_flush",
		"-c", "write -P 0x55 77 1001", "-c", "read -P 0x55 77 1001", "-c", "read -P 0x11 0 77", "-c", "flush",
		s.URI(""))
	if strings.Contains(out, "failed") || strings.Contains(out, "rror") {
		t.Error(out)
	}
	if d.FlushCount() == flushes {
		t.Error("nothing was flushed")
	}
	runs, err := d.Extents(context.Background(), 128<<10, 64<<10, 2)
	if err != nil || len(runs) != 1 || !runs[0].Hole {
		t.Errorf("unmapping zeroes left %+v, %v", runs, err)
	}
	if out, err := nbdtest.Try(t, qemu, "qemu-io", "-f", "raw", "-c", "write 0 512", serveTwo(t).URI("frozen")); err == nil {
		t.Error("write to a read-only export: ", out)
	}
}

func TestFioVerify(t *testing.T) {
	s, _ := serveDisk(t)
	out := nbdtest.Run(t, "fio", "fio", "--ioengine=nbd", "--uri="+s.URI(""), "--name=verify", "--numjobs=4", "--size=8m", "--offset_increment=8m",
		"--rw=randrw", "--bsrange=512-128k", "--bs_unaligned", "--iodepth=16", "--verify=crc32c", "--verify_fatal=1", "--fsync=100", "--trim_verify_zero=0",
		"--group_reporting", "--output-format=json")
	if !strings.Contains(out, `"error" : 0`) {
		t.Error(out)
	}
}

// A device that is always cold, so that every read is a worker's.
func TestFioVerifyCold(t *testing.T) {
	d := struct{ block.Device }{nbdtest.Disk(t, 32<<20)}
	s := serveDevice(t, d, false)
	nbdtest.Run(t, "fio", "fio", "--ioengine=nbd", "--uri="+s.URI(""), "--name=verify", "--size=16m",
		"--rw=randwrite", "--bs=4k", "--iodepth=32", "--verify=crc32c", "--verify_fatal=1")
}

// TLS as the libraries of others speak it.
func TestNbdinfoTLS(t *testing.T) {
	config, _ := identity(t)
	s := nbdtest.Serve(t, server.Config{Exports: twoExports(nbdtest.Disk(t, 1<<20)), TLS: config, TLSMode: server.TLSRequire})
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "ca-cert.pem"), pemOf(config), 0o600); err != nil {
		t.Fatal(err)
	}
	uri := strings.Replace(s.URI("big"), "nbd+unix", "nbds+unix", 1) + "&tls-certificates=" + dir
	// libnbd takes the name to verify from the host, which unix sockets do not have.
	out, err := nbdtest.Try(t, libnbd, "nbdinfo", strings.Replace(uri, "nbds+unix:///", "nbds+unix://localhost/", 1))
	if err != nil || !strings.Contains(out, "with TLS") {
		t.Error(err, out)
	}
}
