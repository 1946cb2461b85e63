package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"varve/internal/contract"
	"varve/internal/repository"
)

// taking is how a repository gets into somebody's hands: use or export.
type taking func(context.Context, *knownRepository) (*use, error)

// which says what is meant by an id that several repositories have a backup of.
type which uint8

const (
	anyOf   which = iota // copies are alike: the first that answers
	theOnly              // who asks means one, and has to name its repository
)

// hit is a backup in a repository, which is in use.
type hit struct {
	u    *use
	b    repository.Listed
	lost error // why its record cannot be read: then it is nothing but an id
}

// find looks for a backup, by its id or the beginning of it, in a repository, or in all if none is named.
func (d *Daemon) find(ctx context.Context, repo, id string, want which, take taking) (*use, repository.Listed, error) {
	known, err := d.repositories.chosen(repo)
	if err != nil {
		return nil, repository.Listed{}, err
	}
	hits, failed := d.search(ctx, known, id, want, take)
	err = d.choose(known, id, want, hits, failed)
	for i, h := range hits {
		if err != nil || i > 0 {
			h.u.done()
		}
	}
	if err == nil && hits[0].lost != nil && want != theOnly { // who deletes it need not read it
		err = hits[0].lost
		hits[0].u.done()
	}
	if err != nil {
		return nil, repository.Listed{}, err
	}
	return hits[0].u, hits[0].b, nil
}

// search asks repositories for a backup. Those that have one whose id is just that come first, and of them those that can read its record; failed are
// the others' errors.
func (d *Daemon) search(ctx context.Context, known []*knownRepository, id string, want which, take taking) (hits []hit, failed []error) {
	asking, enough := context.WithCancel(ctx)
	defer enough()
	if len(known) > 1 {
		var end context.CancelFunc
		asking, end = context.WithTimeout(asking, listPatience)
		defer end()
	}
	found := make([]*hit, len(known))
	failed = make([]error, len(known))
	atOnce(known, func(i int, k *knownRepository) {
		u, err := take(asking, k)
		if err != nil {
			failed[i] = err
			return
		}
		b, err := u.Repo().Backup(asking, id)
		var lost *repository.Unreadable
		switch {
		case errors.As(err, &lost):
			b.ID = lost.Record
		case err != nil:
			u.done()
			failed[i] = err
			return
		}
		found[i] = &hit{u, b, err}
		if err == nil && b.ID == id && want == anyOf {
			enough() // the others need not be waited for
		}
	})
	for _, h := range found {
		if h != nil {
			hits = append(hits, *h)
		}
	}
	slices.SortStableFunc(hits, func(a, b hit) int { return cmp.Compare(a.rank(id), b.rank(id)) })
	return hits, failed
}

// rank orders hits: the lower, the more it is what is meant by an id.
func (h hit) rank(id string) (n int) {
	if h.b.ID != id {
		n += 2
	}
	if h.lost != nil {
		n++
	}
	return n
}

// choose tells why the first of the hits is not what was meant; nil if it is.
func (d *Daemon) choose(known []*knownRepository, id string, want which, hits []hit, failed []error) error {
	whole := len(hits) > 0 && hits[0].b.ID == id
	var has, silent []string
	for _, h := range hits {
		if !whole && h.b.ID != hits[0].b.ID {
			return fmt.Errorf("backup %s: %w", id, repository.ErrAmbiguous)
		}
		if h.b.ID == hits[0].b.ID {
			has = append(has, d.repositories.now(h.u.known).Name)
		}
	}
	for i, err := range failed {
		switch {
		case err == nil || errors.Is(err, repository.ErrNotFound):
		case errors.Is(err, repository.ErrAmbiguous):
			if !whole {
				return err
			}
		case len(known) == 1:
			return err
		default:
			silent = append(silent, d.repositories.now(known[i]).Name)
		}
	}
	switch {
	case len(has) > 1 && want == theOnly:
		return contract.Errorf(contract.CodeUsage, "backup %s is in repositories %s", hits[0].b.ID, strings.Join(has, ", ")).WithHint("say which: --repo NAME")
	case len(has) > 0:
		return nil
	case len(known) == 0:
		return contract.Errorf(contract.CodeNotFound, "backup %s: no repository is known", id).WithHint("make one, or have one known: varve repo init, varve repo add")
	case len(silent) > 0:
		return contract.Errorf(contract.CodeNotFound, "backup %s: none of the repositories that are there has it, and %s cannot be asked now", id, strings.Join(silent, ", ")).
			WithHint("list repositories: varve repo list")
	}
	return fmt.Errorf("backup %s: %w", id, repository.ErrNotFound)
}

// backupsIn are ids of backups in a repository that is in use.
type backupsIn struct {
	u   *use
	ids []string
}

type backupsFound []*backupsIn

func (f backupsFound) done() {
	for _, one := range f {
		one.u.done()
	}
}

// findAll is find for several; each appears once.
func (d *Daemon) findAll(ctx context.Context, repo string, ids []string, want which) (out backupsFound, err error) {
	for _, id := range ids {
		u, b, err := d.find(ctx, repo, id, want, d.repositories.use)
		if err != nil {
			out.done()
			return nil, err
		}
		at := slices.IndexFunc(out, func(one *backupsIn) bool { return one.u.known == u.known })
		if at < 0 {
			out = append(out, &backupsIn{u, []string{b.ID}})
			continue
		}
		u.done()
		if !slices.Contains(out[at].ids, b.ID) {
			out[at].ids = append(out[at].ids, b.ID)
		}
	}
	return out, nil
}
