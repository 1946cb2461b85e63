package pool

import (
	"context"
	"time"
)

// tidyEvery is how often it is looked whether regions can be cleared.
const tidyEvery = 2 * time.Second

// mirrorKeeper clears regions: when many are recorded, or nobody has written for a while.
type mirrorKeeper struct {
	quit context.CancelFunc
	done chan struct{}
}

func (k *mirrorKeeper) start(p *Pool) {
	if p.opts.Manual {
		return
	}
	ctx, quit := context.WithCancel(context.Background())
	k.quit, k.done = quit, make(chan struct{})
	go func() {
		defer close(k.done)
		tick := time.NewTicker(tidyEvery)
		defer tick.Stop()
		entered := map[*mirror]uint64{}
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			now := map[*mirror]uint64{}
			for _, m := range p.mirrors() {
				came, clean := m.regions.cleanSince()
				now[m] = came
				if last, known := entered[m]; clean > manyRecorded || clean > 0 && known && last == came {
					_ = m.clearRegions(ctx) // what is wrong with either side is told there
				}
			}
			entered = now
		}
	}()
}

func (k *mirrorKeeper) stop() {
	if k.quit != nil {
		k.quit()
		<-k.done
	}
}

// cleanSince tells how many have entered, and how many regions could be cleared.
func (r *regions) cleanSince() (entered uint64, clean int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.entered, r.clean
}

// mirrors lists those of all volumes.
func (p *Pool) mirrors() (out []*mirror) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	for _, v := range p.volumes {
		if m := v.mirror.Load(); m != nil {
			out = append(out, m)
		}
	}
	return out
}
