package daemon

import (
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	"varve/internal/contract"
	"varve/internal/pool"
)

const (
	// oldSnapshot is the age beyond which a snapshot without a copy elsewhere deserves a warning.
	oldSnapshot = 7 * 24 * time.Hour
	// fillingUp is how full the pool is in percent when status warns, nearlyFull when it is a problem.
	fillingUp  = 80
	nearlyFull = 95
	// statusEvents is how many events status shows.
	statusEvents = 10
)

// Pool describes the pool.
func (d *Daemon) Pool() contract.Pool {
	info := d.pool.Info()
	out := contract.Pool{
		ID: info.ID.String(), Path: d.poolDir, FormatVersion: info.FormatVersion,
		CreatedAt: contract.Time{Time: info.CreatedAt},
		Volumes:   info.Volumes, Snapshots: info.Snapshots, Bookmarks: info.Bookmarks, HiddenStates: info.HiddenStates,
		LiveBytes: info.LiveBytes, ReclaimedBytes: info.ReclaimedBytes, CopiedBytes: info.CopiedBytes, SpareBytes: info.SpareBytes,
		PhysicalBytes: info.PhysicalBytes, LogBytes: info.LogBytes, ClientBytes: info.ClientBytes,
		Segments: info.Segments, Checkpoints: info.Checkpoints,
		DurableSeq: info.DurableSeq, LastSeq: info.LastSeq,
		MapCacheBytes: info.MapCacheBytes, ReadOnlyReason: info.ReadOnlyReason,
		FreeBytes: info.FreeBytes, MapBytes: info.MapBytes, RoomBytes: info.RoomBytes, FullPercent: info.FullPercent,
		ReclaimableBytes: max(info.LogSizeBytes-info.LiveBytes, 0),
		Stalls:           stalls(info.Stalls),
	}
	if info.QuotaBytes > 0 {
		out.QuotaBytes, out.ReserveBytes = &info.QuotaBytes, &info.ReserveBytes
	}
	return out
}

// maxHolders is how many of each kind PoolHolders returns at most.
const maxHolders = 100

// PoolHolders describes the pool and, of each kind, the top that hold most.
func (d *Daemon) PoolHolders(ctx context.Context, top int) (contract.Pool, error) {
	out := d.Pool()
	if top == 0 {
		return out, nil
	}
	all, err := d.pool.Holders(ctx)
	if err != nil {
		return out, err
	}
	top = min(top, maxHolders)
	out.Holders = &contract.Holders{Volumes: []contract.Holder{}, Snapshots: []contract.Holder{}}
	for _, v := range all.Volumes[:min(top, len(all.Volumes))] {
		h := contract.Holder{Name: v.Name, ExclusiveBytes: v.Exclusive, Snapshots: &v.Snapshots}
		if v.Total >= 0 {
			h.TotalBytes = &v.Total
		}
		out.Holders.Volumes = append(out.Holders.Volumes, h)
	}
	for _, s := range all.Snapshots[:min(top, len(all.Snapshots))] {
		out.Holders.Snapshots = append(out.Holders.Snapshots, contract.Holder{Name: s.Name, ExclusiveBytes: s.Exclusive})
	}
	for _, h := range all.Hidden {
		out.Holders.HiddenBytes += h.Exclusive
	}
	return out, nil
}

// ChangePool bounds the pool, or no longer, and describes it. pool.ErrInvalid.
func (d *Daemon) ChangePool(ctx context.Context, r contract.ChangePool) (contract.Pool, error) {
	if err := d.pool.SetQuota(ctx, r.QuotaBytes, r.ReserveBytes); err != nil {
		return contract.Pool{}, err
	}
	return d.Pool(), nil
}

// Status is everything at a glance.
func (d *Daemon) Status() contract.Status {
	s := contract.Status{
		Version: d.version, PID: os.Getpid(), StartedAt: contract.Time{Time: d.startedAt}, Data: d.dir,
		NBD: d.addresses(), Pool: d.Pool(), Clients: d.sessions.all(), Jobs: []contract.Job{},
		Problems: d.journal.problems(), Warnings: []string{}, Events: d.journal.latest(statusEvents),
	}
	for _, j := range d.Jobs() {
		if !j.State.Final() {
			s.Jobs = append(s.Jobs, j)
		}
	}
	s.Problems = append(s.Problems, d.fileProblems()...)
	s.Problems = append(s.Problems, d.mirrorProblems()...)
	s.Problems = append(s.Problems, d.baseProblems()...)
	if d.repositories.broken != nil {
		s.Problems = append(s.Problems, "no repository is known: "+d.repositories.broken.Error())
	}
	if s.Pool.ReadOnlyReason != "" {
		s.Problems = append(s.Problems, "writes are stopped: "+s.Pool.ReadOnlyReason)
	}
	switch percent := s.Pool.FullPercent; {
	case percent >= nearlyFull:
		s.Problems = append(s.Problems, fmt.Sprintf("the pool is %d%% full; at 100%% writes fail until snapshots or volumes are deleted, or it is given more", percent))
	case percent >= fillingUp:
		s.Warnings = append(s.Warnings, fmt.Sprintf("the pool is %d%% full; when it is full, writes fail", percent))
	}
	slices.Sort(s.Problems)
	for _, name := range d.idleCopyBacks() {
		s.Warnings = append(s.Warnings, fmt.Sprintf("%s: a rollback is not wholly in its file, and no job copies it back: varve volume copy-back %s", name, name))
	}
	for _, name := range d.idleCopies() {
		s.Warnings = append(s.Warnings, fmt.Sprintf("%s: it is not wholly copied, and no job copies it: varve snapshot copy %s", name, name))
	}
	for _, name := range d.idleMirrors() {
		s.Warnings = append(s.Warnings, fmt.Sprintf("%s: its mirror is not in sync, and no job copies to it: varve mirror attach %s --to FILE, with the same file", name, name))
	}
	for _, name := range d.idleFills() {
		s.Warnings = append(s.Warnings, fmt.Sprintf("%s: it is not wholly filled from its backup, and the job that did so was cancelled; the next start of the daemon goes on", name))
	}
	s.Warnings = append(s.Warnings, d.begunRestores()...)
	s.Warnings = append(s.Warnings, d.pendingRepositories()...)
	if old := d.notBackedUp(); old > 0 {
		s.Warnings = append(s.Warnings, count(old, "snapshot")+" older than a week with no backup: a snapshot lives in the pool and is no backup")
	}
	return s
}

// Events returns the events remembered, oldest first.
func (d *Daemon) Events() []contract.Event { return d.journal.latest(maxEvents) }

// StartCheck starts a job that reads and verifies everything in the pool. The
// job fails with code damaged, and its result says where, if anything is.
func (d *Daemon) StartCheck() (contract.Job, error) {
	return d.jobs.start(contract.JobCheck, "pool", false, func(ctx context.Context, j *job) (*contract.Result, error) {
		began := d.now()
		report, err := d.pool.Check(ctx, j.progress)
		if err != nil {
			return nil, err
		}
		check, err := checked(pool.RepairReport{After: report}, false)
		d.journal.checked(began, d.now(), check)
		return &contract.Result{Check: check}, err
	})
}

// StartRepair starts a job that mends what can be mended. Its result is that of a check afterwards.
func (d *Daemon) StartRepair() (contract.Job, error) {
	return d.jobs.start(contract.JobRepair, "pool", false, func(ctx context.Context, j *job) (*contract.Result, error) {
		began := d.now() // what it meets while it mends is in its own report
		report, err := d.pool.Repair(ctx, j.progress)
		if err != nil {
			return nil, err
		}
		check, err := checked(report, true)
		d.journal.checked(began, d.now(), check)
		return &contract.Result{Check: check}, err
	})
}

// StartReclaim starts a job that gives back all space that is dead now.
func (d *Daemon) StartReclaim() (contract.Job, error) {
	return d.jobs.start(contract.JobReclaim, "pool", false, func(ctx context.Context, _ *job) (*contract.Result, error) {
		done, err := d.pool.Reclaim(ctx)
		return &contract.Result{Reclaim: &contract.Reclaim{
			FreedBytes: done.FreedBytes, CopiedBytes: done.CopiedBytes, LiveBytes: done.LiveBytes,
			Removed: done.Removed, Rewritten: done.Rewritten, Packed: done.Packed, Punched: done.Punched,
		}}, err
	})
}
