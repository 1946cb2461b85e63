package format_test

import (
	"fmt"
	"os"
	"slices"
)

// place is where a block lies and what its checksum is; or which version of it, if it is in place.
type place struct {
	address uint64
	crc     uint32
	lost    bool
	tomb    bool
	inPlace bool
	version uint64
}

const inPlaceBit = uint64(1) << 63

// inPlace is where a block is whose slot, or run, has that address.
func placed(version uint64) place { return place{inPlace: true, version: version} }

// lostPointer is what a slot holds that is lost: nothing has that address.
var lostPointer = pointer{address: 1}

// placedPointer is what a slot holds below which everything is in place as it was found.
var placedPointer = pointer{address: 2}

// blockMap has the mapped blocks of a state, by LBA.
type blockMap map[uint64]place

// readNode returns what the slots of a node point to, with those of its base if it is a
// difference: a leaf to blocks, an inner node to children. The zero pointer is a tombstone.
func (f *files) readNode(p pointer, level int, first uint64, isBase bool) (map[int]pointer, error) {
	b := f.at(p)
	if len(b) < 48 || le.Uint32(b[40:]) != uint32(len(b)) || le.Uint32(b) != 0x444F4E56 || int(b[4]) != level || le.Uint64(b[8:]) != first {
		return nil, fmt.Errorf("node %x at level %d, block %d", p.address, level, first)
	}
	slots := map[int]pointer{}
	if b[5]&1 != 0 {
		if isBase {
			return nil, fmt.Errorf("base %x is a difference", p.address)
		}
		base, err := f.readNode(pointerAt(b[24:]), level, first, true)
		if err != nil {
			return nil, err
		}
		slots = base
		f.differences++
	}
	records, b := int(le.Uint16(b[6:])), b[48:]
	for range records {
		slot := int(b[0])
		if level == 0 {
			count, kind, address := int(b[1])+1, b[2], le.Uint64(b[12:])
			b = b[20:]
			for i := range count {
				switch kind {
				case 1:
					slots[slot+i] = pointer{address + uint64(i)*64, blockBytes, le.Uint32(b)}
					b = b[4:]
				case 2:
					slots[slot+i] = pointer{}
				case 4:
					slots[slot+i] = lostPointer
				case 3:
					delete(slots, slot+i)
				default:
					return nil, fmt.Errorf("run of kind %d", kind)
				}
			}
			continue
		}
		switch b[1] {
		case 1:
			slots[slot] = pointer{le.Uint64(b[8:]), le.Uint32(b[4:]), le.Uint32(b[32:])}
		case 2:
			slots[slot] = pointer{}
		case 4:
			slots[slot] = lostPointer
		case 5:
			slots[slot] = placedPointer
		case 3:
			delete(slots, slot)
		default:
			return nil, fmt.Errorf("slot of kind %d", b[1])
		}
		b = b[40:]
	}
	if len(b) != 0 {
		return nil, fmt.Errorf("%d bytes behind the records of node %x", len(b), p.address)
	}
	return slots, nil
}

// readMap adds the mapped blocks below a node to m.
func (f *files) readMap(m blockMap, p pointer, level int, first uint64) error {
	if p.address == 0 {
		return nil
	}
	if p == placedPointer {
		for i := range uint64(1) << (8 + 7*level) {
			m[first+i] = placed(first + i)
		}
		return nil
	}
	if p == lostPointer {
		for i := range uint64(1) << (8 + 7*level) {
			m[first+i] = place{lost: true}
		}
		return nil
	}
	slots, err := f.readNode(p, level, first, false)
	if err != nil {
		return err
	}
	for i, s := range slots {
		if level == 0 {
			switch lba := first + uint64(i); {
			case s.address&inPlaceBit != 0:
				m[lba] = placed(s.address &^ inPlaceBit / 64)
			case s.address != 0:
				m[lba] = place{address: s.address, crc: s.crc, lost: s == lostPointer}
			default:
				m[lba] = place{tomb: true}
			}
		} else if err := f.readMap(m, s, level-1, first+uint64(i)<<(8+7*(level-1))); err != nil {
			return err
		}
	}
	return nil
}

// mapped counts the blocks that are not tombstones.
func (m blockMap) mapped() (n uint64) {
	for _, p := range m {
		if !p.tomb {
			n++
		}
	}
	return n
}

// content returns the bytes of a state.
func (c *contents) content(s *state) ([]byte, error) {
	if s.Kind == 6 && s.Content.State == 0 {
		file, err := os.ReadFile(s.Content.Path)
		return file[:min(s.Size, int64(len(file)))], err
	} else if s.Kind == 6 {
		s = c.states[s.Content.State]
	}
	out := make([]byte, (s.Size+blockBytes-1)/blockBytes*blockBytes)
	var file []byte
	var kept blockMap
	base := c.volumes[c.volumes[s.Volume].Base]
	if base != nil && base.Filling != nil {
		f := base.Filling
		kept, file = c.head(base.Number).blocks, slices.Clone(c.bases[string(f.Ref)])
		clear(file[:f.Done])
	} else if base != nil {
		var err error
		if file, err = os.ReadFile(base.Place.Path); err != nil {
			return nil, err
		}
		kept = c.head(base.Place.Kept).blocks
	}
	for lba, p := range s.blocks {
		if p.inPlace {
			c.inPlace++
			now, known := kept[p.version]
			if !known {
				copy(out[lba*blockBytes:], file[min(lba*blockBytes, uint64(len(file))):min((lba+1)*blockBytes, uint64(len(file)))])
				continue
			}
			c.kept++
			p = now
		}
		if p.tomb {
			continue
		}
		b := c.at(pointer{p.address, blockBytes, p.crc})
		if b == nil || lba >= uint64(len(out)/blockBytes) {
			return nil, fmt.Errorf("block %d at %x", lba, p.address)
		}
		copy(out[lba*blockBytes:], b)
	}
	return out[:s.Size], nil
}
