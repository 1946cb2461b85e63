package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"varve/internal/api/client"
	"varve/internal/block"
	"varve/internal/contract"
	nbd "varve/internal/nbd/client"
)

// volumeName is the disk that loads run on.
const volumeName = "bench"

// startVarve serves an empty pool below a directory of its own.
func startVarve(ctx context.Context, s settings) (*server, error) {
	dir, err := os.MkdirTemp(s.dir, "varve-bench")
	if err != nil {
		return nil, err
	}
	data := filepath.Join(dir, "data")
	args := []string{"serve", "--quiet", "--data", data}
	if s.profiles != "" {
		args = append(args, "--pprof")
	}
	// The API's socket appears when NBD is served.
	v, err := start(ctx, dir, "", filepath.Join(data, "api.sock"), s.varve, args...)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	v.uri = v.volumeURI(volumeName)
	v.api = client.New(filepath.Join(data, "api.sock"), startTime)
	return v, nil
}

func (v *server) volumeURI(name string) string {
	return exportURI(filepath.Join(v.dir, "data", "nbd.sock"), name)
}

// startVolume serves a pool with one volume, filled from its beginning to its end.
func startVolume(ctx context.Context, s settings, size int64) (*server, error) {
	v, err := startVarve(ctx, s)
	if err != nil {
		return nil, err
	}
	if _, err := v.api.CreateVolume(ctx, contract.CreateVolume{Name: volumeName, Size: size}); err != nil {
		return nil, errors.Join(err, v.stop())
	}
	if err := fill(ctx, v, size); err != nil {
		return nil, errors.Join(err, v.stop())
	}
	return v, nil
}

// reclaim gives back what nothing holds any more and returns when that is done.
func (v *server) reclaim(ctx context.Context) error {
	job, err := v.api.Reclaim(ctx)
	if err != nil {
		return err
	}
	return v.finish(ctx, job)
}

// finish waits for a job.
func (v *server) finish(ctx context.Context, job contract.Job) (err error) {
	for err == nil && !job.State.Final() {
		job, err = v.api.Job(ctx, job.ID, time.Minute)
	}
	if err == nil && job.State != contract.JobDone {
		err = fmt.Errorf("%s is %s: %s", job.Kind, job.State, job.Reason)
	}
	return err
}

func (v *server) snapshot(ctx context.Context, name string) (contract.Snapshot, error) {
	made, err := v.api.CreateSnapshots(ctx, contract.CreateSnapshot{Volumes: []string{volumeName}, Name: name})
	if err != nil {
		return contract.Snapshot{}, err
	}
	return made[0], nil
}

// relayout rewrites the volume in order and returns when that is done.
func (v *server) relayout(ctx context.Context, s settings) error {
	v.dirty = true
	_, err := output(ctx, s.varve, "--data", filepath.Join(v.dir, "data"), "volume", "relayout", volumeName)
	return err
}

// stall are percentiles of how long a part of checkpoints kept from writers what they need, milliseconds,
// as the daemon measured since it started.
type stall struct {
	Count uint64  `json:"count"`
	P50   float64 `json:"p50_ms"`
	P99   float64 `json:"p99_ms"`
	P999  float64 `json:"p99_9_ms"`
	Max   float64 `json:"max_ms"`
}

// stalls are those of `pool show`, by part; none where it has none.
func (v *server) stalls(ctx context.Context, s settings) (map[string]stall, error) {
	out, err := output(ctx, s.varve, "--data", filepath.Join(v.dir, "data"), "-o", "json", "pool", "show")
	if err != nil {
		return nil, err
	}
	var shown struct {
		Stalls map[string]stall `json:"checkpoint_stalls"`
	}
	if err := json.Unmarshal(out, &shown); err != nil {
		return nil, fmt.Errorf("pool show: %w", err)
	}
	return shown.Stalls, nil
}

// changes is how many scattered blocks differ between one snapshot and the next, in every
// server that has some.
const changes = 128

// places are the bytes at which the blocks before the n-th snapshot of a disk lie.
func places(n int, size int64) []int64 {
	random := rand.New(rand.NewPCG(1, uint64(n)))
	out := make([]int64, changes)
	for i := range out {
		out[i] = random.Int64N(size/block.Size) * block.Size
	}
	return out
}

// change writes the blocks that lie before the n-th snapshot.
func change(ctx context.Context, c *nbd.Client, n int) error {
	ops := make([]*block.Op, 0, changes)
	for _, at := range places(n, c.SizeBytes()) {
		ops = append(ops, &block.Op{Kind: block.OpWrite, Offset: at, Length: block.Size, Data: content})
	}
	c.Submit(ctx, ops)
	for _, op := range ops {
		if op.Err != nil {
			return op.Err
		}
	}
	return nil
}

// content is what no server can store as zeros, or in less.
var content = func() []byte {
	p := make([]byte, block.Size)
	rand.NewChaCha8([32]byte{}).Read(p)
	return p
}()

// profile writes a CPU profile of the next while to a file.
func (v *server) profile(ctx context.Context, length time.Duration, file string) error {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", filepath.Join(v.dir, "data", "api.sock"))
	}}
	defer transport.CloseIdleConnections()
	url := fmt.Sprintf("http://varve/debug/pprof/profile?seconds=%d", max(1, int(length.Seconds())))
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return fmt.Errorf("profile: %w", err)
	}
	defer response.Body.Close()
	p, err := io.ReadAll(response.Body)
	if err != nil {
		return fmt.Errorf("profile: %w", err)
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("profile: %s: %.200s", response.Status, p)
	}
	return os.WriteFile(file, p, 0o600)
}
