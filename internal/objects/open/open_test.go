package open_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"varve/internal/objects"
	"varve/internal/objects/open"
)

func TestParse(t *testing.T) {
	for raw, want := range map[string]open.Location{
		"/":                              {Dir: "/", URL: "/"},
		"/srv/backup/":                   {Dir: "/srv/backup", URL: "/srv/backup"},
		"/srv/a://b":                     {Dir: "/srv/a:/b", URL: "/srv/a:/b"},
		"file:///srv/a%20b":              {Dir: "/srv/a b", URL: "/srv/a b"},
		"file://localhost/srv":           {Dir: "/srv", URL: "/srv"},
		"s3://host/bucket":               {URL: "s3://host/bucket"},
		"s3://host:9000/bucket/some/way": {URL: "s3://host:9000/bucket/some/way"},
		"s3://[::1]:9000/bucket/":        {URL: "s3://[::1]:9000/bucket"},
	} {
		if got, err := open.Parse(raw); got != want || err != nil {
			t.Errorf("%s: got %+v %v, want %+v", raw, got, err, want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for raw, word := range map[string]string{
		"":                             "absolute path",
		"backup":                       "absolute path",
		"./backup":                     "absolute path",
		"file://host/srv":              "another host",
		"file:///srv?x":                "%3F",
		"ftp://host/srv":               "ftp",
		"s3:///bucket":                 "no host",
		"s3://host":                    "no bucket",
		"s3://host/":                   "no bucket",
		"s3://host/b":                  "bucket",
		"s3://host/Bucket":             "bucket",
		"s3://host/bucket/a//b":        "prefix",
		"s3://host/bucket/../c":        "prefix",
		"s3://host/bucket?region=x":    "nothing may follow",
		"s3://key:SECRET@host/bucket":  "credentials",
		"s3://key:SECRET@ho st/bucket": "parsed",
	} {
		_, err := open.Parse(raw)
		if !errors.Is(err, open.ErrURL) || !strings.Contains(err.Error(), word) || strings.Contains(err.Error(), "SECRET") {
			t.Errorf("%q: got %v, want %q", raw, err, word)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, raw := range []string{"/srv", "file:///srv/a%20b", "s3://host:9000/bucket/a/b", "s3://u:p@h/bucket"} {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		l, err := open.Parse(raw)
		if err != nil {
			return
		}
		if again, err := open.Parse(l.URL); again != l || err != nil {
			t.Fatalf("%q is %+v, and that is %+v %v", raw, l, again, err)
		}
	})
}

func TestURLMakesADirectoryIfToldTo(t *testing.T) {
	root := filepath.Join(t.TempDir(), "repository")
	if _, err := open.URL(t.Context(), root, open.Options{}); !errors.Is(err, objects.ErrNoStore) {
		t.Fatalf("got %v, want %v", err, objects.ErrNoStore)
	}
	st, err := open.URL(t.Context(), "file://"+root, open.Options{Create: true})
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(root); err != nil || !info.IsDir() || st.URL() != root {
		t.Fatalf("%s: %v %v", st.URL(), info, err)
	}
}
