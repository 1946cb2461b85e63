package nbd

import "fmt"

// Errno is the error value of a reply (section "Error values"). As an error it
// is what a client's request failed with.
type Errno uint32

// Error values.
const (
	EPERM     Errno = 1
	EIO       Errno = 5
	ENOMEM    Errno = 12
	EINVAL    Errno = 22
	ENOSPC    Errno = 28
	EOVERFLOW Errno = 75
	ENOTSUP   Errno = 95
	ESHUTDOWN Errno = 108
)

var errnoTexts = map[Errno]string{
	EPERM:     "operation not permitted",
	EIO:       "input/output error",
	ENOMEM:    "out of memory",
	EINVAL:    "invalid argument",
	ENOSPC:    "no space left on device",
	EOVERFLOW: "value too large",
	ENOTSUP:   "operation not supported",
	ESHUTDOWN: "server is shutting down",
}

func (e Errno) Error() string {
	if s, ok := errnoTexts[e]; ok {
		return s
	}
	return fmt.Sprintf("error %d", uint32(e))
}

var repTexts = map[Rep]string{
	RepErrUnsup:             "option is not supported",
	RepErrPolicy:            "forbidden by policy",
	RepErrInvalid:           "invalid option",
	RepErrPlatform:          "not supported on the server's platform",
	RepErrTLSReqd:           "TLS is required",
	RepErrUnknown:           "unknown export",
	RepErrShutdown:          "server is shutting down",
	RepErrBlockSizeReqd:     "block size constraints must be negotiated",
	RepErrTooBig:            "option is too big",
	RepErrExtHeaderRequired: "extended headers are required",
}

// Error makes the error types of option replies usable as errors.
func (r Rep) Error() string {
	if s, ok := repTexts[r]; ok {
		return s
	}
	return fmt.Sprintf("option reply %#x", uint32(r))
}
