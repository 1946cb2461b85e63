package check_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/google/uuid"

	"varve/internal/backup"
	"varve/internal/block"
	"varve/internal/block/memdisk"
	"varve/internal/objects"
	"varve/internal/objects/faulty"
	"varve/internal/repository"
	"varve/internal/repository/check"
	"varve/internal/repository/envelope"
	"varve/internal/repository/keys"
)

const chunkBytes = 64 << 10

// world is a repository with what its backups must hold.
type world struct {
	t      testing.TB
	dir    string
	unlock keys.Unlock
	want   map[string][]byte // by backup
}

func newWorld(t testing.TB, encrypted bool, o repository.CreateOptions) (*world, *faulty.Store) {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), want: map[string][]byte{}}
	st := faulty.New()
	o.ChunkBytes = chunkBytes
	if encrypted {
		identity, err := age.GenerateX25519Identity()
		if err != nil {
			t.Fatal(err)
		}
		o.Keys = []keys.Add{
			{Label: "key", Recipient: identity.Recipient().String()},
			{Label: "words", Passphrase: []byte("words"), Cost: keys.Cost{Passes: 1, MemoryKiB: 64, Lanes: 1}},
		}
		w.unlock = keys.Unlock{Identities: []age.Identity{identity}}
	}
	if _, err := repository.Create(t.Context(), st, o); err != nil {
		t.Fatal(err)
	}
	return w, st
}

func (w *world) tryOpen(st objects.Store) (*repository.Repo, error) {
	return repository.Open(context.Background(), st, repository.OpenOptions{Unlock: w.unlock})
}

// open opens the repository as another client of the store.
func (w *world) open(st objects.Store) *repository.Repo {
	w.t.Helper()
	repo, err := w.tryOpen(st)
	if err != nil {
		w.t.Fatal(err)
	}
	return repo
}

// volume is what is backed up.
type volume struct {
	name    string
	id      uuid.UUID
	content []byte
	changed map[int]bool // regions since the last backup
}

func newVolume(name string, bytes int) *volume {
	return &volume{name, uuid.New(), make([]byte, bytes), map[int]bool{}}
}

// fill fills regions with noise of their own.
func (v *volume) fill(seed uint64, regions ...int) {
	for _, i := range regions {
		r := rand.New(rand.NewPCG(seed, uint64(i)))
		region := v.content[i*chunkBytes : min((i+1)*chunkBytes, len(v.content))]
		for at := range region {
			region[at] = byte(r.Uint32())
		}
		v.changed[i] = true
	}
}

// block changes one block of a region.
func (v *volume) block(seed uint64, region, i int) {
	r := rand.New(rand.NewPCG(seed, uint64(i)))
	for at := range block.Size {
		v.content[region*chunkBytes+i*block.Size+at] = byte(r.Uint32())
	}
	v.changed[region] = true
}

func (w *world) tryBackUp(ctx context.Context, st objects.Store, v *volume, base *repository.Backup) (repository.Backup, error) {
	d, err := memdisk.New(int64(len(v.content)))
	if err != nil {
		return repository.Backup{}, err
	}
	op := &block.Op{Kind: block.OpWrite, Data: v.content, Length: int64(len(v.content))}
	d.Submit(ctx, []*block.Op{op})
	repo, err := w.tryOpen(st)
	if err != nil {
		return repository.Backup{}, err
	}
	s := &backup.Source{Device: d, Volume: v.name, VolumeID: v.id, Name: v.name, Type: repository.Full, Reason: "test"}
	if base != nil {
		s.Type, s.Base = repository.Incremental, base
		s.Changes = func(_ context.Context, visit func(off, length int64) error) error {
			for i := range len(v.content)/chunkBytes + 1 {
				if v.changed[i] {
					off := int64(i) * chunkBytes
					if err := visit(off, min(chunkBytes, int64(len(v.content))-off)); err != nil {
						return err
					}
				}
			}
			return nil
		}
	}
	rec, err := backup.Create(ctx, repo, []*backup.Source{s}, backup.Options{Program: "test"})
	if err != nil {
		return repository.Backup{}, err
	}
	v.changed = map[int]bool{}
	w.want[rec.Backups[0].ID] = bytes.Clone(v.content)
	return rec.Backups[0], nil
}

func (w *world) backUp(st objects.Store, v *volume, base *repository.Backup) repository.Backup {
	w.t.Helper()
	b, err := w.tryBackUp(w.t.Context(), st, v, base)
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

func (w *world) check(st objects.Store, o check.Options) check.Report {
	w.t.Helper()
	o.Dir = w.dir
	r, err := check.Run(w.t.Context(), w.open(st), o)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// truth is what verifying says is lost of each backup that can be seen; restoring refuses these, and is right about others.
func (w *world) truth(st objects.Store) (map[string][]check.Range, error) {
	ctx := context.Background()
	repo, err := w.tryOpen(st)
	if err != nil {
		return nil, err
	}
	all, unreadable, err := repo.Backups(ctx)
	if err != nil {
		return nil, err
	}
	out := map[string][]check.Range{}
	for _, u := range unreadable {
		out[u.Record] = nil
	}
	for _, b := range all {
		v, err := backup.Verify(ctx, repo, b.Backup, nil)
		if err != nil {
			return nil, err
		}
		target, err := memdisk.New(b.SizeBytes)
		if err != nil {
			return nil, err
		}
		_, err = backup.Restore(ctx, repo, b.Backup, target, backup.RestoreOptions{Fresh: true})
		if (err != nil) != (len(v.Lost) > 0) || err != nil && !errors.Is(err, backup.ErrDamaged) {
			return nil, fmt.Errorf("backup %s: restore says %w, verify %v %v", b.ID, err, v.Lost, v.Errs)
		}
		if err == nil {
			got := make([]byte, b.SizeBytes)
			if err := target.ReadAt(ctx, got, 0); err != nil {
				return nil, err
			}
			if !bytes.Equal(got, w.want[b.ID]) {
				return nil, fmt.Errorf("backup %s: WRONG CONTENT", b.ID)
			}
			continue
		}
		for _, l := range v.Lost {
			out[b.ID] = append(out[b.ID], check.Range(l))
		}
	}
	return out, nil
}

// harmed is the same as a check has it.
func harmed(r check.Report) map[string][]check.Range {
	out := map[string][]check.Range{}
	for _, h := range r.Harmed {
		out[h.ID] = h.Ranges
	}
	return out
}

func same(a, b map[string][]check.Range) bool {
	if len(a) != len(b) {
		return false
	}
	for id, ranges := range a {
		other, ok := b[id]
		if !ok || !slices.Equal(ranges, other) {
			return false
		}
	}
	return true
}

func find(r check.Report, object string) (check.Damaged, bool) {
	for _, d := range r.Damage {
		if d.Object == object {
			return d, true
		}
	}
	return check.Damaged{}, false
}

func under(st *faulty.Store, prefix string) (names []string) {
	for _, n := range st.Names() {
		if strings.HasPrefix(n, prefix) {
			names = append(names, n)
		}
	}
	return names
}

// populate makes a repository that has an object of each kind, and returns its volumes.
func (w *world) populate(st *faulty.Store) []*volume {
	w.t.Helper()
	ctx := w.t.Context()
	// 64 regions are a leaf: the map of the first has two levels.
	a, b := newVolume("a", 70*chunkBytes-12288), newVolume("b", 3*chunkBytes)
	a.fill(1, 0, 1, 2, 3, 66, 69)
	full := w.backUp(st, a, nil)
	a.block(2, 1, 3)
	a.fill(2, 67)
	w.backUp(st, a, &full)
	b.fill(3, 0, 2)
	gone := w.backUp(st, b, nil)
	b.fill(4, 0)
	w.backUp(st, b, nil)
	repo := w.open(st)
	for _, err := range []error{
		repo.Delete(ctx, gone.ID),
		repo.PutMark(ctx, []repository.MarkedPack{{ID: [16]byte{1}}}),
	} {
		if err != nil {
			w.t.Fatal(err)
		}
	}
	if _, err := repo.Fence(ctx, repository.NewID()); err != nil {
		w.t.Fatal(err)
	}
	if _, err := repo.Pin(ctx, full.ID); err != nil {
		w.t.Fatal(err)
	}
	// A session that is killed before its record is there leaves a candidate.
	client := st.Client()
	client.Inject(faulty.Fault{Op: faulty.Put, Pattern: "backups/*", Err: objects.ErrUnavailable})
	dead := newVolume("c", chunkBytes)
	dead.fill(5, 0)
	if _, err := w.tryBackUp(ctx, client, dead, nil); err == nil {
		w.t.Fatal("the session was not killed")
	}
	st.Advance(time.Minute)
	if r := w.check(st.Client(), check.Options{}); len(r.Damage) > 0 || len(r.Harmed) > 0 || r.Left > 0 {
		w.t.Fatalf("of a sound repository: %+v", r)
	}
	st.Advance(time.Minute)
	return []*volume{a, b}
}

// later makes an object one of a later version of the format, of which nothing but the header is known.
func later(object []byte) []byte {
	for _, h := range [][]byte{object[:envelope.HeaderBytes], object[len(object)-envelope.HeaderBytes:]} {
		binary.LittleEndian.PutUint16(h[8:], envelope.Version+1)
		binary.LittleEndian.PutUint32(h[124:], crc32.Checksum(h[:124], crc32.MakeTable(crc32.Castagnoli)))
	}
	return object
}
