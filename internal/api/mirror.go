package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"varve/internal/contract"
	"varve/internal/daemon"
)

func mirrors(api huma.API, d *daemon.Daemon) {
	operation(api, http.MethodGet, "/v1/volumes/{volume}/mirror", "show-mirror", "Show a volume's mirror", http.StatusOK,
		func(_ context.Context, in *namedVolume) (contract.Mirror, error) { return d.Mirror(in.Volume) })
	operation(api, http.MethodPost, "/v1/volumes/{volume}/mirror", "attach-mirror", "Have a volume written to a file as well; what differs is copied by a job", http.StatusCreated,
		func(_ context.Context, in *struct {
			Volume string `path:"volume"`
			Body   contract.AttachMirror
		}) (contract.Mirror, error) {
			return d.AttachMirror(in.Volume, in.Body)
		})
	action(api, http.MethodDelete, "/v1/volumes/{volume}/mirror", "detach-mirror", "End a volume's mirror; the file stays",
		func(ctx context.Context, in *namedVolume) error { return d.DetachMirror(ctx, in.Volume) })
	operation(api, http.MethodPost, "/v1/volumes/{volume}/mirror/split", "split-mirror", "Make a physical snapshot of a volume's mirror, which is detached", http.StatusCreated,
		func(ctx context.Context, in *struct {
			Volume string `path:"volume"`
			Body   contract.SplitMirror
		}) (contract.Split, error) {
			return d.SplitMirror(ctx, in.Volume, in.Body)
		})
	operation(api, http.MethodPost, "/v1/snapshots/{snapshot}/resync", "resync-mirror", "Make a physical snapshot in a file its volume's mirror again", http.StatusOK,
		func(ctx context.Context, in *namedSnapshot) (contract.Mirror, error) {
			return d.ResyncMirror(ctx, in.Snapshot)
		})
}
