package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"varve/internal/contract"
	"varve/internal/depot"
	"varve/internal/objects"
)

const (
	// listPatience is how long a listing waits for a repository to answer.
	listPatience = 10 * time.Second
	// repositoriesAtOnce is how many repositories are asked at a time.
	repositoriesAtOnce = 8
)

var repositoryName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)

func sameRepository(name, known string) error {
	return contract.Errorf(contract.CodeRefused, "repository %q: it is the one that is known as %q", name, known)
}

// newName tells why a repository cannot be known by a name; mu is held.
func (rs *repositories) newName(name string) error {
	if !repositoryName.MatchString(name) {
		return contract.Errorf(contract.CodeUsage, "invalid repository name %q: 1 to 63 of a-z, 0-9, '.', '_' and '-', beginning with a letter or digit", name)
	}
	for _, k := range rs.list {
		if k.entry.Name == name {
			return contract.Errorf(contract.CodeRefused, "repository %q: name is taken", name).WithHint("choose another name, or forget that one: varve repo remove %s", name)
		}
	}
	return rs.broken
}

// add has one known from now on.
func (rs *repositories) add(e repositoryEntry, failed error) error {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if err := rs.newName(e.Name); err != nil {
		return err
	}
	for _, k := range rs.list {
		if e.ID != uuid.Nil && k.entry.ID == e.ID {
			return sameRepository(e.Name, k.entry.Name)
		}
	}
	if err := rs.change(func(entries []repositoryEntry) []repositoryEntry { return append(entries, e) }); err != nil {
		return err
	}
	k := newKnown(e)
	k.failed = failed
	rs.list = append(rs.list, k)
	return nil
}

// checkNew is newName, and whether the place is one for a repository.
func (d *Daemon) checkNew(name, url string) (warning string, err error) {
	rs := d.repositories
	rs.mu.Lock()
	err = rs.newName(name)
	rs.mu.Unlock()
	if err != nil {
		return "", err
	}
	return depot.Place(url, d.dir)
}

// InitRepository makes a repository and has it known by a name.
func (d *Daemon) InitRepository(ctx context.Context, r contract.InitRepository) (contract.Repository, error) {
	if _, err := d.checkNew(r.Name, r.Access.URL); err != nil {
		return contract.Repository{}, err
	}
	made, err := depot.Init(ctx, r, depot.Options{Name: r.Name, Program: d.repositories.program})
	if err != nil {
		return contract.Repository{}, err
	}
	made.Close()
	out, err := d.AddRepository(ctx, contract.AddRepository{Name: r.Name, Access: r.Access})
	if err != nil {
		err = Describe(err).WithHint("the repository is made; to use it: varve repo add %s %s", r.Name, r.Access.URL)
	}
	return out, err
}

// AddRepository has a repository that is there known by a name; with r.Force one that is not there now as well.
func (d *Daemon) AddRepository(ctx context.Context, r contract.AddRepository) (contract.Repository, error) {
	rs := d.repositories
	if _, err := d.checkNew(r.Name, r.Access.URL); err != nil {
		return contract.Repository{}, err
	}
	e := repositoryEntry{Name: r.Name, Access: r.Access, AddedAt: contract.Time{Time: d.now()}}
	found, failed := rs.openEntry(ctx, &e, 0, 0)
	if found != nil {
		found.Close() // the first who needs it opens it
	}
	if failed != nil && (!r.Force || !isAbsent(failed)) {
		if isAbsent(failed) {
			failed = Describe(failed).WithHint("see that the disk is mounted, or the bucket there; to have it known all the same: --force")
		}
		return contract.Repository{}, failed
	}
	if err := rs.add(e, failed); err != nil {
		return contract.Repository{}, err
	}
	d.note("repository", r.Name, "repository %s is known as %s", r.Access.URL, r.Name)
	k, err := rs.named(r.Name)
	if err != nil {
		return contract.Repository{}, err
	}
	return d.describeRepository(ctx, k), nil
}

// isAbsent tells whether a repository is only not there now.
func isAbsent(err error) bool {
	return errors.Is(err, objects.ErrNoStore) || errors.Is(err, objects.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded)
}

// ChangeRepository gives a repository another name.
func (d *Daemon) ChangeRepository(ctx context.Context, name string, r contract.ChangeRepository) (contract.Repository, error) {
	rs, newName := d.repositories, cmp.Or(r.Name, name)
	k, err := rs.named(name)
	if err != nil {
		return contract.Repository{}, err
	}
	if name != newName {
		rs.mu.Lock()
		if err = rs.newName(newName); err == nil {
			err = rs.change(func(entries []repositoryEntry) []repositoryEntry {
				for i := range entries {
					if entries[i].Name == k.entry.Name { // which may be another one by now
						entries[i].Name = newName
					}
				}
				return entries
			})
		}
		if err == nil {
			k.entry.Name = newName
		}
		rs.mu.Unlock()
		if err != nil {
			return contract.Repository{}, err
		}
		rs.drop(k) // an open one tells its name
	}
	return d.describeRepository(ctx, k), nil
}

// RemoveRepository forgets a repository, which stays as it is. Exports of its backups are closed.
func (d *Daemon) RemoveRepository(ctx context.Context, name string) error {
	rs := d.repositories
	k, err := rs.named(name)
	if err != nil {
		return err
	}
	id := rs.now(k).ID
	fills := func() error {
		for _, f := range d.filling() {
			if f.base.repository == id {
				return contract.Errorf(contract.CodeRefused, "forget repository %q: volume %q is being filled from it", name, f.volume).
					WithHint("wait for that: varve job list; or delete the volume")
			}
		}
		return nil
	}
	if err := fills(); err != nil {
		return err
	}
	d.keepHolds(ctx) // what they held of it is given back
	decided, err := rs.forgetting(k)
	if err != nil {
		return err
	}
	if err = rs.unused(ctx, k, name); err == nil {
		err = fills() // a restore may just have ended that made such a volume
	}
	if err == nil {
		d.sessions.disconnectFrom(id, "the repository is forgotten")
	}
	if err = decided(err); err != nil {
		return err
	}
	rs.drop(k)
	d.note("repository", name, "repository %s is forgotten; it stays as it is", rs.now(k).Access.URL)
	return nil
}

// forgetting has nobody begin to use a repository until decided is called, which forgets it, unless there is an error.
func (rs *repositories) forgetting(k *knownRepository) (decided func(error) error, err error) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if k.leaving != nil || k.removed {
		return nil, contract.Errorf(contract.CodeRefused, "forget repository %q: somebody else does", k.entry.Name)
	}
	k.leaving = make(chan struct{})
	return func(err error) error {
		rs.mu.Lock()
		defer rs.mu.Unlock()
		if err == nil {
			err = rs.change(func(entries []repositoryEntry) []repositoryEntry {
				return slices.DeleteFunc(entries, func(e repositoryEntry) bool { return e.Name == k.entry.Name }) // it may have been renamed
			})
		}
		if err == nil {
			k.removed = true
			rs.list = slices.DeleteFunc(rs.list, func(other *knownRepository) bool { return other == k })
		}
		close(k.leaving)
		k.leaving = nil
		return err
	}, nil
}

// unused waits for a moment until nobody uses a repository.
func (rs *repositories) unused(ctx context.Context, k *knownRepository, name string) error {
	patience := time.NewTimer(partingTime)
	defer patience.Stop()
	look := time.NewTicker(10 * time.Millisecond)
	defer look.Stop()
	for {
		rs.mu.Lock()
		users := k.users
		rs.mu.Unlock()
		if users == 0 {
			return nil
		}
		select {
		case <-look.C:
		case <-patience.C:
			return contract.Errorf(contract.CodeRefused, "forget repository %q: it is in use", name).WithHint("wait for the jobs that use it, or cancel them: varve job list")
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Repositories describes all that are known, by name. One that is not there now is no error.
func (d *Daemon) Repositories(ctx context.Context) ([]contract.Repository, error) {
	all := d.repositories.all()
	if len(all) == 0 && d.repositories.broken != nil {
		return nil, d.repositories.broken
	}
	out := make([]contract.Repository, len(all))
	atOnce(all, func(i int, k *knownRepository) { out[i] = d.describeRepository(ctx, k) })
	return out, nil
}

// atOnce does something with each, some at a time.
func atOnce(all []*knownRepository, do func(i int, k *knownRepository)) {
	var wait sync.WaitGroup
	slots := make(chan struct{}, repositoriesAtOnce)
	for i, k := range all {
		slots <- struct{}{}
		wait.Go(func() {
			do(i, k)
			<-slots
		})
	}
	wait.Wait()
}

// describeRepository tells what a repository is, or why that cannot be told.
func (d *Daemon) describeRepository(ctx context.Context, k *knownRepository) contract.Repository {
	ctx, cancel := context.WithTimeout(ctx, listPatience)
	defer cancel()
	var out contract.Repository
	u, err := d.repositories.use(ctx, k)
	if err == nil {
		out, err = u.Describe(ctx)
		u.done()
	}
	return d.annotated(out, k, err)
}

// annotated adds what the daemon knows of a repository.
func (d *Daemon) annotated(out contract.Repository, k *knownRepository, err error) contract.Repository {
	e := d.repositories.now(k)
	if err != nil {
		out = depot.Unavailable(e.Name, e.Access, err)
		if isAbsent(err) {
			out.State = contract.RepositoryAbsent
		}
	}
	if e.ID != uuid.Nil {
		out.ID = e.ID.String()
	}
	out.Name, out.URL = e.Name, e.Access.URL
	if warning, err := depot.Place(e.Access.URL, d.dir); err != nil {
		out.Warnings = append(out.Warnings, err.Error())
	} else if warning != "" {
		out.Warnings = append(out.Warnings, warning)
	}
	return out
}

// Repository describes one with what it holds; one that cannot be used is an error.
func (d *Daemon) Repository(ctx context.Context, name string) (contract.Repository, error) {
	k, err := d.repositories.named(name)
	if err != nil {
		return contract.Repository{}, err
	}
	u, err := d.repositories.use(ctx, k)
	if err != nil {
		return d.annotated(contract.Repository{}, k, err), nil
	}
	defer u.done()
	out, err := u.Show(ctx)
	if err != nil && !isAbsent(err) {
		return contract.Repository{}, err
	}
	return d.annotated(out, k, err), nil
}

// with does something with a repository that has to be there.
func (d *Daemon) with(ctx context.Context, name string, do func(*use) error) error {
	k, err := d.repositories.named(name)
	if err != nil {
		return err
	}
	u, err := d.repositories.use(ctx, k)
	if err != nil {
		return err
	}
	defer u.done()
	return do(u)
}

// RepositoryKeys lists who can open a repository.
func (d *Daemon) RepositoryKeys(ctx context.Context, name string) (out []contract.RepositoryKey, err error) {
	err = d.with(ctx, name, func(u *use) error {
		out = u.Keys()
		return nil
	})
	return out, err
}

// AddRepositoryKey lets one more passphrase or recipient open it.
func (d *Daemon) AddRepositoryKey(ctx context.Context, name string, r contract.AddKey) (out contract.RepositoryKey, err error) {
	err = d.with(ctx, name, func(u *use) error {
		out, err = u.AddKey(ctx, r)
		return cmp.Or(err, d.keysChanged(u))
	})
	return out, err
}

// RemoveRepositoryKey has one open it no longer.
func (d *Daemon) RemoveRepositoryKey(ctx context.Context, name, id string) error {
	return d.with(ctx, name, func(u *use) error {
		err := u.RemoveKey(ctx, id)
		return cmp.Or(err, d.keysChanged(u))
	})
}

// RotateRepositoryKeys has what is written from now on sealed with new keys.
func (d *Daemon) RotateRepositoryKeys(ctx context.Context, name string) error {
	return d.with(ctx, name, func(u *use) error {
		err := u.RotateKeys(ctx)
		if err == nil {
			err = d.keysChanged(u)
			d.repositories.drop(u.known) // an open one goes on with the keys it has
		}
		return err
	})
}

// keysChanged remembers the revision that a change of keys has made.
func (d *Daemon) keysChanged(u *use) error {
	ring := u.Repo().Ring()
	if ring == nil {
		return nil
	}
	e := d.repositories.now(u.known)
	e.KeysRevision = max(e.KeysRevision, ring.Revision)
	return d.repositories.remember(u.known, e)
}

// ExportRepositoryKeys returns the keys as a text for a safe.
func (d *Daemon) ExportRepositoryKeys(ctx context.Context, name string) (out contract.KeyExport, err error) {
	err = d.with(ctx, name, func(u *use) error {
		out, err = u.ExportKeys()
		return err
	})
	return out, err
}

// pendingRepositories tells which repositories cannot be used now, as far as is known without waiting for a store: those that could not be
// the last time, and have not come back at once, and directories that are not there.
func (d *Daemon) pendingRepositories() (out []string) {
	rs := d.repositories
	known := rs.all()
	d.lookAgain(known, func(k *knownRepository) bool { return k.failed != nil })
	for _, k := range known {
		rs.mu.Lock()
		name, access, failed := k.entry.Name, k.entry.Access, k.failed
		rs.mu.Unlock()
		if dir := depot.Directory(access.URL); failed == nil && dir != "" {
			failed = rs.directory(k, dir)
		}
		switch {
		case failed == nil:
		case isAbsent(failed):
			out = append(out, fmt.Sprintf("repository %s is pending: it is not there now: %v", name, failed))
		default:
			out = append(out, fmt.Sprintf("repository %s cannot be used: %v", name, failed))
		}
	}
	return out
}

// directoryPatience is how long status waits for the file system that a repository is in.
const directoryPatience = time.Second

// glance is somebody's look at a directory.
type glance struct {
	done chan struct{}
	err  error
}

// directory tells why a repository's directory is not there. A file system whose server is gone may never answer: one who waits for it is enough.
func (rs *repositories) directory(k *knownRepository, dir string) error {
	rs.mu.Lock()
	g := k.glance
	if g == nil {
		g = &glance{done: make(chan struct{})}
		k.glance = g
		go func() {
			_, g.err = os.Stat(dir)
			rs.mu.Lock()
			k.glance = nil
			rs.mu.Unlock()
			close(g.done)
		}()
	}
	rs.mu.Unlock()
	patience := time.NewTimer(directoryPatience)
	defer patience.Stop()
	select {
	case <-g.done:
		if g.err != nil {
			return fmt.Errorf("%w: %w", objects.ErrNoStore, g.err)
		}
		return nil
	case <-patience.C:
		return fmt.Errorf("%w: the file system of %s does not answer", objects.ErrUnavailable, dir)
	}
}
