package server

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"varve/internal/nbd"
)

// Bounds of the handshake, in bytes.
const (
	handshakeBuffer = 4096
	// maxOption is the longest option data that is looked at.
	maxOption = 64 << 10
	// maxSkippedOption is the longest that is read and thrown away; beyond it the
	// client is taken for hostile and dropped.
	maxSkippedOption = 1 << 20
)

// Reasons to drop a client in the handshake.
var (
	errProtocol    = errors.New("protocol violation")
	errUnavailable = errors.New("export is not available")
)

// handshake is the first phase of a connection and what was agreed on in it.
type handshake struct {
	*connection
	r   *bufio.Reader
	out []byte // reply under construction

	fixed, noZeroes bool // as the client's flags say
	encrypted       bool
	structured      bool // structured replies, also implied by extended
	extended        bool // extended headers

	export     *Export // the one that contexts were selected for, else that opened last; nil if none
	exportName string  // as the client called it
	visitor    *Export // opened beside export for the present option
	contexts   []selectedContext
	contextsOf string // export name that contexts were selected for
	chosen     bool   // the client has picked export
	aborted    bool
}

// run haggles until the client has chosen an export (nil error, chosen set),
// leaves (nil error) or is dropped.
func (h *handshake) run() error {
	deadline := time.Now().Add(h.server.cfg.HandshakeTimeout)
	if err := h.socket.SetDeadline(deadline); err != nil {
		return fmt.Errorf("handshake: %w", err)
	}
	// A drain between accept and the line above must not be forgotten.
	if h.draining.Load() {
		h.drain()
	}
	ctx, cancel := context.WithDeadline(h.ctx, deadline)
	defer cancel()

	h.r = bufio.NewReaderSize(readerFunc(h.read), handshakeBuffer)
	err := h.greet()
	for err == nil && !h.chosen && !h.aborted {
		err = h.option(ctx)
		h.close(h.visitor)
		h.visitor = nil
	}
	if err != nil {
		return fmt.Errorf("handshake: %w", err)
	}
	if h.chosen {
		if err := h.socket.SetDeadline(time.Time{}); err != nil {
			return fmt.Errorf("handshake: %w", err)
		}
		if h.draining.Load() {
			h.drain()
		}
	}
	return nil
}

// release closes the export.
func (h *handshake) release() {
	h.close(h.export)
	h.export = nil
}

func (h *handshake) close(e *Export) {
	if e == nil {
		return
	}
	if err := e.Device.Close(); err != nil {
		h.server.cfg.Logger.Warn("nbd: cannot close device", "export", e.Name, "error", err)
	}
}

// greet exchanges magic numbers and handshake flags (section "Newstyle negotiation").
func (h *handshake) greet() error {
	be := binary.BigEndian
	b := be.AppendUint64(nil, nbd.InitMagic)
	b = be.AppendUint64(b, nbd.OptionMagic)
	b = be.AppendUint16(b, nbd.FlagFixedNewstyle|nbd.FlagNoZeroes)
	if _, err := h.stream.Write(b); err != nil {
		return err
	}
	var p [4]byte
	if _, err := io.ReadFull(h.r, p[:]); err != nil {
		return err
	}
	flags := be.Uint32(p[:])
	if unknown := flags &^ uint32(nbd.FlagFixedNewstyle|nbd.FlagNoZeroes); unknown != 0 {
		return fmt.Errorf("%w: unknown client flags %#x", errProtocol, unknown)
	}
	h.fixed = flags&uint32(nbd.FlagFixedNewstyle) != 0
	h.noZeroes = flags&uint32(nbd.FlagNoZeroes) != 0
	return nil
}

// option reads one option and answers it.
func (h *handshake) option(ctx context.Context) error {
	var head [16]byte
	if _, err := io.ReadFull(h.r, head[:]); err != nil {
		return err
	}
	be := binary.BigEndian
	if be.Uint64(head[:]) != nbd.OptionMagic {
		return fmt.Errorf("%w: option without its magic number", errProtocol)
	}
	opt, length := nbd.Option(be.Uint32(head[8:])), be.Uint32(head[12:])
	if length > maxSkippedOption {
		return fmt.Errorf("%w: option %d with %d bytes of data", errProtocol, opt, length)
	}
	if opt == nbd.OptExportName && length > nbd.MaxString {
		return fmt.Errorf("%w: export name of %d bytes", errProtocol, length)
	}
	if length > maxOption {
		if _, err := h.r.Discard(int(length)); err != nil {
			return err
		}
		return h.fail(opt, nbd.RepErrTooBig, fmt.Sprintf("at most %d bytes of option data are accepted", maxOption))
	}
	data := make([]byte, length)
	if _, err := io.ReadFull(h.r, data); err != nil {
		return err
	}

	if opt == nbd.OptAbort {
		h.aborted = true
		// The client may have gone already, which is fine (section "Option types").
		_ = h.ack(opt)
		return nil
	}
	if opt == nbd.OptExportName {
		return h.exportNameOption(ctx, string(data))
	}
	switch {
	case !h.fixed:
		return fmt.Errorf("%w: option %d without fixed newstyle", errProtocol, opt)
	case h.draining.Load():
		return h.fail(opt, nbd.RepErrShutdown, "server is shutting down")
	case opt == nbd.OptStartTLS:
		return h.startTLS(ctx, data)
	case h.mustEncrypt() && !h.encrypted:
		return h.fail(opt, nbd.RepErrTLSReqd, "this server requires TLS")
	}
	switch opt {
	case nbd.OptList:
		return h.list(ctx, data)
	case nbd.OptInfo, nbd.OptGo:
		return h.info(ctx, opt, data)
	case nbd.OptStructuredReply:
		return h.structuredReply(data)
	case nbd.OptExtendedHeaders:
		return h.extendedHeaders(data)
	case nbd.OptListMetaContext, nbd.OptSetMetaContext:
		return h.metaContext(ctx, opt, data)
	}
	return h.fail(opt, nbd.RepErrUnsup, fmt.Sprintf("option %d is not supported", opt))
}

// mustEncrypt tells whether this connection is answered over TLS only.
func (h *handshake) mustEncrypt() bool {
	switch h.server.cfg.TLSMode {
	case TLSRequire:
		return true
	case TLSRequireRemote:
		return h.socket.LocalAddr().Network() != "unix"
	}
	return false
}

// startTLS turns the connection into an encrypted one and forgets what was
// agreed on before.
func (h *handshake) startTLS(ctx context.Context, data []byte) error {
	switch {
	case len(data) > 0:
		return h.fail(nbd.OptStartTLS, nbd.RepErrInvalid, "STARTTLS takes no data")
	case h.encrypted:
		return h.fail(nbd.OptStartTLS, nbd.RepErrInvalid, "TLS is in use already")
	case h.server.cfg.TLSMode == TLSOff:
		return h.fail(nbd.OptStartTLS, nbd.RepErrPolicy, "this server does not offer TLS")
	case h.r.Buffered() > 0:
		// Bytes that came before our answer would be taken for encrypted ones (or
		// the other way round): somebody tries to inject plain text.
		return fmt.Errorf("%w: data after STARTTLS", errProtocol)
	}
	if err := h.ack(nbd.OptStartTLS); err != nil {
		return err
	}
	conn := tls.Server(h.socket, h.server.cfg.TLS)
	if err := conn.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("TLS: %w", err)
	}
	h.stream, h.encrypted = conn, true
	h.r.Reset(readerFunc(h.read))
	h.structured, h.extended = false, false
	h.contexts, h.contextsOf = nil, ""
	h.release()
	return nil
}

// open returns the export of that name. It stays open until it is replaced; an
// option that only asks does not replace an export that contexts were selected for.
func (h *handshake) open(ctx context.Context, opt nbd.Option, name string) (*Export, error) {
	if h.export != nil && h.exportName == name {
		return h.export, nil
	}
	asks := opt == nbd.OptInfo || opt == nbd.OptListMetaContext
	visit := asks && len(h.contexts) > 0
	if !visit {
		h.release()
		h.contexts, h.contextsOf = nil, ""
	}
	e, err := h.server.cfg.Exports.Open(ctx, name, h.session)
	if err != nil {
		return nil, err
	}
	if visit {
		h.visitor = e
	} else {
		h.export, h.exportName = e, name
	}
	return e, nil
}

// canonicalName is e's own name, or else what the client called it.
func canonicalName(e *Export, asked string) string {
	if e.Name != "" {
		return e.Name
	}
	return asked
}

// enter ends the handshake in favour of the export opened last.
func (h *handshake) enter() {
	h.chosen = true
	if h.contextsOf != h.exportName {
		h.contexts = nil
	}
	h.session.enterTransmission(canonicalName(h.export, h.exportName))
}

// openFailed answers an option whose export could not be opened.
func (h *handshake) openFailed(opt nbd.Option, name string, err error) error {
	if errors.Is(err, ErrUnknownExport) {
		return h.fail(opt, nbd.RepErrUnknown, fmt.Sprintf("there is no export %q", name))
	}
	if errors.Is(err, ErrTLSRequired) && !h.encrypted && h.server.cfg.TLSMode != TLSOff {
		return h.fail(opt, nbd.RepErrTLSReqd, fmt.Sprintf("export %q requires TLS", name))
	}
	if errors.Is(err, ErrExportBusy) {
		return h.fail(opt, nbd.RepErrPolicy, fmt.Sprintf("export %q is busy", name))
	}
	h.server.cfg.Logger.Warn("nbd: cannot open export", "export", name, "remote", h.session.Remote(), "error", err)
	return h.fail(opt, nbd.RepErrPolicy, fmt.Sprintf("export %q cannot be opened", name))
}

// ack sends the final reply of a successful option, after what add gathered.
func (h *handshake) ack(opt nbd.Option) error {
	h.add(opt, nbd.RepAck, nil)
	return h.flush()
}

// fail sends an error reply; what add gathered is dropped.
func (h *handshake) fail(opt nbd.Option, rep nbd.Rep, text string) error {
	h.out = h.out[:0]
	h.add(opt, rep, []byte(text))
	return h.flush()
}

// add appends a reply to those that the next ack sends.
func (h *handshake) add(opt nbd.Option, rep nbd.Rep, data []byte) {
	be := binary.BigEndian
	h.out = be.AppendUint64(h.out, nbd.OptionReplyMagic)
	h.out = be.AppendUint32(h.out, uint32(opt))
	h.out = be.AppendUint32(h.out, uint32(rep))
	h.out = be.AppendUint32(h.out, uint32(len(data)))
	h.out = append(h.out, data...)
}

func (h *handshake) flush() error {
	_, err := h.stream.Write(h.out)
	h.out = h.out[:0]
	return err
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// buffered is what was received after the last option; valid until the next read.
func (h *handshake) buffered() []byte {
	p, _ := h.r.Peek(h.r.Buffered())
	return p
}
