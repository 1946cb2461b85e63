package server_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"testing"
	"time"

	"varve/internal/block"
	"varve/internal/nbd"
	"varve/internal/nbd/client"
	"varve/internal/nbd/nbdtest"
	"varve/internal/nbd/server"
)

// identity is a certificate for localhost that signs itself, and a pool that trusts it.
func identity(t testing.TB) (*tls.Config, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, pool
}

func serveTLS(t testing.TB, mode server.TLSMode) (*nbdtest.Server, *tls.Config) {
	t.Helper()
	config, pool := identity(t)
	e := twoExports(nbdtest.Disk(t, diskSize))
	s := nbdtest.Serve(t, server.Config{Exports: e, TLS: config, TLSMode: mode})
	return s, &tls.Config{RootCAs: pool, ServerName: "localhost"}
}

func TestTLSRequired(t *testing.T) {
	s, _ := serveTLS(t, server.TLSRequire)
	c := greeted(t, s)
	for opt, data := range map[nbd.Option][]byte{nbd.OptList: nil, nbd.OptGo: infoData(""), nbd.OptInfo: infoData("nosuch"), nbd.OptStructuredReply: nil, 99: nil} {
		if got := c.final(opt, data); got != nbd.RepErrTLSReqd {
			t.Errorf("option %d: %v", opt, got)
		}
	}
	if got := c.final(nbd.OptStartTLS, []byte{1}); got != nbd.RepErrInvalid {
		t.Error(got)
	}
	if got := c.final(nbd.OptAbort, nil); got != nbd.RepAck {
		t.Error(got)
	}
	c = greeted(t, s)
	c.sendOption(nbd.OptExportName, nil)
	c.expectClosed()
}

// STARTTLS forgets what was agreed on in plain text, and works once.
func TestStartTLS(t *testing.T) {
	s, config := serveTLS(t, server.TLSAllow)
	c := greeted(t, s)
	c.mustOption(nbd.OptExtendedHeaders, nil)
	c.mustOption(nbd.OptSetMetaContext, metaData("", nbd.BaseAllocation))
	c.mustOption(nbd.OptStartTLS, nil)
	conn := tls.Client(c.Conn, config)
	if err := conn.Handshake(); err != nil {
		t.Fatal(err)
	}
	c = &raw{t, conn}
	if got := c.final(nbd.OptStartTLS, nil); got != nbd.RepErrInvalid {
		t.Error(got)
	}
	c.mustOption(nbd.OptStructuredReply, nil) // refused if extended headers had stayed
	c.mustOption(nbd.OptGo, infoData(""))
	x := transmission{c, structured}
	if got := x.errno(nbd.Request{Cmd: nbd.CmdBlockStatus, Length: 512}, nil); got != nbd.EINVAL {
		t.Error(got)
	}
	x.send(nbd.Request{Cmd: nbd.CmdDisc}, nil)
	x.expectClosed()
}

// Plain text that follows STARTTLS must not be taken for part of the encrypted session.
func TestNoPlainTextBehindStartTLS(t *testing.T) {
	s, _ := serveTLS(t, server.TLSAllow)
	c := greeted(t, s)
	b := be.AppendUint64(nil, nbd.OptionMagic)
	b = be.AppendUint32(b, uint32(nbd.OptStartTLS))
	b = be.AppendUint32(b, 0)
	c.write(append(b, "IHAVEOPT"...))
	c.expectClosed()
}

func TestTLSHandshakeIsLimitedInTime(t *testing.T) {
	config, _ := identity(t)
	s := nbdtest.Serve(t, server.Config{
		Exports: twoExports(nbdtest.Disk(t, 4096)), TLS: config, TLSMode: server.TLSRequire, HandshakeTimeout: 50 * time.Millisecond,
	})
	c := greeted(t, s)
	c.mustOption(nbd.OptStartTLS, nil)
	c.expectClosed()
}

// All kinds of requests, short and long, pass through TLS; a shutdown ends it.
func TestTLSTransmission(t *testing.T) {
	s, config := serveTLS(t, server.TLSRequire)
	ctx := nbdtest.Context(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	uri := "nbds://" + l.Addr().String() + "/big"
	if _, err := client.Dial(ctx, "nbd://"+l.Addr().String()+"/big", client.Options{}); !errors.Is(err, nbd.RepErrTLSReqd) {
		t.Error("plain text:", err)
	}
	if _, err := client.Dial(ctx, uri, client.Options{}); err == nil {
		t.Error("a certificate that nobody trusts was accepted")
	}
	c, err := client.Dial(ctx, uri, client.Options{TLS: config})
	if err != nil {
		t.Fatal(err)
	}
	for i, n := range []int{1, 4096, 100_000, 3 << 20} {
		op := &block.Op{Offset: int64(i), Length: int64(n), Data: pattern(n, uint64(i))}
		c.Submit(ctx, []*block.Op{op})
		p := make([]byte, n)
		if err := errors.Join(op.Err, c.ReadAt(ctx, p, int64(i)), c.Flush(ctx)); err != nil {
			t.Fatal(err)
		}
		if string(p) != string(op.Data) {
			t.Fatalf("%d bytes differ", n)
		}
	}
	if err := s.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	if err := c.Flush(ctx); !errors.Is(err, client.ErrDisconnected) && !errors.Is(err, block.ErrClosed) {
		t.Error(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := <-served; !errors.Is(err, server.ErrServerClosed) {
		t.Error(err)
	}
}

// pemOf is the certificate as other programs want it.
func pemOf(config *tls.Config) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: config.Certificates[0].Certificate[0]})
}
