package clients

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"varve/internal/block"
	"varve/internal/contract"
	"varve/internal/nbd/client"
	"varve/internal/objects/s3/s3test"
)

// host is a machine with a daemon, volumes, and a line to the bucket. One goroutine works on it, beside those of its backups.
type host struct {
	*daemon
	w       *world
	dir     string // of data: the daemon is another one after each restart
	number  int
	random  *rand.Rand
	line    *s3test.Proxy
	place   string // of the repository, at the end of the line
	last    stamp
	volumes []*volume
	things  int // that were made, for their names

	background sync.WaitGroup
	mu         sync.Mutex // guards what follows
	failed     []error    // what must not be
	busy       map[*volume]bool
	commands   map[string]int // that have ended, by what they said; "" if they are done
}

// volume is one of a host, and what it holds.
type volume struct {
	name, id string
	inplace  bool
	now      image
	client   *client.Client
}

const (
	stepsInRound = 14
	mostBackups  = 30 // about
	minBlocks    = zoneBlocks * 8
	mostBlocks   = 3 * minBlocks
	// commandLimit is longer than the daemon has patience with a store.
	commandLimit = 10 * time.Minute
)

func newHost(w *world, number int, seed uint64) *host {
	w.t.Helper()
	h := &host{
		w: w, number: number, random: rand.New(rand.NewPCG(seed, uint64(number)+1)), line: w.line(), last: stamp(number+1) << 32,
		dir: filepath.Join(scratch(w.t), "d"), busy: map[*volume]bool{}, commands: map[string]int{},
	}
	h.place = w.place(h.line, shared)
	h.begin()
	h.varve(append([]string{"repo", "add", "away", h.place}, w.open...)...)
	for _, v := range []*volume{{name: "web"}, {name: "db", inplace: h.random.IntN(2) == 0}} {
		v.now = make(image, minBlocks+h.random.IntN(mostBlocks-minBlocks))
		args := []string{"volume", "create", v.name, "--size", fmt.Sprint(len(v.now) * block.Size)}
		if v.inplace {
			args = append(args, "--inplace", filepath.Join(filepath.Dir(h.dir), v.name+".raw"))
		}
		v.id = ask[contract.Volume](h.daemon, args...).ID
		h.volumes = append(h.volumes, v)
	}
	return h
}

// begin starts the daemon. The clock of one of the hosts is wrong, and by something else each time.
func (h *host) begin() {
	t := h.w.t
	t.Helper()
	if h.number == 0 {
		h.daemon = serve(t, h.dir)
		return
	}
	self, err := os.Executable()
	must(t, err, "find this program")
	ahead := time.Duration(h.random.Int64N(int64(96*time.Hour))) - 48*time.Hour
	h.daemon = serveProgram(t, self, h.dir, "--ahead", ahead.String())
}

// work is what a host does in a round.
func (h *host) work() {
	for range stepsInRound {
		if err := h.step(); err != nil {
			h.note(err)
			break
		}
	}
	h.background.Wait()
	if err := h.tidy(); err != nil {
		h.note(err)
	}
}

func (h *host) note(err error) {
	if err != nil {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.failed = append(h.failed, err)
	}
}

// step does one thing.
func (h *host) step() error {
	select {
	case <-h.ended:
		return fmt.Errorf("the daemon has ended: %w", h.err)
	default:
	}
	what := h.random.IntN(100)
	for _, a := range actions {
		if what -= a.weight; what < 0 {
			if err := a.do(h); err != nil {
				return fmt.Errorf("%s: %w", a.name, err)
			}
			return nil
		}
	}
	return h.patch()
}

// actions are what a host does, with how often it does it of a hundred times; else it writes.
var actions = []struct {
	weight int
	name   string
	do     func(*host) error
}{
	{30, "back up", (*host).backUpSome},
	{12, "delete a backup", (*host).deleteOne},
	{8, "resize", (*host).resize},
	{6, "prune", func(h *host) error { return h.command("repo", "prune", "away") }},
	{4, "check", func(h *host) error { return h.command("repo", "check", "away", "--sample", "30") }},
	{4, "verify", func(h *host) error {
		return h.withAny(func(id string) []string { return []string{"backup", "verify", id, "--repo", "away"} })
	}},
	{4, "restore in place", (*host).restoreInPlace},
	{4, "restore instantly", (*host).restoreInstantly},
	{3, "kill the daemon", func(h *host) error { return h.again((*daemon).kill) }},
	{1, "stop the daemon", func(h *host) error { return h.again((*daemon).stop) }},
}

// errNotDone is how a command ended that a disturbance or the other host stood in the way of, and said so.
var errNotDone = errors.New("not done")

// excuses are what such a command says.
var excuses = []string{
	"store unavailable", "what it builds on is gone", "the session was given up", "no such backup", "is being filled from it",
	"no daemon answers", "ask the daemon", "read the daemon's answer", "the daemon is stopping", "the daemon was started again",
}

// do runs a command of varve. What it cannot do it has to say: errNotDone.
func (h *host) do(args ...string) (stdout string, err error) {
	o := executeWithin(commandLimit, "", program, append([]string{"--data", h.dir, "-o", "json"}, args...)...)
	if o.status == 0 {
		h.count("")
		return o.stdout, nil
	}
	err = errors.Join(fmt.Errorf("varve %q: status %d: %s", args, o.status, o.stderr), o.err)
	first, _, _ := strings.Cut(o.stderr, "\n")
	at := slices.IndexFunc(excuses, func(words string) bool { return strings.Contains(first, words) })
	if at < 0 || !slices.Contains([]int{1, 3, 4}, o.status) || !strings.HasPrefix(first, "varve: ") {
		return "", err
	}
	h.count(excuses[at])
	return "", fmt.Errorf("%w: %w", errNotDone, err)
}

func (h *host) count(excuse string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.commands[excuse]++
}

// command is do where nothing depends on whether it is done.
func (h *host) command(args ...string) error {
	_, err := h.do(args...)
	return unlessExcused(err)
}

func unlessExcused(err error) error {
	if errors.Is(err, errNotDone) {
		return nil
	}
	return err
}

// asked is do, with the result decoded.
func asked[T any](h *host, args ...string) (result T, err error) {
	out, err := h.do(args...)
	if err == nil {
		err = json.Unmarshal([]byte(out), &result)
	}
	return result, err
}
