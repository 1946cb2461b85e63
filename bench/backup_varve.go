package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"

	"varve/internal/block"
	"varve/internal/contract"
	nbd "varve/internal/nbd/client"
)

// depot is varve as a user has it: the command line asks a daemon or, where that is nil, does the work by itself.
type depot struct {
	s      settings
	dir    string
	daemon *server
}

// openDepot starts a daemon if there is to be one.
func openDepot(ctx context.Context, s settings, daemon bool) (d *depot, err error) {
	d = &depot{s: s}
	if daemon {
		if d.daemon, err = startVarve(ctx, s); err != nil {
			return nil, err
		}
		d.dir = d.daemon.dir
	} else if d.dir, err = os.MkdirTemp(s.dir, "varve-bench"); err != nil {
		return nil, err
	}
	if err := os.WriteFile(d.passwordFile(), []byte("benchmark\n"), 0o600); err != nil {
		return nil, errors.Join(err, d.stop())
	}
	return d, nil
}

func (d *depot) passwordFile() string { return filepath.Join(d.dir, "password") }

func (d *depot) stop() error {
	if d.daemon != nil {
		return d.daemon.stop()
	}
	return os.RemoveAll(d.dir)
}

// run runs a command line, and decodes what it prints into out. The time is what the user waits; memory is
// that of the process which does the work, processor time that of both.
func (d *depot) run(ctx context.Context, out any, args ...string) (spent, error) {
	args = append(args, "--data", filepath.Join(d.dir, "data"), "--quiet", "-o", "json")
	counted, err := d.count()
	if err != nil {
		return spent{}, err
	}
	took, printed, err := timed(ctx, d.dir, nil, d.s.varve, args...)
	if err == nil {
		err = counted(&took)
	}
	if err != nil {
		return spent{}, err
	}
	if err := json.Unmarshal(printed, out); err != nil {
		return spent{}, fmt.Errorf("varve%s: what it prints: %w: %.200q", words(args), err, printed)
	}
	return took, nil
}

// count counts the daemon's memory and processor time from here to where counted is called. Without a daemon it counts nothing.
func (d *depot) count() (counted func(*spent) error, err error) {
	if d.daemon == nil {
		return func(*spent) error { return nil }, nil
	}
	before, err := d.daemon.cpuTime()
	if err != nil {
		return nil, err
	}
	return func(took *spent) (err error) {
		if took.RSS, err = d.daemon.peakRSS(); err != nil {
			return err
		}
		after, err := d.daemon.cpuTime()
		took.CPU = round3(took.CPU + (after - before).Seconds())
		return err
	}, countMemoryAnew(strconv.Itoa(d.daemon.cmd.Process.Pid))
}

// store is a repository.
type store struct {
	*depot
	url   string
	flags []string // that say which it is
}

// init makes a repository at a URL, which the daemon, if there is one, knows by the name from then on. More flags say how the URL is reached.
func (d *depot) init(ctx context.Context, name, url string, more ...string) (*store, error) {
	access := append([]string{"--password-file", d.passwordFile()}, more...)
	r := &store{depot: d, url: url}
	args := []string{"repo", "init"}
	if d.daemon != nil {
		r.flags = []string{"--repo", name}
		args = append(args, name, url)
	} else {
		r.flags = append([]string{"--url", url}, access...)
		args = append(args, "--url", url)
	}
	var made contract.Repository
	_, err := d.run(ctx, &made, append(args, access...)...)
	return r, err
}

// directory makes a repository in one below the depot's own.
func (d *depot) directory(ctx context.Context, name string) (*store, error) {
	return d.init(ctx, name, filepath.Join(d.dir, name))
}

// volume is what is backed up: one of the daemon's or, without, a raw file under that name.
type volume struct {
	name, file string
}

// adopt has the daemon, if there is one, take a raw file as a volume.
func (d *depot) adopt(ctx context.Context, v volume) error {
	if d.daemon == nil {
		return nil
	}
	_, err := d.daemon.api.AdoptVolume(ctx, contract.AdoptVolume{Name: v.name, Path: v.file, Force: true})
	return err
}

// backup backs a volume up and returns the backup's id.
func (r *store) backup(ctx context.Context, v volume, kind string) (spent, string, error) {
	args := []string{"backup", "create", v.name, "--type", kind}
	if r.daemon == nil {
		args = []string{"backup", "create", v.file, "--as", v.name, "--type", kind}
	}
	var made []contract.Backup
	took, err := r.run(ctx, &made, append(args, r.flags...)...)
	if err != nil {
		return took, "", err
	}
	if len(made) != 1 {
		return took, "", fmt.Errorf("a backup of %s made %d", v.name, len(made))
	}
	took.Told = toldOf(made[0])
	return took, made[0].ID, nil
}

// verify reads a backup.
func (r *store) verify(ctx context.Context, id string) (spent, error) {
	var found []contract.BackupVerification
	took, err := r.run(ctx, &found, append([]string{"backup", "verify", id}, r.flags...)...)
	if err == nil && (len(found) != 1 || !found[0].OK()) {
		err = fmt.Errorf("backup %s is not whole: %+v", id, found)
	}
	return took, err
}

// restore brings a backup back to a new file.
func (r *store) restore(ctx context.Context, id, file string) (spent, error) {
	var done contract.BackupRestore
	took, err := r.run(ctx, &done, append([]string{"backup", "restore", id, "--to", file}, r.flags...)...)
	took.Told = &told{Requests: done.Requests, Read: done.WrittenBytes}
	return took, err
}

// ownKeeper is varve among the keepers.
type ownKeeper struct {
	*store
	volume volume
	id     string // of the last backup
}

// startOwn has the daemon adopt the image, or leaves that and has the command line read it.
func startOwn(daemon bool) func(context.Context, settings, string) (keeper, error) {
	return func(ctx context.Context, s settings, image string) (keeper, error) {
		d, err := openDepot(ctx, s, daemon)
		if err != nil {
			return nil, err
		}
		k := &ownKeeper{volume: volume{volumeName, image}}
		if err := d.adopt(ctx, k.volume); err != nil {
			return nil, errors.Join(err, d.stop())
		}
		if k.store, err = d.directory(ctx, "repository"); err != nil {
			return nil, errors.Join(err, d.stop())
		}
		return k, nil
	}
}

func (k *ownKeeper) source() string { return k.volume.file }

func (k *ownKeeper) repository() string { return k.url }

func (k *ownKeeper) first(ctx context.Context) (took spent, err error) {
	took, k.id, err = k.backup(ctx, k.volume, contract.BackupFull)
	return took, err
}

func (k *ownKeeper) again(ctx context.Context) (took spent, err error) {
	took, k.id, err = k.backup(ctx, k.volume, contract.BackupAuto)
	return took, err
}

func (k *ownKeeper) verify(ctx context.Context) (spent, error) { return k.store.verify(ctx, k.id) }

func (k *ownKeeper) restore(ctx context.Context, dir string) (spent, string, error) {
	file := filepath.Join(dir, "disk")
	took, err := k.store.restore(ctx, k.id, file)
	return took, file, err
}

// change overwrites so many different blocks of a volume at random places with what cannot be compressed, by way of the daemon if there is
// one; the same for the same seed.
func (d *depot) change(ctx context.Context, v volume, size, blocks int64, seed uint64) (err error) {
	random := rand.New(rand.NewPCG(2, seed))
	bytes := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	places := random.Perm(int(size / block.Size))[:blocks]
	write, done, err := d.writer(ctx, v)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	const atOnce = 256
	for len(places) > 0 {
		n := min(atOnce, len(places))
		ops := make([]*block.Op, n)
		for i, at := range places[:n] {
			ops[i] = &block.Op{Kind: block.OpWrite, Offset: int64(at) * block.Size, Length: block.Size, Data: make([]byte, block.Size)}
			bytes.Read(ops[i].Data)
		}
		if err := write(ops); err != nil {
			return err
		}
		places = places[n:]
	}
	return nil
}

// writer opens a volume; done has what was written be durable.
func (d *depot) writer(ctx context.Context, v volume) (write func([]*block.Op) error, done func() error, err error) {
	if d.daemon == nil {
		f, err := os.OpenFile(v.file, os.O_WRONLY, 0)
		if err != nil {
			return nil, nil, err
		}
		return func(ops []*block.Op) error {
			for _, op := range ops {
				if _, err := f.WriteAt(op.Data, op.Offset); err != nil {
					return err
				}
			}
			return nil
		}, func() error { return errors.Join(f.Sync(), f.Close()) }, nil
	}
	c, err := nbd.Dial(ctx, d.daemon.volumeURI(v.name), nbd.Options{})
	if err != nil {
		return nil, nil, err
	}
	return func(ops []*block.Op) error {
		c.Submit(ctx, ops)
		for _, op := range ops {
			if op.Err != nil {
				return op.Err
			}
		}
		return nil
	}, func() error { return errors.Join(c.Flush(ctx), c.Close()) }, nil
}

// s3Flags say how a bucket on loopback is reached.
func (d *depot) s3Flags(accessKey, secretKey string) ([]string, error) {
	file := filepath.Join(d.dir, "secret")
	err := os.WriteFile(file, []byte(secretKey+"\n"), 0o600)
	return []string{"--s3-access-key", accessKey, "--s3-secret-key-file", file, "--s3-region", "us-east-1", "--s3-plain-http"}, err
}
