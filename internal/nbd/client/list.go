package client

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"

	"varve/internal/nbd"
)

// ExportInfo is an entry of a server's list of exports.
type ExportInfo struct {
	Name        string
	Description string // may be empty
}

// ListExports asks the server that uri leads to for its exports; the export that uri
// names does not matter.
func ListExports(ctx context.Context, uri string, o Options) ([]ExportInfo, error) {
	h, err := query(ctx, uri, o)
	if err != nil {
		return nil, err
	}
	defer func() { _ = h.conn.Close() }()
	var list []ExportInfo
	err = h.within(ctx, func() error {
		replies, err := h.option(nbd.OptList, nil)
		if err != nil {
			return err
		}
		for _, r := range replies {
			if r.rep != nbd.RepServer || len(r.data) < 4 {
				return fmt.Errorf("%w: malformed list of exports", ErrProtocol)
			}
			n := binary.BigEndian.Uint32(r.data)
			if uint64(n) > uint64(len(r.data)-4) {
				return fmt.Errorf("%w: malformed list of exports", ErrProtocol)
			}
			list = append(list, ExportInfo{Name: string(r.data[4 : 4+n]), Description: string(r.data[4+n:])})
		}
		h.leave()
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("%s: list exports: %w", uri, err)
	}
	return list, nil
}

// ListContexts asks for the meta contexts of the export that uri names; queries
// choose among them as the namespace defines, none means all.
func ListContexts(ctx context.Context, uri string, o Options, queries ...string) ([]string, error) {
	h, err := query(ctx, uri, o)
	if err != nil {
		return nil, err
	}
	defer func() { _ = h.conn.Close() }()
	t, err := parseURI(uri)
	if err != nil {
		return nil, err
	}
	var list []string
	err = h.within(ctx, func() error {
		if err := h.messageForm(o); err != nil {
			return err
		}
		replies, err := h.option(nbd.OptListMetaContext, contextQuery(t.export, queries))
		if err != nil {
			return err
		}
		for _, r := range replies {
			if r.rep != nbd.RepMetaContext || len(r.data) < 4 {
				return fmt.Errorf("%w: malformed list of meta contexts", ErrProtocol)
			}
			list = append(list, string(r.data[4:]))
		}
		h.leave()
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("%s: list meta contexts: %w", uri, err)
	}
	return list, nil
}

// query connects for questions that need no transmission.
func query(ctx context.Context, uri string, o Options) (*handshake, error) {
	t, err := parseURI(uri)
	if err != nil {
		return nil, err
	}
	conn, err := new(net.Dialer).DialContext(ctx, t.network, t.address)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", uri, err)
	}
	h, err := begin(ctx, conn, t, o)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", uri, err)
	}
	if !h.fixed {
		_ = h.conn.Close()
		return nil, fmt.Errorf("%s: %w", uri, nbd.RepErrUnsup)
	}
	return h, nil
}

// leave ends the handshake without picking an export. The server may close the
// connection without an answer.
func (h *handshake) leave() {
	if h.send(nbd.OptAbort, nil) == nil {
		_, _ = h.reply(nbd.OptAbort)
	}
}

func contextQuery(export string, queries []string) []byte {
	be := binary.BigEndian
	data := be.AppendUint32(nil, uint32(len(export)))
	data = append(data, export...)
	data = be.AppendUint32(data, uint32(len(queries)))
	for _, q := range queries {
		data = be.AppendUint32(data, uint32(len(q)))
		data = append(data, q...)
	}
	return data
}
