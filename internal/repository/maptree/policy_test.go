package maptree

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// A pattern says which blocks of a device of n blocks change on a day; about one in a hundred.
type pattern struct {
	name string
	hits func(rng *rand.Rand, n, day int, hit func(block int))
}

var patterns = []pattern{
	{"random", func(rng *rand.Rand, n, _ int, hit func(int)) {
		for range n / 100 {
			hit(rng.IntN(n))
		}
	}},
	{"random-16K", func(rng *rand.Rand, n, _ int, hit func(int)) { // pages of a database
		for range n / 400 {
			page := rng.IntN(n / 4)
			for i := range 4 {
				hit(4*page + i)
			}
		}
	}},
	{"hot-tenth", func(rng *rand.Rand, n, _ int, hit func(int)) { // nine of ten in a tenth of the device
		for range n / 100 {
			if rng.IntN(10) > 0 {
				hit(rng.IntN(n / 10))
			} else {
				hit(rng.IntN(n))
			}
		}
	}},
	{"hot-spot", func(rng *rand.Rand, n, _ int, hit func(int)) { // nine of ten in a hundredth
		for range n / 100 {
			if rng.IntN(10) > 0 {
				hit(rng.IntN(n / 100))
			} else {
				hit(rng.IntN(n))
			}
		}
	}},
	{"same-blocks", func(_ *rand.Rand, n, _ int, hit func(int)) {
		same := rand.New(rand.NewPCG(1, 2))
		for range n / 100 {
			hit(same.IntN(n))
		}
	}},
	{"sequential", func(rng *rand.Rand, n, day int, hit func(int)) { // on and on, each day from a little before or behind
		from := day*(n/100) + rng.IntN(n/1000)
		for i := range n / 100 {
			hit((from + i) % n)
		}
	}},
	{"gaps", func(rng *rand.Rand, n, day int, hit func(int)) { // the same, but a third is left as it is
		for i := range n / 100 {
			hit((day*(n/100) + i + rng.IntN(4)) % n)
		}
	}},
	{"log", func(_ *rand.Rand, n, day int, hit func(int)) { // round and round in a fiftieth
		for i := range n / 100 {
			hit((day*(n/100) + i) % (n / 50))
		}
	}},
}

// outcome is what days of incrementals came to, in blocks.
type outcome struct {
	changed, stored int
	first           float64 // stored per changed, on the first day
	held            float64 // what a restore would read now, per block of the device
}

func (o outcome) ratio() float64 { return float64(o.stored) / float64(o.changed) }

// simulate backs a device up in full, then every day incrementally; each is called with the outcome after each day.
func simulate(g Geometry, bytes int, p pattern, choose mergePolicy, days int, each func(day int, o outcome)) {
	n := bytes / 4096
	rng := rand.New(rand.NewPCG(7, 8))
	device := make([]Region, n/g.BlocksPerRegion)
	for i := range device {
		device[i].Chunks = []Chunk{{Held: g.all()}}
	}
	var o outcome
	today := make([]Bitmap, len(device))
	for day := range days {
		clear(today)
		p.hits(rng, n, day, func(block int) { today[block/g.BlocksPerRegion].Set(block % g.BlocksPerRegion) })
		held := 0
		for i, changed := range today {
			r := &device[i]
			if !changed.Empty() {
				plan := patch(*r, g, changed, Bitmap{}, MaxChunks, choose)
				*r = plan.Region
				r.Chunks = append(r.Chunks, Chunk{Held: plan.Store})
				o.changed += changed.Count()
				o.stored += plan.Store.Count()
			}
			for c := range r.Chunks {
				held += r.Chunks[c].Held.Count()
			}
		}
		o.held = float64(held) / float64(n)
		if day == 0 {
			o.first = o.ratio()
		}
		each(day, o)
	}
}

// What the design promises of a device of 4 GiB of which one block in a hundred changes each day: 30 incrementals
// store at most three times what changed, the first no more than that, and a restore reads at most half more than of a
// full.
func TestIncrementalsStoreLittleMoreThanWhatChanged(t *testing.T) {
	size := 4 << 30
	if testing.Short() {
		size = 256 << 20
	}
	for _, test := range []struct {
		g    Geometry
		p    pattern
		most float64 // over 30 days
	}{
		{Geometry{64}, patterns[0], 2.3},
		{Geometry{16}, patterns[0], 1.6},
		{Geometry{256}, patterns[0], 3},
		{Geometry{64}, patterns[1], 1.6},
		{Geometry{64}, patterns[2], 2.5},
		{Geometry{64}, patterns[3], 1.25},
		{Geometry{64}, patterns[4], 1},
		{Geometry{64}, patterns[5], 1},
		{Geometry{64}, patterns[6], 1},
		{Geometry{64}, patterns[7], 1},
	} {
		t.Run(fmt.Sprintf("%s/%dKiB", test.p.name, test.g.BlocksPerRegion*4), func(t *testing.T) {
			simulate(test.g, size, test.p, fewestRewrites, 30, func(day int, o outcome) {
				switch {
				case day == 0 && o.first > 1.05:
					t.Errorf("the first incremental stores %.2f of what changed", o.first)
				case o.ratio() > test.most:
					t.Fatalf("after %d days %.2f of what changed is stored", day+1, o.ratio())
				case o.held > 1.5:
					t.Fatalf("after %d days a restore reads %.2f of the device", day+1, o.held)
				}
			})
		})
	}
}

// Policies that were looked at beside fewestRewrites.
var policies = []struct {
	name   string
	choose mergePolicy
}{
	{"whole", func(live supply, _, _ int) (merge uint) { // a fifth chunk is the region stored anew
		for i, n := range live {
			if n > 0 {
				merge |= 1 << i
			}
		}
		return merge
	}},
	{"one-patch", func(live supply, _, _ int) (merge uint) { // all but the largest become one
		for i, n := range live {
			if n > 0 && i != largestOf(live) {
				merge |= 1 << i
			}
		}
		return merge
	}},
	{"smallest", func(live supply, fresh, room int) uint { // just the one that costs least now
		return cheapest(live, room, func(cost, _ int) float64 { return float64(fresh + cost) })
	}},
	{"amortised", func(live supply, fresh, room int) uint { // what costs least for each chunk that then finds room
		return cheapest(live, room, func(cost, free int) float64 { return float64(fresh+cost) / float64(1+free) })
	}},
	{"gathering", gathering},
	{"gathering-or-whole", fewestRewrites},
}

// gathering is fewestRewrites but that a region is never stored whole for being mostly patches.
func gathering(live supply, fresh, room int) (merge uint) {
	for gathered := fresh; ; {
		next, staying := -1, 0
		for i, n := range live {
			if n > 0 && merge>>i&1 == 0 {
				staying++
				if next < 0 || n < live[next] {
					next = i
				}
			}
		}
		if next < 0 || staying <= room && live[next] > gathered {
			return merge
		}
		merge |= 1 << next
		gathered += live[next]
	}
}

func largestOf(live supply) (largest int) {
	for i, n := range live {
		if n > live[largest] {
			largest = i
		}
	}
	return largest
}

// cheapest tries all that can be merged: cost blocks would be rewritten, and free chunks find room later.
func cheapest(live supply, room int, price func(cost, free int) float64) (best uint) {
	least := 0.0
	for merge := uint(1); merge < 1<<MaxChunks; merge++ {
		cost, free := 0, room
		for i, n := range live {
			switch {
			case merge>>i&1 != 0:
				cost += n
			case n > 0:
				free--
			}
		}
		if free < 0 {
			continue
		}
		if p := price(cost, free); best == 0 || p < least {
			best, least = merge, p
		}
	}
	return best
}

// BenchmarkPolicies measures nothing of the machine: its metrics are the table in docs/design/repository.md.
func BenchmarkPolicies(b *testing.B) {
	for _, p := range patterns {
		for _, blocks := range []int{64, 16, 256} {
			if blocks != 64 && p.name != "random" {
				continue
			}
			for _, policy := range policies {
				b.Run(fmt.Sprintf("%s/%dKiB/%s", p.name, 4*blocks, policy.name), func(b *testing.B) {
					for range b.N {
						most := 0.0
						simulate(Geometry{blocks}, 4<<30, p, policy.choose, 100, func(day int, o outcome) {
							most = max(most, o.held)
							switch day {
							case 0:
								b.ReportMetric(o.first, "stored/changed@1")
							case 29:
								b.ReportMetric(o.ratio(), "stored/changed@30")
							case 99:
								b.ReportMetric(o.ratio(), "stored/changed@100")
								b.ReportMetric(o.held, "read/full@100")
							}
						})
						b.ReportMetric(most, "read/full@most")
					}
				})
			}
		}
	}
}
