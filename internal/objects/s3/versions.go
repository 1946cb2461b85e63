package s3

import (
	"context"
	"errors"
	"fmt"
	"slices"
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
	err = s.try(ctx, 0, func(ctx context.Context) error {
		versions = nil
		for item := range s.client.ListObjectsIter(ctx, s.location.Bucket, o) {
			if item.Err != nil {
				return item.Err
			}
			if item.Key == key {
				versions = append(versions, item)
			}
		}
		return ctx.Err()
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

func (s *Store) deleteVersion(ctx context.Context, name, version string) error {
	err := s.try(ctx, 0, func(ctx context.Context) error {
		return s.client.RemoveObject(ctx, s.location.Bucket, s.key(name), minio.RemoveObjectOptions{VersionID: version})
	})
	switch {
	case errors.Is(err, objects.ErrNotFound):
		return nil
	case errors.Is(err, objects.ErrDenied) && version != "":
		// Not every store says why it refuses.
		if until, rerr := s.retention(ctx, name, version); rerr == nil && until.After(time.Now()) {
			return fmt.Errorf("%w until %v", objects.ErrLocked, until)
		}
	}
	return err
}

// Retain implements objects.Store.
func (s *Store) Retain(ctx context.Context, name string, until time.Time) error {
	if err := s.check(ctx, name); err != nil {
		return err
	}
	return s.wrap("retain", name, s.retain(ctx, name, lockTime(until)))
}

func (s *Store) retain(ctx context.Context, name string, until time.Time) error {
	if !s.versioned { // locks are on versions
		return errNoLocks
	}
	version, err := s.version(ctx, name)
	if err != nil {
		return err
	}
	already, err := s.retention(ctx, name, version)
	if err != nil || !until.After(already) {
		return err
	}
	mode := minio.Compliance
	o := minio.PutObjectRetentionOptions{Mode: &mode, RetainUntilDate: &until, VersionID: version}
	return s.lockError(s.try(ctx, 0, func(ctx context.Context) error {
		return s.client.PutObjectRetention(ctx, s.location.Bucket, s.key(name), o)
	}))
}

// retention is until when a version is locked; zero if it is not.
func (s *Store) retention(ctx context.Context, name, version string) (until time.Time, err error) {
	err = s.try(ctx, 0, func(ctx context.Context) error {
		_, date, err := s.client.GetObjectRetention(ctx, s.location.Bucket, s.key(name), version)
		if err == nil && date != nil {
			until = *date
		}
		return err
	})
	if isCode(err, "NoSuchObjectLockConfiguration") {
		return time.Time{}, nil
	}
	return until, s.lockError(err)
}

// lockError says ErrUnsupported of what a bucket without locks answers.
func (s *Store) lockError(err error) error {
	if err != nil && isNoLocks(err) {
		return fmt.Errorf("%w: %w", errNoLocks, err)
	}
	return err
}
