package pool

// ResizeWaits tells whether a change of the volume's size waits for writes, or is being made.
func (p *Pool) ResizeWaits(name string) bool {
	p.mu.RLock()
	v := p.volumes[p.cat.VolumeByName(name).Number]
	p.mu.RUnlock()
	if !v.resize.TryRLock() {
		return true
	}
	v.resize.RUnlock()
	return false
}
