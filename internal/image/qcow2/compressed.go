package qcow2

import (
	"bytes"
	"compress/flate"
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// cachedClusters is how many decompressed clusters a chain keeps, of up to 2 MiB
// each: enough for a reader whose requests are smaller than clusters.
const cachedClusters = 4

// maxZstdWindow is what a frame may demand; four times the largest cluster.
const maxZstdWindow = 8 << 20

// decoders keeps what decompression needs from one cluster to the next.
type decoders struct {
	zlib, zstd sync.Pool
	input      sync.Pool // *[]byte
}

func newDecoders() *decoders {
	return &decoders{
		zlib: sync.Pool{New: func() any { return flate.NewReader(nil) }},
		zstd: sync.Pool{New: func() any {
			// A single decoder at a time makes it run in the caller's goroutine, so it need not be closed.
			d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxZstdWindow))
			if err != nil {
				panic(err) // only for options out of range
			}
			return d
		}},
		input: sync.Pool{New: func() any { return new([]byte) }},
	}
}

// readCompressed fills p from the compressed cluster that holds off, and starts there.
func (im *Image) readCompressed(ctx context.Context, p []byte, off int64, entry uint64) error {
	start := off &^ (im.clusterBytes() - 1)
	if int64(len(p)) == im.clusterBytes() {
		return im.decompress(ctx, p, entry)
	}
	key := place{im.layer, start}
	cluster, ok := im.shared.clusters.Get(key)
	if !ok {
		cluster = make([]byte, im.clusterBytes())
		if err := im.decompress(ctx, cluster, entry); err != nil {
			return err
		}
		im.shared.clusters.Add(key, cluster)
	}
	copy(p, cluster[off-start:])
	return nil
}

// compressedPlace finds the compressed bytes, spec "Compressed Clusters Descriptor".
func (im *Image) compressedPlace(entry uint64) (host, length int64, err error) {
	x := 62 - (im.clusterBits - 8)
	descriptor := entry &^ (entryCompressed | entryCopied)
	offset := descriptor & (1<<x - 1)
	if offset >= 1<<56 || int64(offset) >= im.file.SizeBytes() {
		return 0, 0, corrupt("compressed data at %d lies beyond the end of the file", offset)
	}
	sectors := int64(descriptor>>x) + 1
	host = int64(offset)
	// The data need not fill the last sector, nor the file.
	length = min(sectors*512-host&511, im.file.SizeBytes()-host)
	return host, length, nil
}

// decompress fills p, a whole cluster.
func (im *Image) decompress(ctx context.Context, p []byte, entry uint64) error {
	host, length, err := im.compressedPlace(entry)
	if err != nil {
		return err
	}
	buf := im.shared.inflated.input.Get().(*[]byte)
	defer im.shared.inflated.input.Put(buf)
	if int64(cap(*buf)) < length {
		*buf = make([]byte, length)
	}
	in := (*buf)[:length]
	if err := im.file.ReadAt(ctx, in, host); err != nil {
		return err
	}
	// The end of in is often not part of the data: reading stops when p is full.
	if im.compression == compressionZstd {
		err = im.shared.inflated.unzstd(p, in)
	} else {
		err = im.shared.inflated.inflate(p, in)
	}
	if err != nil {
		return corrupt("compressed data at %d+%d does not decompress: %v", host, length, err)
	}
	return nil
}

// inflate decompresses raw deflate data.
func (d *decoders) inflate(p, in []byte) error {
	r := d.zlib.Get().(io.ReadCloser)
	defer d.zlib.Put(r)
	if err := r.(flate.Resetter).Reset(bytes.NewReader(in), nil); err != nil {
		return err
	}
	_, err := io.ReadFull(r, p)
	return err
}

// unzstd decompresses zstd frames.
func (d *decoders) unzstd(p, in []byte) error {
	r := d.zstd.Get().(*zstd.Decoder)
	defer d.zstd.Put(r)
	if err := r.Reset(bytes.NewReader(in)); err != nil {
		return fmt.Errorf("zstd: %w", err)
	}
	_, err := io.ReadFull(r, p)
	return err
}
