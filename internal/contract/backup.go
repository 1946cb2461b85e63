package contract

// Backup is a volume at one instant, in a repository.
type Backup struct {
	ID          string  `json:"id" doc:"16 hexadecimal digits; the same in copies"`
	Repo        string  `json:"repo" doc:"name of the repository, its URL without a daemon"`
	Volume      string  `json:"volume" doc:"what it was called then"`
	VolumeID    string  `json:"volume_id"`
	CreatedAt   Time    `json:"created_at" doc:"the instant it holds"`
	Type        string  `json:"type" enum:"full,incremental,differential"`
	BaseID      string  `json:"base_id" doc:"backup it was made from; empty for a full. Not needed to restore it"`
	FullID      string  `json:"full_id" doc:"the full it belongs to, itself for a full"`
	Reason      string  `json:"reason" doc:"why this type"`
	Consistency string  `json:"consistency" enum:"application,filesystem,crash,none"`
	Size        int64   `json:"size" doc:"of the volume, in bytes"`
	ReadBytes   int64   `json:"read_bytes" doc:"from the source"`
	StoredBytes int64   `json:"stored_bytes" doc:"put in the repository; of a group: for all its backups"`
	FreezeMS    float64 `json:"freeze_ms" doc:"how long writers waited"`
	Seconds     float64 `json:"seconds" doc:"from beginning to end"`

	DependsOn []string    `json:"depends_on" doc:"ids of what would be needed were its map not complete: the base of an incremental, the full of a differential"`
	State     BackupState `json:"state" enum:"good,doubtful,damaged"`
	GroupID   string      `json:"group_id" doc:"same for all backups of one instant"`
	Group     []string    `json:"group" doc:"ids of the backups of the same instant, without this; empty if it is alone"`

	Source   string            `json:"source" doc:"what was read, as the user named it"`
	PointID  string            `json:"point_id,omitempty" doc:"of the snapshot that was copied; absent for foreign sources"`
	PolicyID string            `json:"policy_id,omitempty"`
	Labels   map[string]string `json:"labels"`
	Host     string            `json:"host" doc:"where it was made"`
	Program  string            `json:"program"`

	MappedBytes  int64 `json:"mapped_bytes" doc:"of the volume, without holes"`
	ChangedBytes int64 `json:"changed_bytes" doc:"that are not as in the base"`
	Sampled      int64 `json:"sampled_blocks" doc:"blocks that should not have changed and were compared"`
	Mismatched   int64 `json:"mismatched_blocks" doc:"of them, those that had: then everything was compared"`

	// Of a group: for all its backups.
	NewBytes        int64  `json:"new_bytes" doc:"stored, before compression; this and what follows of a group: for all its backups"`
	DuplicateBytes  int64  `json:"duplicate_bytes" doc:"found in the repository already"`
	CompressedBytes int64  `json:"compressed_bytes" doc:"what the new bytes became"`
	MapBytes        int64  `json:"map_bytes"`
	ParityBytes     int64  `json:"parity_bytes"`
	Objects         int64  `json:"objects" doc:"put"`
	Requests        int64  `json:"requests" doc:"made of the store"`
	Stages          []Step `json:"stages" doc:"what the time was spent on"`
	Freeze          []Step `json:"freeze" doc:"steps of creating the snapshot"`

	StartedAt  Time  `json:"started_at"`
	FinishedAt Time  `json:"finished_at"`
	StoredAt   *Time `json:"stored_at" required:"true" doc:"by the store's clock"`
}

// BackupState is what is known of a backup.
type BackupState string

// The states of a backup.
const (
	BackupGood     BackupState = "good"
	BackupDoubtful BackupState = "doubtful" // its session had been given up when it ended: prune decides whether it is whole
	BackupDamaged  BackupState = "damaged"  // something of it is known to be lost
)

// The types of backups, and what else can be asked for.
const (
	BackupAuto         = "auto"
	BackupFull         = "full"
	BackupIncremental  = "incremental"
	BackupDifferential = "differential"
)

// ForeignSource is a disk that is not a volume of the pool.
type ForeignSource struct {
	Source            string `json:"source" doc:"absolute path of a raw or qcow2 file or of a block device, an nbd:// or an nbd+unix:// URI"`
	As                string `json:"as" doc:"what it is called in the repository: backups under one name are of one volume"`
	Format            string `json:"format,omitempty" enum:"raw,qcow2" doc:"of a file; without, it is detected"`
	Bitmap            string `json:"bitmap,omitempty" doc:"of an NBD export: name of the dirty bitmap (qemu:dirty-bitmap:NAME) that tells what changed"`
	Since             string `json:"since,omitempty" doc:"id of the backup since which the bitmap does"`
	AllowInconsistent bool   `json:"allow_inconsistent,omitempty" doc:"also if somebody may be writing to it"`
}

// CreateBackup asks for a backup of volumes, all at one instant and as one, or of a foreign source. Its result lists the backups in the order
// of the volumes.
type CreateBackup struct {
	Volumes  []string          `json:"volumes,omitempty"`
	Foreign  *ForeignSource    `json:"foreign,omitempty" doc:"instead of volumes"`
	Repo     string            `json:"repo" doc:"name of the repository"`
	Type     string            `json:"type,omitempty" enum:"auto,full,incremental,differential" default:"auto"`
	Limit    int64             `json:"limit_bytes_per_second,omitempty" minimum:"0" doc:"that go to the store; 0: no limit"`
	LockDays int               `json:"lock_days,omitempty" minimum:"0" doc:"retention that all of it is put under, in stores that have object lock"`
	Labels   map[string]string `json:"labels,omitempty"`
	PolicyID string            `json:"policy_id,omitempty"`
}

// VerifyBackups asks to read backups as a restore does, into nothing.
type VerifyBackups struct {
	Repo    string   `json:"repo,omitempty" doc:"name of the repository; without, they are looked for in all"`
	Backups []string `json:"backups" minItems:"1" doc:"ids, or beginnings of them"`
	Limit   int64    `json:"limit_bytes_per_second,omitempty" minimum:"0" doc:"that come from the store; 0: no limit"`
}

// BackupVerification is what reading a backup found.
type BackupVerification struct {
	Backup   Backup   `json:"backup"`
	Bytes    int64    `json:"bytes" doc:"that were read and are right"`
	Lost     []Extent `json:"lost" doc:"that cannot be read, in order"`
	Messages []string `json:"messages" doc:"why"`
	Whole    bool     `json:"whole,omitempty" doc:"nothing of it can be read"`
	Seconds  float64  `json:"seconds"`
}

// OK tells that nothing is lost.
func (v *BackupVerification) OK() bool { return len(v.Lost) == 0 && len(v.Messages) == 0 && !v.Whole }

// DeleteBackups asks to delete all of them or none.
type DeleteBackups struct {
	Repo    string   `json:"repo,omitempty" doc:"name of the repository; needed where more than one has a backup of that id"`
	Backups []string `json:"backups" minItems:"1" doc:"ids, or beginnings of them"`
}

// RestoreBackup asks to bring a backup back; one of ToVolume, ToFile and InPlace is needed.
type RestoreBackup struct {
	Repo        string `json:"repo,omitempty" doc:"name of the repository; without, it is looked for in all"`
	Backup      string `json:"backup" doc:"id, or the beginning of it"`
	ToVolume    string `json:"to_volume,omitempty" doc:"name of a new volume"`
	Instant     bool   `json:"instant,omitempty" doc:"of to_volume: it can be used at once, and fills in the background"`
	ToFile      string `json:"to_file,omitempty" doc:"absolute path of a new file, or of a block device"`
	Format      string `json:"format,omitempty" enum:"raw,qcow2" default:"raw" doc:"of to_file"`
	InPlace     string `json:"in_place,omitempty" doc:"volume that becomes what the backup holds"`
	SkipDamaged bool   `json:"skip_damaged,omitempty" doc:"go on around what is lost: it reads as zeros, and is listed"`
	Limit       int64  `json:"limit_bytes_per_second,omitempty" minimum:"0" doc:"that come from the store; 0: no limit"`
	Force       bool   `json:"force,omitempty" doc:"replace an existing file, overwrite a block device, disconnect clients that have written, restore a backup of another volume in place"`
}

// BackupRestore is what bringing a backup back came to.
type BackupRestore struct {
	Backup       Backup    `json:"backup"`
	Target       string    `json:"target" doc:"the volume, the file or the device"`
	Format       string    `json:"format,omitempty" enum:"raw,qcow2" doc:"of a file"`
	Size         int64     `json:"size" doc:"in bytes"`
	WrittenBytes int64     `json:"written_bytes" doc:"of content"`
	ZeroedBytes  int64     `json:"zeroed_bytes" doc:"that held something else"`
	SameBytes    int64     `json:"same_bytes" doc:"found in the target already"`
	Lost         []Extent  `json:"lost" doc:"that could not be read and are zeros now, in order"`
	Seconds      float64   `json:"seconds"`
	Requests     int64     `json:"requests" doc:"made of the store"`
	Volume       *Volume   `json:"volume,omitempty" doc:"where the target is one"`
	Kept         *Snapshot `json:"kept,omitempty" doc:"of a restore in place: the present as it was; roll back to it to undo"`
	CopyBack     *Job      `json:"copy_back,omitempty" doc:"of a restore in place of an inplace volume: the job that copies it into its file, which clients need not wait for"`
	Fill         *Job      `json:"fill,omitempty" doc:"of an instant restore: the job that fills the volume, which nobody needs to wait for"`
}

// The kinds of jobs on repositories and backups.
const (
	JobBackup          = "backup"
	JobRestore         = "restore"
	JobVerify          = "verify"
	JobFill            = "fill" // an instant restore's, behind the volume's clients
	JobRepositoryCheck = "repo-check"
	JobRepositoryPrune = "repo-prune"
	JobRepositoryCopy  = "repo-copy"
)
