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

// diff registers the one operation whose answer is not made in memory: it may have millions of
// extents. If it fails on the way, the array is not closed, and a trailer has the error.
func diff(api huma.API, d *daemon.Daemon) {
	type query struct {
		From string `query:"from" required:"true" doc:"VOLUME@NAME or VOLUME#NAME"`
		To   string `query:"to" doc:"VOLUME@NAME or VOLUME; empty: the volume of from"`
	}
	extents := api.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[[]contract.Extent](), true, "")
	huma.Register(api, huma.Operation{
		OperationID: "diff", Method: http.MethodGet, Path: "/v1/diff", Summary: "What changed from one state of a volume to another",
		Description: "Extents are streamed, in ascending order, whole blocks of 4096 bytes. If that fails on the way, the array is not closed and the trailer " +
			contract.ErrorTrailer + " has the error.",
		Responses: map[string]*huma.Response{"200": {
			Description: "OK", Content: map[string]*huma.MediaType{"application/json": {Schema: extents}},
		}},
	}, func(_ context.Context, in *query) (*huma.StreamResponse, error) {
		found, err := d.OpenDiff(in.From, in.To)
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
