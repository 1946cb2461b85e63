package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"varve/internal/contract"
	"varve/internal/daemon"
)

type namedRepository struct {
	Repository string `path:"repository"`
}

// forRepository is a request with a body about one repository.
type forRepository[T any] struct {
	Repository string `path:"repository"`
	Body       T
}

func repositories(api huma.API, d *daemon.Daemon) {
	const one = "/v1/repositories/{repository}"
	operation(api, http.MethodGet, "/v1/repositories", "list-repositories", "List the repositories that the daemon knows, also those that are not there now", http.StatusOK,
		func(ctx context.Context, _ *none) ([]contract.Repository, error) { return d.Repositories(ctx) })
	operation(api, http.MethodPost, "/v1/repositories", "init-repository", "Make a repository and have it known", http.StatusCreated,
		func(ctx context.Context, in *with[contract.InitRepository]) (contract.Repository, error) {
			return d.InitRepository(ctx, in.Body)
		})
	operation(api, http.MethodPost, "/v1/repository-additions", "add-repository", "Have a repository known that is there", http.StatusCreated,
		func(ctx context.Context, in *with[contract.AddRepository]) (contract.Repository, error) {
			return d.AddRepository(ctx, in.Body)
		})
	operation(api, http.MethodGet, one, "show-repository", "Show a repository and what it holds", http.StatusOK,
		func(ctx context.Context, in *namedRepository) (contract.Repository, error) {
			return d.Repository(ctx, in.Repository)
		})
	operation(api, http.MethodPatch, one, "change-repository", "Give a repository another name", http.StatusOK,
		func(ctx context.Context, in *forRepository[contract.ChangeRepository]) (contract.Repository, error) {
			return d.ChangeRepository(ctx, in.Repository, in.Body)
		})
	action(api, http.MethodDelete, one, "remove-repository", "Forget a repository, which stays as it is",
		func(ctx context.Context, in *namedRepository) error { return d.RemoveRepository(ctx, in.Repository) })
	operation(api, http.MethodPost, one+"/check", "check-repository", "Start to look for damage, and to mend what can be", http.StatusAccepted,
		func(ctx context.Context, in *forRepository[contract.CheckRepository]) (contract.Job, error) {
			return d.CheckRepository(ctx, in.Repository, in.Body)
		})
	operation(api, http.MethodPost, one+"/prune", "prune-repository", "Start to give back the space of what nothing needs", http.StatusAccepted,
		func(ctx context.Context, in *forRepository[contract.PruneRepository]) (contract.Job, error) {
			return d.PruneRepository(ctx, in.Repository, in.Body)
		})
	operation(api, http.MethodPost, one+"/copy", "copy-repository", "Start to copy backups to another repository", http.StatusAccepted,
		func(ctx context.Context, in *forRepository[contract.CopyRepository]) (contract.Job, error) {
			return d.CopyRepository(ctx, in.Repository, in.Body)
		})
	operation(api, http.MethodGet, one+"/keys", "list-keys", "List who can open a repository", http.StatusOK,
		func(ctx context.Context, in *namedRepository) ([]contract.RepositoryKey, error) {
			return d.RepositoryKeys(ctx, in.Repository)
		})
	operation(api, http.MethodPost, one+"/keys", "add-key", "Let one more passphrase or recipient open a repository", http.StatusCreated,
		func(ctx context.Context, in *forRepository[contract.AddKey]) (contract.RepositoryKey, error) {
			return d.AddRepositoryKey(ctx, in.Repository, in.Body)
		})
	action(api, http.MethodDelete, one+"/keys/{key}", "remove-key", "Have a passphrase or recipient open a repository no longer",
		func(ctx context.Context, in *struct {
			Repository string `path:"repository"`
			Key        string `path:"key"`
		}) error {
			return d.RemoveRepositoryKey(ctx, in.Repository, in.Key)
		})
	action(api, http.MethodPost, one+"/rotate-keys", "rotate-keys", "Have what is written from now on sealed with new keys",
		func(ctx context.Context, in *namedRepository) error {
			return d.RotateRepositoryKeys(ctx, in.Repository)
		})
	operation(api, http.MethodPost, one+"/export-keys", "export-keys", "Show the keys as a text for a safe", http.StatusOK,
		func(ctx context.Context, in *namedRepository) (contract.KeyExport, error) {
			return d.ExportRepositoryKeys(ctx, in.Repository)
		})
}

func backups(api huma.API, d *daemon.Daemon) {
	operation(api, http.MethodGet, "/v1/backups", "list-backups", "List backups, oldest first", http.StatusOK,
		func(ctx context.Context, in *struct {
			Repo   string `query:"repo" doc:"in this repository only"`
			Volume string `query:"volume" doc:"of this volume only: its name or UUID"`
		}) ([]contract.Backup, error) {
			return d.Backups(ctx, in.Repo, in.Volume)
		})
	operation(api, http.MethodGet, "/v1/backups/{backup}", "show-backup", "Show a backup", http.StatusOK,
		func(ctx context.Context, in *struct {
			Backup string `path:"backup" doc:"its id, or the beginning of it"`
			Repo   string `query:"repo" doc:"the repository it is in"`
		}) (contract.Backup, error) {
			return d.Backup(ctx, in.Repo, in.Backup)
		})
	operation(api, http.MethodPost, "/v1/backups", "create-backup", "Start to back up volumes at one instant, snapshots of one, or a foreign source", http.StatusAccepted,
		func(ctx context.Context, in *with[contract.CreateBackup]) (contract.Job, error) {
			return d.CreateBackup(ctx, in.Body)
		})
	operation(api, http.MethodPost, "/v1/backup-verifications", "verify-backups", "Start to read backups as a restore does, into nothing", http.StatusAccepted,
		func(ctx context.Context, in *with[contract.VerifyBackups]) (contract.Job, error) {
			return d.VerifyBackups(ctx, in.Body)
		})
	action(api, http.MethodPost, "/v1/backup-deletions", "delete-backups", "Delete backups, all or none",
		func(ctx context.Context, in *with[contract.DeleteBackups]) error {
			return d.DeleteBackups(ctx, in.Body)
		})
	operation(api, http.MethodPost, "/v1/backup-restores", "restore-backup", "Start to bring a backup back", http.StatusAccepted,
		func(ctx context.Context, in *with[contract.RestoreBackup]) (contract.Job, error) {
			return d.RestoreBackup(ctx, in.Body)
		})
	streamed(api, "diff-backups", "/v1/backup-diff", "What differs in two backups of a volume",
		func(ctx context.Context, in *struct {
			Repo string `query:"repo" doc:"the repository they are in"`
			From string `query:"from" required:"true" doc:"id of a backup, or the beginning of it"`
			To   string `query:"to" required:"true" doc:"id of a newer one"`
		}) (extents, error) {
			return d.OpenBackupDiff(ctx, in.Repo, in.From, in.To)
		})
}
