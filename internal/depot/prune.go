package depot

import (
	"context"
	"fmt"
	"strings"
	"time"

	"varve/internal/contract"
	"varve/internal/repository/prune"
)

// Prune gives back the space of what nothing needs any more and whose grace is over. After an error the result tells what was done before it.
func (d *Depot) Prune(ctx context.Context, r contract.PruneRepository, progress Progress) (contract.RepositoryPrune, error) {
	began, stage := time.Now(), int64(0)
	tell := monotone(progress)
	report, err := prune.Run(ctx, d.repo, prune.Options{
		Dir: d.temporary, DryRun: r.DryRun, IgnoreLost: r.IgnoreLost,
		Stage: func(string) {
			if tell != nil {
				tell(stage, max(pruneStages, stage+1))
			}
			stage++
		},
	})
	out := contract.RepositoryPrune{
		Repository: d.name, DryRun: r.DryRun,
		CondemnedPacks: report.Condemned.Count, CondemnedBytes: report.Condemned.Bytes, WaitingBytes: report.Waiting.Bytes,
		DeletedObjects: report.Deleted.Count + int64(report.Records+report.Tombstones), FreedBytes: report.Deleted.Bytes,
		CopiedBytes: report.Rescued.Bytes, LockedObjects: report.Locked.Count, LiveBytes: report.NeededPart,
		StoredBytes: report.Packs.Bytes - report.Deleted.Bytes, Warnings: pruneWarnings(report), Seconds: seconds(began),
	}
	switch {
	case report.Waiting.Count > 0:
		out.NextAt = contract.At(report.WaitingUntil)
	case report.Young.Count > 0:
		out.NextAt = contract.At(report.YoungUntil)
	}
	return out, err
}

// pruneStages is about how many stages a prune tells of.
const pruneStages = 10

// pruneWarnings is what deserves a look in what a prune found.
func pruneWarnings(r prune.Report) []string {
	out := []string{}
	say := func(n int64, format string, args ...any) {
		if n > 0 {
			out = append(out, fmt.Sprintf(format, args...))
		}
	}
	say(int64(len(r.GivenUp)), "given up, as nothing was heard of them for twice the grace: sessions %s", strings.Join(r.GivenUp, ", "))
	say(int64(len(r.Buried)), "deleted, as they were doubtful and are not whole: %s", strings.Join(r.Buried, ", "))
	say(int64(len(r.Doubtful)), "still doubtful, as something of them cannot be read: %s", strings.Join(r.Doubtful, ", "))
	say(int64(len(r.LostMaps)), "parts of maps are lost: %s", strings.Join(r.LostMaps, ", "))
	say(r.LostChunks, "%d chunks that backups need are nowhere: varve repo check tells which backups", r.LostChunks)
	say(r.Kept.Count, "%d packs (%d bytes) are kept, as what is needed of them cannot be read", r.Kept.Count, r.Kept.Bytes)
	return out
}
