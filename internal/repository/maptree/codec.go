package maptree

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"

	"varve/internal/repository/chunk"
)

// The bytes of a node: header, table of packs, and for each slot in use a
// reference to a child, or a region. docs/format-repository.md has the tables.
const (
	nodeFormat     = 1
	headerBytes    = 14
	packBytes      = 16
	referenceBytes = 1 + 4 + 32

	shapeZero  = 1 << 3 // the region has a zero bitmap
	shapeWhole = 1 << 4 // its first chunk holds all blocks; the next bits say so of the others
)

// encode is the node's bytes. Its regions must be in normal form.
func (n *Node) encode(g Geometry) []byte {
	var (
		le    = binary.LittleEndian
		dst   []byte
		used  uint64
		table []chunk.PackID
	)
	number := func(p chunk.PackID) byte { // neighbours mostly lie in the same pack, often the newest
		for i := len(table) - 1; i >= 0; i-- {
			if table[i] == p {
				return byte(i)
			}
		}
		table = append(table, p)
		return byte(len(table) - 1)
	}
	for _, c := range n.Children {
		used |= 1 << c.Slot
		number(c.Place.Pack)
	}
	for _, r := range n.Regions {
		used |= 1 << r.Slot
		for i := range r.Region.Chunks {
			number(r.Region.Chunks[i].Place.Pack)
		}
	}

	dst = make([]byte, 0, n.roomFor(len(table), g))
	dst = append(dst, nodeFormat, byte(n.Level))
	dst = le.AppendUint16(dst, uint16(g.BlocksPerRegion))
	dst = le.AppendUint16(dst, uint16(len(table)))
	dst = le.AppendUint64(dst, used)
	for _, p := range table {
		dst = append(dst, p[:]...)
	}
	reference := func(id *chunk.ID, p chunk.Place) {
		dst = append(dst, number(p.Pack))
		dst = le.AppendUint32(dst, p.Frame)
		dst = append(dst, id[:]...)
	}
	for i := range n.Children {
		reference(&n.Children[i].ID, n.Children[i].Place)
	}
	for _, r := range n.Regions {
		shapeAt := len(dst)
		shape := byte(len(r.Region.Chunks))
		dst = append(dst, 0)
		for i := range r.Region.Chunks {
			c := &r.Region.Chunks[i]
			reference(&c.ID, c.Place)
			if c.Held == g.all() {
				shape |= shapeWhole << i
			} else {
				dst = appendBitmap(dst, c.Held, g)
			}
		}
		if !r.Region.Zero.Empty() {
			shape |= shapeZero
			dst = appendBitmap(dst, r.Region.Zero, g)
		}
		dst[shapeAt] = shape
	}
	return dst
}

// roomFor is how many bytes a node takes at most, with so many packs.
func (n *Node) roomFor(packs int, g Geometry) int {
	room := headerBytes + packs*packBytes + len(n.Children)*referenceBytes
	for i := range n.Regions {
		room += 1 + len(n.Regions[i].Region.Chunks)*(referenceBytes+g.BlocksPerRegion/8) + g.BlocksPerRegion/8
	}
	return room
}

func appendBitmap(dst []byte, b Bitmap, g Geometry) []byte {
	for i := range g.BlocksPerRegion / 8 {
		dst = append(dst, byte(b[i/8]>>(i%8*8)))
	}
	return dst
}

// Decode reads a node. Bytes that encode no node, or not in its one form, are ErrDamaged, those of a later
// format ErrNewer. What it allocates is in proportion to plain, and it keeps nothing of plain.
func Decode(plain []byte, g Geometry) (Node, error) {
	if !g.valid() {
		return Node{}, fmt.Errorf("%w: regions of %d blocks", ErrInvalid, g.BlocksPerRegion)
	}
	if len(plain) > 0 && plain[0] > nodeFormat {
		return Node{}, fmt.Errorf("%w: %d", ErrNewer, plain[0])
	}
	d := decoder{rest: plain, g: g}
	n, err := d.node()
	if err != nil {
		return Node{}, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return n, nil
}

type decoder struct {
	rest  []byte
	g     Geometry
	table []byte
	named int // packs of the table that references have named; they do so in order
}

func (d *decoder) take(n int) ([]byte, error) {
	if len(d.rest) < n {
		return nil, errors.New("it ends early")
	}
	p := d.rest[:n]
	d.rest = d.rest[n:]
	return p, nil
}

func (d *decoder) node() (Node, error) {
	le := binary.LittleEndian
	h, err := d.take(headerBytes)
	if err != nil {
		return Node{}, err
	}
	n := Node{Level: int(h[1])}
	packs, used := int(le.Uint16(h[4:])), le.Uint64(h[6:])
	switch {
	case h[0] != nodeFormat:
		return Node{}, fmt.Errorf("format %d", h[0])
	case n.Level > maxLevel:
		return Node{}, fmt.Errorf("level %d", n.Level)
	case int(le.Uint16(h[2:])) != d.g.BlocksPerRegion:
		return Node{}, fmt.Errorf("its regions have %d blocks, those of this repository %d", le.Uint16(h[2:]), d.g.BlocksPerRegion)
	case used == 0:
		return Node{}, errors.New("no slot is used")
	}
	if d.table, err = d.take(packs * packBytes); err != nil {
		return Node{}, err
	}
	if n.Level > 0 {
		n.Children, err = d.children(used)
	} else {
		n.Regions, err = d.regions(used)
	}
	switch {
	case err != nil:
		return Node{}, err
	case d.named != packs:
		return Node{}, fmt.Errorf("%d of its %d packs are not named", packs-d.named, packs)
	case len(d.rest) != 0:
		return Node{}, fmt.Errorf("%d bytes follow it", len(d.rest))
	}
	return n, nil
}

func (d *decoder) children(used uint64) ([]Child, error) {
	count := bits.OnesCount64(used)
	if len(d.rest) != count*referenceBytes {
		return nil, fmt.Errorf("%d bytes for %d children", len(d.rest), count)
	}
	children := make([]Child, 0, count)
	for ; used != 0; used &= used - 1 {
		c := Child{Slot: bits.TrailingZeros64(used)}
		if err := d.reference(&c.ID, &c.Place); err != nil {
			return nil, err
		}
		children = append(children, c)
	}
	return children, nil
}

func (d *decoder) regions(used uint64) ([]RegionAt, error) {
	regions := make([]RegionAt, 0, bits.OnesCount64(used))
	// The regions of a node share one array of chunks, as many as there can be at most.
	chunks := make([]Chunk, 0, min(len(d.rest)/referenceBytes, slots*MaxChunks))
	for ; used != 0; used &= used - 1 {
		shape, err := d.take(1)
		if err != nil {
			return nil, err
		}
		start := len(chunks)
		r := RegionAt{Slot: bits.TrailingZeros64(used)}
		if chunks, err = d.region(&r.Region, shape[0], chunks); err != nil {
			return nil, fmt.Errorf("region %d: %w", r.Slot, err)
		}
		r.Region.Chunks = chunks[start:len(chunks):len(chunks)]
		if err := canonical(r.Region); err != nil {
			return nil, fmt.Errorf("region %d: %w", r.Slot, err)
		}
		regions = append(regions, r)
	}
	return regions, nil
}

// region appends the region's chunks to chunks, and sets its zero bitmap.
func (d *decoder) region(r *Region, shape byte, chunks []Chunk) ([]Chunk, error) {
	count := int(shape & (shapeZero - 1))
	if count == 0 || count > MaxChunks || shape/shapeWhole>>count != 0 {
		return nil, fmt.Errorf("shape %#x", shape)
	}
	for i := range count {
		var c Chunk
		if err := d.reference(&c.ID, &c.Place); err != nil {
			return nil, err
		}
		if shape&(shapeWhole<<i) != 0 {
			c.Held = d.g.all()
		} else {
			var err error
			if c.Held, err = d.bitmap(); err != nil {
				return nil, err
			}
			if c.Held == d.g.all() {
				return nil, fmt.Errorf("chunk %s has a bitmap though it holds all blocks", c.ID)
			}
		}
		chunks = append(chunks, c)
	}
	if shape&shapeZero != 0 {
		var err error
		if r.Zero, err = d.bitmap(); err != nil {
			return nil, err
		}
		if r.Zero.Empty() {
			return nil, errors.New("its zero bitmap is empty")
		}
	}
	return chunks, nil
}

// canonical fails for a region that is not in normal form.
func canonical(r Region) error {
	var held Bitmap
	supplied := r.Supplied()
	for i, c := range r.Chunks {
		if supplied[i].Empty() {
			return fmt.Errorf("chunk %s supplies no block", c.ID)
		}
		held = held.Or(c.Held)
	}
	if !r.Zero.AndNot(held).Empty() {
		return errors.New("its zero bitmap has blocks that no chunk holds")
	}
	return nil
}

func (d *decoder) bitmap() (b Bitmap, err error) {
	p, err := d.take(d.g.BlocksPerRegion / 8)
	for i, v := range p {
		b[i/8] |= uint64(v) << (i % 8 * 8)
	}
	return b, err
}

func (d *decoder) reference(id *chunk.ID, place *chunk.Place) error {
	p, err := d.take(referenceBytes)
	if err != nil {
		return err
	}
	number := int(p[0])
	if number > d.named || number*packBytes >= len(d.table) {
		return fmt.Errorf("pack %d of %d is named, out of order", number, len(d.table)/packBytes)
	}
	copy(place.Pack[:], d.table[number*packBytes:])
	if number == d.named {
		for i := range number {
			if [packBytes]byte(d.table[i*packBytes:]) == place.Pack {
				return fmt.Errorf("pack %s is listed twice", place.Pack)
			}
		}
		d.named++
	}
	place.Frame = binary.LittleEndian.Uint32(p[1:])
	copy(id[:], p[5:])
	return nil
}
