package daemon

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"varve/internal/contract"
	"varve/internal/depot"
	"varve/internal/objects"
	"varve/internal/repository"
	"varve/internal/vfs"
)

// repositories are those that the daemon knows. Each is opened when it is first needed, and stays open; one that is not there is looked
// for again by the next who needs it.
type repositories struct {
	fs      vfs.FS
	dir     string
	program string

	mu     sync.Mutex
	closed bool  // nothing is looked for any more
	broken error // why the file cannot be read: then none is known, and the file is left alone
	list   []*knownRepository
}

// knownRepository is one of them. What has no comment is guarded by the mutex of all.
type knownRepository struct {
	entry   repositoryEntry
	opening chan struct{} // one opens at a time
	open    *openRepository
	leaving chan struct{} // it is being forgotten, or not after all: closed when that is decided
	removed bool
	users   int               // that are no exports
	failed  error             // why it could not be opened the last time
	points  map[string]bool   // ids of snapshots that it has backups of, as of the last look
	looked  time.Time         // when that was
	looking chan struct{}     // somebody does, until it is closed
	glance  *glance           // at its directory, while it is under way
	backing map[string]string // ids of volumes that are being backed up to it: the job
}

// openRepository is one that is open, for as long as somebody uses it or it is the latest.
type openRepository struct {
	*depot.Depot
	place string // what could be seen of its place when it was opened
	users int
	stale bool // it is not the latest any more: who leaves last closes it
}

// use is a repository in somebody's hands, until done.
type use struct {
	*depot.Depot
	known *knownRepository
	id    uuid.UUID
	done  func()
}

func openRepositories(fsys vfs.FS, dir, program string) *repositories {
	rs := &repositories{fs: fsys, dir: dir, program: program}
	entries, err := loadRepositories(fsys, dir)
	rs.broken = err
	for _, e := range entries {
		rs.list = append(rs.list, newKnown(e))
	}
	return rs
}

func newKnown(e repositoryEntry) *knownRepository {
	return &knownRepository{entry: e, opening: make(chan struct{}, 1), backing: map[string]string{}}
}

// stop has nothing begin any more in the background.
func (rs *repositories) stop() {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.closed = true
}

// close closes all that are open; nobody uses them any more.
func (rs *repositories) close() (err error) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	for _, k := range rs.list {
		if k.open != nil {
			err = errors.Join(err, k.open.Close())
			k.open = nil
		}
	}
	return err
}

// all are the known ones, by name.
func (rs *repositories) all() []*knownRepository {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	out := slices.Clone(rs.list)
	slices.SortFunc(out, func(a, b *knownRepository) int { return strings.Compare(a.entry.Name, b.entry.Name) })
	return out
}

// named finds one.
func (rs *repositories) named(name string) (*knownRepository, error) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	for _, k := range rs.list {
		if k.entry.Name == name {
			return k, nil
		}
	}
	if rs.broken != nil {
		return nil, rs.broken
	}
	return nil, contract.Errorf(contract.CodeNotFound, "repository %q: not found", name).WithHint("list repositories: varve repo list")
}

// byID finds one; nil if none of the known ones is that.
func (rs *repositories) byID(id uuid.UUID) *knownRepository {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	for _, k := range rs.list {
		if k.entry.ID == id {
			return k
		}
	}
	return nil
}

// now is what is remembered of one at present.
func (rs *repositories) now(k *knownRepository) repositoryEntry {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	return k.entry
}

// change changes what is known, in the file first; mu is held. do gets a copy of the entries.
func (rs *repositories) change(do func([]repositoryEntry) []repositoryEntry) error {
	if rs.broken != nil {
		return rs.broken
	}
	entries := make([]repositoryEntry, 0, len(rs.list)+1)
	for _, k := range rs.list {
		entries = append(entries, k.entry)
	}
	return saveRepositories(rs.fs, rs.dir, do(entries))
}

// use opens a repository, unless it is open and there, and has it stay open until done.
func (rs *repositories) use(ctx context.Context, k *knownRepository) (*use, error) {
	return rs.take(ctx, k, false)
}

// export is use for one of the NBD server's exports, which does not stand in the way of forgetting the repository.
func (rs *repositories) export(ctx context.Context, k *knownRepository) (*use, error) {
	return rs.take(ctx, k, true)
}

func (rs *repositories) take(ctx context.Context, k *knownRepository, export bool) (*use, error) {
	select {
	case k.opening <- struct{}{}:
		defer func() { <-k.opening }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if err := rs.decided(ctx, k); err != nil {
		return nil, err
	}
	rs.mu.Lock()
	removed, o, entry := k.removed, k.open, k.entry
	rs.mu.Unlock()
	if removed {
		return nil, contract.Errorf(contract.CodeNotFound, "repository %q: not found", entry.Name)
	}
	var failed error
	if o != nil && !o.there(ctx) {
		if failed = ctx.Err(); failed == nil { // who gives up says nothing of what is open
			rs.drop(k)
			o = nil
		}
	}
	if o == nil {
		o, failed = rs.openKnown(ctx, k, entry)
	}
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if !errors.Is(failed, context.Canceled) { // which says nothing of the repository
		k.failed = failed
	}
	if failed != nil {
		return nil, failed
	}
	k.open = o
	o.users++
	if !export {
		k.users++
	}
	return &use{Depot: o.Depot, known: k, id: o.Repo().ID(), done: sync.OnceFunc(func() { rs.leave(k, o, export) })}, nil
}

// decided waits while a repository is being forgotten.
func (rs *repositories) decided(ctx context.Context, k *knownRepository) error {
	rs.mu.Lock()
	leaving := k.leaving
	rs.mu.Unlock()
	if leaving == nil {
		return nil
	}
	select {
	case <-leaving:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// openKnown opens one, and remembers what it is.
func (rs *repositories) openKnown(ctx context.Context, k *knownRepository, entry repositoryEntry) (*openRepository, error) {
	d, err := rs.openEntry(ctx, &entry, 0, 0)
	if err != nil {
		return nil, err
	}
	o := &openRepository{Depot: d}
	if o.place, err = o.see(ctx); err == nil {
		err = rs.remember(k, entry)
	}
	if err != nil {
		d.Close()
		return nil, err
	}
	return o, nil
}

// see tells what there is at the repository's place that makes it what it is: its keys, or its configuration, and when they were put there, as those
// of another one have the same names; and whether it is there at all.
func (o *openRepository) see(ctx context.Context) (string, error) {
	prefix := "config."
	if o.Repo().Ring() != nil {
		prefix = "keys/ring-"
	}
	var names []string
	err := o.Repo().Store().List(ctx, prefix, func(i objects.Info) error {
		names = append(names, fmt.Sprintf("%s of %s", i.Name, i.Modified.UTC().Format(time.RFC3339Nano)))
		return nil
	})
	return strings.Join(names, " "), err
}

// there tells whether a repository that is open can still be reached, at its place, with the keys that it had: a disk may have been
// taken out and put back, and another host may have changed the keys.
func (o *openRepository) there(ctx context.Context) bool {
	place, err := o.see(ctx)
	return err == nil && place == o.place && place != ""
}

func (rs *repositories) leave(k *knownRepository, o *openRepository, export bool) {
	rs.mu.Lock()
	o.users--
	if !export {
		k.users--
	}
	last := o.stale && o.users == 0
	rs.mu.Unlock()
	if last {
		o.Close()
	}
}

// drop has the next user open a repository anew.
func (rs *repositories) drop(k *knownRepository) {
	rs.mu.Lock()
	o := k.open
	k.open = nil
	unused := o != nil && o.users == 0
	if o != nil {
		o.stale = true
	}
	rs.mu.Unlock()
	if unused {
		o.Close()
	}
}

// openEntry opens what an entry says, demands that it is what it was, and notes in the entry what it is.
func (rs *repositories) openEntry(ctx context.Context, e *repositoryEntry, upload, download int64) (*depot.Depot, error) {
	o := depot.Options{Name: e.Name, Program: rs.program, UploadLimit: upload, DownloadLimit: download, ID: e.ID}
	if e.Fingerprint != "" {
		b, err := hex.DecodeString(e.Fingerprint)
		if err != nil || len(b) != len(o.Fingerprint) {
			return nil, fmt.Errorf("repository %q: the key's fingerprint %q in %s is none", e.Name, e.Fingerprint, repositoriesFile)
		}
		copy(o.Fingerprint[:], b)
	}
	d, err := depot.Open(ctx, e.Access, o)
	if errors.Is(err, repository.ErrNoRepository) && e.ID != uuid.Nil {
		err = fmt.Errorf("%w: %w: nothing is there; is the medium mounted?", objects.ErrNoStore, err)
	}
	if err != nil {
		return nil, fmt.Errorf("repository %q: %w", e.Name, err)
	}
	if ring := d.Repo().Ring(); ring != nil {
		if ring.Revision < e.KeysRevision {
			d.Close()
			return nil, contract.Errorf(contract.CodeRefused, "repository %q: its keys are of revision %d, and %d has been seen: somebody has put older ones back", e.Name, ring.Revision, e.KeysRevision).
				WithHint("if that is meant, forget the repository and add it again: varve repo remove, varve repo add")
		}
		e.KeysRevision = ring.Revision
	}
	f := d.Repo().Fingerprint()
	e.ID, e.Fingerprint = d.Repo().ID(), hex.EncodeToString(f[:])
	return d, nil
}

// remember writes down what a repository was found to be.
func (rs *repositories) remember(k *knownRepository, e repositoryEntry) error {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	e.Name = k.entry.Name // it may have been renamed
	if k.entry.ID == e.ID && k.entry.Fingerprint == e.Fingerprint && k.entry.KeysRevision == e.KeysRevision {
		return nil
	}
	for _, other := range rs.list {
		if other != k && other.entry.ID == e.ID {
			return sameRepository(e.Name, other.entry.Name)
		}
	}
	err := rs.change(func(entries []repositoryEntry) []repositoryEntry {
		for i := range entries {
			if entries[i].Name == e.Name {
				entries[i] = e
			}
		}
		return entries
	})
	if err == nil {
		k.entry = e
	}
	return err
}

// limited is use where bytes go over the wire at no more than a rate, in bytes a second; 0: no limit.
func (rs *repositories) limited(ctx context.Context, k *knownRepository, upload, download int64) (*use, error) {
	u, err := rs.use(ctx, k) // it is the known one, and nobody forgets it meanwhile
	if err != nil || upload == 0 && download == 0 {
		return u, err
	}
	entry := rs.now(k)
	d, err := rs.openEntry(ctx, &entry, upload, download)
	if err != nil {
		u.done()
		return nil, err
	}
	return &use{Depot: d, known: k, id: u.id, done: sync.OnceFunc(func() {
		d.Close()
		u.done()
	})}, nil
}

// backUp notes that a job backs volumes up to a repository; two of one volume at once are refused.
func (rs *repositories) backUp(k *knownRepository, members []*backupMember, job func() (contract.Job, error)) (contract.Job, error) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	for _, m := range members {
		if id, busy := k.backing[m.volume.String()]; busy {
			return contract.Job{}, contract.Errorf(contract.CodeRefused, "back up %s to repository %q: job %s backs up that volume to it already", m.name, k.entry.Name, id).
				WithHint("wait for it: varve job wait %s", id)
		}
	}
	j, err := job()
	if err != nil {
		return j, err
	}
	for _, m := range members {
		k.backing[m.volume.String()] = j.ID
	}
	return j, nil
}

func (rs *repositories) backedUp(k *knownRepository, members []*backupMember) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	for _, m := range members {
		delete(k.backing, m.volume.String())
	}
}
