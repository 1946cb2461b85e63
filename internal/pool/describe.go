package pool

import (
	"path"
	"slices"
	"syscall"
	"time"

	"varve/internal/block"
	"varve/internal/pool/catalogue"
)

// Volumes lists the volumes by name.
func (p *Pool) Volumes() []VolumeInfo {
	p.mu.RLock()
	defer p.mu.RUnlock()
	var out []VolumeInfo
	for _, v := range p.cat.Volumes() {
		if !v.Incomplete && !v.Internal() {
			out = append(out, p.volumeInfo(v))
		}
	}
	return out
}

// Incomplete lists the volumes that were created Incomplete and not completed, by name.
func (p *Pool) Incomplete() []VolumeInfo {
	p.mu.RLock()
	defer p.mu.RUnlock()
	var out []VolumeInfo
	for _, v := range p.cat.Volumes() {
		if v.Incomplete && !v.Internal() {
			out = append(out, p.volumeInfo(v))
		}
	}
	return out
}

// Volume describes a volume.
func (p *Pool) Volume(name string) (VolumeInfo, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	v, err := findVolume(p.cat, name)
	if err != nil {
		return VolumeInfo{}, err
	}
	return p.volumeInfo(v), nil
}

// volumeInfo describes a volume; mu is held.
func (p *Pool) volumeInfo(v *catalogue.Volume) VolumeInfo {
	head, live := p.cat.Head(v), p.volumes[v.Number]
	live.mu.RLock()
	mapped := live.tree.View().Mapped()
	live.mu.RUnlock()
	counts := p.cat.Count(v)
	info := VolumeInfo{
		ID: v.UUID, Name: v.Name, SizeBytes: head.SizeBytes, Labels: v.Labels, CreatedAt: v.CreatedAt, Origin: v.Origin,
		MappedBytes: int64(mapped) * block.Size, Snapshots: counts.Listed, Making: counts.Copying,
		Bookmarks: p.cat.BookmarkCount(v), Copies: counts.Copies, Deleted: v.Deleted,
	}
	if v.Mirror != nil {
		info.Leg = v.Mirror.Path
	}
	if base := p.cat.Volume(v.Base); base != nil && base != v && base.Place != nil {
		info.Base = base.Name
	}
	info.FilledFrom = p.filledFrom(v)
	if pl := live.place; pl != nil {
		info.Path, info.ReadOnly, info.CopyingBack, info.Suspect = pl.path, pl.readOnly, pl.pending.Load(), v.Place.Suspect != 0
		info.MappedBytes, info.Behind = p.allocated(pl.path), !pl.overlay.empty.Load()
		if _, err := pl.get(); err != nil {
			info.Broken = err.Error()
		}
	}
	if s := p.cat.VisibleParent(head); s != nil && s.Volume == v.Number {
		info.Parent = s.Name
	}
	return info
}

// InFiles lists the copies that lie in files of their own, oldest first.
func (p *Pool) InFiles() []SnapshotInfo {
	p.mu.RLock()
	var ids []uint64
	for _, s := range p.cat.States() {
		if s.Copy != nil && s.Copy.Path != "" {
			ids = append(ids, s.ID)
		}
	}
	p.mu.RUnlock()
	return slices.DeleteFunc(p.describe(ids), func(info SnapshotInfo) bool { return info.Name == "" })
}

// listAtOnce is how many snapshots are described while changes of the catalogue wait.
const listAtOnce = 500

// Snapshots lists the snapshots of a volume, or of all if volume is empty, oldest first,
// which puts parents before children. Those that go meanwhile may be missing.
func (p *Pool) Snapshots(volume string) ([]SnapshotInfo, error) {
	p.mu.RLock()
	var states []*catalogue.State
	if volume == "" {
		states = p.cat.States()
	} else if v, err := findVolume(p.cat, volume); err == nil {
		states = p.cat.Snapshots(v)
	} else {
		p.mu.RUnlock()
		return nil, err
	}
	ids := make([]uint64, 0, len(states))
	for _, s := range states {
		if p.cat.Listed(s) {
			ids = append(ids, s.ID)
		}
	}
	p.mu.RUnlock()
	out := make([]SnapshotInfo, 0, len(ids))
	for some := range slices.Chunk(ids, listAtOnce) {
		for _, info := range p.describe(some) {
			if info.Name != "" {
				out = append(out, info)
			}
		}
	}
	return out, nil
}

// Expiring lists the snapshots that have a time to live and are not protected, oldest first.
func (p *Pool) Expiring() []SnapshotInfo {
	p.mu.RLock()
	var ids []uint64
	for _, s := range p.cat.States() {
		if p.cat.Listed(s) && !s.Protected && !s.ExpiresAt.IsZero() {
			ids = append(ids, s.ID)
		}
	}
	p.mu.RUnlock()
	return slices.DeleteFunc(p.describe(ids), func(info SnapshotInfo) bool { return info.Name == "" })
}

// SnapshotsBefore counts the snapshots that were made before a time.
func (p *Pool) SnapshotsBefore(at time.Time) (n int) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	for _, s := range p.cat.States() {
		if p.cat.Listed(s) && s.CreatedAt.Before(at) {
			n++
		}
	}
	return n
}

// Snapshot describes a snapshot.
func (p *Pool) Snapshot(ref SnapshotRef) (SnapshotInfo, error) {
	p.mu.RLock()
	_, s, err := findSnapshot(p.cat, ref)
	var info SnapshotInfo
	if err == nil {
		info = p.snapshotInfo(s)
	}
	p.mu.RUnlock()
	p.measure(&info)
	return info, err
}

// measure fills in what the file of a copy takes. mu is not held: a file may take its time to answer.
func (p *Pool) measure(info *SnapshotInfo) {
	if c := info.Copy; c != nil && c.Finished && c.Path != "" {
		info.MappedBytes = p.allocated(c.Path)
	}
}

// describe describes snapshots; of one that is not there any more nothing is told.
func (p *Pool) describe(ids []uint64) []SnapshotInfo {
	p.mu.RLock()
	out := make([]SnapshotInfo, len(ids))
	for i, id := range ids {
		if s := p.cat.State(id); s != nil && (s.Kind == catalogue.Snapshot || s.Kind == catalogue.Copy) {
			out[i] = p.snapshotInfo(s)
		}
	}
	p.mu.RUnlock()
	for i := range out {
		p.measure(&out[i])
	}
	return out
}

// clones names the volumes that descend from a snapshot of another one as their nearest visible
// ancestor: all states of a volume have the same one outside of it.
func (p *Pool) clones(s *catalogue.State) []string {
	var names []string
	for _, k := range p.cat.VisibleBelow(s.ID) {
		if k.Volume != s.Volume && !p.cat.Volume(k.Volume).Internal() {
			names = append(names, p.cat.Volume(k.Volume).Name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func (p *Pool) snapshotInfo(s *catalogue.State) SnapshotInfo {
	v := p.cat.Volume(s.Volume)
	info := SnapshotInfo{
		ID: s.UUID, Volume: v.Name, VolumeID: v.UUID, Name: s.Name, SizeBytes: s.SizeBytes,
		CreatedAt: s.CreatedAt, ExpiresAt: s.ExpiresAt, Labels: s.Labels, Protected: s.Protected, Automatic: s.Automatic,
		GroupID: s.Group, GroupSize: s.GroupSize, MappedBytes: int64(s.Root.Mapped()) * block.Size,
		DropWhenFull: s.DropWhenFull, Copy: copyInfo(s),
	}
	if s.Kind == catalogue.Copy {
		if content := contentOf(p.cat, s); content != nil {
			info.MappedBytes, info.Clones = int64(content.Root.Mapped())*block.Size, p.clones(content)
		}
		return info
	}
	info.Clones = p.clones(s)
	info.FilledFrom = p.filledFrom(v)
	if base := p.cat.Volume(v.Base); base != nil && base.Place != nil {
		info.Base, info.Suspect = base.Name, p.suspected(s) != 0
	}
	if up := p.cat.VisibleParent(s); up != nil {
		info.Parent = SnapshotRef{p.cat.Volume(up.Volume).Name, up.Name}.String()
	}
	if up := p.cat.VisibleParent(p.cat.Head(v)); up != nil && up.ID == s.ID {
		info.Head = true
	}
	return info
}

// Info describes the pool.
func (p *Pool) Info() Info {
	super := p.super.Load()
	info := Info{
		ID: super.pool, FormatVersion: formatVersion, CreatedAt: super.createdAt, Checkpoints: super.generation,
		DurableSeq: p.log.DurableSeq(), LastSeq: p.log.LastSeq(), LogBytes: int64(p.log.BytesWritten()),
		ClientBytes: p.clientBytes.Load(), MapCacheBytes: p.store.CachedBytes(),
		Stalls: p.stalls.summary(),
	}
	info.LiveBytes, info.MapBytes = p.reclaimer.liveBytes(), p.reclaimer.maps.Load()
	info.QuotaBytes, info.ReserveBytes, info.RoomBytes = p.space.quota.Load(), p.space.reserve.Load(), max(p.space.room(p), 0)
	info.LogSizeBytes = p.size()
	info.FullPercent, _ = p.space.fill(p)
	info.TotalBytes, info.FreeBytes = p.space.total.Load(), max(p.space.free.Load(), 0)
	info.ReclaimedBytes, info.CopiedBytes = p.reclaimer.freed.Load(), p.reclaimer.copied.Load()
	if err := p.log.Failure(); err != nil {
		info.ReadOnlyReason = err.Error()
	}
	p.mu.RLock()
	for _, s := range p.cat.States() {
		switch s.Kind {
		case catalogue.Snapshot, catalogue.Copy:
			if p.cat.Listed(s) {
				info.Snapshots++
			}
		case catalogue.Hidden:
			info.HiddenStates++
		case catalogue.Bookmark:
			info.Bookmarks++
		}
	}
	for _, v := range p.cat.Volumes() {
		if !v.Incomplete && !v.Internal() {
			info.Volumes++
		}
	}
	p.mu.RUnlock()
	files, _ := p.log.Files() // a directory that cannot be listed shows as empty
	info.Segments = len(files)
	for _, f := range files {
		info.PhysicalBytes += f.Bytes
	}
	info.SpareBytes = p.log.SpareBytes()
	info.PhysicalBytes += info.SpareBytes
	for _, n := range []string{superblockName, reserveName} {
		info.PhysicalBytes += p.allocated(path.Join(p.opts.Dir, n))
	}
	return info
}

// allocated is what a file takes on the disk, or its size where that is not known.
func (p *Pool) allocated(name string) int64 {
	fi, err := p.opts.FS.Stat(name)
	if err != nil {
		return 0
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return fi.Size()
}
