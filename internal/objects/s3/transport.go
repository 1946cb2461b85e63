package s3

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"

	"github.com/minio/minio-go/v7/pkg/credentials"
	"golang.org/x/sys/unix"

	"varve/internal/objects"
)

// maxDial is how long a connection may take to be made.
const maxDial = 10 * time.Second

// maxUnsent is how many bytes the kernel takes of a body before it has sent them. More would look like progress on a line
// that has stalled, and like a stall on a slow one once the body's end has been handed over.
const maxUnsent = 128 << 10

// newTransport is HTTP/1.1, a connection for each request that is under way: to cut one is to close its connection.
func newTransport(o Options, stall time.Duration) (*http.Transport, error) {
	tlsConfig := &tls.Config{MinVersion: tls.VersionTLS12}
	if o.CAFile != "" {
		pool, err := trust(o.CAFile)
		if err != nil {
			return nil, err
		}
		tlsConfig.RootCAs = pool
	}
	dialer := &net.Dialer{
		Timeout: min(stall, maxDial), KeepAlive: 30 * time.Second,
		Control: func(_, _ string, c syscall.RawConn) error {
			return c.Control(func(fd uintptr) {
				_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, maxUnsent) // it works without
			})
		},
	}
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         dialer.DialContext,
		TLSClientConfig:     tlsConfig,
		TLSHandshakeTimeout: stall,
		MaxIdleConns:        128,
		MaxIdleConnsPerHost: 128,
		IdleConnTimeout:     time.Minute,
		WriteBufferSize:     64 << 10,
		ReadBufferSize:      64 << 10,
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
