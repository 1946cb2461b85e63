package clients

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"varve/internal/block"
	"varve/internal/contract"
	"varve/internal/objects/s3/s3test"
)

// site is a daemon with a repository in a bucket, "away", at the end of a line of its own.
type site struct {
	*daemon
	bucket *bucket
	line   *s3test.Proxy
	prefix string
	noise  *rand.ChaCha8
	now    []byte            // what volume "web" holds
	held   map[string][]byte // what backups have to hold, by their ids
}

func newSite(b *bucket, prefix string, bytes int, init ...string) *site {
	b.t.Helper()
	s := &site{bucket: b, line: b.line(), prefix: prefix, noise: rand.NewChaCha8([32]byte{}), now: make([]byte, bytes), held: map[string][]byte{}}
	place := b.place(s.line, prefix)
	run(b.t, program, slices.Concat([]string{"repo", "init", "--url", place, "--no-encryption", "--chunk-size", "64K"}, init, b.access())...)
	s.daemon = serve(b.t, filepath.Join(scratch(b.t), "d"))
	s.varve(append([]string{"repo", "add", "away", place}, b.access()...)...)
	s.varve("volume", "create", "web", "--size", fmt.Sprint(bytes))
	return s
}

// rewrite gives so many bytes of the volume content that nothing has had, and that does not shrink.
func (s *site) rewrite(bytes int) {
	s.t.Helper()
	s.now = slices.Clone(s.now)
	s.noise.Read(s.now[:bytes])
	c := s.connect("web")
	defer c.Close()
	must(s.t, write(c, s.now[:bytes], 0), "write the volume")
}

// backUp makes a backup, and notes what it has to hold.
func (s *site) backUp(kind string) contract.Backup {
	s.t.Helper()
	made := ask[[]contract.Backup](s.daemon, "backup", "create", "web", "--repo", "away", "--type", kind)
	s.held[made[0].ID] = s.now
	return made[0]
}

// deleteBackups deletes all there are.
func (s *site) deleteBackups() {
	s.t.Helper()
	if len(s.held) > 0 {
		s.varve(append([]string{"backup", "delete", "--repo", "away"}, slices.Collect(maps.Keys(s.held))...)...)
		clear(s.held)
	}
}

// wantHeld wants an export to hold something.
func (s *site) wantHeld(export string, want []byte) {
	s.t.Helper()
	c := s.connect(export)
	defer c.Close()
	got, err := read(c, 0, c.SizeBytes())
	must(s.t, err, "read %s", export)
	if !bytes.Equal(got, want) {
		s.t.Fatalf("%s: %s does not hold what it should", s.prefix, export)
	}
}

// wantNothingElse wants the volumes and backups that are known, each with what it has to hold, and nothing that was made on the way.
func (s *site) wantNothingElse() {
	s.t.Helper()
	s.wantHeld("web", s.now)
	for _, v := range ask[[]contract.Volume](s.daemon, "volume", "list") {
		if v.Name != "web" {
			s.t.Fatalf("%s: there is volume %s", s.prefix, v.Name)
		}
	}
	if left := ask[[]contract.Snapshot](s.daemon, "snapshot", "list"); len(left) > 0 {
		s.t.Fatalf("%s: snapshots are left: %+v", s.prefix, left)
	}
	all := ask[[]contract.Backup](s.daemon, "backup", "list", "--repo", "away")
	for _, b := range all {
		if s.held[b.ID] == nil {
			s.t.Fatalf("%s: backup %s is to be seen: %+v", s.prefix, b.ID, b)
		}
		s.wantHeld("backup/"+b.ID, s.held[b.ID])
	}
	if len(all) != len(s.held) {
		s.t.Fatalf("%s: %d backups are there, not %d", s.prefix, len(all), len(s.held))
	}
}

// work is what a daemon does with a bucket while the bucket goes away, in a site of its own.
type work struct {
	name  string
	way   s3test.Direction
	after int64 // it is in the middle when so many bytes have gone, and up to three times as many
	// prepare makes what it needs; run does it, of which args are the command in most cases.
	prepare func(*site)
	args    func(*site) []string
	run     func(*site) outcome
	// done looks whether it is done right, and undone, if it has failed, whether all is as before; nil: wantNothingElse.
	done, undone func(*site)
}

const (
	siteBytes = 3 << 20
	part      = siteBytes / 4
)

// only is the backup that a site has.
func (s *site) only() string {
	for id := range s.held {
		return id
	}
	s.t.Fatalf("%s has no backup", s.prefix)
	return ""
}

// oneBackup leaves a site with one backup, of other content than the volume's.
func (s *site) oneBackup() {
	s.deleteBackups()
	s.rewrite(siteBytes)
	s.backUp(contract.BackupFull)
	s.rewrite(siteBytes)
}

// command is that of one backup's, with what follows.
func (s *site) command(what string, rest ...string) []string {
	return append([]string{"backup", what, s.only(), "--repo", "away"}, rest...)
}

// newest takes the backup in that has just been made.
func (s *site) newest(kind string) {
	s.t.Helper()
	for _, b := range ask[[]contract.Backup](s.daemon, "backup", "list", "--repo", "away") {
		if s.held[b.ID] == nil {
			s.held[b.ID] = s.now
			if b.Type != kind || b.Mismatched > 0 {
				s.t.Fatalf("%s: not a sound %s: %+v", s.prefix, kind, b)
			}
		}
	}
	s.wantNothingElse()
}

func backingUp(kind string) work {
	return work{
		name: kind, way: s3test.Up, after: part, prepare: (*site).oneBackup,
		args: func(*site) []string { return []string{"backup", "create", "web", "--repo", "away", "--type", kind} },
		done: func(s *site) { s.newest(kind) },
	}
}

var works = []work{
	backingUp(contract.BackupFull),
	backingUp(contract.BackupIncremental),
	backingUp(contract.BackupDifferential),
	{
		name: "restore", way: s3test.Down, after: part, prepare: (*site).oneBackup,
		args: func(s *site) []string { return s.command("restore", "--to-volume", "copy") },
		done: func(s *site) {
			s.wantHeld("copy", s.held[s.only()])
			s.varve("volume", "delete", "copy")
			s.wantNothingElse()
		},
	},
	{
		name: "in-place", way: s3test.Down, after: part, prepare: (*site).oneBackup,
		args: func(s *site) []string { return s.command("restore", "--in-place", "web") },
		done: func(s *site) {
			s.now = s.held[s.only()]
			kept := ask[[]contract.Snapshot](s.daemon, "snapshot", "list", "web")
			if len(kept) != 1 || !strings.HasPrefix(kept[0].Name, "auto-before-restore") {
				s.t.Fatalf("the present is not kept: %+v", kept)
			}
			s.varve("snapshot", "delete", "web@"+kept[0].Name)
			s.wantNothingElse()
		},
	},
	{
		name: "instant", way: s3test.Down, after: part, prepare: (*site).oneBackup, run: (*site).restoreInstantly,
		undone: func(s *site) { s.wantHeld("fast", s.held[s.only()]) }, // it is there, and all that it holds, wherever that is
		done: func(s *site) {
			s.wantHeld("fast", s.held[s.only()])
			s.varve("volume", "delete", "fast")
			s.wantNothingElse()
		},
	},
	{
		name: "verify", way: s3test.Down, after: part, prepare: (*site).oneBackup,
		args: func(s *site) []string { return s.command("verify") },
	},
	{
		name: "check", way: s3test.Down, after: part, prepare: (*site).oneBackup,
		args: func(*site) []string { return []string{"repo", "check", "away"} },
	},
	{
		name: "prune", way: s3test.Up, after: part / 2, prepare: (*site).mostlyWaste, run: (*site).prune,
	},
}

// restoreInstantly restores to volume "fast", or goes on with that, and waits until it is full. Its last block is read meanwhile.
func (s *site) restoreInstantly() outcome {
	args := s.command("restore", "--to-volume", "fast", "--instant")
	if s.try("volume", "show", "fast").status == 0 {
		args = []string{"volume", "fill", "fast"}
	}
	if o := s.try(args...); o.status != 0 {
		return o
	}
	read := make(chan outcome, 1)
	go func() {
		read <- execute("", "qemu-io", "-f", "raw", "-r", "-c", fmt.Sprintf("read -q %d 4k", siteBytes-block.Size), s.uri("fast"))
	}()
	var filled outcome
	inTime := holdsInTime(func() bool { // the job may be forgotten by its id, not by what it has done
		filled = s.try("volume", "fill", "fast")
		return filled.status != 0
	})
	last := <-read
	switch {
	case !inTime:
		return outcome{status: -1, err: errors.New("it does not end")}
	case last.err != nil || strings.Contains(filled.stderr, "wholly filled"):
		return last
	}
	return filled
}

// mostlyWaste leaves a site with a pack of which half is needed: prune condemns it, and the next one moves that half.
func (s *site) mostlyWaste() {
	s.deleteBackups()
	s.rewrite(siteBytes)
	first := s.backUp(contract.BackupFull)
	s.rewrite(siteBytes / 2)
	s.backUp(contract.BackupFull)
	s.varve("backup", "delete", first.ID, "--repo", "away")
	delete(s.held, first.ID)
}

// prune prunes until something was given back: the store's clock has whole seconds, and within one nothing is older than anything.
func (s *site) prune() (o outcome) {
	holdsInTime(func() bool {
		o = s.try("repo", "prune", "away", "-o", "json")
		var done contract.RepositoryPrune
		return o.status != 0 || json.Unmarshal([]byte(o.stdout), &done) != nil || done.CopiedBytes > 0
	})
	return o
}

func (w work) do(s *site) outcome {
	if w.run != nil {
		return w.run(s)
	}
	return s.try(w.args(s)...)
}

func (w work) wantDone(s *site, o outcome) {
	s.t.Helper()
	if o.status != 0 {
		s.t.Fatalf("%s: status %d, %v\n%s%s", w.name, o.status, o.err, o.stdout, o.stderr)
	}
	if w.done == nil {
		s.wantNothingElse()
	} else {
		w.done(s)
	}
}

// The line to the bucket is cut or stalls, or the server is killed and started again, in the middle of all that a daemon does there: it goes
// on. If the server stays away it ends with an error that says so, and leaves nothing to be seen; then the same command succeeds.
func TestTheBucketGoesAwayInTheMiddle(t *testing.T) {
	t.Parallel()
	b := newBucket(t, s3test.Plain)
	sites := make([]*site, len(works))
	for i, w := range works {
		sites[i] = newSite(b, w.name, siteBytes, "--grace", "0")
	}
	// inTheMiddle has things happen to all of them in the middle of their work, one after the other.
	inTheMiddle := func(happens ...func()) []chan outcome {
		t.Helper()
		ended, stalled := make([]chan outcome, len(works)), make([]<-chan struct{}, len(works))
		for i, w := range works {
			s := sites[i]
			w.prepare(s)
			ended[i], stalled[i] = make(chan outcome, 1), s.line.StallAfter(w.way, w.after)
			go func() { ended[i] <- w.do(s) }()
		}
		for n, happen := range happens {
			for i, w := range works {
				if n > 0 {
					stalled[i] = sites[i].line.StallAfter(w.way, w.after)
				}
			}
			for i, w := range works {
				select {
				case <-stalled[i]:
				case o := <-ended[i]:
					t.Fatalf("%s ended before it was in the middle: %+v", w.name, o)
				}
			}
			happen()
		}
		for _, s := range sites {
			s.line.Stall(false)
		}
		return ended
	}
	look := func() {
		for _, s := range sites {
			s.varve("status")
		}
	}
	cut := func() { // what is on the way is lost
		for _, s := range sites {
			s.line.Cut()
		}
	}
	kill := func() {
		b.Kill()
		cut()
	}
	restart := func() {
		kill()
		b.Restart()
	}
	for i, end := range inTheMiddle(look, cut, restart) {
		works[i].wantDone(sites[i], <-end)
	}
	for i, end := range inTheMiddle(kill) {
		o := <-end
		wantRefusal(t, o, 1, "store unavailable")
		if !strings.Contains(o.stderr, sites[i].line.Address) {
			t.Errorf("%s: it is not said which store: %s", works[i].name, o.stderr)
		}
	}
	b.Restart()
	for i, w := range works {
		if w.undone != nil {
			w.undone(sites[i])
		} else {
			sites[i].wantNothingElse()
		}
		w.wantDone(sites[i], w.do(sites[i]))
	}
}

// What a backup had stored when its bucket went away is found by the next one.
func TestWhatAnInterruptedBackupStoredIsFound(t *testing.T) {
	t.Parallel()
	const size, pack = 72 << 20, 32 << 20
	b := newBucket(t, s3test.Plain)
	kinds := []string{contract.BackupFull, contract.BackupIncremental}
	sites, ended := make([]*site, len(kinds)), make([]chan outcome, len(kinds))
	for i, kind := range kinds {
		s := newSite(b, kind, size)
		sites[i], ended[i] = s, make(chan outcome, 1)
		s.backUp(contract.BackupFull) // of nothing
		s.rewrite(size)
		stalled := s.line.StallAfter(s3test.Up, pack)
		go func() { ended[i] <- s.try("backup", "create", "web", "--repo", "away", "--type", kind) }()
		for {
			select {
			case <-stalled:
			case o := <-ended[i]:
				t.Fatalf("%s ended before it was in the middle: %+v", kind, o)
			}
			if b.size(s.prefix, "packs/") > 0 {
				break
			}
			s.line.Stall(false)
			stalled = s.line.StallAfter(s3test.Up, 256<<10)
		}
	}
	b.Kill()
	for _, s := range sites {
		s.line.Stall(false)
	}
	for i := range sites {
		wantRefusal(t, <-ended[i], 1, "store unavailable")
	}
	b.Restart()
	for i, s := range sites {
		s.wantNothingElse()
		stored := b.size(s.prefix, "packs/")
		if made := s.backUp(kinds[i]); made.Type != kinds[i] || made.DuplicateBytes < stored*9/10 || made.Mismatched > 0 {
			t.Fatalf("of %d bytes that were stored: %+v", stored, made)
		}
		s.wantNothingElse()
	}
}
