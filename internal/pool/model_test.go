package pool_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"varve/internal/block"
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
}

type modelVolume struct {
	content
	snapshots map[string]*modelSnapshot
	bookmarks map[string]*modelBookmark
	labels    map[string]string
}

func newModelVolume(c content) *modelVolume {
	return &modelVolume{content: c, snapshots: map[string]*modelSnapshot{}, bookmarks: map[string]*modelBookmark{}}
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

func (c content) clone() content { return content{c.size, maps.Clone(c.blocks)} }

func (m *model) clone() *model {
	n := newModel()
	n.quota = m.quota
	for name, v := range m.volumes {
		w := newModelVolume(v.content.clone())
		w.labels = maps.Clone(v.labels)
		for s, snap := range v.snapshots {
			w.snapshots[s] = &modelSnapshot{snap.content, snap.protected} // its content never changes
		}
		maps.Copy(w.bookmarks, v.bookmarks)
		n.volumes[name] = w
	}
	return n
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
	}
	c.size = size
}

func (m *model) createVolume(name string, size int64) error {
	if m.volumes[name] != nil {
		return errRefused
	}
	m.volumes[name] = newModelVolume(content{size, map[int64][]byte{}})
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

func (m *model) cloneVolume(volume, snap, name string) error {
	s := m.find(volume, snap)
	if s == nil || m.volumes[name] != nil {
		return errRefused
	}
	m.volumes[name] = newModelVolume(s.content.clone())
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
			fmt.Fprintf(&b, "  @%s %s protected=%t\n", s, snap.content.digest(), snap.protected)
		}
		for _, k := range slices.Sorted(maps.Keys(v.bookmarks)) {
			fmt.Fprintf(&b, "  #%s of %s, %d bytes\n", k, v.bookmarks[k].of, v.bookmarks[k].size)
		}
	}
	return b.String()
}

// digest names every block by the first bytes of its stamp, so that a difference can be read.
func (c content) digest() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d:", c.size)
	for _, lba := range slices.Sorted(maps.Keys(c.blocks)) {
		fmt.Fprintf(&b, " %d=%08x", lba, sum(c.blocks[lba]))
	}
	return b.String()
}
