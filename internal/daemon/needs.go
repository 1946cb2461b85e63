package daemon

import (
	"varve/internal/contract"
	"varve/internal/pool"
)

// What a volume or snapshot depends on is what must be there for all of it to be read, in four kinds of words:
//
//	pool         this pool
//	file:PATH    a file or device that the pool does not own
//	volume:NAME  that volume with all that it depends on itself
//	backup:ID    a backup in a repository, until all of it is in the pool
//
// So an inplace volume depends on its file alone, but while a rollback is being copied back, and for the second that small writes need to come into it; its snapshots, and the
// clones of these, on the pool for what was overwritten and on the volume for the rest.

func layout(info pool.VolumeInfo) string {
	if info.Path != "" {
		return contract.LayoutInplace
	}
	return contract.LayoutRedirect
}

func volumeNeeds(info pool.VolumeInfo) []string {
	switch {
	case info.Deleted:
		return []string{}
	case info.Path != "" && (info.CopyingBack || info.Behind):
		return []string{"pool", "file:" + info.Path}
	case info.Path != "":
		return []string{"file:" + info.Path}
	case info.Base != "":
		return []string{"pool", "volume:" + info.Base}
	}
	return append([]string{"pool"}, baseNeeds(info.FilledFrom)...)
}

// baseNeeds is the backup that is needed as long as not all of it is in the pool.
func baseNeeds(f *pool.FilledFrom) []string {
	if f == nil {
		return nil
	}
	base, err := parseBase(f.Ref)
	if err != nil {
		return []string{"backup:?"}
	}
	return []string{"backup:" + base.backup}
}

// techniqueOf is cow for the snapshots of inplace volumes. Those of a clone of one have blocks in the file as well, and still are row.
func techniqueOf(info pool.SnapshotInfo) string {
	if info.Copy != nil {
		switch info.Copy.Technique {
		case pool.CowCopy:
			return contract.TechniqueCOWCopy
		case pool.Clone:
			return contract.TechniqueClone
		case pool.Mirror:
			return contract.TechniqueMirror
		}
	}
	if info.Base == info.Volume {
		return contract.TechniqueCOW
	}
	return contract.TechniqueRow
}

// isCopy tells whether a snapshot needs nothing but itself.
func isCopy(info pool.SnapshotInfo) bool { return info.Copy != nil && info.Copy.Finished }

func snapshotNeeds(info pool.SnapshotInfo) []string {
	if isCopy(info) {
		if info.Copy.Path != "" {
			return []string{"file:" + info.Copy.Path}
		}
		return []string{"pool"}
	}
	if info.Base != "" {
		return []string{"pool", "volume:" + info.Base}
	}
	return append([]string{"pool"}, baseNeeds(info.FilledFrom)...)
}

// onFull is what happens if there is no room for what a snapshot needs kept; of row snapshots nothing is kept.
func onFull(info pool.SnapshotInfo) string {
	switch {
	case isCopy(info) || info.Base != info.Volume:
		return ""
	case info.DropWhenFull:
		return contract.OnFullDropSnapshot
	}
	return contract.OnFullFailWrites
}
