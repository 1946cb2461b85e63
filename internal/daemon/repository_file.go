package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"

	"github.com/google/uuid"

	"varve/internal/contract"
	"varve/internal/vfs"
)

const (
	// repositoriesFile is where a data directory says which repositories its daemon knows.
	repositoriesFile = "repositories.json"
	// repositoriesVersion is that of its format. A newer one is left alone.
	repositoriesVersion = 1
	// maxRepositoriesBytes bounds the file.
	maxRepositoriesBytes = 16 << 20
)

// repositoryEntry is what a daemon remembers of a repository: where it is, where the secrets lie that open it, and by what it is
// known again.
type repositoryEntry struct {
	Name   string                    `json:"name"`
	Access contract.RepositoryAccess `json:"access"`
	// ID and Fingerprint (of the key, 32 hexadecimal digits) are what it was when it was opened first; zero and empty before that.
	ID          uuid.UUID `json:"id"`
	Fingerprint string    `json:"key_fingerprint"`
	// KeysRevision is the newest revision of its keys that was seen; 0 without encryption.
	KeysRevision int           `json:"keys_revision"`
	AddedAt      contract.Time `json:"added_at"`
}

type repositoriesDocument struct {
	Version      int               `json:"version"`
	Repositories []repositoryEntry `json:"repositories"`
}

// loadRepositories reads the file; none is an empty list.
func loadRepositories(fsys vfs.FS, dir string) ([]repositoryEntry, error) {
	name := filepath.Join(dir, repositoriesFile)
	fail := func(err error) ([]repositoryEntry, error) { return nil, fmt.Errorf("read %s: %w", name, err) }
	f, err := fsys.OpenReadOnly(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return fail(err)
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return fail(err)
	}
	if size > maxRepositoriesBytes {
		return fail(fmt.Errorf("it has %d bytes", size))
	}
	b := make([]byte, size)
	if n, err := f.ReadAt(b, 0); err != nil && (!errors.Is(err, io.EOF) || n < len(b)) {
		return fail(err)
	}
	var version struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(b, &version); err != nil {
		return fail(err)
	}
	if version.Version != repositoriesVersion {
		return fail(fmt.Errorf("it is of version %d, and this program knows %d: use the version of varve that wrote it, or a later one", version.Version, repositoriesVersion))
	}
	var doc repositoriesDocument
	if err := json.Unmarshal(b, &doc); err != nil {
		return fail(err)
	}
	return doc.Repositories, nil
}

// saveRepositories replaces the file, at once and durably.
func saveRepositories(fsys vfs.FS, dir string, entries []repositoryEntry) error {
	name := filepath.Join(dir, repositoriesFile)
	b, err := json.MarshalIndent(repositoriesDocument{repositoriesVersion, entries}, "", "  ")
	if err == nil {
		err = replaceFile(fsys, name, append(b, '\n'))
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

// replaceFile gives a file other content: after a crash it has the one or the other.
func replaceFile(fsys vfs.FS, name string, content []byte) error {
	fresh := name + ".new"
	if err := fsys.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := fsys.Create(fresh)
	if err != nil {
		return err
	}
	err = f.WriteAt([][]byte{content}, 0)
	if err == nil {
		err = f.Sync()
	}
	f.Close()
	if err == nil {
		err = fsys.Rename(fresh, name)
	}
	if err != nil {
		return errors.Join(err, fsys.Remove(fresh))
	}
	return fsys.SyncDir(filepath.Dir(name))
}
