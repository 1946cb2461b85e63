package daemon

import (
	"io"
	"log/slog"
	"slices"
	"testing"
	"time"

	"varve/internal/contract"
	"varve/internal/pool"
)

// TestCheckSupersedesDamageSeenBefore: a check replaces what clients met before it began, and nothing else.
func TestCheckSupersedesDamageSeenBefore(t *testing.T) {
	began := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	clean, damaged := &contract.Check{}, &contract.Check{Damage: make([]contract.Damage, 2)}
	for name, c := range map[string]struct {
		check *contract.Check
		want  []string
	}{
		"clean":   {clean, []string{"during: met", "pool: stopped"}},
		"damaged": {damaged, []string{"during: met", "pool: a check found 2 damaged places; varve pool check lists what is left of it", "pool: stopped"}},
	} {
		t.Run(name, func(t *testing.T) {
			j := newJournal(slog.New(slog.NewTextHandler(io.Discard, nil)))
			j.poolEvent(pool.Event{Time: began.Add(-time.Second), Kind: pool.EventDamage, Object: "before", Message: "met"})
			j.poolEvent(pool.Event{Time: began.Add(time.Second), Kind: pool.EventDamage, Object: "during", Message: "met"})
			j.poolEvent(pool.Event{Time: began.Add(-time.Second), Kind: pool.EventWriteStop, Object: "pool", Message: "stopped"})
			j.checked(began, began.Add(time.Minute), c.check)
			got := j.problems()
			slices.Sort(got)
			if !slices.Equal(got, c.want) {
				t.Errorf("problems %q, want %q", got, c.want)
			}
		})
	}
}
