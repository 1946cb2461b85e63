package s3

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"

	"varve/internal/objects"
)

// retry is how often and how soon a request is made again.
type retry struct {
	stall, pause time.Duration
	attempts     int
}

func newRetry(o Options, stall time.Duration) retry {
	r := retry{stall: stall, pause: o.Pause, attempts: o.Attempts}
	if r.pause <= 0 {
		r.pause = defaultPause
	}
	if r.attempts <= 0 {
		r.attempts = defaultAttempts
	}
	return r
}

// slowest is the least bandwidth that a request is given time for, in bytes a second. Who trickles slower is cut.
const slowest = 32 << 10

// limit is how long one attempt that moves n bytes at a pace may take. A pace may be shared with a hundred others.
func (r retry) limit(n int64, pace objects.Pace) time.Duration {
	return 4*r.stall + time.Duration(n)*time.Second/slowest + 100*pace.Least(n)
}

// attempt is one request that is under way.
type attempt struct {
	ctx   context.Context // ends when nothing has moved for a time
	pace  objects.Pace
	stall time.Duration
	timer *time.Timer
}

// moved is to be called whenever bytes have come or gone.
func (a *attempt) moved() { a.timer.Reset(a.stall) }

// wait waits until n bytes may be moved. That is no stall.
func (a *attempt) wait(n int) error {
	a.timer.Stop()
	defer a.moved()
	return a.pace.Wait(a.ctx, n)
}

// try makes a request, until it succeeds, fails for good, or has been tried often enough. The error says which error of a
// Store it is.
func (s *Store) try(ctx context.Context, request func(*attempt) error) error {
	return s.tryMoving(ctx, 0, objects.Pace{}, request)
}

// tryMoving is try for a request that moves n bytes at a pace.
func (s *Store) tryMoving(ctx context.Context, n int64, pace objects.Pace, request func(*attempt) error) error {
	pause := s.retry.pause
	for tries := 1; ; tries++ {
		err := s.retry.once(ctx, n, pace, request)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		again, kind := judge(err, s.location)
		if !again {
			return kind
		}
		if tries == s.retry.attempts {
			return fmt.Errorf("%w: tried %d times: %w", objects.ErrUnavailable, tries, kind)
		}
		if err := sleep(ctx, pause/2+rand.N(pause)); err != nil {
			return err
		}
		pause = min(2*pause, maxPause)
	}
}

func (r retry) once(ctx context.Context, n int64, pace objects.Pace, request func(*attempt) error) error {
	limit := r.limit(n, pace)
	ctx, done := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not done within %v", limit))
	defer done()
	ctx, cut := context.WithCancelCause(ctx)
	defer cut(nil)
	a := &attempt{ctx: ctx, pace: pace, stall: r.stall}
	a.timer = time.AfterFunc(r.stall, func() { cut(fmt.Errorf("nothing moved for %v", r.stall)) })
	defer a.timer.Stop()
	err := request(a)
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// isCode tells whether err is an answer of the store with one of these codes.
func isCode(err error, codes ...string) bool {
	answer, ok := errors.AsType[minio.ErrorResponse](err)
	return ok && slices.Contains(codes, answer.Code)
}

// final marks an error of ours that is not to be judged.
type final struct{ error }

func (f final) Unwrap() error { return f.error }

// judge tells whether a request is worth another attempt, and what its error is as one of a Store, with the answer still in it.
func judge(err error, at Location) (again bool, kind error) {
	if own, ok := errors.AsType[final](err); ok {
		return false, own.error
	}
	if answer, ok := errors.AsType[minio.ErrorResponse](err); ok {
		return judgeAnswer(answer, at)
	}
	var unknown x509.UnknownAuthorityError
	var mismatch *tls.CertificateVerificationError
	var noTLS tls.RecordHeaderError
	switch {
	case errors.As(err, &unknown):
		return false, fmt.Errorf("%w: %w; if that is right, name its CA file", objects.ErrUnavailable, err)
	case errors.As(err, &mismatch):
		return false, fmt.Errorf("%w: %w", objects.ErrUnavailable, err)
	case errors.As(err, &noTLS), strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return false, fmt.Errorf("%w: %s does not speak TLS; if that is right, say that it is plain HTTP", objects.ErrUnavailable, at.Host)
	}
	return true, err
}

// Answers by their codes. What is not here is judged by its status.
var (
	noBucket = []string{minio.NoSuchBucket}
	noKey    = []string{minio.NoSuchKey, minio.NoSuchVersion}
	full     = []string{"InsufficientStorage", "QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "ServiceQuotaExceeded"}
	// nobody are those whose status does not say that access is denied.
	nobody = []string{"XAdminUserNotFound"}
	// tryAgain are those whose status does not say so.
	tryAgain = []string{"OperationAborted", "ConditionalRequestConflict", "RequestTimeout", "IncompleteBody", "BadDigest",
		minio.XAmzContentSHA256Mismatch, minio.AuthorizationHeaderMalformed, minio.InvalidRegion}
)

func judgeAnswer(a minio.ErrorResponse, at Location) (again bool, kind error) {
	says := fmt.Errorf("%w (%s)", a, a.Code)
	is := func(codes []string) bool { return slices.Contains(codes, a.Code) }
	switch {
	case is(noBucket):
		return false, fmt.Errorf("%w: there is no bucket %q at %s: %w", objects.ErrNoStore, at.Bucket, at.Host, says)
	case is(noKey):
		return false, fmt.Errorf("%w: %w", objects.ErrNotFound, says)
	case is(full) || a.StatusCode == http.StatusInsufficientStorage:
		return false, fmt.Errorf("%w: %w", objects.ErrFull, says)
	case a.Code == minio.PreconditionFailed || a.StatusCode == http.StatusPreconditionFailed:
		return false, fmt.Errorf("%w: %w", objects.ErrExists, says)
	case a.Code == minio.InvalidRange || a.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		return false, fmt.Errorf("%w: %w", objects.ErrShort, says)
	case is(tryAgain):
		return true, says
	case is(nobody), a.StatusCode == http.StatusForbidden, a.StatusCode == http.StatusUnauthorized:
		return false, fmt.Errorf("%w: %w; %s", objects.ErrDenied, says, hint(a.Code))
	case a.StatusCode == http.StatusRequestTimeout, a.StatusCode == http.StatusTooManyRequests,
		a.StatusCode >= 500 && a.StatusCode != http.StatusNotImplemented:
		return true, says
	}
	return false, says
}

// hint says what to look at when access is denied.
func hint(code string) string {
	switch code {
	case "InvalidAccessKeyId", "XAdminUserNotFound":
		return "is that access key of this store?"
	case minio.SignatureDoesNotMatch:
		return "is the secret key right, and the region?"
	case "ExpiredToken", "InvalidToken":
		return "get a new session token"
	case minio.RequestTimeTooSkewed:
		return "set this host's clock"
	}
	return "do these credentials have the rights to list, get, put and delete there?"
}
