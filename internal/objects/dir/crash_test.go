package dir_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"
	"testing"

	"varve/internal/objects"
	"varve/internal/objects/dir"
	"varve/internal/vfs/crashfs"
)

var noContext = context.Background()

// step is one operation of a sequence whose every crash is tried.
type step struct {
	op, name string
	content  string
}

func (s step) String() string { return s.op + " " + s.name }

// sequence has puts into old and new directories, onto a taken name, deletes, and puts of what was deleted.
var sequence = []step{
	{"put", "config.0", "one"},
	{"put", "packs/ab/1", strings.Repeat("1", 5000)},
	{"put", "packs/ab/2", strings.Repeat("2", 5000)},
	{"put", "packs/ab/1", "taken"},
	{"put", "packs/cd/3", ""},
	{"delete", "packs/ab/1", ""},
	{"delete", "packs/ab/1", ""},
	{"put", "packs/ab/1", strings.Repeat("n", 700)},
	{"put", "backups/x", "record"},
	{"delete", "packs/cd/3", ""},
}

// run performs a step and tells what the objects are if it succeeds.
func (s step) run(st objects.Store, before map[string]string) (after map[string]string, err error) {
	after = maps.Clone(before)
	if s.op == "delete" {
		delete(after, s.name)
		return after, st.Delete(noContext, s.name)
	}
	err = put(st, s.name, s.content)
	if _, taken := before[s.name]; taken {
		if !errors.Is(err, objects.ErrExists) {
			return before, fmt.Errorf("put onto a taken name: %w", err)
		}
		return before, nil
	}
	after[s.name] = s.content
	return after, err
}

// holds tells why a file system does not hold a store with exactly the objects before or exactly those after.
func holds(fsys *crashfs.FS, before, after map[string]string) error {
	st, err := dir.Open(fsys, "/root")
	if err != nil {
		return err
	}
	found := make(map[string]string)
	err = st.List(noContext, "", func(info objects.Info) error {
		p, err := st.Get(noContext, info.Name)
		if err == nil && int64(len(p)) != info.Size {
			err = fmt.Errorf("%s has %d bytes and says %d", info.Name, len(p), info.Size)
		}
		found[info.Name] = string(p)
		return err
	})
	if err != nil {
		return err
	}
	if !maps.Equal(found, before) && !maps.Equal(found, after) {
		return fmt.Errorf("there are %v, want %v or %v", brief(found), brief(before), brief(after))
	}
	return nil
}

func brief(m map[string]string) (all []string) {
	for _, name := range slices.Sorted(maps.Keys(m)) {
		all = append(all, fmt.Sprintf("%s:%d bytes", name, len(m[name])))
	}
	return all
}

func policies() []crashfs.Policy {
	all := append(crashfs.Policies(8), crashfs.ProcessCrash)
	for seed := range uint64(10) {
		all = append(all, crashfs.Random(seed))
	}
	return all
}

// At every crash point, whatever reached the disk: what was acknowledged is there, what was under way is whole or absent.
// What the crash left hinders nobody.
func TestCrashLeavesObjectsWholeOrAbsent(t *testing.T) {
	fsys := crashfs.New()
	st, err := dir.Create(fsys, "/root")
	must(t, err)
	before := map[string]string{}
	var current step
	after := before
	images := 0
	fsys.OnOp(func(n int, op crashfs.Op, _ error) {
		for _, p := range policies() {
			image := fsys.CrashImage(p)
			if err := holds(image, before, after); err != nil {
				t.Fatalf("%v: power cut at %d, %v, %v: %v", current, n, op, p, err)
			}
			images++
			again, err := dir.Open(image, "/root")
			must(t, err)
			if _, err := current.run(again, before); err != nil && !errors.Is(err, objects.ErrExists) {
				t.Fatalf("%v: again, after a power cut at %d, %v, %v: %v", current, n, op, p, err)
			}
			if err := holds(image.CrashImage(crashfs.DropAll), after, after); err != nil {
				t.Fatalf("%v: done again after a power cut at %d, %v, %v, and another cut: %v", current, n, op, p, err)
			}
		}
	})
	for _, current = range sequence {
		after = expected(current, before)
		got, err := current.run(st, before)
		must(t, err)
		if !maps.Equal(got, after) {
			t.Fatalf("%v ends with %v", current, brief(got))
		}
		before = after
	}
	if images < 1000 {
		t.Fatalf("only %d images were looked at", images)
	}
}

func expected(s step, before map[string]string) map[string]string {
	after := maps.Clone(before)
	if s.op == "delete" {
		delete(after, s.name)
	} else if _, taken := before[s.name]; !taken {
		after[s.name] = s.content
	}
	return after
}

// Every change fails in turn. The operation says so, and after a power cut the objects are as if it had been done or not; if
// it is tried again and then succeeds, they are as if it had been done.
func TestFailedOperationsCanBeTriedAgain(t *testing.T) {
	for _, cause := range []error{syscall.EIO, syscall.ENOSPC} {
		for n := 0; ; n++ {
			fsys := crashfs.New()
			st, err := dir.Create(fsys, "/root")
			must(t, err)
			hit := false
			var last crashfs.Kind
			fsys.Inject(crashfs.Fault{Err: cause, Skip: n, Times: 1, Match: func(op crashfs.Op) bool {
				if !hit {
					last = op.Kind
				}
				return op.Kind >= crashfs.Create
			}})
			before := map[string]string{}
			for _, s := range sequence {
				after := expected(s, before)
				_, err := s.run(st, before)
				if err != nil {
					hit = true
					if errors.Is(err, objects.ErrNotFound) || !errors.Is(err, cause) {
						t.Fatalf("%v, change %d fails with %v: %v", s, n, cause, err)
					}
					if cause == syscall.ENOSPC && !errors.Is(err, objects.ErrFull) { //nolint:errorlint // itself
						t.Fatalf("%v: a full disk is %v", s, err)
					}
					for _, p := range policies() {
						if err := holds(fsys.CrashImage(p), before, after); err != nil {
							t.Fatalf("%v: after %v at change %d, %v: %v", s, cause, n, p, err)
						}
					}
					if _, err := s.run(st, before); err != nil && !errors.Is(err, objects.ErrExists) {
						t.Fatalf("%v, again after %v at change %d: %v", s, cause, n, err)
					}
				}
				if s.op == "delete" && err != nil && last == crashfs.SyncDir {
					break // the removal may never be durable
				}
				if err := holds(fsys.CrashImage(crashfs.DropAll), after, after); err != nil {
					t.Fatalf("%v: after %v at change %d: %v", s, cause, n, err)
				}
				before = after
			}
			if !hit {
				if n < 30 {
					t.Fatalf("only %d changes were tried", n)
				}
				break
			}
		}
	}
}
