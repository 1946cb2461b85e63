package check

import (
	"context"
	"fmt"
	"path"
	"strings"
	"time"

	"varve/internal/repository"
	"varve/internal/repository/envelope"
)

// pinsFor is how long no reader's pin holds, by far. A hold does, and has two parts: one is enough.
const pinsFor = 24 * time.Hour

// replace does what can be done for an object of which nothing can be had: if its name says all that was in it, it is put again; if
// it says nothing any more, it is deleted.
func (c *checker) replace(ctx context.Context, i item, f finding, best version, all []version) (finding, error) {
	id := path.Base(i.name)
	says := i.kind == envelope.Tombstone || i.kind == envelope.Fence
	if c.repo == nil || c.write.why() != nil || best.state == other && !says {
		return f, nil
	}
	switch i.kind {
	case envelope.Tombstone, envelope.Fence:
		object, err := c.keys.SealObject(c.keys.NewHeader(i.kind, i.name, [16]byte{}, 100), []byte(id))
		if err != nil {
			return f, err
		}
		best.bytes = concat(object)
		why, err := c.put(ctx, i, best, all)
		if err != nil || why != "" {
			return f, err
		}
		return c.drop(ctx, f, all, "its name says what was in it")
	case envelope.Candidate:
		record, _, _ := strings.Cut(id, ".")
		there, err := c.repo.There(ctx, "backups/"+record)
		if err != nil {
			return f, err
		}
		if there {
			return c.drop(ctx, f, all, "the record that it was for is there, so it was deleted")
		}
		f.message += "; prune waits for its session's end: if no session runs any more, delete it"
	case envelope.Pin:
		info, err := c.st.Stat(ctx, best.name)
		if err != nil || c.at().Sub(info.Modified) < pinsFor {
			return f, nil
		}
		return c.drop(ctx, f, all, "it had expired, so it was deleted")
	case envelope.Condemned:
		f.message += "; backups and prune need to know what it condemned: if no prune runs and none is suspended, delete it"
	case envelope.Ledger:
		if !c.part() {
			return c.drop(ctx, f, all, "all that it knew is found out again, so it was deleted")
		}
		f.message += "; a check of everything finds out again what it knew"
	case envelope.Record:
		deleted, err := c.repo.There(ctx, "deleted/"+id)
		if err != nil || deleted {
			return f, err
		}
		f.message += "; the backup is lost"
		tells := false
		err = c.repo.Candidates(ctx, func(p repository.CandidatePart) error {
			tells = tells || p.Record == id && p.Final != nil
			return nil
		})
		if tells && err == nil {
			f.message += fmt.Sprintf("; candidates/%s tells what it was", id)
		}
	}
	return f, nil
}

// drop deletes an object of which nothing can be had.
func (c *checker) drop(ctx context.Context, f finding, all []version, why string) (finding, error) {
	kept, err := c.clear(ctx, all)
	if err != nil || kept != "" {
		return f, err
	}
	return finding{condition: mended, message: f.message + "; " + why}, nil
}

func concat(object [][]byte) (all []byte) {
	for _, b := range object {
		all = append(all, b...)
	}
	return all
}
