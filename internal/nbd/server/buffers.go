package server

import (
	"math/bits"
	"sync"
)

// Bounds of a connection's memory, in bytes.
const (
	// inputBytes is what one read of the socket can bring.
	inputBytes = 256 << 10
	// inlinePayload is the longest payload of a WRITE that is used where it lies in
	// the input buffer; longer ones are read into a buffer of their own.
	inlinePayload = 64 << 10
	// outputBytes is how much of replies is gathered before it is sent.
	outputBytes = 256 << 10
	// budgetBytes bounds all payloads and replies of a connection that are under
	// way; two of the longest requests fit.
	budgetBytes = 2*maxBuffer + 4*outputBytes
	// headroom is what a buffer has beyond its nominal size, for the headers of a
	// reply of up to maxReadRuns chunks.
	headroom = 4096

	minBuffer = 4096
	maxBuffer = 32<<20 + headroom
)

// buffer is pooled memory for a payload or for replies.
type buffer struct {
	data  []byte // length: what is used of it
	class int
}

// bufferPools holds buffers of minBuffer<<i bytes and headroom.
var bufferPools [14]sync.Pool

// newBuffer returns an empty buffer with room for n bytes, at most maxBuffer.
func newBuffer(n int) *buffer {
	class := bufferClass(n)
	if b, ok := bufferPools[class].Get().(*buffer); ok {
		b.data = b.data[:0]
		return b
	}
	return &buffer{data: make([]byte, 0, bufferCap(class)), class: class}
}

func (b *buffer) recycle() { bufferPools[b.class].Put(b) }

// room is how many bytes b can still take.
func (b *buffer) room() int { return cap(b.data) - len(b.data) }

// extend lengthens b by n bytes, of any content, and returns them.
func (b *buffer) extend(n int) []byte {
	old := len(b.data)
	b.data = b.data[:old+n]
	return b.data[old:]
}

func bufferCap(class int) int { return minBuffer<<class + headroom }

func bufferClass(n int) int {
	if n <= bufferCap(0) {
		return 0
	}
	return bits.Len(uint(n-headroom-1) / minBuffer)
}

// budget bounds the buffers of a connection. Only the connection's reading
// goroutine acquires, so that it alone waits.
type budget struct {
	mu   sync.Mutex
	free int // bytes
	room sync.Cond
}

func newBudget(size int) *budget {
	b := &budget{free: size}
	b.room.L = &b.mu
	return b
}

// tryAcquire takes n bytes if they are free.
func (b *budget) tryAcquire(n int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.free < n {
		return false
	}
	b.free -= n
	return true
}

// acquire waits until n bytes are free and takes them.
func (b *budget) acquire(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.free < n {
		b.room.Wait()
	}
	b.free -= n
}

func (b *budget) release(n int) {
	b.mu.Lock()
	b.free += n
	b.mu.Unlock()
	b.room.Signal()
}
