package cli

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"

	"varve/internal/api"
	"varve/internal/daemon"
)

// drainTime is how long clients have to finish what they are doing when the daemon stops.
const drainTime = 30 * time.Second

type serveCommand struct {
	NBD      []string `name:"nbd" help:"Serve NBD here too: host:port, or the path of a unix socket; repeatable. Over a network, think of --tls-cert." placeholder:"ADDR" sep:"none"`
	TLSCert  string   `name:"tls-cert" help:"Certificate (PEM) to encrypt NBD with. Then host:port addresses answer over TLS only; unix sockets leave it to the client." placeholder:"FILE"`
	TLSKey   string   `name:"tls-key" help:"Its key (PEM)." placeholder:"FILE"`
	TLSCA    string   `name:"tls-clients" help:"Certificates (PEM) of the authorities that clients must show a certificate of; without, anybody who can connect may." placeholder:"FILE"`
	MapCache size     `help:"Memory for block maps." default:"256M" placeholder:"SIZE"`
	Pprof    bool     `help:"Answer on the API's socket under /debug/pprof/ with profiles of this process, for 'go tool pprof'."`
}

// Run serves until SIGTERM or SIGINT. Then running requests finish, and everything
// is made durable; a second signal cuts clients off, a third ends the process as it is.
func (c serveCommand) Run(t *terminal) error {
	level := slog.LevelInfo
	if t.Quiet {
		level = slog.LevelWarn
	}
	log := slog.New(slog.NewTextHandler(t.stderr, &slog.HandlerOptions{Level: level}))

	addresses := slices.Clone(c.NBD)
	for i, addr := range addresses {
		if daemon.IsSocketPath(addr) {
			var err error
			if addresses[i], err = filepath.Abs(addr); err != nil {
				return fmt.Errorf("%s: %w", addr, err)
			}
		}
	}
	identity, err := c.identity()
	if err != nil {
		return err
	}
	d, err := daemon.Start(t.ctx, daemon.Config{
		DataDir: t.Data, NBD: addresses, TLS: identity, MapCacheBytes: int64(c.MapCache), Version: t.version, Log: log,
	})
	if err != nil {
		return err
	}
	hurry, cancel := context.WithCancel(context.Background())
	defer cancel()
	go hurryUp(t.ctx, hurry, cancel)

	err = c.answer(hurry, t, d, log)
	drain, cancelDrain := context.WithTimeout(hurry, drainTime)
	defer cancelDrain()
	return errors.Join(err, d.Stop(drain))
}

// identity reads the certificates that NBD is encrypted with; nil if there are none.
func (c serveCommand) identity() (*tls.Config, error) {
	if c.TLSCert == "" {
		return nil, nil
	}
	certificate, err := tls.LoadX509KeyPair(c.TLSCert, c.TLSKey)
	if err != nil {
		return nil, fmt.Errorf("certificate %s with key %s: %w", c.TLSCert, c.TLSKey, err)
	}
	config := &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12}
	if c.TLSCA == "" {
		return config, nil
	}
	pem, err := os.ReadFile(c.TLSCA)
	if err != nil {
		return nil, fmt.Errorf("authorities of clients: %w", err)
	}
	config.ClientCAs, config.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
	if !config.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("authorities of clients: %s holds no certificate", c.TLSCA)
	}
	return config, nil
}

// Validate implements kong's check before Run.
func (c serveCommand) Validate() error {
	if (c.TLSCert == "") != (c.TLSKey == "") || (c.TLSCA != "" && c.TLSCert == "") {
		return errors.New("--tls-cert and --tls-key go together, and --tls-clients with them")
	}
	return nil
}

// answer serves the API until the first signal, and then until its running
// requests have finished.
func (c serveCommand) answer(hurry context.Context, t *terminal, d *daemon.Daemon, log *slog.Logger) error {
	// Nobody is answered before NBD listens, so a status that answers means that all does.
	socket, err := daemon.Listen(t.Socket)
	if err != nil {
		return err
	}
	notify(log, systemd.SdNotifyReady)
	ended := make(chan error, 1)
	handler := api.New(d, t.version)
	if c.Pprof {
		handler = api.WithProfiles(handler)
	}
	go func() { ended <- api.Serve(t.ctx, hurry, socket, handler) }()
	select {
	case err := <-ended:
		return err
	case <-t.ctx.Done():
	}
	notify(log, systemd.SdNotifyStopping)
	d.StopJobs() // those who wait for one get their answer
	return <-ended
}

// hurryUp waits for the signals after the first.
func hurryUp(first, done context.Context, cut context.CancelFunc) {
	select {
	case <-first.Done():
	case <-done.Done():
		return
	}
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	defer signal.Stop(signals)
	for range 2 {
		select {
		case <-signals:
			if done.Err() != nil {
				os.Exit(1)
			}
			cut()
		case <-done.Done():
			return
		}
	}
}

// notify tells systemd, where it started us.
func notify(log *slog.Logger, state string) {
	if _, err := systemd.SdNotify(false, state); err != nil {
		log.Warn("cannot notify systemd", "error", err)
	}
}
