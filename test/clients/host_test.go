package clients

import (
	"context"
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

// connection is one to a volume, for its writer.
func (h *host) connection(v *volume) (*client.Client, error) {
	if v.client == nil {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		c, err := client.Dial(ctx, h.uri(v.name), client.Options{})
		if err != nil {
			return nil, err
		}
		if c.SizeBytes() != int64(len(v.now))*block.Size {
			return nil, fmt.Errorf("%s has %v bytes, not %v blocks", v.name, c.SizeBytes(), len(v.now))
		}
		v.client = c
	}
	return v.client, nil
}

// leave closes the connection to a volume, with all that was written durable.
func (h *host) leave(v *volume) error {
	if v.client == nil {
		return nil
	}
	err := flush(v.client)
	v.client.Close()
	v.client = nil
	return err
}

// patch writes, zeroes and discards, or has a region be as others are.
func (h *host) patch() error {
	v := h.volumes[h.random.IntN(len(h.volumes))]
	c, err := h.connection(v)
	if err != nil {
		return err
	}
	if h.random.IntN(3) > 0 {
		r, perform := newRound(h.random, len(v.now), &h.last, []*client.Client{c})
		for lba, s := range r {
			v.now[lba] = s
		}
		return perform()
	}
	const region = 64 << 10 / block.Size
	lba, s := h.random.IntN(len(v.now)/region)*region, stamp(1+h.random.IntN(2))
	p := make([]byte, region*block.Size)
	for i := range region {
		v.now[lba+i] = s
		fill(p[i*block.Size:][:block.Size], int64(lba+i), s)
	}
	return write(c, p, int64(lba)*block.Size)
}

func (h *host) resize() error {
	v := h.volumes[h.random.IntN(len(h.volumes))]
	if v.inplace {
		return h.patch()
	}
	if err := h.leave(v); err != nil {
		return err
	}
	blocks := minBlocks + h.random.IntN(mostBlocks-minBlocks)
	if _, err := h.do("volume", "resize", v.name, fmt.Sprint(blocks*block.Size), "--force"); err != nil {
		return err
	}
	v.now = slices.Clone(v.now[:min(len(v.now), blocks)])
	v.now = append(v.now, make(image, blocks-len(v.now))...)
	return nil
}

// idle takes one or more volumes that no backup is being made of, until release.
func (h *host) idle() (volumes []*volume, release func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, v := range h.volumes {
		if !h.busy[v] && (len(volumes) == 0 || h.random.IntN(2) == 0) {
			volumes = append(volumes, v)
			h.busy[v] = true
		}
	}
	return volumes, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		for _, v := range volumes {
			delete(h.busy, v)
		}
	}
}

// backUpSome makes a backup of one volume or of several at one instant: of what they hold, or of a snapshot while the host goes on.
func (h *host) backUpSome() error {
	if _, count := h.w.any(h.random, ""); count > mostBackups {
		return h.deleteOne()
	}
	volumes, release := h.idle()
	if len(volumes) == 0 {
		return h.patch()
	}
	attempt := h.w.attempt(volumes)
	var names []string
	for _, v := range volumes {
		names = append(names, v.name)
	}
	kind := []string{contract.BackupAuto, contract.BackupFull, contract.BackupIncremental, contract.BackupDifferential}[h.random.IntN(4)]
	args := []string{"--repo", "away", "--type", kind, "--label", attemptLabel + "=" + attempt}
	if h.random.IntN(2) == 0 {
		defer release()
		return h.backUp(slices.Concat(names, args))
	}
	if _, err := h.do(slices.Concat([]string{"snapshot", "create"}, names, []string{"--name", "s" + attempt})...); err != nil {
		release()
		return err
	}
	for i := range names {
		names[i] += "@s" + attempt
	}
	h.background.Go(func() {
		defer release()
		err := h.backUp(slices.Concat(names, args))
		h.note(errors.Join(err, h.command(append([]string{"snapshot", "delete"}, names...)...)))
	})
	return nil
}

func (h *host) backUp(args []string) error {
	made, err := asked[[]contract.Backup](h, append([]string{"backup", "create"}, args...)...)
	if err != nil {
		return unlessExcused(err)
	}
	return h.w.made(made)
}

// deleteOne deletes a backup of any host's.
func (h *host) deleteOne() error {
	k, _ := h.w.any(h.random, "")
	if k == nil {
		return h.patch()
	}
	h.w.mu.Lock()
	k.doubt = true
	h.w.mu.Unlock()
	_, err := h.do("backup", "delete", k.id, "--repo", "away")
	if err == nil {
		h.w.mu.Lock()
		k.gone = true
		h.w.mu.Unlock()
	}
	return unlessExcused(err)
}

// withAny runs a command on any backup.
func (h *host) withAny(args func(id string) []string) error {
	k, _ := h.w.any(h.random, "")
	if k == nil {
		return h.patch()
	}
	_, err := h.do(args(k.id)...)
	return h.w.missing(k, err)
}

// missing passes on what was said of a backup that is not there, unless it may be so.
func (w *world) missing(k *kept, err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil && strings.Contains(err.Error(), "no such backup") && !k.doubt && !k.gone {
		return fmt.Errorf("a backup is missing that nobody has deleted: %w", err)
	}
	return unlessExcused(err)
}

// restoreInPlace makes a volume what one of its backups holds.
func (h *host) restoreInPlace() error {
	v := h.volumes[h.random.IntN(len(h.volumes))]
	k, _ := h.w.any(h.random, v.id)
	if k == nil || v.inplace && len(k.want) != len(v.now) {
		return h.patch()
	}
	if err := h.leave(v); err != nil {
		return err
	}
	done, err := asked[contract.BackupRestore](h, "backup", "restore", k.id, "--repo", "away", "--in-place", v.name, "--force")
	if err != nil {
		return h.w.missing(k, err)
	}
	v.now = slices.Clone(k.want)
	_, err = h.do("snapshot", "delete", done.Kept.Ref())
	return err
}

// restoreInstantly makes a volume of a backup, or removes one.
func (h *host) restoreInstantly() error {
	if len(h.volumes) > 2 {
		return h.drop(h.volumes[2])
	}
	k, _ := h.w.any(h.random, "")
	if k == nil {
		return h.patch()
	}
	h.things++
	v := &volume{name: fmt.Sprintf("fast%v", h.things), now: slices.Clone(k.want)}
	done, err := asked[contract.BackupRestore](h, "backup", "restore", k.id, "--repo", "away", "--to-volume", v.name, "--instant")
	if err != nil {
		return h.w.missing(k, err)
	}
	v.id = done.Volume.ID
	h.volumes = append(h.volumes, v)
	return nil
}

// drop deletes a volume, unless it is being backed up.
func (h *host) drop(v *volume) error {
	h.mu.Lock()
	busy := h.busy[v]
	h.mu.Unlock()
	if busy {
		return nil
	}
	if err := errors.Join(h.leave(v), h.deleteSnapshots(v)); err != nil {
		return err
	}
	_, err := h.do("volume", "delete", v.name, "--force")
	if err == nil {
		h.volumes = slices.DeleteFunc(h.volumes, func(other *volume) bool { return other == v })
	}
	return err
}

// deleteSnapshots deletes those of a volume that a command was to delete which found no daemon.
func (h *host) deleteSnapshots(v *volume) error {
	all, err := asked[[]contract.Snapshot](h, "snapshot", "list", v.name)
	for _, s := range all {
		if err == nil {
			_, err = h.do("snapshot", "delete", s.Ref())
		}
	}
	return err
}

// again ends the daemon in some way, and starts another one.
func (h *host) again(end func(*daemon)) error {
	for _, v := range h.volumes {
		if err := h.leave(v); err != nil {
			return err
		}
	}
	end(h.daemon)
	h.begin()
	return nil
}

// tidy leaves, when nothing is under way, no snapshot that the test has made.
func (h *host) tidy() error {
	for _, v := range h.volumes {
		all, err := asked[[]contract.Snapshot](h, "snapshot", "list", v.name)
		if err != nil {
			return err
		}
		for _, s := range all {
			if !strings.HasPrefix(s.Name, "s") {
				return fmt.Errorf("snapshot %s is left", s.Ref())
			}
		}
		if err := h.deleteSnapshots(v); err != nil {
			return err
		}
	}
	return nil
}

// look wants all volumes to hold what was written.
func (h *host) look() {
	h.t.Helper()
	for _, v := range h.volumes {
		must(h.t, h.leave(v), "flush %s", v.name)
		c := h.connect(v.name)
		got, err := readImage(c)
		c.Close()
		must(h.t, err, "read %s", v.name)
		if !slices.Equal(got, v.now) {
			h.t.Fatalf("%s of %s does not hold what was written", v.name, h.dir)
		}
	}
}

func (h *host) backups() []contract.Backup {
	h.t.Helper()
	return ask[[]contract.Backup](h.daemon, "backup", "list", "--repo", "away")
}

// restore brings a backup back, in one of the ways there are, and wants it to be an image.
func (h *host) restore(id string, want image) {
	h.t.Helper()
	export := "backup/" + id
	switch h.random.IntN(12) {
	case 0, 1:
		export = "back"
		args := []string{"backup", "restore", id, "--repo", "away", "--to-volume", export}
		if h.random.IntN(2) == 0 {
			args = append(args, "--instant")
		}
		h.varve(args...)
		defer h.varve("volume", "delete", export, "--force")
	case 2:
		file := filepath.Join(filepath.Dir(h.dir), "back.raw")
		defer os.Remove(file)
		h.varve("backup", "restore", id, "--repo", "away", "--to", file)
		h.wantFile(file, want)
		return
	case 3: // as on a bare machine
		file := filepath.Join(filepath.Dir(h.dir), "back.raw")
		defer os.Remove(file)
		h.varve(append([]string{"backup", "restore", id, "--url", h.place, "--to", file}, h.w.open...)...)
		h.wantFile(file, want)
		return
	}
	c := h.connect(export)
	defer c.Close()
	got, err := readImage(c)
	must(h.t, err, "read %s", export)
	if !slices.Equal(got, want) {
		h.t.Fatalf("backup %s does not hold what its volume did", id)
	}
}

func (h *host) wantFile(file string, want image) {
	h.t.Helper()
	p := make([]byte, len(want)*block.Size)
	for lba, s := range want {
		fill(p[lba*block.Size:][:block.Size], int64(lba), s)
	}
	wantContent(h.t, file, p)
}

// lastBackups makes a backup of each of the first volumes, after which there is no more in the pool for the repository than there has to be.
func (h *host) lastBackups() {
	h.t.Helper()
	for len(h.volumes) > 2 {
		must(h.t, h.drop(h.volumes[2]), "delete a volume")
	}
	for _, v := range h.volumes {
		attempt := h.w.attempt([]*volume{v})
		must(h.t, h.w.made(ask[[]contract.Backup](h.daemon, "backup", "create", v.name, "--repo", "away", "--label", attemptLabel+"="+attempt)), "back up")
		if marks := ask[[]contract.Bookmark](h.daemon, "bookmark", "list", v.name); len(marks) > 2 {
			h.t.Errorf("bookmarks of %s: %+v", v.name, marks)
		}
	}
	if left := ask[[]contract.Snapshot](h.daemon, "snapshot", "list"); len(left) > 0 {
		h.t.Errorf("snapshots are left: %+v", left)
	}
}
