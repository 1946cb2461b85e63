package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"varve/internal/nbd"
)

// call is a request under way.
type call struct {
	req  nbd.Request
	done chan struct{} // closed when the answer is complete

	// The receiving goroutine fills these; they may be read once done is closed.
	errno   nbd.Errno // of the first error, 0 if none
	text    string
	failure error // why there is no answer
	status  []statusChunk
	got     []span // parts of data that have come

	mu   sync.Mutex // guards data against a caller that has given up
	data []byte     // of a READ; nil when abandoned
}

type span struct{ from, to uint64 }

// statusChunk is one context's answer to BLOCK_STATUS.
type statusChunk struct {
	context uint32
	runs    []Status
}

// abandon makes sure that the caller's memory is not touched any more.
func (k *call) abandon() {
	k.mu.Lock()
	k.data = nil
	k.mu.Unlock()
}

// result is the outcome of a call that is done.
func (k *call) result() error {
	cause := k.failure
	if cause == nil && k.errno != 0 {
		cause = k.errno
	}
	if cause == nil {
		return nil
	}
	return &RequestError{Cmd: k.req.Cmd, Offset: int64(k.req.Offset), Length: int64(k.req.Length), Cause: cause, Text: k.text}
}

// do performs a call without payload and waits for its answer.
func (c *Client) do(ctx context.Context, k *call) error {
	if err := c.start(ctx, k, nil, false); err != nil {
		return err
	}
	return c.wait(ctx, k)
}

// start sends a request; payload is not needed any more when it returns. With more
// set, the request may stay in the send buffer until a start without it, or wait.
func (c *Client) start(ctx context.Context, k *call, payload []byte, more bool) error {
	k.done = make(chan struct{})
	if err := c.takeSlot(ctx); err != nil {
		return k.failed(err)
	}
	if err := c.lockSending(ctx); err != nil {
		<-c.slots
		return k.failed(err)
	}
	defer func() { <-c.sending }()
	c.mu.Lock()
	if err := c.err; err != nil {
		c.mu.Unlock()
		<-c.slots
		return k.failed(err)
	}
	c.cookie++
	k.req.Cookie = c.cookie
	c.calls[k.req.Cookie] = k
	c.mu.Unlock()

	err := c.interruptible(ctx, func() error {
		if err := c.put(k, payload); err != nil || more {
			return err
		}
		return c.w.Flush()
	})
	if err != nil {
		// Part of a message may be out: nothing can follow it.
		c.fail(err)
		<-k.done // with the reason why the connection is gone
		if ctx.Err() != nil {
			return k.failed(ctx.Err())
		}
		return k.result()
	}
	return nil
}

func (k *call) failed(err error) error {
	k.failure = err
	return k.result()
}

// takeSlot waits for less than maxInFlight requests under way.
func (c *Client) takeSlot(ctx context.Context) error {
	select {
	case c.slots <- struct{}{}:
		return ctx.Err()
	default:
	}
	// What is in the send buffer would wait for us, and we for its answers.
	if err := c.flush(ctx); err != nil {
		return err
	}
	select {
	case c.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *Client) lockSending(ctx context.Context) error {
	select {
	case c.sending <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// flush sends what is in the send buffer.
func (c *Client) flush(ctx context.Context) error {
	if err := c.lockSending(ctx); err != nil {
		return err
	}
	defer func() { <-c.sending }()
	err := c.interruptible(ctx, c.w.Flush)
	if err != nil {
		c.fail(err)
	}
	return err
}

// put writes a message to the send buffer.
func (c *Client) put(k *call, payload []byte) error {
	var head [nbd.ExtendedRequestSize]byte
	n := nbd.RequestSize
	if c.info.Extended {
		n = nbd.ExtendedRequestSize
		if k.req.Cmd == nbd.CmdWrite {
			k.req.Flags |= nbd.CmdFlagPayloadLen
		}
	}
	k.req.Put(head[:n], c.info.Extended)
	if _, err := c.w.Write(head[:n]); err != nil {
		return err
	}
	_, err := c.w.Write(payload)
	return err
}

// interruptible runs f, which writes to the connection; the end of ctx makes it fail.
func (c *Client) interruptible(ctx context.Context, f func() error) error {
	if ctx.Done() == nil {
		return f()
	}
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = c.conn.SetWriteDeadline(time.Unix(1, 0))
		close(interrupted)
	})
	err := f()
	if !stop() {
		<-interrupted
		if err == nil {
			// It was sent in time; those that follow may have more.
			_ = c.conn.SetWriteDeadline(time.Time{})
		}
	}
	return err
}

// wait returns the outcome of a started call. When ctx ends first, the answer is
// not waited for.
func (c *Client) wait(ctx context.Context, k *call) error {
	select {
	case <-k.done:
		return k.result()
	default:
	}
	select {
	case <-k.done:
		return k.result()
	case <-ctx.Done():
		k.abandon()
		return &RequestError{Cmd: k.req.Cmd, Offset: int64(k.req.Offset), Length: int64(k.req.Length), Cause: ctx.Err()}
	}
}

// waitAll waits for all calls and returns the first error, failed being the first
// of all. After a failure to start, the rest of the send buffer goes out first.
func (c *Client) waitAll(ctx context.Context, calls []*call, failed error) error {
	if failed != nil && len(calls) > 0 {
		failed = errors.Join(failed, c.flush(ctx))
	}
	for _, k := range calls {
		if err := c.wait(ctx, k); failed == nil {
			failed = err
		}
	}
	return failed
}

// fail ends the connection for all, unless it has ended already; the receiving
// goroutine then wakes the callers.
func (c *Client) fail(reason error) {
	c.mu.Lock()
	if c.err == nil {
		c.err = fmt.Errorf("%s: %w: %w", c.uri, ErrDisconnected, reason)
	}
	c.mu.Unlock()
	_ = c.conn.Close()
}

// completeAll fails all calls that are under way, after fail.
func (c *Client) completeAll() {
	c.mu.Lock()
	calls := c.calls
	c.calls = nil
	c.mu.Unlock()
	for _, k := range calls {
		k.failure = c.err
		close(k.done)
		<-c.slots
	}
}

// complete takes a call out of those under way and wakes its caller.
func (c *Client) complete(k *call) {
	c.mu.Lock()
	delete(c.calls, k.req.Cookie)
	c.mu.Unlock()
	if k.req.Cmd == nbd.CmdRead && k.errno == 0 && !k.covered() {
		k.failure = fmt.Errorf("%w: reply with gaps or overlaps", ErrProtocol)
	}
	close(k.done)
	<-c.slots
}

// covered tells whether each byte of a READ has come exactly once.
func (k *call) covered() bool {
	slices.SortFunc(k.got, func(a, b span) int {
		if a.from < b.from {
			return -1
		}
		return 1
	})
	at := k.req.Offset
	for _, s := range k.got {
		if s.from != at {
			return false
		}
		at = s.to
	}
	return at == k.req.Offset+k.req.Length
}
