package contract

// CreateVolume asks for a new volume: empty, or a clone of a snapshot.
type CreateVolume struct {
	Name string `json:"name"`
	Size int64  `json:"size,omitempty" doc:"bytes; for a clone 0 means the snapshot's"`
	From string `json:"from,omitempty" doc:"snapshot to clone, VOLUME@NAME"`
	// Inplace has the volume lie in a file of its own.
	Inplace string            `json:"inplace,omitempty" doc:"absolute path, on the daemon's machine, of a new raw file that the volume is to lie in"`
	Labels  map[string]string `json:"labels,omitempty"`
}

// AdoptVolume asks to make an inplace volume of what there is already. Nothing of it is changed.
type AdoptVolume struct {
	Name   string            `json:"name"`
	Path   string            `json:"path" doc:"absolute path of a raw file or block device on the daemon's machine"`
	Labels map[string]string `json:"labels,omitempty"`
	Force  bool              `json:"force,omitempty" doc:"take it as a raw disk, even if it looks like an image of another format"`
}

// Import asks for a new volume with the content of an image file.
type Import struct {
	Name string `json:"name"`
	File string `json:"file,omitempty" doc:"absolute path of a raw or qcow2 image on the daemon's machine"`
	// Snapshot is VOLUME@NAME, whose content is copied, instead of a file.
	Snapshot string            `json:"snapshot,omitempty" doc:"instead of a file: VOLUME@NAME, whose content is copied"`
	Format   string            `json:"format,omitempty" enum:"raw,qcow2" doc:"of the image; without, it is detected"`
	Size     int64             `json:"size,omitempty" doc:"bytes; 0 means the image's"`
	Labels   map[string]string `json:"labels,omitempty"`
}

// ExportFile asks for a volume or a snapshot as an image file.
type ExportFile struct {
	Source string `json:"source" doc:"VOLUME or VOLUME@NAME"`
	File   string `json:"file" doc:"absolute path on the daemon's machine"`
	Format string `json:"format,omitempty" enum:"raw,qcow2" default:"raw"`
	Force  bool   `json:"force,omitempty" doc:"replace an existing file"`
}

// ChangeVolume renames, labels and resizes: fields that are absent change nothing.
type ChangeVolume struct {
	Name   string            `json:"name,omitempty"`
	Labels map[string]string `json:"labels,omitempty" doc:"an empty value removes the label"`
	Size   *int64            `json:"size,omitempty" doc:"bytes"`
	Force  bool              `json:"force,omitempty" doc:"may shrink, disconnecting clients that have written"`
}

// CreateSnapshot asks for a snapshot of each volume, all at one instant, all or none.
type CreateSnapshot struct {
	Volumes []string          `json:"volumes" minItems:"1"`
	Name    string            `json:"name"`
	Labels  map[string]string `json:"labels,omitempty"`
	KeepFor float64           `json:"keep_for_seconds,omitempty" minimum:"0" doc:"delete it after this time; 0 means never"`
	// Technique is one for all volumes; empty: that of each one's layout.
	Technique string `json:"technique,omitempty" enum:"row,cow,cow-copy,clone,mirror" doc:"row of redirect volumes, cow of inplace ones, which are the defaults; of both, cow-copy and clone"`
	To        string `json:"to,omitempty" doc:"of techniques that copy: absolute path, on the daemon's machine, of the raw file or block device that takes the content; without, the pool does"`
	Force     bool   `json:"force,omitempty" doc:"replace an existing file, or overwrite a block device"`
	OnFull    string `json:"on_full,omitempty" enum:"fail-writes,drop-snapshot" default:"fail-writes" doc:"of technique cow: what happens if the pool has no room for what it needs kept"`
}

// CreateBookmark asks for a bookmark of a snapshot.
type CreateBookmark struct {
	Snapshot string `json:"snapshot" doc:"VOLUME@NAME"`
	Name     string `json:"name"`
}

// DeleteSnapshots asks to delete all of them or none.
type DeleteSnapshots struct {
	Snapshots []string `json:"snapshots" minItems:"1" doc:"VOLUME@NAME each"`
}

// ChangeSnapshot protects or unprotects.
type ChangeSnapshot struct {
	Protected bool `json:"protected"`
}

// RollBack asks to make a snapshot the volume's content.
type RollBack struct {
	Force bool `json:"force,omitempty" doc:"disconnect clients that have written"`
}

// RollBackRanges asks to make ranges of a volume what they are in a snapshot, or all of it what a copy holds.
type RollBackRanges struct {
	Ranges []Extent `json:"ranges,omitempty" doc:"whole blocks of 4096 bytes, but where the volume or the snapshot ends; they may overlap; none: all of it, if the snapshot is a copy"`
	Force  bool     `json:"force,omitempty" doc:"disconnect clients that have written"`
}
