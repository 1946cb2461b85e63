// Package depot is what is done with one open repository, in the words of the
// contract: the daemon's jobs use it, and the command line where no daemon is.
//
// A Depot is an open repository with the name that people know it by. What it
// returns is ready to be printed; errors are those of the packages below, and
// Explain gives them a code and a hint.
//
// Left out: volumes, snapshots and bookmarks of a pool, and which repositories
// there are: the daemon knows.
package depot

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"filippo.io/age"
	"github.com/google/uuid"

	"varve/internal/contract"
	"varve/internal/objects"
	"varve/internal/objects/open"
	"varve/internal/objects/s3"
	"varve/internal/repository"
	"varve/internal/repository/config"
	"varve/internal/repository/keys"
)

// Depot is an open repository. Its methods may be called concurrently, Close last.
type Depot struct {
	repo      *repository.Repo
	name      string
	access    contract.RepositoryAccess
	program   string
	temporary string

	changing sync.Mutex // of its keys
}

// Progress is told how much is done, of what total; it is called by one goroutine at a time, and what is done never becomes less.
type Progress func(done, total int64)

// Options say how a repository is opened.
type Options struct {
	// Name is what the repository is called; empty: its URL.
	Name string
	// Program is what backups say they were made by, with its version.
	Program string
	// UploadLimit and DownloadLimit are in bytes a second; 0: none.
	UploadLimit, DownloadLimit int64
	// Temporary is the directory for what does not fit into memory; empty: the system's.
	Temporary string
	// ID and Fingerprint are what the repository was when it was opened before; zero: any.
	ID          uuid.UUID
	Fingerprint [16]byte
}

// Open opens the repository that a says.
func Open(ctx context.Context, a contract.RepositoryAccess, o Options) (*Depot, error) {
	st, err := openStore(ctx, a, o, false)
	if err != nil {
		return nil, err
	}
	ro := repository.OpenOptions{ID: o.ID, Fingerprint: o.Fingerprint}
	if ro.Unlock, ro.Export, err = secrets(a); err != nil {
		st.Close()
		return nil, err
	}
	repo, err := repository.Open(ctx, st, ro)
	if err != nil {
		st.Close()
		return nil, err
	}
	return New(repo, a, o), nil
}

// New is the Depot of a repository that is open already. Close closes it.
func New(repo *repository.Repo, a contract.RepositoryAccess, o Options) *Depot {
	return &Depot{repo: repo, name: cmp.Or(o.Name, repo.URL()), access: a, program: o.Program, temporary: cmp.Or(o.Temporary, os.TempDir())}
}

// Init makes a repository and opens it. What is missing in r has the defaults.
func Init(ctx context.Context, r contract.InitRepository, o Options) (*Depot, error) {
	co, err := createOptions(r)
	if err != nil {
		return nil, err
	}
	undo := newDirectory(r.Access.URL)
	st, err := openStore(ctx, r.Access, o, true)
	if err != nil {
		return nil, err
	}
	repo, err := repository.Create(ctx, st, co)
	if err != nil {
		st.Close()
		undo()
		return nil, err
	}
	return New(repo, r.Access, o), nil
}

// newDirectory returns what removes the directory of a repository that did not come about, if it is not there yet.
func newDirectory(url string) (undo func()) {
	l, err := open.Parse(url)
	if err != nil || l.Dir == "" {
		return func() {}
	}
	if _, err := os.Lstat(l.Dir); !errors.Is(err, fs.ErrNotExist) {
		return func() {}
	}
	return func() { os.Remove(l.Dir) } // which fails if anything is in it
}

// createOptions are those that a request asks for.
func createOptions(r contract.InitRepository) (repository.CreateOptions, error) {
	o := repository.CreateOptions{ChunkBytes: int(r.ChunkSize)}
	wrong := func(format string, args ...any) (repository.CreateOptions, error) {
		return o, contract.Errorf(contract.CodeUsage, "make a repository: "+format, args...)
	}
	if n := r.ChunkSize; n != 0 && (n < config.MinChunkBytes || n > config.MaxChunkBytes || n&(n-1) != 0) {
		return wrong("a chunk size of %d bytes: it is a power of two from 64K to 1M", n)
	}
	switch r.Dedup {
	case contract.DedupRepository, "":
	case contract.DedupSet:
		o.Scope = config.ScopeSet
	default:
		return wrong("dedup %q: it is repository or set", r.Dedup)
	}
	if r.Parity != nil {
		if o.Parity = *r.Parity; o.Parity == 0 {
			o.Parity = -1
		}
		if *r.Parity < 0 || *r.Parity > 100 {
			return wrong("a parity of %d percent: it is from 0 to 100", *r.Parity)
		}
	}
	if r.GraceSeconds != nil {
		if o.Grace = time.Duration(*r.GraceSeconds) * time.Second; o.Grace == 0 {
			o.Grace = -1
		}
	}
	passphrase := r.Access.PasswordFile != ""
	switch {
	case r.NoEncryption && (passphrase || len(r.Recipients) > 0):
		return wrong("without encryption there is nothing that a passphrase or recipient could open")
	case !r.NoEncryption && !passphrase && len(r.Recipients) == 0:
		return o, contract.Errorf(contract.CodeUsage, "make a repository: nobody could open it").
			WithHint("say who may: --password-file FILE, or --recipient AGE-RECIPIENT; or --no-encryption")
	}
	if passphrase {
		p, err := readPassphrase(r.Access.PasswordFile)
		if err != nil {
			return o, err
		}
		o.Keys = append(o.Keys, keys.Add{Label: r.Label, Passphrase: p})
	}
	for _, recipient := range r.Recipients {
		o.Keys = append(o.Keys, keys.Add{Recipient: recipient})
	}
	return o, nil
}

// openStore opens the place that a repository is in, or is to be in.
func openStore(ctx context.Context, a contract.RepositoryAccess, o Options, create bool) (objects.Store, error) {
	so := open.Options{Create: create}
	if a.S3 != nil {
		so.S3 = s3.Options{
			Region: a.S3.Region, AccessKey: a.S3.AccessKey, CredentialsFile: a.S3.CredentialsFile, Profile: a.S3.Profile,
			CAFile: a.S3.CAFile, PlainHTTP: a.S3.PlainHTTP,
		}
		if a.S3.SecretKeyFile != "" {
			secret, err := readPassphrase(a.S3.SecretKeyFile)
			if err != nil {
				return nil, err
			}
			so.S3.SecretKey = string(secret)
		}
		if (a.S3.AccessKey == "") != (so.S3.SecretKey == "") {
			return nil, contract.Errorf(contract.CodeUsage, "open %s: an access key and the file of its secret key go together", a.URL)
		}
	}
	st, err := open.URL(ctx, a.URL, so)
	if err != nil {
		return nil, err
	}
	if o.UploadLimit > 0 || o.DownloadLimit > 0 {
		st = objects.Limited(st, o.UploadLimit, o.DownloadLimit)
	}
	return st, nil
}

// secrets reads the files that open a repository.
func secrets(a contract.RepositoryAccess) (u keys.Unlock, export []byte, err error) {
	if a.ExportFile != "" {
		if export, err = os.ReadFile(a.ExportFile); err != nil {
			return u, nil, fmt.Errorf("%w: %w", ErrSecret, err)
		}
	}
	if a.PasswordFile != "" {
		if u.Passphrase, err = readPassphrase(a.PasswordFile); err != nil {
			return u, nil, err
		}
	}
	for _, file := range a.IdentityFiles {
		ids, err := readIdentities(file)
		if err != nil {
			return u, nil, err
		}
		u.Identities = append(u.Identities, ids...)
	}
	return u, export, nil
}

func readPassphrase(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSecret, err)
	}
	defer f.Close()
	p, err := keys.ReadPassphrase(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return p, nil
}

func readIdentities(file string) ([]age.Identity, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrSecret, err)
	}
	if bytes.HasPrefix(b, []byte("-----BEGIN AGE")) || bytes.HasPrefix(b, []byte("age-encryption.org/")) {
		return nil, contract.Errorf(contract.CodeUsage, "%s: it is encrypted itself", file).WithHint("decrypt it to a file that only you can read: age -d -o FILE %s", file)
	}
	ids, err := keys.ReadIdentities(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return ids, nil
}

// Close closes the repository.
func (d *Depot) Close() error { return d.repo.Close() }

// Repo is the repository itself.
func (d *Depot) Repo() *repository.Repo { return d.repo }

// Name is what it is called.
func (d *Depot) Name() string { return d.name }

// monotone makes of what several goroutines tell, in no order, what Progress promises; nil stays nil.
func monotone(p Progress) func(done, total int64) {
	if p == nil {
		return nil
	}
	var mu sync.Mutex
	var best int64 = -1
	return func(done, total int64) {
		mu.Lock()
		defer mu.Unlock()
		if done > best {
			best = done
			p(done, total)
		}
	}
}

// each tells, of several pieces of work of the same weight, how far all are.
func each(p Progress, i, n int) func(done, total int64) {
	if p == nil {
		return nil
	}
	const steps = 1 << 20
	return func(done, total int64) {
		p(int64(i)*steps+int64(float64(done)/float64(max(total, 1))*steps), int64(n)*steps)
	}
}

// seconds since a time.
func seconds(since time.Time) float64 { return time.Since(since).Seconds() }

// ErrSecret says that a file with a passphrase, an identity, exported keys or a secret key cannot be read.
var ErrSecret = errors.New("read a secret")

var errNoEncryption = errors.New("the repository is not encrypted: it has no keys")
