package client

import (
	"fmt"
	"net"
	"net/url"
	"strings"

	"varve/internal/nbd"
)

// target is where a URI leads.
type target struct {
	network, address string // of net.Dial
	host             string // for TLS; empty for unix sockets
	tls              bool
	export           string
}

// parseURI understands the URIs of NetworkBlockDevice/nbd, doc/uri.md.
func parseURI(uri string) (target, error) {
	bad := func(why string) (target, error) {
		return target{}, fmt.Errorf("%w: %q: %s", ErrURI, uri, why)
	}
	u, err := url.Parse(uri)
	if err != nil {
		return bad("it does not parse")
	}
	var t target
	switch u.Scheme {
	case "nbd", "nbds":
		if u.Hostname() == "" {
			return bad("it names no host")
		}
		t.network, t.host = "tcp", u.Hostname()
		port := u.Port()
		if port == "" {
			port = nbd.DefaultPort
		}
		t.address = net.JoinHostPort(t.host, port)
	case "nbd+unix", "nbds+unix":
		t.network, t.address = "unix", u.Query().Get("socket")
		if t.address == "" {
			return bad("it lacks ?socket=PATH")
		}
		if u.Host != "" {
			return bad("it names a host and a socket; write nbd+unix:///NAME?socket=PATH")
		}
	default:
		return bad("its scheme is none of nbd, nbds, nbd+unix, nbds+unix")
	}
	t.tls = strings.HasPrefix(u.Scheme, "nbds")
	t.export = strings.TrimPrefix(u.Path, "/")
	if !nbd.ValidString(t.export) {
		return bad("its export name is too long or not valid UTF-8")
	}
	return t, nil
}
