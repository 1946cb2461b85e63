package pool

import (
	"context"

	"varve/internal/pool/seglog"
)

// Differing lists the regions of a volume that count as differing from its mirror's.
func (p *Pool) Differing(volume string) (out []uint64) {
	m, err := p.mirrorOf(volume)
	if err != nil {
		panic(err)
	}
	r := m.regions
	r.mu.Lock()
	defer r.mu.Unlock()
	for n := range r.count {
		if n >= r.copied || r.differs.has(n) {
			out = append(out, n)
		}
	}
	return out
}

// Recorded counts the regions of a volume's mirror that are recorded, whether they have to be copied or not.
func (p *Pool) Recorded(volume string) int {
	m, err := p.mirrorOf(volume)
	if err != nil {
		panic(err)
	}
	m.regions.mu.Lock()
	defer m.regions.mu.Unlock()
	return m.regions.recorded.count()
}

// ClearRegions clears what is the same on both sides, as is done in the background.
func (p *Pool) ClearRegions(volume string) error {
	m, err := p.mirrorOf(volume)
	if err != nil {
		return err
	}
	return m.clearRegions(context.Background())
}

// Busy counts the regions of a mirrored volume that somebody is writing to.
func (p *Pool) Busy(volume string) int {
	m, err := p.mirrorOf(volume)
	if err != nil {
		panic(err)
	}
	m.regions.mu.Lock()
	defer m.regions.mu.Unlock()
	return len(m.regions.busy)
}

// GateWanted tells whether somebody waits to have a volume's gate alone.
func (p *Pool) GateWanted(volume string) bool {
	p.mu.RLock()
	v := p.volumes[p.cat.VolumeByName(volume).Number]
	p.mu.RUnlock()
	if v.gate.TryRLock() {
		v.gate.RUnlock()
		return false
	}
	return true
}

// GateFree tells whether a volume's gate can be had alone now.
func (p *Pool) GateFree(volume string) bool {
	p.mu.RLock()
	v := p.volumes[p.cat.VolumeByName(volume).Number]
	p.mu.RUnlock()
	if v.gate.TryLock() {
		v.gate.Unlock()
		return true
	}
	return false
}

// HoldRegions keeps everybody from looking at what differs of a volume's mirror, until the function is called that it returns.
func (p *Pool) HoldRegions(volume string) (release func()) {
	m, err := p.mirrorOf(volume)
	if err != nil {
		panic(err)
	}
	m.regions.mu.Lock()
	return m.regions.mu.Unlock
}

// Joining tells whether a volume's mirror is a copy that is to become one.
func (p *Pool) Joining(volume string) bool {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.cat.VolumeByName(volume).Mirror.Joining
}

// Leading tells whether somebody has the log to himself now, or writes to it.
func (p *Pool) Leading() bool {
	p.committer.mu.Lock()
	defer p.committer.mu.Unlock()
	return p.committer.busy
}

// RegionsAddr is where the map of a mirror's regions begins in the log, behind a checkpoint.
func (p *Pool) RegionsAddr(volume string) seglog.Addr {
	m, err := p.mirrorOf(volume)
	if err != nil {
		panic(err)
	}
	m.regions.set.mu.RLock()
	defer m.regions.set.mu.RUnlock()
	slot, ok := m.regions.set.tree.View().Slot()
	if !ok {
		panic("it is not in the log")
	}
	return slot.Ptr.Addr
}
