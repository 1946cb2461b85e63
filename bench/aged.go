package main

import (
	"context"
	"errors"
	"time"
)

// agedFound compares a volume that was filled in order with one that was then overwritten at random.
type agedFound struct {
	Aged       map[string][]pair `json:"aged"`       // by load
	RelaidOut  map[string][]pair `json:"relaid_out"` // the same one after relayout
	SizeBytes  int64             `json:"size_bytes"`
	RelayoutMS float64           `json:"relayout_ms"`
}

func measureAged(ctx context.Context, s settings, r *results) (err error) {
	size := min(s.Size, pairSize)
	some := chosen([]load{loadNamed("seq-read-1m"), loadNamed("rand-read-64k"), loadNamed("rand-read-4k-qd32")}, s.loads)
	found := &agedFound{SizeBytes: size}
	var both fleet
	defer func() { err = errors.Join(err, both.stop()) }()
	for range 2 {
		v, err := startVolume(ctx, s, size)
		if err != nil {
			return err
		}
		both = append(both, v)
	}
	say("aged: overwrite every block of %d MiB in random order", size>>20)
	if _, err := fio(ctx, both[1].uri, size, "--rw=randwrite", "--bs=4k", "--iodepth=32"); err != nil {
		return err
	}
	if found.Aged, err = measurePairs(ctx, s, "aged", both, size, some); err != nil {
		return err
	}
	r.Aged = found
	began := time.Now()
	if err := both[1].relayout(ctx, s); err != nil {
		return err
	}
	found.RelayoutMS = round3(float64(time.Since(began).Microseconds()) / 1000)
	say("aged: relayout took %.0f ms", found.RelayoutMS)
	found.RelaidOut, err = measurePairs(ctx, s, "relaid out", both, size, some)
	return err
}
