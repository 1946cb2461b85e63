package client

import (
	"encoding/binary"
	"fmt"
	"io"

	"varve/internal/nbd"
)

// Bounds on what a server may send in the transmission phase.
const (
	maxChunks = 1 << 16 // of one reply
	maxStatus = 1 << 20 // runs in one chunk, as the specification advises
)

// receive gives out replies until the connection ends.
func (c *Client) receive() {
	defer close(c.received)
	for {
		if err := c.receiveOne(); err != nil {
			c.fail(err)
			c.completeAll()
			return
		}
	}
}

func (c *Client) receiveOne() error {
	b, err := c.r.Peek(4)
	if err != nil {
		return err
	}
	switch magic := binary.BigEndian.Uint32(b); {
	case magic == nbd.SimpleReplyMagic && !c.info.Extended:
		return c.simpleReply()
	case magic == nbd.StructuredReplyMagic && c.info.Structured && !c.info.Extended:
		return c.chunk(nbd.ChunkSize)
	case magic == nbd.ExtendedReplyMagic && c.info.Extended:
		return c.chunk(nbd.ExtendedChunkSize)
	}
	return fmt.Errorf("%w: reply: %w", ErrProtocol, nbd.ErrBadMagic)
}

// find returns the call that a reply is for.
func (c *Client) find(cookie uint64) (*call, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.calls[cookie]
	if k == nil {
		return nil, fmt.Errorf("%w: reply to no request", ErrProtocol)
	}
	return k, nil
}

func (c *Client) simpleReply() error {
	var b [nbd.SimpleReplySize]byte
	if _, err := io.ReadFull(c.r, b[:]); err != nil {
		return err
	}
	k, err := c.find(binary.BigEndian.Uint64(b[8:]))
	if err != nil {
		return err
	}
	k.errno = nbd.Errno(binary.BigEndian.Uint32(b[4:]))
	isRead := k.req.Cmd == nbd.CmdRead
	if c.info.Structured && (isRead || k.req.Cmd == nbd.CmdBlockStatus && k.errno == 0) {
		return fmt.Errorf("%w: simple reply where a structured one is needed", ErrProtocol)
	}
	if isRead && k.errno == 0 {
		if err := c.data(k, k.req.Offset, k.req.Length); err != nil {
			return err
		}
	}
	c.complete(k)
	return nil
}

// chunk receives one chunk of a structured reply.
func (c *Client) chunk(headerSize int) error {
	var b [nbd.ExtendedChunkSize]byte
	if _, err := io.ReadFull(c.r, b[:headerSize]); err != nil {
		return err
	}
	var h nbd.Chunk
	h.Parse(b[:headerSize], c.info.Extended)
	k, err := c.find(h.Cookie)
	if err != nil {
		return err
	}
	switch isRead := k.req.Cmd == nbd.CmdRead; {
	case h.Type.IsError():
		err = c.errorChunk(k, h.Length)
	case h.Type == nbd.ReplyNone && h.Length == 0 && h.Flags&nbd.ReplyFlagDone != 0:
	case h.Type == nbd.ReplyOffsetData && isRead && h.Length > 8:
		err = c.dataChunk(k, h.Length-8)
	case h.Type == nbd.ReplyOffsetHole && isRead && h.Length == 12:
		err = c.holeChunk(k)
	case k.req.Cmd == nbd.CmdBlockStatus && h.Type == nbd.ReplyBlockStatus && !c.info.Extended:
		err = c.statusChunk(k, h.Length, 4, 8)
	case k.req.Cmd == nbd.CmdBlockStatus && h.Type == nbd.ReplyBlockStatusExt && c.info.Extended:
		err = c.statusChunk(k, h.Length, 8, 16)
	default:
		err = fmt.Errorf("%w: chunk of type %d and %d bytes in reply to command %d", ErrProtocol, h.Type, h.Length, k.req.Cmd)
	}
	if err != nil {
		return err
	}
	if h.Flags&nbd.ReplyFlagDone != 0 {
		c.complete(k)
	}
	return nil
}

func (c *Client) dataChunk(k *call, n uint64) error {
	var b [8]byte
	if _, err := io.ReadFull(c.r, b[:]); err != nil {
		return err
	}
	return c.data(k, binary.BigEndian.Uint64(b[:]), n)
}

func (c *Client) holeChunk(k *call) error {
	var b [12]byte
	if _, err := io.ReadFull(c.r, b[:]); err != nil {
		return err
	}
	off, n := binary.BigEndian.Uint64(b[:]), uint64(binary.BigEndian.Uint32(b[8:]))
	if err := k.take(off, n); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.data != nil {
		clear(k.data[off-k.req.Offset:][:n])
	}
	return nil
}

// take notes that [off, off+n) of a READ comes.
func (k *call) take(off, n uint64) error {
	if n == 0 || off < k.req.Offset || n > k.req.Length || off-k.req.Offset > k.req.Length-n {
		return fmt.Errorf("%w: %d bytes at %d in reply to a read of %d at %d", ErrProtocol, n, off, k.req.Length, k.req.Offset)
	}
	if i := len(k.got) - 1; i >= 0 && k.got[i].to == off {
		k.got[i].to += n
		return nil
	}
	if len(k.got) == maxChunks {
		return fmt.Errorf("%w: reply in too many pieces", ErrProtocol)
	}
	k.got = append(k.got, span{off, off + n})
	return nil
}

// data receives n bytes for off. They pass through the receive buffer, so that a
// caller who gives up waits for nobody.
func (c *Client) data(k *call, off, n uint64) error {
	if err := k.take(off, n); err != nil {
		return err
	}
	for at := off - k.req.Offset; n > 0; {
		if c.r.Buffered() == 0 {
			if _, err := c.r.Peek(1); err != nil {
				return err
			}
		}
		b, err := c.r.Peek(int(min(n, uint64(c.r.Buffered()))))
		if err != nil {
			return err
		}
		k.mu.Lock()
		if k.data != nil {
			copy(k.data[at:], b)
		}
		k.mu.Unlock()
		if _, err := c.r.Discard(len(b)); err != nil {
			return err
		}
		at, n = at+uint64(len(b)), n-uint64(len(b))
	}
	return nil
}

func (c *Client) errorChunk(k *call, n uint64) error {
	if n < 6 || n > 6+8+nbd.MaxString {
		return fmt.Errorf("%w: error chunk of %d bytes", ErrProtocol, n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(c.r, b); err != nil {
		return err
	}
	text := int(binary.BigEndian.Uint16(b[4:]))
	if text > len(b)-6 {
		return fmt.Errorf("%w: error text of %d bytes in %d", ErrProtocol, text, n)
	}
	if k.errno == 0 {
		k.errno = nbd.Errno(binary.BigEndian.Uint32(b))
		k.text = string(b[6 : 6+text])
		if k.errno == 0 {
			k.errno = nbd.EINVAL // an error that calls itself success
		}
	}
	return nil
}

// statusChunk receives a context's answer: prefix bytes, then runs of size bytes.
func (c *Client) statusChunk(k *call, n uint64, prefix, size int) error {
	count := (n - uint64(prefix)) / uint64(size)
	if n < uint64(prefix+size) || (n-uint64(prefix))%uint64(size) != 0 || count > maxStatus || len(k.status) > len(c.contexts) {
		return fmt.Errorf("%w: block status of %d bytes", ErrProtocol, n)
	}
	be := binary.BigEndian
	var b [16]byte
	if _, err := io.ReadFull(c.r, b[:prefix]); err != nil {
		return err
	}
	s := statusChunk{context: be.Uint32(b[:])}
	if prefix == 8 && uint64(be.Uint32(b[4:])) != count {
		return fmt.Errorf("%w: block status of %d runs says %d", ErrProtocol, count, be.Uint32(b[4:]))
	}
	for range count {
		if _, err := io.ReadFull(c.r, b[:size]); err != nil {
			return err
		}
		run := Status{Length: int64(be.Uint32(b[:])), Flags: uint64(be.Uint32(b[4:]))}
		if size == 16 {
			run = Status{Length: int64(be.Uint64(b[:])), Flags: be.Uint64(b[8:])}
		}
		if run.Length <= 0 {
			return fmt.Errorf("%w: block status run of %d bytes", ErrProtocol, run.Length)
		}
		s.runs = append(s.runs, run)
	}
	k.status = append(k.status, s)
	return nil
}
