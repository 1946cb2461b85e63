// Package api is the HTTP face of the daemon: an OpenAPI 3.1 document at
// /openapi.json, and the operations in it under /v1. What travels is in package
// contract; what is done is in package daemon; this package only ties a method
// and a path to one of the daemon's methods and an error to a status.
//
// It is served on a unix socket that only its owner may open: whoever can connect may do everything.
package api

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"varve/internal/contract"
	"varve/internal/daemon"
)

const (
	// maxBody is the largest request in bytes; a list of 10,000 snapshots fits.
	maxBody = 4 << 20
	// headerTimeout bounds how long a client may take to send a request's header.
	headerTimeout = 10 * time.Second
)

// problem is a contract.Error on its way out.
type problem contract.Error

func (p *problem) Error() string { return p.Message }

// GetStatus implements huma.StatusError.
func (p *problem) GetStatus() int {
	switch p.Code {
	case contract.CodeUsage:
		return http.StatusBadRequest
	case contract.CodeNotFound:
		return http.StatusNotFound
	case contract.CodeRefused:
		return http.StatusConflict
	default:
		return http.StatusInternalServerError
	}
}

func fail(err error) error { return (*problem)(daemon.Describe(err)) }

// validationError is how huma reports a request that does not fit its schema.
func validationError(status int, message string, details ...error) huma.StatusError {
	code := contract.CodeUsage
	switch {
	case status == http.StatusNotFound:
		code = contract.CodeNotFound
	case status >= 500:
		code = contract.CodeFailed
	}
	for _, d := range details {
		message += "; " + d.Error()
	}
	return (*problem)(contract.Errorf(code, "%s", message))
}

var setErrors = sync.OnceFunc(func() { huma.NewError = validationError })

// New returns the API of d.
func New(d *daemon.Daemon, version string) http.Handler {
	setErrors()
	config := huma.DefaultConfig("Varve", version)
	config.Info.Description = "Virtual disks with snapshots. Sizes are bytes, times RFC 3339 in UTC."
	config.CreateHooks = nil // no $schema in objects: they are what the command line prints
	config.DocsPath = ""     // the page would be loaded from another host
	config.Components.Schemas.RegisterTypeAlias(reflect.TypeFor[contract.Time](), reflect.TypeFor[time.Time]())

	mux := http.NewServeMux()
	api := humago.New(mux, config)
	volumes(api, d)
	snapshots(api, d)
	bookmarks(api, d)
	mirrors(api, d)
	diff(api, d)
	repositories(api, d)
	backups(api, d)
	jobs(api, d)
	service(api, d)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprintf(w, `{"code":"not_found","message":"no operation %s %s","hint":"the operations are in /openapi.json"}`+"\n",
			r.Method, strings.Map(plain, r.URL.Path))
	})
	return mux
}

// plain keeps what may stand in a JSON string as it is.
func plain(r rune) rune {
	if r < ' ' || r == '"' || r == '\\' {
		return '?'
	}
	return r
}

// Serve answers on l until ctx ends; then running requests have until stopping
// ends to finish.
func Serve(ctx, stopping context.Context, l net.Listener, handler http.Handler) error {
	server := &http.Server{Handler: handler, ReadHeaderTimeout: headerTimeout, BaseContext: func(net.Listener) context.Context { return stopping }}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	select {
	case err := <-ended:
		return fmt.Errorf("serve the API: %w", err)
	case <-ctx.Done():
	}
	err := server.Shutdown(stopping)
	if err != nil {
		err = errors.Join(err, server.Close())
	}
	<-ended
	return err
}

// body is a response that is one JSON document.
type body[T any] struct{ Body T }

// operation registers one operation; do gets the request and returns what is sent back.
func operation[In, Out any](api huma.API, method, path, id, summary string, status int, do func(context.Context, *In) (Out, error)) {
	huma.Register(api, huma.Operation{
		OperationID: id, Method: method, Path: path, Summary: summary, DefaultStatus: status, MaxBodyBytes: maxBody,
	}, func(ctx context.Context, in *In) (*body[Out], error) {
		out, err := do(ctx, in)
		if err != nil {
			return nil, fail(err)
		}
		return &body[Out]{out}, nil
	})
}

// action is an operation that sends nothing back.
func action[In any](api huma.API, method, path, id, summary string, do func(context.Context, *In) error) {
	huma.Register(api, huma.Operation{
		OperationID: id, Method: method, Path: path, Summary: summary, DefaultStatus: http.StatusNoContent, MaxBodyBytes: maxBody,
	}, func(ctx context.Context, in *In) (*struct{}, error) {
		if err := do(ctx, in); err != nil {
			return nil, fail(err)
		}
		return nil, nil
	})
}
