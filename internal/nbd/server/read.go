package server

import (
	"errors"

	"varve/internal/block"
	"varve/internal/block/zeros"
	"varve/internal/nbd"
)

var errNoStatus = errors.New("the device describes no extent")

// performRead answers a READ at once if its data is in memory and not long;
// else a worker does.
func (t *transmission) performRead(req *nbd.Request) {
	n := int(req.Length)
	if n == 0 {
		t.appendDone(t.room(maxReply), req)
		return
	}
	if n <= inlineRead && t.resident != nil {
		head := t.dataHeader()
		out := t.room(max(head+n, maxReply))
		start := len(out.data)
		b := out.extend(head + n)
		done, err := t.resident.TryReadAt(b[head:], int64(req.Offset))
		switch {
		case !done:
			out.data = out.data[:start]
		case err != nil:
			out.data = out.data[:start]
			t.refuse(req, t.deviceFailed(req, err))
			return
		default:
			out.data = out.data[:start+t.finishRead(b, req)]
			return
		}
	}
	t.dispatch(job{kind: jobRead, request: *req, reply: t.newBuffer(max(t.dataHeader()+n, maxReply))})
}

// finishRead puts the header before the data that was read to b[dataHeader:] and
// returns the reply's length: zeros need no data.
func (t *transmission) finishRead(b []byte, req *nbd.Request) int {
	head := t.dataHeader()
	data := b[head:]
	if t.structured && req.Flags&nbd.CmdFlagDF == 0 && len(data) > 12 && zeros.All(data) {
		t.putHole(b, req, int64(req.Offset), len(data), true)
		return t.holeChunk()
	}
	t.putData(b, req, int64(req.Offset), len(data), true)
	return len(b)
}

// readInto reads what req asks for and puts the reply into out, which is empty.
func (t *transmission) readInto(out *buffer, req *nbd.Request) error {
	off, n := int64(req.Offset), int(req.Length)
	if !t.structured || req.Flags&nbd.CmdFlagDF != 0 || n <= inlineRead {
		b := out.extend(t.dataHeader() + n)
		if err := t.device.ReadAt(t.ctx, b[t.dataHeader():], off); err != nil {
			return err
		}
		out.data = out.data[:t.finishRead(b, req)]
		return nil
	}

	// Holes are not read. What is written meanwhile has not been answered, or it was
	// asked for after this; either way the older content is a right answer.
	runs, err := t.readRuns(off, int64(n))
	if err != nil {
		return err
	}
	for i, r := range runs {
		last := i == len(runs)-1
		if r.Zero {
			t.putHole(out.extend(t.holeChunk()), req, r.Offset, int(r.Length), last)
			continue
		}
		head := t.dataHeader()
		b := out.extend(head + int(r.Length))
		if err := t.device.ReadAt(t.ctx, b[head:], r.Offset); err != nil {
			return err
		}
		t.putData(b, req, r.Offset, int(r.Length), last)
	}
	return nil
}

// readRuns cuts a range into at most maxReadRuns+1 alternating runs of data and of zeros.
func (t *transmission) readRuns(off, length int64) ([]block.Extent, error) {
	extents, err := t.device.Extents(t.ctx, off, length, maxReadRuns)
	if err != nil {
		return nil, err
	}
	runs, end := extents[:0], off
	for _, e := range extents {
		end = e.Offset + e.Length
		if k := len(runs) - 1; k >= 0 && runs[k].Zero == e.Zero {
			runs[k].Length += e.Length
		} else {
			runs = append(runs, e)
		}
	}
	if end < off+length {
		runs = append(runs, block.Extent{Offset: end, Length: off + length - end})
	}
	return runs, nil
}
