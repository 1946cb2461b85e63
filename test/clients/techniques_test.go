package clients

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"varve/internal/block"
	"varve/internal/contract"
	"varve/internal/nbd/client"
)

// technique is a way to make a snapshot of a volume of a layout.
type technique struct {
	layout, name string
	toFile       bool
}

func (k technique) String() string {
	s := k.name + " of " + k.layout
	if k.toFile {
		s += " to a file"
	}
	return s
}

// physical snapshots need nothing but themselves.
func (k technique) physical() bool {
	return k.name != contract.TechniqueRow && k.name != contract.TechniqueCOW
}

var techniques = []technique{
	{contract.LayoutRedirect, contract.TechniqueRow, false},
	{contract.LayoutRedirect, contract.TechniqueCOWCopy, false},
	{contract.LayoutRedirect, contract.TechniqueCOWCopy, true},
	{contract.LayoutRedirect, contract.TechniqueClone, false},
	{contract.LayoutRedirect, contract.TechniqueClone, true},
	{contract.LayoutRedirect, contract.TechniqueMirror, true},
	{contract.LayoutInplace, contract.TechniqueCOW, false},
	{contract.LayoutInplace, contract.TechniqueCOWCopy, false},
	{contract.LayoutInplace, contract.TechniqueCOWCopy, true},
	{contract.LayoutInplace, contract.TechniqueClone, false},
	{contract.LayoutInplace, contract.TechniqueClone, true},
	{contract.LayoutInplace, contract.TechniqueMirror, true},
}

const techniqueBlocks = 1024

// subject is a volume whose snapshots are of one technique.
type subject struct {
	technique
	t      *testing.T
	d      *daemon
	dir    string
	file   string // of an inplace volume
	random *rand.Rand
	last   stamp
	head   image // what it holds, while nobody writes
	snaps  map[string]image
	// under has the blocks that were written to at the instant of a snapshot. Of an inplace volume such a write may be told as a change
	// before the snapshot and after it.
	under map[string]map[int64]bool
}

// TestEveryTechniqueKeepsTheContract: whatever the technique, a snapshot is the volume at one instant while clients write, and never changes: not by
// writes, restarts, kill -9, or what becomes of other snapshots. It can be compared with, cloned and rolled back to, and that undone. A physical one
// survives its volume; a logical one says what it needs, and keeps that from being deleted.
func TestEveryTechniqueKeepsTheContract(t *testing.T) {
	for _, k := range techniques {
		t.Run(k.String(), func(t *testing.T) {
			t.Parallel()
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			s := &subject{technique: k, t: t, dir: scratch(t), random: rand.New(rand.NewPCG(seed, 0)), snaps: map[string]image{}, under: map[string]map[int64]bool{}}
			s.d = serve(t, filepath.Join(s.dir, "d"))
			if k.layout == contract.LayoutInplace {
				s.file = filepath.Join(s.dir, "disk.img")
				s.d.varve("volume", "create", "web", "--size", fmt.Sprint(techniqueBlocks*block.Size), "--inplace", s.file)
			} else {
				s.d.varve("volume", "create", "web", "--size", fmt.Sprint(techniqueBlocks*block.Size))
			}
			s.head = make(image, techniqueBlocks)
			s.underWriters("a", "b", "c")
			s.verify()
			s.says()
			s.compare()
			s.write(20)
			s.verify()
			s.d.stop()
			s.d = serve(t, s.d.data)
			s.verify()
			s.clone("b")
			s.rollback("b")
			s.rollbackRange("a")
			s.killWhileMade("d")
			s.verify()
			s.delete("b", "a")
			s.write(10)
			s.verify()
			s.d.checkPool()
			if k.physical() {
				s.destroyOrigin()
			}
			for name := range s.snaps {
				s.delete(name)
			}
			s.d.checkPool()
			s.d.stop()
		})
	}
}

// creation is the command that makes a snapshot.
func (s *subject) creation(name string) []string {
	args := []string{"snapshot", "create", "web", "--name", name, "--technique", s.name}
	if s.toFile {
		args = append(args, "--to", filepath.Join(s.dir, name+".img"))
	}
	return args
}

// whole waits until a snapshot is what it is to become.
func (s *subject) whole(name string) {
	s.t.Helper()
	if s.physical() {
		await(s.t, "snapshot "+name+" is whole", func() bool {
			return s.d.try("snapshot", "show", "web@"+name).status == 0 && ask[contract.Snapshot](s.d, "snapshot", "show", "web@"+name).Class == "physical"
		})
	}
}

// underWriters makes snapshots while three connections write, and wants each to be what was acknowledged before, and nothing of what was asked for after.
func (s *subject) underWriters(names ...string) {
	s.t.Helper()
	connections := make([]*client.Client, 3)
	for i := range connections {
		connections[i] = s.d.connect("web")
		defer connections[i].Close()
	}
	k := killing{t: s.t, last: s.last}
	var made []taken
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, name := range names {
			one := taken{name: name}
			before := 0
			await(s.t, "the writers go on", func() bool {
				k.mu.Lock()
				defer k.mu.Unlock()
				if before == 0 {
					before = k.acked + 3
				}
				return k.acked >= before
			})
			k.mu.Lock()
			one.atLeast = k.acked
			k.mu.Unlock()
			s.d.varve(s.creation(name)...)
			k.mu.Lock()
			one.atMost = len(k.rounds)
			k.mu.Unlock()
			made = append(made, one)
		}
	}()
	for ended := false; !ended; {
		r, perform := newRound(s.random, techniqueBlocks, &k.last, connections)
		k.mu.Lock()
		k.rounds = append(k.rounds, r)
		k.mu.Unlock()
		must(s.t, perform(), "write")
		k.mu.Lock()
		k.acked++
		k.mu.Unlock()
		select {
		case <-done:
			ended = true
		default:
		}
	}
	s.last = k.last
	base := s.head
	s.head = s.read("web")
	if len(made) != len(names) {
		s.t.Fatalf("%d of %d snapshots were made", len(made), len(names))
	}
	for _, one := range made {
		s.whole(one.name)
		got := s.read("web@" + one.name)
		if err := prefix(base, k.rounds, got, one.atLeast, one.atMost); err != nil {
			s.t.Fatalf("snapshot %s: %v", one.name, err)
		}
		s.snaps[one.name] = got
		s.under[one.name] = map[int64]bool{}
		for _, r := range k.rounds[one.atLeast:one.atMost] {
			for lba := range r {
				s.under[one.name][lba] = s.layout == contract.LayoutInplace
			}
		}
	}
}

func (s *subject) read(export string) image {
	s.t.Helper()
	c := s.d.connect(export)
	defer c.Close()
	m, err := readImage(c)
	must(s.t, err, "read %s", export)
	return m
}

// write does some rounds of writes.
func (s *subject) write(rounds int) {
	s.t.Helper()
	c := s.d.connect("web")
	defer c.Close()
	for range rounds {
		_, perform := newRound(s.random, techniqueBlocks, &s.last, []*client.Client{c})
		must(s.t, perform(), "write")
	}
	must(s.t, flush(c), "flush")
	s.head = s.read("web")
}

// verify wants the volume and all snapshots to be what they were.
func (s *subject) verify() {
	s.t.Helper()
	if s.head != nil && !slices.Equal(s.read("web"), s.head) {
		s.t.Fatal("the volume has changed")
	}
	for name, want := range s.snaps {
		if !slices.Equal(s.read("web@"+name), want) {
			s.t.Fatalf("snapshot %s has changed", name)
		}
	}
}

// says wants the snapshots to tell what they are and need.
func (s *subject) says() {
	s.t.Helper()
	for name := range s.snaps {
		got := ask[contract.Snapshot](s.d, "snapshot", "show", "web@"+name)
		class, content, needs := "logical", "incremental", []string{"pool"}
		switch {
		case s.toFile:
			class, content, needs = "physical", "full", []string{"file:" + filepath.Join(s.dir, name+".img")}
		case s.physical():
			class, content = "physical", "full"
		case s.layout == contract.LayoutInplace:
			needs = []string{"pool", "volume:web"}
		}
		if got.Technique != s.name || got.Class != class || got.Content != content || !slices.Equal(got.DependsOn, needs) {
			s.t.Fatalf("snapshot %s says %s, %s, %s and that it needs %q", name, got.Technique, got.Class, got.Content, got.DependsOn)
		}
	}
	if !s.physical() {
		s.d.refused(4, "snapshots", "volume", "delete", "web")
	}
}

// compare wants diffs to name every block that differs, between snapshots, to the present, and since bookmarks whose snapshots are gone.
func (s *subject) compare() {
	s.t.Helper()
	s.d.varve("bookmark", "create", "web@a", "mark")
	s.differs("web@a", "web@b", "a", "b")
	s.differs("web@b", "web", "b", "")
	s.differs("web@a", "web", "a", "")
	s.differs("web#mark", "web@c", "a", "c")
}

// differs wants a diff to have every block that differs, and no other but those that may have been written and are the same again: zeros. Snapshots have
// what from and to have; without a name it is the present.
func (s *subject) differs(from, to, a, b string) {
	s.t.Helper()
	then, now := s.snaps[a], s.snaps[b]
	if b == "" {
		now = s.head
	}
	changed := make([]bool, techniqueBlocks)
	for _, e := range ask[[]contract.Extent](s.d, "snapshot", "diff", from, to) {
		for b := e.Offset / block.Size; b*block.Size < e.Offset+e.Length; b++ {
			changed[b] = true
		}
	}
	for lba := range changed {
		if then[lba] != now[lba] && !changed[lba] {
			s.t.Fatalf("block %d is stamped %d in %s and %d in %s, and the diff does not say so", lba, then[lba], from, now[lba], to)
		}
		if changed[lba] && then[lba] == now[lba] && then[lba] != 0 && !s.under[a][int64(lba)] && !s.under[b][int64(lba)] {
			s.t.Fatalf("block %d is stamped %d in %s and %s, and the diff calls it changed", lba, then[lba], from, to)
		}
	}
}

// clone makes a volume of a snapshot, and writes to it, which changes neither.
func (s *subject) clone(name string) {
	s.t.Helper()
	s.d.varve("volume", "create", "clone", "--from", "web@"+name)
	if !slices.Equal(s.read("clone"), s.snaps[name]) {
		s.t.Fatalf("a clone is not what its snapshot %s is", name)
	}
	c := s.d.connect("clone")
	p := make([]byte, 32*block.Size)
	fill(p, 100, 1<<40)
	must(s.t, write(c, p, 100*block.Size), "write to the clone")
	must(s.t, c.Close(), "close")
	s.verify()
	s.d.varve("volume", "delete", "clone")
}

// rollback makes a snapshot the volume's content, and undoes that.
func (s *subject) rollback(name string) {
	s.t.Helper()
	before := s.head
	s.d.varve("snapshot", "rollback", "web@"+name)
	s.head = s.snaps[name]
	kept := s.kept(before)
	s.verify()
	if !s.physical() { // what was copied from one counts as written
		s.differs("web@"+name, "web", name, "")
	}
	s.write(5)
	s.verify()
	s.d.varve("snapshot", "rollback", "web@"+kept)
	s.head = before
	s.kept(nil)
	s.verify()
	s.forgetKept()
}

// kept notes the snapshot that a rollback has made of the present, and wants it to be what that was, if that is given.
func (s *subject) kept(present image) (name string) {
	s.t.Helper()
	for _, got := range ask[[]contract.Snapshot](s.d, "snapshot", "list", "web") {
		if _, known := s.snaps[got.Name]; got.Automatic && !known {
			name = got.Name
		}
	}
	if name == "" {
		s.t.Fatal("a rollback has kept nothing")
	}
	s.snaps[name] = s.read("web@" + name)
	if present != nil && !slices.Equal(s.snaps[name], present) {
		s.t.Fatal("what a rollback has kept is not what was there")
	}
	return name
}

// forgetKept deletes what rollbacks have kept.
func (s *subject) forgetKept() {
	s.t.Helper()
	for _, got := range ask[[]contract.Snapshot](s.d, "snapshot", "list", "web") {
		if got.Automatic {
			s.delete(got.Name)
		}
	}
}

// rollbackRange puts some of a snapshot back, and nothing else.
func (s *subject) rollbackRange(name string) {
	s.t.Helper()
	before := slices.Clone(s.head)
	s.d.varve("snapshot", "rollback", "web@"+name, "--range", "64K+1M", "--range", "2M+512K")
	s.head = slices.Clone(before)
	for _, r := range []struct{ from, to int }{{16, 16 + 256}, {512, 512 + 128}} {
		copy(s.head[r.from:r.to], s.snaps[name][r.from:r.to])
	}
	kept := s.kept(before)
	s.verify()
	s.d.varve("snapshot", "rollback", "web@"+kept)
	s.head = before
	s.kept(nil)
	s.verify()
	s.forgetKept()
}

// killWhileMade kills the daemon while a snapshot is made. When it is there after that, it is what the volume was.
func (s *subject) killWhileMade(name string) {
	s.t.Helper()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.d.try(append(s.creation(name), "--detach")...)
	}()
	if s.random.IntN(2) == 0 {
		<-ended
	} else {
		await(s.t, "somebody asks", func() bool { return s.random.IntN(4) == 0 })
	}
	s.d.kill()
	s.d = serve(s.t, s.d.data)
	<-ended // which may have waited for this daemon
	jobs := ask[[]contract.Job](s.d, "job", "list")
	for _, j := range jobs {
		if s.name == contract.TechniqueMirror { // which ends when the command, whose daemon went away, detaches what it attached
			s.d.try("job", "wait", j.ID)
			continue
		}
		s.d.varve("job", "wait", j.ID)
	}
	if s.d.try("snapshot", "show", "web@"+name).status == 0 {
		s.whole(name)
		s.snaps[name] = s.head
	} else if s.name == contract.TechniqueMirror {
		s.d.try("mirror", "detach", "web") // which the command would have split
	} else if len(jobs) > 0 {
		s.t.Fatalf("snapshot %s was gone on with, and is not there: %+v", name, jobs)
	}
}

func (s *subject) delete(names ...string) {
	s.t.Helper()
	for _, name := range names {
		s.d.varve("snapshot", "delete", "web@"+name)
		delete(s.snaps, name)
	}
}

// destroyOrigin deletes the volume, and what it lay in. Its snapshots are there.
func (s *subject) destroyOrigin() {
	s.t.Helper()
	s.d.varve("volume", "delete", "web")
	if s.file != "" {
		must(s.t, os.Remove(s.file), "remove the volume's file")
	}
	s.head = nil
	s.verify()
	s.d.kill()
	s.d = serve(s.t, s.d.data)
	s.verify()
	if v := ask[contract.Volume](s.d, "volume", "show", "web"); !v.Deleted || v.Snapshots != len(s.snaps) {
		s.t.Fatalf("the deleted volume: %+v", v)
	}
	for name := range s.snaps {
		s.d.varve("volume", "export", "web@"+name, filepath.Join(s.dir, "out.raw"), "--force")
		sameDisk(s.t, filepath.Join(s.dir, "out.raw"), s.d.uri("web@"+name))
	}
}
