package s3

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"

	"varve/internal/objects"
)

// version is the id of the version that counts; empty if the bucket keeps none.
func (s *Store) version(ctx context.Context, name string) (string, error) {
	if !s.versioned {
		return "", nil
	}
	if id, ok := s.versions.Get(name); ok {
		return id, nil
	}
	versions, err := s.listVersions(ctx, name)
	if err != nil {
		return "", err
	}
	counts, err := oldest(versions)
	if err == nil {
		s.versions.Add(name, counts.VersionID)
	}
	return counts.VersionID, err
}

// oldest is the version that counts of all of one object: ErrNotFound if there are delete markers only.
func oldest(versions []minio.ObjectInfo) (minio.ObjectInfo, error) {
	for _, v := range slices.Backward(versions) {
		if !v.IsDeleteMarker {
			return v, nil
		}
	}
	return minio.ObjectInfo{}, objects.ErrNotFound
}

// listVersions returns all versions of an object, the youngest first, and its delete markers.
func (s *Store) listVersions(ctx context.Context, name string) (versions []minio.ObjectInfo, err error) {
	key := s.key(name)
	o := minio.ListObjectsOptions{Prefix: key, Recursive: true, WithVersions: true}
	err = s.try(ctx, func(a *attempt) error {
		versions = nil
		for item := range s.client.ListObjectsIter(a.ctx, s.location.Bucket, o) {
			a.moved()
			if item.Err != nil {
				return item.Err
			}
			if item.Key == key {
				versions = append(versions, item)
			}
		}
		return a.ctx.Err()
	})
	return versions, err
}

// Delete implements objects.Store.
func (s *Store) Delete(ctx context.Context, name string) error {
	if err := s.check(ctx, name); err != nil {
		return err
	}
	return s.wrap("delete", name, s.delete(ctx, name))
}

func (s *Store) delete(ctx context.Context, name string) error {
	if !s.versioned {
		return s.deleteVersion(ctx, name, "")
	}
	versions, err := s.listVersions(ctx, name)
	if err != nil {
		return err
	}
	for _, v := range versions {
		if err := s.deleteVersion(ctx, name, v.VersionID); err != nil {
			return err
		}
	}
	s.versions.Remove(name)
	return nil
}

// saysLocked is what a store says that refuses to delete something for its retention: one of the bucket's, perhaps, of which the object does
// not tell. Empty if it is not that.
func saysLocked(err error) string {
	answer, _ := errors.AsType[minio.ErrorResponse](err)
	says := strings.ToLower(answer.Message)
	if answer.Code == "ObjectLocked" || strings.Contains(says, "object lock") || strings.Contains(says, "worm protected") {
		return answer.Message
	}
	return ""
}

func (s *Store) deleteVersion(ctx context.Context, name, version string) error {
	err := s.try(ctx, func(a *attempt) error {
		return s.client.RemoveObject(a.ctx, s.location.Bucket, s.key(name), minio.RemoveObjectOptions{VersionID: version})
	})
	says := saysLocked(err)
	switch {
	case errors.Is(err, objects.ErrNotFound):
		return nil
	case says != "":
		return fmt.Errorf("%w: %s", objects.ErrLocked, says)
	case errors.Is(err, objects.ErrDenied) && version != "":
		// Not every store says why it refuses.
		if until, herr := s.retention(ctx, name, version); herr == nil && until.After(time.Now()) {
			return fmt.Errorf("%w until %v", objects.ErrLocked, until)
		}
	}
	return err
}
