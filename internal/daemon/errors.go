package daemon

import (
	"context"
	"errors"
	"io/fs"
	"syscall"

	"varve/internal/block"
	"varve/internal/contract"
	"varve/internal/depot"
	"varve/internal/image"
	"varve/internal/pool"
	"varve/internal/vfs"
)

// Errors of the daemon itself; those of package pool are passed through.
var (
	// ErrServed: another process answers on the socket or address.
	ErrServed = errors.New("already served by another process")
	// ErrForeign: the data directory holds things that are not Varve's.
	ErrForeign = errors.New("not a data directory of varve")
	// ErrNoJob: no job of that id, or it is so old that it is forgotten.
	ErrNoJob = errors.New("no such job")
	// ErrJobState: the job's state or kind does not allow it.
	ErrJobState = errors.New("the job cannot do that now")
	// ErrStopping: the daemon is about to end.
	ErrStopping = errors.New("the daemon is stopping")
)

// codes maps sentinels to what a script sees and to what to do where the
// operation gave no better hint. The first that matches counts.
var codes = []struct {
	is   error
	code contract.Code
	hint string
}{
	{pool.ErrNotFound, contract.CodeNotFound, ""},
	{ErrNoJob, contract.CodeNotFound, "list jobs: varve job list"},
	{pool.ErrExists, contract.CodeRefused, "choose another name, or delete what has this one"},
	{pool.ErrInUse, contract.CodeRefused, ""},
	{pool.ErrProtected, contract.CodeRefused, "lift the protection first: varve snapshot unprotect VOLUME@NAME"},
	{pool.ErrShrink, contract.CodeRefused, "what lies beyond the new end is lost; to do it all the same: --force"},
	{pool.ErrInvalid, contract.CodeUsage, ""},
	{block.ErrReadOnly, contract.CodeRefused, ""},
	{block.ErrDamaged, contract.CodeDamaged, "see what is damaged: varve pool check"},
	{pool.ErrDamagedLog, contract.CodeDamaged, "nothing was changed; see what can be made of it: varve pool check --offline"},
	{pool.ErrNewerFormat, contract.CodeFailed, "use the version of varve that wrote it, or a later one"},
	{pool.ErrNotPool, contract.CodeFailed, "name a directory that does not exist yet or is empty to make a new one: --data DIR"},
	{pool.ErrWriteStopped, contract.CodeFailed, "mend the disk, then restart the daemon; what was acknowledged as durable is kept"},
	{block.ErrNoSpace, contract.CodeFailed, "make room on the file system that holds the pool; nothing that was acknowledged is lost"},
	{syscall.ENOSPC, contract.CodeFailed, "make room on the file system, then try again"},
	{vfs.ErrLocked, contract.CodeRefused, "one process works on a pool at a time: stop the other one, or use its socket"},
	{ErrServed, contract.CodeRefused, "stop the other one, or choose another address"},
	{ErrForeign, contract.CodeRefused, "name a directory that does not exist yet or is empty: --data DIR"},
	{ErrJobState, contract.CodeRefused, ""},
	{ErrStopping, contract.CodeFailed, ""},
	{image.ErrInUse, contract.CodeRefused, "stop the program that uses it, or import a copy"},
	{image.ErrNeedsCheck, contract.CodeFailed, "have it checked first: qemu-img check -r all FILE"},
	{syscall.EBUSY, contract.CodeRefused, "something else has it: unmount it, or stop the program that uses it"},
	{syscall.EROFS, contract.CodeFailed, "the file system is mounted read-only: name a directory on another one"},
	{fs.ErrPermission, contract.CodeFailed, "the daemon's user must be allowed to do that: change the mode or owner, or name another place"},
	{fs.ErrNotExist, contract.CodeNotFound, ""},
	{fs.ErrExist, contract.CodeRefused, "choose another name, or replace it with --force"},
	{context.Canceled, contract.CodeFailed, ""},
}

// Describe is err as the API gives it: a code, one line, and a hint where there is one.
func Describe(err error) *contract.Error {
	if err == nil {
		return nil
	}
	var told *contract.Error
	if errors.As(err, &told) {
		return told
	}
	if told := depot.Explain(err); told != nil {
		return told
	}
	for _, c := range codes {
		if errors.Is(err, c.is) {
			return &contract.Error{Code: c.code, Message: err.Error(), Hint: c.hint}
		}
	}
	return &contract.Error{Code: contract.CodeFailed, Message: err.Error()}
}

// hinted adds a hint to err if it is of the kind; other errors pass unchanged.
func hinted(err, kind error, hint string, args ...any) error {
	if !errors.Is(err, kind) {
		return err
	}
	return Describe(err).WithHint(hint, args...)
}
