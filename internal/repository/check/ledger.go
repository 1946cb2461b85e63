package check

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"varve/internal/repository"
)

// pageEvery is how often what was found is written down, so that a check that is killed need not begin anew.
const pageEvery = 5 * time.Minute

// pages gathers verdicts for the ledger.
type pages struct {
	mu       sync.Mutex
	verdicts []repository.Verdict
	since    time.Time // when the first of them was found, by this process's clock

	// lost waits until the end, when all is known of what was looked at and of what is missing.
	lost map[string][]uint32
}

// verdict writes down what was found of an object, with others.
func (c *checker) verdict(ctx context.Context, i item, condition repository.Condition, frames []uint32) error {
	if c.repo == nil || isPassing(i.kind) || isThrice(i.kind) {
		return nil
	}
	if condition == repository.Lost {
		c.ledger.lose(i.name, frames)
		return nil
	}
	return c.ledger.add(ctx, c, repository.Verdict{Object: i.name, Condition: condition})
}

// lose has an object be written down as lost, unless it is found otherwise before the end.
func (p *pages) lose(name string, frames []uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lost == nil {
		p.lost = map[string][]uint32{}
	}
	p.lost[name] = frames
}

// find takes back that an object is lost.
func (p *pages) find(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.lost, name)
}

func (p *pages) add(ctx context.Context, c *checker, v repository.Verdict) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.verdicts) == 0 {
		p.since = time.Now()
	}
	p.verdicts = append(p.verdicts, v)
	if len(p.verdicts) < repository.MaxVerdicts && time.Since(p.since) < pageEvery {
		return nil
	}
	return p.put(ctx, c)
}

// maxFrames is how many frames a page names, so that it can be read again.
const maxFrames = 1 << 20

// flush writes all down.
func (p *pages) flush(ctx context.Context, c *checker) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	frames := 0
	for _, name := range slices.Sorted(maps.Keys(p.lost)) {
		p.verdicts = append(p.verdicts, repository.Verdict{Object: name, Condition: repository.Lost, Frames: p.lost[name]})
		if frames += len(p.lost[name]); frames > maxFrames {
			if err := p.put(ctx, c); err != nil {
				return err
			}
			frames = 0
		}
	}
	p.lost = nil
	return p.put(ctx, c)
}

func (p *pages) put(ctx context.Context, c *checker) error {
	verdicts := p.verdicts
	p.verdicts = nil
	if len(verdicts) == 0 || c.write.why() != nil {
		return nil
	}
	err := c.repo.PutLedger(ctx, c.at(), verdicts)
	if unknownHere(err) {
		c.note("the ledger was not written: %v", err)
		return nil
	}
	return c.write.refused(err)
}
