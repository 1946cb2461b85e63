package contract

// Mirror is a volume's leg: a file that is written in step with it.
type Mirror struct {
	Volume         string  `json:"volume"`
	VolumeID       string  `json:"volume_id"`
	File           string  `json:"file" doc:"the leg"`
	State          string  `json:"state" enum:"syncing,in_sync,split,failed" doc:"syncing: something has to be copied; split: it is being split off"`
	Progress       float64 `json:"progress" minimum:"0" maximum:"1" doc:"how much is the same on both sides"`
	DifferingBytes int64   `json:"differing_bytes" doc:"that have to be copied"`
	Reason         string  `json:"reason,omitempty" doc:"why it has failed"`
	Job            string  `json:"job,omitempty" doc:"id of the job that copies what differs"`
}

// The states of mirrors.
const (
	MirrorSyncing = "syncing"
	MirrorInSync  = "in_sync"
	MirrorSplit   = "split"
	MirrorFailed  = "failed"
)

// AttachMirror asks to write a volume to a file as well.
type AttachMirror struct {
	To    string `json:"to" doc:"absolute path of a raw file or block device on the daemon's machine; made if it does not exist"`
	Force bool   `json:"force,omitempty" doc:"overwrite what an existing file holds"`
}

// SplitMirror asks to make a copy of a volume in its leg's file, which is detached.
type SplitMirror struct {
	Name    string            `json:"name" doc:"of the snapshot"`
	Labels  map[string]string `json:"labels,omitempty"`
	KeepFor float64           `json:"keep_for_seconds,omitempty" minimum:"0" doc:"delete it after this time; 0 means never"`
	Next    string            `json:"next,omitempty" doc:"absolute path of the file that the volume is mirrored to from then on"`
	Force   bool              `json:"force,omitempty" doc:"overwrite what an existing next file holds"`
}

// Split is what splitting a mirror came to.
type Split struct {
	Snapshot Snapshot `json:"snapshot"`
	Next     *Mirror  `json:"next,omitempty"`
}
