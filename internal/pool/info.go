package pool

import (
	"time"

	"github.com/google/uuid"
)

// VolumeInfo describes a volume at one instant.
type VolumeInfo struct {
	ID        uuid.UUID
	Name      string
	SizeBytes int64
	Labels    map[string]string
	CreatedAt time.Time
	// Origin is the snapshot (VOLUME@NAME) this volume was cloned from, as it was
	// called then; empty for others.
	Origin string
	// Parent is the name of the newest visible snapshot of this volume that its
	// head descends from, empty if there is none.
	Parent string
	// MappedBytes counts the blocks that hold data (not holes). Those that may be of a base all count; Usage is exact.
	MappedBytes int64
	// Snapshots counts the volume's visible snapshots, Bookmarks its bookmarks.
	Snapshots, Bookmarks int
	Copies               int // of the snapshots, those that need nothing but themselves
	Making               int // snapshots that are being copied and cannot be seen before they are whole
	// Path is the file of an inplace volume; empty for redirect ones.
	Path     string
	ReadOnly bool   // its file cannot be written
	Broken   string // why its file cannot be used; empty if it can
	Suspect  bool   // somebody else has changed its file since some of its snapshots were made
	Deleted  bool   // it is there for its copies alone
	Leg      string // the file that it is mirrored to; empty: none
	// Behind: small writes have not come into the file yet.
	Behind bool
	// CopyingBack: a rollback has not been copied back into the file yet.
	CopyingBack bool
	// Base is the name of the inplace volume that a clone reads blocks from; empty for others.
	Base string
	// FilledFrom is the base outside of the pool that it needs, or some snapshot or clone that shares it; nil for others, and when nothing
	// needs it any more.
	FilledFrom *FilledFrom
}

// SnapshotInfo describes a snapshot.
type SnapshotInfo struct {
	ID          uuid.UUID
	Volume      string // name of the volume it is a snapshot of
	VolumeID    uuid.UUID
	Name        string
	SizeBytes   int64
	CreatedAt   time.Time
	ExpiresAt   time.Time // zero: never
	Labels      map[string]string
	Protected   bool
	Automatic   bool // made by a rollback
	GroupID     uuid.UUID
	GroupSize   int // volumes snapshotted at the same instant, 1 or more
	MappedBytes int64
	// Parent is the visible snapshot this one descends from, as VOLUME@NAME; empty at the root.
	Parent string
	// Clones are the names of volumes whose nearest visible ancestor this is, other than its own volume.
	Clones []string
	// Head tells that the volume's head descends directly from this snapshot.
	Head bool
	// Base is the name of the inplace volume in whose file blocks of it may lie: of a cow snapshot its own, of a row snapshot
	// what its volume was cloned from. Empty for others.
	Base       string
	Suspect    bool        // somebody else has changed that file since
	FilledFrom *FilledFrom // as of a volume; of copies that are finished nil
	// DropWhenFull: it is given up where there is no room for what it needs kept.
	DropWhenFull bool
	Copy         *CopyInfo // of a copy, or one that is being made; nil for others
}

// Usage tells what a volume's head or a snapshot holds, in bytes.
type Usage struct {
	Mapped    int64 // data reachable through it
	Exclusive int64 // what deleting it would free
	Shared    int64 // Mapped - Exclusive
}

// VolumeSpec says what volume to create.
type VolumeSpec struct {
	Name      string
	SizeBytes int64
	Labels    map[string]string
	// Base, if not nil, is what the volume begins with, and is then FilledFrom. SizeBytes is at least as much, or 0: the same.
	Base *Base
	// Incomplete volumes are being filled (an import): they take their name but
	// are not listed, and disappear when the pool is opened again, until
	// CompleteVolume; but see Options.KeepIncomplete.
	Incomplete bool
}

// SnapshotSpec says what snapshot to create.
type SnapshotSpec struct {
	Name    string
	Labels  map[string]string
	KeepFor time.Duration // zero: no expiry
	// DropWhenFull lets the pool give it up where there is no room for what it needs kept; else writes fail. Of inplace volumes.
	DropWhenFull bool
	// Copy, if not nil, says that it is to become a copy, which Copy makes.
	Copy *CopySpec
}

// SnapshotRef names a snapshot: VOLUME@NAME.
type SnapshotRef struct {
	Volume, Name string
}

func (r SnapshotRef) String() string { return r.Volume + "@" + r.Name }

// BookmarkInfo describes a bookmark.
type BookmarkInfo struct {
	ID        uuid.UUID
	Volume    string // name of the volume it is a bookmark of
	VolumeID  uuid.UUID
	Name      string
	SizeBytes int64 // of the volume at the bookmark's point in time
	CreatedAt time.Time
	// The snapshot it was made of, as it was then: it may be gone.
	Snapshot          SnapshotRef
	SnapshotID        uuid.UUID
	SnapshotCreatedAt time.Time // the bookmark's point in time
}

// BookmarkRef names a bookmark: VOLUME#NAME.
type BookmarkRef struct {
	Volume, Name string
}

func (r BookmarkRef) String() string { return r.Volume + "#" + r.Name }

// Info describes a pool.
type Info struct {
	ID            uuid.UUID
	FormatVersion int
	CreatedAt     time.Time
	Volumes       int
	Snapshots     int
	Bookmarks     int
	HiddenStates  int   // deleted snapshots that still have several children
	PhysicalBytes int64 // allocated on disk by the pool's files
	QuotaBytes    int64 // that the pool's log may take; 0: no bound
	ReserveBytes  int64 // of the quota, kept for what gives space back
	RoomBytes     int64 // that clients may still write before anything is given back
	FullPercent   int   // of the quota or of the file system, whichever is nearer
	TotalBytes    int64 // of the file system
	FreeBytes     int64 // of that, without what is missing of the reserve
	LiveBytes     int64 // what volumes and snapshots hold, with their maps; between two reclaim cycles an estimate
	LogSizeBytes  int64 // length of the log's files, with spare ones
	MapBytes      int64 // of LiveBytes, what map nodes take, by the last reclaim cycle; 0 before the first
	// ReclaimedBytes were given back since the pool was opened, and CopiedBytes written for that.
	ReclaimedBytes, CopiedBytes int64
	// SpareBytes, a part of PhysicalBytes, are files of removed segments that are kept for a while to be written again.
	SpareBytes  int64
	LogBytes    int64 // written to the log since the pool was opened
	ClientBytes int64 // payload written by clients since the pool was opened
	Segments    int
	Checkpoints uint64
	// DurableSeq and LastSeq are the newest durable and the newest written batch.
	DurableSeq, LastSeq uint64
	// ReadOnlyReason is why the pool accepts no writes any more; empty if it does.
	ReadOnlyReason string
	MapCacheBytes  int64
	Stalls         Stalls
}

// The kinds of events.
const (
	EventDamage           = "damage"            // stored bytes are not what was stored
	EventWriteStop        = "write-stop"        // nothing is written until the pool is opened again
	EventRecovered        = "recovered"         // the pool was not closed in order
	EventCheckpointFailed = "checkpoint-failed" // it is tried again
	EventReclaimFailed    = "reclaim-failed"    // it is tried again
	EventSpace            = "space-low"         // 80, 90 or 95 percent are used
	EventSpaceThrottled   = "space-throttled"   // writers wait for reclaim
	EventSpaceFull        = "space-full"        // a write was refused
	EventPlaceLost        = "file-lost"         // the file of an inplace volume cannot be opened, read, written or synced
	EventPlaceChanged     = "file-changed"      // somebody else changed it
	EventMirrorFailed     = "mirror-failed"     // a leg cannot be opened, recognised, written or synced, and is not written any more
	EventBaseLost         = "base-lost"         // the base of a volume cannot be opened or read
	EventSnapshotDropped  = "snapshot-dropped"  // there was no room for what it needed, and it was made to be given up then
	EventRepaired         = "repaired"          // an operator had the pool repaired, and this was done
)

// Event is something an operator wants to know.
type Event struct {
	Time    time.Time
	Kind    string
	Object  string // VOLUME, VOLUME@SNAP or a file of the pool
	Message string
}

// Timing tells how long a change of lineage took.
type Timing struct {
	Pause   time.Duration // writers of the pool waited this long
	Durable time.Duration // until the record was on disk, pause included
}
