package s3

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/minio/minio-go/v7"

	"varve/internal/objects"
)

// locks is whether the bucket has object lock, once that is known.
type locks struct {
	mu    sync.Mutex // guards known, has; not held over a request
	known bool
	has   bool
}

// errNoLocks is what is said of a bucket without object lock.
var errNoLocks = fmt.Errorf("%w: the bucket has no object lock; it is turned on when a bucket is made", errors.ErrUnsupported)

// needLocks returns errNoLocks if the bucket has no object lock. It is asked, because there are stores that take a retention from anybody
// and do not keep it.
func (s *Store) needLocks(ctx context.Context) error {
	if !s.versioned { // locks are on versions
		return errNoLocks
	}
	s.locks.mu.Lock()
	known, has := s.locks.known, s.locks.has
	s.locks.mu.Unlock()
	if !known {
		var err error
		if has, err = s.findLocks(ctx); err != nil {
			return err
		}
		s.locks.mu.Lock()
		s.locks.known, s.locks.has = true, has
		s.locks.mu.Unlock()
	}
	if !has {
		return errNoLocks
	}
	return nil
}

func (s *Store) findLocks(ctx context.Context) (has bool, err error) {
	err = s.try(ctx, func(a *attempt) error {
		enabled, _, _, _, err := s.client.GetObjectLockConfig(a.ctx, s.location.Bucket)
		has = enabled == "Enabled"
		return err
	})
	switch {
	case isCode(err, "ObjectLockConfigurationNotFoundError", "InvalidRequest", minio.NotImplemented):
		return false, nil
	case errors.Is(err, objects.ErrDenied):
		return true, nil // to ask that is a right of its own; the store will say
	}
	return has, err
}

// Retain implements objects.Store.
func (s *Store) Retain(ctx context.Context, name string, until time.Time) error {
	if err := s.check(ctx, name); err != nil {
		return err
	}
	return s.wrap("retain", name, s.retain(ctx, name, lockTime(until)))
}

func (s *Store) retain(ctx context.Context, name string, until time.Time) error {
	if err := s.needLocks(ctx); err != nil {
		return err
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
	return s.try(ctx, func(a *attempt) error {
		return s.client.PutObjectRetention(a.ctx, s.location.Bucket, s.key(name), o)
	})
}

// retention is until when a version is locked; zero if it is not, or if these credentials may not know.
func (s *Store) retention(ctx context.Context, name, version string) (until time.Time, err error) {
	err = s.try(ctx, func(a *attempt) error {
		o := minio.StatObjectOptions{VersionID: version}
		info, err := s.client.StatObject(a.ctx, s.location.Bucket, s.key(name), o)
		if err != nil {
			return err
		}
		if date := info.Metadata.Get("X-Amz-Object-Lock-Retain-Until-Date"); date != "" {
			if until, err = time.Parse(time.RFC3339, date); err != nil {
				return final{fmt.Errorf("the store tells a retention until %q: %w", date, err)}
			}
		}
		return nil
	})
	return until, err
}

// lockTime is t as S3 takes it, whole seconds, not before t.
func lockTime(t time.Time) time.Time {
	return t.Add(time.Second - 1).Truncate(time.Second).UTC()
}
