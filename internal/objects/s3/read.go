package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/minio/minio-go/v7"

	"varve/internal/objects"
)

// Stat implements objects.Store.
func (s *Store) Stat(ctx context.Context, name string) (objects.Info, error) {
	if err := s.check(ctx, name); err != nil {
		return objects.Info{}, err
	}
	info, err := s.stat(ctx, name)
	return info, s.wrap("stat", name, err)
}

func (s *Store) stat(ctx context.Context, name string) (objects.Info, error) {
	if s.versioned {
		versions, err := s.listVersions(ctx, name)
		if err != nil {
			return objects.Info{}, err
		}
		counts, err := oldest(versions)
		return objects.Info{Name: name, Size: counts.Size, Modified: counts.LastModified}, err
	}
	var info minio.ObjectInfo
	err := s.try(ctx, func(a *attempt) (err error) {
		info, err = s.client.StatObject(a.ctx, s.location.Bucket, s.key(name), minio.StatObjectOptions{})
		return err
	})
	if errors.Is(err, objects.ErrNotFound) {
		// The answer to a HEAD has no body, and does not tell whether it is the bucket that is missing.
		if _, gone := s.page(ctx, minio.ListObjectsOptions{Prefix: s.key(name), Recursive: true, MaxKeys: 1}, 1); gone != nil {
			err = gone
		}
	}
	return objects.Info{Name: name, Size: info.Size, Modified: info.LastModified}, err
}

// Get implements objects.Store.
func (s *Store) Get(ctx context.Context, name string) ([]byte, error) {
	if err := s.check(ctx, name); err != nil {
		return nil, err
	}
	p, err := s.get(ctx, name)
	return p, s.wrap("get", name, err)
}

func (s *Store) get(ctx context.Context, name string) ([]byte, error) {
	d := download{Store: s, name: name}
	// How large it is comes with its beginning. Only an object of the largest size would need the time that this allows.
	err := d.run(ctx, objects.MaxObjectBytes)
	return d.p, err
}

// Read implements objects.Store.
func (s *Store) Read(ctx context.Context, name string, p []byte, off int64) error {
	if err := s.check(ctx, name); err != nil {
		return err
	}
	var err error
	switch {
	case off < 0:
		err = fmt.Errorf("%w: nothing at %d", objects.ErrShort, off)
	case len(p) == 0:
		err = s.reaches(ctx, name, off)
	default:
		d := download{Store: s, name: name, p: p, off: off, ranged: true}
		err = d.run(ctx, int64(len(p)))
	}
	return s.wrap("read", name, err)
}

// reaches tells whether an object has off bytes; a range cannot be empty.
func (s *Store) reaches(ctx context.Context, name string, off int64) error {
	info, err := s.stat(ctx, name)
	if err == nil && info.Size < off {
		err = fmt.Errorf("%w: %d bytes", objects.ErrShort, info.Size)
	}
	return err
}

// download fills p from off on, over as many requests as it takes; each goes on where the one before ended.
type download struct {
	*Store
	name   string
	p      []byte // nil: of the whole object, whose size is not known yet
	off    int64
	ranged bool
	done   int // bytes of p
}

// run downloads; n is how many bytes it may be.
func (d *download) run(ctx context.Context, n int64) error {
	for fresh := range 2 {
		version, err := d.version(ctx, d.name)
		if err != nil {
			return err
		}
		err = d.tryMoving(ctx, n, objects.DownloadPace(ctx), func(a *attempt) error { return d.request(a, version) })
		if fresh == 0 && version != "" && errors.Is(err, objects.ErrNotFound) {
			d.versions.Remove(d.name) // that version was deleted: is there another?
			d.done = 0
			continue
		}
		return err
	}
	return nil
}

func (d *download) request(a *attempt, version string) error {
	o := minio.GetObjectOptions{VersionID: version}
	if d.ranged || d.done > 0 {
		if d.done == len(d.p) {
			return nil
		}
		if err := o.SetRange(d.off+int64(d.done), d.off+int64(len(d.p))-1); err != nil {
			return final{err}
		}
	}
	content, info, header, err := d.client.GetObject(a.ctx, d.location.Bucket, d.key(d.name), o)
	if err != nil {
		return err
	}
	defer content.Close()
	if o.Header().Get("Range") != "" {
		if err := d.checkRange(header); err != nil {
			return err
		}
	} else if err := d.allocate(info.Size); err != nil {
		return err
	}
	n, err := a.readAll(content, d.p[d.done:])
	d.done += n
	return err
}

// allocate makes room for the whole object.
func (d *download) allocate(size int64) error {
	if size < 0 {
		return errors.New("the store does not tell the object's size")
	}
	if size > objects.MaxObjectBytes {
		return final{fmt.Errorf("%w: %d bytes", objects.ErrTooLarge, size)}
	}
	if int64(len(d.p)) != size || d.p == nil {
		d.p = make([]byte, size)
	}
	return nil
}

// checkRange refuses an answer that is not the range asked for: ErrShort if the object ends in it.
func (d *download) checkRange(header http.Header) error {
	spec, ok := strings.CutPrefix(header.Get("Content-Range"), "bytes ")
	from, rest, ok2 := strings.Cut(spec, "-")
	_, total, ok3 := strings.Cut(rest, "/")
	begin, err := strconv.ParseInt(from, 10, 64)
	size, err2 := strconv.ParseInt(total, 10, 64)
	if !ok || !ok2 || !ok3 || err != nil || err2 != nil || begin != d.off+int64(d.done) {
		return final{fmt.Errorf("%w: the store answers a range with %q", objects.ErrUnavailable, header.Get("Content-Range"))}
	}
	if size-d.off < int64(len(d.p)) {
		return final{fmt.Errorf("%w: %d bytes at %d, of %d", objects.ErrShort, len(d.p), d.off, size)}
	}
	return nil
}

// maxRead is how many bytes have to come for an answer not to stall.
const maxRead = 64 << 10

// readAll fills p at the attempt's pace and tells how far it came. A body that ends before is an error worth another attempt.
func (a *attempt) readAll(r io.Reader, p []byte) (n int, err error) {
	for n < len(p) {
		piece := min(len(p)-n, a.pace.Piece(), maxRead)
		if err := a.wait(piece); err != nil {
			return n, err
		}
		got, err := io.ReadFull(r, p[n:n+piece])
		n += got
		if err != nil {
			return n, fmt.Errorf("after %d of %d bytes: %w", n, len(p), err)
		}
	}
	// The end is read too, so that the connection serves again.
	_, _ = io.CopyN(io.Discard, r, 1)
	return n, nil
}
