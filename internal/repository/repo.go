package repository

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"

	"varve/internal/block"
	"varve/internal/objects"
	"varve/internal/repository/chunk"
	"varve/internal/repository/config"
	"varve/internal/repository/envelope"
	"varve/internal/repository/index"
	"varve/internal/repository/keys"
	"varve/internal/repository/maptree"
	"varve/internal/repository/pack"
	"varve/internal/repository/seal"
)

const (
	// directoryCacheBytes is for directories of packs, nodeCacheBytes for the map nodes of one tree, and
	// tableBytes for the table of known chunks.
	directoryCacheBytes = 48 << 20
	nodeCacheBytes      = 8 << 20
	tableBytes          = 64 << 20
)

// Defaults of a new repository.
const (
	DefaultChunkBytes = 512 << 10
	DefaultParity     = 3
	DefaultGrace      = 24 * time.Hour
)

// Repo is an open repository. All methods may be called concurrently, Close last.
type Repo struct {
	store   *objects.Counter
	config  *config.Config
	ring    *keys.Ring // nil without encryption
	keys    *seal.Keys
	packs   *pack.Reader
	index   *index.Index
	noWrite error // why nothing may be written; nil if it may

	refreshMu sync.Mutex // one refresh at a time
	indexMu   sync.Mutex // one listing of the index at a time
	listed    time.Time  // when the last one began, guarded by indexMu

	mu      sync.Mutex
	records map[string]*Record
	tables  map[uuid.UUID]*index.Table // by set; the zero UUID in scope repository
	lost    *lost
	doomed  map[chunk.PackID]bool // packs that were condemned when that was listed
}

// CreateOptions say what a new repository is.
type CreateOptions struct {
	ChunkBytes int // 0: DefaultChunkBytes
	Scope      config.Scope
	Parity     int           // percent; none if negative, 0: DefaultParity
	Grace      time.Duration // none if negative, 0: DefaultGrace
	Keys       []keys.Add    // who may open it; none: it is not encrypted
}

// Create makes a repository in a place that holds nothing, and opens it. ErrIsRepository, ErrNotEmpty.
func Create(ctx context.Context, st objects.Store, o CreateOptions) (*Repo, error) {
	if err := empty(ctx, st); err != nil {
		return nil, fmt.Errorf("make a repository in %s: %w", st.URL(), err)
	}
	c := config.Config{
		Version: config.Version, Repository: uuid.New(), CreatedAt: time.Now(), ChunkBytes: o.ChunkBytes, Scope: o.Scope,
		Parity: max(o.Parity, 0), Grace: max(o.Grace, 0), Encryption: config.Age,
	}
	if o.ChunkBytes == 0 {
		c.ChunkBytes = DefaultChunkBytes
	}
	if o.Parity == 0 {
		c.Parity = DefaultParity
	}
	if o.Grace == 0 {
		c.Grace = DefaultGrace
	}
	k := seal.NewKeys(c.Repository)
	var ring *keys.Ring
	if len(o.Keys) == 0 {
		c.Encryption, k = config.Plain, seal.PlainKeys(c.Repository)
	} else {
		var err error
		if ring, err = keys.Create(ctx, st, k, o.Keys); err != nil {
			return nil, fmt.Errorf("make a repository in %s: %w", st.URL(), err)
		}
	}
	made, err := config.Create(ctx, st, c, k)
	if errors.Is(err, config.ErrExists) {
		err = ErrIsRepository // somebody else was faster
		if ring != nil {
			err = errors.Join(err, ring.Discard(ctx, st))
		}
	}
	if err != nil {
		return nil, fmt.Errorf("make a repository in %s: %w", st.URL(), err)
	}
	return newRepo(st, made, ring, k), nil
}

// empty looks whether a repository may be made: what a creation left that was cut short is nothing.
func empty(ctx context.Context, st objects.Store) error {
	if _, err := config.Load(ctx, st); err == nil {
		return ErrIsRepository
	} else if !errors.Is(err, objects.ErrNotFound) {
		return err
	}
	return st.List(ctx, "", func(i objects.Info) error {
		if len(i.Name) > 5 && i.Name[:5] == "keys/" {
			return nil
		}
		return fmt.Errorf("it holds %s: %w", i.Name, ErrNotEmpty)
	})
}

// OpenOptions say how a repository is opened.
type OpenOptions struct {
	Unlock keys.Unlock
	Export []byte // of the ring, in place of Unlock
	// ID and Fingerprint are what the repository was when it was opened before; zero: any. ErrOther.
	ID          uuid.UUID
	Fingerprint [16]byte
}

// Open opens the repository of a place. ErrNoRepository, keys.ErrWrongKey, ErrOther.
func Open(ctx context.Context, st objects.Store, o OpenOptions) (*Repo, error) {
	r, err := open(ctx, st, o)
	if err != nil {
		return nil, fmt.Errorf("open repository %s: %w", st.URL(), err)
	}
	return r, nil
}

func open(ctx context.Context, st objects.Store, o OpenOptions) (*Repo, error) {
	c, err := config.Load(ctx, st)
	if errors.Is(err, objects.ErrNotFound) {
		return nil, ErrNoRepository
	}
	if err != nil {
		return nil, err
	}
	if o.ID != uuid.Nil && c.Repository != o.ID {
		return nil, fmt.Errorf("it is %s, it was %s: %w", c.Repository, o.ID, ErrOther)
	}
	if err := c.Allows(config.Read); err != nil {
		return nil, err
	}
	if c.Encryption == config.Plain && (o.Export != nil || len(o.Unlock.Passphrase) > 0 || len(o.Unlock.Identities) > 0) {
		return nil, ErrNotEncrypted // else whoever can write to the store could have backups written in plain
	}
	var ring *keys.Ring
	k := seal.PlainKeys(c.Repository)
	if c.Encryption != config.Plain {
		if o.Export != nil {
			ring, err = keys.Import(ctx, st, c.Repository, o.Export)
		} else {
			ring, err = keys.Open(ctx, st, c.Repository, o.Unlock)
		}
		if err != nil {
			return nil, err
		}
		k = ring.Keys
	}
	if o.Fingerprint != [16]byte{} && k.Fingerprint() != o.Fingerprint {
		return nil, fmt.Errorf("its key is not the one it had: %w", ErrOther)
	}
	if c, err = c.Verify(ctx, st, k); err != nil {
		return nil, err
	}
	return newRepo(st, c, ring, k), nil
}

func newRepo(st objects.Store, c *config.Config, ring *keys.Ring, k *seal.Keys) *Repo {
	counted := objects.Counted(st)
	r := &Repo{
		store: counted, config: c, ring: ring, keys: k, packs: pack.NewReader(counted, k, directoryCacheBytes),
		noWrite: c.Allows(config.Write), records: map[string]*Record{}, tables: map[uuid.UUID]*index.Table{},
	}
	r.index = index.New(r.packs)
	return r
}

// URL names the place.
func (r *Repo) URL() string { return r.store.URL() }

// ID is the repository's UUID.
func (r *Repo) ID() uuid.UUID { return r.config.Repository }

// Fingerprint tells its keys from others.
func (r *Repo) Fingerprint() [16]byte { return r.keys.Fingerprint() }

// Config is what it was made with.
func (r *Repo) Config() config.Config { return *r.config }

// Ring is who may open it; nil without encryption. What changes it is not used concurrently.
func (r *Repo) Ring() *keys.Ring { return r.ring }

// Keys are the repository's secrets.
func (r *Repo) Keys() *seal.Keys { return r.keys }

// Store is the place itself.
func (r *Repo) Store() objects.Store { return r.store }

// Packs reads its packs.
func (r *Repo) Packs() *pack.Reader { return r.packs }

// Index is that of its packs, as of the last refresh.
func (r *Repo) Index() *index.Index { return r.index }

// Counts are the requests that were made of the store.
func (r *Repo) Counts() objects.Counts { return r.store.Counts() }

// Sets tells that only a full and those that depend on it share chunks.
func (r *Repo) Sets() bool { return r.config.Scope == config.ScopeSet }

// ChunkBytes is the size of a region, of which the largest chunk is one.
func (r *Repo) ChunkBytes() int { return r.config.ChunkBytes }

// Geometry is that of all maps.
func (r *Repo) Geometry() maptree.Geometry {
	return maptree.Geometry{BlocksPerRegion: r.config.ChunkBytes / block.Size}
}

// Regions is how many regions a device has.
func (r *Repo) Regions(sizeBytes int64) uint64 {
	n := int64(r.config.ChunkBytes)
	return uint64((sizeBytes + n - 1) / n)
}

// Tree reads a map.
func (r *Repo) Tree(root maptree.Root) *maptree.Tree {
	return maptree.NewTree(r, r.Geometry(), root, nodeCacheBytes)
}

// BlockHash is the hash of a block's content.
func (r *Repo) BlockHash(b []byte) uint64 { return r.keys.BlockHash(b) }

// Close closes the store.
func (r *Repo) Close() error { return r.store.Close() }

// refresh takes in what others have written, runs of the index, what is lost and what is condemned, and returns the table of what a set may share.
func (r *Repo) refresh(ctx context.Context, set uuid.UUID) (*index.Table, error) {
	r.refreshMu.Lock()
	defer r.refreshMu.Unlock()
	if err := r.RefreshLost(ctx); err != nil {
		return nil, err
	}
	condemned, err := r.Condemned(ctx)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	r.doomed = condemned
	r.mu.Unlock()
	if err := r.RefreshIndex(ctx); err != nil {
		return nil, err
	}
	// Runs that are lost cost space, no more: check says so.
	t := r.table(set)
	_, err = t.Load(ctx, r.index)
	return t, err
}

// table is that of a set's chunks, or of the repository's.
func (r *Repo) table(set uuid.UUID) *index.Table {
	r.mu.Lock()
	defer r.mu.Unlock()
	t, ok := r.tables[set]
	if !ok {
		clear(r.tables) // those of other sets: memory is for one
		t = index.NewTable(tableBytes, set)
		r.tables[set] = t
	}
	return t
}

// put stores an object, under a retention unless until is zero.
func (r *Repo) put(ctx context.Context, name string, object [][]byte, until time.Time) error {
	return r.store.Put(ctx, name, object, objects.PutOptions{LockUntil: until})
}

// smallParity is the parity of records and the like, in percent: the usual one would not cover a bad sector of an object of a few KiB.
const smallParity = 100

// putSmall stores an object that is sealed in one piece and returns its length.
func (r *Repo) putSmall(ctx context.Context, kind envelope.Kind, name string, plain []byte) (int64, error) {
	object, err := r.keys.SealObject(r.keys.NewHeader(kind, name, uuid.Nil, smallParity), plain)
	if err != nil {
		return 0, err
	}
	return length(object), r.put(ctx, name, object, time.Time{})
}

func length(object [][]byte) (n int64) {
	for _, b := range object {
		n += int64(len(b))
	}
	return n
}

// parityBytes is how much of an object is parity.
func parityBytes(object [][]byte) int64 {
	h, err := envelope.DecodeHeader(object[0])
	if err != nil {
		return 0
	}
	return h.ObjectBytes() - 2*h.PayloadOffset() - h.PayloadBytes
}

// newObjectID names an object: 32 hexadecimal digits.
func newObjectID() string {
	var id chunk.PackID
	rand.Read(id[:])
	return hex.EncodeToString(id[:])
}

// Now is the time by the store's clock, for which it puts a probe: a pin of nothing.
func (r *Repo) Now(ctx context.Context) (time.Time, error) {
	for {
		now, err := r.probe(ctx)
		if errors.Is(err, objects.ErrNotFound) && ctx.Err() == nil {
			continue // it took so long that a pruner has deleted the probe
		}
		if err != nil {
			return now, fmt.Errorf("read the clock of %s: %w", r.URL(), err)
		}
		return now, nil
	}
}

func (r *Repo) probe(ctx context.Context) (time.Time, error) {
	name := pinName(newObjectID(), 0)
	plain, err := encodePin(wirePin{For: int64(pinFor)})
	if err != nil {
		return time.Time{}, err
	}
	if _, err := r.putSmall(ctx, envelope.Pin, name, plain); err != nil {
		return time.Time{}, err
	}
	info, err := r.store.Stat(ctx, name)
	if err != nil {
		return time.Time{}, err
	}
	err = r.store.Delete(ctx, name)
	if errors.Is(err, objects.ErrLocked) {
		err = nil // the bucket has a retention for all that is put; it expires
	}
	return info.Modified, err
}
