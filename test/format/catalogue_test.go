package format_test

import (
	"fmt"
	"io/fs"
	"maps"
	"slices"

	"github.com/fxamacker/cbor/v2"
)

// The catalogue's image, and below it the operations: only the keys that content depends on, and names.
type image struct {
	LastEpoch uint64        `cbor:"1,keyasint"`
	Volumes   []imageVolume `cbor:"4,keyasint"`
	States    []imageState  `cbor:"5,keyasint"`
}

type imageVolume struct {
	Number uint64 `cbor:"1,keyasint"`
	UUID   []byte `cbor:"2,keyasint"`
	Name   string `cbor:"3,keyasint"`
	Head   uint64 `cbor:"8,keyasint"`
	Place  *struct {
		Path  string   `cbor:"1,keyasint"`
		Kept  uint64   `cbor:"2,keyasint"`
		Bases []uint64 `cbor:"5,keyasint"`
	} `cbor:"9,keyasint"`
	KeptOf uint64 `cbor:"10,keyasint"`
	Base   uint64 `cbor:"11,keyasint"`

	ContentOf uint64 `cbor:"12,keyasint"`
	mirrored
	Deleted bool     `cbor:"13,keyasint"`
	Filling *filling `cbor:"22,keyasint"`
}

// filling is the base that an internal volume is filled from.
type filling struct {
	Ref  []byte `cbor:"1,keyasint"`
	Size int64  `cbor:"2,keyasint"`
	Done int64  `cbor:"3,keyasint"`
}

type imageState struct {
	ID     uint64     `cbor:"1,keyasint"`
	Kind   uint       `cbor:"2,keyasint"`
	Volume uint64     `cbor:"3,keyasint"`
	Parent uint64     `cbor:"4,keyasint"`
	Epoch  uint64     `cbor:"5,keyasint"`
	Size   int64      `cbor:"6,keyasint"`
	Root   *imageRoot `cbor:"7,keyasint"`
	Name   string     `cbor:"9,keyasint"`
	Of     string     `cbor:"17,keyasint"`

	Copying *copying `cbor:"22,keyasint"`
	Content *content `cbor:"23,keyasint"`
}

type copying struct {
	Technique uint   `cbor:"1,keyasint"`
	Path      string `cbor:"2,keyasint"`
	Volume    uint64 `cbor:"4,keyasint"`
}

type content struct {
	State uint64 `cbor:"2,keyasint"`
	Path  string `cbor:"3,keyasint"`
}

type imageRoot struct {
	Address   uint64 `cbor:"1,keyasint"`
	Length    uint32 `cbor:"2,keyasint"`
	CRC       uint32 `cbor:"3,keyasint"`
	Mapped    uint64 `cbor:"5,keyasint"`
	Tombstone bool   `cbor:"6,keyasint"`
	Lost      bool   `cbor:"7,keyasint"`
}

type operation struct {
	mirrorOperation
	Create *struct {
		Number uint64 `cbor:"1,keyasint"`
		UUID   []byte `cbor:"2,keyasint"`
		Name   string `cbor:"3,keyasint"`
		Size   int64  `cbor:"4,keyasint"`
		Head   uint64 `cbor:"7,keyasint"`
		From   uint64 `cbor:"8,keyasint"`
		Place  *struct {
			Path     string `cbor:"1,keyasint"`
			Kept     uint64 `cbor:"3,keyasint"`
			KeptHead uint64 `cbor:"4,keyasint"`
		} `cbor:"11,keyasint"`
		Base    uint64 `cbor:"12,keyasint"`
		Filling *struct {
			Ref  []byte `cbor:"1,keyasint"`
			Size int64  `cbor:"2,keyasint"`
			Head uint64 `cbor:"3,keyasint"`
		} `cbor:"13,keyasint"`
	} `cbor:"1,keyasint"`
	Set *struct {
		Number uint64 `cbor:"1,keyasint"`
		Name   string `cbor:"2,keyasint"`
	} `cbor:"2,keyasint"`
	Resize *struct {
		Number uint64 `cbor:"1,keyasint"`
		Size   int64  `cbor:"2,keyasint"`
	} `cbor:"3,keyasint"`
	Delete *struct {
		Number uint64 `cbor:"1,keyasint"`
	} `cbor:"4,keyasint"`
	Snapshots *struct {
		Name string `cbor:"1,keyasint"`
		Of   []struct {
			Volume uint64 `cbor:"1,keyasint"`
			ID     uint64 `cbor:"2,keyasint"`
			UUID   []byte `cbor:"3,keyasint"`

			Copying *struct {
				Technique uint   `cbor:"1,keyasint"`
				Path      string `cbor:"2,keyasint"`
				Volume    uint64 `cbor:"4,keyasint"`
				Head      uint64 `cbor:"5,keyasint"`
			} `cbor:"5,keyasint"`
		} `cbor:"6,keyasint"`
	} `cbor:"5,keyasint"`
	DeleteSnapshots *struct {
		IDs []uint64 `cbor:"1,keyasint"`
	} `cbor:"6,keyasint"`
	Protect  map[int]any `cbor:"7,keyasint"`
	Rollback *struct {
		Volume   uint64 `cbor:"1,keyasint"`
		To       uint64 `cbor:"2,keyasint"`
		KeptID   uint64 `cbor:"3,keyasint"`
		KeptName string `cbor:"5,keyasint"`
	} `cbor:"8,keyasint"`
	Bookmark *struct {
		Of   uint64 `cbor:"1,keyasint"`
		ID   uint64 `cbor:"2,keyasint"`
		Name string `cbor:"4,keyasint"`
	} `cbor:"9,keyasint"`
	DeleteBookmark *struct {
		ID uint64 `cbor:"1,keyasint"`
	} `cbor:"10,keyasint"`
	SetPool  map[int]any `cbor:"11,keyasint"`
	SetPlace *struct {
		Number  uint64 `cbor:"1,keyasint"`
		Changed bool   `cbor:"3,keyasint"`
	} `cbor:"12,keyasint"`
	Complete *struct {
		IDs []uint64 `cbor:"1,keyasint"`
	} `cbor:"13,keyasint"`
	Settled *struct {
		Number uint64 `cbor:"1,keyasint"`
	} `cbor:"14,keyasint"`
	PutBack *struct {
		Volume uint64 `cbor:"1,keyasint"`
		Filled uint64 `cbor:"2,keyasint"`
		Kept   uint64 `cbor:"3,keyasint"`
		Was    uint64 `cbor:"4,keyasint"`
	} `cbor:"15,keyasint"`
	CopyProgress map[int]any `cbor:"16,keyasint"`
	FinishCopy   *struct {
		Of    uint64 `cbor:"1,keyasint"`
		ID    uint64 `cbor:"2,keyasint"`
		State uint64 `cbor:"3,keyasint"`
	} `cbor:"17,keyasint"`
	CancelCopy *struct {
		ID uint64 `cbor:"1,keyasint"`
	} `cbor:"18,keyasint"`
	FillProgress *struct {
		Number uint64 `cbor:"1,keyasint"`
		Done   int64  `cbor:"2,keyasint"`
	} `cbor:"25,keyasint"`
}

// state is a state with its map.
type state struct {
	imageState
	blocks blockMap
}

// contents is the fold over the log.
type contents struct {
	*files
	lastEpoch uint64
	volumes   map[uint64]*imageVolume
	states    map[uint64]*state
	replayed  int

	bases map[string][]byte // what bases hold, by their references

	inPlace, kept int // blocks of inplace lineages that were read, and how many of them were kept
}

// readPool reconstructs what a pool holds from its files alone.
func readPool(dir fs.FS) (*contents, error) {
	f, err := readFiles(dir)
	if err != nil {
		return nil, err
	}
	c := &contents{files: f, volumes: map[uint64]*imageVolume{}, states: map[uint64]*state{}}
	if err := c.readImage(); err != nil {
		return nil, fmt.Errorf("catalogue image: %w", err)
	}
	todo, err := f.batches()
	if err != nil {
		return nil, err
	}
	for _, b := range todo {
		for _, e := range b.entries {
			if err := c.replay(e); err != nil {
				return nil, fmt.Errorf("batch %d: %w", b.seq, err)
			}
		}
	}
	c.replayed = len(todo)
	return c, nil
}

func (c *contents) readImage() error {
	if len(c.super.chunks) == 0 {
		return nil
	}
	var raw []byte
	for _, p := range c.super.chunks {
		raw = append(raw, c.at(p)...)
	}
	if uint64(len(raw)) != c.super.catalogueBytes {
		return fmt.Errorf("%d bytes of %d", len(raw), c.super.catalogueBytes)
	}
	var im image
	if err := cbor.Unmarshal(raw, &im); err != nil {
		return err
	}
	c.lastEpoch = im.LastEpoch
	for _, v := range im.Volumes {
		if len(v.UUID) != 16 {
			return fmt.Errorf("UUID of %d bytes", len(v.UUID))
		}
		c.volumes[v.Number] = &v
	}
	for _, s := range im.States {
		c.states[s.ID] = &state{s, blockMap{}}
		if s.Root == nil {
			continue
		}
		root := pointer{s.Root.Address, s.Root.Length, s.Root.CRC}
		if s.Root.Lost {
			root = lostPointer
		}
		if err := c.readMap(c.states[s.ID].blocks, root, 5, 0); err != nil {
			return fmt.Errorf("state %d: %w", s.ID, err)
		}
		if n := c.states[s.ID].blocks.mapped(); n != s.Root.Mapped {
			return fmt.Errorf("state %d maps %d blocks and says %d", s.ID, n, s.Root.Mapped)
		}
	}
	return nil
}

func (c *contents) head(volume uint64) *state { return c.states[c.volumes[volume].Head] }

func (c *contents) replay(e entry) error {
	switch e.kind {
	case 1, 2, 7:
		if c.volumes[e.volume] == nil {
			return fmt.Errorf("entry of volume %d, which is not there", e.volume)
		}
		m := c.head(e.volume).blocks
		if e.kind == 2 {
			maps.DeleteFunc(m, func(lba uint64, _ place) bool { return lba >= e.lba && lba-e.lba < e.count })
		}
		for i, crc := range e.crcs {
			if was, known := m[e.lba+uint64(i)]; e.kind == 7 && (!known || was.tomb || was.crc != crc) {
				return fmt.Errorf("block %d of volume %d was moved, and is not the one that is there", e.lba+uint64(i), e.volume)
			} else if e.kind == 7 {
				c.moved++
			}
			m[e.lba+uint64(i)] = place{address: e.address + uint64(i)*64, crc: crc}
		}
	case 8, 9, 10:
		if c.volumes[e.volume] == nil {
			return fmt.Errorf("entry of volume %d, which is not there", e.volume)
		}
		for i := range e.count {
			to := place{tomb: true}
			if e.kind != 10 {
				to = placed(e.version + i)
			}
			c.head(e.volume).blocks[e.lba+i] = to
		}
	case 3:
		var op operation
		if err := cbor.Unmarshal(e.content, &op); err != nil {
			return err
		}
		return c.apply(&op)
	case 5:
		if _, err := readSlot(e.content); err != nil {
			return fmt.Errorf("checkpoint record: %w", err)
		}
	}
	return nil
}

func (c *contents) apply(op *operation) error {
	switch {
	case op.Create != nil:
		o := op.Create
		c.lastEpoch++
		head := &state{imageState{ID: o.Head, Kind: 1, Volume: o.Number, Epoch: c.lastEpoch, Size: o.Size}, blockMap{}}
		if o.From != 0 {
			head.Parent = c.tip(o.From)
			head.blocks = maps.Clone(c.states[o.From].blocks)
		}
		c.volumes[o.Number] = &imageVolume{Number: o.Number, UUID: o.UUID, Name: o.Name, Head: o.Head, Base: o.Base}
		c.states[o.Head] = head
		if p := o.Place; p != nil {
			for lba := range uint64(o.Size+blockBytes-1) / blockBytes {
				head.blocks[lba] = placed(lba)
			}
			v := c.volumes[o.Number]
			v.Place = &struct {
				Path  string   `cbor:"1,keyasint"`
				Kept  uint64   `cbor:"2,keyasint"`
				Bases []uint64 `cbor:"5,keyasint"`
			}{Path: p.Path, Kept: p.Kept}
			c.lastEpoch++
			c.volumes[p.Kept] = &imageVolume{Number: p.Kept, Name: fmt.Sprintf("(kept of %d)", o.Number), Head: p.KeptHead, KeptOf: o.Number}
			c.states[p.KeptHead] = &state{imageState{ID: p.KeptHead, Kind: 1, Volume: p.Kept, Epoch: c.lastEpoch, Size: 1 << 55}, blockMap{}}
		}
		if f := o.Filling; f != nil {
			blocks := (f.Size + blockBytes - 1) / blockBytes
			for lba := range uint64(blocks) {
				head.blocks[lba] = placed(lba)
			}
			c.lastEpoch++
			c.volumes[o.Base] = &imageVolume{
				Number: o.Base, Name: fmt.Sprintf("(base of %d)", o.Number), Head: f.Head, Filling: &filling{Ref: f.Ref, Size: f.Size},
			}
			c.states[f.Head] = &state{imageState{ID: f.Head, Kind: 1, Volume: o.Base, Epoch: c.lastEpoch, Size: blocks * blockBytes}, blockMap{}}
		}
	case op.FillProgress != nil:
		c.volumes[op.FillProgress.Number].Filling.Done = op.FillProgress.Done
	case op.Set != nil:
		c.volumes[op.Set.Number].Name = op.Set.Name
	case op.Resize != nil:
		c.head(op.Resize.Number).Size = op.Resize.Size
	case op.Delete != nil:
		c.deleteVolume(op.Delete.Number)
	case op.Snapshots != nil:
		for _, n := range op.Snapshots.Of {
			c.freeze(n.Volume, n.ID, op.Snapshots.Name)
			c.lastEpoch++
			c.head(n.Volume).Epoch = c.lastEpoch
			if k := n.Copying; k != nil {
				s := c.states[n.ID]
				s.Copying = &copying{k.Technique, k.Path, k.Volume}
				if k.Volume != 0 {
					c.lastEpoch++
					c.volumes[k.Volume] = &imageVolume{Number: k.Volume, Name: fmt.Sprintf("(copy %d)", k.Volume), Head: k.Head, ContentOf: s.ID}
					c.states[k.Head] = &state{imageState{ID: k.Head, Kind: 1, Volume: k.Volume, Epoch: c.lastEpoch, Size: s.Size}, blockMap{}}
				}
			}
		}
	case op.DeleteSnapshots != nil:
		for _, id := range op.DeleteSnapshots.IDs {
			c.deleteSnapshot(c.states[id])
		}
	case op.CopyProgress != nil:
	case op.FinishCopy != nil:
		c.finishCopy(op.FinishCopy.Of, op.FinishCopy.ID, op.FinishCopy.State)
	case op.CancelCopy != nil:
		s := c.states[op.CancelCopy.ID]
		if seen := s.Copying.Technique == 1; seen {
			c.cancelCopy(s)
		} else {
			c.deleteSnapshot(s)
		}
	case op.Settled != nil:
		c.settled(c.volumes[op.Settled.Number])
	case op.mirrors():
		c.applyMirror(&op.mirrorOperation)
	case op.SetPlace != nil:
		if op.SetPlace.Changed {
			c.unsync(op.SetPlace.Number)
		}
	case op.Protect != nil, op.SetPool != nil, op.Complete != nil:
	case op.Rollback != nil:
		o := op.Rollback
		c.freeze(o.Volume, o.KeptID, o.KeptName)
		c.lastEpoch++
		head, to := c.head(o.Volume), c.states[o.To]
		head.Epoch, head.Size, head.Parent, head.blocks = c.lastEpoch, to.Size, c.tip(to.ID), maps.Clone(to.blocks)
		if v := c.volumes[o.Volume]; v.Place != nil {
			v.Place.Bases = append(v.Place.Bases, o.KeptID)
		}
		c.unsync(o.Volume)
	case op.PutBack != nil:
		o := op.PutBack
		head, filled := c.head(o.Volume), c.head(o.Filled)
		if c.tip(o.Kept) != filled.Parent {
			return fmt.Errorf("volume %d was filled for a rollback and not cloned from snapshot %d", o.Filled, o.Kept)
		}
		was := *head
		delete(c.states, filled.ID)
		delete(c.volumes, o.Filled)
		c.lastEpoch++
		head.Epoch, head.Size, head.Parent, head.blocks = c.lastEpoch, filled.Size, filled.Parent, filled.blocks
		if v := c.volumes[o.Volume]; v.Place != nil {
			was.ID, was.Kind = o.Was, 3
			c.states[o.Was] = &was
			v.Place.Bases = append(v.Place.Bases, o.Was)
		} else {
			c.dissolve(was.Parent)
		}
		c.unsync(o.Volume)
	case op.Bookmark != nil:
		o, of := op.Bookmark, c.states[op.Bookmark.Of]
		c.insert(&state{imageState{
			ID: o.ID, Kind: 4, Volume: of.Volume, Parent: of.ID, Epoch: of.Epoch, Size: of.Size, Name: o.Name, Of: of.Name,
		}, of.blocks})
	case op.DeleteBookmark != nil:
		c.deleteBookmark(c.states[op.DeleteBookmark.ID])
	default:
		return fmt.Errorf("operation of an unknown kind")
	}
	return nil
}

func (c *contents) deleteVolume(number uint64) {
	v, head := c.volumes[number], c.head(number)
	copies := false
	for _, s := range c.states {
		copies = copies || s.Kind == 6 && s.Volume == number
	}
	if !copies {
		delete(c.states, head.ID)
	}
	if v.Place != nil {
		c.settled(v)
		delete(c.states, c.head(v.Place.Kept).ID)
		delete(c.volumes, v.Place.Kept)
	}
	parent, base := head.Parent, v.Base
	if copies {
		c.emptyHead(head)
		v.Place, v.Base, v.Deleted = nil, 0, true
	}
	c.dissolve(parent)
	for _, id := range slices.Sorted(maps.Keys(c.states)) {
		if s := c.states[id]; s != nil && s.Kind == 4 && s.Volume == number {
			c.deleteBookmark(s)
		}
	}
	if !copies {
		delete(c.volumes, number)
	}
	if of := c.volumes[base]; of != nil && of.Filling != nil {
		for _, o := range c.volumes {
			if o.Base == base {
				return
			}
		}
		delete(c.states, of.Head)
		delete(c.volumes, base)
	}
}

func (c *contents) deleteSnapshot(s *state) {
	if s.Kind != 6 {
		c.cancelCopy(s)
		s.Kind = 3
		c.dissolve(s.ID)
		return
	}
	if at := c.states[s.Content.State]; at != nil {
		c.deleteSnapshot(at)
		c.deleteVolume(at.Volume)
	}
	c.deleteBookmark(s)
	last := c.volumes[s.Volume].Deleted
	for _, k := range c.states {
		last = last && (k.Kind != 6 || k.Volume != s.Volume)
	}
	if last {
		c.deleteVolume(s.Volume)
	}
}

func (c *contents) cancelCopy(s *state) {
	if s.Copying != nil && s.Copying.Volume != 0 {
		c.deleteVolume(s.Copying.Volume)
	}
	s.Copying = nil
}

func (c *contents) finishCopy(of, id, at uint64) {
	s := c.states[of]
	k := &state{s.imageState, s.blocks}
	k.ID, k.Kind, k.Parent, k.Copying, k.Content = id, 6, of, nil, &content{at, s.Copying.Path}
	c.insert(k)
	if at != 0 {
		v := c.volumes[s.Copying.Volume]
		v.ContentOf = id
		c.freeze(v.Number, at, v.Name)
		c.emptyHead(c.head(v.Number))
	}
	s.Kind, s.Copying = 3, nil
	c.dissolve(of)
}

func (c *contents) emptyHead(head *state) {
	c.lastEpoch++
	head.Epoch, head.Parent, head.blocks = c.lastEpoch, 0, blockMap{}
}

// insert puts a state between its parent and all that descends from that.
func (c *contents) insert(s *state) {
	for _, k := range c.children(s.Parent) {
		k.Parent = s.ID
	}
	c.states[s.ID] = s
}

// settled lets a volume's bases go.
func (c *contents) settled(v *imageVolume) {
	bases := v.Place.Bases
	v.Place.Bases = nil
	for _, id := range bases {
		c.dissolve(id)
	}
}

// freeze puts a snapshot between a volume's head and the head's parent.
func (c *contents) freeze(volume, id uint64, name string) {
	head := c.head(volume)
	c.states[id] = &state{imageState{
		ID: id, Kind: 2, Volume: volume, Parent: head.Parent, Epoch: head.Epoch, Size: head.Size, Name: name,
	}, maps.Clone(head.blocks)}
	head.Parent = id
}

func (c *contents) children(id uint64) (list []*state) {
	for _, k := range c.states {
		if k.Parent == id {
			list = append(list, k)
		}
	}
	return list
}

// dataParent is the id of the nearest ancestor that is a snapshot or hidden; 0: there is none.
func (c *contents) dataParent(s *state) uint64 {
	for {
		p := c.states[s.Parent]
		if p == nil {
			return 0
		}
		if p.Kind == 2 || p.Kind == 3 {
			return p.ID
		}
		s = p
	}
}

// tip is the last bookmark of the snapshot's epoch behind it, or the snapshot.
func (c *contents) tip(id uint64) uint64 {
	tip := id
	for next := true; next; {
		next = false
		for _, k := range c.children(tip) {
			if (k.Kind == 4 || k.Kind == 6) && k.Epoch == c.states[id].Epoch {
				tip, next = k.ID, true
			}
		}
	}
	return tip
}

func (c *contents) remove(s *state) {
	for _, k := range c.children(s.ID) {
		k.Parent = s.Parent
	}
	delete(c.states, s.ID)
}

func (c *contents) deleteBookmark(s *state) {
	p := c.states[s.Parent]
	if p != nil && p.Epoch == s.Epoch || len(c.children(s.ID)) <= 1 {
		c.remove(s)
		c.dissolve(s.Parent)
	} else {
		s.Kind = 5
	}
}

func (c *contents) dissolve(id uint64) {
	s := c.states[id]
	if s == nil || s.Kind == 1 || s.Kind == 2 {
		return
	}
	if s.Kind == 3 {
		n := 0
		for _, k := range c.states {
			if (k.Kind == 1 || k.Kind == 2 || k.Kind == 3) && c.dataParent(k) == id {
				n++
			}
		}
		if v := c.volumes[s.Volume]; n >= 2 || v != nil && v.Place != nil && slices.Contains(v.Place.Bases, id) {
			return
		}
	}
	if s.Kind != 4 && s.Kind != 6 {
		if len(c.children(id)) <= 1 {
			c.remove(s)
		} else {
			s.Kind = 5
		}
	}
	c.dissolve(s.Parent)
}
