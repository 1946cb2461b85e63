package foreign_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"varve/internal/contract"
	"varve/internal/foreign"
	"varve/internal/image/imagetest"
)

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(imagetest.Program(t, name), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func write(t *testing.T, file string, content []byte) {
	t.Helper()
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

func raw(t *testing.T) (file string, content []byte) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "disk")
	content = bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	write(t, file, content)
	return file, content
}

func refused(t *testing.T, f contract.ForeignSource, why string) {
	t.Helper()
	s, err := foreign.Open(t.Context(), f)
	if err == nil {
		s.Close()
	}
	var told *contract.Error
	if !errors.As(err, &told) || told.Code != contract.CodeRefused || !strings.Contains(told.Message, why) || told.Hint == "" {
		t.Fatalf("%+v: %v, want a refusal for %q", f, err, why)
	}
	f.AllowInconsistent = true
	s, err = foreign.Open(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.Consistency != "none" || len(s.Warnings) == 0 {
		t.Errorf("allowed all the same: %q, %v", s.Consistency, s.Warnings)
	}
	if err := s.Unchanged(); err != nil {
		t.Error(err)
	}
}

func opened(t *testing.T, f contract.ForeignSource) *foreign.Source {
	t.Helper()
	s, err := foreign.Open(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func TestAFileAtRestIsConsistent(t *testing.T) {
	file, content := raw(t)
	s := opened(t, contract.ForeignSource{Source: file})
	if s.Consistency != "crash" || s.Changes != nil || len(s.Warnings) > 0 {
		t.Errorf("%q, %v", s.Consistency, s.Warnings)
	}
	imagetest.CheckContent(t, s.Device, content)
	if err := s.Unchanged(); err != nil {
		t.Error(err)
	}
}

func TestAFileThatIsWrittenToIsRefused(t *testing.T) {
	file, _ := raw(t)
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	refused(t, contract.ForeignSource{Source: file}, "has it open for writing")
}

func TestALockedFileIsRefused(t *testing.T) {
	file, _ := raw(t)
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	refused(t, contract.ForeignSource{Source: file}, "another program has it locked")
}

// Somebody who opens the file for writing meanwhile waits for the lease, gets it at the next read, and the backup fails.
func TestOpeningForWritingMeanwhileEndsTheBackup(t *testing.T) {
	file, _ := raw(t)
	s := opened(t, contract.ForeignSource{Source: file})
	done := make(chan error)
	go func() {
		f, err := os.OpenFile(file, os.O_WRONLY, 0)
		if err == nil {
			f.Close()
		}
		done <- err
	}()
	p := make([]byte, 512)
	deadline := time.Now().Add(time.Minute)
	for s.Device.ReadAt(t.Context(), p, 0) == nil {
		if time.Now().After(deadline) {
			t.Fatal("nobody noticed")
		}
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := s.Unchanged(); !errors.Is(err, foreign.ErrChanged) {
		t.Fatalf("unchanged: %v", err)
	}
	if err := s.Device.ReadAt(t.Context(), p, 0); !errors.Is(err, foreign.ErrChanged) {
		t.Fatalf("read: %v", err)
	}
}

func TestReplacingTheFileMeanwhileIsNoticed(t *testing.T) {
	file, content := raw(t)
	s := opened(t, contract.ForeignSource{Source: file})
	write(t, file+".new", content)
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
	if err := s.Unchanged(); !errors.Is(err, foreign.ErrChanged) {
		t.Fatalf("unchanged: %v", err)
	}
}

func TestAQcow2FileIsReadAsTheDiskInIt(t *testing.T) {
	file, content := raw(t)
	image := file + ".qcow2"
	run(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", file, image)
	s := opened(t, contract.ForeignSource{Source: image})
	imagetest.CheckContent(t, s.Device, content)
	whole := opened(t, contract.ForeignSource{Source: image, Format: "raw"})
	if whole.Device.SizeBytes() == s.Device.SizeBytes() {
		t.Error("the container is not what format raw means")
	}
}

func TestWhatIsNoDiskIsWrongUsage(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	file, _ := raw(t)
	for _, f := range []contract.ForeignSource{
		{Source: dir}, {Source: pipe}, {Source: "/dev/null"}, {Source: "https://host/disk"}, {Source: "nbd://"},
		{Source: file, Bitmap: "b"}, {Source: "nbd://localhost:1", Format: "qcow2"},
	} {
		_, err := foreign.Open(t.Context(), f)
		var told *contract.Error
		if !errors.As(err, &told) || told.Code != contract.CodeUsage {
			t.Errorf("%+v: %v", f, err)
		}
	}
	if _, err := foreign.Open(t.Context(), contract.ForeignSource{Source: filepath.Join(dir, "nothere")}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing: %v", err)
	}
}

// qemuNBD serves an image, until the test ends.
func qemuNBD(t *testing.T, args ...string) (uri string) {
	t.Helper()
	dir := t.TempDir()
	socket, pidFile := filepath.Join(dir, "s"), filepath.Join(dir, "pid")
	// With --fork it returns once it listens.
	run(t, "qemu-nbd", append([]string{"--fork", "--pid-file", pidFile, "--socket", socket, "--persistent", "--shared", "0"}, args...)...)
	text, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
			t.Error(err)
		}
	})
	return "nbd+unix:///?socket=" + socket
}

func TestAnExportThatCanBeWrittenIsRefused(t *testing.T) {
	file, content := raw(t)
	uri := qemuNBD(t, "-f", "raw", file)
	refused(t, contract.ForeignSource{Source: uri}, "the export can be written")

	other, _ := raw(t)
	s := opened(t, contract.ForeignSource{Source: qemuNBD(t, "-f", "raw", "--read-only", other)})
	if s.Consistency != "crash" {
		t.Errorf("read-only: %q", s.Consistency)
	}
	imagetest.CheckContent(t, s.Device, content)
}

// The dirty bitmap of a qcow2 image, as QEMU tells it, is what changed.
func TestADirtyBitmapTellsWhatChanged(t *testing.T) {
	image := filepath.Join(t.TempDir(), "disk.qcow2")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", image, "3G")
	run(t, "qemu-img", "bitmap", "--add", "-g", "65536", image, "b")
	imagetest.QemuIO(t, image, "qcow2", "write -P 1 64k 64k", "write -P 2 2G 4k")
	uri := qemuNBD(t, "-f", "qcow2", "--read-only", "-B", "b", image)
	s := opened(t, contract.ForeignSource{Source: uri, Bitmap: "b", Since: "0"})
	var got [][2]int64
	err := s.Changes(t.Context(), func(off, length int64) error {
		got = append(got, [2]int64{off, length})
		return nil
	})
	if err != nil || len(got) != 2 || got[0] != [2]int64{64 << 10, 64 << 10} || got[1] != [2]int64{2 << 30, 64 << 10} {
		t.Errorf("changes %v, %v", got, err)
	}
	var told *contract.Error
	if _, err := foreign.Open(t.Context(), contract.ForeignSource{Source: uri, Bitmap: "nope", Since: "0"}); !errors.As(err, &told) || told.Code != contract.CodeNotFound {
		t.Errorf("a bitmap that is not there: %v", err)
	}
}

// Nobody who is welcome to write is made to wait until the backup is done.
func TestWritersWaitForNothingWhereTheyAreAllowed(t *testing.T) {
	file, _ := raw(t)
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	opened(t, contract.ForeignSource{Source: file, AllowInconsistent: true})
	w, err := os.OpenFile(file, os.O_WRONLY|unix.O_NONBLOCK, 0) // which does not wait for a lease
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
}

// What an overlay does not hold is read from its backing file, which has to stand still too.
func TestABackingFileThatIsWrittenToIsRefused(t *testing.T) {
	base, content := raw(t)
	overlay := base + ".qcow2"
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, overlay)
	f, err := os.OpenFile(base, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	refused(t, contract.ForeignSource{Source: overlay}, "its backing file "+base)
	f.Close()
	s := opened(t, contract.ForeignSource{Source: overlay})
	imagetest.CheckContent(t, s.Device, content)
	if err := s.Unchanged(); err != nil || s.Consistency != "crash" {
		t.Fatal(s.Consistency, err)
	}
	write(t, base+".new", content)
	if err := os.Rename(base+".new", base); err != nil {
		t.Fatal(err)
	}
	if err := s.Unchanged(); !errors.Is(err, foreign.ErrChanged) {
		t.Fatalf("replaced: %v", err)
	}
}
