package clients

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"varve/internal/block"
	"varve/internal/contract"
	"varve/internal/nbd/client"
)

const (
	killedBlocks    = 1024
	keptSnapshots   = 5
	roundsToBeKill  = 40 // at most so many rounds until the kill
	roundsBetween   = 4  // a flush follows each so many rounds
	killConnections = 3
)

// The daemon is killed in the middle of writes and of the creation and deletion of
// snapshots, again and again. Each time the volume holds all that was acknowledged,
// in order; each snapshot one instant of it; and what a command was cut short in is done or not done.
func TestKilledDaemonKeepsWhatItAcknowledged(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	data := filepath.Join(scratch(t), "d")
	d := serve(t, data)
	d.varve("volume", "create", "web", "--size", fmt.Sprint(killedBlocks*block.Size))

	k := killing{t: t, base: make(image, killedBlocks), snapshots: map[string]image{}}
	for cycle := range *killCycles {
		k.cycle = cycle
		k.untilKilled(d, random)
		d = serve(t, data)
		k.verify(d)
	}
	d.checkPool()
	d.stop()
}

// killing is what is known of the volume.
type killing struct {
	t         *testing.T
	cycle     int
	last      stamp
	base      image            // of the volume when the daemon started
	snapshots map[string]image // content of those that were verified once

	mu     sync.Mutex // guards what the commands and the writer both see
	rounds []round    // since then, in order
	acked  int        // so many of them are acknowledged

	made     []taken // of this cycle
	deleting string  // the snapshot whose deletion the kill may have cut short
}

// taken is a snapshot that was asked for while rounds were under way.
type taken struct {
	name            string
	atLeast, atMost int // rounds it may hold
	answered        bool
}

// untilKilled writes, and makes and deletes snapshots, until the daemon is killed.
func (k *killing) untilKilled(d *daemon, random *rand.Rand) {
	k.t.Helper()
	k.rounds, k.acked, k.made, k.deleting = nil, 0, nil, ""
	connections := make([]*client.Client, killConnections)
	for i := range connections {
		connections[i] = d.connect("web")
		defer connections[i].Close()
	}
	var others sync.WaitGroup
	defer others.Wait()
	others.Go(func() { k.command(d) })
	killAt := 1 + random.IntN(roundsToBeKill)
	for n := 0; ; n++ {
		if n == killAt {
			others.Go(d.kill)
		}
		r, perform := newRound(random, killedBlocks, &k.last, connections)
		k.mu.Lock()
		k.rounds = append(k.rounds, r)
		k.mu.Unlock()
		err := perform()
		if err == nil {
			k.mu.Lock()
			k.acked++
			k.mu.Unlock()
			if n%roundsBetween == 0 {
				err = flush(connections[random.IntN(len(connections))])
			}
		}
		if err != nil {
			if n < killAt || !errors.Is(err, client.ErrDisconnected) {
				k.t.Errorf("round %d of %d: %v", n, killAt, err)
			}
			d.kill()
			return
		}
	}
}

// command makes snapshots and deletes old ones until the daemon does not answer any more.
func (k *killing) command(d *daemon) {
	for n := 0; ; n++ {
		s := taken{name: fmt.Sprintf("s%d.%d", k.cycle, n)}
		k.mu.Lock()
		s.atLeast = k.acked
		k.mu.Unlock()
		o := d.try("snapshot", "create", "web", "--name", s.name)
		s.answered = o.status == 0
		k.mu.Lock()
		s.atMost = len(k.rounds)
		k.mu.Unlock()
		k.made = append(k.made, s)
		if !s.answered {
			// The daemon may have taken it until it was gone.
			k.made[len(k.made)-1].atMost = 1 << 30
			return
		}
		if len(k.snapshots) < keptSnapshots {
			continue
		}
		for name := range k.snapshots {
			k.deleting = name
			break
		}
		if d.try("snapshot", "delete", "web@"+k.deleting).status != 0 {
			return
		}
		delete(k.snapshots, k.deleting)
		k.deleting = ""
	}
}

// verify compares the volume and its snapshots with what is known, after a restart.
func (k *killing) verify(d *daemon) {
	k.t.Helper()
	load := func(export string) image {
		k.t.Helper()
		c := d.connect(export)
		defer c.Close()
		m, err := readImage(c)
		must(k.t, err, "cycle %d: %s", k.cycle, export)
		return m
	}
	head := load("web")
	if err := prefix(k.base, k.rounds, head, k.acked, len(k.rounds)); err != nil {
		k.t.Fatalf("cycle %d: the volume, of which %d rounds were acknowledged: %v", k.cycle, k.acked, err)
	}

	listed := map[string]bool{}
	for _, s := range ask[[]contract.Snapshot](d, "snapshot", "list", "web") {
		listed[s.Name] = true
	}
	for _, s := range k.made {
		if !listed[s.name] {
			if s.answered {
				k.t.Fatalf("cycle %d: snapshot %s is gone, of %v", k.cycle, s.name, listed)
			}
			continue
		}
		m := load("web@" + s.name)
		if err := prefix(k.base, k.rounds, m, s.atLeast, s.atMost); err != nil {
			k.t.Fatalf("cycle %d: snapshot %s: %v", k.cycle, s.name, err)
		}
		k.snapshots[s.name] = m
	}
	if k.deleting != "" && !listed[k.deleting] {
		delete(k.snapshots, k.deleting)
	}
	for name, want := range k.snapshots {
		if !slices.Equal(load("web@"+name), want) {
			k.t.Fatalf("cycle %d: snapshot %s has changed", k.cycle, name)
		}
		delete(listed, name)
	}
	for name := range listed {
		if !strings.HasPrefix(name, "s") {
			k.t.Fatalf("cycle %d: nobody made snapshot %s", k.cycle, name)
		}
		k.t.Fatalf("cycle %d: snapshot %s was deleted", k.cycle, name)
	}
	k.base = head
}
