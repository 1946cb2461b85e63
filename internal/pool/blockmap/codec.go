package blockmap

import (
	"encoding/binary"
	"fmt"

	"varve/internal/pool/seglog"
)

// docs/format.md, "Map nodes", gives these bytes.
const (
	nodeMagic     = 0x444f4e56 // "VNOD"
	nodeHeaderLen = 48
	flagDelta     = 1

	runLen  = 20 // and 4 for each checksum
	slotLen = 40

	slotChild = 1
	slotTomb  = 2
	slotEmpty = 3 // in a difference: the base has it, the node has not
	slotLost  = 4
	// slotPlaced: all below is in its volume's file as it was found.
	slotPlaced = 5

	runMapped = 1
	runTomb   = 2
	runEmpty  = 3
	runLost   = 4
)

// encode appends the node's bytes to buf: whole, or, with a base, only the
// changed slots. Children must be in the log.
func (n *node) encode(buf []byte, delta bool) []byte {
	le := binary.LittleEndian
	start := len(buf)
	buf = le.AppendUint32(buf, nodeMagic)
	flags := byte(0)
	base := Ptr{}
	which := n.slots
	if delta {
		flags, base, which = flagDelta, n.base, n.changed
	}
	buf = append(buf, byte(n.level), flags, 0, 0) // the number of records follows below
	buf = le.AppendUint64(buf, n.first)
	buf = le.AppendUint64(buf, n.owner)
	buf = le.AppendUint64(buf, uint64(base.Addr))
	buf = le.AppendUint32(buf, base.Length)
	buf = le.AppendUint32(buf, base.CRC)
	buf = append(buf, 0, 0, 0, 0, 0, 0, 0, 0) // the length follows below
	records := 0
	if n.level == 0 {
		for i := which.next(0); i >= 0; records++ {
			j := i + 1
			for j < leafSlots && which.has(j) && n.sameRun(i, j) {
				j++
			}
			buf = n.encodeRun(buf, i, j)
			i = which.next(j)
		}
	} else {
		for i := which.next(0); i >= 0; records++ {
			buf = n.encodeSlot(buf, i)
			i = which.next(i + 1)
		}
	}
	le.PutUint16(buf[start+6:], uint16(records))
	le.PutUint32(buf[start+40:], uint32(len(buf)-start))
	return buf
}

// sameRun tells whether entry j continues the run that begins at i.
func (n *node) sameRun(i, j int) bool {
	if n.slots.has(i) != n.slots.has(j) {
		return false
	}
	a, b := n.entry(i), n.entry(j)
	if a.Epoch != b.Epoch || a.Mapped() != b.Mapped() {
		return false
	}
	if a.Lost() || b.Lost() {
		return a.Lost() == b.Lost()
	}
	return !a.Mapped() || b.Addr == a.Addr.Plus(int64(j-i)*4096)
}

func (n *node) encodeRun(buf []byte, i, j int) []byte {
	le := binary.LittleEndian
	e := n.entry(i)
	kind := byte(runEmpty)
	switch {
	case e.Lost():
		kind, e.Addr = runLost, 0
	case e.Mapped():
		kind = runMapped
	case n.slots.has(i):
		kind = runTomb
	}
	buf = append(buf, byte(i), byte(j-i-1), kind, 0)
	buf = le.AppendUint64(buf, e.Epoch)
	buf = le.AppendUint64(buf, uint64(e.Addr))
	if kind == runMapped {
		for ; i < j; i++ {
			buf = le.AppendUint32(buf, n.entry(i).CRC)
		}
	}
	return buf
}

func (n *node) encodeSlot(buf []byte, i int) []byte {
	le := binary.LittleEndian
	c := n.child(i)
	c = c.settled()
	kind := byte(slotChild)
	switch {
	case c.tomb:
		kind = slotTomb
	case c.lost:
		kind = slotLost
	case c.placed:
		kind = slotPlaced
	case c.empty():
		kind = slotEmpty
	}
	buf = append(buf, byte(i), kind, 0, 0)
	buf = le.AppendUint32(buf, c.ptr.Length)
	buf = le.AppendUint64(buf, uint64(c.ptr.Addr))
	buf = le.AppendUint64(buf, c.epoch)
	buf = le.AppendUint64(buf, c.mapped)
	buf = le.AppendUint32(buf, c.ptr.CRC)
	return le.AppendUint32(buf, 0)
}

// decode reads the node at level whose first block is first out of the piece at
// ptr. If the piece is a difference, it is applied to the node that base returns.
func decode(p []byte, ptr Ptr, level int, first uint64, base func(Ptr) (*node, error)) (*node, error) {
	bad := func(what string) (*node, error) {
		return nil, fmt.Errorf("%w: %s of the node at %s (level %d, block %d)", ErrDamaged, what, ptr.Addr, level, first)
	}
	if uint32(len(p)) != ptr.Length || seglog.Checksum(p) != ptr.CRC {
		return bad("checksum")
	}
	le := binary.LittleEndian
	if len(p) < nodeHeaderLen || le.Uint32(p) != nodeMagic {
		return bad("magic number")
	}
	if int(p[4]) != level || le.Uint64(p[8:]) != first || le.Uint32(p[40:]) != ptr.Length {
		return bad("level, range or length")
	}
	n := newNode(level, first, le.Uint64(p[16:]), 0)
	w := &piece{ptr: ptr}
	if p[5]&flagDelta != 0 {
		w.base = Ptr{Addr: seglog.Addr(le.Uint64(p[24:])), Length: le.Uint32(p[32:]), CRC: le.Uint32(p[36:])}
		b, err := base(w.base)
		if err != nil {
			return nil, err
		}
		n = b.copyFor(n.owner, 0)
		n.base = Ptr{}
	}
	n.changed = bitmap{}
	records := int(le.Uint16(p[6:]))
	p = p[nodeHeaderLen:]
	var ok bool
	for range records {
		if level == 0 {
			p, ok = n.decodeRun(p)
		} else {
			p, ok = n.decodeSlot(p)
		}
		if !ok {
			return bad("records")
		}
	}
	if len(p) != 0 {
		return bad("length")
	}
	n.epoch, n.mapped = 0, 0
	for _, e := range n.entries {
		n.epoch = max(n.epoch, e.Epoch)
		if e.Mapped() {
			n.mapped++
		}
	}
	for _, c := range n.children {
		n.epoch = max(n.epoch, c.epoch)
		n.mapped += c.mapped
	}
	if w.base.Addr != 0 {
		w.changed = n.changed
	}
	n.changed = bitmap{}
	n.written.Store(w)
	return n, nil
}

func (n *node) decodeRun(p []byte) (rest []byte, ok bool) {
	if len(p) < runLen {
		return nil, false
	}
	le := binary.LittleEndian
	i, count, kind := int(p[0]), int(p[1])+1, p[2]
	e := Entry{Epoch: le.Uint64(p[4:]), Addr: seglog.Addr(le.Uint64(p[12:]))}
	p = p[runLen:]
	if i+count > leafSlots || (kind == runMapped) != (e.Addr.Segment() != 0) || (kind == runMapped && len(p) < 4*count) {
		return nil, false
	}
	for k := range count {
		switch kind {
		case runMapped:
			n.setEntry(i+k, Entry{Epoch: e.Epoch, Addr: e.Addr.Plus(int64(k) * 4096), CRC: le.Uint32(p[4*k:])})
		case runTomb:
			n.setEntry(i+k, Entry{Epoch: e.Epoch})
		case runLost:
			n.setEntry(i+k, lostEntry(e.Epoch))
		case runEmpty:
			if n.slots.has(i + k) {
				n.dropEntry(i + k)
			}
			n.changed.set(i + k)
		default:
			return nil, false
		}
	}
	if kind == runMapped {
		p = p[4*count:]
	}
	return p, true
}

func (n *node) decodeSlot(p []byte) (rest []byte, ok bool) {
	if len(p) < slotLen || int(p[0]) >= innerSlots {
		return nil, false
	}
	le := binary.LittleEndian
	i := int(p[0])
	c := child{
		ptr:   Ptr{Addr: seglog.Addr(le.Uint64(p[8:])), Length: le.Uint32(p[4:]), CRC: le.Uint32(p[32:])},
		epoch: le.Uint64(p[16:]), mapped: le.Uint64(p[24:]),
	}
	switch p[1] {
	case slotChild:
		ok = c.ptr.Addr != 0
	case slotTomb:
		ok = c.ptr.Addr == 0
		c.tomb = true
	case slotLost:
		ok = c.ptr.Addr == 0
		c.lost = true
	case slotPlaced:
		ok = c.ptr.Addr == 0 && c.mapped == span(n.level-1)
		c.placed = true
	case slotEmpty:
		c = child{}
		ok = true
	}
	n.setChild(i, c)
	n.changed.set(i)
	return p[slotLen:], ok
}
