package contract

// Repository is a place where backups live.
type Repository struct {
	ID    string          `json:"id" doc:"UUID; empty where the repository has never been reached"`
	Name  string          `json:"name" doc:"what this daemon calls it; empty without one"`
	URL   string          `json:"url"`
	State RepositoryState `json:"state" enum:"available,absent,locked,failed"`
	// Reason is empty for available.
	Reason string `json:"reason,omitempty" doc:"why it is not available"`

	CreatedAt     *Time  `json:"created_at" required:"true" doc:"null as long as it is not available, like all that follows"`
	FormatVersion int    `json:"format_version"`
	Encryption    string `json:"encryption" enum:"none,aes-256-gcm," doc:"of all that is stored"`
	Dedup         string `json:"dedup" enum:"repository,set," doc:"what shares chunks: all backups, or a full and those that depend on it"`
	ChunkSize     int64  `json:"chunk_size" doc:"largest chunk in bytes"`
	Parity        int    `json:"parity" doc:"percent"`
	GraceSeconds  int64  `json:"grace_seconds" doc:"what nothing needs is kept for so long"`

	Backups      int   `json:"backups"`
	Volumes      int   `json:"volumes" doc:"that have backups"`
	Damaged      int   `json:"damaged" doc:"backups of which something is known to be lost"`
	LastBackupAt *Time `json:"last_backup_at" required:"true" doc:"the instant of the newest; null: none"`

	Access   RepositoryAccess `json:"access"`
	Warnings []string         `json:"warnings" doc:"what deserves a look, as that it lies on the same device as the pool"`

	// Usage and Keys are told by show, not in lists.
	Usage *RepositoryUsage `json:"usage,omitempty" doc:"where one repository was asked for"`
	Keys  []RepositoryKey  `json:"keys,omitempty" doc:"where one repository was asked for: who can open it"`
}

// RepositoryState tells whether a repository can be used.
type RepositoryState string

// The states of a repository.
const (
	RepositoryAvailable RepositoryState = "available"
	RepositoryAbsent    RepositoryState = "absent" // not there now: a disk that is not plugged in, a store that does not answer
	RepositoryLocked    RepositoryState = "locked" // the key does not open it, or is not there
	RepositoryFailed    RepositoryState = "failed" // it is there and cannot be used, or is another one
)

// The dedup scopes and what encrypts.
const (
	DedupRepository  = "repository"
	DedupSet         = "set"
	EncryptionNone   = "none"
	EncryptionAESGCM = "aes-256-gcm"
)

// RepositoryAccess says where a repository lies and where the secrets are that open it, never what they are. File names are absolute, on
// the machine of whoever opens it.
type RepositoryAccess struct {
	URL           string   `json:"url" doc:"/PATH, file:///PATH or s3://HOST[:PORT]/BUCKET[/PREFIX]"`
	PasswordFile  string   `json:"password_file,omitempty" doc:"its first line is the passphrase"`
	IdentityFiles []string `json:"identity_files,omitempty" doc:"age identities"`
	ExportFile    string   `json:"export_file,omitempty" doc:"keys that were exported, instead"`
	S3            *S3      `json:"s3,omitempty"`
}

// S3 says how to reach a bucket. What is not said is taken from the environment.
type S3 struct {
	Region          string `json:"region,omitempty"`
	AccessKey       string `json:"access_key,omitempty" doc:"id of the key"`
	SecretKeyFile   string `json:"secret_key_file,omitempty" doc:"its first line is the secret of that key"`
	CredentialsFile string `json:"credentials_file,omitempty" doc:"like ~/.aws/credentials"`
	Profile         string `json:"profile,omitempty" doc:"in that file"`
	CAFile          string `json:"ca_file,omitempty" doc:"certificates, PEM, that are trusted beside the system's"`
	PlainHTTP       bool   `json:"plain_http,omitempty" doc:"without TLS"`
}

// RepositoryUsage is what a repository holds and what making its backups took.
type RepositoryUsage struct {
	Objects     int64 `json:"objects"`
	StoredBytes int64 `json:"stored_bytes" doc:"of all objects"`
	DataBytes   int64 `json:"data_bytes" doc:"of them, in packs of chunks"`
	MapBytes    int64 `json:"map_bytes" doc:"in packs of map nodes"`
	IndexBytes  int64 `json:"index_bytes"`
	OtherBytes  int64 `json:"other_bytes" doc:"records, keys, marks, the ledger"`

	CondemnedBytes int64 `json:"condemned_bytes" doc:"in packs that a prune will delete when their grace is over"`

	// Sums over the backups that exist.
	LogicalBytes    int64   `json:"logical_bytes" doc:"sum of what the backups hold, each as if it were alone"`
	ReadBytes       int64   `json:"read_bytes" doc:"from the sources"`
	NewBytes        int64   `json:"new_bytes" doc:"stored, before compression"`
	DuplicateBytes  int64   `json:"duplicate_bytes" doc:"found in the repository already"`
	CompressedBytes int64   `json:"compressed_bytes" doc:"what the new bytes became"`
	ParityBytes     int64   `json:"parity_bytes"`
	WrittenBytes    int64   `json:"written_bytes" doc:"sent to the store"`
	Requests        int64   `json:"requests" doc:"made of the store"`
	Seconds         float64 `json:"seconds" doc:"all backups together"`
	Stages          []Step  `json:"stages" doc:"summed up"`
}

// RepositoryKey is one way to open a repository.
type RepositoryKey struct {
	ID        string `json:"id"`
	Kind      string `json:"kind" enum:"passphrase,age"`
	Label     string `json:"label"`
	Recipient string `json:"recipient" doc:"the age recipient; empty where only a slot is known"`
	CreatedAt *Time  `json:"created_at" required:"true"`
}

// The kinds of keys.
const (
	KeyPassphrase = "passphrase"
	KeyAge        = "age"
)

// InitRepository asks to make a repository, and to know it from then on by its name. One of PasswordFile of the access, Recipients
// and NoEncryption is needed. With recipients alone the access needs an identity for the repository to be used.
type InitRepository struct {
	Name         string           `json:"name,omitempty"`
	Access       RepositoryAccess `json:"access"`
	Recipients   []string         `json:"recipients,omitempty" doc:"age recipients that may open it, beside the passphrase of the access"`
	NoEncryption bool             `json:"no_encryption,omitempty"`
	Label        string           `json:"label,omitempty" doc:"of the passphrase"`
	Dedup        string           `json:"dedup,omitempty" enum:"repository,set" default:"repository"`
	ChunkSize    int64            `json:"chunk_size,omitempty" doc:"bytes, a power of two from 64 KiB to 1 MiB; 0: 512 KiB"`
	Parity       *int             `json:"parity,omitempty" minimum:"0" maximum:"100" doc:"percent; 3 if absent, 0: none"`
	GraceSeconds *int64           `json:"grace_seconds,omitempty" minimum:"0" doc:"a day if absent"`
}

// AddRepository asks to know a repository that is there by a name.
type AddRepository struct {
	Name   string           `json:"name"`
	Access RepositoryAccess `json:"access"`
	Force  bool             `json:"force,omitempty" doc:"also if it cannot be reached now"`
}

// ChangeRepository renames: fields that are absent change nothing.
type ChangeRepository struct {
	Name string `json:"name,omitempty"`
}

// CheckRepository asks to look for damage, and to mend what can be. Without anything said, in all of it.
type CheckRepository struct {
	SamplePercent float64 `json:"sample_percent,omitempty" minimum:"0" maximum:"100" doc:"of the packs, chosen at random; 0: all"`
	BudgetSeconds float64 `json:"time_budget_seconds,omitempty" minimum:"0" doc:"as many as fit in this time, least recently verified first; 0: no limit"`
	Sealed        bool    `json:"sealed,omitempty" doc:"without a key: envelopes only"`
}

// RepositoryCheck is what a check found.
type RepositoryCheck struct {
	Repository string          `json:"repository"`
	Sealed     bool            `json:"sealed" doc:"no key was used: who an object harms is not known"`
	Objects    int64           `json:"objects" doc:"that were verified"`
	Bytes      int64           `json:"bytes" doc:"in these"`
	Left       int64           `json:"left" doc:"objects that were not looked at, as a sample or a time budget was asked for"`
	Damage     []DamagedObject `json:"damage" doc:"what was found, also what could be mended"`
	MoreDamage int64           `json:"more_damage" doc:"damaged objects beyond those listed"`
	Harmed     []HarmedBackup  `json:"harmed" doc:"backups that need what is lost"`
	Notes      []string        `json:"notes" doc:"what deserves to be known and is no damage"`
	Seconds    float64         `json:"seconds"`
}

// Lost tells whether anything was found that could not be mended.
func (c *RepositoryCheck) Lost() bool {
	for _, d := range c.Damage {
		if d.State == ObjectLost {
			return true
		}
	}
	return c.MoreDamage > 0 || len(c.Harmed) > 0
}

// The states of a damaged object.
const (
	ObjectMended = "mended"
	ObjectHarmed = "harmed"
	ObjectLost   = "lost"
)

// DamagedObject is an object that is not what was put.
type DamagedObject struct {
	Object  string   `json:"object" doc:"its name"`
	State   string   `json:"state" enum:"mended,harmed,lost" doc:"mended: a sound copy is there; harmed: it can be read by its parity, and no sound copy could be put"`
	Message string   `json:"message"`
	Backups []string `json:"backups" doc:"ids of those that it harms; empty where it was mended or without a key"`
}

// HarmedBackup is a backup of which something is lost.
type HarmedBackup struct {
	ID     string   `json:"id"`
	Volume string   `json:"volume"`
	Ranges []Extent `json:"ranges" doc:"that cannot be read, in order; empty where it cannot be told"`
	Bytes  int64    `json:"bytes" doc:"in these"`
	Whole  bool     `json:"whole,omitempty" doc:"nothing of it can be read"`
}

// PruneRepository asks to give back the space of what nothing needs any more.
type PruneRepository struct {
	DryRun     bool `json:"dry_run,omitempty" doc:"change nothing, tell what would be done"`
	IgnoreLost bool `json:"ignore_lost,omitempty" doc:"go on although parts of backups' maps are lost: what these alone told to be needed is not kept"`
}

// RepositoryPrune is what giving space back came to.
type RepositoryPrune struct {
	Repository     string `json:"repository"`
	DryRun         bool   `json:"dry_run"`
	CondemnedPacks int64  `json:"condemned_packs" doc:"of which nothing, or little, is needed: they go when their grace is over"`
	CondemnedBytes int64  `json:"condemned_bytes"`
	WaitingBytes   int64  `json:"waiting_bytes" doc:"condemned, now or earlier, and not deleted yet"`
	DeletedObjects int64  `json:"deleted_objects"`
	FreedBytes     int64  `json:"freed_bytes"`
	CopiedBytes    int64  `json:"copied_bytes" doc:"moved out of packs that were given up"`
	LockedObjects  int64  `json:"locked_objects" doc:"that the store keeps for a retention: a later prune tries again"`
	LiveBytes      int64  `json:"live_bytes" doc:"that backups need"`
	StoredBytes    int64  `json:"stored_bytes" doc:"of all objects, afterwards"`
	// NextAt is the time when another prune can do more.
	NextAt   *Time    `json:"next_at" required:"true" doc:"when more can be given back; null: nothing waits"`
	Warnings []string `json:"warnings" doc:"what deserves a look"`
	Seconds  float64  `json:"seconds"`
}

// CopyRepository asks to copy backups to another repository.
type CopyRepository struct {
	To       string   `json:"to" doc:"name of the other repository"`
	Backups  []string `json:"backups,omitempty" doc:"ids; none: all"`
	Limit    int64    `json:"limit_bytes_per_second,omitempty" minimum:"0" doc:"each way; 0: none"`
	LockDays int      `json:"lock_days,omitempty" minimum:"0" doc:"retention that what is written is put under"`
}

// RepositoryCopy is what copying came to.
type RepositoryCopy struct {
	From    string   `json:"from"`
	To      string   `json:"to"`
	Copied  []Backup `json:"copied" doc:"as they are there"`
	Present []string `json:"present" doc:"ids of those that were there already"`
}

// AddKey asks to let one more passphrase or age recipient open a repository; one of the two is needed.
type AddKey struct {
	PasswordFile string `json:"password_file,omitempty" doc:"absolute path; its first line is the new passphrase"`
	Recipient    string `json:"recipient,omitempty"`
	Label        string `json:"label,omitempty"`
}

// KeyExport are the keys of a repository as a text to be kept in a safe: who has it can read everything.
type KeyExport struct {
	Repository string `json:"repository" doc:"UUID"`
	Text       string `json:"text"`
}
