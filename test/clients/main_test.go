// Package clients proves what varve promises its users with the programs they
// use: the varve binary runs as a daemon on a scratch directory, is driven by its
// command line, and is read and written by QEMU's tools, libnbd's, fio, and by
// ext4 and xfs on loop devices; it is stopped, killed, and given bad directories
// and full disks.
//
// Vocabulary: a daemon is a running `varve serve`. A disk is an export made a
// block device of this machine: NBD, a file by nbdfuse, a loop device.
// A stamp is the content of a block that tells where it was written, and when.
//
// Invariants: no test waits for longer than patience, and nothing outlives the
// tests, however they end: they run in a process and a mount namespace of their
// own, with one directory for all files; loop devices are cleared with their last user,
// and processes are killed with the one that started them.
//
// The programs are real and must be there. Where a machine has no loop devices or
// FUSE, or the tests do not run as root, VARVE_TEST_NO_DEVICES=1 leaves out
// what mounts; without it that fails.
package clients

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
)

var (
	killCycles      = flag.Int("kill.cycles", 12, "how often the daemon is killed while it is written to")
	scatteredBlocks = flag.Int("scattered.blocks", 200_000, "how many scattered blocks are written within bounded memory")
	scatteredCache  = flag.String("scattered.cache", "2M", "the map cache for them")
	scatteredLimit  = flag.String("scattered.limit", "64M", "the memory that the daemon may take for them")
)

// program is the path of the varve binary under test.
var program string

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		os.Exit(serveAhead(os.Args[2:]))
	}
	flag.Parse()
	status, err := prepareAndRun(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "test/clients:", err)
		status = 1
	}
	os.Exit(status)
}

func prepareAndRun(m *testing.M) (int, error) {
	if root = os.Getenv(scratchRoot); root == "" {
		return runApart()
	}
	program = filepath.Join(root, "varve")
	build := exec.Command("go", "build", "-o", program)
	if raceDetector {
		build.Args = append(build.Args, "-race")
	}
	build.Args = append(build.Args, "varve/cmd/varve")
	if out, err := build.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("build varve: %w\n%s", err, out)
	}
	return m.Run(), nil
}

// scratchRoot is the environment variable that gives the process that runs the tests the
// directory for all its files.
const scratchRoot = "VARVE_TEST_SCRATCH"

var root string

// runApart runs this program again, in a mount namespace of its own, and cleans up
// after it, however it ends.
func runApart() (status int, err error) {
	if err := checkPrograms(); err != nil {
		return 0, err
	}
	flags := uintptr(syscall.CLONE_NEWNS)
	if withoutDevices {
		flags = 0
	} else if err := checkDevices(); err != nil {
		return 0, fmt.Errorf("%w; to leave out the tests that mount: VARVE_TEST_NO_DEVICES=1", err)
	}
	dir, err := os.MkdirTemp("", "varve-clients")
	if err != nil {
		return 0, err
	}
	defer func() {
		// What was killed with the tests may take a moment to be gone.
		var left error
		holdsInTime(func() bool {
			left = os.RemoveAll(dir)
			return left == nil
		})
		err = errors.Join(err, left)
	}()
	// An interrupt ends the tests, and then this.
	signal.Notify(make(chan os.Signal, 1), os.Interrupt)

	again := exec.Command("/proc/self/exe", os.Args[1:]...)
	again.Env = append(os.Environ(), scratchRoot+"="+dir, "TMPDIR="+dir)
	again.Stdin, again.Stdout, again.Stderr = os.Stdin, os.Stdout, os.Stderr
	again.SysProcAttr = &syscall.SysProcAttr{Unshareflags: flags, Pdeathsig: syscall.SIGKILL}
	err = again.Run()
	var ended *exec.ExitError
	if errors.As(err, &ended) && ended.ExitCode() > 0 {
		return ended.ExitCode(), nil
	}
	if err != nil {
		return 0, fmt.Errorf("run the tests apart: %w", err)
	}
	return 0, nil
}

// packages are the Debian packages of the programs that the tests use.
var packages = map[string]string{
	"qemu-img": "qemu-utils", "qemu-io": "qemu-utils",
	"nbdinfo": "libnbd-bin", "nbdcopy": "libnbd-bin", "nbdfuse": "libnbd-bin", "fusermount3": "fuse3",
	"fio":       "fio",
	"mkfs.ext4": "e2fsprogs", "e2fsck": "e2fsprogs",
	"mkfs.xfs": "xfsprogs", "xfs_repair": "xfsprogs",
	"losetup": "util-linux", "fsfreeze": "util-linux", "mount": "mount",
}

func checkPrograms() error {
	// Debian keeps some of them where only root looks.
	if err := os.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin"); err != nil {
		return err
	}
	var missing []error
	for name, pkg := range packages {
		if _, err := exec.LookPath(name); err != nil {
			missing = append(missing, fmt.Errorf("%s is missing; install the package %s", name, pkg))
		}
	}
	return errors.Join(missing...)
}

// withoutDevices is set where the tests that mount are to be left out.
var withoutDevices = os.Getenv("VARVE_TEST_NO_DEVICES") == "1"

// needDevices marks a test that mounts.
func needDevices(t *testing.T) {
	t.Helper()
	if withoutDevices {
		t.Skip("left out by VARVE_TEST_NO_DEVICES=1")
	}
}

// checkDevices tells why this process could not mount a disk.
func checkDevices() error {
	if os.Geteuid() != 0 {
		return errors.New("mounting takes root")
	}
	for _, name := range []string{"/dev/fuse", "/dev/loop-control"} {
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			return fmt.Errorf("mounting takes FUSE and loop devices: %w", err)
		}
		f.Close()
	}
	return nil
}
