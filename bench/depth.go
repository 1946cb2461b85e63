package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"varve/internal/nbd/client"
)

// depths are the numbers of snapshots that a volume is measured with.
var depths = []int{1, 10, 100, 1000}

// deepLoads are what snapshots must not slow down.
var deepLoads = []load{
	loadNamed("seq-read-1m"), loadNamed("rand-read-4k-qd32"),
	loadNamed("rand-write-4k-qd1"), loadNamed("fsync-4k-qd1"), loadNamed("rand-write-4k-qd32"), loadNamed("seq-write-1m"),
}

// pairSize is the largest disk that pairs run on, bytes: writers shall find all of it in the page cache
// however many snapshots hold what they overwrite.
const pairSize = 1 << 30

// pair are two runs of one load, one right after the other.
type pair struct {
	Base  figures `json:"base"`
	Other figures `json:"other"`
}

// speedUps are the ratios of the other's speed to the base's.
func speedUps(pairs []pair, l load) []float64 {
	var a, b []float64
	for _, p := range pairs {
		a, b = append(a, p.Other.speed(l)), append(b, p.Base.speed(l))
	}
	return ratios(a, b)
}

// depthFound compares a volume that has snapshots with one that has none.
type depthFound struct {
	Snapshots int               `json:"snapshots"`
	Pairs     map[string][]pair `json:"pairs"` // by load
}

// measureDepth gives two pools the same writes, and one of them snapshots in between.
func measureDepth(ctx context.Context, s settings, r *results) (err error) {
	size := min(s.Size, pairSize)
	var both fleet
	defer func() { err = errors.Join(err, both.stop()) }()
	for range 2 {
		v, err := startVolume(ctx, s, size)
		if err != nil {
			return err
		}
		both = append(both, v)
	}
	has := 0
	for _, depth := range depths {
		say("depth: %d snapshots", depth)
		if err := takeSnapshots(ctx, has, depth, both[1], both[0]); err != nil {
			return err
		}
		has = depth
		pairs, err := measurePairs(ctx, s, fmt.Sprintf("depth: %d", depth), both, size, chosen(deepLoads, s.loads))
		if err != nil {
			return err
		}
		r.Depth = append(r.Depth, depthFound{depth, pairs})
	}
	return nil
}

// takeSnapshots brings a volume from so many snapshots to so many, with changes before each.
// The others get the same changes and no snapshots.
func takeSnapshots(ctx context.Context, from, to int, v *server, others ...*server) (err error) {
	var clients []*client.Client
	for _, to := range append([]*server{v}, others...) {
		c, err := client.Dial(ctx, to.uri, client.Options{})
		if err != nil {
			return err
		}
		defer c.Close()
		clients = append(clients, c)
		to.dirty = true
	}
	for n := from; n < to; n++ {
		for _, c := range clients {
			if err := change(ctx, c, n); err != nil {
				return err
			}
		}
		if _, err := v.snapshot(ctx, fmt.Sprintf("depth-%d", n)); err != nil {
			return err
		}
	}
	return nil
}

// measurePairs runs loads on two servers in turn, the first of which is the base.
func measurePairs(ctx context.Context, s settings, what string, both fleet, size int64, some []load) (map[string][]pair, error) {
	all := map[string][]pair{}
	for _, l := range some {
		// What writers overwrite must stay below what makes pools hold them back, or the one without
		// snapshots would be: what it overwrites is garbage at once.
		by := limits{time: s.PairTime}
		if l.writes() {
			by.bytes = size / 4 / int64(l.connections)
		}
		for n := range s.Pairs {
			by.seed = n
			var runs [2]figures
			for _, k := range inTurn(2, n) {
				if err := both.settle(ctx); err != nil {
					return nil, err
				}
				f, err := runLoad(ctx, both[k], size, l, by)
				if err != nil {
					return nil, err
				}
				runs[k] = f
			}
			all[l.name] = append(all[l.name], pair{runs[0], runs[1]})
		}
		found := speedUps(all[l.name], l)
		say("%s: %-18s %.3f (%.3f to %.3f)", what, l.name, median(found), slices.Min(found), slices.Max(found))
	}
	return all, nil
}
