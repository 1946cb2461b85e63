package pack

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// Encoding says how content lies in a frame.
type Encoding uint8

// The encodings of content.
const (
	Raw Encoding = iota
	Zstd
)

// A match reaches back no further than this, which is as much as a chunk has. Larger windows take memory: two of
// them for each encoder.
const windowBytes = 1 << 20

// Encoders and decoders are kept by these two, one for each processor; their frames are short, and authenticated.
var (
	encoder = sync.OnceValue(func() *zstd.Encoder {
		e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithWindowSize(windowBytes), zstd.WithEncoderCRC(false))
		if err != nil {
			panic(err)
		}
		return e
	})
	decoder = sync.OnceValue(func() *zstd.Decoder {
		d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderMaxMemory(MaxPlainBytes))
		if err != nil {
			panic(err)
		}
		return d
	})
)

// Encode returns content as a frame holds it: compressed, in dst's memory where that suffices, or plain itself
// where that does not save a sixty-fourth at least. What is compressed already takes it next to no time: the encoder
// searches in longer and longer steps as it finds nothing. It may be called concurrently.
func Encode(dst, plain []byte) (encoded []byte, enc Encoding) {
	encoded = encoder().EncodeAll(plain, dst[:0])
	if len(encoded) >= len(plain)-len(plain)/64 {
		return plain, Raw
	}
	return encoded, Zstd
}

// errContent: what a frame holds does not decode. As frames are authenticated, it was wrong when it was stored.
var errContent = errors.New("content does not decode")

// Slack is how much memory behind what is decoded lets the decoder copy in whole words to the end.
const Slack = 16

// Decode appends the content of plainBytes that Encode returned as encoded.
func Decode(dst, encoded []byte, enc Encoding, plainBytes int) ([]byte, error) {
	start := len(dst)
	dst = slices.Grow(dst, plainBytes)
	switch enc {
	case Raw:
		dst = append(dst, encoded...)
	case Zstd:
		decoded, err := decoder().DecodeAll(encoded, dst[start:start:min(start+plainBytes+Slack, cap(dst))])
		if err != nil {
			return dst, fmt.Errorf("%w: %w", errContent, err)
		}
		dst = dst[:start+len(decoded)]
	default:
		return dst, fmt.Errorf("%w: unknown encoding %d", errContent, enc)
	}
	if len(dst)-start != plainBytes {
		return dst[:start], fmt.Errorf("%w: %d bytes where %d were stored", errContent, len(dst)-start, plainBytes)
	}
	return dst, nil
}
