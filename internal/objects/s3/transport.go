package s3

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"github.com/minio/minio-go/v7/pkg/credentials"

	"varve/internal/objects"
)

// newTransport is HTTP/1.1, a connection for each request that is under way, each watched on its own.
func newTransport(o Options, stall time.Duration) (*http.Transport, error) {
	tlsConfig := &tls.Config{MinVersion: tls.VersionTLS12}
	if o.CAFile != "" {
		pool, err := trust(o.CAFile)
		if err != nil {
			return nil, err
		}
		tlsConfig.RootCAs = pool
	}
	dialer := &net.Dialer{Timeout: stall, KeepAlive: 30 * time.Second}
	return &http.Transport{
		Proxy: http.ProxyFromEnvironment,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return watch(conn, stall), nil
		},
		TLSClientConfig:     tlsConfig,
		TLSHandshakeTimeout: stall,
		MaxIdleConns:        128,
		MaxIdleConnsPerHost: 128,
		IdleConnTimeout:     time.Minute,
		WriteBufferSize:     256 << 10,
		ReadBufferSize:      256 << 10,
		DisableCompression:  true,
	}, nil
}

func trust(caFile string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("read the CA file: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("the CA file %s has no certificate in PEM", caFile)
	}
	return pool, nil
}

// watched is a connection that fails when nothing has moved on it, either way, for a time.
type watched struct {
	net.Conn
	stall time.Duration
	begun time.Time
	last  atomic.Int64 // when the deadline was last moved, since begun
}

func watch(conn net.Conn, stall time.Duration) *watched {
	w := &watched{Conn: conn, stall: stall, begun: time.Now()}
	_ = conn.SetDeadline(w.begun.Add(stall)) // fails on a closed one only, which Read and Write tell
	return w
}

// moved puts the deadline off, for who reads and who writes: a body that is being sent keeps the wait for the answer alive.
func (w *watched) moved() {
	now := time.Since(w.begun)
	last := w.last.Load()
	if now-time.Duration(last) < w.stall/16 || !w.last.CompareAndSwap(last, int64(now)) {
		return
	}
	_ = w.SetDeadline(w.begun.Add(now + w.stall))
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	if n > 0 {
		w.moved()
	}
	return n, err
}

func (w *watched) Write(p []byte) (int, error) {
	w.moved() // a request begins, perhaps after a rest
	n, err := w.Conn.Write(p)
	if n > 0 {
		w.moved()
	}
	return n, err
}

func findRegion(o Options) string {
	for _, region := range []string{o.Region, os.Getenv("AWS_REGION"), os.Getenv("AWS_DEFAULT_REGION")} {
		if region != "" {
			return region
		}
	}
	return ""
}

// findCredentials returns those of the options, of a file that they name, of the environment, or of the usual files, the
// first that there are.
func findCredentials(o Options) (*credentials.Credentials, error) {
	var creds *credentials.Credentials
	from := "the options"
	env := os.Getenv("AWS_ACCESS_KEY_ID") != "" || os.Getenv("AWS_SECRET_ACCESS_KEY") != ""
	switch {
	case o.AccessKey != "" || o.SecretKey != "":
		creds = credentials.NewStaticV4(o.AccessKey, o.SecretKey, o.SessionToken)
	case o.CredentialsFile != "":
		from = o.CredentialsFile
		creds = credentials.NewFileAWSCredentials(o.CredentialsFile, o.Profile)
	case env && o.Profile == "":
		from = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
		creds = credentials.NewStaticV4(os.Getenv("AWS_ACCESS_KEY_ID"), os.Getenv("AWS_SECRET_ACCESS_KEY"), os.Getenv("AWS_SESSION_TOKEN"))
	default:
		from = "the environment or ~/.aws"
		creds = credentials.NewFileAWSCredentials("", o.Profile)
	}
	value, err := creds.GetWithContext(nil)
	if pathError, ok := errors.AsType[*fs.PathError](err); ok {
		return nil, fmt.Errorf("%w: no credentials: %w", objects.ErrDenied, pathError)
	}
	if err != nil { // it may quote a line with a secret
		return nil, fmt.Errorf("%w: cannot make credentials of %s; is the file right, and has it the profile?", objects.ErrDenied, from)
	}
	if value.AccessKeyID == "" || value.SecretAccessKey == "" {
		return nil, fmt.Errorf("%w: no credentials in %s; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a credentials file",
			objects.ErrDenied, from)
	}
	return creds, nil
}
