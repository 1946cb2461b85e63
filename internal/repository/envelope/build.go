package envelope

import (
	"fmt"
	"hash/crc32"
	"sort"
	"sync"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/klauspost/reedsolomon"
)

// stripBytes is how much of each shard of a group is worked on at a time, so
// that what was just read for the checksum is still in the cache for the parity.
const stripBytes = 16 << 10

// Build returns the object with that header, whose payload is the concatenation
// of the slices given. They become part of the object as they are and must not
// change as long as it is used. Version, PayloadBytes and ShardBytes of the
// header are set here; the rest is the caller's. A header that DecodeHeader
// would not accept is an error.
func Build(h Header, payload ...[]byte) (object [][]byte, err error) {
	p := newParts(payload)
	h.PayloadBytes = p.bytes
	if err := h.check(); err != nil {
		return nil, fmt.Errorf("build %v: %w", h.Kind, err)
	}
	g := h.geometry()
	h.ShardBytes = g.shardBytes

	raw := h.encode()
	ends := make([]byte, 2*g.payloadOffset())
	front, back := ends[:len(ends)/2:len(ends)/2], ends[len(ends)/2:]
	table := front[HeaderBytes:]
	parity := make([]byte, g.parityBytes())
	if err := protect(g, p, parity, table); err != nil {
		return nil, fmt.Errorf("build %v: %w", h.Kind, err)
	}
	copy(front, raw[:])
	closeTable(raw[:], table)
	copy(back, table)
	copy(back[len(table):], raw[:])

	object = make([][]byte, 0, len(payload)+3)
	object = append(object, front)
	object = append(object, payload...)
	return append(object, parity, back), nil
}

// protect fills in the parity and the table's entries of a payload.
func protect(g geometry, p parts, parity, table []byte) error {
	w := workspaces.Get().(*workspace)
	defer w.release()
	sums := make([]uint32, g.shards())
	for i := range g.groups {
		if err := w.protectGroup(g, i, p, parity, sums); err != nil {
			return err
		}
	}
	for j := range g.parity() {
		sums[g.data+j] = crc32.Checksum(parity[j*g.shardBytes:(j+1)*g.shardBytes], castagnoli)
	}
	for s, sum := range sums {
		putEntry(table, s, sum)
	}
	return nil
}

func (w *workspace) protectGroup(g geometry, i int, p parts, parity []byte, sums []uint32) error {
	k := g.dataOf(i)
	var code reedsolomon.Encoder
	if g.perGroup > 0 {
		var err error
		if code, err = codeFor(k, g.perGroup); err != nil {
			return err
		}
	}
	strip := min(stripBytes, g.shardBytes)
	for at := 0; at < g.shardBytes; at += strip {
		w.used = 0
		shards := w.shards[:0]
		for s := i; s < g.shards(); s += g.groups {
			if s >= g.data {
				from := (s-g.data)*g.shardBytes + at
				shards = append(shards, parity[from:from+strip])
				continue
			}
			piece, stored := p.piece(int64(s)*int64(g.shardBytes)+int64(at), strip, w)
			sums[s] = crc32.Update(sums[s], castagnoli, piece[:stored])
			shards = append(shards, piece)
		}
		if code != nil {
			if err := code.Encode(shards); err != nil {
				return err
			}
		}
	}
	return nil
}

// parts are the slices that a payload is the concatenation of.
type parts struct {
	slices [][]byte
	ends   []int64 // of each slice, in the payload
	bytes  int64
}

func newParts(payload [][]byte) parts {
	p := parts{slices: payload, ends: make([]int64, len(payload))}
	for i, b := range payload {
		p.bytes += int64(len(b))
		p.ends[i] = p.bytes
	}
	return p
}

// piece returns size bytes of the payload from off on, filled up with zeros, and how many of
// them are of the payload. It is copied only where it is not in one slice.
func (p parts) piece(off int64, size int, w *workspace) (piece []byte, stored int) {
	stored = int(max(0, min(int64(size), p.bytes-off)))
	i := sort.Search(len(p.ends), func(i int) bool { return p.ends[i] > off })
	if i < len(p.ends) && p.ends[i]-off >= int64(size) {
		from := int64(len(p.slices[i])) - (p.ends[i] - off)
		return p.slices[i][from:][:size], stored
	}
	piece = w.spare(size)
	n := 0
	for ; n < stored; i++ {
		from := int64(len(p.slices[i])) - (p.ends[i] - off - int64(n))
		n += copy(piece[n:], p.slices[i][from:])
	}
	clear(piece[n:])
	return piece, stored
}

// workspace is the memory that protecting a group takes.
type workspace struct {
	shards [2 * maxGroupData][]byte
	spares [][]byte // stripBytes each
	used   int      // spares in use
}

var workspaces = sync.Pool{New: func() any { return new(workspace) }}

func (w *workspace) release() {
	clear(w.shards[:]) // they point into payloads
	workspaces.Put(w)
}

func (w *workspace) spare(size int) []byte {
	if w.used == len(w.spares) {
		w.spares = append(w.spares, make([]byte, stripBytes))
	}
	w.used++
	return w.spares[w.used-1][:size]
}

// codes keeps Reed-Solomon codes by the numbers of data and parity shards: to compute the matrix
// of a large one takes milliseconds.
var codes, _ = lru.New[[2]int, reedsolomon.Encoder](128)

func codeFor(data, parity int) (reedsolomon.Encoder, error) {
	key := [2]int{data, parity}
	if code, ok := codes.Get(key); ok {
		return code, nil
	}
	// Packs are built side by side; one alone is done sooner than its goroutines are started.
	code, err := reedsolomon.New(data, parity, reedsolomon.WithMaxGoroutines(1), reedsolomon.WithInversionCache(false))
	if err != nil {
		return nil, fmt.Errorf("code of %d and %d shards: %w", data, parity, err)
	}
	codes.Add(key, code)
	return code, nil
}
