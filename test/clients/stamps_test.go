package clients

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"varve/internal/block"
	"varve/internal/nbd/client"
)

// stamp is when a block was written: a number that counts up. 0 is a block of zeros.
type stamp uint64

// fill makes p, blocks from lba on, tell where each sector of it is and when it was written.
func fill(p []byte, lba int64, s stamp) {
	if s == 0 {
		clear(p)
		return
	}
	var sector [block.SectorSize]byte
	for ; len(p) > 0; lba++ {
		random := rand.NewPCG(uint64(s), uint64(lba))
		for i := 16; i < len(sector); i += 8 {
			binary.LittleEndian.PutUint64(sector[i:], random.Uint64())
		}
		binary.LittleEndian.PutUint64(sector[:], uint64(s))
		for i := range block.Size / len(sector) {
			binary.LittleEndian.PutUint64(sector[8:], uint64(i))
			p = p[copy(p, sector[:]):]
		}
	}
}

// stamped returns the stamp of a block.
func stamped(p []byte, lba int64) (stamp, error) {
	s := stamp(binary.LittleEndian.Uint64(p))
	want := make([]byte, block.Size)
	fill(want, lba, s)
	if !bytes.Equal(p, want) {
		return 0, fmt.Errorf("block %d is not what any write made it; it begins with %x", lba, p[:32])
	}
	return s, nil
}

// image is the stamps of a disk's blocks.
type image []stamp

// readImage reads a disk of stamped blocks.
func readImage(c *client.Client) (image, error) {
	p, err := read(c, 0, c.SizeBytes())
	if err != nil {
		return nil, err
	}
	out := make(image, len(p)/block.Size)
	for lba := range out {
		if out[lba], err = stamped(p[lba*block.Size:][:block.Size], int64(lba)); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// round is writes that are under way together, to different blocks.
type round map[int64]stamp // by LBA

// zoneBlocks is how a round keeps its writes apart: each is in a zone of its own.
const zoneBlocks = 32

// newRound makes up a round for a disk of so many blocks, after stamp last, which it
// moves on: perform submits it, through several connections at once. Most are writes, some clear blocks.
func newRound(random *rand.Rand, blocks int, last *stamp, connections []*client.Client) (r round, perform func() error) {
	r = round{}
	batches := make([][]*block.Op, len(connections))
	for i, zone := range random.Perm(blocks / zoneBlocks)[:8] {
		length := 1 + random.Int64N(16)
		lba := int64(zone)*zoneBlocks + random.Int64N(zoneBlocks-length)
		*last++
		op := &block.Op{Offset: lba * block.Size, Length: length * block.Size}
		s := *last
		switch random.IntN(10) {
		case 0:
			op.Kind, s = block.OpZero, 0
		case 1:
			op.Kind, s = block.OpDiscard, 0
		default:
			op.Data = make([]byte, op.Length)
			fill(op.Data, lba, s)
		}
		for n := range length {
			r[lba+n] = s
		}
		batches[i%len(batches)] = append(batches[i%len(batches)], op)
	}
	return r, func() error {
		errs := make([]error, len(connections))
		var all sync.WaitGroup
		for i, c := range connections {
			all.Go(func() { errs[i] = submit(c, batches[i]) })
		}
		all.Wait()
		return errors.Join(errs...)
	}
}

// prefix tells whether got is base after the first k rounds, and perhaps a part of the next, for a k that is
// at least min and at most max. The error names the block that shows the contrary.
func prefix(base image, rounds []round, got image, atLeast, atMost int) error {
	if len(got) != len(base) {
		return fmt.Errorf("it has %d blocks, not %d", len(got), len(base))
	}
	now := slices.Clone(base)
	var why error
	for k := 0; k <= min(atMost, len(rounds)); k++ {
		var next round
		if k < len(rounds) {
			next = rounds[k]
		}
		if k >= atLeast {
			if why = matches(now, next, got); why == nil {
				return nil
			}
		}
		for lba, s := range next {
			now[lba] = s
		}
	}
	return fmt.Errorf("no prefix of %d to %d of %d rounds: %w", atLeast, atMost, len(rounds), why)
}

func matches(now image, next round, got image) error {
	for lba, s := range got {
		if other, ok := next[int64(lba)]; s != now[lba] && (!ok || s != other) {
			return fmt.Errorf("block %d has stamp %d, not %d", lba, s, now[lba])
		}
	}
	return nil
}

func TestPrefixFindsLostAndReorderedWrites(t *testing.T) {
	base := image{1, 0, 0, 0}
	rounds := []round{{0: 2, 1: 3}, {1: 4, 2: 5}, {0: 6}}
	for _, c := range []struct {
		got            image
		atLeast, above int
		holds          bool
	}{
		{image{1, 0, 0, 0}, 0, 3, true},
		{image{2, 3, 0, 0}, 1, 1, true},
		{image{2, 3, 5, 0}, 0, 3, true}, // part of the second
		{image{6, 4, 5, 0}, 3, 3, true},
		{image{2, 3, 0, 0}, 2, 3, false}, // the second is lost
		{image{1, 3, 5, 0}, 0, 3, false}, // the second without all of the first
		{image{6, 4, 0, 0}, 0, 3, false}, // the third without all of the second
		{image{6, 4, 5, 0}, 0, 1, false}, // more than was issued
		{image{1, 0, 0, 9}, 0, 3, false}, // from nowhere
	} {
		if err := prefix(base, rounds, c.got, c.atLeast, c.above); (err == nil) != c.holds {
			t.Errorf("%v from %d to %d: %v", c.got, c.atLeast, c.above, err)
		}
	}
}
