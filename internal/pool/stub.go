package pool

import (
	"context"
	"errors"
	"time"

	"varve/internal/block"
	"varve/internal/vfs"
)

var errStub = errors.New("stub")

// Options of Open and Create.
type Options struct {
	FS            vfs.FS
	Dir           string
	MapCacheBytes int64            // 0: 256 MiB
	Clock         func() time.Time // nil: time.Now
	OnEvent       func(Event)      // nil: dropped; must not block
}

// Pool is an open pool.
type Pool struct{}

// Create makes a new pool in Dir, which must not exist or be empty.
func Create(ctx context.Context, o Options) error { return errStub }

// Open opens and recovers a pool and locks it. ErrNotPool, ErrNewerFormat, ErrDamagedLog, vfs.ErrLocked.
func Open(ctx context.Context, o Options) (*Pool, error) { return nil, errStub }

// Close waits for running requests, flushes, writes a checkpoint and releases the lock.
func (p *Pool) Close(ctx context.Context) error { return errStub }

func (p *Pool) Info() Info                           { return Info{} }
func (p *Pool) Checkpoint(ctx context.Context) error { return errStub }

func (p *Pool) CreateVolume(ctx context.Context, s VolumeSpec) (VolumeInfo, error) {
	return VolumeInfo{}, errStub
}
func (p *Pool) CompleteVolume(ctx context.Context, name string) error { return errStub }

// CloneVolume creates a writable volume that starts as the snapshot's content.
func (p *Pool) CloneVolume(ctx context.Context, from SnapshotRef, s VolumeSpec) (VolumeInfo, Timing, error) {
	return VolumeInfo{}, Timing{}, errStub
}
func (p *Pool) RenameVolume(ctx context.Context, name, newName string) error { return errStub }

// LabelVolume sets labels; an empty value removes the label.
func (p *Pool) LabelVolume(ctx context.Context, name string, labels map[string]string) error {
	return errStub
}

// ResizeVolume grows, or with shrink also shrinks. Every snapshot keeps its own size.
func (p *Pool) ResizeVolume(ctx context.Context, name string, sizeBytes int64, shrink bool) error {
	return errStub
}

// DeleteVolume refuses with ErrInUse while it has snapshots or open devices.
func (p *Pool) DeleteVolume(ctx context.Context, name string) error { return errStub }

// DeleteIncomplete removes a volume that was created Incomplete and never completed.
func (p *Pool) DeleteIncomplete(ctx context.Context, name string) error { return errStub }
func (p *Pool) Volumes() []VolumeInfo                                   { return nil }
func (p *Pool) Volume(name string) (VolumeInfo, error)                  { return VolumeInfo{}, errStub }

// VolumeUsage and SnapshotUsage walk maps: O(what differs from parent and children).
func (p *Pool) VolumeUsage(ctx context.Context, name string) (Usage, error) { return Usage{}, errStub }
func (p *Pool) SnapshotUsage(ctx context.Context, ref SnapshotRef) (Usage, error) {
	return Usage{}, errStub
}

// CreateSnapshot freezes all volumes at one instant, each as snapshot s.Name, all or none.
func (p *Pool) CreateSnapshot(ctx context.Context, volumes []string, s SnapshotSpec) ([]SnapshotInfo, Timing, error) {
	return nil, Timing{}, errStub
}

// DeleteSnapshots deletes all or none.
func (p *Pool) DeleteSnapshots(ctx context.Context, refs []SnapshotRef) error { return errStub }
func (p *Pool) ProtectSnapshot(ctx context.Context, ref SnapshotRef, protected bool) error {
	return errStub
}

// Rollback makes the volume's head the snapshot's content and keeps the present as an
// automatic snapshot, which it returns. ErrInUse while a device that has written is open.
func (p *Pool) Rollback(ctx context.Context, ref SnapshotRef) (SnapshotInfo, Timing, error) {
	return SnapshotInfo{}, Timing{}, errStub
}

// Snapshots lists all snapshots of a volume (all volumes if empty), parents before children, oldest first.
func (p *Pool) Snapshots(volume string) ([]SnapshotInfo, error) { return nil, errStub }
func (p *Pool) Snapshot(ref SnapshotRef) (SnapshotInfo, error)  { return SnapshotInfo{}, errStub }

// OpenVolume opens the head for reading and writing; it follows the volume through rename, resize and rollback.
func (p *Pool) OpenVolume(name string) (block.Device, error) { return nil, errStub }

// OpenSnapshot opens a snapshot read-only.
func (p *Pool) OpenSnapshot(ref SnapshotRef) (block.Device, error) { return nil, errStub }

// Damage is one finding of Check.
type Damage struct {
	Object  string // VOLUME, VOLUME@SNAP, or "log", "catalogue", ...
	Offset  int64  // bytes within the volume; -1 where it does not apply
	Length  int64
	Message string
}

// CheckReport is what Check found.
type CheckReport struct {
	Blocks, MapNodes int64 // verified
	Bytes            int64
	Damage           []Damage
}

// Check reads and verifies every block and map node reachable from any volume or snapshot.
// progress may be nil; it is called with a fraction from 0 to 1.
func (p *Pool) Check(ctx context.Context, progress func(float64)) (CheckReport, error) {
	return CheckReport{}, errStub
}
