package daemon

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"

	"varve/internal/contract"
	"varve/internal/pool"
)

// TestRefusedDeletionLetsTheCopyGoOn: deleting a snapshot that is being copied ends the copying only if the snapshot goes.
func TestRefusedDeletionLetsTheCopyGoOn(t *testing.T) {
	d, err := Start(t.Context(), Config{DataDir: filepath.Join(scratch(t), "data")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Stop(context.Background()) })
	rolledRedirect(t, d, "")
	reader := dial(t, d, "web@one")
	for range behindAtOnce { // so that the copying waits
		held := t.Context()
		if _, err := d.jobs.startBehind(contract.JobCopy, "x", false, func(ctx context.Context, _ *job) (*contract.Result, error) {
			select {
			case <-held.Done():
			case <-ctx.Done():
			}
			return nil, nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	made, err := d.CreateSnapshots(t.Context(), contract.CreateSnapshot{Volumes: []string{"web"}, Name: "copied", Technique: contract.TechniqueCOWCopy})
	if err != nil {
		t.Fatal(err)
	}
	going := func() contract.JobState {
		t.Helper()
		j, err := d.Job(made[0].CopyJob)
		if err != nil {
			t.Fatal(err)
		}
		return j.State
	}
	if _, err := d.ProtectSnapshot(t.Context(), "web@copied", true); err != nil {
		t.Fatal(err)
	}
	if err := d.DeleteSnapshots(t.Context(), []string{"web@copied"}); !errors.Is(err, pool.ErrProtected) {
		t.Fatalf("deleting a protected one: %v", err)
	}
	if s := going(); s != contract.JobQueued {
		t.Errorf("a deletion was refused, and the copying is %s", s)
	}
	if _, err := d.ProtectSnapshot(t.Context(), "web@copied", false); err != nil {
		t.Fatal(err)
	}
	for _, other := range []string{"web@none", "web@one"} {
		if err := d.DeleteSnapshots(t.Context(), []string{"web@copied", other}); err == nil {
			t.Fatalf("%s, which is not there or is read, was deleted", other)
		}
		if job := d.copiedBy(mustSnapshotID(t, d, "web@copied")); job == "" {
			t.Errorf("%s cannot be deleted, and nobody copies the other one any more", other)
		}
	}
	reader.Close()
	if err := d.DeleteSnapshots(t.Context(), []string{"web@copied", "web@one"}); err != nil {
		t.Fatal(err)
	}
	if s := going(); s != contract.JobCancelled {
		t.Errorf("the snapshot is gone, and its copying is %s", s)
	}
}

func mustSnapshotID(t *testing.T, d *Daemon, name string) uuid.UUID {
	t.Helper()
	ref, err := parseRef(name)
	if err != nil {
		t.Fatal(err)
	}
	info, err := d.snapshotInfo(ref)
	if err != nil {
		t.Fatal(err)
	}
	return info.ID
}

// TestCopiesThatWaitForReadersHoldUpNobody: however many snapshots are read that would be copies by now, others are copied.
func TestCopiesThatWaitForReadersHoldUpNobody(t *testing.T) {
	d, err := Start(t.Context(), Config{DataDir: filepath.Join(scratch(t), "data")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Stop(context.Background()) })
	rolledRedirect(t, d, "")
	release := d.busy(t)
	for i := range behindAtOnce {
		name := fmt.Sprintf("read%d", i)
		if _, err := d.CreateSnapshots(t.Context(), contract.CreateSnapshot{Volumes: []string{"web"}, Name: name, Technique: contract.TechniqueCOWCopy}); err != nil {
			t.Fatal(err)
		}
		dial(t, d, "web@"+name)
	}
	made, err := d.CreateSnapshots(t.Context(), contract.CreateSnapshot{Volumes: []string{"web"}, Name: "clone", Technique: contract.TechniqueClone})
	if err != nil {
		t.Fatal(err)
	}
	release()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if j, err := d.WaitJob(ctx, made[0].CopyJob); err != nil || j.State != contract.JobDone {
		t.Errorf("%+v, %v", j, err)
	}
}
