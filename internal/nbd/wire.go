package nbd

import (
	"encoding/binary"
	"errors"
	"strings"
	"unicode/utf8"
)

// Lengths of headers in bytes.
const (
	RequestSize         = 28
	ExtendedRequestSize = 32
	SimpleReplySize     = 16
	ChunkSize           = 20 // header of a structured reply chunk
	ExtendedChunkSize   = 32
)

// ErrBadMagic means that the stream does not hold a message where one should
// begin; the connection cannot go on.
var ErrBadMagic = errors.New("bad magic number")

// Request is the header of a request in either form.
type Request struct {
	Flags  CommandFlags
	Cmd    Command
	Cookie uint64
	Offset uint64 // bytes
	Length uint64 // bytes; in the compact form at most 2^32-1
}

// Put encodes r into b, which is as long as the form's header.
func (r *Request) Put(b []byte, extended bool) {
	be := binary.BigEndian
	be.PutUint16(b[4:], uint16(r.Flags))
	be.PutUint16(b[6:], uint16(r.Cmd))
	be.PutUint64(b[8:], r.Cookie)
	be.PutUint64(b[16:], r.Offset)
	if extended {
		be.PutUint32(b, ExtendedRequestMagic)
		be.PutUint64(b[24:], r.Length)
	} else {
		be.PutUint32(b, RequestMagic)
		be.PutUint32(b[24:], uint32(r.Length))
	}
}

// Parse decodes the header at the beginning of b, which is long enough.
func (r *Request) Parse(b []byte, extended bool) error {
	be := binary.BigEndian
	want := uint32(RequestMagic)
	if extended {
		want = ExtendedRequestMagic
	}
	if be.Uint32(b) != want {
		return ErrBadMagic
	}
	r.Flags = CommandFlags(be.Uint16(b[4:]))
	r.Cmd = Command(be.Uint16(b[6:]))
	r.Cookie = be.Uint64(b[8:])
	r.Offset = be.Uint64(b[16:])
	if extended {
		r.Length = be.Uint64(b[24:])
	} else {
		r.Length = uint64(be.Uint32(b[24:]))
	}
	return nil
}

// Chunk is the header of a chunk of a structured reply in either form.
type Chunk struct {
	Flags  uint16
	Type   ReplyType
	Cookie uint64
	Offset uint64 // of the request; extended form only
	Length uint64 // of the payload that follows, bytes
}

// Put encodes c into b, which is as long as the form's header.
func (c *Chunk) Put(b []byte, extended bool) {
	be := binary.BigEndian
	be.PutUint16(b[4:], c.Flags)
	be.PutUint16(b[6:], uint16(c.Type))
	be.PutUint64(b[8:], c.Cookie)
	if extended {
		be.PutUint32(b, ExtendedReplyMagic)
		be.PutUint64(b[16:], c.Offset)
		be.PutUint64(b[24:], c.Length)
	} else {
		be.PutUint32(b, StructuredReplyMagic)
		be.PutUint32(b[16:], uint32(c.Length))
	}
}

// Parse decodes the header at the beginning of b, which is long enough and
// whose magic number was seen to fit the form.
func (c *Chunk) Parse(b []byte, extended bool) {
	be := binary.BigEndian
	c.Flags = be.Uint16(b[4:])
	c.Type = ReplyType(be.Uint16(b[6:]))
	c.Cookie = be.Uint64(b[8:])
	if extended {
		c.Offset = be.Uint64(b[16:])
		c.Length = be.Uint64(b[24:])
	} else {
		c.Length = uint64(be.Uint32(b[16:]))
	}
}

// PutSimpleReply encodes a simple reply's header into b.
func PutSimpleReply(b []byte, errno Errno, cookie uint64) {
	be := binary.BigEndian
	be.PutUint32(b, SimpleReplyMagic)
	be.PutUint32(b[4:], uint32(errno))
	be.PutUint64(b[8:], cookie)
}

// ValidString tells whether s may travel as a string: at most MaxString bytes of
// UTF-8 without NUL.
func ValidString(s string) bool {
	return len(s) <= MaxString && utf8.ValidString(s) && strings.IndexByte(s, 0) < 0
}
