package cli

import (
	"bufio"
	"fmt"

	"varve/internal/contract"
)

type snapshotDiff struct {
	Older string `arg:"" help:"Snapshot VOLUME@NAME or bookmark VOLUME#NAME to compare with."`
	Newer string `arg:"" optional:"" name:"volume[@snapshot]" help:"Snapshot or volume that is compared; without, the volume as it is now."`
}

// Run prints the extents as they arrive: there may be millions.
func (c snapshotDiff) Run(t *terminal) error {
	w := bufio.NewWriterSize(t.stdout, 64<<10)
	write := t.extentTable
	if t.Output == "json" {
		write = t.extentJSON
	}
	err := write(w, func(visit func(contract.Extent) error) error {
		return t.client.Diff(t.ctx, c.Older, c.Newer, visit)
	})
	if e := w.Flush(); err == nil {
		err = e
	}
	return err
}

// extentTable prints columns of a width that holds every offset, since it cannot wait for the longest, and the total.
func (t *terminal) extentTable(w *bufio.Writer, each func(visit func(contract.Extent) error) error) error {
	var extents, bytes int64
	row := func(offset, length any) error {
		_, err := fmt.Fprintf(w, "%14v  %14v\n", offset, length)
		return err
	}
	err := each(func(e contract.Extent) error {
		if extents++; extents == 1 {
			_ = row("OFFSET", "LENGTH") // an error stays with w
		}
		bytes += e.Length
		return row(e.Offset, e.Length)
	})
	if err != nil {
		return err
	}
	things := "extents"
	if extents == 1 {
		things = "extent"
	}
	_, err = fmt.Fprintf(w, "changed: %d bytes (%s) in %d %s\n", bytes, humanSize(bytes), extents, things)
	return err
}

// extentJSON prints an array, which is closed only if it is whole.
func (t *terminal) extentJSON(w *bufio.Writer, each func(visit func(contract.Extent) error) error) error {
	before := "[\n"
	err := each(func(e contract.Extent) error {
		_, err := fmt.Fprintf(w, "%s  {\"offset\": %d, \"length\": %d}", before, e.Offset, e.Length)
		before = ",\n"
		return err
	})
	if err != nil {
		return err
	}
	if before == "[\n" {
		_, err = w.WriteString("[]\n")
	} else {
		_, err = w.WriteString("\n]\n")
	}
	return err
}
