// Package contract holds what people and scripts rely on when they talk to the
// daemon: the JSON objects of the HTTP API, which the command line prints as they
// are, and the codes of errors. A field that is here stays; others may be added.
//
// Conventions: names are snake_case, sizes and offsets are bytes, durations are
// milliseconds, times are RFC 3339 in UTC with nine digits of fraction. Lists are
// arrays and never null. What is unknown or does not apply is absent or null.
//
// It imports nothing of ours, so that the service, the API, its client and the
// command line all speak of the same things without translating.
package contract

import (
	"fmt"
	"strings"
	"time"
)

// timeLayout is RFC 3339 with exactly nine digits of fraction.
const timeLayout = "2006-01-02T15:04:05.000000000Z07:00"

// Time is a time.Time that reads and prints as RFC 3339 in UTC with nine digits of fraction.
type Time struct{ time.Time }

// At is the Time of t; nil for the zero time, which stands for never or not yet.
func At(t time.Time) *Time {
	if t.IsZero() {
		return nil
	}
	return &Time{t}
}

// MarshalText implements encoding.TextMarshaler.
func (t Time) MarshalText() ([]byte, error) {
	return t.UTC().AppendFormat(nil, timeLayout), nil
}

// MarshalJSON implements json.Marshaler.
func (t Time) MarshalJSON() ([]byte, error) {
	return []byte(`"` + t.UTC().Format(timeLayout) + `"`), nil
}

// String is the time as JSON has it, without quotes.
func (t Time) String() string { return t.UTC().Format(timeLayout) }

// Milliseconds is d as the contract gives durations.
func Milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// Volume is a virtual disk that clients read and write.
type Volume struct {
	ID             string            `json:"id" doc:"UUID; it stays when the name changes"`
	Name           string            `json:"name"`
	Size           int64             `json:"size" doc:"logical size in bytes"`
	Layout         string            `json:"layout" enum:"redirect,inplace" doc:"redirect: in the pool; inplace: in a raw file or block device of its own"`
	Path           string            `json:"path,omitempty" doc:"that file or device"`
	ReadOnly       bool              `json:"read_only" doc:"it cannot be written, as its file cannot"`
	Broken         string            `json:"broken,omitempty" doc:"why its file cannot be used"`
	Suspect        bool              `json:"suspect,omitempty" doc:"somebody else has changed its file: what older snapshots have in it is not served"`
	CopyingBack    bool              `json:"copying_back,omitempty" doc:"a rollback is not wholly in its file yet; clients see what they should"`
	Labels         map[string]string `json:"labels"`
	MappedBytes    int64             `json:"mapped_bytes" doc:"blocks that hold data; of an inplace volume, what its file takes on the disk"`
	ExclusiveBytes int64             `json:"exclusive_bytes" doc:"held in the pool by this volume alone; of an inplace volume 0"`
	SharedBytes    int64             `json:"shared_bytes" doc:"held together with snapshots or clones"`
	TotalBytes     *int64            `json:"total_bytes,omitempty" doc:"what deleting it with all its snapshots would free; absent in lists, and while clones share that"`
	DependsOn      []string          `json:"depends_on" doc:"what must be there to read it: pool, file:PATH, volume:NAME, backup:ID"`
	FilledFrom     string            `json:"filled_from,omitempty" doc:"backup that it was restored from instantly, as long as not all of it is in the pool"`
	FilledBytes    *int64            `json:"filled_bytes,omitempty" doc:"of that: so much is in the pool, in order"`
	Snapshots      int               `json:"snapshots"`
	Bookmarks      int               `json:"bookmarks"`
	MirroredTo     string            `json:"mirrored_to,omitempty" doc:"the file that is written in step with it"`
	Deleted        bool              `json:"deleted,omitempty" doc:"it is listed for its physical snapshots alone"`
	Parent         string            `json:"parent" doc:"newest snapshot of this volume that its content descends from; may be empty"`
	Origin         string            `json:"origin" doc:"snapshot it was cloned from, as it was called then; may be empty"`
	CreatedAt      Time              `json:"created_at"`
	Clients        []Client          `json:"clients" doc:"NBD connections to the volume"`
	PauseMS        *float64          `json:"pause_ms,omitempty" doc:"answer to a cloning: how long writers waited"`
	DurableMS      *float64          `json:"durable_ms,omitempty" doc:"answer to a cloning: until the record was on disk, pause included"`
}

// The layouts of volumes.
const (
	LayoutRedirect = "redirect"
	LayoutInplace  = "inplace"
)

// Client is an NBD connection.
type Client struct {
	Export      string `json:"export"`
	Address     string `json:"address"`
	ConnectedAt Time   `json:"connected_at"`
	Written     bool   `json:"written" doc:"whether it has written"`
}

// Step is one of the five steps of a snapshot's creation.
type Step struct {
	Name string  `json:"name" enum:"initiated,quiesced,flushed,created,released"`
	MS   float64 `json:"ms"`
}

// The techniques of snapshots.
const (
	TechniqueRow     = "row"
	TechniqueCOW     = "cow"
	TechniqueCOWCopy = "cow-copy"
	TechniqueClone   = "clone"
	TechniqueMirror  = "mirror"
)

// What happens if the pool has no room for what a cow snapshot needs kept.
const (
	OnFullFailWrites   = "fail-writes"
	OnFullDropSnapshot = "drop-snapshot"
)

// Snapshot is the state of a volume at one instant.
type Snapshot struct {
	ID             string            `json:"id"`
	Volume         string            `json:"volume"`
	VolumeID       string            `json:"volume_id"`
	Name           string            `json:"name"`
	Size           int64             `json:"size" doc:"logical size in bytes"`
	CreatedAt      Time              `json:"created_at"`
	Technique      string            `json:"technique" enum:"row,cow,cow-copy,clone,mirror"`
	Class          string            `json:"class" enum:"logical,physical"`
	Content        string            `json:"content" enum:"full,incremental"`
	Consistency    string            `json:"consistency" enum:"crash,application"`
	DependsOn      []string          `json:"depends_on" doc:"what must be there to read it: pool, volume:NAME, file:PATH"`
	File           string            `json:"file,omitempty" doc:"raw file or block device that has its content, or is to have it"`
	Copied         *float64          `json:"copied,omitempty" doc:"while it is copied: how much of it is, from 0 to 1"`
	CopyJob        string            `json:"copy_job,omitempty" doc:"while it is copied: the job that does that; a clone is listed when that is done"`
	OnFull         string            `json:"on_full,omitempty" enum:"fail-writes,drop-snapshot" doc:"of technique cow: what happens if the pool has no room for what it needs kept"`
	Suspect        bool              `json:"suspect,omitempty" doc:"somebody else has changed the file it has blocks in; these are not served"`
	Protected      bool              `json:"protected"`
	ExpiresAt      *Time             `json:"expires_at" required:"true" doc:"null: never"`
	Automatic      bool              `json:"automatic" doc:"made by a rollback"`
	Labels         map[string]string `json:"labels"`
	Parent         string            `json:"parent" doc:"snapshot it descends from, VOLUME@NAME; may be empty"`
	Head           bool              `json:"head" doc:"whether the volume descends directly from it"`
	Clones         []string          `json:"clones" doc:"volumes that descend directly from it"`
	GroupID        string            `json:"group_id" doc:"same for all snapshots of one instant"`
	MappedBytes    int64             `json:"mapped_bytes"`
	ExclusiveBytes int64             `json:"exclusive_bytes" doc:"what deleting it would leave to nobody"`
	SharedBytes    int64             `json:"shared_bytes"`
	Steps          []Step            `json:"steps" doc:"empty where the daemon was started after the snapshot was made"`
	PauseMS        *float64          `json:"pause_ms,omitempty" doc:"how long writers waited"`
	DurableMS      *float64          `json:"durable_ms,omitempty" doc:"until the record was on disk, pause included"`
}

// Ref is the snapshot's full name, VOLUME@NAME.
func (s Snapshot) Ref() string { return s.Volume + "@" + s.Name }

// Bookmark is a point in time that keeps a snapshot's map and no data: enough to say what changed since.
type Bookmark struct {
	ID                string `json:"id"`
	Volume            string `json:"volume"`
	VolumeID          string `json:"volume_id"`
	Name              string `json:"name"`
	Size              int64  `json:"size" doc:"of the volume at that point, in bytes"`
	CreatedAt         Time   `json:"created_at"`
	Snapshot          string `json:"snapshot" doc:"snapshot it was made of, VOLUME@NAME; it may be gone"`
	SnapshotID        string `json:"snapshot_id"`
	SnapshotCreatedAt Time   `json:"snapshot_created_at" doc:"the point in time that the bookmark stands for"`
}

// Ref is the bookmark's full name, VOLUME#NAME.
func (b Bookmark) Ref() string { return b.Volume + "#" + b.Name }

// Extent is a run of bytes.
type Extent struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
}

// Rollback says what a rollback did.
type Rollback struct {
	Volume    string   `json:"volume"`
	Snapshot  string   `json:"snapshot" doc:"what the volume now holds"`
	Kept      Snapshot `json:"kept" doc:"the present as it was; roll back to it to undo"`
	PauseMS   float64  `json:"pause_ms" doc:"how long writers waited"`
	DurableMS float64  `json:"durable_ms" doc:"until the record was on disk, pause included"`
	CopyBack  *Job     `json:"copy_back,omitempty" doc:"of an inplace volume: the job that copies the snapshot back into its file, which clients need not wait for"`

	Ranges       []Extent `json:"ranges,omitempty" doc:"where only these were rolled back: in order and united"`
	PutBackBytes int64    `json:"put_back_bytes,omitempty" doc:"of them, or of all that a copy holds: what differed and was put back"`
}

// JobState is where a job stands.
type JobState string

// The states of a job; the last three are final.
const (
	JobQueued    JobState = "queued"
	JobRunning   JobState = "running"
	JobPaused    JobState = "paused"
	JobDone      JobState = "done"
	JobFailed    JobState = "failed"
	JobCancelled JobState = "cancelled"
)

// Final tells whether a job in this state never changes again.
func (s JobState) Final() bool { return s == JobDone || s == JobFailed || s == JobCancelled }

// The kinds of jobs.
const (
	JobImport = "import"
	JobExport = "export"
	JobCheck  = "check"
	// JobRepair mends the pool.
	JobRepair = "repair"
	// JobReclaim gives space back.
	JobReclaim = "reclaim"
	// JobRelayout rewrites a volume in order.
	JobRelayout = "relayout"
	// JobCopyBack copies a rollback back into the file of an inplace volume. It goes on when the daemon starts again.
	JobCopyBack = "copy-back"
	// JobCopy makes a copy of a snapshot. It goes on when the daemon starts again.
	JobCopy = "copy"
	// JobRollback puts ranges of a snapshot back, or a copy.
	JobRollback = "rollback"
	// JobMirror copies to a volume's mirror what differs. It goes on when the daemon starts again.
	JobMirror = "mirror"
)

// Job is something long that the daemon does. It ends with the daemon.
type Job struct {
	ID         string   `json:"id"`
	Kind       string   `json:"kind" enum:"import,export,check,repair,reclaim,relayout,copy-back,copy,rollback,mirror,backup,restore,verify,fill,repo-check,repo-prune,repo-copy"`
	Object     string   `json:"object" doc:"what it works on"`
	State      JobState `json:"state" enum:"queued,running,paused,done,failed,cancelled"`
	Progress   float64  `json:"progress" minimum:"0" maximum:"1"`
	Reason     string   `json:"reason" doc:"why it failed or was cancelled; may be empty"`
	CreatedAt  Time     `json:"created_at"`
	StartedAt  *Time    `json:"started_at" required:"true"`
	FinishedAt *Time    `json:"finished_at" required:"true"`
	Error      *Error   `json:"error,omitempty"`
	Result     *Result  `json:"result,omitempty"`
}

// Result is what a job came to; the field of its kind is set.
type Result struct {
	Volume   *Volume   `json:"volume,omitempty" doc:"of an import, or of a copy-back"`
	Snapshot *Snapshot `json:"snapshot,omitempty" doc:"of a copy"`
	Export   *Export   `json:"export,omitempty"`
	Check    *Check    `json:"check,omitempty"`
	Reclaim  *Reclaim  `json:"reclaim,omitempty"`
	Relayout *Relayout `json:"relayout,omitempty"`
	Rollback *Rollback `json:"rollback,omitempty"`
	Mirror   *Mirror   `json:"mirror,omitempty"`

	Backups   []Backup             `json:"backups,omitempty" doc:"of a backup, in the order of the volumes"`
	Restore   *BackupRestore       `json:"restore,omitempty"`
	Verified  []BackupVerification `json:"verified,omitempty"`
	RepoCheck *RepositoryCheck     `json:"repo_check,omitempty"`
	RepoPrune *RepositoryPrune     `json:"repo_prune,omitempty"`
	RepoCopy  *RepositoryCopy      `json:"repo_copy,omitempty"`

	Warnings []string `json:"warnings,omitempty"`
}

// Reclaim is what giving space back came to.
type Reclaim struct {
	FreedBytes  int64 `json:"freed_bytes" doc:"that the log became smaller by"`
	CopiedBytes int64 `json:"copied_bytes" doc:"written to make that possible"`
	Removed     int   `json:"segments_removed"`
	Rewritten   int   `json:"segments_rewritten"`
	Packed      int   `json:"segments_packed" doc:"of which little was left, which share files now"`
	Punched     int   `json:"segments_punched" doc:"in which holes were made"`
	LiveBytes   int64 `json:"live_bytes" doc:"what volumes and snapshots hold"`
}

// Relayout is what rewriting a volume in order came to.
type Relayout struct {
	Volume       string `json:"volume"`
	MovedBytes   int64  `json:"moved_bytes"`
	OrderedBytes int64  `json:"ordered_bytes" doc:"lay in order already"`
	SharedBytes  int64  `json:"shared_bytes" doc:"held together with snapshots or clones, and left where they are"`
	ChangedBytes int64  `json:"changed_bytes" doc:"written by clients just when they were to be moved"`
	DamagedBytes int64  `json:"damaged_bytes" doc:"cannot be read, and stay where they are"`
}

// Export is a written image file.
type Export struct {
	Source    string `json:"source"`
	File      string `json:"file"`
	Format    string `json:"format" enum:"raw,qcow2"`
	Size      int64  `json:"size" doc:"logical size in bytes"`
	DataBytes int64  `json:"data_bytes" doc:"bytes that were not holes"`
}

// Check is what verifying a pool found.
type Check struct {
	Blocks   int64    `json:"blocks" doc:"data blocks verified"`
	MapNodes int64    `json:"map_nodes"`
	Bytes    int64    `json:"bytes"`
	Damage   []Damage `json:"damage"`
	Leaks    []Leak   `json:"leaks" doc:"what takes space and belongs to nothing; no damage"`

	LiveBytes      int64 `json:"live_bytes" doc:"what volumes and snapshots refer to, data and maps, counted"`
	EstimatedBytes int64 `json:"estimated_live_bytes" doc:"what the pool took that to be"`
	LogBytes       int64 `json:"log_bytes" doc:"in segment files"`
	GarbageBytes   int64 `json:"garbage_bytes" doc:"of these, what nothing refers to and reclaim may give back"`

	Refused string   `json:"refused,omitempty" doc:"why the pool cannot be opened as it is"`
	Cut     *Cut     `json:"cut,omitempty" doc:"flushed batches of the log that a repair has to give up, or has given up"`
	Repairs []string `json:"repairs,omitempty" doc:"what a repair has done"`
	Left    []string `json:"left,omitempty" doc:"what a repair could not do, and why"`
}

// Leak is space that belongs to nothing.
type Leak struct {
	Object  string `json:"object" doc:"a file, or the log"`
	Bytes   int64  `json:"bytes"`
	Message string `json:"message"`
}

// Cut tells which batches of the log are given up, because one before them cannot be read.
type Cut struct {
	FirstSeq   uint64       `json:"first_seq"`
	LastSeq    uint64       `json:"last_seq"`
	Unreadable uint64       `json:"unreadable" doc:"batches of which nobody can say what was in them"`
	Writes     []LostWrites `json:"writes"`
	Operations []string     `json:"operations" doc:"on volumes and snapshots"`
	Reason     string       `json:"reason"`
}

// LostWrites tells what was written to a volume in batches that are given up.
type LostWrites struct {
	Volume   string `json:"volume"`
	FirstSeq uint64 `json:"first_seq"`
	LastSeq  uint64 `json:"last_seq"`
	Bytes    int64  `json:"bytes" doc:"written or discarded"`
}

// Damage is one place that cannot be read as it was written.
type Damage struct {
	Object   string `json:"object" doc:"VOLUME, VOLUME@SNAP or a part of the pool"`
	Volume   string `json:"volume" doc:"empty for a part of the pool"`
	Snapshot string `json:"snapshot" doc:"empty for the volume itself"`
	Offset   *int64 `json:"offset" required:"true" doc:"within the object; null where it does not apply"`
	Length   int64  `json:"length"`
	Lost     bool   `json:"lost" doc:"it is recorded as lost: nothing more can be made of it"`
	Message  string `json:"message"`
}

// Pool describes the pool.
type Pool struct {
	ID             string `json:"id"`
	Path           string `json:"path"`
	FormatVersion  int    `json:"format_version"`
	CreatedAt      Time   `json:"created_at"`
	Volumes        int    `json:"volumes"`
	Snapshots      int    `json:"snapshots"`
	Bookmarks      int    `json:"bookmarks"`
	HiddenStates   int    `json:"hidden_states" doc:"deleted snapshots that several descendants still share"`
	PhysicalBytes  int64  `json:"physical_bytes" doc:"allocated on disk"`
	LiveBytes      int64  `json:"live_bytes" doc:"what volumes and snapshots hold, with their maps; an estimate between two reclaim cycles"`
	ReclaimedBytes int64  `json:"reclaimed_bytes" doc:"given back since the daemon started"`
	SpareBytes     int64  `json:"spare_bytes" doc:"of physical_bytes: files kept to be written again while somebody writes"`
	CopiedBytes    int64  `json:"copied_bytes" doc:"written since the daemon started to be able to give space back"`
	LogBytes       int64  `json:"log_bytes" doc:"written to the log since the daemon started"`
	ClientBytes    int64  `json:"client_bytes" doc:"written by clients since the daemon started"`
	Segments       int    `json:"segments"`
	Checkpoints    uint64 `json:"checkpoints"`
	DurableSeq     uint64 `json:"durable_seq"`
	LastSeq        uint64 `json:"last_seq"`
	MapCacheBytes  int64  `json:"map_cache_bytes" doc:"memory that cached parts of block maps take now"`
	ReadOnlyReason string `json:"read_only_reason" doc:"why writes are stopped; empty while they are not"`
	FreeBytes      int64  `json:"free_bytes" doc:"free on the file system that holds the pool"`

	MapBytes         int64    `json:"map_bytes" doc:"of live_bytes, what block maps take, by the last reclaim cycle; 0 before the first"`
	ReclaimableBytes int64    `json:"reclaimable_bytes" doc:"what is on disk and not live, without the reserve: most of it is given back in time"`
	QuotaBytes       *int64   `json:"quota_bytes" required:"true" doc:"that the pool may take; null: as much as the file system has"`
	ReserveBytes     *int64   `json:"reserve_bytes" required:"true" doc:"of the quota, kept for deletions and discards; null without a quota"`
	RoomBytes        int64    `json:"room_bytes" doc:"that clients may still write before anything is given back"`
	FullPercent      int      `json:"full_percent" doc:"used, of the quota or of the file system, whichever is nearer to full"`
	Holders          *Holders `json:"holders,omitempty" doc:"where asked for: who holds the most"`
	Stalls           Stalls   `json:"checkpoint_stalls" doc:"for how long checkpoints kept from writers what they need, since the daemon started"`
}

// Holders are those that hold the most, the largest first.
type Holders struct {
	Volumes     []Holder `json:"volumes"`
	Snapshots   []Holder `json:"snapshots"`
	HiddenBytes int64    `json:"hidden_bytes" doc:"of deleted snapshots, what several descendants share"`
}

// Holder is a volume or snapshot that holds data.
type Holder struct {
	Name           string `json:"name" doc:"VOLUME or VOLUME@NAME"`
	ExclusiveBytes int64  `json:"exclusive_bytes" doc:"what deleting it alone would free; of a volume, its present content"`
	TotalBytes     *int64 `json:"total_bytes,omitempty" doc:"of a volume: what deleting it with all its snapshots would free; absent while clones share that"`
	Snapshots      *int   `json:"snapshots,omitempty" doc:"of a volume"`
}

// ChangePool changes what bounds the pool.
type ChangePool struct {
	QuotaBytes   int64 `json:"quota_bytes" minimum:"0" doc:"0: none"`
	ReserveBytes int64 `json:"reserve_bytes,omitempty" minimum:"0" doc:"0: a default"`
}

// Status is everything at a glance.
type Status struct {
	Version   string   `json:"version"`
	PID       int      `json:"pid"`
	StartedAt Time     `json:"started_at"`
	Data      string   `json:"data"`
	NBD       []string `json:"nbd" doc:"addresses that NBD is served on"`
	Pool      Pool     `json:"pool"`
	Clients   []Client `json:"clients"`
	Jobs      []Job    `json:"jobs" doc:"those that are not finished"`
	Problems  []string `json:"problems" doc:"broken promises: writes stopped, damage found, hardly any room left"`
	Warnings  []string `json:"warnings" doc:"what deserves a look"`
	Events    []Event  `json:"events" doc:"the latest, newest last"`
}

// Event is something an operator wants to know.
type Event struct {
	Time    Time   `json:"time"`
	Kind    string `json:"kind"`
	Object  string `json:"object"`
	Message string `json:"message"`
}

// ParseRef splits VOLUME@NAME. ok is false unless there is exactly one @ with something on both sides.
func ParseRef(ref string) (volume, name string, ok bool) {
	volume, name, ok = strings.Cut(ref, "@")
	return volume, name, ok && volume != "" && name != "" && !strings.Contains(name, "@")
}

// ParseBookmark splits VOLUME#NAME. ok is false unless there is exactly one # with something on both sides.
func ParseBookmark(ref string) (volume, name string, ok bool) {
	volume, name, ok = strings.Cut(ref, "#")
	return volume, name, ok && volume != "" && name != "" && !strings.ContainsAny(name, "#@")
}

// Code says what kind of error it is; scripts see it as the exit code.
type Code string

// The codes of errors.
const (
	CodeFailed   Code = "failed"    // it went wrong
	CodeUsage    Code = "usage"     // an argument that can never be right
	CodeNotFound Code = "not_found" // there is no such thing
	CodeRefused  Code = "refused"   // in use, protected, not empty, name taken
	CodeDamaged  Code = "damaged"   // stored data is not what was written
)

// ExitCode is the exit status of a command that ended with this code.
func (c Code) ExitCode() int {
	switch c {
	case CodeUsage:
		return 2
	case CodeNotFound:
		return 3
	case CodeRefused:
		return 4
	case CodeDamaged:
		return 5
	default:
		return 1
	}
}

// ErrorTrailer is the trailer that has an Error, as JSON, if an answer was broken off.
const ErrorTrailer = "Varve-Error"

// Error is an error as the API gives it.
type Error struct {
	Code    Code   `json:"code" enum:"failed,usage,not_found,refused,damaged"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty" doc:"what to do about it"`
}

// Error implements error.
func (e *Error) Error() string { return e.Message }

// Errorf makes an Error without a hint.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// WithHint returns a copy of e that says what to do about it.
func (e *Error) WithHint(format string, args ...any) *Error {
	c := *e
	c.Hint = fmt.Sprintf(format, args...)
	return &c
}
