package client

import (
	"context"
	"fmt"
	"slices"

	"varve/internal/block"
	"varve/internal/nbd"
)

// Status is a run of bytes of equal flags in a meta context.
type Status struct {
	Length int64 // bytes
	Flags  uint64
}

// BlockStatus describes [off, off+length) in a meta context that was asked for with
// Dial, in order, without gaps and merged, in at most limit runs; it ends early only
// after limit runs.
func (c *Client) BlockStatus(ctx context.Context, name string, off, length int64, limit int) ([]Status, error) {
	fail := func(err error) ([]Status, error) {
		return nil, &RequestError{Cmd: nbd.CmdBlockStatus, Offset: off, Length: length, Cause: err}
	}
	if err := block.CheckRange(off, length, c.info.SizeBytes); err != nil {
		return fail(err)
	}
	if !slices.Contains(c.info.Contexts, name) {
		return fail(fmt.Errorf("%w %q", ErrUnknownContext, name))
	}
	head, tail := c.misaligned(off, length)
	var list []Status
	for at, end := off-head, off+length+tail; at < off+length; {
		k := &call{req: nbd.Request{Cmd: nbd.CmdBlockStatus, Offset: uint64(at), Length: uint64(min(end-at, c.maxEffect()))}}
		if limit == 1 {
			k.req.Flags = nbd.CmdFlagReqOne
		}
		if err := c.do(ctx, k); err != nil {
			return nil, err
		}
		runs := c.statusOf(k, name)
		if runs == nil {
			return fail(fmt.Errorf("%w: no status for %q", ErrProtocol, name))
		}
		for _, r := range runs {
			// The last run may reach beyond what was asked, the first begin before it.
			from, to := max(at, off), at+min(r.Length, end-at)
			at = to
			r.Length = min(to, off+length) - from
			if r.Length <= 0 {
				continue
			}
			if i := len(list) - 1; i >= 0 && list[i].Flags == r.Flags {
				list[i].Length += r.Length
			} else if len(list) == limit {
				return list, nil
			} else {
				list = append(list, r)
			}
		}
	}
	return list, nil
}

func (c *Client) statusOf(k *call, name string) []Status {
	for _, s := range k.status {
		if c.contexts[s.context] == name {
			return s.runs
		}
	}
	return nil
}

// Extents implements block.Device. Where the server has no base:allocation, all is data.
func (c *Client) Extents(ctx context.Context, off, length int64, limit int) ([]block.Extent, error) {
	if !slices.Contains(c.info.Contexts, nbd.BaseAllocation) {
		if err := block.CheckRange(off, length, c.info.SizeBytes); err != nil || length == 0 {
			return nil, err
		}
		return []block.Extent{{Offset: off, Length: length}}, nil
	}
	runs, err := c.BlockStatus(ctx, nbd.BaseAllocation, off, length, limit)
	if err != nil {
		return nil, err
	}
	var list []block.Extent
	for _, r := range runs {
		e := block.Extent{Offset: off, Length: r.Length, Hole: r.Flags&nbd.StateHole != 0, Zero: r.Flags&nbd.StateZero != 0}
		off += r.Length
		// Runs may differ in flags that mean nothing to us.
		if i := len(list) - 1; i >= 0 && list[i].Hole == e.Hole && list[i].Zero == e.Zero {
			list[i].Length += e.Length
		} else {
			list = append(list, e)
		}
	}
	return list, nil
}
