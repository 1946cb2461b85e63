package pool

import (
	"context"
	"fmt"
	"path"
	"slices"
	"syscall"

	"varve/internal/block"
	"varve/internal/pool/blockmap"
	"varve/internal/pool/catalogue"
)

// Volumes lists the volumes by name.
func (p *Pool) Volumes() []VolumeInfo {
	p.mu.RLock()
	defer p.mu.RUnlock()
	var out []VolumeInfo
	for _, v := range p.cat.Volumes() {
		if !v.Incomplete {
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
	info := VolumeInfo{
		ID: v.UUID, Name: v.Name, SizeBytes: head.SizeBytes, Labels: v.Labels, CreatedAt: v.CreatedAt, Origin: v.Origin,
		MappedBytes: int64(mapped) * block.Size, Snapshots: p.cat.SnapshotCount(v),
	}
	if s := p.cat.VisibleParent(head); s != nil && s.Volume == v.Number {
		info.Parent = s.Name
	}
	return info
}

// Snapshots lists the snapshots of a volume, or of all if volume is empty, oldest first,
// which puts parents before children.
func (p *Pool) Snapshots(volume string) ([]SnapshotInfo, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	var number uint64
	if volume != "" {
		v, err := findVolume(p.cat, volume)
		if err != nil {
			return nil, err
		}
		number = v.Number
	}
	var out []SnapshotInfo
	clones := p.clones()
	for _, s := range p.cat.States() {
		if s.Kind == catalogue.Snapshot && (volume == "" || s.Volume == number) {
			out = append(out, p.snapshotInfo(s, clones))
		}
	}
	return out, nil
}

// Snapshot describes a snapshot.
func (p *Pool) Snapshot(ref SnapshotRef) (SnapshotInfo, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	_, s, err := findSnapshot(p.cat, ref)
	if err != nil {
		return SnapshotInfo{}, err
	}
	return p.snapshotInfo(s, p.clones()), nil
}

// describe describes snapshots that were just made; one that has been deleted
// since is described by its ID alone.
func (p *Pool) describe(ids []uint64) []SnapshotInfo {
	p.mu.RLock()
	defer p.mu.RUnlock()
	out := make([]SnapshotInfo, len(ids))
	clones := p.clones()
	for i, id := range ids {
		if s := p.cat.State(id); s != nil {
			out[i] = p.snapshotInfo(s, clones)
		}
	}
	return out
}

// clones maps each snapshot to the volumes whose heads descend from it as their
// nearest visible ancestor, other than its own volume.
func (p *Pool) clones() map[uint64][]string {
	out := map[uint64][]string{}
	for _, v := range p.cat.Volumes() {
		if s := p.cat.VisibleParent(p.firstOf(v)); s != nil && s.Volume != v.Number {
			out[s.ID] = append(out[s.ID], v.Name)
		}
	}
	return out
}

// firstOf is the oldest state of the branch that a volume's head is on.
func (p *Pool) firstOf(v *catalogue.Volume) *catalogue.State {
	s := p.cat.Head(v)
	for {
		up := p.cat.VisibleParent(s)
		if up == nil || up.Volume != v.Number {
			return s
		}
		s = up
	}
}

func (p *Pool) snapshotInfo(s *catalogue.State, clones map[uint64][]string) SnapshotInfo {
	v := p.cat.Volume(s.Volume)
	info := SnapshotInfo{
		ID: s.UUID, Volume: v.Name, VolumeID: v.UUID, Name: s.Name, SizeBytes: s.SizeBytes,
		CreatedAt: s.CreatedAt, ExpiresAt: s.ExpiresAt, Labels: s.Labels, Protected: s.Protected, Automatic: s.Automatic,
		GroupID: s.Group, GroupSize: s.GroupSize, MappedBytes: int64(s.Root.Mapped()) * block.Size,
		Clones: slices.Clone(clones[s.ID]),
	}
	if up := p.cat.VisibleParent(s); up != nil {
		info.Parent = SnapshotRef{p.cat.Volume(up.Volume).Name, up.Name}.String()
	}
	if up := p.cat.VisibleParent(p.cat.Head(v)); up != nil && up.ID == s.ID {
		info.Head = true
	}
	return info
}

// VolumeUsage tells what a volume's head holds. It walks what differs from its parent.
func (p *Pool) VolumeUsage(ctx context.Context, name string) (Usage, error) {
	return p.usage(ctx, func() (*catalogue.State, error) {
		v, err := findVolume(p.cat, name)
		if err != nil {
			return nil, err
		}
		return p.cat.Head(v), nil
	})
}

// SnapshotUsage tells what a snapshot holds. It walks what differs from its parent and children.
func (p *Pool) SnapshotUsage(ctx context.Context, ref SnapshotRef) (Usage, error) {
	return p.usage(ctx, func() (*catalogue.State, error) {
		_, s, err := findSnapshot(p.cat, ref)
		return s, err
	})
}

func (p *Pool) usage(ctx context.Context, find func() (*catalogue.State, error)) (Usage, error) {
	if !p.begin() {
		return Usage{}, fmt.Errorf("pool: %w", block.ErrClosed)
	}
	defer p.end()
	var root blockmap.Root
	var since uint64
	var others []blockmap.Root
	release, err := p.pin(func() ([]rootSince, error) {
		s, err := find()
		if err != nil {
			return nil, err
		}
		root, since = p.frozenRoot(s), p.cat.ParentEpoch(s)
		walked := []rootSince{{s.ID, root, since}}
		for _, k := range p.cat.Children(s.ID) {
			others = append(others, p.frozenRoot(k))
			walked = append(walked, rootSince{k.ID, others[len(others)-1], since})
		}
		return walked, nil
	})
	if err != nil {
		return Usage{}, err
	}
	defer release()
	exclusive, err := p.store.Exclusive(ctx, root, since, others)
	if err != nil {
		return Usage{}, fmt.Errorf("measure what it holds: %w", damaged(err))
	}
	u := Usage{Mapped: int64(root.Mapped()) * block.Size, Exclusive: int64(exclusive) * block.Size}
	u.Shared = u.Mapped - u.Exclusive
	return u, nil
}

// frozenRoot is a state's map as it is now and stays; mu is held. A head goes on in copies.
func (p *Pool) frozenRoot(s *catalogue.State) blockmap.Root {
	if s.Kind != catalogue.Head {
		return s.Root
	}
	v := p.volumes[s.Volume]
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.tree.Freeze(v.tree.Epoch(), p.nextGen())
}

// Info describes the pool.
func (p *Pool) Info() Info {
	super := p.super.Load()
	info := Info{
		ID: super.pool, FormatVersion: formatVersion, CreatedAt: super.createdAt, Checkpoints: super.generation,
		DurableSeq: p.log.DurableSeq(), LastSeq: p.log.LastSeq(), LogBytes: int64(p.log.BytesWritten()),
		ClientBytes: p.clientBytes.Load(), MapCacheBytes: p.store.CachedBytes(),
	}
	info.LiveBytes = p.reclaimer.liveBytes()
	info.ReclaimedBytes, info.CopiedBytes = p.reclaimer.freed.Load(), p.reclaimer.copied.Load()
	if err := p.log.Failure(); err != nil {
		info.ReadOnlyReason = err.Error()
	}
	p.mu.RLock()
	for _, s := range p.cat.States() {
		switch s.Kind {
		case catalogue.Snapshot:
			info.Snapshots++
		case catalogue.Hidden:
			info.HiddenStates++
		}
	}
	for _, v := range p.cat.Volumes() {
		if !v.Incomplete {
			info.Volumes++
		}
	}
	p.mu.RUnlock()
	segments, _ := p.log.Segments() // a directory that cannot be listed shows as empty
	info.Segments = len(segments)
	for _, id := range segments {
		_, allocated, _ := p.log.SegmentSize(id) // one that went meanwhile takes nothing
		info.PhysicalBytes += allocated
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
