package objects

import (
	"context"
	"time"

	"golang.org/x/time/rate"
)

// MinRate is the lowest limit of bandwidth, in bytes a second; what is asked below it is raised to it.
const MinRate = 4096

// Limited is st with at most so many bytes a second put into it and read from it; 0: no limit. Limits of wrappers
// around wrappers hold together. One Limited may serve many at once, who then share it.
//
// A store moves its bytes in small pieces, see Pace: a limit is kept to at every moment, not on the average of objects.
func Limited(st Store, uploadBytes, downloadBytes int64) Store {
	return &limited{Store: st, up: newLimiter(uploadBytes), down: newLimiter(downloadBytes)}
}

type limited struct {
	Store
	up, down *rate.Limiter // nil: no limit
}

// newLimiter lets a quarter of a second's bytes through at once, within bounds that keep the overhead low and waits short.
func newLimiter(bytesPerSecond int64) *rate.Limiter {
	if bytesPerSecond <= 0 {
		return nil
	}
	bytesPerSecond = max(bytesPerSecond, MinRate)
	burst := min(max(bytesPerSecond/4, MinRate), maxPiece)
	return rate.NewLimiter(rate.Limit(bytesPerSecond), int(burst))
}

func (l *limited) Put(ctx context.Context, name string, data [][]byte, o PutOptions) error {
	return l.Store.Put(withPace(ctx, uploads, l.up), name, data, o)
}

func (l *limited) Read(ctx context.Context, name string, p []byte, off int64) error {
	return l.Store.Read(withPace(ctx, downloads, l.down), name, p, off)
}

func (l *limited) Get(ctx context.Context, name string) ([]byte, error) {
	return l.Store.Get(withPace(ctx, downloads, l.down), name)
}

// maxPiece is how many bytes a store moves between two looks at its context, at most.
const maxPiece = 1 << 20

// direction is also the key under which a context holds its Pace.
type direction int

const (
	uploads direction = iota
	downloads
)

// Pace is how fast a store may move bytes: before each piece of at most Piece bytes it calls Wait. The zero Pace has no limit.
type Pace struct{ limiters []*rate.Limiter }

// UploadPace is what a Put with this context keeps to.
func UploadPace(ctx context.Context) Pace { return paceOf(ctx, uploads) }

// DownloadPace is what a Read or Get with this context keeps to.
func DownloadPace(ctx context.Context) Pace { return paceOf(ctx, downloads) }

func paceOf(ctx context.Context, d direction) Pace {
	p, _ := ctx.Value(d).(Pace)
	return p
}

func withPace(ctx context.Context, d direction, l *rate.Limiter) context.Context {
	if l == nil {
		return ctx
	}
	outer := paceOf(ctx, d).limiters
	return context.WithValue(ctx, d, Pace{append(outer[:len(outer):len(outer)], l)})
}

// Piece is how many bytes may be moved after one Wait, at most.
func (p Pace) Piece() int {
	piece := maxPiece
	for _, l := range p.limiters {
		piece = min(piece, l.Burst())
	}
	return piece
}

// Wait returns when n bytes, at most Piece, may be moved, or with the context's error.
func (p Pace) Wait(ctx context.Context, n int) error {
	for _, l := range p.limiters {
		if err := l.WaitN(ctx, n); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return context.DeadlineExceeded // the limiter foresees it
		}
	}
	return ctx.Err()
}

// Least is how long n bytes take at this pace if nobody else moves any, at least.
func (p Pace) Least(n int64) time.Duration {
	var least time.Duration
	for _, l := range p.limiters {
		least = max(least, time.Duration(float64(n)/float64(l.Limit())*float64(time.Second)))
	}
	return least
}
