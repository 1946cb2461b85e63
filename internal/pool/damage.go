package pool

import (
	"errors"
	"fmt"
	"sync"

	"varve/internal/block"
	"varve/internal/pool/blockmap"
	"varve/internal/pool/seglog"
)

// placeError is the error of stored bytes that are not what was stored.
type placeError struct {
	at    seglog.Addr
	block int // of those that were asked for
	err   error
}

func (e *placeError) Error() string { return e.err.Error() }

func (e *placeError) Unwrap() error { return e.err }

// rotten is the error of a block that does not match its checksum.
func rotten(at seglog.Addr) error {
	return &placeError{at: at, err: fmt.Errorf("%w: block at %s does not match its checksum", block.ErrDamaged, at)}
}

// lost marks errors of reading bytes at a place, where they mean that these are gone.
func lost(at seglog.Addr, err error) error {
	if isLoss(err) {
		return &placeError{at: at, err: fmt.Errorf("%w: %w", block.ErrDamaged, err)}
	}
	return err
}

// asked says which of the blocks that a request asked for an error is of.
func asked(block int, err error) error {
	if at, ok := errors.AsType[*placeError](err); ok {
		at.block = block
	}
	return err
}

// lostBlock is the error of a block that is recorded as lost.
func lostBlock(e blockmap.Entry) error {
	return fmt.Errorf("%w: %w in epoch %d", block.ErrDamaged, blockmap.ErrLost, e.Epoch)
}

// told knows which damaged places there was an event for, so that clients that read on make no flood of them.
type told struct {
	mu     sync.Mutex
	places map[string]bool
}

// maxTold bounds what told remembers; beyond it nothing more is told, but by a check.
const maxTold = 1000

// first tells whether nobody was told of a place yet, and whether that is the last one there is room for.
func (t *told) first(place string) (first, last bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.places[place] || len(t.places) >= maxTold {
		return false, false
	}
	if t.places == nil {
		t.places = map[string]bool{}
	}
	t.places[place] = true
	return true, len(t.places) == maxTold
}

// damageMet makes an event of damage that a client has met, once for each place.
func (d *Device) damageMet(what string, length, off int64, err error) {
	if errors.Is(err, block.ErrDamaged) {
		d.pool.damageMet(d.name(), what, length, off, err)
	}
}

// damageMet is Device.damageMet for whoever else has met damage of an object.
func (p *Pool) damageMet(object, what string, length, off int64, err error) {
	place := err.Error()
	var at *placeError
	var node *blockmap.NodeError
	switch {
	case errors.As(err, &at):
		place = "block " + at.at.String()
		off, length = (off/block.Size+int64(at.block))*block.Size, block.Size
	case errors.As(err, &node):
		place = "node " + node.Ptr.Addr.String()
	case errors.Is(err, blockmap.ErrLost):
		return // recorded by a repair that has told it, and listed by each check
	}
	first, last := p.told.first(place)
	if !first {
		return
	}
	more := ""
	if last {
		more = "; no more such events until the pool is opened again, a check lists everything"
	}
	p.event(EventDamage, object, fmt.Sprintf("%s %d bytes at %d: %v%s", what, length, off, err, more))
}
