package pool

import (
	"slices"
	"sync"
	"sync/atomic"

	"varve/internal/block"
)

// overlay knows which blocks of an inplace volume's head lie in the log and not in the file yet: see docs/design/inplace.md. Only who
// has a block reserved makes it one of them, or one no longer.
type overlay struct {
	// empty says that nothing is in it, and nothing on its way there.
	empty atomic.Bool
	kick  chan struct{} // something came in
	much  chan struct{} // as much as is worth a sync of the file
	// rounds counts the requests that were built.
	rounds atomic.Uint64

	mu     sync.Mutex
	blocks map[uint64]logged // by LBA
	coming int               // blocks that are being logged
	most   int               // blocks that there may be
	found  bool              // all of them are known, also those from before a crash
}

// logged tells how a block was logged.
type logged struct {
	epoch uint64 // the head's then
	seq   uint64 // of a batch no older than its own
}

// DefaultOverlayBytes is how much of a volume may lie in the log and not in its file, if Options do not say. Docs/design/inplace.md has what
// more and less would do.
const DefaultOverlayBytes = 256 << 20

func newOverlay(mostBytes int64) *overlay {
	return &overlay{
		kick: make(chan struct{}, 1), much: make(chan struct{}, 1), blocks: map[uint64]logged{}, most: int(mostBytes / block.Size),
	}
}

// room tells whether n blocks more may be logged, where the log may grow by so many bytes: no more than a half of that is for what will be dead soon.
func (o *overlay) room(n int, logBytes int64) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	all := len(o.blocks) + o.coming + n
	return all <= o.most && int64(all)*block.Size <= logBytes
}

// hurry has what is in it brought into the file soon.
func (o *overlay) hurry() { signal(o.much) }

// begin makes room for n blocks that are about to be logged; false if there is none. end must follow.
func (o *overlay) begin(n int) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.blocks)+o.coming+n > o.most {
		return false
	}
	o.coming += n
	o.empty.Store(false)
	return true
}

// end takes n blocks off those that are coming, and adds what has come of them.
func (o *overlay) end(n int, lbas []uint64, as logged) {
	o.mu.Lock()
	o.coming -= n
	for _, lba := range lbas {
		o.blocks[lba] = as
	}
	o.noted()
	all := len(o.blocks)
	o.mu.Unlock()
	if all > 0 {
		signal(o.kick)
	}
	if all >= o.most/2 {
		signal(o.much)
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// noted brings empty up to date; mu is held.
func (o *overlay) noted() { o.empty.Store(o.found && o.coming == 0 && len(o.blocks) == 0) }

// may tells whether a block may lie in the log alone.
func (o *overlay) may(lba uint64) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.found {
		return true
	}
	_, ok := o.blocks[lba]
	return ok
}

// add adds a block that was found, unless it is known already.
func (o *overlay) add(lba uint64, as logged) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, known := o.blocks[lba]; !known {
		o.blocks[lba] = as
	}
}

// all says that every block is known.
func (o *overlay) all() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.found = true
	o.noted()
}

func (o *overlay) known() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.found
}

// remove takes out blocks that are in place, or are the head's no longer.
func (o *overlay) remove(lbas []uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, lba := range lbas {
		delete(o.blocks, lba)
	}
	o.noted()
}

// upTo returns, in order, the blocks that were logged by a batch.
func (o *overlay) upTo(seq uint64) []uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	var out []uint64
	for lba, l := range o.blocks {
		if l.seq <= seq {
			out = append(out, lba)
		}
	}
	slices.Sort(out)
	return out
}

// durable tells whether a block was logged by a batch, and by none behind it.
func (o *overlay) durable(lba, seq uint64) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	l, ok := o.blocks[lba]
	return ok && l.seq <= seq
}

// since returns the oldest epoch in which any of the blocks was logged, at most that of the head; 0 if that is not known now.
func (o *overlay) since(epoch uint64) uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.found || o.coming > 0 {
		return 0
	}
	for _, l := range o.blocks {
		epoch = min(epoch, l.epoch)
	}
	return epoch
}
