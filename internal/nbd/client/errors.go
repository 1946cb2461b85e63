package client

import (
	"fmt"

	"varve/internal/block"
	"varve/internal/nbd"
)

// RequestError tells which request failed and why. With errors.Is it equals its
// cause, and the error of package block that a nbd.Errno stands for.
type RequestError struct {
	Cmd            nbd.Command
	Offset, Length int64 // bytes
	Cause          error // a nbd.Errno if the server answered
	Text           string
}

func (e *RequestError) Error() string {
	s := fmt.Sprintf("nbd: %v %d+%d: %v", e.Cmd, e.Offset, e.Length, e.Cause)
	if e.Text != "" {
		s += fmt.Sprintf(" (server: %q)", e.Text)
	}
	return s
}

// Unwrap returns the cause.
func (e *RequestError) Unwrap() error { return e.Cause }

// Is tells whether the server's answer means the same as target.
func (e *RequestError) Is(target error) bool {
	switch e.Cause {
	case nbd.ENOSPC:
		return target == block.ErrNoSpace
	case nbd.EPERM:
		return target == block.ErrReadOnly
	case nbd.ESHUTDOWN:
		return target == block.ErrClosed
	}
	return false
}
