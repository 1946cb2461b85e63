package client

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"

	"varve/internal/contract"
)

func repositoryPath(name string) string { return "/v1/repositories/" + url.PathEscape(name) }

// Repositories lists the repositories that the daemon knows.
func (c *Client) Repositories(ctx context.Context) ([]contract.Repository, error) {
	return get[[]contract.Repository](ctx, c, "/v1/repositories")
}

// Repository describes one, with what it holds.
func (c *Client) Repository(ctx context.Context, name string) (contract.Repository, error) {
	return get[contract.Repository](ctx, c, repositoryPath(name))
}

// InitRepository makes a repository, which the daemon knows from then on.
func (c *Client) InitRepository(ctx context.Context, r contract.InitRepository) (contract.Repository, error) {
	return send[contract.Repository](ctx, c, http.MethodPost, "/v1/repositories", r)
}

// AddRepository has the daemon know one that is there.
func (c *Client) AddRepository(ctx context.Context, r contract.AddRepository) (contract.Repository, error) {
	return send[contract.Repository](ctx, c, http.MethodPost, "/v1/repository-additions", r)
}

// ChangeRepository gives one another name.
func (c *Client) ChangeRepository(ctx context.Context, name string, r contract.ChangeRepository) (contract.Repository, error) {
	return send[contract.Repository](ctx, c, http.MethodPatch, repositoryPath(name), r)
}

// RemoveRepository has the daemon forget a repository, which stays as it is.
func (c *Client) RemoveRepository(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodDelete, repositoryPath(name), nil, nil)
}

// CheckRepository starts to look for damage.
func (c *Client) CheckRepository(ctx context.Context, name string, r contract.CheckRepository) (contract.Job, error) {
	return send[contract.Job](ctx, c, http.MethodPost, repositoryPath(name)+"/check", r)
}

// PruneRepository starts to give space back.
func (c *Client) PruneRepository(ctx context.Context, name string, r contract.PruneRepository) (contract.Job, error) {
	return send[contract.Job](ctx, c, http.MethodPost, repositoryPath(name)+"/prune", r)
}

// CopyRepository starts to copy backups to another one.
func (c *Client) CopyRepository(ctx context.Context, name string, r contract.CopyRepository) (contract.Job, error) {
	return send[contract.Job](ctx, c, http.MethodPost, repositoryPath(name)+"/copy", r)
}

// RepositoryKeys lists who can open a repository.
func (c *Client) RepositoryKeys(ctx context.Context, name string) ([]contract.RepositoryKey, error) {
	return get[[]contract.RepositoryKey](ctx, c, repositoryPath(name)+"/keys")
}

// AddRepositoryKey lets one more passphrase or recipient open it.
func (c *Client) AddRepositoryKey(ctx context.Context, name string, r contract.AddKey) (contract.RepositoryKey, error) {
	return send[contract.RepositoryKey](ctx, c, http.MethodPost, repositoryPath(name)+"/keys", r)
}

// RemoveRepositoryKey has one open it no longer.
func (c *Client) RemoveRepositoryKey(ctx context.Context, name, id string) error {
	return c.call(ctx, http.MethodDelete, repositoryPath(name)+"/keys/"+url.PathEscape(id), nil, nil)
}

// RotateRepositoryKeys has what is written from then on sealed with new keys.
func (c *Client) RotateRepositoryKeys(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodPost, repositoryPath(name)+"/rotate-keys", nil, nil)
}

// ExportRepositoryKeys returns the keys as a text for a safe.
func (c *Client) ExportRepositoryKeys(ctx context.Context, name string) (contract.KeyExport, error) {
	return send[contract.KeyExport](ctx, c, http.MethodPost, repositoryPath(name)+"/export-keys", nil)
}

// Fill starts to go on filling a volume from its backup.
func (c *Client) Fill(ctx context.Context, volume string) (contract.Job, error) {
	return send[contract.Job](ctx, c, http.MethodPost, volumePath(volume)+"/fill", nil)
}

// Backups lists the backups of a repository and a volume; empty: of all.
func (c *Client) Backups(ctx context.Context, repo, volume string) ([]contract.Backup, error) {
	return get[[]contract.Backup](ctx, c, "/v1/backups?"+url.Values{"repo": {repo}, "volume": {volume}}.Encode())
}

// Backup describes one, by its id or the beginning of it; repo may be empty.
func (c *Client) Backup(ctx context.Context, repo, id string) (contract.Backup, error) {
	return get[contract.Backup](ctx, c, "/v1/backups/"+url.PathEscape(id)+"?"+url.Values{"repo": {repo}}.Encode())
}

// CreateBackup starts a backup.
func (c *Client) CreateBackup(ctx context.Context, r contract.CreateBackup) (contract.Job, error) {
	return send[contract.Job](ctx, c, http.MethodPost, "/v1/backups", r)
}

// VerifyBackups starts to read backups as a restore does.
func (c *Client) VerifyBackups(ctx context.Context, r contract.VerifyBackups) (contract.Job, error) {
	return send[contract.Job](ctx, c, http.MethodPost, "/v1/backup-verifications", r)
}

// DeleteBackups deletes all of them or none.
func (c *Client) DeleteBackups(ctx context.Context, r contract.DeleteBackups) error {
	return c.call(ctx, http.MethodPost, "/v1/backup-deletions", r, nil)
}

// RestoreBackup starts to bring a backup back.
func (c *Client) RestoreBackup(ctx context.Context, r contract.RestoreBackup) (contract.Job, error) {
	return send[contract.Job](ctx, c, http.MethodPost, "/v1/backup-restores", r)
}

// DiffBackups calls visit for each extent whose content differs in two backups, in ascending order, as they arrive. An error of visit ends it.
func (c *Client) DiffBackups(ctx context.Context, repo, older, newer string, visit func(contract.Extent) error) error {
	return c.extents(ctx, "/v1/backup-diff?"+url.Values{"repo": {repo}, "from": {older}, "to": {newer}}.Encode(), visit)
}

// extents reads an answer that is a list of extents and is streamed.
func (c *Client) extents(ctx context.Context, path string, visit func(contract.Extent) error) error {
	response, err := c.ask(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	var mine error
	err = eachOf(json.NewDecoder(response.Body), func(e contract.Extent) error {
		mine = visit(e)
		return mine
	})
	if err == nil || mine != nil {
		return mine
	}
	told := new(contract.Error)
	if json.Unmarshal([]byte(response.Trailer.Get(contract.ErrorTrailer)), told) == nil && told.Code != "" {
		return told
	}
	return fmt.Errorf("read the daemon's answer: %w", err)
}
