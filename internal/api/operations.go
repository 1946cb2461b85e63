package api

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"varve/internal/contract"
	"varve/internal/daemon"
)

// maxWait is the longest time in seconds that a request waits for a job.
const maxWait = 60

type none struct{}

// with is a request with a body.
type with[T any] struct{ Body T }

type namedVolume struct {
	Volume string `path:"volume"`
}

type namedSnapshot struct {
	Snapshot string `path:"snapshot" doc:"VOLUME@NAME"`
}

type namedJob struct {
	Job string `path:"job"`
}

func volumes(api huma.API, d *daemon.Daemon) {
	operation(api, http.MethodGet, "/v1/volumes", "list-volumes", "List volumes", http.StatusOK,
		func(ctx context.Context, _ *none) ([]contract.Volume, error) { return d.Volumes(ctx) })
	operation(api, http.MethodPost, "/v1/volumes", "create-volume", "Create an empty volume, in the pool or in a new file, or a clone of a snapshot", http.StatusCreated,
		func(ctx context.Context, in *with[contract.CreateVolume]) (contract.Volume, error) {
			return d.CreateVolume(ctx, in.Body)
		})
	operation(api, http.MethodPost, "/v1/adoptions", "adopt-volume", "Make a volume of a raw file or block device where it lies", http.StatusCreated,
		func(ctx context.Context, in *with[contract.AdoptVolume]) (contract.Volume, error) {
			return d.AdoptVolume(ctx, in.Body)
		})
	operation(api, http.MethodGet, "/v1/volumes/{volume}", "show-volume", "Show a volume", http.StatusOK,
		func(ctx context.Context, in *namedVolume) (contract.Volume, error) { return d.Volume(ctx, in.Volume) })
	operation(api, http.MethodPatch, "/v1/volumes/{volume}", "change-volume", "Rename, label or resize a volume", http.StatusOK,
		func(ctx context.Context, in *struct {
			Volume string `path:"volume"`
			Body   contract.ChangeVolume
		}) (contract.Volume, error) {
			return d.ChangeVolume(ctx, in.Volume, in.Body)
		})
	action(api, http.MethodDelete, "/v1/volumes/{volume}", "delete-volume", "Delete a volume without snapshots; the file of an inplace one stays",
		func(ctx context.Context, in *struct {
			Volume string `path:"volume"`
			Force  bool   `query:"force" doc:"disconnect its clients"`
		}) error {
			return d.DeleteVolume(ctx, in.Volume, in.Force)
		})
	operation(api, http.MethodPost, "/v1/volumes/{volume}/relayout", "relayout-volume", "Start to rewrite a volume's blocks in order", http.StatusAccepted,
		func(_ context.Context, in *namedVolume) (contract.Job, error) { return d.StartRelayout(in.Volume) })
	operation(api, http.MethodPost, "/v1/volumes/{volume}/copy-back", "copy-back", "Start to copy a rollback back into a volume's file, where that was cancelled or failed", http.StatusAccepted,
		func(_ context.Context, in *namedVolume) (contract.Job, error) { return d.StartCopyBack(in.Volume) })
	operation(api, http.MethodPost, "/v1/volumes/{volume}/fill", "fill-volume", "Start to go on filling a volume from its backup, where that was cancelled or has failed", http.StatusAccepted,
		func(_ context.Context, in *namedVolume) (contract.Job, error) { return d.StartFill(in.Volume) })
	operation(api, http.MethodPost, "/v1/imports", "import", "Start to make a volume from an image file", http.StatusAccepted,
		func(_ context.Context, in *with[contract.Import]) (contract.Job, error) {
			return d.StartImport(in.Body)
		})
	operation(api, http.MethodPost, "/v1/exports", "export", "Start to write a volume or snapshot to an image file", http.StatusAccepted,
		func(_ context.Context, in *with[contract.ExportFile]) (contract.Job, error) {
			return d.StartExport(in.Body)
		})
}

func snapshots(api huma.API, d *daemon.Daemon) {
	operation(api, http.MethodGet, "/v1/snapshots", "list-snapshots", "List snapshots, parents before children", http.StatusOK,
		func(ctx context.Context, in *struct {
			Volume string `query:"volume" doc:"of this volume only"`
		}) ([]contract.Snapshot, error) {
			return d.Snapshots(ctx, in.Volume)
		})
	operation(api, http.MethodPost, "/v1/snapshots", "create-snapshots", "Snapshot volumes at one instant", http.StatusCreated,
		func(ctx context.Context, in *with[contract.CreateSnapshot]) ([]contract.Snapshot, error) {
			return d.CreateSnapshots(ctx, in.Body)
		})
	operation(api, http.MethodGet, "/v1/snapshots/{snapshot}", "show-snapshot", "Show a snapshot", http.StatusOK,
		func(ctx context.Context, in *namedSnapshot) (contract.Snapshot, error) {
			return d.Snapshot(ctx, in.Snapshot)
		})
	operation(api, http.MethodPatch, "/v1/snapshots/{snapshot}", "change-snapshot", "Protect or unprotect a snapshot", http.StatusOK,
		func(ctx context.Context, in *struct {
			Snapshot string `path:"snapshot" doc:"VOLUME@NAME"`
			Body     contract.ChangeSnapshot
		}) (contract.Snapshot, error) {
			return d.ProtectSnapshot(ctx, in.Snapshot, in.Body.Protected)
		})
	action(api, http.MethodPost, "/v1/snapshots/delete", "delete-snapshots", "Delete snapshots, all or none",
		func(ctx context.Context, in *with[contract.DeleteSnapshots]) error {
			return d.DeleteSnapshots(ctx, in.Body.Snapshots)
		})
	operation(api, http.MethodPost, "/v1/snapshots/{snapshot}/copy", "copy-snapshot", "Start to go on with the copy of a snapshot, where that has failed", http.StatusAccepted,
		func(_ context.Context, in *namedSnapshot) (contract.Job, error) { return d.StartCopy(in.Snapshot) })
	operation(api, http.MethodPost, "/v1/snapshots/{snapshot}/rollback", "rollback", "Make a snapshot its volume's content", http.StatusOK,
		func(ctx context.Context, in *struct {
			Snapshot string `path:"snapshot" doc:"VOLUME@NAME"`
			Body     contract.RollBack
		}) (contract.Rollback, error) {
			return d.Rollback(ctx, in.Snapshot, in.Body.Force)
		})
	operation(api, http.MethodPost, "/v1/snapshots/{snapshot}/rollback-ranges", "rollback-ranges", "Start to make ranges of a volume what they are in a snapshot, or all of it what a copy holds", http.StatusAccepted,
		func(ctx context.Context, in *struct {
			Snapshot string `path:"snapshot" doc:"VOLUME@NAME"`
			Body     contract.RollBackRanges
		}) (contract.Job, error) {
			return d.StartRollbackRanges(ctx, in.Snapshot, in.Body)
		})
}

func bookmarks(api huma.API, d *daemon.Daemon) {
	operation(api, http.MethodGet, "/v1/bookmarks", "list-bookmarks", "List bookmarks, oldest first", http.StatusOK,
		func(_ context.Context, in *struct {
			Volume string `query:"volume" doc:"of this volume only"`
		}) ([]contract.Bookmark, error) {
			return d.Bookmarks(in.Volume)
		})
	operation(api, http.MethodPost, "/v1/bookmarks", "create-bookmark", "Keep what is needed to tell what changed since a snapshot", http.StatusCreated,
		func(ctx context.Context, in *with[contract.CreateBookmark]) (contract.Bookmark, error) {
			return d.CreateBookmark(ctx, in.Body)
		})
	action(api, http.MethodDelete, "/v1/bookmarks/{bookmark}", "delete-bookmark", "Delete a bookmark",
		func(ctx context.Context, in *struct {
			Bookmark string `path:"bookmark" doc:"VOLUME#NAME"`
		}) error {
			return d.DeleteBookmark(ctx, in.Bookmark)
		})
}

func jobs(api huma.API, d *daemon.Daemon) {
	operation(api, http.MethodGet, "/v1/jobs", "list-jobs", "List jobs, oldest first", http.StatusOK,
		func(context.Context, *none) ([]contract.Job, error) { return d.Jobs(), nil })
	operation(api, http.MethodGet, "/v1/jobs/{job}", "show-job", "Show a job, or wait for its end", http.StatusOK,
		func(ctx context.Context, in *struct {
			Job  string  `path:"job"`
			Wait float64 `query:"wait_seconds" minimum:"0" maximum:"60" doc:"answer when it is finished, or after this time as it is then"`
		}) (contract.Job, error) {
			if in.Wait == 0 {
				return d.Job(in.Job)
			}
			ctx, cancel := context.WithTimeout(ctx, time.Duration(min(in.Wait, maxWait)*float64(time.Second)))
			defer cancel()
			return d.WaitJob(ctx, in.Job)
		})
	for _, change := range []struct {
		verb, summary string
		do            func(string) (contract.Job, error)
	}{
		{"cancel", "Have a job stop and undo what it did", d.CancelJob},
		{"pause", "Hold a running job", d.PauseJob},
		{"resume", "Let a paused job go on", d.ResumeJob},
	} {
		operation(api, http.MethodPost, "/v1/jobs/{job}/"+change.verb, change.verb+"-job", change.summary, http.StatusOK,
			func(_ context.Context, in *namedJob) (contract.Job, error) { return change.do(in.Job) })
	}
}

func service(api huma.API, d *daemon.Daemon) {
	operation(api, http.MethodGet, "/v1/status", "status", "Everything at a glance", http.StatusOK,
		func(context.Context, *none) (contract.Status, error) { return d.Status(), nil })
	operation(api, http.MethodGet, "/v1/events", "list-events", "List the latest events, oldest first", http.StatusOK,
		func(context.Context, *none) ([]contract.Event, error) { return d.Events(), nil })
	operation(api, http.MethodGet, "/v1/pool", "show-pool", "Show the pool", http.StatusOK,
		func(ctx context.Context, in *struct {
			Top int `query:"top" minimum:"0" maximum:"100" doc:"how many of those that hold the most to name"`
		}) (contract.Pool, error) {
			return d.PoolHolders(ctx, in.Top)
		})
	operation(api, http.MethodPatch, "/v1/pool", "change-pool", "Bound the pool by a quota, or no longer", http.StatusOK,
		func(ctx context.Context, in *with[contract.ChangePool]) (contract.Pool, error) {
			return d.ChangePool(ctx, in.Body)
		})
	operation(api, http.MethodPost, "/v1/checks", "check-pool", "Start to verify everything in the pool", http.StatusAccepted,
		func(context.Context, *none) (contract.Job, error) { return d.StartCheck() })
	operation(api, http.MethodPost, "/v1/repairs", "repair-pool", "Start to mend what can be mended in the pool", http.StatusAccepted,
		func(context.Context, *none) (contract.Job, error) { return d.StartRepair() })
	operation(api, http.MethodPost, "/v1/reclaims", "reclaim", "Start to give space back", http.StatusAccepted,
		func(context.Context, *none) (contract.Job, error) { return d.StartReclaim() })
}
