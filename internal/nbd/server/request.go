package server

import (
	"context"
	"errors"

	"varve/internal/block"
	"varve/internal/nbd"
)

// maxSkipped is the longest payload of a refused request that is read and thrown
// away, in bytes; a client that announces more is dropped.
const maxSkipped = 2 * nbd.MaxPayload

// allowedFlags says which flags a command may carry (section "Command flags");
// FUA may come with any.
var allowedFlags = [...]nbd.CommandFlags{
	nbd.CmdRead:        nbd.CmdFlagFUA | nbd.CmdFlagDF,
	nbd.CmdWrite:       nbd.CmdFlagFUA,
	nbd.CmdDisc:        nbd.CmdFlagFUA,
	nbd.CmdFlush:       nbd.CmdFlagFUA,
	nbd.CmdTrim:        nbd.CmdFlagFUA,
	nbd.CmdCache:       nbd.CmdFlagFUA,
	nbd.CmdWriteZeroes: nbd.CmdFlagFUA | nbd.CmdFlagNoHole | nbd.CmdFlagFastZero,
	nbd.CmdBlockStatus: nbd.CmdFlagFUA | nbd.CmdFlagReqOne,
}

// refusal is why a request is answered without asking the device.
type refusal struct {
	errno nbd.Errno
	text  string
}

// check returns nil if the device may be asked (section "Error values").
func (t *transmission) check(req *nbd.Request) *refusal {
	if int(req.Cmd) >= len(allowedFlags) {
		return &refusal{nbd.EINVAL, "unknown command"}
	}
	allowed := allowedFlags[req.Cmd]
	if !t.structured {
		allowed &^= nbd.CmdFlagDF
	}
	if t.extended && req.Cmd == nbd.CmdWrite {
		if req.Flags&nbd.CmdFlagPayloadLen == 0 {
			return &refusal{nbd.EINVAL, "write without payload"}
		}
		allowed |= nbd.CmdFlagPayloadLen
	}
	if req.Flags&^allowed != 0 {
		return &refusal{nbd.EINVAL, "flag is not valid for this command"}
	}

	beyond := nbd.EINVAL
	switch req.Cmd {
	case nbd.CmdFlush:
		if req.Offset != 0 || req.Length != 0 {
			return &refusal{nbd.EINVAL, "flush takes no range"}
		}
		return nil
	case nbd.CmdRead:
		if req.Length > nbd.MaxPayload {
			if t.structured {
				return &refusal{nbd.EOVERFLOW, "read is longer than the maximum payload"}
			}
			return &refusal{nbd.EINVAL, "read is longer than the maximum payload"}
		}
	case nbd.CmdWrite, nbd.CmdWriteZeroes:
		beyond = nbd.ENOSPC
		fallthrough
	case nbd.CmdTrim:
		if t.readOnly {
			return &refusal{nbd.EPERM, "export is read-only"}
		}
		if req.Cmd == nbd.CmdWrite && req.Length > nbd.MaxPayload {
			return &refusal{nbd.EINVAL, "write is longer than the maximum payload"}
		}
	case nbd.CmdBlockStatus:
		if len(t.contexts) == 0 {
			return &refusal{nbd.EINVAL, "no meta context was selected"}
		}
		if req.Length == 0 {
			return &refusal{nbd.EINVAL, "block status of nothing"}
		}
	}
	size := uint64(t.device.SizeBytes())
	if req.Offset > size || req.Length > size-req.Offset {
		return &refusal{beyond, "beyond the end of the export"}
	}
	const fastNoHole = nbd.CmdFlagNoHole | nbd.CmdFlagFastZero
	if req.Cmd == nbd.CmdWriteZeroes && req.Flags&fastNoHole == fastNoHole {
		return &refusal{nbd.ENOTSUP, "allocated zeros are not fast"}
	}
	return nil
}

// payloadLength is how many bytes follow the header of req.
func (t *transmission) payloadLength(req *nbd.Request) uint64 {
	if t.extended && req.Flags&nbd.CmdFlagPayloadLen != 0 || !t.extended && req.Cmd == nbd.CmdWrite {
		return req.Length
	}
	return 0
}

// opKind is what a write-type request does to the device.
func opKind(req *nbd.Request) block.OpKind {
	switch {
	case req.Cmd == nbd.CmdTrim:
		return block.OpDiscard
	case req.Cmd == nbd.CmdWrite:
		return block.OpWrite
	case req.Flags&nbd.CmdFlagNoHole != 0:
		return block.OpZeroAllocated
	}
	return block.OpZero
}

// deviceErrors says how a device's errors are reported; what is not listed is EIO.
var deviceErrors = []struct {
	err   error
	errno nbd.Errno
}{
	{block.ErrNoSpace, nbd.ENOSPC},
	{block.ErrReadOnly, nbd.EPERM},
	{block.ErrDamaged, nbd.EIO},
	{block.ErrClosed, nbd.ESHUTDOWN},
	{context.Canceled, nbd.ESHUTDOWN},
}

// deviceRefusal is the answer to a request that failed in the device. Its text
// names the kind of failure only: details are for the operator's log, not for
// whoever may connect.
func deviceRefusal(req *nbd.Request, err error) refusal {
	if errors.Is(err, block.ErrOutOfRange) {
		// The device has shrunk since check.
		if req.Cmd == nbd.CmdWrite || req.Cmd == nbd.CmdWriteZeroes {
			return refusal{nbd.ENOSPC, "beyond the end of the export"}
		}
		return refusal{nbd.EINVAL, "beyond the end of the export"}
	}
	for _, d := range deviceErrors {
		if errors.Is(err, d.err) {
			return refusal{d.errno, d.err.Error()}
		}
	}
	return refusal{nbd.EIO, nbd.EIO.Error()}
}
