package clients

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// disk is an export that is a block device of this machine.
type disk struct {
	t      *testing.T
	fuse   *exec.Cmd
	gone   chan struct{} // closed when fuse has ended
	dir    string        // where nbdfuse shows the export as a file
	device string        // path of the loop device
	loop   *os.File      // keeps the loop device; it is cleared with its last user
}

// attach makes an export a block device.
func attach(t *testing.T, d *daemon, export string) *disk {
	t.Helper()
	k := &disk{t: t, dir: filepath.Join(scratch(t), "fuse"), gone: make(chan struct{})}
	must(t, os.Mkdir(k.dir, 0o700), "make the mount point")
	k.fuse = command(context.Background(), "nbdfuse", k.dir+"/disk", d.uri(export))
	var said bytes.Buffer
	k.fuse.Stderr = &said
	readOnly := strings.Contains(export, "@")
	if readOnly {
		k.fuse.Args = append(k.fuse.Args[:1], append([]string{"-r"}, k.fuse.Args[1:]...)...)
	}
	must(t, k.fuse.Start(), "start nbdfuse")
	go func() {
		_ = k.fuse.Wait() // how it ends shows in what it was used for
		close(k.gone)
	}()
	t.Cleanup(func() {
		k.release(unix.MNT_DETACH)
		if t.Failed() && said.Len() > 0 {
			t.Logf("nbdfuse of %s: %s", export, &said)
		}
	})
	file := filepath.Join(k.dir, "disk")
	await(t, "nbdfuse shows "+export, func() bool {
		_, err := os.Stat(file)
		return err == nil
	})
	k.device, k.loop = loopDevice(t, file, readOnly)
	return k
}

// loopDevice makes a file a block device, for as long as the file that is returned is open.
func loopDevice(t *testing.T, file string, readOnly bool) (device string, hold *os.File) {
	t.Helper()
	args := []string{"--find", "--show", file}
	if readOnly {
		args = append([]string{"--read-only"}, args...)
	}
	device = strings.TrimSpace(run(t, "losetup", args...))
	hold, err := os.Open(device)
	// While it is in use, this only marks it to be cleared with its last user.
	run(t, "losetup", "--detach", device)
	must(t, err, "open the loop device")
	return device, hold
}

// detach gives the block device back and waits until the connections are closed.
func (k *disk) detach() {
	k.t.Helper()
	if err := k.release(0); err != nil {
		k.t.Fatalf("detach: %v", err)
	}
}

// release is detach with the flags of umount; again, it does nothing.
func (k *disk) release(flags int) error {
	if k.loop != nil {
		k.loop.Close()
		k.loop = nil
	}
	err := unmount(k.dir, flags)
	if flags&unix.MNT_DETACH != 0 {
		_ = k.fuse.Process.Kill() // it may have ended with the mount
	}
	if err == nil {
		<-k.gone
	}
	return err
}

// unmount unmounts what is mounted on dir, if anything is.
func unmount(dir string, flags int) error {
	var err error
	done := holdsInTime(func() bool {
		err = unix.Unmount(dir, flags)
		return !errors.Is(err, unix.EBUSY)
	})
	// Not a mount point; or not even a directory any more.
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) || done && err == nil {
		return nil
	}
	return err
}

// mounted is a file system in use.
type mounted struct {
	t   *testing.T
	dir string
}

// mount mounts a block device.
func mount(t *testing.T, device, fileSystem, options string) *mounted {
	t.Helper()
	m := &mounted{t: t, dir: filepath.Join(scratch(t), "mnt")}
	must(t, os.Mkdir(m.dir, 0o700), "make the mount point")
	args := []string{"-t", fileSystem, device, m.dir}
	if options != "" {
		args = append([]string{"-o", options}, args...)
	}
	run(t, "mount", args...)
	t.Cleanup(func() {
		if err := unmount(m.dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return m
}

func (m *mounted) umount() {
	m.t.Helper()
	must(m.t, unmount(m.dir, 0), "unmount %s", m.dir)
}

// frozen runs do while the file system is frozen: nothing is written, and what was is on the disk, in its place.
func (m *mounted) frozen(do func()) {
	m.t.Helper()
	run(m.t, "fsfreeze", "--freeze", m.dir)
	defer execute("", "fsfreeze", "--unfreeze", m.dir)
	do()
}
