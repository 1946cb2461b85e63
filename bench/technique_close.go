package main

import (
	"context"
	"errors"
	"fmt"
)

// closeFound compares, in pairs of runs on volumes of their own, what may differ by a few percent only.
type closeFound struct {
	Deep    []pair `json:"deep"`    // first writes: one snapshot, a hundred
	Rewrite []pair `json:"rewrite"` // of the same blocks: no snapshot, one
	Read    []pair `json:"read"`    // sequential, varve: a raw file as it was filled, and one overwritten at random under snapshots
	Nbdkit  []pair `json:"nbdkit"`  // sequential, of that one file: by nbdkit, by varve
}

const closeDeep = 100 // snapshots

// measureClose has three inplace volumes: with no snapshot, with one, and with a hundred.
func measureClose(ctx context.Context, s settings, found *techniquesFound) (err error) {
	if !s.techniques.MatchString(inplaceCOW) {
		return nil
	}
	var all [3]*varveDisk
	var servers fleet
	defer func() { err = errors.Join(err, servers.stop()) }()
	for i := range all {
		say("techniques: close: fill disk %d of %d", i+1, len(all))
		if all[i], err = startVarveDisk(ctx, s, "cow", true); err != nil {
			return err
		}
		servers = append(servers, all[i].server)
	}
	none, one, deep := all[0], all[1], all[2]
	if err := takeSnapshots(ctx, 0, closeDeep, deep.server, one.server, none.server); err != nil {
		return err
	}
	if _, err := one.create(ctx, "close-0"); err != nil {
		return err
	}
	t := new(closeFound)
	for n := range s.Pairs {
		if err := renew(ctx, one, fmt.Sprintf("close-%d", n), fmt.Sprintf("close-%d", n+1)); err != nil {
			return err
		}
		if err := renew(ctx, deep, fmt.Sprintf("depth-%d", n), fmt.Sprintf("depth-%d", closeDeep+n)); err != nil {
			return err
		}
		for _, of := range []struct {
			to          *[]pair
			base, other *varveDisk
		}{{&t.Deep, one, deep}, {&t.Rewrite, none, one}} {
			p, err := writePair(ctx, s, n, of.base, of.other)
			if err != nil {
				return err
			}
			*of.to = append(*of.to, p)
		}
	}
	kit, err := serveReadOnly(ctx, s, one.rawFile())
	if err != nil {
		return err
	}
	servers = append(servers, kit)
	for n := range s.Pairs {
		for _, of := range []struct {
			to          *[]pair
			base, other *server
		}{{&t.Read, none.server, one.server}, {&t.Nbdkit, kit, one.server}} {
			p, err := inPair(n, of.base, of.other, func(v *server) (figures, error) {
				return runLoad(ctx, v, s.Size, loadNamed("seq-read-1m"), limits{time: s.PairTime})
			})
			if err != nil {
				return err
			}
			*of.to = append(*of.to, p)
		}
	}
	l, read := frozenWrites, loadNamed("seq-read-1m")
	say("techniques: close: %d snapshots %.3f, rewrite %.3f, sequential read %.3f, against nbdkit %.3f", closeDeep,
		median(speedUps(t.Deep, l)), median(speedUps(t.Rewrite, l)), median(speedUps(t.Read, read)), median(speedUps(t.Nbdkit, read)))
	found.Close = t
	return nil
}

// renew takes a snapshot and deletes the oldest, so that there are as many as before and every write is a first one.
func renew(ctx context.Context, d *varveDisk, oldest, next string) error {
	if _, err := d.create(ctx, next); err != nil {
		return err
	}
	return d.remove(ctx, oldest)
}

// writePair writes the same blocks of two volumes, which have nothing else to do.
func writePair(ctx context.Context, s settings, n int, base, other *varveDisk) (pair, error) {
	if err := errors.Join(base.settle(ctx), other.settle(ctx)); err != nil {
		return pair{}, err
	}
	return inPair(n, base, other, func(d *varveDisk) (figures, error) { return writeOnce(ctx, d, s, n) })
}

// inPair runs something on two, the order swapped each time.
func inPair[T any](n int, base, other T, run func(T) (figures, error)) (p pair, err error) {
	both, runs := [2]T{base, other}, [2]figures{}
	for _, k := range inTurn(2, n) {
		if runs[k], err = run(both[k]); err != nil {
			return p, err
		}
	}
	return pair{runs[0], runs[1]}, nil
}
