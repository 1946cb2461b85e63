package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"varve/internal/contract"
	"varve/internal/nbd/server"
	"varve/internal/pool"
)

// exports is what NBD serves: every volume; every snapshot, and every backup in a repository, read-only. So is a volume whose file cannot be written.
type exports struct{ d *Daemon }

// List implements server.Exports: each volume is followed by its snapshots.
func (e exports) List(context.Context) ([]server.ExportInfo, error) {
	snapshots, err := e.d.pool.Snapshots("")
	if err != nil {
		return nil, err
	}
	of := map[string][]server.ExportInfo{}
	for _, s := range snapshots {
		ref := pool.SnapshotRef{Volume: s.Volume, Name: s.Name}
		of[s.Volume] = append(of[s.Volume], server.ExportInfo{Name: ref.String(), Description: "snapshot, read-only"})
	}
	var out []server.ExportInfo
	for _, v := range e.d.pool.Volumes() {
		if !v.Deleted {
			out = append(out, server.ExportInfo{Name: v.Name, Description: "volume"})
		}
		out = append(out, of[v.Name]...)
	}
	return out, nil
}

// Open implements server.Exports.
func (e exports) Open(ctx context.Context, name string, s *server.Session) (*server.Export, error) {
	export, volume, err := e.open(ctx, name)
	switch {
	case isGone(err) || errors.Is(err, pool.ErrInvalid):
		return nil, fmt.Errorf("%w: %w", server.ErrUnknownExport, err)
	case err != nil:
		return nil, err
	}
	e.d.sessions.opened(s, volume)
	return export, nil
}

func (e exports) open(ctx context.Context, name string) (*server.Export, openExport, error) {
	if strings.HasPrefix(name, backupPrefix) {
		return e.openBackup(ctx, name)
	}
	var (
		device   *pool.Device
		opened   openExport
		readOnly bool
		err      error
	)
	if volume, snapshot, ok := contract.ParseRef(name); ok {
		ref := pool.SnapshotRef{Volume: volume, Name: snapshot}
		var info pool.SnapshotInfo
		if info, err = e.d.pool.Snapshot(ref); err != nil {
			return nil, opened, err
		}
		opened, readOnly = openExport{volume: info.VolumeID, snapshot: snapshot}, true
		device, err = e.d.pool.OpenSnapshot(ref)
	} else {
		var info pool.VolumeInfo
		if info, err = e.d.pool.Volume(name); err != nil {
			return nil, opened, err
		}
		opened, readOnly = openExport{volume: info.ID}, info.ReadOnly
		device, err = e.d.pool.OpenVolume(name)
	}
	if err != nil {
		return nil, opened, err
	}
	return &server.Export{Name: name, Device: device, ReadOnly: readOnly, Contexts: contexts{device}}, opened, nil
}

// openExport is what a session last opened. The volume is known by its id, since its name can change.
type openExport struct {
	volume   uuid.UUID
	snapshot string // empty: the volume itself
	// repository is whose backup it is, instead of a volume.
	repository uuid.UUID
}

// sessions knows which NBD connections work on which volume.
type sessions struct {
	server *server.Server
	pool   *pool.Pool

	mu   sync.Mutex
	open map[uint64]openExport // by session id
}

// opened notes what s is about to use. What it opened before, it only asked about.
func (ss *sessions) opened(s *server.Session, e openExport) {
	ss.mu.Lock()
	_, known := ss.open[s.ID()]
	ss.open[s.ID()] = e
	ss.mu.Unlock()
	if !known {
		go func() {
			<-s.Done()
			ss.mu.Lock()
			defer ss.mu.Unlock()
			delete(ss.open, s.ID())
		}()
	}
}

// of describes the clients of a volume's head.
func (ss *sessions) of(volume string) []contract.Client {
	out := []contract.Client{}
	for _, s := range ss.on(volume, false) {
		out = append(out, clientOf(s, volume))
	}
	return out
}

// all describes all clients.
func (ss *sessions) all() []contract.Client {
	names := map[uuid.UUID]string{}
	for _, v := range ss.pool.Volumes() {
		names[v.ID] = v.Name
	}
	out := []contract.Client{}
	for _, s := range ss.server.Sessions() {
		ss.mu.Lock()
		e := ss.open[s.ID()]
		ss.mu.Unlock()
		export := s.Export()
		if name, ok := names[e.volume]; ok {
			export = name
			if e.snapshot != "" {
				export = pool.SnapshotRef{Volume: name, Name: e.snapshot}.String()
			}
		}
		out = append(out, clientOf(s, export))
	}
	return out
}

func clientOf(s *server.Session, export string) contract.Client {
	return contract.Client{
		Export: export, Address: s.Remote(), ConnectedAt: contract.Time{Time: s.ConnectedAt()}, Written: s.Wrote(),
	}
}

// on returns the sessions on a volume's head, or with snapshots on them, too.
func (ss *sessions) on(volume string, snapshots bool) []*server.Session {
	info, err := ss.pool.Volume(volume)
	if err != nil {
		return nil
	}
	var out []*server.Session
	for _, s := range ss.server.Sessions() {
		ss.mu.Lock()
		e := ss.open[s.ID()]
		ss.mu.Unlock()
		if e.volume == info.ID && (snapshots || e.snapshot == "") {
			out = append(out, s)
		}
	}
	return out
}

// disconnect cuts off the sessions on a volume's head, only those that have
// written if writers, and returns when they are gone.
func (ss *sessions) disconnect(volume string, writers bool, reason string) {
	for _, s := range ss.on(volume, false) {
		if !writers || s.Wrote() {
			s.Disconnect(reason)
		}
	}
}

// partingTime is how long a client that just hung up may need until the server has noticed.
const partingTime = 500 * time.Millisecond

// unlessInUse does what clients of the volumes or their snapshots can stand in the way of. A program that
// ended a moment ago must not: where pool.ErrInUse is the answer, the sessions
// there have partingTime to end before the answer counts.
func (ss *sessions) unlessInUse(ctx context.Context, do func() error, volumes ...string) error {
	err := do()
	if !errors.Is(err, pool.ErrInUse) {
		return err
	}
	parting := time.NewTimer(partingTime)
	defer parting.Stop()
	slices.Sort(volumes)
	for _, volume := range slices.Compact(volumes) {
		for _, s := range ss.on(volume, true) {
			select {
			case <-s.Done():
			case <-parting.C:
				return do()
			case <-ctx.Done():
				return err
			}
		}
	}
	return do()
}

// serveNBD listens on the data directory's socket and on each address, and serves them.
func (d *Daemon) serveNBD(c Config) error {
	config := server.Config{Exports: exports{d}, Logger: d.log, TLS: c.TLS}
	if c.TLS != nil {
		config.TLSMode = server.TLSRequireRemote
	}
	nbd, err := server.New(config)
	if err != nil {
		return err
	}
	d.nbd = nbd
	d.sessions = &sessions{server: nbd, pool: d.pool, open: map[uint64]openExport{}}
	for _, addr := range append([]string{NBDSocket(d.dir)}, c.NBD...) {
		l, err := Listen(addr)
		if err != nil {
			for _, l := range d.listeners {
				l.Close()
			}
			return err
		}
		d.listeners = append(d.listeners, l)
	}
	for _, l := range d.listeners {
		d.background.Go(func() {
			if err := nbd.Serve(l); !errors.Is(err, server.ErrServerClosed) {
				d.note("nbd-stop", l.Addr().String(), "NBD is no longer served here: %v", err)
			}
		})
	}
	return nil
}
