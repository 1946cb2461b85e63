package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"varve/internal/block"
	"varve/internal/nbd"
)

var errTooManyContexts = fmt.Errorf("at most %d meta contexts can be selected", maxContexts)

// selectedContext is a meta context that a client has selected for an export.
type selectedContext struct {
	id   uint32 // from 1 on
	name string
	MetaContext
}

// selectContexts opens the contexts that the queries name exactly; a query that
// names none is ignored (section "Option types", NBD_OPT_SET_META_CONTEXT).
func selectContexts(ctx context.Context, e *Export, queries []string) ([]selectedContext, error) {
	var list []selectedContext
	for i, q := range queries {
		if !e.hasContext(ctx, q) || slices.Contains(queries[:i], q) {
			continue
		}
		if len(list) == maxContexts {
			return nil, errTooManyContexts
		}
		c := selectedContext{id: uint32(len(list) + 1), name: q}
		if q == nbd.BaseAllocation {
			c.MetaContext = allocation{e.Device}
		} else {
			var err error
			c.MetaContext, err = e.Contexts.Open(ctx, q)
			if errors.Is(err, ErrUnknownContext) {
				continue // gone since it was asked for
			}
			if err != nil {
				return nil, fmt.Errorf("meta context %q: %w", q, err)
			}
		}
		list = append(list, c)
	}
	return list, nil
}

// hasContext tells whether there is a context of that name.
func (e *Export) hasContext(ctx context.Context, name string) bool {
	return name == nbd.BaseAllocation || e.Contexts != nil && e.Contexts.Has(ctx, name)
}

// listContexts names the contexts that a LIST with these queries asks for: all that are listed
// if there is no query; a query that ends in a colon is a wildcard.
func listContexts(ctx context.Context, e *Export, queries []string) ([]string, error) {
	available := []string{nbd.BaseAllocation}
	if e.Contexts != nil {
		more, err := e.Contexts.Names(ctx)
		if err != nil {
			return nil, err
		}
		available = append(available, more...)
	}
	if len(queries) == 0 {
		return available, nil
	}
	var list []string
	for _, name := range available {
		if slices.ContainsFunc(queries, func(q string) bool {
			return q == name || strings.HasSuffix(q, ":") && strings.HasPrefix(name, q)
		}) {
			list = append(list, name)
		}
	}
	for _, q := range queries {
		if !slices.Contains(list, q) && e.hasContext(ctx, q) {
			list = append(list, q)
		}
	}
	return list, nil
}

// allocation is base:allocation.
type allocation struct{ device block.Device }

func (a allocation) Status(ctx context.Context, off, length int64, limit int) ([]Status, error) {
	extents, err := a.device.Extents(ctx, off, length, limit)
	if err != nil {
		return nil, err
	}
	runs := make([]Status, len(extents))
	for i, e := range extents {
		runs[i].Length = e.Length
		if e.Hole {
			runs[i].Flags |= nbd.StateHole
		}
		if e.Zero {
			runs[i].Flags |= nbd.StateZero
		}
	}
	return runs, nil
}
