package client

import (
	"context"
	"net/http"

	"varve/internal/contract"
)

// Mirror describes a volume's mirror.
func (c *Client) Mirror(ctx context.Context, volume string) (contract.Mirror, error) {
	return get[contract.Mirror](ctx, c, volumePath(volume)+"/mirror")
}

// AttachMirror has a volume written to a file as well.
func (c *Client) AttachMirror(ctx context.Context, volume string, r contract.AttachMirror) (contract.Mirror, error) {
	return send[contract.Mirror](ctx, c, http.MethodPost, volumePath(volume)+"/mirror", r)
}

// DetachMirror ends a volume's mirror.
func (c *Client) DetachMirror(ctx context.Context, volume string) error {
	return c.call(ctx, http.MethodDelete, volumePath(volume)+"/mirror", nil, nil)
}

// SplitMirror makes a physical snapshot of a volume's mirror.
func (c *Client) SplitMirror(ctx context.Context, volume string, r contract.SplitMirror) (contract.Split, error) {
	return send[contract.Split](ctx, c, http.MethodPost, volumePath(volume)+"/mirror/split", r)
}

// ResyncMirror makes a physical snapshot in a file its volume's mirror again.
func (c *Client) ResyncMirror(ctx context.Context, snapshot string) (contract.Mirror, error) {
	return send[contract.Mirror](ctx, c, http.MethodPost, snapshotPath(snapshot)+"/resync", nil)
}
