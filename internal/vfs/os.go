package vfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// OS is the file system of the operating system (Linux).
func OS() FS { return osFS{} }

type osFS struct{}

func (osFS) Create(name string) (File, error) {
	return openFile("create", name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0)
}

func (osFS) Open(name string) (File, error) {
	return openFile("open", name, unix.O_RDWR, 0)
}

func (osFS) OpenReadOnly(name string) (File, error) {
	return openFile("open", name, unix.O_RDONLY, 0)
}

func (osFS) OpenDisk(name string, write bool) (File, error) {
	flags := unix.O_RDONLY
	if write {
		flags = unix.O_RDWR
		// Of a device O_EXCL says that nobody else has it; of a file, without O_CREAT, nothing is defined.
		if info, err := os.Stat(name); err == nil && info.Mode()&fs.ModeDevice != 0 {
			flags |= unix.O_EXCL
		}
	}
	return openFile("open", name, flags, diskPiece)
}

// diskPiece is how much of a disk one call writes. What a call writes the kernel keeps together in its cache if the file system
// can (ext4 since Linux 6.16), in folios of 2 MiB at most; and then every small write to one of them costs time in proportion to its length.
const diskPiece = 64 << 10

func openFile(op, name string, flags, piece int) (File, error) {
	f, err := os.OpenFile(name, flags, 0o600) // adds O_CLOEXEC
	if err != nil {
		return nil, renameOp(err, op)
	}
	info, err := f.Stat()
	if err == nil && info.IsDir() {
		err = &fs.PathError{Op: op, Path: name, Err: syscall.EISDIR}
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return &osFile{file: f, name: name, piece: piece}, nil
}

func (osFS) Remove(name string) error { return os.Remove(name) }

func (osFS) Rename(oldName, newName string) error {
	if path.Dir(oldName) != path.Dir(newName) {
		return &os.LinkError{Op: "rename", Old: oldName, New: newName, Err: unix.EXDEV}
	}
	return os.Rename(oldName, newName)
}

func (osFS) RenameNew(oldName, newName string) error {
	if path.Dir(oldName) != path.Dir(newName) {
		return &os.LinkError{Op: "rename", Old: oldName, New: newName, Err: unix.EXDEV}
	}
	err := unix.Renameat2(unix.AT_FDCWD, oldName, unix.AT_FDCWD, newName, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) { // the file system lacks it; a link does not replace either
		if err := os.Link(oldName, newName); err != nil {
			return err
		}
		return os.Remove(oldName)
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: oldName, New: newName, Err: err}
	}
	return nil
}

func (osFS) Mkdir(name string) error { return os.Mkdir(name, 0o700) }

func (osFS) List(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}

func (osFS) Stat(name string) (fs.FileInfo, error) { return os.Stat(name) }

func (osFS) Space(dir string) (total, free int64, err error) {
	var st unix.Statfs_t
	if err := retry(func() error { return unix.Statfs(dir, &st) }); err != nil {
		return 0, 0, &fs.PathError{Op: "ask for space", Path: dir, Err: err}
	}
	// What only root may use counts as used.
	free = int64(st.Bavail) * st.Bsize
	return int64(st.Blocks-st.Bfree)*st.Bsize + free, free, nil
}

func (osFS) SyncDir(dir string) error {
	d, err := os.OpenFile(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return renameOp(err, "sync directory")
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	return renameOp(err, "sync directory")
}

// renameOp makes a *fs.PathError name the operation the caller asked for.
func renameOp(err error, op string) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		pe.Op = op
	}
	return err
}

// maxHolder is how much of a lock file is read to name its holder, in bytes.
const maxHolder = 256

func (osFS) Lock(name, holder string) (io.Closer, error) {
	f, err := os.OpenFile(name, unix.O_RDWR|unix.O_CREAT, 0o600)
	if err != nil {
		return nil, renameOp(err, "lock")
	}
	return flock(f, name, func() error { return writeHolder(f, holder) })
}

func (osFS) LockUnchanged(name string) (io.Closer, error) {
	f, err := os.OpenFile(name, unix.O_RDONLY, 0)
	if err != nil {
		return nil, renameOp(err, "lock")
	}
	return flock(f, name, func() error { return nil })
}

func (o osFS) LockDisk(name string) (io.Closer, error) {
	l, err := o.LockUnchanged(name)
	if errors.Is(err, ErrLocked) {
		err = lockedError(name, "")
	}
	return l, err
}

// flock locks an open file, and then has its holder written.
func flock(f *os.File, name string, write func() error) (io.Closer, error) {
	err := retry(func() error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) })
	switch {
	case errors.Is(err, unix.EWOULDBLOCK):
		err = lockedError(name, readHolder(f))
	case err != nil:
		err = &fs.PathError{Op: "lock", Path: name, Err: err}
	default:
		err = write()
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return osLock{f}, nil
}

func lockedError(name, holder string) error {
	if holder == "" {
		holder = "another process"
	}
	return fmt.Errorf("lock %s: %w by %s", name, ErrLocked, holder)
}

// readHolder returns the first line of a lock file, "" if it cannot be read.
func readHolder(f *os.File) string {
	text := make([]byte, maxHolder)
	n, _ := f.ReadAt(text, 0)
	line, _, _ := strings.Cut(string(text[:n]), "\n")
	return line
}

// writeHolder puts the new line over the old one before it cuts the rest off:
// at every moment the first line names one holder, and a full disk does not
// take away the block the file has. The lock is held without the text, so lack
// of space for it is no reason to fail.
func writeHolder(f *os.File, holder string) error {
	line := holder + "\n"
	_, err := f.WriteAt([]byte(line), 0)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return nil
	}
	if err == nil {
		err = f.Truncate(int64(len(line)))
	}
	return err
}

type osLock struct{ f *os.File }

// Close unlocks before it closes: a child process between fork and exec shares
// the open file, and would hold the lock a moment longer.
func (l osLock) Close() error {
	uerr := retry(func() error { return unix.Flock(int(l.f.Fd()), unix.LOCK_UN) })
	err := l.f.Close()
	if err == nil && uerr != nil {
		err = &fs.PathError{Op: "unlock", Path: l.f.Name(), Err: uerr}
	}
	return err
}

// retry repeats a system call that a signal interrupted.
func retry(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
