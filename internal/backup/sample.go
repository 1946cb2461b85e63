package backup

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"varve/internal/block"
	"varve/internal/repository/maptree"
)

const (
	// sampleBlocks and sampleTime bound what distrust may cost.
	sampleBlocks = 64
	sampleTime   = 50 * time.Millisecond
)

// sample are blocks that should be what the base has, unless the changes cover them.
type sample struct {
	lbas    []int64 // ascending
	covered []bool
	next    int
}

// cover leaves out what is said to have changed. Extents come in ascending order.
func (s *sample) cover(off, length int64) {
	if s == nil {
		return
	}
	for s.next < len(s.lbas) && s.lbas[s.next]*block.Size < off/block.Size*block.Size {
		s.next++
	}
	for i := s.next; i < len(s.lbas) && s.lbas[i]*block.Size < off+length; i++ {
		s.covered[i] = true
	}
}

// choose picks blocks at random, most of them where the base has content: half of what is left are any blocks of the device.
func (w *writer) choose(ctx context.Context) (*sample, error) {
	if w.tree == nil || w.scan {
		return nil, nil
	}
	blocks := min(w.source.Device.SizeBytes(), w.source.Base.SizeBytes) / block.Size
	if blocks == 0 {
		return nil, nil
	}
	s := &sample{}
	started := time.Now()
	for n := 0; n < sampleBlocks && time.Since(started) < sampleTime/2; n++ {
		lba := rand.Int64N(blocks)
		if n%4 != 0 {
			index, region, ok, err := w.tree.Random(ctx, rand.IntN)
			if err != nil {
				return nil, err
			}
			if i := randomMapped(region, w.geometry); ok && i >= 0 {
				lba = int64(index)*int64(w.geometry.BlocksPerRegion) + int64(i)
			}
		}
		if lba < blocks {
			s.lbas = append(s.lbas, lba)
		}
	}
	slices.Sort(s.lbas)
	s.covered = make([]bool, len(s.lbas))
	return s, nil
}

// randomMapped is one of the region's blocks that is no hole; -1 if there is none.
func randomMapped(r maptree.Region, g maptree.Geometry) int {
	start := rand.IntN(g.BlocksPerRegion)
	for n := range g.BlocksPerRegion {
		i := (start + n) % g.BlocksPerRegion
		if _, _, ok := r.Source(i); ok {
			return i
		}
	}
	return -1
}

// compare reads the sample and compares it with the base: errMismatch if a block differs.
func (w *writer) compare(ctx context.Context, s *sample) error {
	if s == nil {
		return nil
	}
	started := time.Now()
	// In random order, so that what time cuts off is not always the end of the device.
	for _, n := range rand.Perm(len(s.lbas)) {
		if s.covered[n] {
			continue
		}
		if w.sampled > 0 && time.Since(started) > sampleTime/2 {
			break
		}
		if err := w.compareBlock(ctx, s.lbas[n]); err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) compareBlock(ctx context.Context, lba int64) error {
	per := int64(w.geometry.BlocksPerRegion)
	region, err := w.tree.Region(ctx, uint64(lba/per))
	if err != nil {
		return err
	}
	buffer := w.session.Buffer()
	defer w.session.Release(buffer)
	j := &job{index: uint64(lba / per), buffer: buffer}
	i := int(lba % per)
	var one maptree.Bitmap
	one.Set(i)
	if err := w.read(ctx, j, one); err != nil {
		return err
	}
	w.sampled++
	c, pos, mapped := region.Source(i)
	same := !mapped && j.zero.Has(i)
	if mapped && !j.zero.Has(i) {
		was, err := w.hashesOf(region)(ctx, c)
		if err != nil {
			return err
		}
		same = was == nil || was[pos] == w.repo.BlockHash(blockOf(buffer, i)) // what is lost was stored again anyway
	}
	if !same {
		return w.mismatch(lba * block.Size)
	}
	return nil
}
