package pool

// Abandon lets go of a pool as a crash of the process does: nothing is saved.
func (p *Pool) Abandon() {
	p.checkpointer.stop()
	p.abandon()
}

// Queued counts the requests that wait for the log.
func (p *Pool) Queued() int {
	p.committer.mu.Lock()
	defer p.committer.mu.Unlock()
	return len(p.committer.queue)
}

// CatalogueAt is where the newest checkpoint's catalogue lies.
func (p *Pool) CatalogueAt() (segment uint64, offset int64) {
	at := p.super.Load().chunks[0].Addr
	return at.Segment(), at.Offset()
}
