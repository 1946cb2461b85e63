package server

import (
	"encoding/binary"

	"varve/internal/nbd"
)

// maxReply is the longest reply without data, in bytes: an error with its text.
const maxReply = nbd.ExtendedChunkSize + 6 + maxErrorText

const maxErrorText = 200

// A replyForm encodes replies as was agreed on in the handshake.
type replyForm struct {
	structured, extended bool
}

func (f replyForm) chunkSize() int {
	if f.extended {
		return nbd.ExtendedChunkSize
	}
	return nbd.ChunkSize
}

// dataHeader is how many bytes precede the data in the reply to a READ.
func (f replyForm) dataHeader() int {
	if f.structured {
		return f.chunkSize() + 8
	}
	return nbd.SimpleReplySize
}

// holeChunk is the length of a chunk that tells of a hole.
func (f replyForm) holeChunk() int { return f.chunkSize() + 12 }

func (f replyForm) putChunk(b []byte, req *nbd.Request, typ nbd.ReplyType, payload int, last bool) {
	c := nbd.Chunk{Type: typ, Cookie: req.Cookie, Offset: req.Offset, Length: uint64(payload)}
	if last {
		c.Flags = nbd.ReplyFlagDone
	}
	c.Put(b, f.extended)
}

// putData encodes the header of n bytes of data read at off into b, which is as
// long as dataHeader.
func (f replyForm) putData(b []byte, req *nbd.Request, off int64, n int, last bool) {
	if !f.structured {
		nbd.PutSimpleReply(b, 0, req.Cookie)
		return
	}
	f.putChunk(b, req, nbd.ReplyOffsetData, 8+n, last)
	binary.BigEndian.PutUint64(b[f.chunkSize():], uint64(off))
}

// putHole encodes a chunk that tells of n zeros at off into b, which is as long
// as holeChunk.
func (f replyForm) putHole(b []byte, req *nbd.Request, off int64, n int, last bool) {
	f.putChunk(b, req, nbd.ReplyOffsetHole, 12, last)
	binary.BigEndian.PutUint64(b[f.chunkSize():], uint64(off))
	binary.BigEndian.PutUint32(b[f.chunkSize()+8:], uint32(n))
}

// appendDone appends the reply of success without data.
func (f replyForm) appendDone(out *buffer, req *nbd.Request) {
	if f.extended || f.structured && req.Cmd == nbd.CmdRead {
		f.putChunk(out.extend(f.chunkSize()), req, nbd.ReplyNone, 0, true)
		return
	}
	nbd.PutSimpleReply(out.extend(nbd.SimpleReplySize), 0, req.Cookie)
}

// appendError appends the reply of failure.
func (f replyForm) appendError(out *buffer, req *nbd.Request, r refusal) {
	if !f.structured {
		nbd.PutSimpleReply(out.extend(nbd.SimpleReplySize), r.errno, req.Cookie)
		return
	}
	text := r.text[:min(len(r.text), maxErrorText)]
	n := f.chunkSize()
	b := out.extend(n + 6 + len(text))
	f.putChunk(b, req, nbd.ReplyError, 6+len(text), true)
	binary.BigEndian.PutUint32(b[n:], uint32(r.errno))
	binary.BigEndian.PutUint16(b[n+4:], uint16(len(text)))
	copy(b[n+6:], text)
}
