package daemon

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"varve/internal/contract"
)

// await waits until something is so.
func await(t *testing.T, what string, so func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	for !so() {
		select {
		case <-ctx.Done():
			t.Fatalf("%s: it never was", what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// step holds a job that has not begun yet: each value that is sent lets it go on to where it may pause next.
func (d *Daemon) step(t *testing.T, id string) chan<- struct{} {
	t.Helper()
	d.jobs.mu.Lock()
	defer d.jobs.mu.Unlock()
	j, err := d.jobs.find(id)
	if err != nil {
		t.Fatal(err)
	}
	steps := make(chan struct{})
	j.resumed = steps
	return steps
}

// TestNextMirrorIsCopiedTo: a mirror is split off as soon as it is in sync, while the job that copied to it has not ended; the next one is copied to.
func TestNextMirrorIsCopiedTo(t *testing.T) {
	for name, by := range map[string]func(d *Daemon, next string) error{
		"mirror split": func(d *Daemon, next string) error {
			_, err := d.SplitMirror(t.Context(), "web", contract.SplitMirror{Name: "one", Next: next})
			return err
		},
		"snapshot create": func(d *Daemon, next string) error {
			if _, err := d.CreateSnapshots(t.Context(), contract.CreateSnapshot{Volumes: []string{"web"}, Name: "one", Technique: contract.TechniqueMirror}); err != nil {
				return err
			}
			_, err := d.AttachMirror("web", contract.AttachMirror{To: next})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := scratch(t)
			d := start(t, filepath.Join(dir, "d"))
			d.mustCreate(t, "web")
			release := d.busy(t)
			m, err := d.AttachMirror("web", contract.AttachMirror{To: filepath.Join(dir, "leg")})
			if err != nil {
				t.Fatal(err)
			}
			steps := d.step(t, m.Job)
			release()
			state := func() string {
				m, err := d.Mirror("web")
				if err != nil {
					t.Fatal(err)
				}
				return m.State
			}
			steps <- struct{}{} // the beginning; all of it is one region
			await(t, "the mirror is in sync", func() bool { return state() == contract.MirrorInSync })
			next := filepath.Join(dir, "next")
			if err := by(d, next); err != nil {
				t.Fatal(err)
			}
			close(steps)
			if _, err := d.WaitJob(t.Context(), m.Job); err != nil {
				t.Fatal(err)
			}
			await(t, "the next mirror is in sync", func() bool { return state() == contract.MirrorInSync })
		})
	}
}

// TestSplitOfAFailedMirror: nobody is told to wait for what does not come of itself.
func TestSplitOfAFailedMirror(t *testing.T) {
	dir := scratch(t)
	data, leg := filepath.Join(dir, "d"), filepath.Join(dir, "leg")
	d := start(t, data)
	d.mustCreate(t, "web")
	if _, err := d.AttachMirror("web", contract.AttachMirror{To: leg}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.Stop(t.Context()), os.Remove(leg)); err != nil {
		t.Fatal(err)
	}
	d = start(t, data)
	_, err := d.SplitMirror(t.Context(), "web", contract.SplitMirror{Name: "one"})
	wantCode(t, err, contract.CodeRefused)
	if hint := Describe(err).Hint; !strings.Contains(hint, "mirror attach web --to "+leg) {
		t.Errorf("%v; hint: %s", err, hint)
	}
}
