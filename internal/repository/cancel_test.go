package repository

import (
	"context"
	"sync"
	"testing"

	"varve/internal/objects/faulty"
	"varve/internal/repository/chunk"
)

// TestStoreThatIsCancelled: who hands a chunk in and the sequencer may find at the same time that the session is over.
func TestStoreThatIsCancelled(t *testing.T) {
	repo, err := Create(t.Context(), faulty.New(), CreateOptions{ChunkBytes: 64 << 10})
	if err != nil {
		t.Fatal(err)
	}
	for n := range 300 {
		ctx, cancel := context.WithCancel(t.Context())
		s, err := repo.Begin(ctx, SessionOptions{})
		if err != nil {
			t.Fatal(err)
		}
		stored := make(chan int)
		var waited sync.WaitGroup
		go func() {
			many := 0
			for {
				b := s.Buffer()
				(*b)[0], (*b)[1], (*b)[2] = byte(n), byte(many), byte(many>>8)
				p, err := s.Store(ctx, b, repo.ChunkBytes())
				if err != nil {
					break
				}
				waited.Go(func() {
					if id, _, err := p.Wait(context.Background()); err == nil && id == (chunk.ID{}) {
						t.Error("a chunk has no id and no error")
					}
				})
				many++
			}
			stored <- many
		}()
		for range n % 7 {
			s.Release(s.Buffer()) // a little time
		}
		cancel()
		<-stored
		s.Abort()
		waited.Wait()
	}
}
