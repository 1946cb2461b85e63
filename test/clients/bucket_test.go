package clients

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/minio/minio-go/v7"

	"varve/internal/objects/s3/s3test"
)

// bucket is one of a real S3 server.
type bucket struct {
	*s3test.Server
	t      *testing.T
	kind   s3test.Kind
	secret string // the file with the secret key
}

const bucketName = "bucket"

func newBucket(t *testing.T, kind s3test.Kind) *bucket {
	t.Helper()
	b := &bucket{Server: s3test.Start(t, s3test.Options{}), t: t, kind: kind, secret: filepath.Join(scratch(t), "secret")}
	must(t, os.WriteFile(b.secret, []byte(b.SecretKey+"\n"), 0o600), "write the secret key")
	b.Bucket(bucketName, kind)
	return b
}

// line is one to the server, which may stall and break.
func (b *bucket) line() *s3test.Proxy {
	b.t.Helper()
	return s3test.NewProxy(b.t, b.Address, 0)
}

// place is the URL of a repository in the bucket, at the end of a line.
func (b *bucket) place(line *s3test.Proxy, prefix string) string {
	return fmt.Sprintf("s3://%s/%s/%s", line.Address, bucketName, prefix)
}

// access are the flags that open the bucket.
func (b *bucket) access() []string {
	return []string{"--s3-access-key", b.AccessKey, "--s3-secret-key-file", b.secret, "--s3-plain-http", "--s3-region", "us-east-1"}
}

// each visits the objects of the repository at a prefix whose names begin so, in all versions; the server is asked, not one of the lines.
func (b *bucket) each(prefix, begin string, visit func(context.Context, *minio.Client, minio.ObjectInfo) error) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	client := b.Client()
	o := minio.ListObjectsOptions{Prefix: prefix + "/" + begin, Recursive: true, WithVersions: b.kind != s3test.Plain}
	for object := range client.ListObjects(ctx, bucketName, o) {
		must(b.t, object.Err, "list the bucket")
		must(b.t, visit(ctx, client, object), "%s", object.Key)
	}
}

// names are those of objects of a repository.
func (b *bucket) names(prefix, begin string) (names []string) {
	b.t.Helper()
	b.each(prefix, begin, func(_ context.Context, _ *minio.Client, object minio.ObjectInfo) error {
		names = append(names, strings.TrimPrefix(object.Key, prefix+"/"))
		return nil
	})
	slices.Sort(names)
	return names
}

// size is that of objects of a repository together, in bytes.
func (b *bucket) size(prefix, begin string) (size int64) {
	b.t.Helper()
	b.each(prefix, begin, func(_ context.Context, _ *minio.Client, object minio.ObjectInfo) error {
		size += object.Size
		return nil
	})
	return size
}

// remove deletes objects of a repository.
func (b *bucket) remove(prefix, begin string) {
	b.t.Helper()
	b.each(prefix, begin, func(ctx context.Context, client *minio.Client, object minio.ObjectInfo) error {
		return client.RemoveObject(ctx, bucketName, object.Key, minio.RemoveObjectOptions{VersionID: object.VersionID})
	})
}
