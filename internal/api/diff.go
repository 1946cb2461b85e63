package api

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"reflect"
	"strconv"

	"github.com/danielgtaylor/huma/v2"

	"varve/internal/contract"
	"varve/internal/daemon"
)

func diff(api huma.API, d *daemon.Daemon) {
	streamed(api, "diff", "/v1/diff", "What changed from one state of a volume to another",
		func(_ context.Context, in *struct {
			From string `query:"from" required:"true" doc:"VOLUME@NAME or VOLUME#NAME"`
			To   string `query:"to" doc:"VOLUME@NAME or VOLUME; empty: the volume of from"`
		}) (extents, error) {
			return d.OpenDiff(in.From, in.To)
		})
}

// extents are found one after the other.
type extents interface {
	Each(ctx context.Context, visit func(offset, length int64) error) error
	Close()
}

// streamed registers an operation whose answer is not made in memory: it may have millions of
// extents. If it fails on the way, the array is not closed, and a trailer has the error.
func streamed[In any](api huma.API, id, path, summary string, open func(context.Context, *In) (extents, error)) {
	schema := api.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[[]contract.Extent](), true, "")
	huma.Register(api, huma.Operation{
		OperationID: id, Method: http.MethodGet, Path: path, Summary: summary,
		Description: "Extents are streamed, in ascending order, whole blocks of 4096 bytes. If that fails on the way, the array is not closed and the trailer " +
			contract.ErrorTrailer + " has the error.",
		Responses: map[string]*huma.Response{"200": {
			Description: "OK", Content: map[string]*huma.MediaType{"application/json": {Schema: schema}},
		}},
	}, func(ctx context.Context, in *In) (*huma.StreamResponse, error) {
		found, err := open(ctx, in)
		if err != nil {
			return nil, fail(err)
		}
		return &huma.StreamResponse{Body: func(c huma.Context) {
			defer found.Close()
			c.SetHeader("Content-Type", "application/json")
			c.SetHeader("Trailer", contract.ErrorTrailer)
			if err := writeExtents(c.BodyWriter(), func(visit func(offset, length int64) error) error {
				return found.Each(c.Context(), visit)
			}); err != nil {
				told, _ := json.Marshal(daemon.Describe(err)) // strings only
				c.SetHeader(contract.ErrorTrailer, string(told))
			}
		}}, nil
	})
}

// writeExtents writes what each visits as a JSON array, which it closes if there was no error.
func writeExtents(to io.Writer, each func(visit func(offset, length int64) error) error) error {
	w := bufio.NewWriterSize(to, 64<<10)
	var line []byte
	separator := "["
	err := each(func(offset, length int64) error {
		line = append(line[:0], separator...)
		line = strconv.AppendInt(append(line, `{"offset":`...), offset, 10)
		line = strconv.AppendInt(append(line, `,"length":`...), length, 10)
		separator = ",\n"
		_, err := w.Write(append(line, '}'))
		return err
	})
	if err == nil {
		if separator == "[" {
			_, err = w.WriteString("[")
		}
		_, _ = w.WriteString("]\n") // an error stays with w
	}
	if e := w.Flush(); err == nil {
		err = e
	}
	return err
}
