package client

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"slices"
	"time"

	"varve/internal/block"
	"varve/internal/nbd"
)

// Bounds on what a server may send in the handshake.
const (
	maxOptionReply   = 64 << 10 // bytes of data of one reply
	maxOptionReplies = 16 << 20 // bytes of all replies to an option
)

const optionReplyHeader = 20 // bytes

// handshake is the first phase of a connection.
type handshake struct {
	conn     net.Conn
	r        *bufio.Reader
	fixed    bool
	noZeroes bool

	info     Info
	contexts map[uint32]string
}

// reply is an answer to an option; more may follow unless it is final.
type reply struct {
	rep  nbd.Rep
	data []byte
}

// begin exchanges flags and turns to TLS if that is wanted. It closes conn when it fails.
func begin(ctx context.Context, conn net.Conn, t target, o Options) (*handshake, error) {
	h := &handshake{conn: conn, r: bufio.NewReaderSize(conn, bufferBytes)}
	err := h.within(ctx, func() error {
		if err := h.greet(); err != nil {
			return err
		}
		if t.tls || o.TLS != nil {
			return h.startTLS(ctx, t, o.TLS)
		}
		return nil
	})
	if err != nil {
		_ = h.conn.Close()
		return nil, err
	}
	return h, nil
}

// within runs f, whose input and output fail when ctx ends.
func (h *handshake) within(ctx context.Context, f func() error) error {
	conn := h.conn
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = conn.SetDeadline(time.Unix(1, 0))
		close(interrupted)
	})
	err := f()
	if !stop() {
		<-interrupted
		return errors.Join(ctx.Err(), err)
	}
	return err
}

func (h *handshake) greet() error {
	var b [18]byte
	if _, err := io.ReadFull(h.r, b[:]); err != nil {
		return fmt.Errorf("not an NBD server: %w", err)
	}
	be := binary.BigEndian
	if be.Uint64(b[:]) != nbd.InitMagic {
		return fmt.Errorf("%w: not an NBD server", ErrProtocol)
	}
	if be.Uint64(b[8:]) != nbd.OptionMagic {
		return fmt.Errorf("%w: the server speaks oldstyle NBD, which is not supported", ErrProtocol)
	}
	offered := be.Uint16(b[16:])
	agreed := offered & (nbd.FlagFixedNewstyle | nbd.FlagNoZeroes)
	h.fixed, h.noZeroes = agreed&nbd.FlagFixedNewstyle != 0, agreed&nbd.FlagNoZeroes != 0
	_, err := h.conn.Write(be.AppendUint32(nil, uint32(agreed)))
	return err
}

func (h *handshake) startTLS(ctx context.Context, t target, config *tls.Config) error {
	if !h.fixed {
		return fmt.Errorf("STARTTLS: %w", nbd.RepErrUnsup)
	}
	if _, err := h.option(nbd.OptStartTLS, nil); err != nil {
		return err
	}
	if h.r.Buffered() > 0 {
		return fmt.Errorf("%w: plain text after STARTTLS", ErrProtocol)
	}
	if config == nil {
		config = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	if config.ServerName == "" && !config.InsecureSkipVerify {
		config = config.Clone()
		config.ServerName = t.host
		if t.host == "" {
			config.ServerName = "localhost"
		}
	}
	conn := tls.Client(h.conn, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("TLS: %w", err)
	}
	h.conn = conn
	h.r.Reset(conn)
	return nil
}

// enter negotiates all that o allows and picks the export.
func (h *handshake) enter(export string, o Options) error {
	if !h.fixed {
		return h.exportName(export)
	}
	if err := h.messageForm(o); err != nil {
		return err
	}
	if h.info.Structured {
		if err := h.setContexts(export, o.Contexts); err != nil {
			return err
		}
	}
	be := binary.BigEndian
	data := be.AppendUint32(nil, uint32(len(export)))
	data = append(data, export...)
	data = be.AppendUint16(data, 2)
	data = be.AppendUint16(data, uint16(nbd.InfoBlockSize))
	data = be.AppendUint16(data, uint16(nbd.InfoDescription))
	replies, err := h.option(nbd.OptGo, data)
	if errors.Is(err, nbd.RepErrUnsup) && !h.info.Extended {
		return h.exportName(export)
	}
	if err != nil {
		return fmt.Errorf("export %q: %w", export, err)
	}
	return h.takeInfo(replies)
}

// messageForm asks for extended headers, else for structured replies.
func (h *handshake) messageForm(o Options) error {
	if o.NoStructuredReplies {
		return nil
	}
	if !o.NoExtendedHeaders {
		accepted, err := h.ask(nbd.OptExtendedHeaders)
		h.info.Extended, h.info.Structured = accepted, accepted
		if err != nil || accepted {
			return err
		}
	}
	var err error
	h.info.Structured, err = h.ask(nbd.OptStructuredReply)
	return err
}

// ask sends an option that the server may decline.
func (h *handshake) ask(opt nbd.Option) (accepted bool, err error) {
	_, err = h.option(opt, nil)
	var declined nbd.Rep
	if errors.As(err, &declined) && declined != nbd.RepErrTLSReqd && declined != nbd.RepErrShutdown {
		return false, nil
	}
	return err == nil, err
}

// setContexts selects base:allocation and the others that are wanted; those the
// server lacks, or all if it has no meta contexts, are left out.
func (h *handshake) setContexts(export string, others []string) error {
	be := binary.BigEndian
	queries := append([]string{nbd.BaseAllocation}, others...)
	replies, err := h.option(nbd.OptSetMetaContext, contextQuery(export, queries))
	if errors.Is(err, nbd.RepErrUnsup) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("export %q: meta contexts: %w", export, err)
	}
	h.contexts = make(map[uint32]string)
	for _, r := range replies {
		if r.rep != nbd.RepMetaContext || len(r.data) < 4 {
			return fmt.Errorf("%w: malformed meta context", ErrProtocol)
		}
		name := string(r.data[4:])
		if !slices.Contains(queries, name) {
			return fmt.Errorf("%w: meta context %q was not asked for", ErrProtocol, name)
		}
		h.contexts[be.Uint32(r.data)] = name
		h.info.Contexts = append(h.info.Contexts, name)
	}
	return nil
}

// takeInfo reads the answer to GO.
func (h *handshake) takeInfo(replies []reply) error {
	be := binary.BigEndian
	h.setDefaults()
	known := false
	for _, r := range replies {
		if r.rep != nbd.RepInfo || len(r.data) < 2 {
			return fmt.Errorf("%w: malformed answer to GO", ErrProtocol)
		}
		typ, d := nbd.Info(be.Uint16(r.data)), r.data[2:]
		switch {
		case typ == nbd.InfoExport && len(d) == 10:
			known = true
			if err := h.setSize(be.Uint64(d), be.Uint16(d[8:])); err != nil {
				return err
			}
		case typ == nbd.InfoDescription:
			h.info.Description = string(d)
		case typ == nbd.InfoBlockSize && len(d) == 12:
			h.info.MinBlock = int64(be.Uint32(d))
			h.info.PreferredBlock = int64(be.Uint32(d[4:]))
			h.info.MaxPayload = int64(be.Uint32(d[8:]))
		case typ == nbd.InfoExport || typ == nbd.InfoBlockSize:
			return fmt.Errorf("%w: information %d of %d bytes", ErrProtocol, typ, len(d))
		}
	}
	if !known {
		return fmt.Errorf("%w: no size in the answer to GO", ErrProtocol)
	}
	if m := h.info.MinBlock; m < 1 || m > 64<<10 || m&(m-1) != 0 || h.info.MaxPayload < max(m, 512) {
		return fmt.Errorf("%w: block sizes %d to %d", ErrProtocol, m, h.info.MaxPayload)
	}
	h.info.MaxPayload = min(h.info.MaxPayload, nbd.MaxPayload) &^ (h.info.MinBlock - 1)
	return nil
}

func (h *handshake) setDefaults() {
	h.info.MinBlock, h.info.PreferredBlock, h.info.MaxPayload = 1, block.Size, nbd.MaxPayload
}

func (h *handshake) setSize(size uint64, flags uint16) error {
	if size > math.MaxInt64 {
		return fmt.Errorf("%w: size %d", ErrProtocol, size)
	}
	h.info.SizeBytes, h.info.Flags = int64(size), nbd.TransmissionFlags(flags)
	return nil
}

// exportName picks the export the old way, which cannot tell why it fails.
func (h *handshake) exportName(export string) error {
	h.setDefaults()
	if err := h.send(nbd.OptExportName, []byte(export)); err != nil {
		return err
	}
	b := make([]byte, 10, 10+124)
	if !h.noZeroes {
		b = b[:10+124]
	}
	if _, err := io.ReadFull(h.r, b); err != nil {
		return fmt.Errorf("export %q: %w: %w", export, nbd.RepErrUnknown, err)
	}
	return h.setSize(binary.BigEndian.Uint64(b), binary.BigEndian.Uint16(b[8:]))
}

func (h *handshake) send(opt nbd.Option, data []byte) error {
	be := binary.BigEndian
	b := be.AppendUint64(nil, nbd.OptionMagic)
	b = be.AppendUint32(b, uint32(opt))
	b = be.AppendUint32(b, uint32(len(data)))
	_, err := h.conn.Write(append(b, data...))
	return err
}

// option sends an option and collects the replies before the final one. An error
// reply is returned as a nbd.Rep, with the server's text.
func (h *handshake) option(opt nbd.Option, data []byte) ([]reply, error) {
	if err := h.send(opt, data); err != nil {
		return nil, err
	}
	var list []reply
	for total := 0; total < maxOptionReplies; {
		r, err := h.reply(opt)
		if err != nil {
			return nil, err
		}
		if r.rep.IsError() {
			if len(r.data) > 0 {
				return nil, fmt.Errorf("%w (%.200q)", r.rep, r.data)
			}
			return nil, r.rep
		}
		if r.rep == nbd.RepAck {
			return list, nil
		}
		list = append(list, r)
		total += optionReplyHeader + len(r.data)
	}
	return nil, fmt.Errorf("%w: endless answer to option %d", ErrProtocol, opt)
}

func (h *handshake) reply(opt nbd.Option) (reply, error) {
	be := binary.BigEndian
	var b [optionReplyHeader]byte
	if _, err := io.ReadFull(h.r, b[:]); err != nil {
		return reply{}, err
	}
	if be.Uint64(b[:]) != nbd.OptionReplyMagic || nbd.Option(be.Uint32(b[8:])) != opt {
		return reply{}, fmt.Errorf("%w: not a reply to option %d", ErrProtocol, opt)
	}
	r, n := reply{rep: nbd.Rep(be.Uint32(b[12:]))}, be.Uint32(b[16:])
	if n > maxOptionReply {
		return reply{}, fmt.Errorf("%w: reply with %d bytes of data", ErrProtocol, n)
	}
	r.data = make([]byte, n)
	if _, err := io.ReadFull(h.r, r.data); err != nil {
		return reply{}, err
	}
	return r, nil
}
