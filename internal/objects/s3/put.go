package s3

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/minio/minio-go/v7"

	"varve/internal/objects"
)

// Put implements objects.Store.
func (s *Store) Put(ctx context.Context, name string, data [][]byte, o objects.PutOptions) error {
	if err := s.check(ctx, name); err != nil {
		return err
	}
	size, err := objects.Size(data)
	if err == nil && !o.LockUntil.IsZero() {
		err = s.needLocks(ctx)
	}
	if err == nil {
		err = s.put(ctx, name, upload{data: data, size: size, lockUntil: o.LockUntil})
	}
	return s.wrap("put", name, err)
}

// upload is what one Put puts.
type upload struct {
	data      [][]byte
	size      int64
	lockUntil time.Time
}

func (s *Store) put(ctx context.Context, name string, u upload) error {
	sum := sha256.New()
	for _, piece := range u.data {
		sum.Write(piece)
	}
	sum256 := hex.EncodeToString(sum.Sum(nil))
	sumMD5 := ""
	if !u.lockUntil.IsZero() {
		sumMD5 = base64.StdEncoding.EncodeToString(u.md5()) // S3 insists on it with a lock
	}
	tries := 0
	return s.tryMoving(ctx, u.size, objects.UploadPace(ctx), func(a *attempt) error {
		if tries++; tries > 1 {
			if there, err := s.landed(a.ctx, name, u); there || err != nil {
				return err
			}
		}
		o := minio.PutObjectOptions{DisableContentSha256: true} // not piece by piece: the sum is there
		if !u.lockUntil.IsZero() {
			o.Mode, o.RetainUntilDate = minio.Compliance, lockTime(u.lockUntil)
		}
		conditional := !s.unconditional.Load()
		if conditional {
			o.SetMatchETagExcept("*")
		}
		body := &body{attempt: a, data: slices.Clone(u.data)}
		defer body.stop()
		_, err := s.client.PutObject(a.ctx, s.location.Bucket, s.key(name), body, u.size, sumMD5, sum256, o)
		switch {
		case conditional && isCode(err, minio.NotImplemented):
			s.unconditional.Store(true)
			return errUnknownCondition
		case tries > 1 && isCode(err, minio.PreconditionFailed):
			return errLanded
		}
		return err
	})
}

// These have a request made once more.
var (
	errUnknownCondition = errors.New("the store does not know If-None-Match")
	errLanded           = errors.New("the object has come there meanwhile")
)

// landed finds out whether an earlier attempt has put the object, although its answer was lost: ErrExists if it was somebody else.
// The same answer may be lost where a store refuses an object while it is still being sent.
func (s *Store) landed(ctx context.Context, name string, u upload) (ours bool, err error) {
	info, err := s.client.StatObject(ctx, s.location.Bucket, s.key(name), minio.StatObjectOptions{})
	if isCode(err, noKey...) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if info.Size != u.size {
		return false, final{objects.ErrExists}
	}
	if info.ETag == hex.EncodeToString(u.md5()) {
		return true, nil
	}
	p, err := s.get(ctx, name) // the ETag need not be the MD5
	if err != nil {
		return false, final{err}
	}
	if !bytes.Equal(p, bytes.Join(u.data, nil)) {
		return false, final{objects.ErrExists}
	}
	return true, nil
}

func (u upload) md5() []byte {
	sum := md5.New()
	for _, piece := range u.data {
		sum.Write(piece)
	}
	return sum.Sum(nil)
}

// body reads the pieces of an object at a pace.
type body struct {
	attempt *attempt

	mu   sync.Mutex // guards data
	data [][]byte   // what is left
}

func (b *body) Read(p []byte) (int, error) {
	piece := b.next(len(p))
	if piece == 0 {
		return 0, io.EOF
	}
	if err := b.attempt.wait(piece); err != nil {
		return 0, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.data) == 0 {
		return 0, io.ErrClosedPipe
	}
	n := copy(p[:piece], b.data[0])
	b.data[0] = b.data[0][n:]
	return n, nil
}

// next is how many bytes to read next, at most n; 0 at the end.
func (b *body) next(n int) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.data) > 0 && len(b.data[0]) == 0 {
		b.data = b.data[1:]
	}
	if len(b.data) == 0 {
		return 0
	}
	return min(n, len(b.data[0]), b.attempt.pace.Piece())
}

// stop has nothing read any more: the transport may not have noticed yet that the request is over, but the bytes belong to
// the caller again.
func (b *body) stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.data = nil
}

// Exclusive implements objects.Store: it puts an object twice and sees whether the second is refused. The store is asked once.
func (s *Store) Exclusive() bool {
	s.probe.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		name := "probe-" + hex.EncodeToString(randomBytes(16))
		data := [][]byte{[]byte("does this store keep what it has?")}
		first := s.Put(ctx, name, data, objects.PutOptions{})
		second := s.Put(ctx, name, data, objects.PutOptions{})
		s.exclusive = first == nil && errors.Is(second, objects.ErrExists)
		_ = s.Delete(ctx, name) // a few bytes that nobody looks at
	})
	return s.exclusive
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}
