package s3_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"

	"varve/internal/objects"
	"varve/internal/objects/objectstest"
	"varve/internal/objects/s3"
	"varve/internal/objects/s3/s3test"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func want(t *testing.T, err, target error, words ...string) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("got %v, want %v", err, target)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Fatalf("%q does not name %q", err, word)
		}
	}
}

// open opens a store that is closed with the test.
func open(t *testing.T, url string, o s3.Options) *s3.Store {
	t.Helper()
	st, err := s3.Open(t.Context(), url, o)
	must(t, err)
	t.Cleanup(func() { st.Close() })
	return st
}

func put(t *testing.T, st objects.Store, name string, content []byte) {
	t.Helper()
	must(t, st.Put(t.Context(), name, [][]byte{content}, objects.PutOptions{}))
}

func wantContent(t *testing.T, st objects.Store, name string, content []byte) {
	t.Helper()
	got, err := st.Get(t.Context(), name)
	must(t, err)
	if !bytes.Equal(got, content) {
		t.Fatalf("%s has %d bytes that are not the %d that were put", name, len(got), len(content))
	}
}

func names(t *testing.T, st objects.Store) (all []string) {
	t.Helper()
	must(t, st.List(t.Context(), "", func(info objects.Info) error {
		all = append(all, info.Name)
		return nil
	}))
	return all
}

// buckets makes places of new buckets of one server.
func buckets(t *testing.T, server *s3test.Server, kind s3test.Kind, prefix string) func(t *testing.T) objectstest.Place {
	made := 0
	return func(t *testing.T) objectstest.Place {
		made++
		url := server.Bucket(fmt.Sprintf("bucket-%d-%d", kind, made), kind) + prefix
		return func() objects.Store { return open(t, url, server.Options()) }
	}
}

func TestContract(t *testing.T) {
	server := s3test.Start(t, s3test.Options{})
	objectstest.Contract(t, buckets(t, server, s3test.Plain, ""))
	objectstest.WithoutLocks(t, buckets(t, server, s3test.Plain+10, "/some/Prefix"))
}

func TestContractWithVersions(t *testing.T) {
	server := s3test.Start(t, s3test.Options{})
	open := buckets(t, server, s3test.Versioned, "/some/Prefix")
	objectstest.Contract(t, open)
	objectstest.WithoutLocks(t, open)
}

func TestContractWithLocks(t *testing.T) {
	server := s3test.Start(t, s3test.Options{})
	open := buckets(t, server, s3test.Locked, "/p")
	objectstest.Contract(t, open)
	objectstest.WithLocks(t, open)
}

// A bucket may have a retention of its own for all that is put into it.
func TestARetentionOfTheBucketIsNoDenial(t *testing.T) {
	server := s3test.Start(t, s3test.Options{})
	st := open(t, server.Bucket("bucket", s3test.Locked), server.Options())
	mode, days, unit := minio.Compliance, uint(1), minio.Days
	must(t, server.Client().SetBucketObjectLockConfig(t.Context(), "bucket", &mode, &days, &unit))
	put(t, st, "pins/1", []byte("x"))
	err := st.Delete(t.Context(), "pins/1")
	want(t, err, objects.ErrLocked, "pins/1")
	if errors.Is(err, objects.ErrDenied) {
		t.Errorf("it is told as a denial: %v", err)
	}
}

func TestContractOverTLS(t *testing.T) {
	server := s3test.Start(t, s3test.Options{TLS: true})
	objectstest.Contract(t, buckets(t, server, s3test.Plain, "/p"))
}

// Two repositories of one bucket, the name of one being the beginning of the other's.
func TestPrefixesAreApart(t *testing.T) {
	server := s3test.Start(t, s3test.Options{})
	url := server.Bucket("both", s3test.Plain)
	a, b := open(t, url+"/web", server.Options()), open(t, url+"/web2", server.Options())
	put(t, a, "packs/1", []byte("a"))
	put(t, b, "packs/1", []byte("b"))
	put(t, b, "packs/2", []byte("b"))
	if got := names(t, a); len(got) != 1 {
		t.Fatalf("there are %q", got)
	}
	must(t, b.Delete(t.Context(), "packs/1"))
	wantContent(t, a, "packs/1", []byte("a"))
	if a.URL() != url+"/web" {
		t.Fatalf("its URL is %s", a.URL())
	}
}

// The server does know If-None-Match, and the probe leaves nothing.
func TestExclusiveAsksTheStore(t *testing.T) {
	server := s3test.Start(t, s3test.Options{})
	for kind, name := range map[s3test.Kind]string{s3test.Plain: "plain", s3test.Versioned: "versioned", s3test.Locked: "locked"} {
		st := open(t, server.Bucket(name, kind), server.Options())
		if !st.Exclusive() {
			t.Errorf("%s: not exclusive", name)
		}
		if left := names(t, st); len(left) != 0 {
			t.Errorf("%s: the probe left %q", name, left)
		}
	}
}

func TestOpenTellsWhatIsWrong(t *testing.T) {
	server := s3test.Start(t, s3test.Options{})
	url := server.Bucket("bucket", s3test.Plain)
	secure := s3test.Start(t, s3test.Options{TLS: true})
	secureURL := secure.Bucket("bucket", s3test.Plain)
	const otherSecret = "WRONG-SECRET-0123456789"

	for _, c := range []struct {
		name, url string
		change    func(*s3.Options)
		kind      error
		words     []string
	}{
		{"no such bucket", strings.Replace(url, "/bucket", "/absent", 1), nil, objects.ErrNoStore, []string{`"absent"`}},
		{"wrong secret", url, func(o *s3.Options) { o.SecretKey = otherSecret }, objects.ErrDenied, []string{"secret key"}},
		{"wrong key", url, func(o *s3.Options) { o.AccessKey = "nobody" }, objects.ErrDenied, []string{"access key"}},
		{"no secret", url, func(o *s3.Options) { o.SecretKey = "" }, objects.ErrDenied, []string{"credentials"}},
		{"no such file", url, func(o *s3.Options) {
			o.AccessKey, o.SecretKey, o.CredentialsFile = "", "", "/absent/credentials"
		}, objects.ErrDenied, []string{"/absent/credentials"}},
		{"plain HTTP where it is not said", url, func(o *s3.Options) { o.PlainHTTP = false }, objects.ErrUnavailable, []string{"plain HTTP"}},
		{"unknown certificate", secureURL, func(o *s3.Options) { *o = secure.Options(); o.CAFile = "" }, objects.ErrUnavailable, []string{"CA file"}},
		{"nobody there", "s3://127.0.0.1:1/bucket", nil, objects.ErrUnavailable, []string{"refused"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := server.Options()
			o.Pause = time.Millisecond
			if c.change != nil {
				c.change(&o)
			}
			_, err := s3.Open(t.Context(), c.url, o)
			want(t, err, c.kind, append(c.words, c.url)...)
			for _, secret := range []string{server.SecretKey, secure.SecretKey, otherSecret} {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("%q shows a secret", err)
				}
			}
		})
	}
}

func TestCredentialsAreFound(t *testing.T) {
	server := s3test.Start(t, s3test.Options{})
	url := server.Bucket("bucket", s3test.Plain)
	file := filepath.Join(t.TempDir(), "credentials")
	must(t, os.WriteFile(file, fmt.Appendf(nil,
		"[default]\naws_access_key_id = nobody\naws_secret_access_key = nothing\n[backup]\naws_access_key_id = %s\naws_secret_access_key = %s\n",
		server.AccessKey, server.SecretKey), 0o600))
	for name, c := range map[string]struct {
		o   s3.Options
		env map[string]string
	}{
		"profile of a file":       {o: s3.Options{CredentialsFile: file, Profile: "backup"}},
		"environment":             {env: map[string]string{"AWS_ACCESS_KEY_ID": server.AccessKey, "AWS_SECRET_ACCESS_KEY": server.SecretKey}},
		"file of the environment": {env: map[string]string{"AWS_SHARED_CREDENTIALS_FILE": file, "AWS_PROFILE": "backup"}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, v := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_SHARED_CREDENTIALS_FILE"} {
				t.Setenv(v, c.env[v])
			}
			t.Setenv("AWS_CONFIG_FILE", os.DevNull)
			c.o.PlainHTTP = true
			put(t, open(t, url, c.o), "a-"+strings.ReplaceAll(name, " ", "-"), nil)
		})
	}
	// What cannot be read as such a file may be a secret.
	must(t, os.WriteFile(file, []byte("[default]\nTHE-SECRET-ALONE\n"), 0o600))
	_, err := s3.Open(t.Context(), url, s3.Options{CredentialsFile: file, PlainHTTP: true})
	want(t, err, objects.ErrDenied, file)
	if strings.Contains(err.Error(), "THE-SECRET-ALONE") {
		t.Fatalf("%q shows a secret", err)
	}
}

// The bucket is deleted while a repository is open.
func TestALostBucketIsNoStore(t *testing.T) {
	server := s3test.Start(t, s3test.Options{})
	st := open(t, server.Bucket("bucket", s3test.Plain), server.Options())
	put(t, st, "a", nil)
	must(t, st.Delete(t.Context(), "a"))
	must(t, server.Client().RemoveBucket(t.Context(), "bucket"))
	_, err := st.Stat(t.Context(), "a")
	want(t, err, objects.ErrNoStore, `"bucket"`)
	_, err = st.Get(t.Context(), "a")
	want(t, err, objects.ErrNoStore)
	want(t, st.Read(t.Context(), "a", make([]byte, 1), 0), objects.ErrNoStore)
	want(t, st.List(t.Context(), "", func(objects.Info) error { return nil }), objects.ErrNoStore)
	want(t, st.Put(t.Context(), "a", nil, objects.PutOptions{}), objects.ErrNoStore)
}

var background = context.Background()
