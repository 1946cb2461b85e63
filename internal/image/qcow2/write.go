package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"

	"varve/internal/block"
	"varve/internal/image/raw"
	"varve/internal/image/target"
	"varve/internal/image/transfer"
)

// The written images are QEMU's default: version 3, clusters of 64 KiB,
// reference counts of 16 bits, nothing compressed, no backing file.
const (
	writeClusterBits = 16
	writeCluster     = 1 << writeClusterBits
	l2Entries        = writeCluster / 8
	l2Span           = int64(l2Entries) * writeCluster // guest bytes of an L2 table
	refcountsInBlock = writeCluster / 2
)

// Write exports src as a qcow2 image at path, which appears under its name only
// when it is complete and durable (package target). Clusters of zeros are left out.
//
// The file is written front to back, every cluster used exactly once: header, L1
// table, then data with each L2 table behind the data that it maps, then
// reference counts. Memory: the L1 table (1 MiB for 64 TiB), one L2 table, and
// what package transfer reads ahead.
func Write(ctx context.Context, path string, src block.Device, opts target.Options) error {
	if src.SizeBytes() > block.MaxDeviceBytes {
		return fmt.Errorf("write %s: %d bytes: %w", path, src.SizeBytes(), raw.ErrTooLarge)
	}
	out, err := target.Create(path, opts.Replace)
	if err != nil {
		return err
	}
	defer out.Abort()
	w := newWriter(out, src.SizeBytes())
	if err := transfer.Read(ctx, src, writeCluster, opts.Progress, w.add); err != nil {
		return err
	}
	if err := w.finish(); err != nil {
		return err
	}
	return out.Commit()
}

type writer struct {
	out       *target.File
	sizeBytes int64
	next      int64  // where the next cluster goes
	l1        []byte // as it will be in the file
	l2        []byte // the table being filled, all zero if none is
	l2Index   int64  // its place in l1; -1: none
}

func newWriter(out *target.File, sizeBytes int64) *writer {
	l1Bytes := max(1, (sizeBytes+l2Span-1)/l2Span) * 8
	return &writer{
		out:       out,
		sizeBytes: sizeBytes,
		next:      writeCluster + clusters(l1Bytes)*writeCluster,
		l1:        make([]byte, l1Bytes),
		l2:        make([]byte, writeCluster),
		l2Index:   -1,
	}
}

// clusters is how many clusters n bytes take.
func clusters(n int64) int64 { return (n + writeCluster - 1) >> writeClusterBits }

// append writes p in new clusters and returns where.
func (w *writer) append(p []byte) (off int64, err error) {
	off = w.next
	w.next += clusters(int64(len(p))) << writeClusterBits
	return off, w.out.WriteAt(p, off)
}

// add stores data and maps it. Runs of data begin at clusters and, because
// chunks do, end before the next L2 table begins.
func (w *writer) add(runs []transfer.Run) error {
	for _, r := range runs {
		if r.Data == nil {
			continue
		}
		if index := r.Offset / l2Span; index != w.l2Index {
			if err := w.flushL2(); err != nil {
				return err
			}
			w.l2Index = index
		}
		host, err := w.append(r.Data)
		if err != nil {
			return err
		}
		entry := r.Offset % l2Span >> writeClusterBits
		for i := range clusters(r.Length) {
			binary.BigEndian.PutUint64(w.l2[(entry+i)*8:], uint64(host+i<<writeClusterBits)|entryCopied)
		}
	}
	return nil
}

// flushL2 writes the L2 table being filled, if there is one.
func (w *writer) flushL2() error {
	if w.l2Index < 0 {
		return nil
	}
	off, err := w.append(w.l2)
	if err != nil {
		return err
	}
	binary.BigEndian.PutUint64(w.l1[w.l2Index*8:], uint64(off)|entryCopied)
	clear(w.l2)
	w.l2Index = -1
	return nil
}

// finish writes what refers to the rest: reference counts, the L1 table, the header.
func (w *writer) finish() error {
	if err := w.flushL2(); err != nil {
		return err
	}
	tableOffset, tableBytes, err := w.writeRefcounts()
	if err != nil {
		return err
	}
	if err := w.out.WriteAt(w.l1, writeCluster); err != nil {
		return err
	}
	// All of the file's clusters are in it, also where the last ones end in zeros.
	if err := w.out.Truncate(w.next); err != nil {
		return err
	}
	return w.out.WriteAt(w.header(tableOffset, tableBytes), 0)
}

// writeRefcounts appends the reference counts: every cluster of the file, they
// included, is used once.
func (w *writer) writeRefcounts() (tableOffset, tableBytes int64, err error) {
	used := w.next >> writeClusterBits
	blocks, total := int64(0), used
	for { // each block takes a cluster that may need one more block
		more := (total + refcountsInBlock - 1) / refcountsInBlock
		total = used + more + clusters(more*8)
		if more == blocks {
			break
		}
		blocks = more
	}
	ones := make([]byte, writeCluster)
	for i := 1; i < len(ones); i += 2 {
		ones[i] = 1
	}
	table := make([]byte, blocks*8)
	for i := range blocks {
		if rest := total - i*refcountsInBlock; rest < refcountsInBlock {
			clear(ones[rest*2:])
		}
		off, err := w.append(ones)
		if err != nil {
			return 0, 0, err
		}
		binary.BigEndian.PutUint64(table[i*8:], uint64(off))
	}
	tableOffset, err = w.append(table)
	return tableOffset, int64(len(table)), err
}

// header is the file's first bytes, up to the end of the (empty) header extensions.
func (w *writer) header(tableOffset, tableBytes int64) []byte {
	const endOfExtensions = 8
	be, h := binary.BigEndian, make([]byte, headerBytesV3+endOfExtensions)
	copy(h, magic)
	be.PutUint32(h[4:], 3)
	be.PutUint32(h[20:], writeClusterBits)
	be.PutUint64(h[24:], uint64(w.sizeBytes))
	be.PutUint32(h[36:], uint32(len(w.l1)/8))
	be.PutUint64(h[40:], writeCluster)
	be.PutUint64(h[48:], uint64(tableOffset))
	be.PutUint32(h[56:], uint32(clusters(tableBytes)))
	be.PutUint32(h[96:], defaultRefOrder)
	be.PutUint32(h[100:], headerBytesV3)
	return h
}
