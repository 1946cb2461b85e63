package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"
)

// filterDisk is a raw file behind qemu-storage-daemon. Its snapshots are made by the copy-before-write filter that a
// backup job with sync=none puts above the file, without stopping the client, and are read through snapshot-access.
// There is no rollback.
type filterDisk struct {
	*server
	s      settings
	format string // of what is copied into
	qmp    *qmp
}

func startFilter(format string) func(context.Context, settings) (frozen, error) {
	return func(ctx context.Context, s settings) (frozen, error) {
		d := &filterDisk{s: s, format: format}
		var err error
		if d.server, err = startFilled(ctx, s, func(dir string) (*server, error) { return d.begin(ctx, dir) }); err != nil {
			return nil, err
		}
		if d.qmp, err = dialQMP(ctx, d.monitor()); err != nil {
			return nil, errors.Join(err, d.server.stop())
		}
		if err := d.settle(ctx); err != nil {
			return nil, errors.Join(err, d.stop())
		}
		return d, nil
	}
}

func (d *filterDisk) begin(ctx context.Context, dir string) (*server, error) {
	disk, socket, ready := filepath.Join(dir, "disk"), filepath.Join(dir, "sock"), filepath.Join(dir, "pid")
	if err := rawDisk(disk, d.s.Size); err != nil {
		return nil, err
	}
	return start(ctx, dir, exportURI(socket, volumeName), ready, "qemu-storage-daemon", "--pidfile", ready,
		"--chardev", "socket,id=monitor,server=on,wait=off,path="+filepath.Join(dir, "qmp"), "--monitor", "chardev=monitor",
		"--nbd-server", "addr.type=unix,max-connections=8,addr.path="+socket,
		"--blockdev", "driver=raw,node-name=disk,file.driver=file,file.filename="+disk,
		"--export", "type=nbd,id=disk,node-name=disk,writable=on,name="+volumeName)
}

func (d *filterDisk) monitor() string { return filepath.Join(d.dir, "qmp") }

func (d *filterDisk) target(name string) string { return filepath.Join(d.dir, name+"."+d.format) }

func (d *filterDisk) disk() *server { return d.server }

func (d *filterDisk) create(ctx context.Context, name string) (creation, error) {
	began := time.Now()
	create := rawDisk
	if d.format == "qcow2" {
		create = func(file string, size int64) error { return createQcow2(ctx, file, size) }
	}
	if err := create(d.target(name), d.s.Size); err != nil {
		return creation{}, err
	}
	err := d.qmp.all(ctx, []qmpCommand{
		{"blockdev-add", options{"node-name": name, "driver": d.format, "file": options{"driver": "file", "filename": d.target(name)}}},
		{"blockdev-backup", options{"job-id": name, "device": "disk", "target": name, "sync": "none", "filter-node-name": "filter-" + name}},
		{"blockdev-add", options{"node-name": "access-" + name, "driver": "snapshot-access", "file": "filter-" + name}},
		{"block-export-add", options{"type": "nbd", "id": "export-" + name, "node-name": "access-" + name, "name": name}},
	})
	return creation{Usable: sinceMS(began)}, err
}

func (d *filterDisk) whole(context.Context, string) error { return nil }

func (d *filterDisk) open(_ context.Context, name string) (*server, func() error, error) {
	view := *d.server
	view.uri = exportURI(filepath.Join(d.dir, "sock"), name)
	return &view, func() error { return nil }, nil
}

func (d *filterDisk) rollback(context.Context, string) (usable, copied time.Duration, err error) {
	return 0, 0, errNone
}

func (d *filterDisk) remove(ctx context.Context, name string) error {
	if err := d.qmp.all(ctx, []qmpCommand{
		{"block-export-del", options{"id": "export-" + name, "mode": "hard"}},
		{"blockdev-del", options{"node-name": "access-" + name}},
		{"block-job-cancel", options{"device": name}},
	}); err != nil {
		return err
	}
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	for {
		var jobs []json.RawMessage
		if err := d.qmp.do(ctx, qmpCommand{"query-jobs", nil}, &jobs); err != nil {
			return err
		}
		if len(jobs) == 0 {
			break
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return errors.Join(d.qmp.do(ctx, qmpCommand{"blockdev-del", options{"node-name": name}}, nil), os.Remove(d.target(name)))
}

func (d *filterDisk) settle(ctx context.Context) error { return (fleet{d.server}).settle(ctx) }

func (d *filterDisk) written() (int64, error) { return deviceWritten(d.dir) }

func (d *filterDisk) used(context.Context) (int64, error) { return allocated(d.dir) }

func (d *filterDisk) stop() error { return errors.Join(d.qmp.conn.Close(), d.server.stop()) }

// qmp is a connection to QEMU's monitor: a JSON object for each command and each answer, and events in between.
type qmp struct {
	conn net.Conn
	in   *json.Decoder
	out  *json.Encoder
}

type options map[string]any

type qmpCommand struct {
	name string
	with options
}

func dialQMP(ctx context.Context, socket string) (*qmp, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	q := &qmp{conn, json.NewDecoder(conn), json.NewEncoder(conn)}
	var greeting json.RawMessage
	if err := q.in.Decode(&greeting); err != nil {
		return nil, errors.Join(fmt.Errorf("QEMU's monitor: %w", err), conn.Close())
	}
	if err := q.do(ctx, qmpCommand{"qmp_capabilities", nil}, nil); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return q, nil
}

// do runs a command and reads what it returns into result, unless that is nil.
func (q *qmp) do(ctx context.Context, c qmpCommand, result any) error {
	stop := context.AfterFunc(ctx, func() { _ = q.conn.SetDeadline(time.Now()) })
	defer stop()
	request := map[string]any{"execute": c.name}
	if c.with != nil {
		request["arguments"] = c.with
	}
	if err := q.out.Encode(request); err != nil {
		return fmt.Errorf("%s: %w", c.name, err)
	}
	for {
		var answer struct {
			Event  string          `json:"event"`
			Return json.RawMessage `json:"return"`
			Error  *struct {
				Description string `json:"desc"`
			} `json:"error"`
		}
		if err := q.in.Decode(&answer); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		switch {
		case answer.Event != "":
		case answer.Error != nil:
			return fmt.Errorf("%s: %s", c.name, answer.Error.Description)
		case result != nil:
			return json.Unmarshal(answer.Return, result)
		default:
			return nil
		}
	}
}

// all runs commands until one fails.
func (q *qmp) all(ctx context.Context, commands []qmpCommand) error {
	for _, c := range commands {
		if err := q.do(ctx, c, nil); err != nil {
			return err
		}
	}
	return nil
}
