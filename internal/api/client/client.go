// Package client calls the daemon's API. Every method is one operation of it,
// in the words of package contract; an error the daemon gave is a
// *contract.Error, and ErrNoDaemon means that nobody answers.
package client

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"syscall"
	"time"

	"varve/internal/contract"
)

// ErrNoDaemon means that nobody answers on the socket.
var ErrNoDaemon = errors.New("no daemon answers")

// Client talks to one daemon. It may be used concurrently.
type Client struct {
	socket string
	http   *http.Client
}

// dialEvery is how often a daemon that does not answer yet is tried again.
const dialEvery = 20 * time.Millisecond

// New returns a client of the daemon on a unix socket; nothing is sent yet. A
// daemon that is just being started gets patience to begin to answer.
func New(socket string, patience time.Duration) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		for began := time.Now(); ; {
			conn, err := d.DialContext(ctx, "unix", socket)
			if !absent(err) || time.Since(began) > patience {
				return conn, err
			}
			select {
			case <-time.After(dialEvery):
			case <-ctx.Done():
				return nil, err
			}
		}
	}
	return &Client{socket: socket, http: &http.Client{Transport: &http.Transport{DialContext: dial}}}
}

// Close ends idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// call sends in, unless nil, as JSON and decodes the answer into out, unless nil.
func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	response, err := c.ask(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(response.Body).Decode(out); err != nil {
		return fmt.Errorf("read the daemon's answer: %w", err)
	}
	return nil
}

// ask sends in, unless nil, as JSON. What it returns is a success, whose body is to be read and closed.
func (c *Client) ask(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var send io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("encode the request: %w", err)
		}
		send = bytes.NewReader(b)
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://varve"+path, send)
	if err != nil {
		return nil, fmt.Errorf("make the request: %w", err)
	}
	if in != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	response, err := c.http.Do(request)
	if err != nil {
		if absent(err) {
			return nil, fmt.Errorf("%w on %s", ErrNoDaemon, c.socket)
		}
		var of *url.Error
		if errors.As(err, &of) {
			err = of.Err
		}
		return nil, fmt.Errorf("ask the daemon on %s: %w", c.socket, err)
	}
	if response.StatusCode < 300 {
		return response, nil
	}
	defer response.Body.Close()
	told := new(contract.Error)
	if err := json.NewDecoder(response.Body).Decode(told); err != nil || told.Code == "" {
		return nil, fmt.Errorf("the daemon on %s answered %s", c.socket, response.Status)
	}
	return nil, told
}

// absent tells whether nobody listens on the socket: it is not there, or a dead process left it.
func absent(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist)
}

func get[T any](ctx context.Context, c *Client, path string) (out T, err error) {
	err = c.call(ctx, http.MethodGet, path, nil, &out)
	return out, err
}

func send[T any](ctx context.Context, c *Client, method, path string, in any) (out T, err error) {
	err = c.call(ctx, method, path, in, &out)
	return out, err
}

// Status is everything at a glance.
func (c *Client) Status(ctx context.Context) (contract.Status, error) {
	return get[contract.Status](ctx, c, "/v1/status")
}

// Pool describes the pool, and names, of each kind, the top that hold the most.
func (c *Client) Pool(ctx context.Context, top int) (contract.Pool, error) {
	return get[contract.Pool](ctx, c, fmt.Sprintf("/v1/pool?top=%d", top))
}

// ChangePool bounds the pool.
func (c *Client) ChangePool(ctx context.Context, r contract.ChangePool) (contract.Pool, error) {
	return send[contract.Pool](ctx, c, http.MethodPatch, "/v1/pool", r)
}

// Check starts to verify the pool.
func (c *Client) Check(ctx context.Context) (contract.Job, error) {
	return send[contract.Job](ctx, c, http.MethodPost, "/v1/checks", nil)
}

// Repair starts to mend the pool.
func (c *Client) Repair(ctx context.Context) (contract.Job, error) {
	return send[contract.Job](ctx, c, http.MethodPost, "/v1/repairs", nil)
}

// Reclaim starts to give space back.
func (c *Client) Reclaim(ctx context.Context) (contract.Job, error) {
	return send[contract.Job](ctx, c, http.MethodPost, "/v1/reclaims", nil)
}

// Relayout starts to rewrite a volume's blocks in order.
func (c *Client) Relayout(ctx context.Context, volume string) (contract.Job, error) {
	return send[contract.Job](ctx, c, http.MethodPost, "/v1/volumes/"+url.PathEscape(volume)+"/relayout", nil)
}

// Events lists the latest events, oldest first.
func (c *Client) Events(ctx context.Context) ([]contract.Event, error) {
	return get[[]contract.Event](ctx, c, "/v1/events")
}

// Volumes lists volumes by name.
func (c *Client) Volumes(ctx context.Context) ([]contract.Volume, error) {
	return get[[]contract.Volume](ctx, c, "/v1/volumes")
}

func volumePath(name string) string { return "/v1/volumes/" + url.PathEscape(name) }

// Volume describes a volume.
func (c *Client) Volume(ctx context.Context, name string) (contract.Volume, error) {
	return get[contract.Volume](ctx, c, volumePath(name))
}

// CreateVolume makes an empty volume, in the pool or in a new file, or a clone.
func (c *Client) CreateVolume(ctx context.Context, r contract.CreateVolume) (contract.Volume, error) {
	return send[contract.Volume](ctx, c, http.MethodPost, "/v1/volumes", r)
}

// AdoptVolume makes a volume of a raw file or block device where it lies.
func (c *Client) AdoptVolume(ctx context.Context, r contract.AdoptVolume) (contract.Volume, error) {
	return send[contract.Volume](ctx, c, http.MethodPost, "/v1/adoptions", r)
}

// CopyBack starts to copy a rollback back into a volume's file, where that was cancelled or failed.
func (c *Client) CopyBack(ctx context.Context, volume string) (contract.Job, error) {
	return send[contract.Job](ctx, c, http.MethodPost, volumePath(volume)+"/copy-back", nil)
}

// Import starts to make a volume from an image file.
func (c *Client) Import(ctx context.Context, r contract.Import) (contract.Job, error) {
	return send[contract.Job](ctx, c, http.MethodPost, "/v1/imports", r)
}

// Export starts to write a volume or snapshot to an image file.
func (c *Client) Export(ctx context.Context, r contract.ExportFile) (contract.Job, error) {
	return send[contract.Job](ctx, c, http.MethodPost, "/v1/exports", r)
}

// ChangeVolume renames, labels or resizes.
func (c *Client) ChangeVolume(ctx context.Context, name string, r contract.ChangeVolume) (contract.Volume, error) {
	return send[contract.Volume](ctx, c, http.MethodPatch, volumePath(name), r)
}

// DeleteVolume deletes a volume; force disconnects its clients.
func (c *Client) DeleteVolume(ctx context.Context, name string, force bool) error {
	return c.call(ctx, http.MethodDelete, volumePath(name)+"?force="+strconv.FormatBool(force), nil, nil)
}

// Snapshots lists the snapshots of a volume, or of all if it is empty.
func (c *Client) Snapshots(ctx context.Context, volume string) ([]contract.Snapshot, error) {
	return get[[]contract.Snapshot](ctx, c, "/v1/snapshots?volume="+url.QueryEscape(volume))
}

func snapshotPath(ref string) string { return "/v1/snapshots/" + url.PathEscape(ref) }

// Snapshot describes VOLUME@NAME.
func (c *Client) Snapshot(ctx context.Context, ref string) (contract.Snapshot, error) {
	return get[contract.Snapshot](ctx, c, snapshotPath(ref))
}

// CreateSnapshots snapshots volumes at one instant.
func (c *Client) CreateSnapshots(ctx context.Context, r contract.CreateSnapshot) ([]contract.Snapshot, error) {
	return send[[]contract.Snapshot](ctx, c, http.MethodPost, "/v1/snapshots", r)
}

// DeleteSnapshots deletes all of them or none.
func (c *Client) DeleteSnapshots(ctx context.Context, refs []string) error {
	return c.call(ctx, http.MethodPost, "/v1/snapshots/delete", contract.DeleteSnapshots{Snapshots: refs}, nil)
}

// ProtectSnapshot sets or lifts protection.
func (c *Client) ProtectSnapshot(ctx context.Context, ref string, protected bool) (contract.Snapshot, error) {
	return send[contract.Snapshot](ctx, c, http.MethodPatch, snapshotPath(ref), contract.ChangeSnapshot{Protected: protected})
}

// CopySnapshot starts to go on with the copy of a snapshot, where that has failed.
func (c *Client) CopySnapshot(ctx context.Context, ref string) (contract.Job, error) {
	return send[contract.Job](ctx, c, http.MethodPost, snapshotPath(ref)+"/copy", nil)
}

// Rollback makes VOLUME@NAME the content of VOLUME.
func (c *Client) Rollback(ctx context.Context, ref string, force bool) (contract.Rollback, error) {
	return send[contract.Rollback](ctx, c, http.MethodPost, snapshotPath(ref)+"/rollback", contract.RollBack{Force: force})
}

// RollbackRanges starts to make ranges of VOLUME what they are in VOLUME@NAME; without ranges, all of it what a copy holds.
func (c *Client) RollbackRanges(ctx context.Context, ref string, r contract.RollBackRanges) (contract.Job, error) {
	return send[contract.Job](ctx, c, http.MethodPost, snapshotPath(ref)+"/rollback-ranges", r)
}

// Bookmarks lists the bookmarks of a volume, or of all if it is empty.
func (c *Client) Bookmarks(ctx context.Context, volume string) ([]contract.Bookmark, error) {
	return get[[]contract.Bookmark](ctx, c, "/v1/bookmarks?volume="+url.QueryEscape(volume))
}

// CreateBookmark makes a bookmark of a snapshot.
func (c *Client) CreateBookmark(ctx context.Context, r contract.CreateBookmark) (contract.Bookmark, error) {
	return send[contract.Bookmark](ctx, c, http.MethodPost, "/v1/bookmarks", r)
}

// DeleteBookmark deletes VOLUME#NAME.
func (c *Client) DeleteBookmark(ctx context.Context, ref string) error {
	return c.call(ctx, http.MethodDelete, "/v1/bookmarks/"+url.PathEscape(ref), nil, nil)
}

// Diff calls visit for each extent that changed from one state to another, in ascending order, as they arrive.
// An error of visit ends it.
func (c *Client) Diff(ctx context.Context, from, to string, visit func(contract.Extent) error) error {
	return c.extents(ctx, "/v1/diff?"+url.Values{"from": {from}, "to": {to}}.Encode(), visit)
}

// eachOf decodes the elements of an array, to its end.
func eachOf[T any](d *json.Decoder, visit func(T) error) error {
	if start, err := d.Token(); err != nil || start != json.Delim('[') {
		return cmp.Or(err, fmt.Errorf("not a list"))
	}
	for d.More() {
		var one T
		if err := d.Decode(&one); err != nil {
			return err
		}
		if err := visit(one); err != nil {
			return err
		}
	}
	_, err := d.Token()
	return err
}

// Jobs lists jobs, oldest first.
func (c *Client) Jobs(ctx context.Context) ([]contract.Job, error) {
	return get[[]contract.Job](ctx, c, "/v1/jobs")
}

func jobPath(id string) string { return "/v1/jobs/" + url.PathEscape(id) }

// Job describes a job. With a wait, of up to a minute, it answers when the job
// is finished, or after that time as it is then.
func (c *Client) Job(ctx context.Context, id string, wait time.Duration) (contract.Job, error) {
	return get[contract.Job](ctx, c, fmt.Sprintf("%s?wait_seconds=%g", jobPath(id), wait.Seconds()))
}

// CancelJob has a job stop and undo what it did.
func (c *Client) CancelJob(ctx context.Context, id string) (contract.Job, error) {
	return send[contract.Job](ctx, c, http.MethodPost, jobPath(id)+"/cancel", nil)
}

// PauseJob holds a running job.
func (c *Client) PauseJob(ctx context.Context, id string) (contract.Job, error) {
	return send[contract.Job](ctx, c, http.MethodPost, jobPath(id)+"/pause", nil)
}

// ResumeJob lets a paused job go on.
func (c *Client) ResumeJob(ctx context.Context, id string) (contract.Job, error) {
	return send[contract.Job](ctx, c, http.MethodPost, jobPath(id)+"/resume", nil)
}
