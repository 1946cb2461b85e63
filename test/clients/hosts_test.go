package clients

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"filippo.io/age"

	"varve/internal/contract"
	"varve/internal/objects/s3/s3test"
)

// Two environment variables choose the rounds of two hosts: how long they go on, and what seed they begin with.
const (
	soakVariable = "VARVE_TEST_SOAK"
	seedVariable = "VARVE_TEST_SEED"
	shortSoak    = 8 * time.Second
)

// shared is the prefix of the repository that both hosts use.
const shared = "shared"

// world is a bucket and the hosts that share a repository in it, with what the test knows of the backups.
type world struct {
	*bucket
	random *rand.Rand
	length time.Duration
	hosts  []*host
	open   []string // flags that open the repository

	mu       sync.Mutex // guards what follows
	attempts int
	backups  map[attempted]*kept
}

// attempted names a backup: the attempt at it, as a label says, and the volume's id.
type attempted struct{ attempt, volume string }

// attemptLabel is the label of a backup that says which attempt made it.
const attemptLabel = "attempt"

// kept is what is known of a backup.
type kept struct {
	id    string // empty as long as nobody has said it
	want  image
	there bool // it has been made, or seen
	doubt bool // somebody tried to delete it, and does not know whether he has
	gone  bool // deleted
}

// Two hosts, the clock of one of which is wrong, back up, delete, prune, check and restore in one bucket, while its server is killed and the lines
// to it stall and break. In the end of each round every backup that is listed holds what its volume did.
func TestTwoHostsOverOneBucket(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	began := time.Now()
	rounds := 0
	for ; rounds == 0 || time.Since(began) < w.length; rounds++ {
		w.round()
		w.settle()
		for _, h := range w.hosts {
			h.look()
		}
	}
	w.end()
	there := 0
	for _, k := range w.backups {
		if k.there {
			there++
		}
	}
	t.Logf("%d rounds in %v, %d backups of %d attempts", rounds, time.Since(began).Round(time.Second), there, len(w.backups))
	for _, h := range w.hosts {
		t.Logf("commands, by what stood in their way: %v", h.commands)
	}
}

// variable is what an environment variable says; without it otherwise.
func variable[T any](t *testing.T, name string, parse func(string) (T, error), otherwise T) T {
	t.Helper()
	said := os.Getenv(name)
	if said == "" {
		return otherwise
	}
	v, err := parse(said)
	must(t, err, "%s", name)
	return v
}

func newWorld(t *testing.T) *world {
	t.Helper()
	length := variable(t, soakVariable, time.ParseDuration, shortSoak)
	seed := variable(t, seedVariable, func(s string) (uint64, error) { return strconv.ParseUint(s, 10, 64) }, rand.Uint64())
	t.Logf("%s=%d has the same choices, at other times", seedVariable, seed)
	random := rand.New(rand.NewPCG(seed, 0))
	w := &world{
		bucket: newBucket(t, []s3test.Kind{s3test.Plain, s3test.Versioned}[random.IntN(2)]),
		random: random, length: length, backups: map[attempted]*kept{},
	}
	w.open = w.access()
	line := w.line()
	init := []string{"repo", "init", "--url", w.place(line, shared), "--chunk-size", "64K",
		"--grace", []string{"0", "1s", "4s"}[random.IntN(3)], "--dedup", []string{"repository", "set"}[random.IntN(2)]}
	if random.IntN(2) == 0 {
		identity, err := age.GenerateX25519Identity()
		must(t, err, "make an identity")
		file := filepath.Join(scratch(t), "identity")
		must(t, os.WriteFile(file, []byte(identity.String()+"\n"), 0o600), "write it")
		w.open = append(w.open, "--identity-file", file)
		init = append(init, "--recipient", identity.Recipient().String())
	} else {
		init = append(init, "--no-encryption")
	}
	t.Logf("varve %q, versions: %v", init, w.kind == s3test.Versioned)
	run(t, program, append(init, w.open...)...)
	for n := range 2 {
		w.hosts = append(w.hosts, newHost(w, n, seed))
	}
	return w
}

// round has all hosts do things while the lines and the server fail.
func (w *world) round() {
	w.t.Helper()
	over := make(chan struct{})
	var all sync.WaitGroup
	for _, h := range w.hosts {
		all.Go(h.work)
	}
	go func() {
		all.Wait()
		close(over)
	}()
	w.disturb(over)
	for _, h := range w.hosts {
		must(w.t, errors.Join(h.failed...), "%s", h.dir)
	}
	if w.t.Failed() {
		w.t.FailNow()
	}
}

// disturb has the lines and the server fail until a round is over; then all is well.
func (w *world) disturb(over <-chan struct{}) {
	w.t.Helper()
	lasting := func(limit time.Duration) {
		if w.length > time.Minute {
			switch w.random.IntN(50) {
			case 0:
				limit = 50 * time.Second // longer than anybody waits for a line
			case 1, 2, 3, 4:
				limit = 20 * time.Second // or for a server
			}
		}
		select {
		case <-time.After(time.Duration(w.random.Int64N(int64(limit)))):
		case <-over:
		}
	}
	for goesOn := true; goesOn; {
		h := w.hosts[w.random.IntN(len(w.hosts))]
		way, bytes := s3test.Direction(w.random.IntN(2)), w.random.Int64N(2<<20)
		switch w.random.IntN(6) {
		case 0:
			h.line.Cut()
		case 1, 2:
			h.line.CutAfter(way, bytes)
		case 3, 4:
			select {
			case <-h.line.StallAfter(way, bytes):
				lasting(time.Second)
			case <-time.After(time.Second): // it comes later, or does not
			case <-over:
			}
			h.line.Stall(false)
		case 5:
			w.Kill()
			lasting(time.Second)
			w.Restart()
		}
		select {
		case <-time.After(time.Duration(w.random.Int64N(int64(time.Second)))):
		case <-over:
			goesOn = false
		}
	}
	for _, h := range w.hosts {
		h.line.CutAfter(s3test.Up, 1<<60)
		h.line.CutAfter(s3test.Down, 1<<60)
	}
}

// attempt notes what a backup will have to hold.
func (w *world) attempt(volumes []*volume) (name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.attempts++
	name = strconv.Itoa(w.attempts)
	for _, v := range volumes {
		w.backups[attempted{name, v.id}] = &kept{want: slices.Clone(v.now)}
	}
	return name
}

// made notes that backups are there.
func (w *world) made(all []contract.Backup) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, b := range all {
		k := w.backups[attempted{b.Labels[attemptLabel], b.VolumeID}]
		if k == nil {
			return fmt.Errorf("nobody has made backup %+v", b)
		}
		if k.gone {
			return fmt.Errorf("backup %s was deleted, and is there again", b.ID)
		}
		if b.Mismatched > 0 {
			return fmt.Errorf("backup %s: something had changed that was not tracked: %+v", b.ID, b)
		}
		k.id, k.there = b.ID, true
	}
	return nil
}

// any picks a backup that is there, as far as anybody knows, of a volume, or of any if that is empty; nil if there is none. count is how many
// there are.
func (w *world) any(random *rand.Rand, volume string) (k *kept, count int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []*kept
	for a, k := range w.backups {
		if k.there && !k.gone && (volume == "" || a.volume == volume) {
			out = append(out, k)
		}
	}
	if len(out) == 0 {
		return nil, 0
	}
	slices.SortFunc(out, func(a, b *kept) int { return cmp.Compare(a.id, b.id) })
	return out[random.IntN(len(out))], len(out)
}

// settle looks at all backups when nothing is under way: both hosts list the same, what is listed is right, and nothing else is there.
func (w *world) settle() {
	w.t.Helper()
	one, other := w.hosts[0], w.hosts[1]
	listed := one.backups()
	doubtful := func(b contract.Backup) bool { return b.State == contract.BackupDoubtful }
	if slices.ContainsFunc(listed, doubtful) {
		other.varve("repo", "prune", "away") // which decides
		listed = one.backups()
	}
	ids := func(all []contract.Backup) (out []string) {
		for _, b := range all {
			out = append(out, b.ID)
			if b.State != contract.BackupGood {
				w.t.Fatalf("backup %s is %s", b.ID, b.State)
			}
		}
		return out
	}
	if a, b := ids(listed), ids(other.backups()); !slices.Equal(a, b) {
		w.t.Fatalf("one host lists %v, the other %v", a, b)
	}
	must(w.t, w.made(listed), "list backups")
	there := map[string]bool{}
	for i, b := range listed {
		there[b.ID] = true
		w.hosts[(i+w.attempts)%2].restore(b.ID, w.backups[attempted{b.Labels[attemptLabel], b.VolumeID}].want)
	}
	for a, k := range w.backups {
		switch {
		case !k.there || there[k.id]:
		case k.doubt || k.gone:
			k.gone = true
		default:
			w.t.Fatalf("backup %s of attempt %s is not there any more", k.id, a.attempt)
		}
	}
}

// end looks whether all that was made on the way goes.
func (w *world) end() {
	w.t.Helper()
	for _, h := range w.hosts {
		h.lastBackups()
		h.checkPool()
	}
	w.hosts[0].varve("repo", "check", "away")
	w.settle()
	args := []string{"backup", "delete", "--repo", "away"}
	for _, b := range w.hosts[0].backups() {
		args = append(args, b.ID)
	}
	w.hosts[1].varve(args...)
	w.remove(shared, "pins/") // those of daemons that were killed hold for half an hour
	await(w.t, "what nothing needs is given back", func() bool {
		for _, h := range w.hosts {
			h.varve("repo", "prune", "away")
		}
		return len(w.names(shared, "packs/"))+len(w.names(shared, "nodes/")) == 0
	})
	if left := slices.Concat(w.names(shared, "backups/"), w.names(shared, "candidates/")); len(left) > 0 {
		w.t.Errorf("left over: %v", left)
	}
}
