package depot

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"varve/internal/contract"
	"varve/internal/objects"
	"varve/internal/repository"
	"varve/internal/repository/config"
	"varve/internal/repository/keys"
)

// Describe tells what the repository is and how many backups it has. That takes a few lists and no more.
func (d *Depot) Describe(ctx context.Context) (contract.Repository, error) {
	out, _, err := d.summary(ctx)
	return out, err
}

func (d *Depot) summary(ctx context.Context) (contract.Repository, []repository.Listed, error) {
	c := d.repo.Config()
	out := contract.Repository{
		ID: d.repo.ID().String(), Name: d.name, URL: d.repo.URL(), State: contract.RepositoryAvailable,
		CreatedAt: contract.At(c.CreatedAt), FormatVersion: c.Version, Encryption: contract.EncryptionNone, Dedup: contract.DedupRepository,
		ChunkSize: int64(c.ChunkBytes), Parity: c.Parity, GraceSeconds: int64(c.Grace.Seconds()), Access: d.access, Warnings: []string{},
	}
	if c.Encryption != config.Plain {
		out.Encryption = contract.EncryptionAESGCM
	}
	if c.Scope == config.ScopeSet {
		out.Dedup = contract.DedupSet
	}
	all, unreadable, err := d.repo.Backups(ctx)
	if err != nil {
		return out, nil, err
	}
	harmed, err := d.Harmed(ctx, all)
	if err != nil {
		return out, nil, err
	}
	out.Backups, out.Volumes, out.Damaged = len(all), volumes(all), len(harmed)
	if last := newest(all); last != nil {
		out.LastBackupAt = contract.At(last.PointAt)
	}
	for _, u := range unreadable {
		out.Warnings = append(out.Warnings, fmt.Sprintf("backup %s cannot be read: %v", u.Record, u.Err))
	}
	if ring := d.repo.Ring(); ring != nil && len(ring.Unreadable) > 0 {
		out.Warnings = append(out.Warnings, fmt.Sprintf("keys of revision %v cannot be read, older ones are used", ring.Unreadable))
	}
	return out, all, nil
}

// Show is Describe with the keys, what is stored, and what its backups took. It lists all objects.
func (d *Depot) Show(ctx context.Context) (contract.Repository, error) {
	out, all, err := d.summary(ctx)
	if err != nil {
		return out, err
	}
	out.Keys = d.Keys()
	usage, err := d.stored(ctx)
	if err != nil {
		return out, err
	}
	addUp(usage, all)
	out.Usage = usage
	return out, nil
}

// stored sums up the store's objects by what they are.
func (d *Depot) stored(ctx context.Context) (*contract.RepositoryUsage, error) {
	u := &contract.RepositoryUsage{Stages: []contract.Step{}}
	condemned, err := d.repo.Condemned(ctx)
	if err != nil {
		return nil, err
	}
	doomed := map[string]bool{}
	for id := range condemned {
		doomed[id.String()] = true
	}
	err = d.repo.Store().List(ctx, "", func(i objects.Info) error {
		u.Objects++
		u.StoredBytes += i.Size
		kind, _, _ := strings.Cut(i.Name, "/")
		switch kind {
		case "packs":
			u.DataBytes += i.Size
		case "nodes":
			u.MapBytes += i.Size
		case "index":
			u.IndexBytes += i.Size
		default:
			u.OtherBytes += i.Size
		}
		if kind == "packs" || kind == "nodes" {
			if at := strings.LastIndexByte(i.Name, '/'); doomed[i.Name[at+1:]] {
				u.CondemnedBytes += i.Size
			}
		}
		return nil
	})
	return u, err
}

// addUp sums up what making the backups took; a record of several counts once.
func addUp(u *contract.RepositoryUsage, all []repository.Listed) {
	at := map[string]int{}
	counted := map[string]bool{}
	for _, b := range all {
		u.LogicalBytes += b.MappedBytes
		u.ReadBytes += b.ReadBytes
		if counted[b.Record.ID] {
			continue
		}
		counted[b.Record.ID] = true
		s := b.Record.Stats
		u.NewBytes += s.NewBytes
		u.DuplicateBytes += s.DuplicateBytes
		u.CompressedBytes += s.CompressedBytes
		u.ParityBytes += s.ParityBytes
		u.WrittenBytes += s.StoredBytes
		u.Requests += s.Requests
		u.Seconds += b.Record.FinishedAt.Sub(b.Record.StartedAt).Seconds()
		for _, stage := range s.Stages {
			i, ok := at[stage.Name]
			if !ok {
				i = len(u.Stages)
				at[stage.Name] = i
				u.Stages = append(u.Stages, contract.Step{Name: stage.Name})
			}
			u.Stages[i].MS += contract.Milliseconds(stage.Took)
		}
	}
}

// Unavailable describes a repository that could not be opened, for lists.
func Unavailable(name string, a contract.RepositoryAccess, err error) contract.Repository {
	out := contract.Repository{Name: name, URL: a.URL, State: contract.RepositoryFailed, Reason: err.Error(), Access: a, Warnings: []string{}}
	switch {
	case errors.Is(err, objects.ErrNoStore), errors.Is(err, objects.ErrUnavailable):
		out.State = contract.RepositoryAbsent
	case errors.Is(err, keys.ErrWrongKey), errors.Is(err, keys.ErrInvalid), errors.Is(err, ErrSecret):
		out.State = contract.RepositoryLocked
	}
	return out
}
