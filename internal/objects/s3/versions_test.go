package s3_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/minio/minio-go/v7"
	"golang.org/x/sync/errgroup"

	"varve/internal/objects"
	"varve/internal/objects/s3/s3test"
)

// Somebody with the right to put and delete, but not to delete versions, tries to get rid of a backup.
func TestMarkersAndNewerVersionsHideNothing(t *testing.T) {
	server := s3test.Start(t, s3test.Options{})
	url := server.Bucket("bucket", s3test.Versioned)
	st := open(t, url+"/repo", server.Options())
	vandal := server.Client()
	ctx := t.Context()
	content := bytes.Repeat([]byte("what was backed up"), 1000)
	want := []string{"backups/1", "backups/2", "backups/3", "backups/4"}
	for _, name := range want {
		put(t, st, name, content)
	}
	remove := func(name string) {
		must(t, vandal.RemoveObject(ctx, "bucket", "repo/"+name, minio.RemoveObjectOptions{}))
	}
	replace := func(name string) {
		_, err := vandal.PutObject(ctx, "bucket", "repo/"+name, strings.NewReader("rubbish"), 7, minio.PutObjectOptions{})
		must(t, err)
	}
	remove("backups/1")
	replace("backups/2")
	remove("backups/3")
	replace("backups/3")
	remove("backups/3")

	for _, client := range []objects.Store{st, open(t, url+"/repo", server.Options())} {
		if got := names(t, client); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("there are %q, want %q", got, want)
		}
		for _, name := range want {
			wantContent(t, client, name, content)
			p := make([]byte, 100)
			must(t, client.Read(ctx, name, p, 36))
			if !bytes.Equal(p, content[36:136]) {
				t.Fatalf("%s reads %q", name, p)
			}
			info, err := client.Stat(ctx, name)
			must(t, err)
			if info.Size != int64(len(content)) {
				t.Fatalf("%s is %+v", name, info)
			}
		}
	}
	// Deleting it takes all of that with it.
	for _, name := range want {
		must(t, st.Delete(ctx, name))
	}
	for item := range vandal.ListObjectsIter(ctx, "bucket", minio.ListObjectsOptions{Recursive: true, WithVersions: true}) {
		must(t, item.Err)
		t.Errorf("left: %s, version %s, marker %v", item.Key, item.VersionID, item.IsDeleteMarker)
	}
	if got := names(t, st); len(got) != 0 {
		t.Fatalf("there are %q", got)
	}
}

// What was read before is deleted by another client, and put again.
func TestAVersionThatIsGoneIsLookedForAnew(t *testing.T) {
	server := s3test.Start(t, s3test.Options{})
	url := server.Bucket("bucket", s3test.Versioned)
	a, b := open(t, url, server.Options()), open(t, url, server.Options())
	put(t, a, "keys/1", []byte("first"))
	wantContent(t, a, "keys/1", []byte("first"))
	must(t, b.Delete(t.Context(), "keys/1"))
	_, err := a.Get(t.Context(), "keys/1")
	want(t, err, objects.ErrNotFound, "keys/1")
	put(t, b, "keys/1", []byte("second"))
	wantContent(t, a, "keys/1", []byte("second"))
}

// More versions than a page has, of one object between others.
func TestManyVersionsAreOneObject(t *testing.T) {
	server := s3test.Start(t, s3test.Options{})
	url := server.Bucket("bucket", s3test.Versioned)
	st := open(t, url, server.Options())
	vandal := server.Client()
	for _, name := range []string{"a", "b", "c"} {
		put(t, st, name, []byte("of "+name))
	}
	var group errgroup.Group
	group.SetLimit(16)
	for range 1100 {
		group.Go(func() error {
			_, err := vandal.PutObject(t.Context(), "bucket", "b", strings.NewReader("rubbish"), 7, minio.PutObjectOptions{})
			return err
		})
	}
	must(t, group.Wait())
	if got := names(t, st); fmt.Sprint(got) != "[a b c]" {
		t.Fatalf("there are %q", got)
	}
	wantContent(t, st, "b", []byte("of b"))
	must(t, st.Delete(t.Context(), "b"))
	if got := names(t, st); fmt.Sprint(got) != "[a c]" {
		t.Fatalf("there are %q", got)
	}
}

func TestSuspendedVersionsStillCount(t *testing.T) {
	server := s3test.Start(t, s3test.Options{})
	url := server.Bucket("bucket", s3test.Versioned)
	put(t, open(t, url, server.Options()), "a", []byte("x"))
	must(t, server.Client().SuspendVersioning(t.Context(), "bucket"))
	st := open(t, url, server.Options())
	must(t, server.Client().RemoveObject(t.Context(), "bucket", "a", minio.RemoveObjectOptions{}))
	wantContent(t, st, "a", []byte("x"))
	put(t, st, "b", []byte("y"))
	wantContent(t, st, "b", []byte("y"))
	must(t, st.Delete(t.Context(), "a"))
	must(t, st.Delete(t.Context(), "b"))
	if got := names(t, st); len(got) != 0 {
		t.Fatalf("there are %q", got)
	}
}
