package prune_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"varve/internal/backup"
	"varve/internal/block"
	"varve/internal/block/memdisk"
	"varve/internal/objects"
	"varve/internal/objects/faulty"
	"varve/internal/repository"
	"varve/internal/repository/prune"
)

const (
	grace      = time.Hour
	chunkBytes = 64 << 10
)

// world is a repository with what its backups must hold.
type world struct {
	t   testing.TB
	st  *faulty.Store // a client of its own, to look and to turn the clock
	dir string

	mu        sync.Mutex
	want      map[string][]byte
	committed map[string]bool // whoever made it was told so
}

func (w *world) expect(id string, content []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.want[id] = bytes.Clone(content)
}

func (w *world) wanted(id string) (content []byte, committed bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.want[id], w.committed[id]
}

func newWorld(t testing.TB, o repository.CreateOptions) *world {
	t.Helper()
	w := &world{t: t, st: faulty.New(), want: map[string][]byte{}, committed: map[string]bool{}, dir: t.TempDir()}
	o.ChunkBytes = chunkBytes
	if o.Grace == 0 {
		o.Grace = grace
	}
	if _, err := repository.Create(t.Context(), w.st.Client(), o); err != nil {
		t.Fatal(err)
	}
	return w
}

// open opens the repository as another client of the store.
func (w *world) open(st objects.Store) *repository.Repo {
	w.t.Helper()
	repo, err := repository.Open(context.Background(), st, repository.OpenOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	return repo
}

func disk(content []byte) (block.Device, error) {
	d, err := memdisk.New(int64(len(content)))
	if err != nil {
		return nil, err
	}
	op := &block.Op{Kind: block.OpWrite, Data: content, Length: int64(len(content))}
	d.Submit(context.Background(), []*block.Op{op})
	return d, op.Err
}

// volume is what is backed up.
type volume struct {
	id      uuid.UUID
	content []byte
}

func newVolume(regions int) *volume { return &volume{uuid.New(), make([]byte, regions*chunkBytes)} }

// fill fills a region with noise of its own.
func (v *volume) fill(seed uint64, regions ...int) {
	for _, i := range regions {
		r := rand.New(rand.NewPCG(seed, uint64(i)))
		region := v.content[i*chunkBytes:][:chunkBytes]
		for at := range region {
			region[at] = byte(r.Uint32())
		}
	}
}

// source is the volume as it is now, to be backed up on a base, or in full.
func (v *volume) source(base *repository.Backup, typ repository.Type) (*backup.Source, error) {
	d, err := disk(v.content)
	s := &backup.Source{Device: d, Volume: "v", VolumeID: v.id, Name: "v", Type: typ, Base: base, Reason: "test"}
	return s, err
}

// backUp makes a backup; base may be nil.
func (w *world) backUp(ctx context.Context, repo *repository.Repo, v *volume, base *repository.Backup, o backup.Options) (repository.Backup, error) {
	typ := repository.Full
	if base != nil {
		typ = repository.Incremental
	}
	s, err := v.source(base, typ)
	if err != nil {
		return repository.Backup{}, err
	}
	s.ID = repository.NewID()
	o.Program = "test"
	w.expect(s.ID, v.content)
	rec, err := backup.Create(ctx, repo, []*backup.Source{s}, o)
	if err != nil {
		return repository.Backup{}, err
	}
	w.mu.Lock()
	w.committed[s.ID] = true
	w.mu.Unlock()
	return rec.Backups[0], nil
}

// mustBackUp makes a backup as a host of its own.
func (w *world) mustBackUp(v *volume, base *repository.Backup) repository.Backup {
	w.t.Helper()
	b, err := w.backUp(w.t.Context(), w.open(w.st.Client()), v, base, backup.Options{})
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

func (w *world) delete(b repository.Backup) {
	w.t.Helper()
	if err := w.open(w.st.Client()).Delete(w.t.Context(), b.ID); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) prune() prune.Report {
	w.t.Helper()
	r, err := prune.Run(w.t.Context(), w.open(w.st.Client()), prune.Options{Dir: w.dir})
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// check restores every backup that is visible; those given must be.
func (w *world) check(visible ...repository.Backup) {
	w.t.Helper()
	if err := w.inspect(context.Background(), visible...); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) inspect(ctx context.Context, visible ...repository.Backup) error {
	repo, err := repository.Open(ctx, w.st.Client(), repository.OpenOptions{})
	if err != nil {
		return err
	}
	all, unreadable, err := repo.Backups(ctx)
	if err != nil || len(unreadable) > 0 {
		return fmt.Errorf("%w %v", err, unreadable)
	}
	seen := map[string]bool{}
	for _, b := range all {
		want, committed := w.wanted(b.ID)
		if b.Doubtful && !committed {
			continue
		}
		seen[b.ID] = true
		if err := restores(ctx, repo, b.Backup, want); err != nil {
			return fmt.Errorf("backup %s: %w", b.ID, err)
		}
	}
	for _, b := range visible {
		if !seen[b.ID] {
			return fmt.Errorf("backup %s is not visible", b.ID)
		}
	}
	return nil
}

func restores(ctx context.Context, repo *repository.Repo, b repository.Backup, want []byte) error {
	target, err := memdisk.New(int64(len(want)))
	if err != nil {
		return err
	}
	if _, err := backup.Restore(ctx, repo, b, target, backup.RestoreOptions{Fresh: true}); err != nil {
		return err
	}
	got := make([]byte, len(want))
	if err := target.ReadAt(ctx, got, 0); err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return errors.New("it has other content")
	}
	return nil
}

// names are those of the objects whose names begin so.
func (w *world) names(prefix string) (found []string) {
	for _, n := range w.st.Names() {
		if strings.HasPrefix(n, prefix) {
			found = append(found, n)
		}
	}
	return found
}

// bytes is how much objects of these prefixes take.
func (w *world) bytes(prefixes ...string) (n int64) {
	for _, p := range prefixes {
		for _, name := range w.names(p) {
			n += int64(len(w.st.Bytes(name)))
		}
	}
	return n
}
