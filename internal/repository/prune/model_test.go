package prune_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"varve/internal/backup"
	"varve/internal/objects/faulty"
	"varve/internal/repository"
	"varve/internal/repository/config"
	"varve/internal/repository/maptree"
	"varve/internal/repository/prune"
)

const (
	modelGrace = 10 * time.Minute
	pinHolds   = 30 * time.Minute // see repository.Pin
)

// play is one random round of the model.
type play struct {
	*world
	r       *rand.Rand
	stage   *stage
	volumes []*volume
	trace   []string
	deleted map[string]bool
	begun   int
	frozen  map[*actor]int // steps during which it does nothing
	told    map[*actor]bool
	outcome map[string]int
	holds   map[string]hold // by name
}

// hold is what the owner of one remembers.
type hold struct {
	backup string
	since  time.Time // when he renewed it last, or began to
}

func (p *play) note(format string, a ...any) { p.trace = append(p.trace, fmt.Sprintf(format, a...)) }

func (p *play) fail(format string, a ...any) {
	p.t.Helper()
	if f := os.Getenv("TRACE"); f != "" {
		os.WriteFile(f, []byte(strings.Join(p.trace, "\n")), 0o600)
	}
	last := p.trace[max(0, len(p.trace)-60):]
	p.t.Fatalf("%s\nafter %d steps:\n%s", fmt.Sprintf(format, a...), len(p.trace), strings.Join(last, "\n"))
}

// TestWhateverOthersDo has writers, readers and pruners make their requests in any order, with pauses of any length, and be killed, while the
// clock of the store goes on by leaps, and at times back. After each request that may harm anybody all backups are restored.
func TestWhateverOthersDo(t *testing.T) {
	rounds := modelRounds
	if testing.Short() {
		rounds = 4
	}
	total := map[string]int{}
	for seed := range uint64(rounds) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			p := newPlay(t, seed)
			p.run(300)
			p.end()
			for k, n := range p.outcome {
				total[k] += n
			}
		})
	}
	t.Log(total)
}

func newPlay(t *testing.T, seed uint64) *play {
	r := rand.New(rand.NewPCG(seed, 7))
	o := repository.CreateOptions{Grace: modelGrace}
	if r.IntN(3) == 0 {
		o.Scope = config.ScopeSet
	}
	p := &play{
		world: newWorld(t, o), r: r, stage: newStage(), deleted: map[string]bool{}, frozen: map[*actor]int{}, told: map[*actor]bool{}, outcome: map[string]int{}, holds: map[string]hold{},
	}
	for range 2 {
		v := newVolume(6)
		v.fill(r.Uint64N(3), 0, 1, 2, 3, 4) // the volumes have much in common
		p.volumes = append(p.volumes, v)
	}
	return p
}

func (p *play) run(steps int) {
	for range steps {
		alive := p.stage.settle()
		p.hear()
		switch n := p.r.IntN(100); {
		case len(alive) == 0 || n < 12 && len(alive) < 6:
			p.begin()
		case n < 15:
			p.pass()
		case n < 17:
			p.deleteOne()
		case n < 18:
			a := alive[p.r.IntN(len(alive))]
			p.note("%s is killed", a.name)
			p.stage.kill(a)
		case n < 20:
			a := alive[p.r.IntN(len(alive))]
			p.frozen[a] = 20 + p.r.IntN(150)
			p.note("%s freezes", a.name)
		default:
			p.turn(alive)
		}
	}
}

// turn lets somebody make some requests.
func (p *play) turn(alive []*actor) {
	a := alive[p.r.IntN(len(alive))]
	if p.frozen[a]--; p.frozen[a] > 0 {
		return
	}
	for range 1 + p.r.IntN(12) {
		c := p.stage.step(a, p.r)
		if c.Op == "" {
			return
		}
		p.note("%s: %s %s", a.name, c.Op, c.Name)
		harmful := c.Op == faulty.Delete || c.Op == faulty.Put && (strings.HasPrefix(c.Name, "backups/") || strings.HasPrefix(c.Name, "deleted/"))
		if harmful {
			p.look()
		}
		p.stage.settle()
		if done, _ := a.ended(); done {
			return
		}
	}
}

// look restores all backups that are visible; all that somebody was told to be committed must be.
func (p *play) look() {
	p.t.Helper()
	var must []repository.Backup
	p.mu.Lock()
	for id := range p.committed {
		if !p.deleted[id] {
			must = append(must, repository.Backup{ID: id})
		}
	}
	p.mu.Unlock()
	if err := p.inspect(context.Background(), must...); err != nil {
		p.fail("%v", err)
	}
}

// hear takes note of how actors ended.
func (p *play) hear() {
	p.stage.mu.Lock()
	defer p.stage.mu.Unlock()
	for _, a := range p.stage.actors {
		if !a.done || p.told[a] {
			continue
		}
		p.told[a] = true
		kind, _, _ := strings.Cut(a.name, " ")
		p.note("%s ends: %v", a.name, a.err)
		switch {
		case a.err == nil:
			p.outcome[kind+" done"]++
		case a.killed:
			p.outcome[kind+" killed"]++
		case errors.Is(a.err, repository.ErrFenced), errors.Is(a.err, repository.ErrBaseGone), errors.Is(a.err, errLapsed), errors.Is(a.err, errDeleted):
			p.outcome[kind+" gave up"]++
		default:
			p.fail("%s: %v", a.name, a.err)
		}
	}
}

// pass lets time pass: mostly a little, at times days, and the clock may be wrong for a while.
func (p *play) pass() {
	d := time.Duration(p.r.Int64N(int64(4 * time.Minute)))
	switch p.r.IntN(8) {
	case 0:
		d = time.Duration(p.r.Int64N(int64(3 * modelGrace)))
	case 1:
		d = 48 * time.Hour
	case 2:
		d = -time.Duration(p.r.Int64N(int64(modelGrace)))
	}
	p.note("time: %v", d)
	p.st.Advance(d)
}

func (p *play) deleteOne() {
	p.mu.Lock()
	var ids []string
	for id := range p.committed {
		if !p.deleted[id] {
			ids = append(ids, id)
		}
	}
	p.mu.Unlock()
	if len(ids) < 2 {
		return
	}
	id := ids[p.r.IntN(len(ids))]
	p.note("delete %s", id)
	p.mu.Lock()
	p.deleted[id] = true
	p.mu.Unlock()
	if err := p.open(p.st.Client()).Delete(context.Background(), id); err != nil {
		p.fail("%v", err)
	}
	p.look()
}

var (
	errLapsed  = errors.New("the pin lapsed by the store's clock")
	errDeleted = errors.New("what it was made from was deleted")
)

func (p *play) begin() {
	p.begun++
	seed := p.r.Uint64()
	switch p.r.IntN(7) {
	case 6:
		p.stage.enter(fmt.Sprintf("owner %d", p.begun), p.st, func(ctx context.Context, st *faulty.Store) error { return p.hold(ctx, st, seed) })
	case 0, 1:
		v := p.volumes[p.r.IntN(len(p.volumes))]
		for range p.r.IntN(4) {
			v.fill(p.r.Uint64N(4), p.r.IntN(6))
		}
		frozen := &volume{v.id, append([]byte(nil), v.content...)}
		p.stage.enter(fmt.Sprintf("writer %d", p.begun), p.st, func(ctx context.Context, st *faulty.Store) error { return p.write(ctx, st, frozen, seed) })
	case 2:
		p.stage.enter(fmt.Sprintf("reader %d", p.begun), p.st, func(ctx context.Context, st *faulty.Store) error { return p.read(ctx, st, seed) })
	default:
		p.stage.enter(fmt.Sprintf("pruner %d", p.begun), p.st, func(ctx context.Context, st *faulty.Store) error {
			repo, err := repository.Open(ctx, st, repository.OpenOptions{})
			if err != nil {
				return err
			}
			_, err = prune.Run(ctx, repo, prune.Options{Dir: p.dir, MemoryBytes: 1 << (8 + seed%12)})
			return err
		})
	}
}

// choose returns a backup that is visible, of a volume if that is given.
func (p *play) choose(ctx context.Context, repo *repository.Repo, r *rand.Rand, v *volume) (*repository.Backup, error) {
	all, _, err := repo.Backups(ctx)
	if err != nil {
		return nil, err
	}
	var found []repository.Backup
	for _, b := range all {
		if !b.Doubtful && (v == nil || b.VolumeID == v.id) {
			found = append(found, b.Backup)
		}
	}
	if len(found) == 0 {
		return nil, nil
	}
	return &found[r.IntN(len(found))], nil
}

func (p *play) write(ctx context.Context, st *faulty.Store, v *volume, seed uint64) error {
	r := rand.New(rand.NewPCG(seed, 1))
	repo, err := repository.Open(ctx, st, repository.OpenOptions{})
	if err != nil {
		return err
	}
	var base *repository.Backup
	if r.IntN(4) > 0 {
		if base, err = p.choose(ctx, repo, r, v); err != nil {
			return err
		}
	}
	_, err = p.backUp(ctx, repo, v, base, backup.Options{})
	if err != nil && base != nil && !errors.Is(err, errKilled) {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.deleted[base.ID] {
			return fmt.Errorf("%w: %w", errDeleted, err)
		}
	}
	return err
}

func (p *play) read(ctx context.Context, st *faulty.Store, seed uint64) error {
	r := rand.New(rand.NewPCG(seed, 2))
	repo, err := repository.Open(ctx, st, repository.OpenOptions{})
	if err != nil {
		return err
	}
	b, err := p.choose(ctx, repo, r, nil)
	if err != nil || b == nil {
		return err
	}
	before := st.Now()
	d, err := repo.OpenDevice(ctx, b.ID)
	if errors.Is(err, repository.ErrNotFound) {
		return errDeleted
	}
	if err != nil {
		return err
	}
	return p.readAll(ctx, st, d, r, before)
}

// hold makes a hold, or goes on with one that somebody has made; a process of its owner comes and goes, and the backup is there for all of them.
func (p *play) hold(ctx context.Context, st *faulty.Store, seed uint64) error {
	r := rand.New(rand.NewPCG(seed, 3))
	repo, err := repository.Open(ctx, st, repository.OpenOptions{})
	if err != nil {
		return err
	}
	p.mu.Lock()
	names := slices.Sorted(maps.Keys(p.holds))
	var name string
	var its hold
	if len(names) > 0 && r.IntN(3) > 0 {
		name = names[r.IntN(len(names))]
		its = p.holds[name]
		delete(p.holds, name) // one process at a time has it
	}
	p.mu.Unlock()
	before := st.Now()
	if name == "" {
		b, err := p.choose(ctx, repo, r, nil)
		if err != nil || b == nil {
			return err
		}
		name, its = repository.NewHold(), hold{b.ID, before}
		if err := repo.Hold(ctx, name, b.ID); err != nil {
			if errors.Is(err, repository.ErrNotFound) {
				return errDeleted
			}
			return err
		}
	}
	lapsed := func(err error) error {
		if st.Now().Sub(its.since) > repository.HoldFor {
			return fmt.Errorf("%w: %w", errLapsed, err)
		}
		return err
	}
	d, err := repo.OpenHeld(ctx, its.backup, name)
	if err != nil {
		return lapsed(err)
	}
	if err := p.readAll(ctx, st, d, r, before); err != nil {
		return lapsed(err)
	}
	before = st.Now()
	if err := repo.Hold(ctx, name, its.backup); err != nil {
		return lapsed(err)
	}
	if r.IntN(3) == 0 {
		return repo.Unhold(ctx, name)
	}
	p.mu.Lock()
	p.holds[name] = hold{its.backup, before}
	p.mu.Unlock()
	return nil
}

// readAll reads a backup here and there, for as long as its pin holds, and closes it.
func (p *play) readAll(ctx context.Context, st *faulty.Store, d *repository.Device, r *rand.Rand, before time.Time) error {
	defer d.Close()
	b := d.Backup()
	want, _ := p.wanted(b.ID)
	for range 20 {
		got := make([]byte, 4096)
		at := r.IntN(len(want)/4096) * 4096
		err := d.ReadAt(ctx, got, int64(at))
		if err != nil && st.Now().Sub(before) > pinHolds {
			return fmt.Errorf("%w: %w", errLapsed, err)
		}
		if err != nil {
			return err
		}
		if string(got) != string(want[at:at+4096]) {
			return fmt.Errorf("backup %s is read wrong at %d", b.ID, at)
		}
	}
	return nil
}

// end lets everybody finish, and looks whether no more is left than may be.
func (p *play) end() {
	for alive := p.stage.settle(); len(alive) > 0; alive = p.stage.settle() {
		clear(p.frozen)
		p.turn(alive)
	}
	p.hear()
	p.look()
	for range 4 {
		p.st.Advance(repository.HoldFor)
		p.prune()
		p.look()
	}
	repo := p.open(p.st.Client())
	all, _, err := repo.Backups(context.Background())
	if err != nil {
		p.fail("%v", err)
	}
	live := int64(0)
	seen := map[string]bool{}
	for _, b := range all {
		scope := "" // what sets share is stored in each
		if repo.Sets() {
			scope = b.Set.String()
		}
		err := repo.Tree(b.Root).Walk(context.Background(), 0, repo.Regions(b.SizeBytes), func(_ uint64, region maptree.Region) error {
			for _, c := range region.Chunks {
				if !seen[scope+c.ID.String()] {
					seen[scope+c.ID.String()] = true
					live += int64(c.Held.Count() * 4096) // noise does not shrink
				}
			}
			return nil
		})
		if err != nil {
			p.fail("%v", err)
		}
	}
	// A pack has some 5 KB of its own beside 3 % of parity.
	if got, most := p.bytes("packs/"), live*5/4+live/10+int64(6000*len(p.names("packs/"))); got > most {
		p.fail("%d bytes are left for %d that are needed", got, live)
	}
	for _, prefix := range []string{"candidates/", "condemned/", "pins/", "deleted/"} {
		if left := p.names(prefix); len(left) > 0 {
			p.fail("left: %v", left)
		}
	}
	if got := len(p.names("backups/")); got != len(all) {
		p.fail("%d records for %d backups", got, len(all))
	}
	p.outcome["backups"] += len(all)
}
