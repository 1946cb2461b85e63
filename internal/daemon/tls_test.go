package daemon

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"strings"
	"testing"
	"time"

	"varve/internal/nbd/client"
)

// With a certificate, a network address answers over TLS only, and a unix socket both ways.
func TestNetworkIsEncryptedSocketNeedNotBe(t *testing.T) {
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
	trusted := x509.NewCertPool()
	if cert, err := x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	} else {
		trusted.AddCert(cert)
	}
	d, err := Start(t.Context(), Config{
		DataDir: scratch(t), NBD: []string{"127.0.0.1:0"},
		TLS: &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	d.mustCreate(t, "v")

	if err := write(t, dial(t, d, "v"), []byte("plain")); err != nil {
		t.Error(err)
	}
	address := d.listeners[1].Addr().String()
	if c, err := client.Dial(t.Context(), "nbd://"+address+"/v", client.Options{}); err == nil {
		c.Close()
		t.Error("a network address took a client without TLS")
	} else if !strings.Contains(err.Error(), "TLS") {
		t.Error(err)
	}
	c, err := client.Dial(t.Context(), "nbds://"+address+"/v", client.Options{TLS: &tls.Config{RootCAs: trusted, ServerName: "localhost"}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := write(t, c, []byte("sealed")); err != nil {
		t.Error(err)
	}
}
