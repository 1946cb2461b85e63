package clients

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"

	"varve/internal/api"
	service "varve/internal/daemon"
)

// serveAhead is `varve serve` on a machine whose clock is wrong, which the binary has no flag for: this program becomes it, given
// --data DIR --ahead DURATION. It returns the exit status.
func serveAhead(args []string) int {
	flags := flag.NewFlagSet("serve", flag.ExitOnError)
	data := flags.String("data", "", "the data directory")
	ahead := flags.Duration("ahead", 0, "how much its clock is ahead")
	_ = flags.Parse(args) // exits if it fails
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := runAhead(ctx, *data, *ahead); err != nil {
		fmt.Fprintln(os.Stderr, "serve:", err)
		return 1
	}
	return 0
}

func runAhead(ctx context.Context, data string, ahead time.Duration) error {
	d, err := service.Start(ctx, service.Config{
		DataDir: data, Version: "of the tests", Clock: func() time.Time { return time.Now().Add(ahead) },
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	socket, err := service.Listen(service.APISocket(data))
	if err == nil {
		go func() { ended <- api.Serve(ctx, context.Background(), socket, api.New(d, "of the tests")) }()
		_, err = systemd.SdNotify(false, systemd.SdNotifyReady)
	}
	if err == nil {
		<-ctx.Done()
		d.StopJobs()
		err = <-ended
	}
	return errors.Join(err, d.Stop(context.WithoutCancel(ctx)))
}
