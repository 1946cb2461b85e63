package pool_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"varve/internal/block"
	"varve/internal/pool"
)

// model is what a pool should hold, as plain bytes. Blocks are never changed but
// replaced, so that clone is cheap.
type model struct {
	volumes map[string]*modelVolume
	quota   int64
}

type content struct {
	size   int64
	blocks map[int64][]byte // by LBA; none: zeros
	// versions has a number for each block that holds data, which is new with each write. Two states
	// that descend from each other, or from one, differ in exactly those blocks whose versions differ.
	versions map[int64]uint64
	told     []int64 // by a pool: the blocks that have changed since; nil: the versions tell
}

func newContent(size int64) content {
	return content{size: size, blocks: map[int64][]byte{}, versions: map[int64]uint64{}}
}

type modelVolume struct {
	content
	family    int // the same for a volume and its clones
	snapshots map[string]*modelSnapshot
	bookmarks map[string]*modelBookmark
	labels    map[string]string
}

func newModelVolume(c content, family int) *modelVolume {
	return &modelVolume{content: c, family: family, snapshots: map[string]*modelSnapshot{}, bookmarks: map[string]*modelBookmark{}}
}

// taken tells whether a snapshot or bookmark has the name.
func (v *modelVolume) taken(name string) bool {
	return v.snapshots[name] != nil || v.bookmarks[name] != nil
}

type modelBookmark struct {
	content
	of string // snapshot
}

type modelSnapshot struct {
	content
	protected bool
}

var (
	errRefused = errors.New("the model refuses this")
	zeros      = make([]byte, block.Size)
)

func newModel() *model { return &model{volumes: map[string]*modelVolume{}} }

func (c content) clone() content {
	return content{size: c.size, blocks: maps.Clone(c.blocks), versions: maps.Clone(c.versions)}
}

func (m *model) clone() *model {
	n := newModel()
	n.quota = m.quota
	for name, v := range m.volumes {
		w := newModelVolume(v.content.clone(), v.family)
		w.labels = maps.Clone(v.labels)
		for s, snap := range v.snapshots {
			w.snapshots[s] = &modelSnapshot{snap.content, snap.protected} // its content never changes
		}
		maps.Copy(w.bookmarks, v.bookmarks)
		n.volumes[name] = w
	}
	return n
}

var lastVersion atomic.Uint64

// hold notes that blocks [lo, hi) hold data of their own from now on.
func (c *content) hold(lo, hi int64) {
	for lba := lo; lba < hi; lba++ {
		c.versions[lba] = lastVersion.Add(1)
	}
}

// drop notes that blocks [lo, hi) hold nothing any more.
func (c *content) drop(lo, hi int64) {
	for lba := lo; lba < hi; lba++ {
		delete(c.versions, lba)
	}
}

func blocksUpTo(n int64) int64 { return (n + block.Size - 1) / block.Size }

// apply does what a device does.
func (c *content) apply(o *block.Op) {
	from, to := o.Offset, o.Offset+o.Length
	lo, hi := blocksUpTo(from), to/block.Size // whole blocks
	if to == c.size {
		hi = blocksUpTo(to)
	}
	switch o.Kind {
	case block.OpDiscard:
		c.discard(from, o.Length)
		c.drop(lo, hi)
		return
	case block.OpWrite:
		c.write(from, o.Data, o.Length)
	default:
		c.write(from, nil, o.Length)
	}
	if o.Length == 0 {
		return
	}
	c.hold(from/block.Size, blocksUpTo(to))
	if o.Kind == block.OpZero {
		c.drop(lo, hi)
	}
}

// changed are the blocks that differ from what they are in since, in order.
func (c content) changed(since content) []int64 {
	if since.told != nil {
		return since.told
	}
	list := []int64{}
	for lba := range blocksUpTo(c.size) {
		if c.versions[lba] != since.versions[lba] {
			list = append(list, lba)
		}
	}
	return list
}

// write puts data at off; nil data of length n are zeros.
func (c *content) write(off int64, data []byte, n int64) {
	for n > 0 {
		lba, in := off/block.Size, off%block.Size
		k := min(block.Size-in, n)
		b := make([]byte, block.Size)
		copy(b, c.blocks[lba])
		if data != nil {
			copy(b[in:], data[:k])
			data = data[k:]
		} else {
			clear(b[in : in+k])
		}
		if bytes.Equal(b, zeros) {
			delete(c.blocks, lba)
		} else {
			c.blocks[lba] = b
		}
		off, n = off+k, n-k
	}
}

// discard zeroes the whole blocks of the range; a device's last block counts as whole.
func (c *content) discard(off, n int64) {
	lo, hi := (off+block.Size-1)/block.Size, (off+n)/block.Size
	if off+n == c.size {
		hi = (off + n + block.Size - 1) / block.Size
	}
	for lba := lo; lba < hi; lba++ {
		delete(c.blocks, lba)
	}
}

func (c *content) resize(size int64) {
	if size < c.size {
		c.write(size, nil, c.size-size)
		if lba := size / block.Size; size%block.Size != 0 && c.versions[lba] != 0 {
			c.hold(lba, lba+1)
		}
		c.drop(blocksUpTo(size), blocksUpTo(c.size))
	}
	c.size = size
}

func (m *model) createVolume(name string, size int64) error {
	if m.volumes[name] != nil {
		return errRefused
	}
	m.volumes[name] = newModelVolume(newContent(size), int(lastVersion.Add(1)))
	return nil
}

// unfilled are the versions of blocks that a base has as holes: nobody sees that they were ever written, but in a diff, if they are now.
var unfilled sync.Map

func (c content) hole(lba int64) bool {
	v := c.versions[lba]
	_, hole := unfilled.Load(v)
	return v == 0 || hole
}

func (m *model) createOver(name string, size int64, base []byte) error {
	if m.volumes[name] != nil || size < int64(len(base)) {
		return errRefused
	}
	c := newContent(size)
	c.write(0, base, int64(len(base)))
	c.hold(0, blocksUpTo(int64(len(base))))
	for lba, v := range c.versions {
		if c.blocks[lba] == nil {
			unfilled.Store(v, true)
		}
	}
	m.volumes[name] = newModelVolume(c, int(lastVersion.Add(1)))
	return nil
}

func (m *model) snapshot(volumes []string, name string) error {
	for _, v := range volumes {
		if m.volumes[v] == nil || m.volumes[v].taken(name) {
			return errRefused
		}
	}
	for _, v := range volumes {
		m.volumes[v].snapshots[name] = &modelSnapshot{content: m.volumes[v].content.clone()}
	}
	return nil
}

func (m *model) find(volume, snap string) *modelSnapshot {
	if v := m.volumes[volume]; v != nil {
		return v.snapshots[snap]
	}
	return nil
}

func (m *model) deleteSnapshot(volume, snap string) error {
	if s := m.find(volume, snap); s == nil || s.protected {
		return errRefused
	}
	delete(m.volumes[volume].snapshots, snap)
	return nil
}

func (m *model) createBookmark(volume, snap, name string) error {
	s := m.find(volume, snap)
	if s == nil || m.volumes[volume].taken(name) {
		return errRefused
	}
	m.volumes[volume].bookmarks[name] = &modelBookmark{s.content, snap}
	return nil
}

func (m *model) deleteBookmark(volume, name string) error {
	if v := m.volumes[volume]; v == nil || v.bookmarks[name] == nil {
		return errRefused
	}
	delete(m.volumes[volume].bookmarks, name)
	return nil
}

func (m *model) rollback(volume, snap, kept string) error {
	s := m.find(volume, snap)
	if s == nil {
		return errRefused
	}
	v := m.volumes[volume]
	v.snapshots[kept] = &modelSnapshot{content: v.content}
	v.content = s.content.clone()
	return nil
}

// putBack is a rollback that copies ranges, or all, of what differs by the versions, or by the bytes.
func (m *model) putBack(volume, snap, kept string, ranges []pool.Range, compare bool) error {
	s := m.find(volume, snap)
	if s == nil {
		return errRefused
	}
	v := m.volumes[volume]
	then, now := s.content, v.content.clone()
	if end := min(then.size, now.size); !valid(ranges, end) {
		return errRefused
	}
	if ranges == nil {
		now.resize(then.size)
		ranges = []pool.Range{{Offset: 0, Length: then.size}}
	}
	done := map[int64]bool{}
	for _, r := range ranges {
		for lba := r.Offset / block.Size; lba*block.Size < r.Offset+r.Length; lba++ {
			differs := then.versions[lba] != v.versions[lba]
			if compare {
				differs = !bytes.Equal(then.block(lba), v.block(lba))
			}
			if !differs || done[lba] {
				continue
			}
			done[lba] = true
			o := block.Op{Kind: block.OpZero, Offset: lba * block.Size, Length: min(block.Size, r.Offset+r.Length-lba*block.Size)}
			if !then.hole(lba) {
				o.Kind, o.Data = block.OpWrite, then.block(lba)[:o.Length]
			}
			now.apply(&o)
		}
	}
	v.snapshots[kept] = &modelSnapshot{content: v.content}
	v.content = now
	return nil
}

func valid(ranges []pool.Range, end int64) bool {
	for _, r := range ranges {
		last := r.Offset + r.Length
		if r.Offset < 0 || r.Length <= 0 || last > end || r.Offset%block.Size != 0 || last%block.Size != 0 && last != end {
			return false
		}
	}
	return true
}

func (c content) block(lba int64) []byte {
	if b := c.blocks[lba]; b != nil {
		return b
	}
	return zeros
}

func (m *model) cloneVolume(volume, snap, name string) error {
	s := m.find(volume, snap)
	if s == nil || m.volumes[name] != nil {
		return errRefused
	}
	m.volumes[name] = newModelVolume(s.content.clone(), m.volumes[volume].family)
	return nil
}

func (m *model) deleteVolume(name string) error {
	if v := m.volumes[name]; v == nil || len(v.snapshots) > 0 {
		return errRefused
	}
	delete(m.volumes, name)
	return nil
}

// String describes everything the model holds; two models (or a pool and a model)
// are alike iff these are equal.
func (m *model) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "quota %d\n", m.quota)
	for _, name := range slices.Sorted(maps.Keys(m.volumes)) {
		v := m.volumes[name]
		fmt.Fprintf(&b, "%s %s", name, v.content.digest())
		for _, k := range slices.Sorted(maps.Keys(v.labels)) {
			fmt.Fprintf(&b, " %s=%s", k, v.labels[k])
		}
		b.WriteByte('\n')
		for _, s := range slices.Sorted(maps.Keys(v.snapshots)) {
			snap := v.snapshots[s]
			fmt.Fprintf(&b, "  @%s %s protected=%t; changed: %v\n", s, snap.content.digest(), snap.protected, v.changed(snap.content))
		}
		for _, k := range slices.Sorted(maps.Keys(v.bookmarks)) {
			of := v.bookmarks[k]
			fmt.Fprintf(&b, "  #%s of %s, %d bytes; changed: %v\n", k, of.of, of.size, v.changed(of.content))
		}
	}
	return b.String()
}

// digest names every block by the first bytes of its stamp, so that a difference can be read, and
// those that hold zeros.
func (c content) digest() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d:", c.size)
	for _, lba := range slices.Sorted(maps.Keys(c.blocks)) {
		fmt.Fprintf(&b, " %d=%08x", lba, sum(c.blocks[lba]))
	}
	for _, lba := range slices.Sorted(maps.Keys(c.versions)) {
		if c.blocks[lba] == nil && !c.hole(lba) {
			fmt.Fprintf(&b, " %d=zeros", lba)
		}
	}
	return b.String()
}
