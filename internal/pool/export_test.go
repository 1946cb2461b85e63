package pool

// Abandon lets go of a pool as a crash of the process does: nothing is saved.
func (p *Pool) Abandon() {
	p.checkpointer.stop()
	p.abandon()
}
