package depot

import (
	"errors"
	"syscall"

	"varve/internal/backup"
	"varve/internal/contract"
	"varve/internal/objects"
	"varve/internal/objects/open"
	"varve/internal/repository"
	"varve/internal/repository/config"
	"varve/internal/repository/envelope"
	"varve/internal/repository/keys"
	"varve/internal/repository/prune"
)

// codes maps sentinels to what a script sees and to what to do. The first that matches counts.
var codes = []struct {
	is   error
	code contract.Code
	hint string
}{
	{errNoEncryption, contract.CodeRefused, ""},
	{open.ErrURL, contract.CodeUsage, ""},
	{repository.ErrNotFound, contract.CodeNotFound, "list backups: varve backup list"},
	{repository.ErrAmbiguous, contract.CodeUsage, "give more of the id"},
	{repository.ErrNoRepository, contract.CodeNotFound, "to make one there: varve repo init"},
	{repository.ErrIsRepository, contract.CodeRefused, "to use it: varve repo add"},
	{repository.ErrNotEmpty, contract.CodeRefused, "name a directory, or a prefix in the bucket, that holds nothing yet"},
	{repository.ErrOther, contract.CodeRefused, "if that is meant, forget the old one and add this: varve repo remove, varve repo add"},
	{repository.ErrDeleted, contract.CodeRefused, "once its record is pruned there, and twice the grace has passed, it can be copied again"},
	{repository.ErrBaseGone, contract.CodeFailed, "nothing was made; try again"},
	{repository.ErrFenced, contract.CodeFailed, "nothing was made; try again: what was stored is found"},
	{repository.ErrLapsed, contract.CodeFailed, "the store could not be written for half an hour; try again"},
	{keys.ErrWrongKey, contract.CodeFailed, ""}, // it says itself which keys there are
	{keys.ErrChanged, contract.CodeFailed, "look at the keys again, then decide: varve repo key list"},
	{keys.ErrNoMethod, contract.CodeNotFound, "list keys: varve repo key list"},
	{keys.ErrLastMethod, contract.CodeRefused, "add another one first: varve repo key add"},
	{keys.ErrExists, contract.CodeRefused, ""},
	{keys.ErrInvalid, contract.CodeUsage, ""},
	{keys.ErrStale, contract.CodeRefused, "open the repository with a passphrase or an identity"},
	{keys.ErrLeftover, contract.CodeFailed, "the next change of keys deletes them if it can; or delete the older rings and slots in the store by hand"},
	{config.ErrForged, contract.CodeDamaged, "somebody has changed the repository who has no key for it"},
	{config.ErrInvalid, contract.CodeUsage, ""},
	{config.ErrExists, contract.CodeRefused, "to use it: varve repo add"},
	{config.ErrUnknownFeature, contract.CodeFailed, "use the version of varve that wrote it, or a later one"},
	{prune.ErrMapLost, contract.CodeDamaged, "nothing was deleted; see what is damaged: varve repo check; to go on without what is lost: --ignore-lost"},
	{envelope.ErrNewer, contract.CodeFailed, "use the version of varve that wrote it, or a later one"},
	{repository.ErrDamaged, contract.CodeDamaged, "see what is damaged: varve repo check; to restore what is left: --skip-damaged"},
	{envelope.ErrForeign, contract.CodeDamaged, "see what is damaged: varve repo check"},
	{envelope.ErrLost, contract.CodeDamaged, "see what is damaged: varve repo check"},
	{backup.ErrTooSmall, contract.CodeRefused, "nothing was written; name a larger target"},
	{objects.ErrNoStore, contract.CodeNotFound, "see that the disk is mounted and the directory above it there, or the bucket; to make a repository: varve repo init"},
	{objects.ErrDenied, contract.CodeFailed, "see that the credentials are right, and may read, write, list and delete there"},
	{objects.ErrFull, contract.CodeFailed, "make room in the store, or have varve do it: varve backup delete, varve repo prune; what was stored is found by the next attempt"},
	{objects.ErrLocked, contract.CodeRefused, "its retention has not ended"},
	{objects.ErrUnavailable, contract.CodeFailed, "see that the store can be reached (without TLS: --s3-plain-http; with a CA of its own: --s3-ca-file); what was stored is found by the next attempt"},
}

// Explain is an error of this package, or of those below, as the contract gives it: a code, one line, and a hint where there is
// one. It is nil for an error that is none of theirs.
func Explain(err error) *contract.Error {
	var told *contract.Error
	if errors.As(err, &told) {
		return told
	}
	for _, c := range codes {
		if errors.Is(err, c.is) {
			return &contract.Error{Code: c.code, Message: err.Error(), Hint: c.hint}
		}
	}
	var errno syscall.Errno
	if errors.Is(err, errors.ErrUnsupported) && !errors.As(err, &errno) {
		return &contract.Error{Code: contract.CodeRefused, Message: err.Error(), Hint: "of what Varve writes to, only buckets with object lock have a retention"}
	}
	return nil
}
