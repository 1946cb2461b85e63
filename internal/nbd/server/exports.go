package server

import (
	"context"
	"errors"

	"varve/internal/block"
)

// Errors that Exports.Open may wrap to choose the client's answer; any other
// error is answered with NBD_REP_ERR_POLICY and logged.
var (
	// ErrUnknownExport: there is no export of that name (NBD_REP_ERR_UNKNOWN).
	ErrUnknownExport = errors.New("unknown export")
	// ErrExportBusy: the export cannot be used at present (NBD_REP_ERR_POLICY).
	ErrExportBusy = errors.New("export is busy")
	// ErrTLSRequired: the export is for encrypted connections only (NBD_REP_ERR_TLS_REQD).
	ErrTLSRequired = errors.New("export requires TLS")
	// ErrUnknownContext: ContextSource.Open knows no context of that name.
	ErrUnknownContext = errors.New("unknown meta context")
)

// Exports is what a server has to offer. Its methods are called concurrently.
type Exports interface {
	// List names what clients may see, in the order they should see it.
	List(ctx context.Context) ([]ExportInfo, error)
	// Open opens an export by its name; empty is the default export. It is called
	// when a client picks the export and also when it only asks about it; s.Transmitting
	// is false until it has picked. The device is closed when the connection ends or turns to
	// another export. ctx ends with the handshake; what is opened must not depend on
	// it. Open must not call s.Disconnect.
	Open(ctx context.Context, name string, s *Session) (*Export, error)
}

// ExportInfo describes an export in a list.
type ExportInfo struct {
	Name        string
	Description string // for people; may be empty
}

// Export is an opened export.
type Export struct {
	// Name is the canonical name; empty: as the client called it.
	Name        string
	Description string // for people; may be empty
	// Device is used by one connection and closed with it. Devices of the same
	// export must share their durability: a Flush of one covers all
	// (NBD_FLAG_CAN_MULTI_CONN is advertised).
	Device block.Device
	// ReadOnly refuses all writes, whatever the device would say.
	ReadOnly bool
	// Contexts adds meta contexts to base:allocation; nil: none.
	Contexts ContextSource
}

// ContextSource contributes meta contexts to an export.
type ContextSource interface {
	// Names lists contexts that a client can select, at most some hundred: where there are more, those it
	// is most likely to want.
	Names(ctx context.Context) ([]string, error)
	// Has tells whether there is a context of that name, listed or not.
	Has(ctx context.Context, name string) bool
	// Open returns the context of that name or ErrUnknownContext. What it returns is used
	// until the export's device is closed.
	Open(ctx context.Context, name string) (MetaContext, error)
}

// MetaContext tells the status of ranges. Its method is called concurrently.
type MetaContext interface {
	// Status describes [off, off+length) from off on, without gaps, in at most limit
	// runs; it returns at least one run, and may end early.
	Status(ctx context.Context, off, length int64, limit int) ([]Status, error)
}

// Status is a run of bytes of equal flags in some meta context.
type Status struct {
	Length int64 // bytes, positive
	Flags  uint32
}
