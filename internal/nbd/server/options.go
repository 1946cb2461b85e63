package server

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"varve/internal/block"
	"varve/internal/nbd"
)

// Bounds on what a client can select.
const (
	maxContexts = 16
	maxQueries  = 256
)

// exportNameOption answers EXPORT_NAME, which can only succeed or end the connection.
func (h *handshake) exportNameOption(ctx context.Context, name string) error {
	switch {
	case h.draining.Load():
		return fmt.Errorf("%w: server is shutting down", errUnavailable)
	case h.mustEncrypt() && !h.encrypted:
		return fmt.Errorf("%w: %w", errUnavailable, ErrTLSRequired)
	case h.extended:
		return fmt.Errorf("%w: EXPORT_NAME with extended headers", errProtocol)
	case !nbd.ValidString(name):
		return fmt.Errorf("%w: export name is not valid UTF-8", errProtocol)
	}
	e, err := h.open(ctx, nbd.OptExportName, name)
	if err != nil {
		return fmt.Errorf("%w: %q: %w", errUnavailable, name, err)
	}
	h.out = binary.BigEndian.AppendUint64(h.out, uint64(e.Device.SizeBytes()))
	h.out = binary.BigEndian.AppendUint16(h.out, uint16(h.flags(e)))
	if !h.noZeroes {
		h.out = append(h.out, make([]byte, 124)...)
	}
	if err := h.flush(); err != nil {
		return err
	}
	h.enter()
	return nil
}

// flags are the transmission flags of an export.
func (h *handshake) flags(e *Export) nbd.TransmissionFlags {
	f := nbd.FlagHasFlags | nbd.FlagSendFlush | nbd.FlagSendFUA | nbd.FlagCanMultiConn | nbd.FlagSendCache
	if e.ReadOnly {
		f |= nbd.FlagReadOnly
	} else {
		f |= nbd.FlagSendTrim | nbd.FlagSendWriteZeroes | nbd.FlagSendFastZero
	}
	if h.structured {
		f |= nbd.FlagSendDF
	}
	return f
}

func (h *handshake) list(ctx context.Context, data []byte) error {
	if len(data) > 0 {
		return h.fail(nbd.OptList, nbd.RepErrInvalid, "LIST takes no data")
	}
	exports, err := h.server.cfg.Exports.List(ctx)
	if err != nil {
		h.server.cfg.Logger.Warn("nbd: cannot list exports", "error", err)
		return h.fail(nbd.OptList, nbd.RepErrPolicy, "exports cannot be listed")
	}
	for _, e := range exports {
		b := binary.BigEndian.AppendUint32(nil, uint32(len(e.Name)))
		b = append(b, e.Name...)
		b = append(b, e.Description...)
		h.add(nbd.OptList, nbd.RepServer, b)
		if len(h.out) >= maxOption {
			if err := h.flush(); err != nil {
				return err
			}
		}
	}
	return h.ack(nbd.OptList)
}

// info answers INFO and GO.
func (h *handshake) info(ctx context.Context, opt nbd.Option, data []byte) error {
	d := optionData{rest: data}
	name := d.string()
	wanted := make([]nbd.Info, 0, 4)
	for n := d.uint16(); n > 0 && !d.bad; n-- {
		wanted = append(wanted, nbd.Info(d.uint16()))
	}
	if !d.complete() {
		return h.fail(opt, nbd.RepErrInvalid, "malformed INFO or GO")
	}
	e, err := h.open(ctx, opt, name)
	if err != nil {
		return h.openFailed(opt, name, err)
	}

	be := binary.BigEndian
	b := be.AppendUint16(nil, uint16(nbd.InfoExport))
	b = be.AppendUint64(b, uint64(e.Device.SizeBytes()))
	h.add(opt, nbd.RepInfo, be.AppendUint16(b, uint16(h.flags(e))))
	if slices.Contains(wanted, nbd.InfoName) {
		b = be.AppendUint16(b[:0], uint16(nbd.InfoName))
		h.add(opt, nbd.RepInfo, append(b, canonicalName(e, name)...))
	}
	if slices.Contains(wanted, nbd.InfoDescription) && e.Description != "" {
		b = be.AppendUint16(b[:0], uint16(nbd.InfoDescription))
		h.add(opt, nbd.RepInfo, append(b, e.Description...))
	}
	if slices.Contains(wanted, nbd.InfoBlockSize) {
		b = be.AppendUint16(b[:0], uint16(nbd.InfoBlockSize))
		b = be.AppendUint32(b, 1)
		b = be.AppendUint32(b, block.Size)
		h.add(opt, nbd.RepInfo, be.AppendUint32(b, nbd.MaxPayload))
	}
	if err := h.ack(opt); err != nil {
		return err
	}
	if opt == nbd.OptGo {
		h.enter()
	}
	return nil
}

func (h *handshake) structuredReply(data []byte) error {
	const opt = nbd.OptStructuredReply
	switch {
	case len(data) > 0:
		return h.fail(opt, nbd.RepErrInvalid, "STRUCTURED_REPLY takes no data")
	case h.extended:
		return h.fail(opt, nbd.RepErrExtHeaderRequired, "extended headers are in use already")
	}
	h.structured = true
	return h.ack(opt)
}

func (h *handshake) extendedHeaders(data []byte) error {
	const opt = nbd.OptExtendedHeaders
	switch {
	case len(data) > 0:
		return h.fail(opt, nbd.RepErrInvalid, "EXTENDED_HEADERS takes no data")
	case h.extended:
		return h.fail(opt, nbd.RepErrInvalid, "extended headers are in use already")
	}
	h.structured, h.extended = true, true
	return h.ack(opt)
}

// metaContext answers LIST_META_CONTEXT and SET_META_CONTEXT.
func (h *handshake) metaContext(ctx context.Context, opt nbd.Option, data []byte) error {
	set := opt == nbd.OptSetMetaContext
	if set {
		h.contexts, h.contextsOf = nil, "" // also when this fails
		if !h.structured {
			return h.fail(opt, nbd.RepErrInvalid, "meta contexts need structured replies")
		}
	}
	d := optionData{rest: data}
	name := d.string()
	count := d.uint32()
	if count > maxQueries {
		return h.fail(opt, nbd.RepErrTooBig, fmt.Sprintf("at most %d queries are accepted", maxQueries))
	}
	queries := make([]string, 0, count)
	for range count {
		queries = append(queries, d.string())
	}
	if !d.complete() {
		return h.fail(opt, nbd.RepErrInvalid, "malformed meta context option")
	}
	for _, q := range queries {
		if strings.Index(q, ":") < 1 {
			return h.fail(opt, nbd.RepErrInvalid, fmt.Sprintf("query %q has no namespace", q))
		}
	}
	e, err := h.open(ctx, opt, name)
	if err != nil {
		return h.openFailed(opt, name, err)
	}
	if !set {
		names, err := listContexts(ctx, e, queries)
		if err != nil {
			h.server.cfg.Logger.Warn("nbd: cannot list meta contexts", "export", name, "error", err)
			return h.fail(opt, nbd.RepErrPolicy, "meta contexts cannot be listed")
		}
		for _, name := range names {
			h.add(opt, nbd.RepMetaContext, append(make([]byte, 4), name...))
		}
		return h.ack(opt)
	}
	contexts, err := selectContexts(ctx, e, queries)
	if errors.Is(err, errTooManyContexts) {
		return h.fail(opt, nbd.RepErrTooBig, err.Error())
	}
	if err != nil {
		h.server.cfg.Logger.Warn("nbd: cannot open meta context", "export", name, "error", err)
		return h.fail(opt, nbd.RepErrPolicy, "meta contexts cannot be opened")
	}
	for _, c := range contexts {
		h.add(opt, nbd.RepMetaContext, append(binary.BigEndian.AppendUint32(nil, c.id), c.name...))
	}
	if err := h.ack(opt); err != nil {
		return err
	}
	h.contexts, h.contextsOf = contexts, name
	return nil
}

// optionData decodes the data of an option. After the first value that is not
// there or not valid, bad is set and all further values are zero.
type optionData struct {
	rest []byte
	bad  bool
}

func (d *optionData) take(n uint32) []byte {
	if d.bad || uint64(n) > uint64(len(d.rest)) {
		d.bad = true
		return nil
	}
	b := d.rest[:n]
	d.rest = d.rest[n:]
	return b
}

func (d *optionData) uint16() uint16 {
	if b := d.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (d *optionData) uint32() uint32 {
	if b := d.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

// string decodes a length of 32 bits and that many bytes of text.
func (d *optionData) string() string {
	s := string(d.take(d.uint32()))
	if !nbd.ValidString(s) {
		d.bad = true
		return ""
	}
	return s
}

// complete tells whether all values were there and nothing else.
func (d *optionData) complete() bool { return !d.bad && len(d.rest) == 0 }
