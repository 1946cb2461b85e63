package client

import (
	"context"
	"errors"
	"fmt"

	"varve/internal/block"
	"varve/internal/nbd"
)

// zeros is what is written where the server cannot zero.
var zeros [1 << 20]byte

var errLength = errors.New("length differs from the data's")

// Submit implements block.Device. The ops are under way together, but an op waits for
// those before it that it overlaps.
func (c *Client) Submit(ctx context.Context, ops []*block.Op) {
	c.edges.RLock()
	defer c.edges.RUnlock()
	b := batch{c: c, ctx: ctx}
	for i, op := range ops {
		op.Err = c.checkOp(op)
		if op.Err == nil {
			b.submit(op, i < len(ops)-1)
		}
	}
	b.settle()
}

func (c *Client) checkOp(op *block.Op) error {
	fail := func(err error) error {
		return &RequestError{Cmd: commandOf(op), Offset: op.Offset, Length: op.Length, Cause: err}
	}
	if op.Kind == block.OpWrite && op.Length != int64(len(op.Data)) {
		return fail(errLength)
	}
	if err := block.CheckRange(op.Offset, op.Length, c.info.SizeBytes); err != nil {
		return fail(err)
	}
	if c.info.Flags&nbd.FlagReadOnly != 0 {
		return fail(block.ErrReadOnly)
	}
	return nil
}

func commandOf(op *block.Op) nbd.Command {
	if op.Kind == block.OpWrite {
		return nbd.CmdWrite
	}
	return nbd.CmdWriteZeroes
}

// batch is a Submit under way.
type batch struct {
	c     *Client
	ctx   context.Context
	sent  []sentOp
	spans []span // of sent
}

type sentOp struct {
	op   *block.Op
	call *call
}

// submit sends the requests that op takes.
func (b *batch) submit(op *block.Op, more bool) {
	from, to := op.Offset, op.Offset+op.Length
	if op.Kind == block.OpDiscard {
		// TRIM promises no zeros, so whole blocks are zeroed, which may unmap them.
		from = (from + block.Size - 1) / block.Size * block.Size
		if to != b.c.info.SizeBytes {
			to = to / block.Size * block.Size
		}
	}
	if from >= to {
		return
	}
	whole := span{uint64(from), uint64(to)}
	for _, s := range b.spans {
		if s.from < whole.to && whole.from < s.to {
			b.settle()
			break
		}
	}
	if head, tail := b.c.misaligned(from, to-from); head > 0 || tail > 0 {
		b.settle()
		b.c.edges.RUnlock()
		op.Err = b.c.changeEdges(b.ctx, op, from, to)
		b.c.edges.RLock()
		return
	}
	b.spans = append(b.spans, whole)
	// Requests of long ops bound what is remembered.
	if len(b.spans) > maxInFlight {
		b.settle()
		b.spans = append(b.spans, whole)
	}
	b.send(op, from, to, more)
}

// send cuts [from, to) of op into requests and starts them.
func (b *batch) send(op *block.Op, from, to int64, more bool) {
	c := b.c
	flags := nbd.CommandFlags(0)
	if op.Kind == block.OpZeroAllocated {
		flags = nbd.CmdFlagNoHole
	}
	canZero := c.info.Flags&nbd.FlagSendWriteZeroes != 0
	for from < to && op.Err == nil {
		var k *call
		var payload []byte
		n := to - from
		switch {
		case op.Kind == block.OpWrite:
			n = min(n, c.info.MaxPayload)
			payload = op.Data[from-op.Offset:][:n]
			k = &call{req: nbd.Request{Cmd: nbd.CmdWrite}}
		case canZero:
			n = min(n, c.maxEffect())
			k = &call{req: nbd.Request{Cmd: nbd.CmdWriteZeroes, Flags: flags}}
		default:
			n = min(n, c.info.MaxPayload, int64(len(zeros)))
			payload = zeros[:n]
			k = &call{req: nbd.Request{Cmd: nbd.CmdWrite}}
		}
		k.req.Offset, k.req.Length = uint64(from), uint64(n)
		if op.Err = c.start(b.ctx, k, payload, more || from+n < to); op.Err == nil {
			b.sent = append(b.sent, sentOp{op, k})
		}
		from += n
	}
}

// settle waits for all that was sent.
func (b *batch) settle() {
	if len(b.sent) > 0 {
		// An error shows in the calls.
		_ = b.c.flush(b.ctx)
	}
	for _, s := range b.sent {
		if err := b.c.wait(b.ctx, s.call); s.op.Err == nil {
			s.op.Err = err
		}
	}
	b.sent, b.spans = b.sent[:0], b.spans[:0]
}

// changeEdges performs an op that covers minimum blocks in part: these are read and
// written back, with no other op of this client in between.
func (c *Client) changeEdges(ctx context.Context, op *block.Op, from, to int64) error {
	c.edges.Lock()
	defer c.edges.Unlock()
	m := c.info.MinBlock
	for from < to {
		n := min(to-from, m-from%m)
		if from%m == 0 && to-from >= m {
			n = (to - from) / m * m
		}
		part := &block.Op{Kind: op.Kind, Offset: from, Length: n}
		if op.Kind == block.OpWrite {
			part.Data = op.Data[from-op.Offset:][:n]
		}
		head, tail := c.misaligned(from, n)
		if head > 0 || tail > 0 {
			content := make([]byte, head+n+tail)
			if err := c.read(ctx, content, from-head); err != nil {
				return fmt.Errorf("part of a block: %w", err)
			}
			clear(content[head : head+n])
			copy(content[head:], part.Data)
			part = &block.Op{Kind: block.OpWrite, Offset: from - head, Length: int64(len(content)), Data: content}
		}
		b := batch{c: c, ctx: ctx}
		b.send(part, part.Offset, part.Offset+part.Length, false)
		b.settle()
		if part.Err != nil {
			return part.Err
		}
		from += n
	}
	return nil
}
