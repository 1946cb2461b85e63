package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"

	lru "github.com/hashicorp/golang-lru/v2"
)

// Tables are read in pages, the unit of the cache.
const (
	maxPageBytes = 4 << 10
	cachedPages  = 1024
)

// What all layers of a chain share.
type shared struct {
	pages    *lru.Cache[place, []byte] // parts of L1 and L2 tables
	clusters *lru.Cache[place, []byte] // decompressed clusters
	inflated *decoders
}

// place is an offset in the file of a layer; for clusters, in the guest's view of it.
type place struct {
	layer  int
	offset int64
}

func newShared() *shared {
	pages, err := lru.New[place, []byte](cachedPages)
	if err != nil {
		panic(err) // only for a size below 1
	}
	clusters, err := lru.New[place, []byte](cachedClusters)
	if err != nil {
		panic(err)
	}
	return &shared{pages: pages, clusters: clusters, inflated: newDecoders()}
}

// Bits of L1 and L2 entries, spec "Cluster mapping".
const (
	entryCopied     = uint64(1) << 63
	entryCompressed = uint64(1) << 62
	entryZero       = uint64(1)
	offsetMask      = uint64(1)<<56 - uint64(1)<<9
)

// kind is how a stretch of the guest's disk is stored in a layer.
type kind uint8

const (
	unallocated   kind = iota // in the backing file, else zeros
	zeroPlain                 // zeros, and no host cluster
	zeroAllocated             // zeros, and a host cluster kept for later
	data                      // in the file as it is
	compressed                // one compressed cluster
)

// run is a stretch of one kind; of data, contiguous in the file too.
type run struct {
	kind   kind
	length int64  // bytes
	host   int64  // data: where it begins in the file
	entry  uint64 // compressed: the L2 entry
}

// cursor looks up mappings in ascending order: it keeps the pages at hand.
type cursor struct {
	ctx context.Context
	im  *Image
	l1  page
	l2  page
}

type page struct {
	offset int64 // in the file
	data   []byte
}

// entry reads the 8 bytes at off, which belong to a table.
func (c *cursor) entry(p *page, off int64) (uint64, error) {
	pageBytes := min(maxPageBytes, c.im.clusterBytes())
	if base := off &^ (pageBytes - 1); p.data == nil || p.offset != base {
		if err := c.ctx.Err(); err != nil {
			return 0, err
		}
		data, err := c.im.page(c.ctx, base, pageBytes)
		if err != nil {
			return 0, err
		}
		p.offset, p.data = base, data
	}
	return binary.BigEndian.Uint64(p.data[off-p.offset:]), nil
}

// page reads a part of a table, which may be at the end of the file.
func (im *Image) page(ctx context.Context, off, length int64) ([]byte, error) {
	key := place{im.layer, off}
	if p, ok := im.shared.pages.Get(key); ok {
		return p, nil
	}
	p := make([]byte, length)
	inFile := min(length, im.file.SizeBytes()-off) // the L1 table's last page may be cut short
	if err := im.file.ReadAt(ctx, p[:inFile], off); err != nil {
		return nil, err
	}
	im.shared.pages.Add(key, p)
	return p, nil
}

// l2Table is where the L2 table of an L1 entry is; 0 for none.
func (im *Image) l2Table(entry uint64) (int64, error) {
	if reserved := entry &^ (offsetMask | entryCopied); reserved != 0 {
		return 0, corrupt("reserved bits 0x%x are set", reserved)
	}
	off := int64(entry & offsetMask)
	if off&(im.clusterBytes()-1) != 0 {
		return 0, corrupt("the L2 table at %d is not at a cluster", off)
	}
	if off != 0 && off > im.file.SizeBytes()-im.clusterBytes() {
		return 0, corrupt("the L2 table at %d lies beyond the end of the file", off)
	}
	return off, nil
}

// run describes the disk from off on, up to end at most.
func (c *cursor) run(off, end int64) (run, error) {
	r, err := c.at(off)
	if err != nil {
		return run{}, fmt.Errorf("mapping of %s at %d: %w", c.im.path, off, err)
	}
	for r.length < end-off && r.kind != compressed {
		next, err := c.at(off + r.length)
		if err != nil || next.kind != r.kind || r.kind == data && next.host != r.host+r.length {
			break // an error comes back when the caller gets there
		}
		r.length += next.length
	}
	r.length = min(r.length, end-off)
	return r, nil
}

// at describes the disk from off to the end of its subcluster, cluster, or of
// what its L1 entry covers, whichever is known to be of one kind.
func (c *cursor) at(off int64) (run, error) {
	im := c.im
	l1Offset := im.l1Offset + (off>>im.l1Bits())*8
	l1Entry, err := c.entry(&c.l1, l1Offset)
	if err != nil {
		return run{}, err
	}
	table, err := im.l2Table(l1Entry)
	if err != nil {
		return run{}, err
	}
	if table == 0 {
		return run{kind: unallocated, length: rest(off, im.l1Bits()) + c.emptyAfter(l1Offset)<<im.l1Bits()}, nil
	}
	index := (off >> im.clusterBits) & (1<<im.l2Bits() - 1)
	entryOffset := table + index<<im.l2EntryBits()
	entry, err := c.entry(&c.l2, entryOffset)
	if err != nil {
		return run{}, err
	}
	if entry&entryCompressed != 0 {
		return run{kind: compressed, length: rest(off, im.clusterBits), entry: entry}, nil
	}
	if im.extendedL2 {
		bitmap, err := c.entry(&c.l2, entryOffset+8)
		if err != nil {
			return run{}, err
		}
		return im.subcluster(off, entry, bitmap)
	}
	return im.cluster(off, entry)
}

// emptyAfter counts the zero entries that follow the L1 entry at off in the page
// at hand, so that huge empty disks are described in few steps. The page may
// hold other things behind the table; whoever asks for a run clips it.
func (c *cursor) emptyAfter(off int64) (n int64) {
	for p := c.l1.data[off+8-c.l1.offset:]; len(p) > 0 && binary.BigEndian.Uint64(p) == 0; p = p[8:] {
		n++
	}
	return n
}

// rest is the distance from off to the next multiple of 2^bits.
func rest(off int64, bits uint) int64 {
	return 1<<bits - off&(1<<bits-1)
}

// hostCluster is the cluster that a standard descriptor points to; 0 for none.
func (im *Image) hostCluster(entry uint64) (int64, error) {
	if reserved := entry &^ (offsetMask | entryCopied | entryZero); reserved != 0 {
		return 0, corrupt("reserved bits 0x%x of an L2 entry are set", reserved)
	}
	host := int64(entry & offsetMask)
	if host&(im.clusterBytes()-1) != 0 {
		return 0, corrupt("the data at %d is not at a cluster", host)
	}
	return host, nil
}

// cluster interprets a standard L2 entry, spec "Standard Cluster Descriptor".
func (im *Image) cluster(off int64, entry uint64) (run, error) {
	r := run{length: rest(off, im.clusterBits)}
	host, err := im.hostCluster(entry)
	switch {
	case err != nil:
		return run{}, err
	case entry&entryZero != 0 && im.version < 3:
		return run{}, corrupt("a zero cluster in an image of version 2")
	case entry&entryZero != 0 && host == 0:
		r.kind = zeroPlain
	case entry&entryZero != 0:
		r.kind = zeroAllocated
	case host != 0:
		r.kind, r.host = data, host+off&(im.clusterBytes()-1)
	}
	return r, nil
}

// subcluster interprets an extended L2 entry, spec "Extended L2 Entries".
func (im *Image) subcluster(off int64, entry, bitmap uint64) (run, error) {
	const subclusterBits = 5 // binary logarithm of subclusters in a cluster
	bits := im.clusterBits - subclusterBits
	r := run{length: rest(off, bits)}
	host, err := im.hostCluster(entry)
	if err != nil {
		return run{}, err
	}
	i := (off >> bits) & (1<<subclusterBits - 1)
	allocated, zero := bitmap>>i&1 != 0, bitmap>>(i+32)&1 != 0
	switch {
	case entry&entryZero != 0:
		return run{}, corrupt("the zero bit of an extended L2 entry is set")
	case allocated && zero:
		return run{}, corrupt("a subcluster is both allocated and zero")
	case allocated && host == 0:
		return run{}, corrupt("a subcluster is allocated nowhere")
	case allocated:
		r.kind, r.host = data, host+off&(im.clusterBytes()-1)
	case zero && host == 0:
		r.kind = zeroPlain
	case zero:
		r.kind = zeroAllocated
	}
	return r, nil
}
