package pool_test

import (
	"errors"
	"flag"
	"fmt"
	"hash/maphash"
	"path"
	"slices"
	"strings"
	"testing"

	"varve/internal/pool"
	"varve/internal/vfs/crashfs"
)

var crashFull = flag.Bool("crash.full", false, "crash with every policy everywhere, during every recovery, and in samples of triples")

// crasher looks at what every crash would leave while a driver works. At each
// operation of the file system it makes the images that the policies give, opens each and
// demands that the pool in it is one of the states possible then.
type crasher struct {
	*driver
	t *testing.T

	every    int    // how many operations from one that it crashes at to the next
	seeds    uint64 // random images at each operation
	recovery bool   // crash during the recovery of each image, too
	thorough bool   // close and reopen each pool, too

	texts   map[*model]string
	images  map[image]*outcome
	where   string // for messages
	counted crashCounts
}

// crashCounts tells how much was looked at.
type crashCounts struct {
	points   int // operations of the file system
	images   int // crashes: points times policies
	distinct int // images that differ, each opened
	recovery int // images made while others were recovered
}

func (c *crashCounts) add(o crashCounts) {
	c.points += o.points
	c.images += o.images
	c.distinct += o.distinct
	c.recovery += o.recovery
}

func (c crashCounts) String() string {
	return fmt.Sprintf("%d crash points, %d crashes (%d different images), %d crashes during recovery", c.points, c.images, c.distinct, c.recovery)
}

// image identifies the content of a file system. An image in which changes are still
// pending is recovered alike, but a power cut during that may forget them.
type image struct {
	content uint64
	pending bool
}

// outcome is what is found in an image: what the pool in it holds, and what it
// holds if recovery is cut short at each of its operations.
type outcome struct {
	holds  string
	during []string
}

func newCrasher(t *testing.T, d *driver) *crasher {
	return &crasher{driver: d, t: t, every: thin(2), seeds: 2, texts: map[*model]string{}, images: map[image]*outcome{}}
}

// watch begins to look at every operation.
func (c *crasher) watch() {
	c.fs.OnOp(func(n int, op crashfs.Op, err error) {
		if n%c.every != 0 {
			return
		}
		c.counted.points++
		policies := append(crashfs.Policies(len(c.fs.Pending())), crashfs.ProcessCrash)
		for s := range c.seeds {
			policies = append(policies, crashfs.Random(uint64(n)<<8|s))
		}
		for _, p := range policies {
			c.where = fmt.Sprintf("crash after operation %d (%v: %v), %v", n, op, err, p)
			c.counted.images++
			c.demand(c.fs.CrashImage(p), p.String() == crashfs.ProcessCrash.String())
		}
	})
}

func (c *crasher) unwatch() { c.fs.OnOp(nil) }

// demand opens an image and compares what it holds with the possible states.
func (c *crasher) demand(fs *crashfs.FS, pending bool) {
	found := c.look(fs, pending)
	c.demandPossible(found.holds)
	for _, holds := range found.during {
		if pending {
			c.demandPossible(holds)
		} else if holds != found.holds {
			c.t.Fatalf("%s, and a crash during recovery:\n%s\nwithout the second crash:\n%s", c.where, holds, found.holds)
		}
	}
}

func (c *crasher) demandPossible(holds string) {
	for _, m := range c.possible {
		if c.text(m) == holds {
			return
		}
	}
	c.t.Fatalf("%s: the pool holds\n%s\nwhich is none of the %d possible states; the oldest and newest are\n%s\n%s",
		c.where, holds, len(c.possible), c.possible[0], c.present())
}

func (c *crasher) text(m *model) string {
	if _, known := c.texts[m]; !known {
		c.texts[m] = m.String()
	}
	return c.texts[m]
}

// look opens an image, unless a like one has been opened before.
func (c *crasher) look(fs *crashfs.FS, pending bool) *outcome {
	key := image{digest(c.t, fs), pending}
	if known := c.images[key]; known != nil {
		return known
	}
	c.counted.distinct++
	var forks []*crashfs.FS
	if c.recovery {
		fs.OnOp(func(_ int, op crashfs.Op, _ error) {
			for _, p := range duringRecovery(op, len(fs.Pending())) {
				forks = append(forks, fs.CrashImage(p))
			}
		})
	}
	found := &outcome{holds: c.open(fs, c.thorough)}
	c.images[key] = found
	where := c.where
	for i, fork := range forks {
		c.where = fmt.Sprintf("%s, then crash %d during recovery", where, i)
		c.counted.recovery++
		key := image{digest(c.t, fork), false}
		if c.images[key] == nil {
			c.images[key] = &outcome{holds: c.open(fork, false)}
		}
		found.during = append(found.during, c.images[key].holds)
	}
	c.where = where
	return found
}

// duringRecovery selects the crashes after an operation that differ from those after the
// one before it: what is durable changes with a sync, what is pending with the others.
func duringRecovery(op crashfs.Op, pending int) []crashfs.Policy {
	switch {
	case *crashFull:
		return crashfs.Policies(pending)
	case op.Kind == crashfs.Sync || op.Kind == crashfs.SyncDir:
		return []crashfs.Policy{crashfs.DropAll}
	case op.Kind == crashfs.Write:
		return []crashfs.Policy{crashfs.KeepAll, crashfs.Torn}
	}
	return []crashfs.Policy{crashfs.KeepAll}
}

// open returns what the pool in an image holds. It must be sound, also after a power cut
// right after it was opened and, where thorough, after it was closed and opened again.
func (c *crasher) open(fs *crashfs.FS, thorough bool) string {
	c.t.Helper()
	d := *c.driver
	d.tb, d.fs, d.opts.FS = located{c.t, &c.where}, fs, fs
	d.open()
	fs.OnOp(nil)
	cut := fs.CrashImage(crashfs.DropAll)
	holds := d.dump(d.p)
	d.check(d.p)
	if !thorough {
		d.p.Abandon()
		return holds
	}
	if err := d.p.Close(ctx); err != nil {
		d.tb.Fatal(err)
	}
	for _, fs := range []*crashfs.FS{fs, cut} {
		d.opts.FS = fs
		d.open()
		if again := d.dump(d.p); again != holds {
			d.tb.Fatalf("opened again the pool holds\n%s\nand held\n%s", again, holds)
		}
		d.p.Abandon()
	}
	return holds
}

// located says in its failures where the crash was.
type located struct {
	*testing.T
	where *string
}

func (l located) Fatal(args ...any) {
	l.Helper()
	l.T.Fatal(append([]any{*l.where, ": "}, args...)...)
}

func (l located) Fatalf(format string, args ...any) {
	l.Helper()
	l.T.Fatalf(*l.where+": "+format, args...)
}

var digestSeed = maphash.MakeSeed()

// digest identifies names and content of everything but the reserve, which holds nothing.
func digest(t tb, fs *crashfs.FS) uint64 {
	var h maphash.Hash
	h.SetSeed(digestSeed)
	var buf []byte
	var visit func(dir string)
	visit = func(dir string) {
		names, err := fs.List(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			name = path.Join(dir, name)
			info, err := fs.Stat(name)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&h, "%s %t %d\n", name, info.IsDir(), info.Size())
			if info.IsDir() {
				visit(name)
			} else if path.Base(name) != "reserve" {
				buf = readAll(t, fs, name, buf[:0])
				_, _ = h.Write(buf)
			}
		}
	}
	visit("/")
	return h.Sum64()
}

// readAll appends the content of a file to b.
func readAll(t tb, fs *crashfs.FS, name string, b []byte) []byte {
	f, err := fs.OpenReadOnly(name)
	if err != nil {
		t.Fatal(err)
	}
	size, err := f.Size()
	b = slices.Grow(b, int(size))[:len(b)+int(size)]
	if err == nil && size > 0 {
		_, err = f.ReadAt(b[len(b)-int(size):], 0)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	return b
}

// crashSetup begins a sequence: volumes, lineage with a fork and a bookmark in it, a checkpoint and what comes after it.
func crashSetup(t *testing.T) *driver {
	d := newDriver(t)
	d.createVolume("a", 36<<10+512)
	d.createVolume("b", 16<<10)
	d.submit("a", writeOp(0, 36<<10+512))
	d.submit("b", writeOp(0, 8<<10))
	d.snapshot("s1", "a")
	d.submit("a", writeOp(4096, 4096), discardOp(8192, 4096))
	d.snapshot("s2", "a")
	d.cloneVolume("a", "s2", "c")
	d.checkpoint()
	d.bookmark("a", "s1", "k1")
	d.submit("c", writeOp(0, 512))
	d.submit("a", writeOp(100, 5000))
	d.snapshot("s3", "a")
	d.submit("a", writeOp(20480, 600))
	d.flush("a")
	settleReserve(t, d.fs)
	return d
}

// settleReserve makes the pool's reserve durable, which nobody else does: else it would
// be among what every crash may lose.
func settleReserve(t *testing.T, fs *crashfs.FS) {
	f, err := fs.Open("/pool/reserve")
	if err == nil {
		err = errors.Join(f.Sync(), f.Close(), fs.SyncDir("/pool"))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestEveryCrashPoint performs each action alone, and crashes at each operation of the
// file system that it takes, with every policy, and again at each operation of the recovery.
func TestEveryCrashPoint(t *testing.T) {
	t.Parallel()
	var all crashCounts
	for _, a := range actions {
		t.Run(a.name, func(t *testing.T) {
			c := newCrasher(t, crashSetup(t))
			c.every, c.recovery, c.thorough, c.seeds = thin(4), true, true, 4
			c.watchSequence(a)
			all.add(c.counted)
		})
	}
	t.Logf("%d actions: %v", len(actions), all)
}

// TestEveryCrashPointOfPairs performs each action after each other one (or, by default, after every third),
// with writes before, between and after, and crashes in the second.
func TestEveryCrashPointOfPairs(t *testing.T) {
	t.Parallel()
	counts := make(chan crashCounts, len(actions))
	t.Run("after", func(t *testing.T) {
		for i, first := range actions {
			t.Run(first.name, func(t *testing.T) {
				t.Parallel()
				var sum crashCounts
				for j, second := range actions {
					if !*crashFull && (i+j)%(3*thin(4)) != 0 {
						continue
					}
					c := newCrasher(t, crashSetup(t))
					c.recovery, c.thorough, c.seeds = *crashFull, *crashFull, 1
					c.watchSequence(first, second)
					sum.add(c.counted)
				}
				counts <- sum
			})
		}
	})
	var all crashCounts
	for len(counts) > 0 {
		all.add(<-counts)
	}
	t.Logf("pairs: %v", all)
}

// watchSequence performs actions with writes between them and crashes in the last.
func (c *crasher) watchSequence(sequence ...action) {
	c.t.Helper()
	unflushed(c.driver)
	for i, a := range sequence {
		if i > 0 {
			unflushed(c.driver)
		}
		if i == len(sequence)-1 {
			c.watch()
		}
		a.do(c.driver)
	}
	c.unwatch()
	unflushed(c.driver)
	c.verify()
	c.p.Abandon()
}

// TestEveryCrashPointOfTriples is a sample of longer sequences.
func TestEveryCrashPointOfTriples(t *testing.T) {
	t.Parallel()
	stride := 397 * thin(5) // prime to the number of actions, so that all take part
	if *crashFull {
		stride = 13
	}
	var all crashCounts
	n := len(actions)
	for i := 0; i < n*n*n; i += stride {
		sequence := []action{actions[i/n/n], actions[i/n%n], actions[i%n]}
		names := []string{sequence[0].name, sequence[1].name, sequence[2].name}
		t.Run(strings.Join(names, ", "), func(t *testing.T) {
			c := newCrasher(t, crashSetup(t))
			c.recovery, c.thorough = *crashFull, *crashFull
			c.watchSequence(sequence...)
			all.add(c.counted)
		})
	}
	t.Logf("triples: %v", all)
}

// TestEveryCrashPointOfCreation: what a crash leaves of pool.Create is a pool or
// a place where one can be created.
func TestEveryCrashPointOfCreation(t *testing.T) {
	fs := crashfs.New()
	o := options(fs, newClock())
	points, crashes := 0, 0
	look := func(where string, p crashfs.Policy, complete bool) {
		crashes++
		o := o
		o.FS = fs.CrashImage(p)
		err := reopen(o)
		if errors.Is(err, pool.ErrNotPool) && !complete {
			if err = pool.Create(ctx, o); err == nil {
				err = reopen(o)
			}
		}
		if err != nil {
			t.Fatalf("%s, %v: %v", where, p, err)
		}
	}
	fs.OnOp(func(n int, op crashfs.Op, _ error) {
		points++
		pending := len(fs.Pending())
		policies := append(crashfs.Policies(pending), crashfs.ProcessCrash)
		for s := range uint64(1) << min(pending, 6) {
			policies = append(policies, crashfs.Random(s))
		}
		for _, p := range policies {
			look(fmt.Sprintf("crash after operation %d (%v)", n, op), p, false)
		}
	})
	if err := pool.Create(ctx, o); err != nil {
		t.Fatal(err)
	}
	fs.OnOp(nil)
	for _, p := range append(crashfs.Policies(len(fs.Pending())), crashfs.ProcessCrash) {
		look("crash after the creation", p, true)
	}
	t.Logf("%d crash points, %d crashes", points, crashes)
}

// reopen opens and closes a pool.
func reopen(o pool.Options) error {
	p, err := pool.Open(ctx, o)
	if err != nil {
		return err
	}
	return p.Close(ctx)
}

// TestCrashesAreSeen proves that the harness can fail: a file system whose syncs do nothing
// loses what was flushed.
func TestCrashesAreSeen(t *testing.T) {
	d := crashSetup(t)
	d.submit("a", writeOp(0, 4096))
	lost := d.fs.CrashImage(crashfs.DropAll)
	d.flush("a")
	c := newCrasher(t, d)
	if holds := c.look(lost, false).holds; slices.ContainsFunc(d.possible, func(m *model) bool { return m.String() == holds }) {
		t.Fatal("a lost write went unnoticed")
	}
	d.p.Abandon()
}
