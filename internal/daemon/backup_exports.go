package daemon

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/google/uuid"

	"varve/internal/nbd/server"
	"varve/internal/repository"
)

// openBackup opens the export backup/ID, or the beginning of an ID that no other has. A listing of the exports has none of them, as it must not
// wait for stores that may be far away.
func (e exports) openBackup(ctx context.Context, name string) (*server.Export, openExport, error) {
	u, b, err := e.d.find(ctx, "", strings.TrimPrefix(name, backupPrefix), anyOf, e.d.repositories.export)
	if err != nil {
		if errors.Is(err, repository.ErrNotFound) || errors.Is(err, repository.ErrAmbiguous) {
			err = fmt.Errorf("%w: %w", server.ErrUnknownExport, err)
		}
		return nil, openExport{}, err
	}
	device, err := u.Repo().OpenDevice(ctx, b.ID)
	if err != nil {
		u.done()
		return nil, openExport{}, err
	}
	export := &server.Export{
		Name: backupPrefix + b.ID, Device: &backupDevice{Device: device, use: u}, ReadOnly: true,
		Description: fmt.Sprintf("backup of %s in %s, read-only", b.Volume, u.Name()),
	}
	return export, openExport{repository: u.id}, nil
}

// disconnectFrom cuts off the sessions that read backups of a repository, and returns when they are gone.
func (ss *sessions) disconnectFrom(repository uuid.UUID, reason string) {
	for _, s := range ss.server.Sessions() {
		ss.mu.Lock()
		e := ss.open[s.ID()]
		ss.mu.Unlock()
		if e.repository == repository && repository != uuid.Nil {
			s.Disconnect(reason)
		}
	}
}
