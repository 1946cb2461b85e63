package depot

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"varve/internal/contract"
	"varve/internal/foreign"
	"varve/internal/repository"
	"varve/internal/vfs"
)

// part is a raw file in the making: it lies beside its target as .NAME.BACKUP.varve-part, and stays there if a restore is cut short, so
// that the next one of the same backup to the same target goes on with it.
type part struct {
	disk
	path   string // of the target, symbolic links resolved
	lock   io.Closer
	fresh  bool // nothing is in it yet
	remove bool
}

const partSuffix = ".varve-part"

// openPart makes or finds the part of a restore to a file.
func openPart(path string, b repository.Backup, force bool) (*part, error) {
	info, err := os.Stat(path)
	switch {
	case err == nil && !info.Mode().IsRegular():
		return nil, contract.Errorf(contract.CodeUsage, "restore to %s: it is neither a file nor a block device", path)
	case err == nil && !force:
		return nil, fmt.Errorf("restore to %s: %w", path, fs.ErrExist)
	case err == nil:
		if path, err = filepath.EvalSymlinks(path); err != nil {
			return nil, err
		}
		unlock, err := claim(path) // once more when it is replaced
		if err != nil {
			return nil, err
		}
		unlock()
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("restore to %s: %w", path, err)
	default:
		if _, err := os.Lstat(path); err == nil && !force {
			return nil, fmt.Errorf("restore to %s: a symbolic link to nothing: %w", path, fs.ErrExist)
		}
	}
	p := &part{path: path}
	name := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+"."+b.ID+partSuffix)
	p.disk = disk{name: name, size: b.SizeBytes}
	if p.f, err = vfs.OS().Create(name); errors.Is(err, fs.ErrExist) {
		p.f, err = vfs.OS().Open(name)
	}
	if err != nil {
		return nil, fmt.Errorf("restore to %s: %w", path, err)
	}
	if p.lock, err = vfs.OS().LockDisk(name); err != nil {
		p.f.Close()
		if errors.Is(err, vfs.ErrLocked) {
			return nil, contract.Errorf(contract.CodeRefused, "restore to %s: another restore of backup %s to it is under way", path, b.ID)
		}
		return nil, fmt.Errorf("restore to %s: %w", path, err)
	}
	if err := p.prepare(); err != nil {
		p.close()
		return nil, fmt.Errorf("restore to %s: %w", path, err)
	}
	removeOthers(path, name)
	return p, nil
}

// prepare gives it its size. It is fresh if it has none yet: whoever made it, another one may have written to it before it was locked.
func (p *part) prepare() error {
	have, err := p.f.Size()
	if err != nil {
		return err
	}
	p.fresh = have == 0
	if have == p.size {
		return nil
	}
	err = p.f.Truncate(p.size)
	if errors.Is(err, unix.EFBIG) {
		p.remove = true
		return fmt.Errorf("%d bytes are more than its file system allows a file: %w", p.size, err)
	}
	return err
}

// removeOthers removes what is left of restores and exports to the same target that nobody works on. It is a courtesy.
func removeOthers(path, but string) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return
	}
	for _, e := range entries {
		name := filepath.Join(filepath.Dir(path), e.Name())
		if name == but || !e.Type().IsRegular() || !isPartOf(e.Name(), filepath.Base(path)) {
			continue
		}
		if l, err := vfs.OS().LockDisk(name); err == nil {
			os.Remove(name)
			l.Close()
		}
	}
}

// isPartOf tells whether a file is one in the making that is to be called target, and not one that is to be called TARGET.something.
func isPartOf(name, target string) bool {
	rest, ok := strings.CutPrefix(name, "."+target+".")
	which, both := strings.CutSuffix(rest, partSuffix)
	number := which != "" && strings.Trim(which, "0123456789") == "" // of an export
	return ok && both && (number || repository.ValidID(which))
}

// claim locks the file or block device whose content a restore takes away, if there is one, and refuses it if somebody uses it: who
// has it open would go on with what nobody sees any more, or over what is restored.
func claim(path string) (unlock func(), err error) {
	refused := func(why string) (func(), error) {
		return nil, contract.Errorf(contract.CodeRefused, "restore to %s: it is in use: %s", path, why).
			WithHint("stop what uses it, or restore to another name; --force does not help here")
	}
	unlock = func() {}
	l, err := vfs.OS().LockDisk(path)
	switch {
	case errors.Is(err, vfs.ErrLocked):
		return refused("another program has it locked")
	case err == nil:
		unlock = func() { l.Close() }
	}
	// Where it cannot be locked or opened, or is not there, nobody can tell more.
	if who, err := foreign.Writer(path); err == nil && who != "" {
		unlock()
		return refused(who)
	}
	return unlock, nil
}

// commit gives the file, which is complete and durable, its name.
func (p *part) commit(force bool) error {
	unlock, err := claim(p.path)
	if err != nil {
		return p.goesOn(err)
	}
	defer unlock()
	if force {
		err = vfs.OS().Rename(p.name, p.path)
	} else {
		err = vfs.OS().RenameNew(p.name, p.path)
	}
	if err == nil {
		err = vfs.OS().SyncDir(filepath.Dir(p.path))
	}
	if err != nil {
		return fmt.Errorf("restore to %s: %w", p.path, err)
	}
	return nil
}

// close lets go of it; it stays on the disk unless it was renamed or has to go.
func (p *part) close() {
	if p.remove {
		os.Remove(p.name)
	}
	p.f.Close()
	p.lock.Close()
}
