package foreign_test

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"varve/internal/contract"
	"varve/internal/foreign"
	"varve/internal/image/imagetest"
)

// haveDevices tells whether there are loop devices, which everybody can have, root's rights provided.
func haveDevices() bool { return unix.Access("/dev/loop-control", unix.W_OK) == nil }

// loop makes a file a block device until the test ends.
func loop(t *testing.T, file string) (device string) {
	t.Helper()
	device = run(t, "losetup", "--find", "--show", "--partscan", file)
	t.Cleanup(func() { run(t, "losetup", "--detach", device) })
	return device
}

// partition makes one of a loop device, under a name of its own: nobody may be there who makes it in /dev.
func partition(t *testing.T, device string) (name string) {
	t.Helper()
	run(t, "addpart", device, "1", "64", "1024")
	t.Cleanup(func() { run(t, "delpart", device, "1") })
	base := filepath.Base(device)
	numbers, err := os.ReadFile("/sys/block/" + base + "/" + base + "p1/dev")
	if err != nil {
		t.Fatal(err)
	}
	major, minor, _ := strings.Cut(strings.TrimSpace(string(numbers)), ":")
	a, err1 := strconv.ParseUint(major, 10, 32)
	b, err2 := strconv.ParseUint(minor, 10, 32)
	name = filepath.Join(t.TempDir(), "partition")
	if err := errors.Join(err1, err2, unix.Mknod(name, unix.S_IFBLK|0o600, int(unix.Mkdev(uint32(a), uint32(b))))); err != nil {
		t.Fatal(err)
	}
	return name
}

// writeTo opens a device, writes to it, and closes it again.
func writeTo(t *testing.T, device string) {
	t.Helper()
	f, err := os.OpenFile(device, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, werr := f.WriteAt([]byte("other"), 4096)
	if err := errors.Join(werr, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// Who has opened a device, written to it, and gone again before anybody looked, has changed it all the same.
func TestAWriterThatIsGoneIsNoticed(t *testing.T) {
	if !haveDevices() {
		return
	}
	file, content := raw(t)
	device := loop(t, file)
	writeTo(t, device)
	copy(content[4096:], "other")
	s := opened(t, contract.ForeignSource{Source: device})
	imagetest.CheckContent(t, s.Device, content)
	if err := s.Unchanged(); err != nil {
		t.Fatalf("of a write before: %v", err)
	}
	writeTo(t, device)
	if err := s.Unchanged(); !errors.Is(err, foreign.ErrChanged) {
		t.Fatalf("of a write meanwhile: %v", err)
	}
}

// Who has a partition open may write to the disk, and the other way round.
func TestAWriterToAPartitionIsOneToTheDisk(t *testing.T) {
	if !haveDevices() {
		return
	}
	file, _ := raw(t)
	disk := loop(t, file)
	part := partition(t, disk)
	for _, one := range [][2]string{{disk, part}, {part, disk}} {
		f, err := os.OpenFile(one[0], os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		refused(t, contract.ForeignSource{Source: one[1]}, "has it open for writing")
		f.Close()
		opened(t, contract.ForeignSource{Source: one[1]}).Close()
	}
}

// The kernel writes to a file that is a block device's, and no process has it open.
func TestAFileThatIsADeviceIsWrittenTo(t *testing.T) {
	if !haveDevices() {
		return
	}
	file, _ := raw(t)
	if who, err := foreign.Writer(file); err != nil || who != "" {
		t.Fatalf("at rest: %q, %v", who, err)
	}
	loop(t, file)
	if who, err := foreign.Writer(file); err != nil || who == "" {
		t.Fatalf("as a device: %q, %v", who, err)
	}
	refused(t, contract.ForeignSource{Source: file}, "has it open for writing")
}
