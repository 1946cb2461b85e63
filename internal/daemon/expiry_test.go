package daemon

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"varve/internal/pool"
	"varve/internal/vfs/crashfs"
)

// TestSnapshotsExpire: on a clock of its own, a snapshot with a time to live goes
// when that is over, one that is protected stays until it is not, and one without stays.
func TestSnapshotsExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		o := pool.Options{FS: crashfs.New(), Dir: "/pool"}
		if err := pool.Create(ctx, o); err != nil {
			t.Fatal(err)
		}
		p, err := pool.Open(ctx, o)
		if err != nil {
			t.Fatal(err)
		}
		log := slog.New(slog.DiscardHandler)
		d := &Daemon{
			pool: p, log: log, now: time.Now, journal: newJournal(log),
			timings: timings{of: map[string]timing{}}, expiryKick: make(chan struct{}, 1),
		}
		d.background.Go(func() { d.expireLoop(ctx) })
		defer func() {
			cancel()
			d.background.Wait()
			if err := p.Close(context.Background()); err != nil {
				t.Error(err)
			}
		}()

		if _, err := p.CreateVolume(ctx, pool.VolumeSpec{Name: "web", SizeBytes: 1 << 20}); err != nil {
			t.Fatal(err)
		}
		for name, keep := range map[string]time.Duration{"hour": time.Hour, "day": 24 * time.Hour, "ever": 0} {
			if _, _, err := p.CreateSnapshot(ctx, []string{"web"}, pool.SnapshotSpec{Name: name, KeepFor: keep}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := d.ProtectSnapshot(ctx, "web@day", true); err != nil {
			t.Fatal(err)
		}
		want := func(after time.Duration, want ...string) {
			t.Helper()
			<-time.After(after)
			synctest.Wait()
			infos, err := p.Snapshots("web")
			if err != nil {
				t.Fatal(err)
			}
			left := map[string]bool{}
			for _, info := range infos {
				left[info.Name] = true
			}
			for _, name := range want {
				if !left[name] {
					t.Errorf("%s is gone", name)
				}
			}
			if len(left) != len(want) {
				t.Errorf("left are %v, want %v", left, want)
			}
		}
		want(59*time.Minute, "hour", "day", "ever")
		want(2*time.Minute, "day", "ever")
		want(48*time.Hour, "day", "ever")
		if _, err := d.ProtectSnapshot(ctx, "web@day", false); err != nil {
			t.Fatal(err)
		}
		want(time.Second, "ever")
		if events := d.Events(); len(events) != 2 || events[0].Kind != "expired" || events[0].Object != "web@hour" {
			t.Errorf("events: %+v", events)
		}
	})
}
