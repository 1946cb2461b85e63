package s3

import (
	"context"
	"strings"

	"github.com/minio/minio-go/v7"

	"varve/internal/objects"
)

// pageSize is how many objects are asked for at once; S3 tells no more.
const pageSize = 1000

// List implements objects.Store. visit is called while no request is under way, and may take its time.
func (s *Store) List(ctx context.Context, prefix string, visit func(objects.Info) error) error {
	if err := objects.CheckPrefix(prefix); err != nil {
		return err
	}
	o := minio.ListObjectsOptions{Prefix: s.key(prefix), Recursive: true, MaxKeys: pageSize, WithVersions: s.versioned}
	// The page behind is not asked for to see that an object has no further versions there.
	enough := pageSize
	if s.versioned {
		enough--
	}
	for {
		page, err := s.page(ctx, o, enough)
		if err != nil {
			return s.wrap("list", prefix, err)
		}
		for _, found := range page.found {
			o.StartAfter = found.Key
			name := strings.TrimPrefix(found.Key, s.prefix)
			if objects.CheckName(name) != nil {
				continue // not ours
			}
			if err := visit(objects.Info{Name: name, Size: found.Size, Modified: found.LastModified}); err != nil {
				return err
			}
		}
		if page.last {
			return nil
		}
	}
}

// page is some objects in a row.
type page struct {
	found []minio.ObjectInfo // the versions that count
	last  bool               // there are no more
}

// page lists from o.StartAfter on until there are enough objects, or all of them.
func (s *Store) page(ctx context.Context, o minio.ListObjectsOptions, enough int) (p page, err error) {
	noOwner := false
	o.FetchOwner = &noOwner
	err = s.try(ctx, func(a *attempt) error {
		p = page{}
		var pending minio.ObjectInfo
		for item := range s.client.ListObjectsIter(a.ctx, s.location.Bucket, o) {
			a.moved()
			switch {
			case item.Err != nil:
				return item.Err
			case item.IsDeleteMarker || item.Key <= o.StartAfter: // not every store begins after it
				continue
			case pending.Key != "" && pending.Key != item.Key:
				p.found = append(p.found, pending)
			}
			pending = item // of several versions the one told last is the oldest
			if !o.WithVersions {
				p.found, pending = append(p.found, item), minio.ObjectInfo{}
			}
			if len(p.found) >= enough {
				return nil
			}
		}
		if err := a.ctx.Err(); err != nil { // which the iterator does not always tell
			return err
		}
		if pending.Key != "" {
			p.found = append(p.found, pending)
		}
		p.last = true
		return nil
	})
	return p, err
}
