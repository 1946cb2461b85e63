// Package s3 is a store of objects in a bucket of an S3-compatible store.
//
// Object a/b is the key PREFIX/a/b. Each Put is one PUT request (no multipart upload: objects are small, and one request is
// atomic everywhere), with If-None-Match: *, so that it never replaces an object where the store understands that; Exclusive
// asks the store whether it does. The request is signed over the SHA-256 of its content, which the store checks.
//
// Versions. In a bucket that keeps versions (or did), of an object's versions the oldest counts, delete markers count for
// nothing: whoever may put or delete, but may not delete versions, can neither hide an object nor replace it. Reads
// look up the version first, one request more for each object. Delete removes all versions, the oldest last.
//
// Time limits. A request for which nothing moves for Options.Stall is cut, and none may take longer than a slow line would need; what was cut, and what the store answers with "try again", is tried again after a pause that doubles, Options.Attempts
// times in all. A Read that was cut goes on where it was. A Put whose answer was lost, and which then finds the name taken,
// compares the content. So no operation hangs, and none fails for what passes within half a minute.
//
// Left out: anonymous access, virtual-host style (buckets are in the path), multipart uploads, server-side encryption with
// customer keys (objects are sealed already).
package s3

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/s3utils"

	"varve/internal/objects"
)

// Options say how to reach a bucket. The zero value takes what is needed from the environment.
type Options struct {
	// Region of the bucket; empty: AWS_REGION, AWS_DEFAULT_REGION, what the host's name says, or what the store answers.
	Region string

	// AccessKey, SecretKey and SessionToken are credentials; empty: see CredentialsFile.
	AccessKey, SecretKey, SessionToken string
	// CredentialsFile is one like ~/.aws/credentials, of which Profile is read ("default", or AWS_PROFILE).
	// Empty: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, else the usual files.
	CredentialsFile, Profile string

	// CAFile has certificates, PEM, that are trusted beside the system's.
	CAFile string
	// PlainHTTP is for stores without TLS. Content is sealed, but the line shows what is stored, read and deleted.
	PlainHTTP bool

	// Stall is how long a request may get no further; 0: 30 s.
	Stall time.Duration
	// Attempts is how often a request is made at most; 0: 8.
	Attempts int
	// Pause is the time before the second attempt, and doubles up to 10 s; 0: 100 ms.
	Pause time.Duration
}

// String shows no secret, and so does %+v.
func (o Options) String() string {
	return fmt.Sprintf("S3 options, region %q, credentials file %q, profile %q", o.Region, o.CredentialsFile, o.Profile)
}

// GoString shows no secret either.
func (o Options) GoString() string { return o.String() }

const (
	defaultStall    = 30 * time.Second
	defaultAttempts = 8
	defaultPause    = 100 * time.Millisecond
	maxPause        = 10 * time.Second
)

// Location is where a store lies, as its URL says.
type Location struct {
	Host   string // with a port if one is given
	Bucket string
	Prefix string // without slashes at its ends; may be empty
}

// ParseURL reads s3://HOST[:PORT]/BUCKET[/PREFIX].
func ParseURL(raw string) (Location, error) {
	refuse := func(why string) (Location, error) {
		return Location{}, fmt.Errorf("not an S3 location: %s; it is s3://HOST[:PORT]/BUCKET[/PREFIX]", why)
	}
	u, err := url.Parse(raw)
	switch {
	case err != nil:
		return refuse("cannot be parsed") // the error quotes all of it, which may have a secret
	case u.User != nil:
		return refuse("credentials do not belong there")
	case u.Scheme != "s3" || u.Opaque != "":
		return refuse(u.Redacted())
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		return refuse("nothing may follow the prefix")
	case u.Hostname() == "":
		return refuse(raw + " names no host")
	}
	bucket, prefix, _ := strings.Cut(strings.Trim(u.Path, "/"), "/")
	if bucket == "" {
		return refuse(raw + " names no bucket")
	}
	if err := s3utils.CheckValidBucketNameStrict(bucket); err != nil {
		return refuse(fmt.Sprintf("bucket %q: %v", bucket, err))
	}
	if prefix != "" {
		for part := range strings.SplitSeq(prefix, "/") {
			if part == "" || part == "." || part == ".." || len(part) > objects.MaxPartBytes {
				return refuse(fmt.Sprintf("prefix %q", prefix))
			}
		}
	}
	if len(prefix) > 400 { // a key has at most 1024
		return refuse("the prefix is too long")
	}
	return Location{Host: u.Host, Bucket: bucket, Prefix: prefix}, nil
}

// String is the URL.
func (l Location) String() string {
	u := url.URL{Scheme: "s3", Host: l.Host, Path: "/" + l.Bucket}
	if l.Prefix != "" {
		u.Path += "/" + l.Prefix
	}
	return u.String()
}

// Store is a bucket, or what is below a prefix in one.
type Store struct {
	location  Location
	prefix    string // of keys: empty or ending with a slash
	client    minio.Core
	transport *http.Transport
	retry     retry

	versioned bool
	versions  *lru.Cache[string, string] // ids of the versions that count, by names

	locks locks

	unconditional atomic.Bool // the store refuses If-None-Match
	probe         sync.Once
	exclusive     bool
}

var _ objects.Store = (*Store)(nil)

// cachedVersions bounds the memory for them to some 10 MiB.
const cachedVersions = 1 << 16

// Open connects to the bucket at a URL (see ParseURL) and asks it whether it keeps versions: objects.ErrNoStore if there is no such bucket,
// objects.ErrDenied if the credentials are refused, objects.ErrUnavailable.
func Open(ctx context.Context, rawURL string, o Options) (*Store, error) {
	location, err := ParseURL(rawURL)
	if err != nil {
		return nil, err
	}
	s, err := connect(location, o)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", location, err)
	}
	patient := s.retry
	s.retry.attempts = min(3, s.retry.attempts) // who has mistyped a host should not wait long to hear it
	s.versioned, err = s.findVersioning(ctx)
	s.retry = patient
	if err != nil {
		s.transport.CloseIdleConnections()
		return nil, fmt.Errorf("open %s: %w", location, err)
	}
	return s, nil
}

func connect(l Location, o Options) (*Store, error) {
	creds, err := findCredentials(o)
	if err != nil {
		return nil, err
	}
	stall := o.Stall
	if stall <= 0 {
		stall = defaultStall
	}
	transport, err := newTransport(o, stall)
	if err != nil {
		return nil, err
	}
	client, err := minio.NewCore(l.Host, &minio.Options{
		Creds: creds, Secure: !o.PlainHTTP, Transport: transport, Region: findRegion(o),
		BucketLookup: minio.BucketLookupPath,
		MaxRetries:   1, // ours know when to stop
	})
	if err != nil {
		return nil, err
	}
	versions, err := lru.New[string, string](cachedVersions)
	if err != nil {
		return nil, err
	}
	s := &Store{location: l, client: *client, transport: transport, versions: versions, retry: newRetry(o, stall)}
	if l.Prefix != "" {
		s.prefix = l.Prefix + "/"
	}
	return s, nil
}

// findVersioning tells whether the bucket keeps versions, or has kept them.
func (s *Store) findVersioning(ctx context.Context) (versioned bool, err error) {
	err = s.try(ctx, func(a *attempt) error {
		config, err := s.client.GetBucketVersioning(a.ctx, s.location.Bucket)
		versioned = config.Status != ""
		return err
	})
	switch {
	case isCode(err, minio.NotImplemented, "VersioningNotConfigured"):
		return false, nil
	case isCode(err, minio.AccessDenied):
		// To ask that is a right of its own. What is needed is to list.
		return s.probeVersions(ctx)
	}
	return versioned, err
}

// probeVersions tells whether versions can be listed, which also works if the bucket has none.
func (s *Store) probeVersions(ctx context.Context) (works bool, err error) {
	for _, withVersions := range []bool{true, false} {
		_, err = s.page(ctx, minio.ListObjectsOptions{Prefix: s.prefix, Recursive: true, MaxKeys: 1, WithVersions: withVersions}, 1)
		if err == nil {
			return withVersions, nil
		}
		if !isCode(err, minio.AccessDenied, minio.NotImplemented) {
			return false, err
		}
	}
	return false, err
}

func (s *Store) key(name string) string { return s.prefix + name }

// check is what every operation on an object begins with.
func (s *Store) check(ctx context.Context, name string) error {
	if err := objects.CheckName(name); err != nil {
		return err
	}
	return ctx.Err()
}

// wrap names operation, object and place.
func (s *Store) wrap(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %s in %s: %w", op, name, s.location, err)
}

// URL implements objects.Store.
func (s *Store) URL() string { return s.location.String() }

// Close implements objects.Store.
func (s *Store) Close() error {
	s.transport.CloseIdleConnections()
	return nil
}
