package pool

import "context"

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

// Cycle reclaims all that it can as a cycle in the background does, and so keeps spare files.
func (p *Pool) Cycle(ctx context.Context) error {
	_, err := p.reclaim(ctx, func(int64) int64 { return 0 })
	return err
}
