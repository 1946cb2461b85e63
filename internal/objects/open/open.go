// Package open finds the store of objects that a URL names.
package open

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"path"
	"strings"

	"varve/internal/objects"
	"varve/internal/objects/dir"
	"varve/internal/objects/s3"
	"varve/internal/vfs"
)

// ErrURL says of a URL that it is none of a store.
var ErrURL = errors.New("not a place for a repository")

// Options say how to open a store; the zero value is for most.
type Options struct {
	// Create makes a directory that is not there yet. Buckets are made by who runs the store.
	Create bool
	// S3 is for buckets.
	S3 s3.Options
}

// Location is a URL of a store, read.
type Location struct {
	// Dir is the directory's absolute path; empty for a bucket.
	Dir string
	// URL is the place as Store.URL tells it: a path, or an s3:// URL.
	URL string
}

// Parse reads an absolute path, file:///PATH or s3://HOST[:PORT]/BUCKET[/PREFIX]: ErrURL.
func Parse(raw string) (Location, error) {
	scheme, _, isURL := strings.Cut(raw, "://")
	switch {
	case path.IsAbs(raw):
		return inDir(raw)
	case isURL && scheme == "s3":
		l, err := s3.ParseURL(raw)
		if err != nil {
			return Location{}, fmt.Errorf("%w: %w", ErrURL, err)
		}
		return Location{URL: l.String()}, nil
	case isURL && scheme == "file":
		return parseFile(raw)
	case isURL:
		return Location{}, fmt.Errorf("%w: %s://: a repository lies in a directory (/PATH or file:///PATH) or a bucket (s3://HOST/BUCKET/PREFIX)", ErrURL, scheme)
	}
	return inDir(raw)
}

func parseFile(raw string) (Location, error) {
	u, err := url.Parse(raw)
	if err != nil {
		return Location{}, fmt.Errorf("%w: %w", ErrURL, err)
	}
	if u.Host != "" && u.Host != "localhost" {
		return Location{}, fmt.Errorf("%w: %s: a directory of another host; mount it, and give the path", ErrURL, raw)
	}
	if u.RawQuery != "" || u.Fragment != "" {
		return Location{}, fmt.Errorf("%w: %s: write ? as %%3F and # as %%23", ErrURL, raw)
	}
	return inDir(u.Path)
}

func inDir(name string) (Location, error) {
	if !path.IsAbs(name) {
		return Location{}, fmt.Errorf("%w: %q: give an absolute path, or s3://HOST/BUCKET/PREFIX", ErrURL, name)
	}
	name = path.Clean(name)
	return Location{Dir: name, URL: name}, nil
}

// URL opens the store at a URL (see Parse): ErrURL, objects.ErrNoStore, objects.ErrDenied, objects.ErrUnavailable.
func URL(ctx context.Context, raw string, o Options) (objects.Store, error) {
	l, err := Parse(raw)
	if err != nil {
		return nil, err
	}
	if l.Dir == "" {
		st, err := s3.Open(ctx, l.URL, o.S3)
		if err != nil {
			return nil, err
		}
		return st, nil
	}
	open := dir.Open
	if o.Create {
		open = dir.Create
	}
	st, err := open(vfs.OS(), l.Dir)
	if err != nil {
		return nil, err
	}
	return st, nil
}
